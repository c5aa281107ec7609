from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from quantlib.core.clock import HOUR
from quantlib.data.candles import CandleError
from quantlib.data.features import FEATURES, LOOKBACK, WARMUP, features, latest
from quantlib.data.history import read_candles
from quantlib.data.labels import labels
from quantlib.data.synthetic import market

RECORDED = Path(__file__).resolve().parents[2].parent/'shared'/'data'/'market'
START = 1_735_689_600_000
NAMES = ['1000PEPEUSDT', 'BTCUSDT', 'ETHUSDT']


@pytest.fixture(scope='module')
def candles(): return market(NAMES, START, 700, 5)


@pytest.fixture(scope='module')
def recorded():
    file = RECORDED/'usdm_1h_45sym_2023-01_2025-09.parquet'
    if not file.exists(): pytest.skip('recorded data not here')
    import json
    d = read_candles(file)
    return d[d.symbol.isin(json.loads((RECORDED/'universe42.json').read_text()))].reset_index(drop=True)


def same(a, b): return a.index.equals(b.index) and a.to_numpy().tobytes() == b.to_numpy().tobytes()


def test_shape_and_warm_up(candles):
    X = features(candles)
    assert list(X) == FEATURES and len(set(FEATURES)) == 49 and X.dtypes.eq('float64').all()
    assert X.index.names == ['symbol', 'open_time'] and len(X) == len(candles) and X.index.is_monotonic_increasing
    for s in NAMES: assert X.loc[s].iloc[:LOOKBACK].isna().all(axis=None) and np.isfinite(X.loc[s].iloc[LOOKBACK:]).all(axis=None)
    assert LOOKBACK < WARMUP


def test_prefix_property_on_recorded_data(recorded):
    "200 random bars, all 42 symbols: the row computed on candles cut at the bar has the bits of the row of the whole history"
    when, rng = recorded.open_time, np.random.default_rng(42)
    for year in range(4):  # four windows of 1,500 hours, so that a cut is cheap
        lo = pd.Timestamp('2024-02-01', tz='UTC') + pd.Timedelta(120*year, 'D')
        d = recorded[(when >= lo) & (when < lo + pd.Timedelta(1500, 'h'))].reset_index(drop=True)
        X = features(d)
        for k in rng.choice(np.arange(LOOKBACK, 1500), 50, replace=False):
            t = lo + pd.Timedelta(int(k), 'h')
            cut = latest(d[d.open_time <= t].reset_index(drop=True))
            assert len(cut) == 42 and cut.notna().all(axis=None)
            assert same(cut, X.loc[cut.index]), t


def test_prefix_property_on_the_full_history(recorded):
    X = features(recorded)
    for t in ('2024-05-10T07:00Z', '2025-05-10T00:00Z'):
        cut = features(recorded[recorded.open_time <= t].reset_index(drop=True))
        assert same(cut, X.loc[cut.index])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 700), st.integers(1, 4))
def test_prefix_property_and_threads(n, threads):
    d = market(NAMES, START, 700, 5)
    cut = features(d[d.open_time.astype('int64') < START + n*HOUR].reset_index(drop=True), threads)
    assert same(cut, features(d).loc[cut.index])


def test_symbols_do_not_touch_each_other(candles):
    assert same(features(candles[candles.symbol == 'BTCUSDT'].reset_index(drop=True)), features(candles).loc[['BTCUSDT']])


@settings(max_examples=10, deadline=None)
@given(st.sets(st.integers(1, 698), min_size=1, max_size=3))
def test_gaps_split(holes):
    d = market(['BTCUSDT'], START, 700, 5)
    X = features(d.drop(index=list(holes)).reset_index(drop=True))
    edges = [0, *[h + 1 for h in sorted(holes)]]
    for a, b in zip(edges, [*sorted(holes), 700]):
        if a < b: assert same(X.iloc[X.index.get_indexer(pd.MultiIndex.from_arrays([['BTCUSDT']*(b - a), d.open_time[a:b]]))], features(d[a:b].reset_index(drop=True)))


@pytest.mark.parametrize('price, volume', [(1e-6, 1e6), (1e5, 1e-7), (3.7, 11.)])
def test_scale_free(candles, price, volume):
    d = candles.copy()
    d[['open', 'high', 'low', 'close']] *= price
    d['volume'] *= volume
    a, b = features(candles), features(d)
    assert ((a - b).abs().max() < 1e-6*a.std().clip(lower=1e-3)).all()


def test_distinct(candles):
    c = features(candles).corr().abs().to_numpy()
    assert (c[np.triu_indices(49, 1)] < .999).all()


def test_a_dead_market_has_no_features(candles):
    flat = candles.copy()
    for s in (slice(350, 500), slice(1100, 1250)): flat.loc[s, ['open', 'high', 'low', 'close']] = flat.loc[s.start, 'close']; flat.loc[s, 'volume'] = 0.
    X = features(flat)
    row = X.isna().any(axis=1)
    assert (X[row].isna().all(axis=1)).all() and row.iloc[480:500].all() and not np.isinf(X.to_numpy()).any()
    assert features(candles.assign(volume=0.)).isna().all(axis=None)


@pytest.mark.parametrize('spoil, why', [(lambda d: d.drop(columns='low'), 'missing'), (lambda d: d.assign(close=d.close.where(d.index != 9)), 'not a number'), (lambda d: d.assign(volume=-d.volume), 'negative'),
                                        (lambda d: pd.concat([d, d.tail(1)]), 'appears twice'), (lambda d: d.assign(open=0.), 'not a positive')])
def test_bad_candles(candles, spoil, why):
    with pytest.raises(CandleError, match=why): features(spoil(candles))
    with pytest.raises(CandleError, match=why): labels(spoil(candles))


def test_short_and_empty(candles):
    assert features(candles.head(1)).isna().all(axis=None) and features(candles.iloc[:0]).shape == (0, 49) and latest(candles.iloc[:0]).shape == (0, 49)
    assert latest(candles).index.get_level_values('symbol').tolist() == NAMES
