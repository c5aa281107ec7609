"The leak hunt finds what is planted in each stage, stays quiet where nothing is, and both canaries work"
import numpy as np, pandas as pd, pytest
from dataclasses import replace
from quantlib.core.clock import HOUR
from quantlib.data import features as indicators
from quantlib.models.validate import walk_forward
from quantlib.research import leaks as hunt
from quantlib.research.leaks import CORPUS, Pipeline, canary, difference, mirrored, noise, overlaps, prepared, too_good, truncation, ways


@pytest.fixture(scope='module')
def ground():
    feed, rates, cuts, train_end = prepared(bars=800, symbols=7, seed=3)
    clean = ways(Pipeline(), feed, rates, cuts[:3])
    return clean, train_end, truncation(clean, train_end)


def test_the_pipeline_itself_gives_no_alarm(ground): assert ground[2] is None


def test_the_corpus_is_large_and_covers_every_stage():
    assert len(CORPUS) >= 20
    assert {s for s, _, _ in CORPUS.values()} == {*hunt.STAGES} - {'forecasts'} | {'split', 'fit'}
    assert {by for _, by, _ in CORPUS.values()} == {'truncation', 'purge', 'canary'}


@pytest.mark.parametrize('name', ['the bar in progress counts as closed', 'the funding rate before it was known', 'a negative shift', 'a random split', 'a scaler fitted on the test too',
                                  'weights of the vote from the losses that follow', 'a fill in the bar that made the decision'])
def test_a_planted_leak_is_found_in_its_stage(ground, name):
    row = hunt._tried(name, ground[0], ground[1])
    assert row['right'], row


def test_a_leak_of_one_cell_is_named_to_the_bar(ground):
    "One symbol, one column, one bar: the smallest leak that can be"
    clean, train_end, _ = ground
    cut = next(at for at in clean if at is not None)
    def one(c):
        X = indicators.features(c).copy()
        t, s = X.index.get_level_values('open_time').asi8, X.index.get_level_values('symbol')
        here, ahead = (s == 'C03USDT') & (t == cut - HOUR), (c.symbol == 'C03USDT').to_numpy() & (c.open_time.astype('int64') == cut).to_numpy()
        if ahead.any(): X.loc[here, 'adx14'] = c.close[ahead].iloc[0]
        return X
    full = clean[None]
    f = truncation(ways(replace(Pipeline(), features=one), full.feed, full.rates, [cut], clean), train_end)
    assert (f.stage, f.column) == ('features', 'adx14') and f.bar.startswith('C03USDT') and f.by == 'truncation'


def test_a_stage_that_fails_on_a_short_history_is_a_finding(ground):
    clean, train_end, _ = ground
    full, cut = clean[None], next(at for at in clean if at is not None)
    def needs_all(c, at):
        if int(c.open_time.astype('int64').max()) < full.now - HOUR: raise ValueError('not everything is here')
        return hunt.universe(c, at)
    f = truncation(ways(replace(Pipeline(), universe=needs_all), full.feed, full.rates, [cut], clean), train_end)
    assert f.stage == 'universe'


def test_mirroring_turns_every_later_return_and_no_earlier_one():
    feed, _, cuts, _ = prepared(bars=500, symbols=6)
    at = cuts[0]; m = mirrored(feed, at)
    r = lambda f: np.log(f.pivot(index='open_time', columns='symbol', values='close')).diff()
    a, b = r(feed), r(m); late = a.index.asi8 >= at
    pd.testing.assert_frame_equal(a[~late], b.reindex(a.index)[~late])
    both = a[late].notna() & b.reindex(a.index)[late].notna()
    np.testing.assert_allclose(a[late].where(both), -b.reindex(a.index)[late].where(both), atol=1e-12)
    assert (m.high >= m[['open', 'close']].max(axis=1) - 1e-9).all() and (m.low <= m[['open', 'close']].min(axis=1) + 1e-9).all()


def test_overlaps_knows_the_exact_bar():
    t = np.arange(400)*HOUR
    assert overlaps(walk_forward(t, 3, 24), t) is None
    f = overlaps(walk_forward(t, 3, 23), t)
    assert f.column == 'split 0: 1 shared bars' and f.stage == 'split'


def test_difference_takes_nan_for_nan_and_sees_types_of_change():
    a = pd.DataFrame(dict(x=[1., np.nan]), pd.Index([1, 2]))
    assert difference(a, a.copy()) is None
    assert difference(a, a.fillna(0.)) == ('x', 2)
    assert difference(a, a.rename(columns={'x': 'y'}))[0] == 'columns'
    assert difference(a, a[:1]) == ('row', 2)


@pytest.mark.parametrize('seed', [1, 2])
def test_noise_is_not_found_and_a_weak_signal_is(seed):
    assert all(abs(t) < 3 for _, t in canary(0., seed=seed).values())
    ic, t = canary(.05, seed=seed)[1]
    assert t > 3 and .02 < ic < .08


def test_a_shuffled_split_makes_noise_look_known():
    "The canary hears what the purge check would have said: overlapping labels of the same hours on both sides"
    p = noise(0., 5)
    y = p.label(24); near = pd.Series(y, p.X.index).groupby(level='symbol').shift(1).to_numpy()
    ok = np.isfinite(y) & np.isfinite(near)
    assert np.corrcoef(y[ok], near[ok])[0, 1] > .9
    def shuffled(t, folds=2):
        pick = np.isin(t, np.random.default_rng(0).choice(np.unique(t), len(np.unique(t))//2, replace=False))
        yield pick, ~pick
    assert overlaps(shuffled(p.times), p.times) is not None


def test_a_feature_from_the_next_bar_is_too_good():
    assert too_good(noise(.05, 1)) is None
    f = too_good(noise(.9, 1))
    assert f.by == 'canary' and f.column == 'n0'
