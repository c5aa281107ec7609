"""The sixty first faults as scenarios over real HTTP and WebSocket: `python tests/attack/scenarios.py [ID …]` prints the table

A scenario arranges, breaks something on purpose, lets the gateway run, and asserts what is right. Transport faults run twice: before the book was changed and after."""
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parent))
from scene import ALGO, MINUTE, ORDER, SECOND, START, GatewayRefused, Reason, Scene, connect, schema  # noqa: E402

BEFORE, AFTER = 'before_apply', 'after_apply'
BOTH, ONE = (BEFORE, AFTER), ('',)
MONEY = ['I1', 'I2', 'I3', 'I4', 'I7', 'I8', 'I9', 'I10', 'I11']
TABLE = {}


@dataclass
class Scenario:
    "One row of the catalogue"
    id: str; text: str; run: object; phases: tuple; stream: bool; stage: bool; settings: dict


def scenario(id, text, phases=ONE, stream=False, stage=True, **settings):
    "Put the decorated function on the table"
    def put(f): TABLE[id] = Scenario(id, text, f, phases, stream, stage, settings); return f
    return put


# A. The order path

def lost(scene, phase, effect, landed=None, **args):
    "An entry whose reply is spoiled: never sent twice, counted while unknown, resolved by proof"
    s = scene
    s.fault(effect, phase, match=dict(symbol='ETHUSDT'), **args)
    i = s.wish(); s.step()
    (row,) = s.orders(intent_id=i.id, role='entry')
    if row['state'] == 'unknown':
        other = s.wish('ETHUSDT', 'SELL', 500.); s.step()
        assert set(s.why(other)) & {Reason.POSITION_EXISTS, Reason.UNKNOWN_PENDING}, s.why(other)
    s.until(lambda: s.orders(intent_id=i.id, role='entry')[0]['state'] in ('filled', 'dead'), 180, 5*SECOND)
    n = len(s.asked('POST', ORDER, newClientOrderId=f'ql-{i.id}-entry0'))
    assert n <= 1, f'sent {n} times'
    booked = len(s.entries(i))
    assert booked == ((phase == AFTER) if landed is None else booked) and booked <= 1
    assert s.orders(intent_id=i.id, role='entry')[0]['state'] == ('filled' if booked else 'dead')
    assert s.venue.faults.hits[effect]
    s.settle(MONEY + ['I6'])


@scenario('A1', '503 "unknown error" on an order', BOTH)
def a1(s, phase): lost(s, phase, 'http', like='unknown')

@scenario('A2', '503 "service unavailable" on an order', BOTH)
def a2(s, phase): lost(s, phase, 'http', like='unavailable')

@scenario('A3', 'connection reset', BOTH)
def a3(s, phase): lost(s, phase, 'reset')

@scenario('A4', 'read timeout', BOTH)
def a4(s, phase): lost(s, phase, 'hang', landed=True, s=1.6)

@scenario('A5', 'truncated body', BOTH)
def a5(s, phase): lost(s, phase, 'truncate', landed=True, n=14)

@scenario('A6', '200 with an error body', BOTH)
def a6(s, phase): lost(s, phase, 'ok_with_error_body', code=-2013, msg='Order does not exist.')

@scenario('A7', 'empty body', BOTH)
def a7(s, phase): lost(s, phase, 'empty')

@scenario('A9', 'duplicate client id: evidence of life', (AFTER,))
def a9(s, phase): lost(s, phase, 'http', status=400, body=dict(code=-4116, msg='ClientOrderId is duplicated.'))

@scenario('A10', 'the same intent again, and another one under its name')
def a10(s, phase):
    i = s.wish(); s.step(2)
    with s.journal.write() as c: c.execute(schema.deliveries.update().values(acked_at=None, delivered_at=0))
    s.step(3)
    assert len(s.entries(i)) == 1 and len(s.asked('POST', ORDER, newClientOrderId=f'ql-{i.id}-entry0')) == 1
    j = s.wish('SOLUSDT', usdt=500.)
    with s.journal.write() as c:
        row = s.journal.one(sa.select(schema.outbox).where(schema.outbox.c.key == j.id))
        c.execute(schema.outbox.update().where(schema.outbox.c.key == j.id).values(payload=row['payload'] | dict(notional_usdt=2000.)))
    s.step(3)
    assert not s.entries(j) and Reason.BAD_NUMBER in s.codes()
    s.settle(MONEY)

@scenario('A11', 'partial fill, the rest is gone')
def a11(s, phase):
    s.fault('partial', match=dict(symbol='ETHUSDT', type='MARKET'), frac=0.37)
    i = s.wish(); s.step(3)
    (o,) = s.entries(i)
    assert 0 < o.executed < o.qty and s.qty() == o.executed
    assert {a.qty for a in s.stops()} <= {o.executed, Decimal(0)} and s.stops()
    s.settle(MONEY)

@scenario('A13', 'a cancel races the fill of the stop it would cancel')
def a13(s, phase):
    i = s.hold(); px = float(s.venue.mark('ETHUSDT'))
    s.world(price=dict(ETHUSDT=1.016)); s.advance(SECOND)
    s.fault('hang', BEFORE, 'DELETE', ALGO, s=0.25)
    t = s.when('hang', lambda: (s.world(price=dict(ETHUSDT=0.95)), s.advance(SECOND)))
    s.step(); t.join()
    s.step(3)
    assert s.qty() == 0 and len(s.entries(i)) == 1, 'the fill wins, nothing is entered again'
    s.settle(MONEY)

@scenario('A14', 'cancel and query say "not found" of a live stop')
def a14(s, phase):
    s.hold(); old = {a.client for a in s.rests()}
    s.refuse(-2011, 'Unknown order sent.', method='DELETE', count=4)
    s.fault('http', 'instead', 'GET', ALGO, 4, status=400, body=dict(code=-2013, msg='Order does not exist.'))
    s.wish('ETHUSDT', 'SELL', action='close'); s.step(2)
    assert s.qty() == 0
    s.until(lambda: not s.rests(), 60)
    s.settle(MONEY)

@scenario('A15', 'margin insufficient')
def a15(s, phase):
    s.refuse(-2019, 'Margin is insufficient.', path=ORDER, count=2)
    i = s.wish(usdt=200.); s.step(6)
    n = [x for x in s.log if x[0] == 'POST' and x[1] == ORDER]
    assert len(n) <= 1 and not s.entries(i), 'no loop of ever smaller orders'
    s.settle(MONEY)

@scenario('A16', 'the filters change while running')
def a16(s, phase):
    s.hold('BTCUSDT')
    s.world(filters=dict(ETHUSDT=dict(step='0.1', min_qty='0.1', tick='0.5')))
    i = s.wish('ETHUSDT', usdt=1300.); s.step(3)
    if not s.entries(i): j = s.wish('ETHUSDT', usdt=1290.); s.step(3)
    assert s.qty() and s.qty() % Decimal('0.1') == 0 and all(a.trigger % Decimal('0.5') == 0 for a in s.rests())
    s.settle([x for x in MONEY if x != 'I11']) # judged by the rules of now; the watch judges each order by the rules of its moment

@scenario('A17', 'dust: below the least notional')
def a17(s, phase):
    i = s.wish(usdt=10.); s.step()
    assert Reason.MIN_NOTIONAL in s.why(i) and not s.asked('POST', ORDER)
    s.fault('partial', match=dict(symbol='ETHUSDT', type='MARKET'), frac=0.05)
    s.wish(usdt=100.); s.step(3)
    q = s.qty(); assert 0 < q*s.venue.mark('ETHUSDT') < 20, q
    assert s.safe()
    s.wish('ETHUSDT', 'SELL', action='close'); s.step(3)
    assert s.qty() == 0, 'dust can be closed'
    s.settle(MONEY)

@scenario('A19', '429 with Retry-After, on the way to 418', real=True)
def a19(s, phase):
    s.hold(); s.world(limits=dict(weight=40))
    i, n = s.wish('SOLUSDT'), len(s.log)
    s.step(20, 0)
    told = [x for x in s.log[n:] if x[3] == 429]
    assert 1 <= len(told) <= 2 and not [x for x in s.log[n:] if x[3] == 418], f'{len(told)} requests after it was told to wait'
    assert s.safe() and not s.entries(i)
    s.world(limits=dict(weight=2400)); s.venue.counts.clear(); s.restart(); s.step(2, 0) # the minute is over
    j = s.wish('XRPUSDT'); s.step(3, 0)
    assert s.qty('XRPUSDT'), s.why(j)
    s.settle(MONEY)


# B. Protection

@scenario('B1', 'the stop endpoint has moved (-4120)')
def b1(s, phase):
    s.refuse(-4120, 'Order type not supported for this endpoint.', count=50)
    s.wish(); s.step(12)
    assert s.qty() == 0 and s.protect_ms() <= 10_000
    n = len(s.entries()); j = s.wish('SOLUSDT'); s.step(2)
    assert len(s.entries()) == n, 'no entry where no stop can be placed'
    s.settle(MONEY)

@scenario('B2', 'the price is already through the stop (-2021)')
def b2(s, phase):
    s.fault('hang', BEFORE, path=ALGO, s=0.25)
    t = s.when('hang', lambda: (s.world(price=dict(ETHUSDT=0.95)), s.advance(SECOND)))
    s.wish(); s.step(); t.join(); s.step(4)
    assert [x for x in s.log if x[1] == ALGO and x[0] == 'POST' and x[3] == 400], 'the exchange refused the stop'
    assert s.qty() == 0 and s.protect_ms() <= 10_000
    assert {o['reason'] for o in s.orders(role='close')} == {Reason.STOP_BREACHED.value}
    s.settle(MONEY)

@scenario('B3', 'a stop of unknown fate', BOTH)
def b3(s, phase):
    s.fault('http', phase, path=ALGO, like='unknown')
    s.wish(); s.step(2)
    assert s.safe() and len(s.stops()) <= 2 and s.protect_ms() <= 5_000
    s.until(lambda: len(s.stops()) == 1, 3_600, 30*SECOND)
    s.settle(MONEY)

@scenario('B4', 'a stop that rests but is not shown for 40 minutes')
def b4(s, phase):
    s.fault('forget', 'instead', '*', '*', None, algo='*', s=2400)
    s.wish(); s.step(5)
    assert s.qty() and s.safe()
    s.step(40, 61*SECOND)
    assert s.qty(), 'it was closed although its stop rested'
    made = len([x for x in s.asked('POST', ALGO) if x[2].get('type') == 'STOP_MARKET'])
    assert made <= 4, f'{made} stops were placed'
    s.settle(MONEY, s=300)

@scenario('B5', 'a stop stuck in TRIGGERING')
def b5(s, phase):
    s.hold(); s.fault('stick_status', match=dict(symbol='ETHUSDT'))
    s.world(price=dict(ETHUSDT=0.97)); s.advance(SECOND)
    took = s.until(lambda: not s.qty(), 10)
    assert Reason.STUCK_TRIGGER in {*s.codes(), *(o['reason'] for o in s.orders())}
    assert not s.rests() or {a.status for a in s.rests()} == {'TRIGGERING'}, 'only what the exchange does not let go is left'
    s.settle([x for x in MONEY if x != 'I10'])

@scenario('B6', 'a stop rejected at its trigger')
def b6(s, phase):
    s.hold(); s.fault('reject_at_trigger', match=dict(symbol='ETHUSDT'))
    s.world(price=dict(ETHUSDT=0.97)); s.advance(SECOND)
    s.until(lambda: not s.qty(), 10)
    assert Reason.STOP_REJECTED in {*s.codes(), *(o['reason'] for o in s.orders())}
    s.settle(MONEY)

@scenario('B7', 'a stop cancelled by hand')
def b7(s, phase):
    s.hold(); (a,) = s.stops()
    s.world(cancel=dict(client=a.client))
    assert not s.safe()
    s.until(s.safe, 5)
    assert Reason.STOP_LOST in s.codes() and s.protect_ms() <= 5_000
    s.settle(MONEY)

@scenario('B8', 'trailing: the new stop fails after the price has risen', BOTH)
def b8(s, phase):
    s.hold(); (old,) = s.stops()
    s.world(price=dict(ETHUSDT=1.016)); s.advance(SECOND)
    s.fault('http', phase, path=ALGO, count=3, like='unknown')
    for _ in range(3): s.step(); assert s.safe() and s.qty()
    assert s.protect_ms() <= 5_000
    s.heal(); s.until(lambda: len(s.stops()) == 1 and s.stops()[0].trigger > old.trigger, 3_600, 30*SECOND)
    s.settle(MONEY)

@scenario('B9', 'a resting take-profit blocks the close (-4118)')
def b9(s, phase):
    s.hold()
    s.refuse(-4118, 'ReduceOnly Order Failed. Please check your existing position and open orders', path=ORDER, count=1)
    s.wish('ETHUSDT', 'SELL', action='close'); s.step(3)
    assert s.qty() == 0
    i = s.hold('SOLUSDT')
    s.refuse(-4118, 'ReduceOnly Order Failed.', path=ORDER, count=2)
    s.wish('SOLUSDT', 'SELL', action='close')
    s.until(lambda: not s.qty('SOLUSDT') or (s.safe('SOLUSDT') and any(a.type == 'TAKE_PROFIT_MARKET' for a in s.rests('SOLUSDT'))), 15)
    s.settle(MONEY)

@scenario('B10', 'reduce-only rejected (-2022): once flat, once not')
def b10(s, phase):
    s.hold()
    s.world(price=dict(ETHUSDT=0.97)); s.advance(SECOND) # the stop fires first
    s.wish('ETHUSDT', 'SELL', action='close'); s.step(2)
    assert s.qty() == 0
    s.hold('SOLUSDT')
    s.refuse(-2022, 'ReduceOnly Order is rejected.', path=ORDER, count=1)
    s.wish('SOLUSDT', 'SELL', action='close'); s.step(6)
    assert s.qty('SOLUSDT') == 0 or s.safe('SOLUSDT')
    exits = [x for x in s.asked('POST', ORDER, side='SELL')]
    assert exits and all(x[2].get('reduceOnly', '').lower() == 'true' for x in exits), 'reduce-only is never dropped'
    s.settle(MONEY)

@scenario('B11', 'stop and target are both reached before anybody looks')
def b11(s, phase):
    s.hold()
    s.world(price=dict(ETHUSDT=0.95)); s.advance(SECOND); s.world(price=dict(ETHUSDT=1.2)); s.advance(SECOND)
    assert s.qty() == 0, 'the second one would have turned the position'
    s.step(2); assert not s.rests()
    s.settle(MONEY)

@scenario('B12', 'the sibling of a stop that fired')
def b12(s, phase):
    i = s.hold()
    s.world(price=dict(ETHUSDT=0.97)); s.advance(SECOND)
    assert s.qty() == 0
    s.until(lambda: not s.rests(), 60)
    s.wish('ETHUSDT', usdt=700.); s.step(3)
    names = {a.client for a in s.rests()}
    assert s.qty() and not any(i.id in n for n in names), 'nothing of the old position is left'
    s.settle(MONEY)


# C. Account and market

@scenario('C1', 'hedge mode is switched on')
def c1(s, phase):
    s.world(hedge=True)
    s.wish(); s.step(2); i = s.wish('SOLUSDT'); s.step(2) # at the latest the refusal of the first one tells it
    assert not s.entries() and Reason.ACCOUNT_MODE in s.why(i), s.why(i)
    assert Reason.ACCOUNT_MODE in s.codes() or any(a['level'] != 'info' for a in s.journal.rows(schema.alerts))
    try: s.restart(); raise AssertionError('it started in hedge mode')
    except GatewayRefused as e: assert 'one-way' in str(e)
    s.world(hedge=False); s.restart(); s.hold('SOLUSDT')
    s.settle(MONEY)

@scenario('C5', 'liquidation', stream=True)
def c5(s, phase):
    i = s.hold(); s.world(liquidate='ETHUSDT'); s.advance(SECOND); s.step(3)
    assert s.qty() == 0 and Reason.LIQUIDATED in s.codes()
    s.until(lambda: s.journal.rows(schema.outcomes), 30)
    assert [r['reason'] for r in s.journal.rows(schema.outcomes)] == [Reason.LIQUIDATED.value]
    s.settle(MONEY)

@scenario('C6', 'auto-deleveraging takes half', stream=True)
def c6(s, phase):
    s.hold(); before = s.qty()
    s.world(adl=dict(symbol='ETHUSDT', fraction=0.5)); s.advance(SECOND); s.step(3)
    assert 0 < s.qty() < before and Reason.DELEVERAGED in s.codes()
    s.until(lambda: {a.qty for a in s.stops()} <= {s.qty(), Decimal(0)}, 30)
    s.settle(MONEY)

@scenario('C8', 'the symbol is in BREAK')
def c8(s, phase):
    s.hold('SOLUSDT'); s.world(status=dict(ETHUSDT='BREAK', SOLUSDT='BREAK'))
    n = len(s.rests('SOLUSDT')); i = s.wish(); s.step(3, 10*SECOND)
    assert not s.entries(i) and len(s.rests('SOLUSDT')) == n and s.qty('SOLUSDT')
    s.world(status=dict(ETHUSDT='TRADING', SOLUSDT='TRADING'))
    s.step(2, 5*MINUTE); j = s.wish(usdt=800.); s.step(3)
    assert s.qty(), s.why(j)
    s.settle(MONEY)

@scenario('C10', 'the owner trades by hand')
def c10(s, phase):
    s.hold(); mine = s.qty()
    s.world(trade=dict(symbol='BTCUSDT', side='BUY', qty='0.01', client='manual-1')); s.step(4)
    assert Reason.FOREIGN in s.codes() and not s.rests('BTCUSDT') and s.qty('BTCUSDT') == Decimal('0.01')
    j = s.wish('BTCUSDT', 'SELL'); s.step(2)
    assert not s.entries(j) and s.qty() == mine and s.safe()
    s.settle(['I1', 'I2', 'I3', 'I4', 'I9', 'I22'], foreign=True)

@scenario('C12', 'the key is revoked')
def c12(s, phase):
    s.hold(); n = len(s.rests()); s.world(revoke_key=True)
    i = s.wish('SOLUSDT')
    for _ in range(4): s.step()
    assert not s.entries(i) and len(s.rests()) == n, 'resting stops stay'
    assert any(a['level'] == 'critical' for a in s.journal.rows(schema.alerts))
    s.world(revoke_key=False); s.step(3)
    s.settle(MONEY)


# D. Data and time

def history(hours=420, symbols=('BTCUSDT', 'ETHUSDT'), **kw):
    "A server with enough past to decide on, its client and an empty candle store"
    from quantlib.core.clock import HOUR
    from quantlib.data.candles import CandleStore
    from quantlib.data.synthetic import market
    from quantlib.sandbox.market import Market
    from quantlib.sandbox.server import start
    import tempfile
    at = START - START % HOUR
    run = start(Market(market(list(symbols), at - hours*HOUR, hours + 30, seed=3), seed=3), at + 20*MINUTE)
    from quantlib.core.settings import parse
    settings = parse({'universe': {'symbols': list(symbols)}, 'execution': dict(url=run.url, timeout_s=2)})
    return run, connect(settings), CandleStore(Path(tempfile.mkdtemp(prefix='candles-'))), at, at - hours*HOUR


def snapshot(store, slot, symbols=('BTCUSDT', 'ETHUSDT')):
    from quantlib.strategy.snapshot import Snapshot
    return Snapshot.take(store, slot, tuple(symbols), 400, {}, {})


@scenario('D1', 'the running candle is in the answer', stage=False)
def d1(s, phase):
    from quantlib.core.clock import HOUR
    from quantlib.data.history import backfill, update
    run, client, store, at, first = history()
    try:
        live = client.futures_klines(symbol='BTCUSDT', interval='1h', limit=2)
        assert live[-1][6] >= run.exchange.now, 'the exchange does show the running candle'
        backfill(client, store, ['BTCUSDT', 'ETHUSDT'], first, at + 5*HOUR)
        assert max(store.last().values()) == at - HOUR
        run.advance(HOUR); update(client, store, ['BTCUSDT', 'ETHUSDT'], run.exchange.now)
        assert max(store.last().values()) == at
        assert snapshot(store, at + HOUR).candles['open_time'].astype('int64').max() == at
        assert int(snapshot(store, at).candles['open_time'].astype('int64').max()) == at - HOUR, 'a slot sees nothing that closed after it'
    finally: run.stop()


@scenario('D2', 'candles are missing', stage=False)
def d2(s, phase):
    from quantlib.core.clock import HOUR
    from quantlib.data.history import backfill
    run, client, store, at, first = history()
    try:
        real, hole = client.futures_klines, at - 40*HOUR
        client.futures_klines = lambda **k: [r for r in real(**k) if not (k['symbol'] == 'ETHUSDT' and hole <= r[0] < hole + 3*HOUR)]
        report = backfill(client, store, ['BTCUSDT', 'ETHUSDT'], first, at)
        assert report.missing.to_dict() == dict(BTCUSDT=0, ETHUSDT=3)
        snap = snapshot(store, at)
        assert snap.complete == ('BTCUSDT',) and 'gap' in snap.excluded['ETHUSDT'], 'the symbol is skipped and says why'
        client.futures_klines = real
        assert backfill(client, store, ['BTCUSDT', 'ETHUSDT'], first, at).missing.sum() == 0 and snapshot(store, at).complete == ('BTCUSDT', 'ETHUSDT')
    finally: run.stop()


@scenario('D3', 'a feed that stands still', stage=False)
def d3(s, phase):
    import requests
    from quantlib.core.clock import HOUR
    from quantlib.data.history import backfill, update
    run, client, store, at, first = history()
    try:
        backfill(client, store, ['BTCUSDT', 'ETHUSDT'], first, at)
        r = requests.post(run.url + '/_sim/fault', json=dict(match=dict(method='GET', path='/fapi/v1/klines'), phase='instead', effect='stale_view', args=dict(s=20_000)), timeout=5)
        assert r.status_code == 200, r.text
        run.advance(2*HOUR)
        update(client, store, ['BTCUSDT', 'ETHUSDT'], run.exchange.now)
        snap = snapshot(store, at + 2*HOUR)
        assert snap.complete == () and all('newest closed candle' in w for w in snap.excluded.values())
    finally: run.stop()
    with_prices_that_stand_still()


def with_prices_that_stand_still():
    "The gateway, too, refuses an entry on a mark price that is old"
    s = Scene()
    try:
        s.fault('stale_view', method='GET', path='/fapi/v1/premiumIndex', count=None, s=3600)
        s.step(1, 5*MINUTE)
        i = s.wish(life_ms=3_600_000); s.step(2)
        assert Reason.STALE_PRICE in s.why(i) and not s.entries()
    finally: s.close()


@scenario('D4', 'NaN, infinity and null for numbers')
def d4(s, phase):
    i = s.hold()
    for path in ('/fapi/v1/premiumIndex', '/fapi/v3/positionRisk', '/fapi/v3/account', '/fapi/v2/positionRisk', '/fapi/v1/openAlgoOrders', '/fapi/v1/time', '/fapi/v1/exchangeInfo'):
        n, sent = len(s.entries()), len(s.log)
        s.fault('nan', 'instead', 'GET', path, 2)
        s.wish('SOLUSDT', usdt=500. + sent % 100); s.step(1)
        assert len(s.entries()) == n or path not in [x[1] for x in s.log[sent:]] or path == '/fapi/v1/exchangeInfo', f'an entry on {path}'
        assert s.qty() and s.safe(), path
        s.heal(); s.step(1)
        if s.qty('SOLUSDT'): s.wish('SOLUSDT', 'SELL', action='close'); s.step(2)
    from quantlib.data.history import HistoryError, backfill
    from quantlib.data.candles import CandleError, CandleStore
    s.fault('nan', 'instead', 'GET', '/fapi/v1/klines', 9)
    try: backfill(s.gateway.client, CandleStore(s.folder/'c'), ['ETHUSDT'], START - 24*60*MINUTE, START); raise AssertionError('stored')
    except (HistoryError, CandleError, ValueError): pass
    s.settle(MONEY + ['I14'])


@scenario('D6', 'events are lost, late and doubled', stream=True)
def d6(s, phase):
    for k, (symbol, effect) in enumerate((('ETHUSDT', 'drop_event'), ('SOLUSDT', 'reorder'), ('XRPUSDT', 'dup_event'))):
        s.until(lambda: s.inbox.state(s.venue.now)[0], 120) # a stream that kept silent about an order is opened again, and without it nothing is opened
        s.fault(effect, event='ORDER_TRADE_UPDATE', count=3, **(dict(k=2, s=3) if effect == 'reorder' else {}))
        s.wish(symbol, usdt=600. + k); s.step(4)
        assert s.venue.faults.hits[effect] and s.qty(symbol) and s.safe(symbol)
        s.heal()
    s.fault('drop_event', event='*', count=20)
    s.wish('ETHUSDT', 'SELL', action='close'); s.step(3); s.heal()
    s.settle(MONEY, s=400)
    assert len({r['id'] for r in s.journal.rows(schema.fills)}) == len(s.venue.trades)


@scenario('D7', 'an open socket that says nothing', stream=True, execution=dict(stream_silent_s=10))
def d7(s, phase):
    s.hold(); s.step(3)
    s.fault('silence', event='*', count=None, s=90)
    s.step(4, 5*SECOND)
    i = s.wish('SOLUSDT'); s.step(2)
    assert not s.entries(i) and Reason.STREAM_STALE in (s.why(i) or [Reason.STREAM_STALE]), s.why(i)
    assert s.safe()
    s.step(4, 30*SECOND); s.heal()
    def entered():
        "an entry after the stream came back"
        if not s.qty('XRPUSDT'): s.wish('XRPUSDT', usdt=500. + len(s.log) % 97)
        return s.qty('XRPUSDT')
    s.until(entered, 300, 5*SECOND)
    s.settle(MONEY)


@scenario('D8', 'the listen key expires', stream=True)
def d8(s, phase):
    s.hold(); s.step(3)
    gaps = s.inbox.state(s.venue.now)[2]
    s.fault('expire_listen_key'); s.step(3)
    assert s.venue.faults.hits['expire_listen_key']
    deadline = time.monotonic() + 15
    while s.inbox.state(s.venue.now)[2] == gaps and time.monotonic() < deadline: s.step(1)
    assert s.inbox.state(s.venue.now)[2] > gaps, 'the loss was not noticed'
    while not s.inbox.state(s.venue.now)[0] and time.monotonic() < deadline: s.step(1)
    s.step(3); j = s.wish('SOLUSDT'); s.step(5)
    assert s.qty('SOLUSDT'), s.why(j)
    s.settle(MONEY)


@scenario('D10', 'clock skew and -1021')
def d10(s, phase):
    s.hold()
    s.refuse(-1021, 'Timestamp for this request is outside of the recvWindow.', path=ORDER, count=1)
    i = s.wish('SOLUSDT'); s.step(3)
    assert len(s.entries(i)) <= 1
    for skew in (4_000, -4_000, 0):
        s.world(skew_ms=skew); s.step(3)
        assert s.safe()
    s.refuse(-1021, 'Timestamp for this request is outside of the recvWindow.', path=ALGO, count=1)
    s.wish('XRPUSDT'); s.step(4)
    assert not s.qty('XRPUSDT') or s.safe('XRPUSDT')
    assert s.protect_ms() <= 5_000
    s.settle(MONEY)
    on_a_clock_of_its_own()


def on_a_clock_of_its_own():
    "Against a venue whose time runs: 0.6 s of skew, and no entry"
    s = Scene(real=True)
    try:
        s.world(skew_ms=1_500)
        i = s.wish(); s.step(3, 0)
        assert not s.entries(i) and Reason.CLOCK_SKEW in (s.why(i) or [Reason.CLOCK_SKEW]), s.why(i)
        s.world(skew_ms=0); s.step(2, 0)
        j = s.wish('SOLUSDT'); s.step(3, 0)
        assert s.entries(j) and s.safe('SOLUSDT'), s.why(j)
    finally: s.close()


@scenario('D11', 'the wall clock jumps', stage=False)
def d11(s, phase):
    def play(jump):
        s, real = Scene(), time.time
        try:
            s.wish(); s.step(2)
            if jump: time.time = lambda: real() - 3600
            s.wish('SOLUSDT', 'SELL'); s.step(2)
            if jump: time.time = lambda: real() + 7200
            s.wish('ETHUSDT', 'SELL', action='close'); s.step(3)
            late = s.wish('XRPUSDT'); s.advance(20*MINUTE); s.step(2)
            assert Reason.EXPIRED in s.why(late)
            s.settle(MONEY)
            return [(o['id'], o['state'], o['qty'], o['reason']) for o in s.orders()]
        finally: time.time = real; s.close()
    assert play(False) == play(True)


# E. Processes and schedule

class Process:
    "The gateway as its own process"
    def __init__(self, s):
        from quantlib.core.settings import save
        save(s.settings, s.home)
        env = {k: v for k, v in os.environ.items() if k != 'PYTHONSTARTUP'}
        self.p = subprocess.Popen([sys.executable, '-m', 'quantlib.execution.gateway', '--home', str(s.home.path), '--stepped'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

    def step(self, wait=True):
        try: self.p.stdin.write('step\n'); self.p.stdin.flush()
        except BrokenPipeError: raise AssertionError(f'the gateway ended with {self.p.wait(5)}: {self.p.stderr.read()[-300:]}') from None
        return json.loads(self.p.stdout.readline() or '{}') if wait else None

    def kill(self, how=signal.SIGKILL):
        self.p.send_signal(how); self.p.wait(10)
        for f in (self.p.stdin, self.p.stdout, self.p.stderr):
            try: f.close()
            except OSError: pass


def wait_for(what, s=20):
    "Real seconds until `what()` holds"
    end = time.monotonic() + s
    while not what():
        assert time.monotonic() < end, f'not within {s} s'
        time.sleep(0.02)


@scenario('E1', 'kill -9 while an order, a stop or a cancel is on its way', stage=False)
def e1(s, phase):
    for method, path, moment in (('POST', ORDER, BEFORE), ('POST', ORDER, AFTER), ('POST', ALGO, BEFORE), ('POST', ALGO, AFTER)):
        s = Scene(begin=False, execution=dict(lease_s=2, timeout_s=10))
        try:
            a = Process(s); a.step()
            i = s.wish()
            s.fault('hang', moment, method, path, s=3)
            a.step(wait=False)
            wait_for(lambda: s.venue.faults.hits['hang'])
            time.sleep(0.05); a.kill(); died = s.venue.now
            if moment == BEFORE: time.sleep(3.1) # what was on its way still arrives
            s.advance(5*SECOND)
            b = Process(s)
            try:
                b.step()
                for _ in range(3): s.advance(SECOND); b.step()
                assert not s.qty() or s.safe(), f'{path} {moment}: naked {(s.venue.now - died)/1000:.0f} s after the crash'
                for _ in range(8): s.advance(15*SECOND); b.step()
            finally: b.kill()
            assert len(s.entries(i)) <= 1, 'two entries'
            (row,) = s.orders(intent_id=i.id, role='entry')
            assert row['state'] == ('filled' if s.entries(i) else 'dead')
            assert not s.watch.breaches, s.watch.breaches[:3]
            s.agree()
        finally: s.close()


@scenario('E2', 'the runner is killed and its kernel lives on')
def e2(s, phase):
    s.hold(); n = len(s.venue.orders)
    proof = s.folder/'kernel.json'
    code = f"""
import json, os, time
from pathlib import Path
from quantlib.core.settings import parse
from quantlib.execution.client import connect
time.sleep(1.5)
out = dict(names=[k for k in os.environ if any(x in k.upper() for x in ('KEY', 'SECRET', 'TOKEN'))], pid=os.getpid())
try: connect(parse({{'suite': {{'mode': 'demo'}}, 'universe': {{'symbols': ['ETHUSDT']}}, 'execution': {{'url': {s.run.url!r}}}}})).futures_create_order(symbol='ETHUSDT', side='BUY', type='MARKET', quantity='0.1'); out['sent'] = True
except Exception as e: out['refused'] = f'{{type(e).__name__}}: {{e}}'
Path({str(proof)!r}).write_text(json.dumps(out))
"""
    runner = f"""
import nbformat, sys
from pathlib import Path
from quantlib.schedule.runner import execute
from quantlib.schedule.scheduler import kernel_env
folder = Path({str(s.folder)!r})
cells = [nbformat.v4.new_code_cell("slot:str='x' # s", metadata=dict(tags=['parameters'])), nbformat.v4.new_code_cell({code!r})]
nb = nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
nbformat.write(nb, folder/'n.ipynb'); (folder/'started').write_text('1')
execute(folder/'n.ipynb', dict(slot='y'), dict(slot=str), folder/'out.ipynb', 60, kernel='python3', env=kernel_env(dict()))
"""
    env = os.environ | dict(QUANTLIB_KEY='canary-key', QUANTLIB_SECRET='canary-secret')
    p = subprocess.Popen([sys.executable, '-c', runner], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    import psutil
    wait_for(lambda: any('ipykernel' in ' '.join(c.cmdline()) for c in psutil.Process(p.pid).children(recursive=True)), 40)
    (kernel,) = [c for c in psutil.Process(p.pid).children(recursive=True) if 'ipykernel' in ' '.join(c.cmdline())][:1]
    assert 'canary' not in Path(f'/proc/{kernel.pid}/environ').read_text(errors='replace'), 'the kernel was given a key'
    time.sleep(0.8); os.kill(p.pid, signal.SIGKILL); p.wait(10)
    try: wait_for(proof.exists, 6)
    except AssertionError: pass # the kernel died before it could try
    if proof.exists():
        d = json.loads(proof.read_text())
        assert d['names'] == [] and 'sent' not in d and 'no key' in d['refused'], d
    try: kernel.kill()
    except psutil.NoSuchProcess: pass
    assert len(s.venue.orders) == n
    s.step(3); s.settle(MONEY)


@scenario('E3', 'two gateways on one account', stage=False)
def e3(s, phase):
    from quantlib.execution.lease import NotLeader
    s = Scene(begin=False)
    try:
        first = Leader(s); assert first.lead(); s.gateway = first.gateway
        s.hold()
        second = Leader(s)
        assert not second.lead(), 'a second gateway leads while the first is alive'
        s.step(5, 4*SECOND); assert not second.lead(), 'a lease that is renewed is not over'
        s.advance(round(s.settings.execution.lease_s*1000) + 2*SECOND) # the first was stopped for longer than its lease
        assert second.lead(), 'nobody leads after the lease is over'
        s.advance(MINUTE); i, n = s.wish('SOLUSDT'), len(s.log)
        try: first.gateway.step(); raise AssertionError('the former leader stepped on')
        except NotLeader: pass
        assert not [x for x in s.log[n:] if x[0] in ('POST', 'DELETE') and x[1] in (ORDER, ALGO)], 'the former leader sent something'
        s.gateway = second.gateway; s.step(3)
        assert s.qty('SOLUSDT') and len(s.entries(i)) == 1
        fences = {o['fence'] for o in s.orders(symbol='SOLUSDT')}
        assert fences == {second.gateway.lease.fence} and second.gateway.lease.fence > first.gateway.lease.fence
        s.settle(MONEY + ['I18'])
        s.journal.close(); s.journal = second.journal
    finally: s.close()


class Leader:
    "What another gateway process has: its own journal object, client and lease"
    def __init__(self, s):
        from quantlib.execution.lease import owner
        from quantlib.journal.store import Journal
        self.s, self.owner, self.journal, self.gateway = s, owner(), Journal(s.home.journal), None

    def lead(self):
        "Whether it leads now"
        from quantlib.execution.lease import take
        from scene import Gateway
        s = self.s
        lease = take(self.journal, 'paper', self.owner, s.venue.now, s.settings, {})
        if lease is None: return False
        self.journal.fence = lease
        self.gateway = Gateway(s.settings, s.home, self.journal, connect(s.settings), None, lease)
        self.gateway.start()
        return True


def claims(slots, minutes, busy_until):
    "A ledger in which the run of the first slot is still running while the later ones come"
    import tempfile
    from quantlib.journal.store import Journal
    from quantlib.schedule.ledger import Ledger
    j = Journal(f'sqlite:///{tempfile.mkdtemp()}/j.db'); ledger = Ledger(j)
    got = [ledger.claim('trade', s, s + 10_000, busy_until) for s in slots]
    return j, ledger, got


@scenario('E4', 'a cycle that is still running when the next is due', stage=False)
def e4(s, phase):
    slots = [START + k*MINUTE for k in range(5)]
    j, ledger, got = claims(slots, 1, 10*MINUTE)
    rows = {r['slot']: r for r in j.rows(schema.runs)}
    assert got[0] and got[1:] == [None]*4 and [rows[x]['state'] for x in slots] == ['running'] + ['skipped']*4
    assert all('still running' in rows[x]['error'] for x in slots[1:]), 'each skipped slot says why'
    ledger.finish(got[0], 'done', slots[-1] + 20_000)
    assert ledger.claim('trade', START + 5*MINUTE, START + 5*MINUTE + 10_000, 10*MINUTE), 'the next free slot runs'
    assert ledger.sweep(START + 60*MINUTE), 'a run that hangs for ever is found'
    assert Reason.RUN_LOST in [a['code'] for a in j.rows(schema.alerts)]


@scenario('E5', 'the host was down for an hour', stage=False)
def e5(s, phase):
    from quantlib.schedule.jobs import JOBS
    from quantlib.schedule.scheduler import due
    last, back = START, START + 61*MINUTE
    run, missed = due(JOBS['trade'], 5, back, last, START - 60*MINUTE, 240_000)
    assert run == START + 60*MINUTE and missed == [START + k*5*MINUTE for k in range(1, 12)], 'one run, for the present; the rest is written down'
    run, missed = due(JOBS['trade'], 60, START + 59*MINUTE, START - 60*MINUTE, START - 120*MINUTE, 600_000)
    assert run is None and missed == [START], 'a slot that is too old is never traded'
    j, ledger, _ = claims([], 1, 0)
    for x in missed: ledger.missed('trade', x, START + 59*MINUTE, 'it was too late to start')
    assert [a['code'] for a in j.rows(schema.alerts)] == [Reason.RUN_MISSED.value]
    late = Scene()
    try:
        i = late.wish(life_ms=600_000); late.advance(60*MINUTE); late.step(2)
        assert Reason.EXPIRED in late.why(i) and not late.entries(), 'an intent from before the outage is not sent'
    finally: late.close()


@scenario('E9', 'an exception in the exit manager')
def e9(s, phase):
    s.hold('SOLUSDT'); wants = type(s.gateway.guardian).wants
    def broken(g, h):
        if h.symbol == 'ETHUSDT': raise RuntimeError('a bug in the exit plan')
        return wants(g, h)
    type(s.gateway.guardian).wants = broken
    try:
        s.wish(); s.step(12)
        assert s.safe('SOLUSDT'), 'the others are guarded all the same'
        assert not s.qty() and s.protect_ms() <= 10_000, 'a position that cannot be protected is closed'
        assert any(a['level'] != 'info' for a in s.journal.rows(schema.alerts))
    finally: type(s.gateway.guardian).wants = wants
    s.settle(MONEY)


# F. Storage and bus

def tolerant(s, n=1, ms=SECOND):
    "Steps of a gateway whose journal may fail; the process would end and be started again"
    from quantlib.journal.store import JournalError
    failed = 0
    for _ in range(n):
        try: s.step(1, ms)
        except (sa.exc.SQLAlchemyError, JournalError): failed += 1
    return failed


def impatient(s):
    "The gateway again, with a journal that does not wait for a lock"
    from quantlib.journal.store import Journal
    s.journal.close(); s.journal = Journal(s.home.journal, patience_s=0.2); s.restart()


def locked(s):
    lock = sqlite3.connect(s.home.path/'journal.db', isolation_level=None); lock.execute('BEGIN IMMEDIATE')
    return lock


def entries_sent(s, n): return [x for x in s.log[n:] if x[0] == 'POST' and x[1] == ORDER and 'reduceOnly' not in x[2]]


@scenario('F1', 'the journal is locked')
def f1(s, phase):
    s.hold(); s.hold('XRPUSDT'); impatient(s)
    i, lock, n = s.wish('SOLUSDT'), locked(s), len(s.log)
    failed = tolerant(s, 3)
    assert not entries_sent(s, n) and not s.entries(i) and s.safe(), 'an entry was sent without a row'
    s.world(price=dict(XRPUSDT=1.016)); tolerant(s, 2)
    assert s.safe('XRPUSDT')
    lock.execute('ROLLBACK'); lock.close()
    if failed: s.restart()
    s.step(4)
    assert len(s.entries(i)) == 1 and s.safe('SOLUSDT'), s.why(i)
    assert any(a['level'] == 'critical' for a in s.journal.rows(schema.alerts)), 'a journal that fails is told'
    s.settle(MONEY)


@scenario('F2', 'the disk is full')
def f2(s, phase):
    from quantlib.execution.rehearsal import wish
    s.hold(); impatient(s)
    other = type(s.journal)(s.home.journal)
    i = wish(other, s.venue.now, 'SOLUSDT', 'BUY', float(s.venue.mark('SOLUSDT')))
    full = lambda c, *_: c.execute('PRAGMA max_page_count = 1') # SQLite says "database or disk is full" when it needs another page
    s.journal.engine.dispose(); sa.event.listen(s.journal.engine, 'connect', full)
    n, failed = len(s.log), 0
    for k in range(12):
        with other.write() as c: c.execute(schema.alerts.insert().values(at=s.venue.now, level='info', code='ok', message='x'*3000))
        failed += tolerant(s, 1)
    sent = {x[2].get('newClientOrderId') or x[2].get('clientAlgoId') for x in s.log[n:] if x[0] == 'POST' and x[1] in (ORDER, ALGO)}
    written = {o['id'] for o in other.rows(schema.orders)}
    assert all(x in written for x in sent if '-entry' in x), 'an entry was sent that is not written down'
    assert s.safe()
    sa.event.remove(s.journal.engine, 'connect', full); s.journal.engine.dispose(); other.close()
    s.restart(); s.step(4)
    s.settle(MONEY)


@scenario('F4', 'power loss: what was not synced is gone')
def f4(s, phase):
    import shutil
    with s.journal.engine.connect() as c:
        got = [c.exec_driver_sql(f'PRAGMA {p}').scalar() for p in ('journal_mode', 'synchronous', 'foreign_keys')]
    assert got == ['wal', 2, 1], got
    s.hold(); s.hold('SOLUSDT', 'SELL')
    rows = [o['id'] for o in s.orders()]
    wal = s.home.path/'journal.db-wal'
    for cut in (0.0, 0.3, 0.7, 0.97): # a torn tail leaves a prefix
        copy = s.folder/f'cut{cut}'; copy.mkdir()
        shutil.copy(s.home.path/'journal.db', copy)
        if wal.exists(): (copy/'journal.db-wal').write_bytes(wal.read_bytes()[:int(wal.stat().st_size*cut)])
        with sqlite3.connect(copy/'journal.db') as c:
            assert c.execute('PRAGMA integrity_check').fetchone() == ('ok',)
            try: have = {r[0] for r in c.execute('SELECT id FROM orders')}
            except sqlite3.OperationalError: have = set()
        assert have <= set(rows)
    s.step(2); s.settle(MONEY)


@scenario('F5', 'a corrupt page in the journal')
def f5(s, phase):
    from quantlib.journal.store import Journal, JournalError
    s.hold(); n = len(s.rests())
    s.journal.close()
    path = s.home.path/'journal.db'
    with sqlite3.connect(path) as c: c.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    good = path.read_bytes()
    bad = bytearray(good)
    for page in range(2, len(bad)//4096, 2): bad[page*4096:page*4096 + 64] = b'\xff'*64
    path.write_bytes(bad)
    p = Process(s)
    out, err = p.p.communicate('step\n', timeout=30)
    assert p.p.returncode == 2 and 'journal' in err and 'Traceback' not in err, (p.p.returncode, err[-400:])
    assert len(s.rests()) == n, 'the stops rest at the exchange'
    from quantlib.execution import kill
    kill.put(s.home, 'FLATTEN', 'the journal is damaged', 'test')
    s.watch.arrives = lambda *a: None # the watch reads the journal too, and there is none now
    p = Process(s); out, err = p.p.communicate('step\n', timeout=30)
    assert not s.venue.account.held() and not s.rests(), 'FLATTEN works with a damaged journal'
    path.write_bytes(good)
    for x in ('-wal', '-shm'): (s.home.path/f'journal.db{x}').unlink(missing_ok=True)
    s.journal = s.watch.journal = Journal(s.home.journal); del s.watch.arrives
    kill.clear(s.home, 'the journal was restored', 'test')
    s.advance(60*SECOND); s.restart(); s.step(4)
    s.settle(['I3', 'I4', 'I7', 'I9', 'I10'])


@scenario('F9', 'the bus forgets everything')
def f9(s, phase):
    i = s.wish()
    with s.journal.write() as c: c.execute(schema.deliveries.delete())
    s.step(3); assert len(s.entries(i)) == 1
    with s.journal.write() as c: c.execute(schema.deliveries.delete())
    j = s.wish('SOLUSDT')
    with s.journal.write() as c: c.execute(schema.outbox.update().values(at=0))
    s.step(4)
    assert len(s.entries(i)) == 1 and len(s.entries(j)) == 1, 'nothing is lost, nothing happens twice'
    s.settle(MONEY)


# G. Models

class Plain:
    "A forecaster of one small file, so that the registry alone is under attack"
    kind, features = 'plain', ('a', 'b')
    def __init__(self, level=1.): self.level = level

    def save(self, folder):
        (folder/'plain.json').write_text(json.dumps(dict(level=self.level)))
        return ['plain.json']

    @classmethod
    def load(cls, folder): return cls(json.loads((folder/'plain.json').read_text())['level'])


class Spare(Plain): kind = 'spare'


def model(folder, level=1.):
    "A registry, and a model of each kind to be kept in it"
    from types import SimpleNamespace
    from quantlib.models.calibrate import Gate
    from quantlib.models.registry import Registry
    gate = Gate(Plain.features, [0.]*len(Plain.features), [1.]*len(Plain.features), .5, 3., 12)
    card = {f'h{h}': dict(rank_ic=.01, beats_zero=False) for h in (1, 4, 24)}
    span = dict(start='2026-01-01T00:00Z', end='2026-01-30T03:00Z', rows=1000)
    return Registry(folder, kinds=dict(plain=Plain, spare=Spare), features=list(Plain.features)), [SimpleNamespace(forecaster=c(level), metrics=card, span=span, seed=1, gate=gate) for c in (Plain, Spare)]


def crowned(folder):
    reg, made = model(folder)
    ids = {}
    for t in made: ids[t.forecaster.kind] = reg.save(t, 3, START); reg.promote(t.forecaster.kind, ids[t.forecaster.kind], START)
    return reg, ids


@scenario('G1', 'a model that is half written', stage=False)
def g1(s, phase):
    import tempfile
    folder = Path(tempfile.mkdtemp())/'models'
    reg, ids = crowned(folder)
    seen = set()
    for k in (*range(1, 10), 99):
        pid = os.fork()
        if not pid: # the child keeps another model and dies at the k-th time that something is forced to the disk
            import quantlib.models.registry as r
            count, real = [0], r._sync
            def sync(path):
                count[0] += 1
                if count[0] == k: os.kill(os.getpid(), signal.SIGKILL)
                real(path)
            r._sync = sync
            try: other, made = model(folder, 2.); other.promote('plain', other.save(made[0], 3, START), START)
            finally: os._exit(0)
        os.waitpid(pid, 0)
        models, missing = reg.load_champions(('plain', 'spare'))
        assert set(models) == {'plain', 'spare'} and not missing, f'at sync {k}: {missing}'
        seen.add(models['plain'][1].level)
        for p in folder.glob('plain/*/manifest.json'): reg.load('plain', p.parts[-2])
    assert seen == {1., 2.}, 'the old one, then the new one, never anything between'


@scenario('G2', 'a model with a flipped byte', stage=False)
def g2(s, phase):
    import tempfile
    from quantlib.models.registry import ModelRefused
    reg, ids = crowned(Path(tempfile.mkdtemp())/'models')
    p = reg.root/'plain'/ids['plain']/'plain.json'
    b = bytearray(p.read_bytes()); b[len(b)//2] ^= 1; p.write_bytes(bytes(b))
    try: reg.load('plain', ids['plain']); raise AssertionError('it was served')
    except ModelRefused as e: assert p.name in str(e)
    models, missing = reg.load_champions(('plain', 'spare'))
    assert set(models) == {'spare'} and 'hash' in missing['plain'], 'the other one serves on, and it is said'


@scenario('G6', 'a model that is a pickle', stage=False)
def g6(s, phase):
    import pickle, tempfile
    from quantlib.models.registry import ModelRefused, Registry
    folder, proof = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())/'ran'
    class Evil:
        def __reduce__(self): return os.system, (f'touch {proof}',)
    evil = pickle.dumps(Evil())
    reg, ids = crowned(folder/'models')
    for p in sorted((reg.root/'plain'/ids['plain']).iterdir()):
        old = p.read_bytes(); p.write_bytes(evil)
        try: reg.load('plain', ids['plain']); raise AssertionError(f'{p.name} was served')
        except ModelRefused: pass
        p.write_bytes(old)
    old = reg.pointer.read_bytes(); reg.pointer.write_bytes(evil)
    assert reg.load_champions(('plain',))[0] == {}
    reg.pointer.write_bytes(old)
    for kind, cls in Registry(folder/'other').kinds.items(): # every loader that the suite has, past all hashes
        for name in ('model.json', 'model.pkl', 'weights.safetensors', 'net.pt', *(f'h{h}.{e}' for h in (1, 4, 24) for e in ('ubj', 'txt', 'json', 'safetensors', 'pt'))): (folder/name).write_bytes(evil)
        try: cls.load(folder); raise AssertionError(f'{kind} took a pickle for a model')
        except AssertionError: raise
        except Exception: pass
    assert not proof.exists(), 'foreign code ran'


# H. Operations and security

@scenario('H1', 'secrets in what is written', stage=False)
def h1(s, phase):
    from secret_hunt import CANARY, traces
    key, secret = CANARY
    s = Scene(sandbox=dict(key=key, secret=secret), key=key, secret=secret)
    try:
        s.hold()
        for effect, args in (('reset', {}), ('html', {}), ('truncate', dict(n=14)), ('http', dict(like='unknown')), ('empty', {})):
            s.fault(effect, AFTER, path=ALGO, **args); s.fault(effect, BEFORE, 'GET', '/fapi/v3/positionRisk', **args)
            s.wish('SOLUSDT', usdt=400. + len(s.log) % 90); s.step(2); s.heal(); s.step(2)
            if s.qty('SOLUSDT'): s.wish('SOLUSDT', 'SELL', action='close'); s.step(2)
        s.world(revoke_key=True); s.step(2); s.world(revoke_key=False); s.step(2)
        found = traces(s.folder, (key, secret), but=('settings.json',))
        assert not found, found[:4]
    finally: s.close()


@scenario('H2', 'who listens where (there is no web service yet: only the sandbox can be asked)')
def h2(s, phase):
    import psutil
    me = psutil.Process()
    from quantlib.sandbox import server
    listening = [c.laddr for p in [me, *me.children(recursive=True)] for c in p.net_connections('inet') if c.status == psutil.CONN_LISTEN]
    assert listening and all(a.ip in ('127.0.0.1', '::1') for a in listening), listening
    import requests
    assert requests.get(s.run.url + '/fapi/v3/account', timeout=5).status_code == 401, 'no key, no account'
    s.step(1)


@scenario('H5', 'the kill switch with journal and bus broken')
def h5(s, phase):
    from quantlib.execution import kill
    s.hold(); s.hold('SOLUSDT', 'SELL'); impatient(s)
    i, lock, t = s.wish('XRPUSDT'), locked(s), time.monotonic()
    kill.put(s.home, 'FLATTEN', 'a test', 'test')
    assert time.monotonic() - t < 1 and kill.read(s.home).level == kill.Level.FLATTEN
    s.until(lambda: not s.qty() and not s.qty('SOLUSDT'), 30)
    lock.execute('ROLLBACK'); lock.close()
    s.step(3); assert not s.entries(i) and Reason.KILL_SWITCH in s.why(i)
    s.until(lambda: not s.rests() and not s.rests('SOLUSDT'), 30)
    s.restart(); j = s.wish('XRPUSDT', usdt=700.); s.step(3)
    assert not s.entries(j), 'it stays latched over a restart'
    kill.clear(s.home, 'checked by hand', 'test'); s.step(2, MINUTE)
    k = s.wish('XRPUSDT', usdt=800.); s.step(3)
    assert s.entries(k), s.why(k)
    s.home.kill.write_text('garbage'); m = s.wish('ETHUSDT', usdt=650.); s.step(2)
    assert not s.entries(m), 'an unreadable switch counts as set'
    s.home.kill.unlink()
    s.settle(MONEY + ['I23'])


# The table

@dataclass
class Result:
    id: str; phase: str; error: str; protect_ms: int|None; seconds: float


def play(x, phase=''):
    "Run one scenario in one phase"
    t, s, error, protect = time.monotonic(), None, '', None
    try:
        if x.stage: s = Scene(stream=x.stream, **x.settings)
        x.run(s, phase)
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt): raise
        where = [f for f in traceback.extract_tb(e.__traceback__) if f.filename.endswith(('scenarios.py', 'scene.py'))]
        error = f'{type(e).__name__}: {e}'.replace('\n', ' ')[:300] + (f' (line {where[-1].lineno} of {Path(where[-1].filename).name})' if where else '')
        if os.environ.get('TRACE'): traceback.print_exc()
    finally:
        if s: protect = s.protect_ms(); s.close()
    return Result(x.id, phase, error, protect, time.monotonic() - t)


def table(ids=()):
    "Run and print"
    done, naked = [], []
    print(f'{"id":4} {"phase":13} {"passed":6} {"naked s":>8} {"s":>6}  scenario')
    for i, x in TABLE.items():
        if ids and i not in ids: continue
        for p in x.phases:
            r = play(x, p); done.append(r)
            if r.protect_ms is not None: naked.append(r.protect_ms/1000)
            print(f'{i:4} {p or "-":13} {"yes" if not r.error else "NO":6} {"-" if r.protect_ms is None else f"{r.protect_ms/1000:.1f}":>8} {r.seconds:6.1f}  {x.text}' + (f'\n       {r.error}' if r.error else ''), flush=True)
    good = {i for i in {r.id for r in done} if not any(r.error for r in done if r.id == i)}
    print(f'{len(good)} of {len({r.id for r in done})} scenarios passed ({len(done)} runs, transport faults in both phases); longest time without a stop {max(naked, default=0):.1f} s; {sum(r.seconds for r in done):.0f} s')
    return len(good) == len({r.id for r in done})


if __name__ == '__main__': sys.exit(0 if table(set(sys.argv[1:])) else 1)
