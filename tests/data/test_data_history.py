from pathlib import Path
from types import SimpleNamespace
import hashlib, zipfile

import pandas as pd
import pytest
from binance.exceptions import BinanceAPIException
from hypothesis import HealthCheck, given, settings, strategies as st
from requests.exceptions import ConnectionError

from quantlib.core.clock import HOUR, MINUTE
from quantlib.data.candles import CandleError, CandleStore, gaps
from quantlib.data.history import Budget, HistoryError, backfill, load_archive, read_candles, update, weight
from quantlib.data.synthetic import market

RECORDED = Path(__file__).resolve().parents[2].parent/'shared'/'data'/'market'
START = 1_735_689_600_000
NAMES = ['BTCUSDT', 'ETHUSDT']
NOW = START + 2000*HOUR + 10*MINUTE


def api_error(status, code, message='no', headers={}):
    return BinanceAPIException(SimpleNamespace(status_code=status, headers=headers), status, f'{{"code": {code}, "msg": "{message}"}}')


class Exchange:
    "Klines as the exchange gives them: up to `limit` from the start, the last one still moving; `faults` are raised first"
    def __init__(self, candles, now=NOW, faults=()):
        self.now, self.faults, self.calls = now, list(faults), []
        self.rows = {s: [[t.value//10**6, *map(str, v), t.value//10**6 + HOUR - 1, '0', 1, '0', '0', '0'] for t, *v in zip(d.open_time, d.open, d.high, d.low, d.close, d.volume)] for s, d in candles.groupby('symbol')}
    def futures_time(self): return {'serverTime': self.now}
    def futures_klines(self, *, symbol, interval, startTime, endTime, limit):
        assert interval == '1h' and 1 <= limit <= 1500
        self.calls.append((symbol, startTime, endTime, limit))
        if self.faults and (f := self.faults.pop(0)): raise f
        return [r for r in self.rows.get(symbol, []) if startTime <= r[0] <= min(endTime, self.now)][:limit]


def budget(**k): return Budget(10**9, clock=lambda: 0., pause=k.pop('pause', lambda s: None))


@pytest.fixture(scope='module')
def made(): return market(NAMES, START, 2100, 3)


@pytest.fixture
def store(tmp_path): return CandleStore(tmp_path/'candles')


def closed(made, now=NOW): return made[made.open_time.astype('int64') + HOUR <= now].reset_index(drop=True)


def test_paging_and_the_moving_bar(made, store):
    x = Exchange(made)
    r = backfill(x, store, NAMES, START, NOW + 50*HOUR)
    assert store.read().equals(closed(made)) and r.added.eq(2000).all() and r.missing.eq(0).all()
    assert len(x.calls) == 4 and max(c[3] for c in x.calls) == 1500 and max(c[2] for c in x.calls) < START + 2000*HOUR


@pytest.mark.parametrize('now, newest', [(START + 10*HOUR, 9), (START + 11*HOUR - 1, 9), (START + 11*HOUR, 10)])
def test_only_closed_bars(made, store, now, newest):
    backfill(Exchange(made, now), store, NAMES, START, now + HOUR)
    assert set(store.last().values()) == {START + newest*HOUR}


def test_gap_is_reported_and_filled_later(made, store):
    holed = made.drop(index=range(700, 710))
    r = backfill(Exchange(holed), store, NAMES, START, NOW)
    assert r.missing.tolist() == [10, 0] and gaps(store.read()).bars.tolist() == [10]
    x = Exchange(made)
    r = backfill(x, store, NAMES, START, NOW)
    assert r.added.tolist() == [10, 0] and len(x.calls) == 1 and store.read().equals(closed(made))


def test_listed_later(made, store):
    late = made[(made.symbol == 'BTCUSDT') | (made.open_time >= pd.Timestamp(START + 500*HOUR, unit='ms', tz='UTC'))]
    r = backfill(Exchange(late), store, NAMES, START, NOW)
    assert r.missing.eq(0).all() and r.stored.tolist() == [2000, 1500]


def test_resume_after_failure(made, store):
    x = Exchange(made, faults=[None, None, api_error(418, -1003, 'banned')])
    with pytest.raises(HistoryError, match='ETHUSDT.*banned.*resume'): backfill(x, store, NAMES, START, NOW, budget=budget())
    assert store.last() == {'BTCUSDT': START + 1999*HOUR}
    x = Exchange(made)
    backfill(x, store, NAMES, START, NOW)
    assert {c[0] for c in x.calls} == {'ETHUSDT'} and store.read().equals(closed(made))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, 99), max_size=60))
def test_exactly_what_is_lacking_is_fetched(tmp_path_factory, kept):
    d = market(['BTCUSDT'], START, 100, 3)
    s = CandleStore(tmp_path_factory.mktemp('s')/'c')
    if kept: s.append(d.iloc[sorted(kept)])
    r = backfill(Exchange(d, START + 100*HOUR), s, ['BTCUSDT'], START, START + 100*HOUR)
    assert s.read().equals(d) and r.added.sum() == 100 - len(kept)


@pytest.mark.parametrize('fault, pauses', [(ConnectionError('reset'), [1.]), (api_error(503, -1001), [1.]), (api_error(429, -1003, headers={'Retry-After': '7'}), [7.]), (api_error(429, -1003), [60.])])
def test_passing_faults_are_waited_out(made, store, fault, pauses):
    slept = []
    backfill(Exchange(made, faults=[fault]), store, NAMES, START, NOW, budget=budget(pause=slept.append))
    assert slept == pauses and store.read().equals(closed(made))


@pytest.mark.parametrize('spoil', [lambda p: None, lambda p: {}, lambda p: [], lambda p: [p[0], None] + p[2:], lambda p: [p[0][:4]] + p[1:], lambda p: [[None] + p[0][1:]] + p[1:], lambda p: [[p[0][0] + 1] + p[0][1:]] + p[1:],
    lambda p: [p[0][:4] + ['NaN'] + p[0][5:]] + p[1:], lambda p: [[10**24] + p[0][1:]] + p[1:]], ids=('null', 'object', 'empty', 'row', 'short', 'no time', 'off the grid', 'NaN', 'far'))
def test_spoiled_pages_are_asked_for_again(made, store, spoil):
    class Spoiled(Exchange):
        def futures_klines(self, **kw): page = super().futures_klines(**kw); return spoil([list(r) for r in page]) if len(self.calls) == 2 else page
    slept = []
    backfill(Spoiled(made), store, NAMES, START, NOW, budget=budget(pause=slept.append))
    assert slept == ([] if spoil([[0]*6]*3) == [] else [1.]) # an empty page is an answer: nothing was traded
    whole = closed(made); assert store.read().merge(whole).shape == store.read().shape and len(store.read()) in (len(whole), len(whole) - 500)


def test_lasting_faults_and_refusals(made, store):
    x = Exchange(made, faults=[ConnectionError('down')]*9)
    with pytest.raises(HistoryError, match='asked up to 4 times'): backfill(x, store, NAMES, START, NOW, budget=budget())
    x = Exchange(made, faults=[api_error(400, -1121, 'Invalid symbol.')])
    with pytest.raises(HistoryError, match='Invalid symbol'): backfill(x, store, NAMES, START, NOW, budget=budget())
    assert len(x.calls) == 1 and store.version == -1


def test_bad_requests(made, store):
    with pytest.raises(HistoryError, match='not the bar'): backfill(Exchange(made), store, NAMES, START, NOW, bar='5m')
    with pytest.raises(HistoryError, match='no closed bar'): backfill(Exchange(made), store, NAMES, NOW, NOW + HOUR)
    with pytest.raises(HistoryError, match='backfill them first'): update(Exchange(made), store, NAMES, NOW)


def test_update(made, store):
    backfill(Exchange(made, START + 100*HOUR), store, NAMES, START, START + 100*HOUR)
    x = Exchange(made, START + 100*HOUR + MINUTE)
    assert update(x, store, NAMES, x.now).added.eq(0).all() and not x.calls
    x = Exchange(made)
    r = update(x, store, NAMES, NOW)
    assert r.added.eq(1900).all() and store.read().equals(closed(made))


def test_revised_bars_are_refused(made, store):
    backfill(Exchange(made, START + 50*HOUR), store, NAMES, START, START + 50*HOUR)
    revised = made.assign(volume=made.volume + 1)
    with pytest.raises(CandleError, match='contradicts'): store.append(revised.groupby('symbol').head(60))


def test_weights_stay_below_the_budget():
    assert [weight(n) for n in (1, 99, 100, 499, 500, 1000, 1001, 1500)] == [1, 1, 2, 2, 5, 5, 10, 10]
    now, spent = [30.], {}
    def pause(s): now[0] += s
    b = Budget(100, clock=lambda: now[0], pause=pause)
    for _ in range(57):
        b.spend(10)
        spent[now[0]//60] = spent.get(now[0]//60, 0) + 10
        now[0] += .1
    assert max(spent.values()) <= 100 and len(spent) == 6


# --- archives

HEADER = 'open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore\n'


def archive(folder, d, header, scale=1, name='BTCUSDT-1h-2025-01.zip', text=None):
    rows = ''.join(f"{t.value//10**6*scale},{o},{h},{l},{c},{v},0,0,1,0,0,0\n" for t, o, h, l, c, v in d[['open_time', 'open', 'high', 'low', 'close', 'volume']].itertuples(index=False))
    with zipfile.ZipFile(folder/name, 'w') as z: z.writestr(name.replace('zip', 'csv'), text if text is not None else (HEADER if header else '') + rows)
    seal(folder/name)
    return folder/name


def seal(path, name=None): path.with_name(path.name + '.CHECKSUM').write_text(f'{hashlib.sha256(path.read_bytes()).hexdigest()}  {name or path.name}\n')


@pytest.mark.parametrize('header', [True, False])
@pytest.mark.parametrize('scale', [1, 1000])
def test_archive_quirks(made, tmp_path, header, scale):
    d = made[made.symbol == 'BTCUSDT'].head(50)
    assert load_archive(archive(tmp_path, d, header, scale)).equals(d.reset_index(drop=True))


def test_archive_and_exchange_agree(made, tmp_path, store):
    backfill(Exchange(made), store, NAMES, START, NOW)
    assert store.append(load_archive(archive(tmp_path, made[made.symbol == 'BTCUSDT'].head(700), True))) == 0


def test_archives_that_are_refused(made, tmp_path):
    d = made.head(20)
    p = archive(tmp_path, d, True)
    proof = p.with_name(p.name + '.CHECKSUM')
    p.write_bytes(p.read_bytes() + b'x')
    with pytest.raises(HistoryError, match='SHA-256'): load_archive(p)
    seal(p, 'BTCUSDT-1h-2024-12.zip')
    with pytest.raises(HistoryError, match='checksum of'): load_archive(p)
    proof.unlink()
    with pytest.raises(HistoryError, match='does not exist'): load_archive(p)
    p.write_bytes(b'not a zip')
    seal(p)
    with pytest.raises(HistoryError, match='not a kline archive'): load_archive(p)
    with pytest.raises(HistoryError, match='not a kline archive'): load_archive(archive(tmp_path, d, True, text=HEADER + '1735689600000,1,2,x,1,1\n'))
    with pytest.raises(CandleError, match='not a number'): load_archive(archive(tmp_path, d, True, text=HEADER + '1735689600000,1,2,,1,1\n'))
    with pytest.raises(CandleError, match='appears twice'): load_archive(archive(tmp_path, pd.concat([d, d.tail(1)]), True))
    with pytest.raises(HistoryError, match='not multiples of 1h'): load_archive(archive(tmp_path, market(['BTCUSDT'], START, 9, 1, '5m'), True))
    with pytest.raises(HistoryError, match='does not name'): load_archive(archive(tmp_path, d, True, name='BTCUSDT-fundingRate-2025-01.zip'))
    with pytest.raises(HistoryError, match='does not exist'): load_archive(tmp_path/'ADAUSDT-1h-2025-01.zip')


def test_archive_with_two_files(made, tmp_path):
    p = archive(tmp_path, made.head(9), True)
    with zipfile.ZipFile(p, 'a') as z: z.writestr('more.csv', '1')
    seal(p)
    with pytest.raises(HistoryError, match='2 files'): load_archive(p)


# --- replay files

@pytest.mark.parametrize('times', [lambda t: t, lambda t: t.dt.tz_localize(None), lambda t: t.astype('int64'), lambda t: t.astype('int64')*1000, lambda t: t.dt.tz_convert('Asia/Tokyo'), lambda t: t.astype('datetime64[ns, UTC]')])
def test_times_of_a_file(made, tmp_path, times):
    made.assign(open_time=times(made.open_time), extra='x').sample(frac=1, random_state=1).to_parquet(tmp_path/'f.parquet')
    assert read_candles(tmp_path/'f.parquet').equals(made)


@pytest.mark.parametrize('bad, why', [(lambda d: d.drop(columns='close'), 'column close missing'), (lambda d: pd.concat([d, d.head(3)]), 'appears twice'), (lambda d: d.assign(low=d.low.where(d.index != 5)), 'low = nan is not a number'),
                                      (lambda d: d.assign(open=-d.open), 'open = -.* not a positive'), (lambda d: d.head(0), 'no candles'), (lambda d: d.assign(open_time=d.open_time.astype(str)), 'store instants'),
                                      (lambda d: pd.concat([d, market(['ADAUSDT'], START, 50, 1, '5m')]), 'mixed bar sizes')])
def test_files_that_are_refused(made, tmp_path, bad, why):
    bad(made).to_parquet(tmp_path/'f.parquet')
    with pytest.raises(CandleError, match=f'f.parquet.*{why}'): read_candles(tmp_path/'f.parquet')


def test_no_parquet(tmp_path):
    with pytest.raises(HistoryError, match='does not exist'): read_candles(tmp_path/'none.parquet')
    (tmp_path/'text.parquet').write_text('symbol,open_time\n')
    with pytest.raises(HistoryError, match='not a Parquet file'): read_candles(tmp_path/'text.parquet')


@pytest.mark.skipif(not RECORDED.exists(), reason='recorded data not here')
@pytest.mark.parametrize('name, symbols', [('usdm_1h_45sym_2023-01_2025-09', 45), ('usdm_5m_8sym_2025-01_2025-09', 8), ('usdm_1m_windows_2025-01_2025-07', 18)])
def test_recorded_files(name, symbols):
    d = read_candles(RECORDED/f'{name}.parquet')
    assert d.symbol.nunique() == symbols and len(d) > 100_000
