"Ridge against windows that are really written out"
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from quantlib.models.ridge import Ridge, against_last, paths, sliding


def written_out(z, width): return np.lib.stride_tricks.sliding_window_view(z, width, axis=1).reshape(-1, width)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(0, 30), st.integers(0, 10_000))
def test_sums_of_products(series, width, more, seed):
    z = np.random.default_rng(seed).standard_normal((series, width + more)) + 3
    S, n = sliding(z, width); w = written_out(z, width)
    assert n == len(w) and np.allclose(S, w.T @ w, rtol=1e-10, atol=1e-9)


def test_long_series_lose_no_digits():
    z = np.random.default_rng(0).standard_normal((2, 40_000)).cumsum(1)
    S, _ = sliding(z, 120); w = written_out(z, 120)
    assert abs(S - w.T @ w).max() / abs(S).max() < 1e-11


@pytest.fixture(scope='module')
def z():
    t = np.arange(900); rng = np.random.default_rng(1)
    return np.stack([np.sin(2*np.pi*t/24 + k) for k in range(3)]) + .3*rng.standard_normal((3, 900)) + .05*rng.standard_normal((3, 900)).cumsum(1)


@pytest.mark.parametrize('penalty', [1e-4, .1, 3.])
def test_the_solution_and_its_validation_loss(z, penalty):
    L, H = 30, 5
    r = Ridge.fit(z, 600, 750, H, (L,), (penalty,))
    w = written_out(z[:, :600], L + H); w = w - w[:, [L-1]]; x, y = w[:, :L-1], w[:, L:]
    A = x.T @ x; want = np.linalg.solve(A + penalty * np.trace(A)/len(A) * np.eye(L-1), x.T @ y)
    assert np.allclose(r.weights, want, atol=1e-5)
    v = torch.tensor(written_out(z[:, 600-L:750], L + H), dtype=torch.float32)
    assert abs((r(v[:, :L]) - v[:, L:]).square().mean().item() - r.tried[0][0]) < 1e-5


def test_the_best_of_all_tries_is_kept(z):
    r = Ridge.fit(z, 600, 750, 5, (12, 48, 96, 400), (.01, 1.))
    assert len(r.tried) == 6, 'a window of 400 fills more than half of 600 rows'
    assert (r.length, r.penalty) == min(r.tried)[1:]


def test_the_future_has_no_say(z):
    spoiled = z.copy(); spoiled[:, 750:] = np.nan
    a, b = Ridge.fit(z, 600, 750, 5), Ridge.fit(spoiled, 600, 750, 5)
    assert np.array_equal(a.weights, b.weights)


def test_level_threads_and_refusals(z):
    r = Ridge.fit(z, 600, 750, 5); x = torch.tensor(z[:, :200], dtype=torch.float32)
    assert torch.allclose(r(x + 100), r(x) + 100, atol=1e-3)
    assert torch.allclose(r(x), r(x[:, -r.length:])), 'only the newest steps are read'
    with pytest.raises(ValueError, match='too few'): Ridge.fit(z, 100, 150, 5, (96,))
    with pytest.raises(ValueError, match='no window'): sliding(z, 901)


def test_constant_series_give_no_numbers_out_of_nothing():
    z = np.ones((2, 400)); M = against_last(sliding(z, 40)[0], 30, 10)
    assert abs(M[0]).max() < 1e-9
    with np.errstate(all='ignore'): out = paths(M, M, (.1,))
    assert len(out) == 1


def test_written_weights(tmp_path, z):
    r = Ridge.fit(z, 600, 750, 5); r.write(tmp_path/'r'); same = Ridge.read(tmp_path/'r')
    assert np.array_equal(same.weights, r.weights) and same.penalty == r.penalty
