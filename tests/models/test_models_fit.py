"The training loop under attack: masks without bias, draws that disturb nobody, the best weights kept, spoiled input refused"
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn

from quantlib.models.fit import LOSSES, Dropout, Recipe, Windows, back, judge, learn, level, predict, read, seeded, threads_of, write
from quantlib.models.forecast import LEVELS
from quantlib.models.nhits import NHiTS


@pytest.fixture(scope='module')
def rows():
    t = np.arange(900); z = np.stack([np.sin(2*np.pi*t/24), np.cos(2*np.pi*t/24)]) + .1*np.random.default_rng(0).standard_normal((2, 900))
    return Windows(z[:, :600], 48, 6), Windows(z[:, 552:], 48, 6)


def small(seed=1):
    with seeded(seed): return NHiTS(48, 6, width=16, dropout=.2)


QUICK = Recipe(steps=20, batch=16, checks=4)


@pytest.mark.parametrize('share', [.01, .2, .5, .9])
def test_dropout_is_fair_in_every_byte(share):
    "One 64-bit draw holds eight bytes: none of them may be dropped more often than another"
    with seeded(0): y = Dropout(share)(torch.ones(8 * 40_000))
    lanes = (y.view(-1, 8) == 0).float().mean(0)
    want = round(256*share)/256
    assert (lanes - want).abs().max() < 5*(want*(1-want)/40_000)**.5
    assert abs(y.mean().item() - 1) < .02


def test_dropout_passes_the_gradient_of_what_it_kept():
    x = torch.ones(1001, requires_grad=True)
    with seeded(0): y = Dropout(.3)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_dropout_takes_any_shape():
    for shape in ((), (1,), (0,), (3, 5), (2, 3, 7)): assert Dropout(.5)(torch.ones(shape)).shape == shape
    assert Dropout(.5)(torch.ones(4, 6).T).shape == (6, 4)
    for bad in (-.1, 1., 2): pytest.raises(ValueError, Dropout, bad)
    assert torch.isfinite(Dropout(.9999)(torch.ones(1000))).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.integers(0, 12))
def test_windows_are_the_slices_they_stand_for(series, length, horizon, more):
    z = np.arange(series * (length + horizon + more), dtype=float).reshape(series, -1)
    w = Windows(z, length, horizon)
    assert len(w) == more + 1
    i = torch.arange(len(w)).flip(0); x, y = w[i]
    for k, origin in enumerate(i.tolist()):
        for s in range(series):
            assert x[k*series + s].tolist() == z[s, origin:origin+length].tolist() and y[k*series + s].tolist() == z[s, origin+length:origin+length+horizon].tolist()


def test_windows_refuse_gaps_and_too_little():
    with pytest.raises(ValueError, match='gaps'): Windows(np.array([[1., np.nan, 3.]]), 1, 1)
    with pytest.raises(ValueError, match='no window'): Windows(np.ones((1, 9)), 8, 2)


@pytest.mark.parametrize('how', ['spread', 'last', 'none'])
def test_level_and_back_undo_each_other(how):
    x = 50 + 3*torch.randn(6, 2, 40)
    u, mean, scale = level(x, how)
    assert torch.allclose(back(u[:, :1], mean, scale), x[:, 0], atol=1e-4)
    with pytest.raises(ValueError, match='unknown'): level(x, 'median')


def test_the_spread_is_that_of_torch_and_survives_a_high_level():
    x = 10 * torch.randn(6, 2, 40, dtype=torch.float64); var, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
    u, m, scale = level(x)
    assert torch.allclose(m, mean) and torch.allclose(scale, (var + 1e-5).sqrt()) and torch.allclose(u, (x - mean) / scale)
    assert torch.allclose(level((x + 1e4).float())[0].double(), u, atol=5e-3), 'squares are taken after the mean came off'


def test_pinball_finds_the_quantiles():
    "The least loss lies at the quantiles themselves: moving any of them costs"
    y = torch.randn(200_000, 1, dtype=torch.float64); q = torch.quantile(y, torch.tensor(LEVELS, dtype=torch.float64)).view(1, 1, 5)
    best = LOSSES['pinball'](q.expand(len(y), 1, 5), y)
    for i in range(5):
        for by in (-.1, .1):
            moved = q.clone(); moved[..., i] += by
            assert LOSSES['pinball'](moved.expand(len(y), 1, 5), y) > best


def test_same_seed_same_bits_whatever_else_is_drawn(rows):
    a, b, c = small(), small(), small()
    learn(a, *rows, QUICK, seed=3); torch.rand(7); learn(b, *rows, QUICK, seed=3); learn(c, *rows, QUICK, seed=4)
    same = lambda x, y: all(torch.equal(p, q) for p, q in zip(x.state_dict().values(), y.state_dict().values()))
    assert same(a, b) and not same(a, c)


def test_a_training_leaves_nothing_behind(rows):
    state, n = torch.random.get_rng_state(), torch.get_num_threads()
    net = small(); learn(net, *rows, QUICK, seed=3, threads=1)
    assert torch.equal(state, torch.random.get_rng_state()) and torch.get_num_threads() == n and not net.training
    learn(net, *rows, QUICK, seed=3)  # a second round on the same network
    with pytest.raises(RuntimeError), threads_of(1): raise RuntimeError
    assert torch.get_num_threads() == n


def test_the_best_check_is_kept(rows):
    "A rate that ruins the network late must not reach what is served"
    net = small(); curve = learn(net, *rows, Recipe(steps=60, batch=16, rate=.3, checks=12, mean=.5), seed=3)
    best = min(r['valid'] for r in curve)
    assert curve[-1]['valid'] > best and abs(judge(net, rows[1]) - best) < 1e-9
    assert [r['kept'] for r in curve].count(True) >= 1 and [r['step'] for r in curve] == list(range(5, 61, 5))


def test_few_rows_and_odd_recipes(rows):
    tiny = Windows(np.random.default_rng(0).standard_normal((1, 57)), 48, 6)
    assert len(learn(small(), tiny, rows[1], Recipe(steps=5, batch=64, checks=5), seed=1)) == 5
    with pytest.raises(ValueError, match='diverged'): learn(small(), *rows, Recipe(steps=40, rate=1e30, clip=1e30, checks=2), seed=1)


def test_judge_and_predict_do_not_depend_on_the_chunk(rows):
    net = small().eval(); a, b = rows[1], rows[1][slice(None)]
    assert torch.allclose(predict(net, a, 7), net(b[0]), atol=1e-6)
    assert abs(judge(net, a, chunk=7) - LOSSES['squared'](net(b[0]), b[1]).item()) < 1e-6


def test_written_weights_come_back_and_hold_no_code(tmp_path, rows):
    net = small().eval(); path = tmp_path/'net.safetensors'; write(net, path)
    same = read(path, NHiTS)
    assert torch.equal(predict(same, rows[1]), predict(net, rows[1])) and same.settings == net.settings
    class Other(nn.Module): pass
    with pytest.raises(ValueError, match='holds a NHiTS'): read(path, Other)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(Exception): read(path, NHiTS)
