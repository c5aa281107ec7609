"What an attacker found: clocks that jump, names that no database takes, full disks, orders that are not shown, a journal that is lost to one leader, breakers that were read too late"
import os, sqlite3

import pytest
import sqlalchemy as sa

from quantlib.core.settings import Home
from quantlib.core.types import Reason
from quantlib.execution import kill
from quantlib.execution.client import clean
from quantlib.execution.gateway import Gateway
from quantlib.execution.lease import take
from quantlib.execution.rehearsal import Stage
from quantlib.journal import schema
from quantlib.journal.store import Journal
from quantlib.risk.breakers import Breakers
from quantlib.sandbox.rest import Answer

SYMBOLS = ('BTCUSDT', 'ETHUSDT', 'SOLUSDT', 'XRPUSDT')


@pytest.fixture
def stage():
    s = Stage(SYMBOLS, direct=True)
    s.inbox
    yield s
    s.close()


def begin(s, lease=None, home=None, journal=None):
    g = Gateway(s.settings, home or s.home, journal or s.journal, s.connect(), s.inbox, lease); g.start()
    for _ in range(3): seconds(s, g)
    return g


def seconds(s, g, n=1, ms=1000):
    for _ in range(n): s.advance(ms); g.step()


def hold(s, g, symbol='ETHUSDT'):
    i = s.wish(symbol, 'BUY', 900.); seconds(s, g, 3)
    assert symbol in g.ledger.held
    return i


def stops(s, symbol='ETHUSDT'): return [a.client for a in s.venue.waiting.get(symbol, {}).values() if a.type == 'STOP_MARKET']
def deny(conn, cursor, text, *a):
    if text.lstrip().upper().split()[0] in ('INSERT', 'UPDATE', 'DELETE'): raise sa.exc.OperationalError(text, {}, sqlite3.OperationalError('database or disk is full'))
def away(conn, *a): raise sa.exc.OperationalError('x', {}, sqlite3.OperationalError('could not connect to server'))


def sent(g):
    "Every message about an order from now on: (method, type or name, status)"
    out, real = [], g.client._ask
    def ask(method, path, signed, data):
        a = real(method, path, signed, data)
        if method.upper() != 'GET': out.append((method.upper(), data.get('type') or data.get('clientAlgoId'), a.status))
        return a
    g.client._ask = ask
    return out


def test_a_time_that_was_ahead_does_not_blind_it(stage):
    g = begin(stage); g.client.simulated, g.client.skew = False, lambda: 0; hold(stage, g)
    real, lies = g.client._ask, [1]
    def ask(method, path, signed, data):
        if signed and g.client.clock.now() > stage.venue.now + 1000: return Answer(400, {'code': -1021, 'msg': 'Timestamp for this request was 1000ms ahead of the server time.'}, {})
        if path.endswith('/time') and lies: lies.pop(); return Answer(200, {'serverTime': stage.venue.now + 3_600_000}, {})
        return real(method, path, signed, data)
    g.client._ask, g.suspect = ask, True
    seconds(stage, g, 30)
    stage.venue.listeners.remove(stage.inbox.push); stage.connect().futures_cancel_algo_order(clientAlgoId=stops(stage)[0]); stage.venue.listeners.append(stage.inbox.push)
    stage.inbox.gap('a test'); seconds(stage, g, 5)
    assert stops(stage)


def test_a_name_that_no_database_takes_is_told_and_kills_nobody(stage):
    g = begin(stage); hold(stage, g)
    real = g.client._ask
    def ask(method, path, signed, data):
        a = real(method, path, signed, data)
        return Answer(200, [dict(clientOrderId='web_\ud800\0', orderId=7, status='NEW', symbol='BTCUSDT', side='BUY', type='LIMIT')], {}) if path.endswith('/openOrders') else a
    g.client._ask = ask; g.suspect = True; seconds(stage, g, 15)
    assert any('web_' in a['message'] for a in stage.journal.rows(schema.alerts))
    g.ledger.later(lambda c: (_ for _ in ()).throw(UnicodeEncodeError('utf-8', '\ud800', 0, 1, 'surrogates not allowed')))
    seconds(stage, g); assert not g.ledger.staged, 'any row that cannot be written is put aside'


def test_on_a_full_disk_exits_still_leave(stage):
    g = begin(stage); hold(stage, g)
    os.symlink('/dev/full', stage.home.path/'EMERGENCY.log'); sa.event.listen(stage.journal.engine, 'before_cursor_execute', deny)
    stage.connect().futures_cancel_algo_order(clientAlgoId=stops(stage)[0]); seconds(stage, g, 5)
    assert stops(stage)
    kill.put(stage.home, 'FLATTEN', 'test', 'test', at=0); seconds(stage, g, 5)
    assert not stage.venue.account.held()
    sa.event.remove(stage.journal.engine, 'before_cursor_execute', deny); (stage.home.path/'EMERGENCY.log').unlink()


def test_a_line_that_was_cut_stops_no_start(stage):
    (stage.home.path/'EMERGENCY.log').write_text('{"what": "order", "at": 17468{"what": "cancel", "at": 1746835200000}\n{"what": "ord')
    begin(stage)


@pytest.mark.parametrize('role', ('take', 'half', 'stop'))
@pytest.mark.parametrize('cancel', (True, False), ids=('cancel works', 'cancel denied'))
def test_an_order_that_is_not_shown_is_replaced_once(stage, role, cancel):
    g = begin(stage); i = hold(stage, g); out = sent(g)
    o = g.ledger.of(i.id, role)[0]
    stage.venue.faults.add(dict(match=dict(method='*' if not cancel else 'GET', path='*'), effect='forget', args=dict(algo=o.id, s=2400.), count=10**6))
    g.suspect = True; seconds(stage, g, 600)
    posts = [x for x in out if x[0] == 'POST' and x[1] != 'STOP_MARKET']
    assert len(posts) <= 2 and not [x for x in posts if x[2] != 200], out[:9]
    assert 'ETHUSDT' in g.ledger.held and stops(stage) and len(out) < 40 and not g.tripped
    if cancel: assert len(stops(stage)) == 1 and len([x for x in g.ledger.of(i.id, role) if x.live]) == 1


def test_a_leader_of_the_past_without_a_journal_touches_nothing_of_the_next(stage, tmp_path):
    stage.journal.fence = lease = take(stage.journal, 'paper', 'machine-a:1', stage.venue.now, stage.settings, {})
    a = begin(stage, lease); i = hold(stage, a); out = sent(a)
    sa.event.listen(stage.journal.engine, 'before_cursor_execute', away); seconds(stage, a, 40)
    j = Journal(stage.home.journal); j.fence = take(j, 'paper', 'machine-b:1', stage.venue.now, stage.settings, {})
    b = Gateway(stage.settings, Home(tmp_path), j, stage.connect(), None, j.fence); b.start(); b.step()
    stage.connect().futures_cancel_algo_order(clientAlgoId=stops(stage)[0]); b.step()
    theirs = stops(stage); assert theirs
    for _ in range(12): seconds(stage, a, 5); b.step(); assert stops(stage) == theirs
    assert not [x for x in out if x[0] == 'DELETE']
    sa.event.remove(stage.journal.engine, 'before_cursor_execute', away); j.close()


def test_a_breaker_that_could_not_be_read_is_read_again(stage):
    g = begin(stage)
    with stage.journal.write() as c: Breakers(stage.journal).trip(c, 'ETHUSDT', Reason.BREAKER_SYMBOL, 'by a person', stage.venue.now)
    real = g.desk.breakers.active
    def once(): g.desk.breakers.active = real; raise sa.exc.OperationalError('SELECT', {}, Exception('database is locked'))
    g.desk.breakers.active = once
    stage.wish('ETHUSDT', 'BUY', 900.); seconds(stage, g, 3, 5000)
    assert g.tripped and not g.ledger.held and [v['outcome'] for v in stage.journal.rows(schema.verdicts)] == ['rejected']


@pytest.mark.parametrize('how', ('lost', 'broken'))
def test_eyes_that_fail_are_opened_again_and_nothing_is_opened_meanwhile(stage, how):
    g = begin(stage)
    class Broken:
        @property
        def connection(self): raise sqlite3.OperationalError('disk I/O error')
    if how == 'lost': g.eyes.invalidate()
    else: g.eyes = Broken()
    with stage.journal.write() as c: Breakers(stage.journal).trip(c, 'ETHUSDT', Reason.BREAKER_SYMBOL, 'by a person', stage.venue.now)
    stage.wish('ETHUSDT', 'BUY', 900.); stage.wish('SOLUSDT', 'BUY', 900.); g.stirred = True; seconds(stage, g, 4, 5000)
    assert set(g.ledger.held) == {'SOLUSDT'} and set(g.tripped) == {'ETHUSDT'}


def test_a_breaker_holds_for_the_rest_of_its_own_pass(stage):
    g = begin(stage); real = g.client._ask
    g.client._ask = lambda method, path, signed, data: Answer(400, dict(code=-2019, msg='Margin is insufficient.'), {}) if (method.upper(), path) == ('POST', '/fapi/v1/order') else real(method, path, signed, data)
    for usdt in (500., 600., 700., 800.): stage.wish('ETHUSDT', 'BUY', usdt)
    seconds(stage, g)
    assert sorted(v['outcome'] for v in stage.journal.rows(schema.verdicts)) == ['approved']*3 + ['rejected']


def test_filters_that_change_are_read_as_soon_as_an_order_is_refused_for_them(stage):
    g = begin(stage); hold(stage, g); seconds(stage, g, 3); h = g.ledger.held['ETHUSDT']
    step = g.desk.rules['ETHUSDT'].step*10; assert h.qty % step, 'the position must not lie on the new grid'
    stage.venue.world(filters={'ETHUSDT': dict(step=str(step))}); out = sent(g)
    stage.connect().futures_cancel_algo_order(clientAlgoId=stops(stage)[0]); seconds(stage, g, 4)
    assert len(stops(stage)) == 1 and len(out) <= 4, out
    stage.venue.world(filters={'ETHUSDT': dict(step='77')}); stage.connect().futures_cancel_algo_order(clientAlgoId=stops(stage)[0])
    asked, real = [], g.watch.desk.client.futures_exchange_info
    g.client.futures_exchange_info = lambda **kw: asked.append(1) or real(**kw)
    seconds(stage, g, 30); assert 1 <= len(asked) <= 11


@pytest.mark.parametrize('healed', (True, False), ids=('the filters are as before', 'they still stand'))
def test_less_than_a_step_is_closed_as_soon_as_the_exchange_takes_it(stage, healed):
    g = begin(stage); hold(stage, g); step = g.desk.rules['ETHUSDT'].step; seconds(stage, g, 3)
    stage.venue.world(filters={'ETHUSDT': dict(step='77')}); stage.wish('ETHUSDT', 'SELL', action='close'); seconds(stage, g, 6)
    assert 'ETHUSDT' in g.ledger.held and g.desk.rules['ETHUSDT'].step == 77
    if healed: stage.venue.world(filters={'ETHUSDT': dict(step=str(step))})
    kill.put(stage.home, 'FLATTEN', 'test', 'test', at=0); seconds(stage, g, 8)
    if not healed:
        assert 'ETHUSDT' in g.ledger.held and stops(stage)
        stage.venue.world(filters={'ETHUSDT': dict(step=str(step))}); seconds(stage, g, 60)
    assert 'ETHUSDT' not in g.ledger.held and not stage.venue.account.position('ETHUSDT').qty and not stops(stage)


def test_a_message_that_is_no_object_holds_up_nobody(stage):
    g = begin(stage)
    with stage.journal.write() as c: c.execute(schema.outbox.insert(), dict(stream='trade.intent', key='x', payload=[1], at=0))
    hold(stage, g)


def test_at_halt_it_sleeps(stage):
    g = begin(stage); kill.put(stage.home, 'HALT', 'test', 'test', at=0); seconds(stage, g, 125, 30_000)
    assert g.due - g.now > 1000


def test_a_stream_that_says_nothing_about_an_order_is_doubted(stage):
    g = begin(stage); stage.venue.listeners.clear(); stage.inbox.links = {'private': True, 'market': True}
    gaps = stage.inbox.gaps; hold(stage, g); seconds(stage, g, 6)
    assert stage.inbox.doubted and stage.inbox.gaps == gaps + 1 and not stage.inbox.state(0)[0] and g.gaps == stage.inbox.gaps
    i = stage.wish('SOLUSDT', 'BUY', 900.); seconds(stage, g, 3)
    assert Reason.STREAM_STALE in stage.journal.one(sa.select(schema.verdicts).where(schema.verdicts.c.intent_id == i.id))['reasons']


def test_a_listen_key_is_a_secret(): assert 'kkkk' not in clean('BinanceRequestException: Invalid Response: {"listenKey":"' + 'k'*64)
