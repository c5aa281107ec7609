"The market inside bars: consistent with the candles, and blind to the future"
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

import quantlib.sandbox.private  # noqa: F401
from quantlib.core.clock import HOUR, MINUTE
from quantlib.sandbox.exchange import Exchange
from quantlib.sandbox.market import STEP, Market, bar_path
from sandbox_kit import T0, frame, walk

DATA = Path(__file__).resolve().parents[2].parent/'shared'/'data'/'market'
prices = st.floats(0.0001, 1e6)


@given(st.lists(prices, min_size=4, max_size=4), st.sampled_from([1, 5, 15, 60]), st.integers(0, 2**32), st.sampled_from([0, 0.01, 0.1]))
def test_path_agrees_with_bar(xs, minutes, seed, tick):
    l, *mid, h = sorted(xs)
    o, c = np.random.default_rng(seed).permutation(mid)
    p = bar_path(o, h, l, c, 4*minutes, np.random.default_rng(seed), tick)
    assert len(p) == 4*minutes and (p[0], p[-1], p.max(), p.min()) == (o, c, h, l)


@pytest.mark.parametrize('bar', [MINUTE, 5*MINUTE, 15*MINUTE, HOUR])
def test_sub_bars_add_up_to_the_bar(bar):
    df = walk('BTCUSDT', 100_000.0, hours=30)
    df['open_time'] = pd.to_datetime(T0 + bar*np.arange(len(df)), unit='ms', utc=True).as_unit('ms')
    m = Market(df)
    now = T0 + bar*30
    base = m.klines('BTCUSDT', {MINUTE: '1m', 5*MINUTE: '5m', 15*MINUTE: '15m', HOUR: '1h'}[bar], None, None, 1500, now)
    assert (base[:, 1:5] == df.iloc[:, 2:6].to_numpy()).all()
    fine = m.klines('BTCUSDT', '1m', T0, None, 1500, now)
    for i in (0, 7, 20):
        part = fine[(fine[:, 0] >= base[i, 0]) & (fine[:, 0] < base[i, 0] + bar)]
        assert (part[0, 1], part[:, 2].max(), part[:, 3].min(), part[-1, 4]) == tuple(base[i, 1:5])
        assert part[:, 5].sum() == pytest.approx(base[i, 5])


def everything(ex):
    "Every public answer"
    out = {}
    for path in ('exchangeInfo', 'ticker/24hr', 'ticker/price', 'ticker/bookTicker', 'premiumIndex', 'fundingRate', 'fundingInfo'): out[path] = ex.call('GET', f'/fapi/v1/{path}')
    for s in ex.listed():
        out['depth', s] = ex.call('GET', '/fapi/v1/depth', symbol=s, limit='20')
        for i in ('1m', '15m', '1h', '4h', '1d', '1w', '1M'): out[i, s] = ex.call('GET', '/fapi/v1/klines', symbol=s, interval=i, limit='1500')
        out['ahead', s] = ex.call('GET', '/fapi/v1/klines', symbol=s, interval='1h', startTime=str(ex.now - HOUR), limit='10')
    return json.dumps(list(out.values()))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70*60*4), st.integers(0, 3))
def test_the_future_changes_nothing(k, seed):
    "Two markets that agree up to the running bar give the same answers"
    a = pd.concat([walk('BTCUSDT', 100_000.0, seed=seed), walk('EOSUSDT', 0.77, seed=seed, decimals=4)])
    now = T0 + k*STEP + 7
    late = a.open_time > pd.Timestamp(now, unit='ms', tz='UTC')
    b = a.copy()
    b.loc[late, ['open', 'high', 'low', 'close']] *= 3.7
    b.loc[late, 'volume'] *= 11
    fund = lambda x: pd.DataFrame(dict(symbol='BTCUSDT', time=pd.to_datetime([T0 + i*8*HOUR for i in range(12)], unit='ms', utc=True), rate=[1e-4*i if T0 + i*8*HOUR <= now else x for i in range(12)]))
    one, two = Exchange(Market(a, funding=fund(.01)), T0), Exchange(Market(b, funding=fund(-.02)), T0)
    one.advance(now); two.advance(now)
    assert everything(one) == everything(two)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 71*240 - 1))
def test_running_bar_shows_only_what_was_reached(k):
    m = Market(walk('BTCUSDT', 100_000.0))
    now = T0 + k*STEP + 3
    for i in ('1m', '5m', '1h', '4h', '1d'):
        r = m.klines('BTCUSDT', i, None, None, 1, now)[0]
        seen = [m.price('BTCUSDT', t) for t in range(int(r[0]), now + 1, STEP)]
        assert (r[1], r[2], r[3], r[4]) == (seen[0], max(seen), min(seen), seen[-1])


def test_paging_covers_everything_once():
    m, now = Market(walk('BTCUSDT', 100_000.0)), T0 + 70*HOUR + 1
    for interval, step in (('1h', HOUR), ('15m', 15*MINUTE), ('4h', 4*HOUR)):
        got, at = [], T0
        while len(page := m.klines('BTCUSDT', interval, at, None, 13, now)): got += page[:, 0].tolist(); at = int(page[-1, 0]) + step
        assert got == list(range(T0, now, step))


def test_gap_is_crossed_by_paging_and_holds_the_price():
    a = walk('BTCUSDT', 100_000.0)
    m = Market(a.drop(range(10, 30)).reset_index(drop=True))
    assert m.price('BTCUSDT', T0 + 15*HOUR) == m.mark('BTCUSDT', T0 + 15*HOUR) == a.close[9]
    rows = m.klines('BTCUSDT', '1h', T0 + 8*HOUR, None, 4, T0 + 60*HOUR)
    assert ((rows[:, 0] - T0)//HOUR).tolist() == [8, 9, 30, 31]


def test_real_minutes_are_used_where_they_agree():
    minutes = walk('BTCUSDT', 100_000.0, hours=120)
    minutes['open_time'] = pd.to_datetime(T0 + MINUTE*np.arange(120), unit='ms', utc=True).as_unit('ms')
    x = minutes.iloc[:, 2:6].to_numpy()
    hours = frame('BTCUSDT', [(g[0, 0], g[:, 1].max(), g[:, 2].min(), g[-1, 3]) for g in (x[:60], x[60:])])
    hours.loc[1, 'high'] += 5  # the second hour disagrees with its minutes
    got = Market(hours, minutes).klines('BTCUSDT', '1m', T0, None, 120, T0 + 2*HOUR)
    assert (got[:60, 1:5] == x[:60]).all() and not (got[60:, 1:5] == x[60:]).all()
    assert got[60:, 2].max() == hours.high[1]


def test_same_seed_same_path():
    a = walk('BTCUSDT', 100_000.0)
    t = [T0 + 30*HOUR + k*STEP for k in range(240)]
    one, two, other = ([m.price('BTCUSDT', x) for x in t] for m in (Market(a, seed=1), Market(a, seed=1), Market(a, seed=2)))
    assert one == two != other


@pytest.mark.parametrize('spoil, words', [
    (lambda d: d.drop(columns='high'), "['high']"), (lambda d: pd.concat([d, d]), 'not after'), (lambda d: d.assign(close=np.where(d.index == 5, np.nan, d.close)), 'NaN'),
    (lambda d: d.assign(low=-1.0), 'not positive'), (lambda d: d.assign(low=d.high + 1), 'outside low'), (lambda d: d.iloc[::2], '120 min')])
def test_bad_candles_are_refused(spoil, words):
    with pytest.raises(ValueError, match=words.replace('[', r'\[').replace(']', r'\]')): Market(spoil(walk('BTCUSDT', 100_000.0)))


@pytest.mark.skipif(not DATA.exists(), reason='no recorded candles here')
def test_recorded_minutes_walk_the_real_hour():
    keep = [('symbol', '==', 'XRPUSDT')]
    hours = pd.read_parquet(DATA/'usdm_1h_45sym_2023-01_2025-09.parquet', filters=keep)
    minutes = pd.read_parquet(DATA/'usdm_1m_windows_2025-01_2025-07.parquet', filters=keep)
    m = Market(hours, minutes)
    at = int(minutes.open_time.dt.ceil('h').iloc[0].timestamp()*1000)
    got = m.klines('XRPUSDT', '1m', at, None, 60, at + HOUR)
    real = minutes[minutes.open_time >= pd.Timestamp(at, unit='ms', tz='UTC')].head(60)
    assert (got[:, 1:5] == real[['open', 'high', 'low', 'close']].to_numpy()).all()
