"The ladder: ridge against the closed form, and what must not know anything"
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from quantlib.core.clock import HOUR
from quantlib.models.linear import LADDER, PENALTIES, STRETCHES, Linear, Momentum, Sign, agreement, forward, products, ridge, solved
from quantlib.models.located import split
from quantlib.models.panel import Panel


@given(st.integers(0, 2**31), st.sampled_from(PENALTIES))
@settings(max_examples=30, deadline=None)
def test_ridge_is_the_least_of_its_loss(seed, penalty):
    rng = np.random.default_rng(seed); x, y = rng.standard_normal((60, 5)), rng.standard_normal(60)
    A = x.T@x; w = ridge(A, x.T@y, penalty); loss = lambda v: ((y - x@v)**2).sum() + penalty*A.trace()/5*(v@v)
    assert all(loss(w) <= loss(w + d) for d in .01*rng.standard_normal((20, 5)))


def test_the_planted_feature_carries_the_weight(fitted):
    w = np.abs(fitted['ridge'].weights[:, 0])
    assert w.argmax() == 0 and w[0] > 5*np.delete(w, 0).max()


def test_equal_columns_share_their_weight(planted):
    X = planted.X.assign(x7=planted.X.x0); w = Linear().fit(Panel(X, planted.R, planted.Y), 1).weights
    assert np.isfinite(w).all() and np.allclose(w[0], w[7], rtol=1e-6)


@given(st.integers(0, 2**31), st.integers(2, 9), st.integers(2, 7))
@settings(max_examples=40, deadline=None)
def test_agreement_is_the_correlation_of_each_instant(seed, hours, symbols):
    rng = np.random.default_rng(seed); t = rng.permutation(np.repeat(np.arange(hours), symbols)); c, y = rng.standard_normal((len(t), 2)), rng.standard_normal(len(t))
    want = [[np.corrcoef(c[t == k, v], y[t == k])[0, 1] for v in range(2)] for k in range(hours)]
    assert np.allclose(agreement(c, y, t), want) and (agreement(c*0 + 3, y, t) == 0).all()


def _toy(seed, hours=600, symbols=6):
    rng = np.random.default_rng(seed); x = rng.standard_normal((hours*symbols, 4)).astype(np.float32)
    return x, rng.standard_normal((len(x), 3)), np.repeat(np.arange(hours)*HOUR, symbols)


def test_a_stretch_is_judged_by_what_had_ended_before_it():
    x, y, t = _toy(1); edge = np.quantile(t, 3/STRETCHES); z = y.copy(); late = t > edge - 24*HOUR; z[late] *= -5
    (a, _), (b, _) = forward(x, y, t), forward(x, z, t); judged = np.unique(t[t > np.quantile(t, 2/STRETCHES)]); first = (judged <= edge - 24*HOUR).sum()
    assert np.array_equal(a[:, :first], b[:, :first]) and np.allclose(a[:, first:(judged <= edge).sum()], -b[:, first:(judged <= edge).sum()])


def test_all_rows_teach_the_map_that_is_kept():
    x, y, t = _toy(2); _, (A, b) = forward(x, y, t); want = products(x, y, np.ones(len(x), bool))
    assert np.allclose(A, want[0]) and np.allclose(b, want[1])


def test_a_trend_whose_pay_turns_is_penalised_for_it():
    "One loud input whose sign turns from season to season, one faint input that always pays: only a light penalty hears the faint one"
    rng = np.random.default_rng(3); n, s = 3000, 8; loud, faint = 3*rng.standard_normal(n*s), .3*rng.standard_normal(n*s); t = np.repeat(np.arange(n)*HOUR, s)
    turn = np.sign(np.sin(t/HOUR/n*6*np.pi + .3)); y = .02*turn*loud + .5*faint + rng.standard_normal(n*s)
    w, pick = solved(np.c_[loud, faint].astype(np.float32), np.repeat(y[:, None], 3, 1), t)
    assert max(pick) <= .03 and (w[1] > .3).all()


@pytest.mark.parametrize('cls', [Sign, Momentum])
def test_the_ladder_reads_returns_alone(planted, cls):
    m = cls().fit(planted, 1); X = planted.X.sample(frac=1, random_state=0).set_axis(planted.X.index)
    assert np.array_equal(m.predict(planted), m.predict(Panel(X, planted.R, planted.Y)), equal_nan=True)


def test_sign_turns_with_the_last_return(planted):
    m = Sign().fit(planted, 1); p = planted.take(planted.times == planted.times.max()); c = m.centres(p)
    assert (c == -m.centres(Panel(p.X, -p.R, p.Y))).all() and set(np.unique(c)) <= {-1, 0, 1}


def test_momentum_of_equal_returns_is_nothing(planted):
    R = planted.R*0 + 1.; p = planted.take(planted.times == planted.times.max())
    assert np.abs(Momentum().centres(Panel(p.X, R, p.Y))).max() < 1e-5


def test_the_ladder_beats_nothing_on_noise(panel_of):
    p = panel_of(hours=800, signal=0., seed=4); old, _ = split(p.times, .2, 24)
    assert all(max(c().fit(p.take(old), 1).trust.values()) < .5 for c in LADDER.values())
