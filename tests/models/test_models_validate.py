"Splits that no label crosses, tests that keep their level under overlap, and costs that are paid"
import numpy as np, pandas as pd, pytest
from quantlib.models.forecast import LEVELS
from quantlib.models.validate import apart, book, cpcv, dm, hac_t, paths, pinball, rank_ic, score, traded, walk_forward, worst_window

HOUR = 3_600_000


def _bars(t, h): return np.unique(t[:, None] + np.arange(1, h + 1)*HOUR)


@pytest.mark.parametrize('h', [1, 4, 24])
@pytest.mark.parametrize('gap', [False, True])
def test_no_bar_is_in_a_training_and_a_test_label(h, gap):
    at = np.arange(600); at = at[(at < 200) | (at > 230)] if gap else at
    t = np.repeat(at*HOUR, 3)
    for train, test in [*walk_forward(t, 4, h, first=.3), *cpcv(t, 6, 2, h, 5)]:
        assert train.any() and test.any() and not (train & test).any()
        assert not np.isin(_bars(t[train], h), _bars(t[test], h)).any()


def test_rows_of_one_hour_are_never_parted():
    t = np.repeat(np.arange(300)*HOUR, 5)
    for train, test in [*walk_forward(t, 3), *cpcv(t, 5, 2)]:
        for m in (train, test): assert set(np.bincount((t//HOUR).astype(int), m, 300)) <= {0., 5.}


def test_cpcv_tests_every_row_equally_often():
    t = np.arange(500)*HOUR
    seen = sum(test.astype(int) for _, test in cpcv(t, 6, 2))
    assert set(seen) == {paths(6, 2)} == {5}


def test_walk_forward_learns_only_from_the_past():
    t = np.random.default_rng(0).permutation(np.repeat(np.arange(400)*HOUR, 2))
    for train, test in walk_forward(t, 4, 24, embargo=6): assert t[train].max() + 30*HOUR <= t[test].min()


def test_apart_leaves_the_embargo_after_the_test_only():
    t = np.arange(200)*HOUR
    m = apart(t, 100*HOUR, 120*HOUR, 4, 10)
    assert list(np.flatnonzero(~m)) == list(range(97, 135))


@pytest.mark.parametrize('h', [1, 4, 24])
def test_the_level_of_hac_t_under_overlap(h):
    "A true null of overlapping sums is rejected about as often as promised; the naive test is far off at 24"
    rng, n, hits, naive = np.random.default_rng(h), 1500, 0, 0
    for _ in range(200):
        e = rng.standard_normal(n + h); x = np.convolve(e, np.ones(h), 'valid')[:n]
        hits += abs(hac_t(x, h - 1)) > 1.96
        naive += abs(x.mean()/x.std()*n**.5) > 1.96
    assert hits/200 < .13 and (h < 24 or naive/200 > .5)


def test_dm_counts_hours_and_not_rows():
    rng = np.random.default_rng(1); hours = 400
    common = rng.standard_normal(hours); t = np.repeat(np.arange(hours), 42)
    a, b = np.repeat(common, 42) + .01*rng.standard_normal(hours*42) + 1, np.ones(hours*42)
    assert abs(dm(a, b, t, 1) - hac_t(common, 0)) < .05


def test_rank_ic_is_spearman_of_each_instant():
    from scipy.stats import spearmanr
    rng = np.random.default_rng(2); t = np.repeat(np.arange(20), 9)
    f, y = rng.integers(0, 4, 180).astype(float), rng.standard_normal(180)
    ic = rank_ic(f, y, t)
    for k in ic.index: assert abs(ic[k] - spearmanr(f[t == k], y[t == k])[0]) < 1e-12
    assert rank_ic(np.zeros(180), y, t).empty


def test_a_perfect_forecast_and_one_of_nothing():
    rng = np.random.default_rng(3); t = np.repeat(np.arange(800)*HOUR, 10); y = rng.standard_normal(8000)
    wide = np.array([-1.645, -.674, 0, .674, 1.645])
    zero = np.tile(wide, (8000, 1)); sure = y[:, None] + .01*wide
    s, z = score(sure, y, t, 1, zero), score(zero, y, t, 1, zero)
    assert s['rank_ic'] > .99 and s['beats_zero'] and s['r2'] > .99 and s['hit'] > .99
    assert z['rank_ic'] is None and not z['beats_zero'] and abs(z['cover90'] - .9) < .01 and abs(z['cover50'] - .5) < .02 and abs(z['log_loss'] - np.log(2)) < 1e-9


def test_score_leaves_out_what_is_missing_and_refuses_nothing_at_all():
    rng = np.random.default_rng(4); t = np.repeat(np.arange(300)*HOUR, 6); y = rng.standard_normal(1800); q = np.tile([-1.6, -.7, 0, .7, 1.6], (1800, 1)) + .1*y[:, None]
    holes = q.copy(); holes[::7] = np.nan; y2 = y.copy(); y2[::5] = np.nan
    ok = np.isfinite(holes).all(1) & np.isfinite(y2)
    assert score(holes, y2, t, 1) == score(q[ok], y[ok], t[ok], 1)
    with pytest.raises(ValueError, match='no row'): score(q*np.nan, y, t, 1)


def test_worst_window_sees_a_bad_stretch_and_weighs_rows():
    inside, t = np.ones(2000), np.repeat(np.arange(1000), 2)
    inside[1000:1200] = 0
    assert worst_window(inside, t, 500) == pytest.approx(1 - 100/500) and worst_window(inside, t, 2000) == pytest.approx(.9)


def test_pinball_is_least_at_the_true_quantiles():
    y = np.random.default_rng(5).standard_normal(20_000); true = np.quantile(y, LEVELS)
    best = pinball(np.tile(true, (len(y), 1)), y).mean()
    for d in (-.1, .1): assert pinball(np.tile(true + d, (len(y), 1)), y).mean() > best


def test_the_book_is_neutral_and_its_costs_are_what_is_turned_over():
    rng = np.random.default_rng(6); t = np.repeat(np.arange(50), 6); s = np.tile(list('abcdef'), 50)
    w = book(rng.standard_normal(300), t, s)
    assert np.allclose(w.sum(axis=1), 0) and np.allclose(w.abs().sum(axis=1), 1)
    r, f = w*0 + .01, w*0 + .001
    out = traded(w, r, .0006, f)
    assert np.allclose(out.gross, 0) and np.allclose(out.funding, 0) and np.allclose(out.cost, .0006*out.turnover)
    assert out.turnover.iloc[0] == pytest.approx(1) and np.allclose(out.net, out.gross - out.cost - out.funding)


def test_a_long_pays_positive_funding_and_a_short_receives_it():
    w = pd.DataFrame(dict(a=[.5], b=[-.5])); f = pd.DataFrame(dict(a=[.001], b=[.0]))
    assert traded(w, w*0., 0., f).net[0] == pytest.approx(-.0005) and traded(-w, w*0., 0., f).net[0] == pytest.approx(.0005)
