from pathlib import Path
import os, signal, subprocess, sys, time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from quantlib.core.clock import HOUR, MINUTE
from quantlib.data.candles import COLUMNS, CandleError, CandleStore, bar_ms, check, gaps, segments
from quantlib.data.synthetic import market

START = 1_735_689_600_000
NAMES = ['BTCUSDT', 'ETHUSDT', 'XRPUSDT']


@pytest.fixture(scope='module')
def candles(): return market(NAMES, START, 300, 1)


@pytest.fixture
def store(tmp_path): return CandleStore(tmp_path/'candles')


# --- check

@pytest.mark.parametrize('column', COLUMNS)
def test_missing_column(candles, column):
    with pytest.raises(CandleError, match=f'column {column} missing'): check(candles.drop(columns=column))


@pytest.mark.parametrize('column, value, why', [
    *[(c, v, w) for c in ('open', 'high', 'low', 'close') for v, w in ((np.nan, 'not a number'), (np.inf, 'not a number'), (0., 'not a positive'), (-3., 'not a positive'))],
    ('volume', np.nan, 'not a number'), ('volume', -1., 'negative'), ('high', 1e-9, 'below open or close'), ('low', 1e9, 'above open or close')])
def test_wrong_value_names_symbol_row_and_value(candles, column, value, why):
    bad = candles.copy()
    bad.loc[450, column] = value
    with pytest.raises(CandleError, match=why) as e: check(bad)
    assert 'ETHUSDT, row 450' in str(e.value) and f'{column} = {value}' in str(e.value)


def test_zero_volume_is_allowed(candles): assert len(check(candles.assign(volume=0.))) == len(candles)


def test_order_and_duplicates(candles):
    with pytest.raises(CandleError, match='appears twice'): check(pd.concat([candles.iloc[:5], candles.iloc[4:]]))
    with pytest.raises(CandleError, match='out of order'): check(candles.iloc[[1, 0, 2]])
    with pytest.raises(CandleError, match='symbols are out of order'): check(candles.iloc[::-1].groupby('symbol', sort=False).head(300).sort_values('open_time').sort_values('symbol', ascending=False, kind='stable'))
    with pytest.raises(CandleError, match='out of order'): check(candles.sort_values('open_time', kind='stable'))


@pytest.mark.parametrize('times, why', [(lambda t: t.dt.tz_localize(None), 'not a UTC instant'), (lambda t: t.astype('int64'), 'not a UTC instant'), (lambda t: t.astype(str), 'not a UTC instant'),
                                        (lambda t: t.where(t != t.iloc[7]), 'empty'), (lambda t: t + pd.Timedelta(minutes=7), 'multiples')])
def test_times(candles, times, why):
    with pytest.raises(CandleError, match=why): check(candles.assign(open_time=times(candles.open_time)))


def test_types(candles):
    with pytest.raises(CandleError, match='close holds'): check(candles.assign(close=candles.close.astype(str)))
    with pytest.raises(CandleError, match='symbol'): check(candles.assign(symbol=candles.symbol.where(candles.index != 3)))
    same = check(candles.assign(open_time=candles.open_time.astype('datetime64[ns, UTC]'), symbol=candles.symbol.astype(object), more=1))
    assert same.equals(candles) and list(same) == list(COLUMNS)
    assert len(check(candles.iloc[:0])) == 0


def test_bar_sizes(candles):
    five = market(['ADAUSDT'], START, 100, 1, '5m')
    assert bar_ms(five) == 5*MINUTE and bar_ms(candles) == HOUR
    with pytest.raises(CandleError, match='BTCUSDT has 1h bars among 5m'): check(pd.concat([five, candles]))
    late = market(['ADAUSDT'], START + 100*HOUR, 30, 1, '5m')
    early = market(['ADAUSDT'], START, 100, 1)
    with pytest.raises(CandleError, match='mixed bar sizes'): check(pd.concat([early, late]))
    with pytest.raises(CandleError, match='240m'): check(candles[candles.open_time.dt.hour % 4 == 0])
    with pytest.raises(CandleError, match='not one of'): check(candles[(candles.open_time.astype('int64')//HOUR) % 2 == 0])


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(1, 98), max_size=40))
def test_gaps_and_segments_account_for_every_bar(holes):
    whole = market(['BTCUSDT', 'ETHUSDT'], START, 100, 1)
    d = whole.drop(index=list(holes)).reset_index(drop=True)
    assert gaps(d, '1h').bars.sum() == len(holes)
    parts = segments(d, HOUR)
    assert sum(b - a for _, a, b in parts) == len(d)
    for s, a, b in parts:
        x = d.iloc[a:b]
        assert (x.symbol == s).all() and (x.open_time.diff().dropna() == pd.Timedelta(1, 'h')).all()


# --- store

def test_empty_store(store):
    assert store.version == -1 and store.last() == {} and len(store.read()) == 0 and list(store.read()) == list(COLUMNS)
    assert store.append(market(NAMES, START, 1, 1).iloc[:0]) == 0 and store.version == -1


def test_round_trip_and_idempotency(store, candles):
    assert store.append(candles) == len(candles) and store.read().equals(candles)
    v = store.version
    assert store.append(candles) == 0 and store.version == v
    assert store.append(candles.groupby('symbol').tail(50)) == 0
    longer = market(NAMES, START, 310, 1)
    assert store.append(longer) == 30 and store.read().equals(longer)
    assert store.read(version=v).equals(candles)


@pytest.mark.parametrize('column', ['open', 'close', 'volume'])
def test_contradiction_changes_nothing(store, candles, column):
    store.append(candles)
    new = market(NAMES, START, 310, 1)
    new.loc[400, column] = np.nextafter(new.loc[400, column], new.loc[400, 'low'])
    with pytest.raises(CandleError, match=f'{column} = .* contradicts the stored'): store.append(new)
    assert store.version == 0 and store.read().equals(candles)


def test_ranges_and_tail(store, candles):
    store.append(candles)
    part = store.read(['ETHUSDT'], START + 10*HOUR, START + 20*HOUR)
    assert part.symbol.unique().tolist() == ['ETHUSDT'] and part.open_time.astype('int64').tolist() == [START + h*HOUR for h in range(10, 20)]
    for minute, newest in ((0, 99), (1, 99), (59, 99), (60, 100)):
        t = store.tail(NAMES, START + 100*HOUR + minute*MINUTE, 5)
        assert t.groupby('symbol').size().eq(5).all() and t.open_time.astype('int64').max() == START + newest*HOUR
    assert len(store.read(['NOSUCH'])) == 0
    assert store.last() == dict.fromkeys(NAMES, START + 299*HOUR)


def test_wrong_bars_are_kept_out(store, candles, tmp_path):
    store.append(candles)
    with pytest.raises(CandleError, match='ADAUSDT: open times are not multiples of 1h'): store.append(market(['ADAUSDT'], START, 30, 1, '5m'))
    with pytest.raises(CandleError, match='not multiples of 1h'): store.append(market(['ADAUSDT'], START + 5*MINUTE, 1, 1, '5m'))
    with pytest.raises(CandleError, match="holds 'candles 1h'"): CandleStore(store.path, '5m').read()
    with pytest.raises(CandleError, match="'2h' is not one of"): CandleStore(tmp_path, '2h')
    assert store.version == 0
    fives = CandleStore(tmp_path/'fives', '5m')
    with pytest.raises(CandleError, match='BTCUSDT has 1h bars among 5m'): fives.append(candles)
    assert fives.version == -1


def test_holes_do_not_look_like_another_bar_size(store):
    whole = market(['BTCUSDT'], START, 60, 1)
    for k in (0, 1): assert store.append(whole[k::2]) == 30
    assert store.read().equals(whole)


def test_hourly_appends_are_merged_without_loss(store):
    whole = market(NAMES, START, 70, 2)
    for t in whole.open_time.unique(): assert store.append(whole[whole.open_time == t]) == 3
    assert len(store.table().file_uris()) < 40 and store.read().equals(whole)
    assert store.read(version=20).open_time.nunique() == 21


WRITER = '''
import sys
from quantlib.data.candles import CandleStore
from quantlib.data.synthetic import market
d, s = market(['BTCUSDT', 'ETHUSDT', 'XRPUSDT'], 1_735_689_600_000, int(sys.argv[2]), 1), CandleStore(sys.argv[1])
print('ready', flush=True)
for t in d.open_time.unique(): s.append(d[d.open_time == t])
'''


def test_a_killed_writer_leaves_whole_commits(tmp_path):
    whole, rng = market(NAMES, START, 300, 1), np.random.default_rng(0)
    for _ in range(4):
        p = subprocess.Popen([sys.executable, '-c', WRITER, str(tmp_path/'c'), '300'], stdout=subprocess.PIPE, text=True)
        assert p.stdout.readline() == 'ready\n'
        time.sleep(rng.uniform(.1, .7))
        os.kill(p.pid, signal.SIGKILL)
        p.wait()
        p.stdout.close()
        kept = CandleStore(tmp_path/'c').read()
        n = kept.open_time.nunique()
        assert kept.equals(whole.groupby('symbol').head(n).reset_index(drop=True))
    assert n > 0
    s = CandleStore(tmp_path/'c')
    assert s.append(whole) == len(whole) - len(kept) and s.read().equals(whole)


def test_two_writers_store_each_bar_once(tmp_path):
    ps = [subprocess.Popen([sys.executable, '-c', WRITER, str(tmp_path/'c'), '25'], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [p.wait(60) for p in ps] == [0, 0]
    assert CandleStore(tmp_path/'c').read().equals(market(NAMES, START, 25, 1))
