"Sharpe statistics against their formulas and by simulation; PBO against brute force"
import numpy as np, pytest
from itertools import combinations
from scipy.stats import norm
from quantlib.research.stats import bootstrap, deflated, expected_best, moments, pbo, psr, track_length


def test_psr_is_the_published_formula():
    r = np.random.default_rng(0).standard_t(5, 500)*.01 + .001
    sr, skew, kurt, n = moments(r)
    want = norm.cdf(sr*np.sqrt(n - 1)/np.sqrt(1 - skew*sr + (kurt - 1)/4*sr**2))
    assert psr(r) == pytest.approx(want, abs=1e-12)
    assert psr(r, sr) == pytest.approx(.5)


def test_psr_keeps_its_level_under_the_null():
    rng = np.random.default_rng(1)
    assert np.mean([psr(rng.standard_t(6, 300)) > .95 for _ in range(600)]) == pytest.approx(.05, abs=.03)


def test_a_record_as_long_as_demanded_is_just_believed():
    r = np.random.default_rng(2).standard_t(5, 2400)*.01 + .0006
    sr, skew, kurt, _ = moments(r); n = track_length(r)
    assert norm.cdf(sr*np.sqrt(n - 1)/np.sqrt(1 - skew*sr + (kurt - 1)/4*sr**2)) == pytest.approx(.95, abs=1e-12)
    assert track_length(-r) == np.inf


@pytest.mark.parametrize('trials', [2, 10, 100])
def test_the_expected_best_of_worthless_attempts(trials):
    best = np.random.default_rng(3).standard_normal((20_000, trials)).max(1).mean()
    assert expected_best(trials, 1.) == pytest.approx(best, abs=.06)


def test_more_trials_deflate_more_and_one_trial_not_at_all():
    r = np.random.default_rng(4).standard_normal(500)*.01 + .001
    assert deflated(r, 1, .05) == psr(r)
    d = [deflated(r, n, .05) for n in (1, 2, 10, 100, 1000)]
    assert d == sorted(d, reverse=True) and d[-1] < d[0]
    with pytest.raises(ValueError): deflated(r, 0, .05)


def test_pbo_equals_brute_force():
    r = np.random.default_rng(5).standard_normal((80, 7)); blocks = 6
    parts, below = np.array_split(np.arange(80), blocks), []
    for pick in combinations(range(blocks), blocks//2):
        a, b = (np.concatenate([parts[i] for i in k]) for k in (pick, [i for i in range(blocks) if i not in pick]))
        sr = lambda k: r[k].mean(0)/r[k].std(0)
        out = sr(b); mine = out[sr(a).argmax()]
        less = (out < mine).sum(); below.append(1.*(less < 3) + .5*(less == 3))
    got = pbo(r, blocks)
    assert got.splits == 20 and got.pbo == pytest.approx(np.mean(below), abs=1e-12)


def test_pbo_of_noise_is_a_half_and_of_skill_nothing():
    rng = np.random.default_rng(6); noise = rng.standard_normal((600, 20))
    assert np.mean([pbo(rng.standard_normal((320, 20)), 10).pbo for _ in range(12)]) == pytest.approx(.5, abs=.15)
    noise[:, 3] += .5
    assert pbo(noise, 10).pbo < .02


def test_the_bootstrap_keeps_clusters_together():
    "Means of clinging values spread wider than those of independent ones; the stationary bootstrap knows it"
    rng = np.random.default_rng(7); e = rng.standard_normal(3000); x = np.empty(3000); x[0] = 0
    for i in range(1, 3000): x[i] = .9*x[i - 1] + e[i]
    wide, narrow = bootstrap(x, np.mean, 1, 60., 300).std(), bootstrap(x, np.mean, 1, 1., 300).std()
    true = 10/np.sqrt(3000)
    assert .55*true < wide < 1.5*true and narrow < .4*true
    assert (bootstrap(x, np.mean, 1, 60., 5) == bootstrap(x, np.mean, 1, 60., 5)).all()


@pytest.mark.parametrize('bad', [np.ones(50), np.r_[np.ones(20), np.nan], np.arange(5.)])
def test_records_without_a_sharpe_ratio_are_refused(bad):
    with pytest.raises(ValueError): psr(bad)
