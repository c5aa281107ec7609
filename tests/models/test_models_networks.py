"Networks over windows and ranks: shapes, sums, what they read and what they must not"
import numpy as np, pytest, torch
from quantlib.models.fit import seeded
from quantlib.models.forecast import HORIZONS
from quantlib.models.linear import solved
from quantlib.models.located import CAP, centred, split
from quantlib.models.networks import BODIES, Reader, Rows, sums
from quantlib.models.panel import Panel

nets = pytest.mark.parametrize('kind', ['nhits', 'patchtst'])
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


def test_sums_turn_hourly_returns_into_scaled_ones():
    path = np.random.default_rng(0).standard_normal((7, 24))
    want = np.stack([path[:, :h].sum(1)/h**.5 for h in HORIZONS], 1)
    assert np.allclose(path@sums().numpy(), want, atol=1e-6)


@nets
def test_a_reader_answers_every_horizon_and_learns_from_both_inputs(kind):
    with seeded(0): net = Reader(kind, 96, 8)
    x = torch.randn(5, 2, 96, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    torch.nn.init.normal_(net.side.weight); net.eval(); y = net(x); y.sum().backward()
    assert y.shape == (5, 3) and x[0].grad.abs().sum() > 0 and x[1].grad.abs().sum() > 0
    assert x[0].grad[:, 1].abs().sum() > 0  # the market's own path is read too


@pytest.mark.parametrize('body', BODIES)
def test_rows_of_a_batch_do_not_see_each_other(body):
    with seeded(0): net = Reader(body, 96, 8).eval()
    x = torch.randn(6, 2, 96), torch.randn(6, 8); y = net(x); x[0][3] += 5
    assert torch.equal(net(x)[[0, 1, 2, 4, 5]], y[[0, 1, 2, 4, 5]])


def test_rows_give_the_window_that_ends_at_their_bar(planted):
    at = np.array([700, 1499, 4999]); x, y = Rows(planted, np.zeros((len(planted), 3)), 96)[at]
    i, s = planted.places(); R = planted.R.to_numpy(); own = R - R.mean(1, keepdims=True)
    for k, j in enumerate(at):
        assert np.allclose(x[0][k, 0], own[i[j] - 95:i[j] + 1, s[j]], atol=1e-5) and np.allclose(x[0][k, 1], R.mean(1)[i[j] - 95:i[j] + 1], atol=1e-5)
    assert torch.equal(x[1], torch.from_numpy(planted.ranks()[at])) and y.shape == (3, 3)


@nets
def test_a_return_before_the_window_or_after_the_bar_changes_nothing(planted, fitted, kind):
    p = planted.take(planted.times == planted.times[400]); R = planted.R.copy(); R.iloc[:400 - 95] = 3.; R.iloc[401:] = -3.
    assert (fitted[kind].centres(p) == fitted[kind].centres(Panel(p.X, R, p.Y))).all()


@nets
def test_the_learning_curve_is_kept_and_finite(fitted, kind):
    curve = fitted[kind].curve
    assert [r['step'] for r in curve] == [6, 12] and all(np.isfinite(r['valid']) for r in curve) and any(r['kept'] for r in curve)


@nets
def test_fitting_beside_another_network_gives_the_same_bits(planted, quick, fitted, kind):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(2) as pool: runs = list(pool.map(lambda k: quick(k).fit(planted, 3), ['patchtst', 'nhits', kind]))
    a, b = runs[2].net.state_dict(), fitted[kind].net.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


@nets
def test_the_map_is_the_ridge_of_the_older_rows_and_training_leaves_it_alone(planted, fitted, kind):
    m = fitted[kind]; ok = m.able(planted); y = centred(np.stack([planted.label(h) for h in HORIZONS], 1).clip(-CAP, CAP), planted.times)
    old, _ = split(planted.times, m.share, 24); p, goal = planted.take(old & ok), y[old & ok]; first, _ = split(p.times, .15, 24); first &= np.isfinite(goal).all(1)
    assert np.array_equal(m.net.side.weight.numpy(), solved(p.ranks()[first], goal[first], p.times[first])[0].T.astype(np.float32)) and not m.net.side.weight.requires_grad
