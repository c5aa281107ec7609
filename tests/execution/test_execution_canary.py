"The canary, the switch and the journal: what must hold before and without an entry"
import sqlite3

import pytest
import sqlalchemy as sa

from quantlib.core.clock import MINUTE
from quantlib.core.types import Reason
from quantlib.execution import kill
from quantlib.execution.gateway import Gateway, opened
from quantlib.execution.rehearsal import Stage
from quantlib.journal import schema
from quantlib.journal.store import JournalError

SYMBOLS = ('BTCUSDT', 'ETHUSDT', 'SOLUSDT', 'XRPUSDT')
MOVED = {'match': {'method': 'POST', 'path': '/fapi/v1/algoOrder'}, 'phase': 'instead', 'effect': 'http', 'args': {'like': 'moved'}, 'count': 999}


@pytest.fixture
def stage():
    s = Stage(SYMBOLS, direct=True)
    yield s
    s.close()


def begin(stage, events=True, **kw):
    g = Gateway(stage.settings, stage.home, stage.journal, stage.connect(), stage.inbox if events else None, **kw)
    g.start()
    return g


def minutes(stage, g, n=1, ms=MINUTE):
    for _ in range(n): stage.advance(ms); out = g.step()
    return out


def reasons(stage, i): return stage.journal.one(sa.select(schema.verdicts).where(schema.verdicts.c.intent_id == i.id))['reasons']
def stops(stage, s): return [a for a in stage.venue.waiting.get(s, {}).values() if a.type == 'STOP_MARKET']


@pytest.mark.parametrize('events', (True, False))
def test_without_a_canary_nothing_is_opened_and_it_recovers(stage, events):
    stage.venue.faults.add(MOVED)
    g = begin(stage, events); i = stage.wish('ETHUSDT', 'BUY', 900.); g.step()
    assert Reason.CANARY_FAILED in reasons(stage, i) and not stage.venue.account.held()
    assert [a['level'] for a in stage.journal.rows(schema.alerts) if a['code'] == Reason.CANARY_FAILED] == ['critical']
    stage.venue.faults.clear(); minutes(stage, g, 2)
    stage.wish('ETHUSDT', 'BUY', 800.); minutes(stage, g)
    assert set(g.ledger.held) == {'ETHUSDT'} and len(stops(stage, 'ETHUSDT')) == 1


def test_stops_that_move_while_trading_bar_entries_until_a_canary_has_passed(stage):
    g = begin(stage); stage.venue.faults.add(MOVED)
    stage.wish('ETHUSDT', 'BUY', 900.); g.step()
    for _ in range(12): minutes(stage, g, 1, 1000)
    assert not stage.venue.account.held(), 'closed at the deadline'
    i = stage.wish('SOLUSDT', 'BUY', 700.); g.step()
    assert Reason.CANARY_FAILED in reasons(stage, i)
    assert {r['reason'] for r in stage.journal.rows(schema.outcomes)} == {Reason.NAKED_DEADLINE}


def test_a_canary_left_behind_is_swept(stage):
    g = begin(stage)
    stage.client.futures_create_algo_order(symbol='XRPUSDT', side='SELL', type='STOP_MARKET', algoType='CONDITIONAL', triggerPrice='1', closePosition='true', clientAlgoId='ql-canary-1')
    minutes(stage, g, 1, 1000); minutes(stage, g, 1, 5000)
    assert not stage.venue.waiting.get('XRPUSDT')


def test_a_locked_journal_opens_nothing_and_still_closes(stage):
    stage.journal.close(); stage.journal = type(stage.journal)(stage.home.journal, patience_s=.05)
    g = begin(stage); stage.wish('ETHUSDT', 'BUY', 900.); g.step(); assert stage.venue.account.held()
    lock = sqlite3.connect(stage.home.path/'journal.db', isolation_level=None); stage.wish('SOLUSDT', 'BUY', 700.)
    lock.execute('BEGIN IMMEDIATE')
    kill.put(stage.home, 'FLATTEN', 'test', 'test', at=1)
    minutes(stage, g, 2, 1000)
    assert not stage.venue.account.held() and not stage.venue.waiting
    assert '"close"' in (stage.home.path/'EMERGENCY.log').read_text()
    lock.execute('ROLLBACK'); lock.close(); minutes(stage, g, 2)
    assert [o['reason'] for o in stage.journal.rows(schema.outcomes)] == [Reason.FLATTEN] and not g.ledger.down
    assert not [o for o in stage.venue.orders.values() if o.symbol == 'SOLUSDT']


def test_a_damaged_journal_still_obeys_the_switch(stage):
    g = begin(stage); stage.wish('ETHUSDT', 'BUY', 900.); stage.wish('SOLUSDT', 'SELL', 700.); g.step(); assert len(stage.venue.account.held()) == 2
    stage.journal.close()
    for end in ('-wal', '-shm'): (stage.home.path/f'journal.db{end}').unlink(missing_ok=True)
    (stage.home.path/'journal.db').write_bytes(b'not a database at all' * 99)
    kill.put(stage.home, 'FLATTEN', 'test', 'test', at=1)
    with pytest.raises(JournalError): opened(stage.home, stage.settings, stage.client)
    assert not stage.venue.account.held() and not stage.venue.waiting


@pytest.mark.parametrize('level, held', (('PAUSE', 1), ('REDUCE', 1), ('CANCEL', 1), ('FLATTEN', 0), ('HALT', 1)))
def test_each_level_does_what_it_says(stage, level, held):
    g = begin(stage); stage.wish('ETHUSDT', 'BUY', 900.); g.step()
    kill.put(stage.home, level, 'test', 'test', at=1)
    i = stage.wish('SOLUSDT', 'BUY', 700.); n = len(stage.venue.orders); minutes(stage, g, 2, 5000)
    assert Reason.KILL_SWITCH in reasons(stage, i) and len(stage.venue.account.held()) == held
    if level != 'HALT': return
    made = len(stage.venue.algos); minutes(stage, g, 65)
    assert len(stage.venue.orders) == n and len(stage.venue.algos) == made, 'not even a canary'


def test_events_drive_it_and_the_exchange_is_asked_rarely(stage):
    g = begin(stage); stage.wish('ETHUSDT', 'BUY', 900.); g.step(); minutes(stage, g, 6)
    reads, seen = [], g.desk.client.futures_account
    stage_client = g.client; stage_client.futures_account = lambda **kw: (reads.append(1), type(stage_client).futures_account(stage_client, **kw))[1]
    minutes(stage, g, 30)
    assert len(reads) <= 7 and g.due - g.now >= 1000 and not g.restless
    assert g.ledger.held['ETHUSDT'].seen_at > g.now - 2*MINUTE
    h = g.ledger.held['ETHUSDT']
    stage.connect().futures_create_order(symbol='ETHUSDT', side='SELL', type='MARKET', quantity=str(h.qty), reduceOnly='true', newClientOrderId='by-hand')
    g.step(); minutes(stage, g, 1, 6000)
    assert not g.ledger.held and not stage.venue.waiting, 'a strange hand is heard of at once, and what rested is swept'


def test_a_gap_is_read_before_anything_is_opened(stage):
    g = begin(stage); stage.wish('ETHUSDT', 'BUY', 900.); g.step(); minutes(stage, g, 3)
    stage.inbox.gap('a test'); before = g.read_at; minutes(stage, g, 1, 1000)
    assert g.read_at > before and [a['code'] for a in stage.journal.rows(schema.alerts)].count(Reason.GAP) == 1


def test_a_stop_that_is_taken_away_is_told_and_placed_again(stage):
    g = begin(stage); stage.wish('ETHUSDT', 'BUY', 900.); g.step(); (old,) = stops(stage, 'ETHUSDT')
    stage.connect().futures_cancel_algo_order(clientAlgoId=old.client)
    minutes(stage, g, 1, 1000)
    assert [a.client[-5:] for a in stops(stage, 'ETHUSDT')] == ['stop1']
    assert [a['level'] for a in stage.journal.rows(schema.alerts) if a['code'] == Reason.STOP_LOST] == ['critical']
