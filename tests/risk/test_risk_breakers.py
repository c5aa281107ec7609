"Breakers latch across connections and restarts; the day's loss is counted from 00:00 UTC"
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, strategies as st

from quantlib.core.clock import DAY, HOUR, MINUTE, parse_iso
from quantlib.core.settings import load
from quantlib.core.types import Book, Reason
from quantlib.journal import schema
from quantlib.journal.store import Journal
from quantlib.risk.breakers import Breakers, day_open, drawdown_tripped, symbol_tripped

S, T0 = load(), parse_iso('2025-03-30T00:00Z')  # European clocks change on this day; UTC does not


@pytest.fixture
def url(tmp_path): return f'sqlite:///{tmp_path}/journal.db'


def equity(j, rows):
    with j.write() as c:
        c.execute(schema.equity.insert(), [dict(at=t, wallet=e, unrealized=0., equity=e, gross=0., positions=0, day_open=e) for t, e in rows])


def test_latches_and_survives_reopening(url):
    j = Journal(url); b = Breakers(j)
    with j.write() as c: assert b.trip(c, 'global', Reason.DAILY_DRAWDOWN, 'lost 15.1 %', T0)
    for k in range(3):
        j.close(); j = Journal(url); b = Breakers(j)
        with j.write() as c: assert not b.trip(c, 'global', Reason.FLATTEN, 'again', T0 + k*DAY)
        assert b.active() == {'global': Reason.DAILY_DRAWDOWN}
    assert len(j.rows(schema.breakers)) == 1
    j.close()


def test_a_cleared_breaker_can_trip_again_and_history_stays(url):
    j = Journal(url); b = Breakers(j)
    for k in range(3):
        with j.write() as c: assert b.trip(c, 'BTCUSDT', Reason.REFUSED, str(k), T0 + k*HOUR)
        b.clear('BTCUSDT', f'reason {k}', T0 + k*HOUR + 1)
        assert b.active() == {}
    assert [r['cleared_why'] for r in j.rows(schema.breakers)] == ['reason 0', 'reason 1', 'reason 2']
    j.close()


def test_clearing_needs_words_and_a_tripped_scope(url):
    j = Journal(url); b = Breakers(j)
    with j.write() as c: b.trip(c, 'BTCUSDT', Reason.REFUSED, '', T0)
    for why in ('', '  ', None):
        with pytest.raises(ValueError, match='reason in words'): b.clear('BTCUSDT', why, T0)
    with pytest.raises(ValueError, match='ETHUSDT'): b.clear('ETHUSDT', 'fine', T0)
    assert b.active() == {'BTCUSDT': Reason.REFUSED}
    j.close()


def test_a_rolled_back_trip_never_was(url):
    j = Journal(url); b = Breakers(j)
    with pytest.raises(ZeroDivisionError):
        with j.write() as c: b.trip(c, 'global', Reason.FLATTEN, '', T0); 1/0
    assert b.active() == {}
    j.close()


def test_racing_trips_make_one_row(url):
    Journal(url).close()
    def one(k):
        j = Journal(url)
        with j.write() as c: r = Breakers(j).trip(c, 'global', Reason.FLATTEN, str(k), T0 + k)
        j.close(); return r
    with ThreadPoolExecutor(6) as ex: assert sum(ex.map(one, range(12))) == 1
    j = Journal(url); assert len(j.rows(schema.breakers)) == 1; j.close()


def test_the_day_turns_at_midnight_utc(url):
    j = Journal(url)
    equity(j, [(T0 - 5*MINUTE, 14_000.), (T0 - 1, 13_500.), (T0, 13_000.), (T0 + HOUR, 12_000.), (T0 + DAY, 11_000.)])
    at = lambda t: day_open(j, t, 999.)
    assert at(T0 - 1) == 14_000.
    assert at(T0) == at(T0 + 2*HOUR) == at(T0 + DAY - 1) == 13_000.
    assert at(T0 + DAY) == 11_000.
    j.close()


def test_before_todays_first_row_yesterdays_last_counts(url):
    j = Journal(url)
    assert day_open(j, T0, 999.) == 999.
    equity(j, [(T0 - 2*DAY, 15_000.), (T0 - DAY - 1, 14_200.)])
    assert day_open(j, T0 + 5, 999.) == 14_200.
    j.close()


@given(st.floats(1, 1e6), st.floats(1, 1e6))
def test_drawdown_trips_exactly_at_its_limit(equity, opened):
    assert drawdown_tripped(Book(0, equity, opened), S) == (1 - equity/opened >= S.risk.daily_drawdown)


@pytest.mark.parametrize('e,o', [(math.nan, 1.), (1., math.nan), (0., 1.), (1., 0.), (-1., 1.), (math.inf, 1.)])
def test_an_unknown_drawdown_trips(e, o): assert drawdown_tripped(Book(0, e, o), S)


def test_symbol_errors(): assert [symbol_tripped(n, S) for n in (0, 2, 3, 4)] == [False, False, True, True]
