"The gateway against an exchange that loses, refuses, delays and lies, over real HTTP"
import json, subprocess, sys, time
from decimal import Decimal

import pytest, requests
import sqlalchemy as sa

from quantlib.core.clock import HOUR, MINUTE
from quantlib.core.settings import Home, parse
from quantlib.core.types import Reason
from quantlib.data.synthetic import market as synthetic
from quantlib.execution import kill
from quantlib.execution.client import connect
from quantlib.core.settings import hold
from quantlib.execution.gateway import Gateway, GatewayRefused
from quantlib.execution.orders import State
from quantlib.execution.reconcile import differences, read
from quantlib.execution.rehearsal import START, Stage, wish
from quantlib.journal import schema
from quantlib.journal.store import Journal
from quantlib.sandbox.market import Market
from quantlib.sandbox.server import start

SYMBOLS = ['BTCUSDT', 'ETHUSDT', 'SOLUSDT', 'XRPUSDT']
ORDER, ALGO = ('POST', '/fapi/v1/order'), ('POST', '/fapi/v1/algoOrder')
UNKNOWN_503 = [503, {'code': -1000, 'msg': 'Unknown error, please check your request or try again later.'}]


@pytest.fixture(scope='module')
def candles(): return synthetic(SYMBOLS, START - 48*HOUR, 96, seed=7)


class Play:
    "A sandbox on a port, a home and a gateway"
    def __init__(self, candles, path, **overrides):
        self.run = start(Market(candles, seed=7), START)
        execution = dict(url=self.run.url, timeout_s=1.5, tick_s=1) | overrides.pop('execution', {})
        self.settings = parse({'universe': {'symbols': SYMBOLS}, 'execution': execution} | overrides)
        self.home, self.venue = Home(path), self.run.exchange
        self.journal = Journal(self.home.journal)
        self.gateway = self.restart()

    def restart(self):
        self.gateway = Gateway(self.settings, self.home, self.journal, connect(self.settings))
        self.gateway.start()
        return self.gateway

    def fault(self, match, phase, effect, count=1, **params):
        (name, args), = effect.items()
        args = dict(http=lambda: dict(status=args[0], body=args[1]), hang=lambda: dict(s=args), reset=dict)[name]()
        r = requests.post(self.run.url + '/_sim/fault', json=dict(match=dict(method=match[0], path=match[1], params=params), phase=phase, effect=name, args=args, count=count))
        assert r.status_code == 200, r.text

    def heal(self): requests.delete(self.run.url + '/_sim/fault')
    def wish(self, symbol='ETHUSDT', side='BUY', usdt=900., **kw): return wish(self.journal, self.venue.now, symbol, side, float(self.venue.mark(symbol)), usdt, **kw)

    def step(self, n=1, ms=0):
        for _ in range(n):
            if ms: self.run.advance(ms)
            out = self.gateway.step()
        return out

    def orders(self, **where):
        t = schema.orders
        return self.journal.rows(sa.select(t).where(*[t.c[k] == v for k, v in where.items()]).order_by(t.c.created_at, t.c.id))

    def agree(self):
        "Journal and exchange agree on quantities, resting orders and trades"
        g, truth = self.gateway, read(self.gateway.client, self.venue.now)
        assert differences({s: h.qty for s, h in g.ledger.held.items()}, list(g.ledger.orders.values()), truth) == []
        theirs = {f"{t['symbol']}:{t['id']}": (Decimal(t['qty']), Decimal(t['price']), Decimal(t['commission'])) for t in self.venue.trades}
        ours = {r['id']: (Decimal(r['qty']), Decimal(r['price']), Decimal(r['fee'])) for r in self.journal.rows(schema.fills)}
        assert ours == theirs
        rows = {r['symbol']: Decimal(r['qty']) for r in self.journal.rows(schema.positions)}
        assert rows == {s: p[0] for s, p in truth.positions.items()}

    def protected(self):
        "Every position has a live stop on its whole quantity"
        for p in self.venue.account.held():
            stops = [a for a in self.venue.waiting[p.symbol].values() if a.type == 'STOP_MARKET' and a.reduce_only and a.buy == (p.qty < 0)]
            assert sum(a.qty for a in stops) >= abs(p.qty), p.symbol

    def entries(self): return [o for o in self.venue.orders.values() if '-entry' in o.client]


@pytest.fixture
def play(candles, tmp_path):
    p = Play(candles, tmp_path)
    yield p
    p.run.stop(); p.journal.close()


LOST = [('before_apply', {'http': UNKNOWN_503}), ('after_apply', {'http': UNKNOWN_503}), ('instead', {'http': [502, {}]}), ('after_apply', {'http': [200, {}]}),
        ('after_apply', {'http': [200, {'code': -2013, 'msg': 'x'}]}), ('after_apply', {'http': [200, []]}), ('before_apply', {'reset': True}), ('after_apply', {'reset': True}),
        ('before_apply', {'hang': 2.5}), ('after_apply', {'hang': 2.5}), ('after_apply', {'http': [408, {'code': -1007, 'msg': 'Timeout'}]}),
        ('after_apply', {'http': [200, {'orderId': 1, 'status': 'WHAT'}]})]


@pytest.mark.parametrize('phase, effect', LOST, ids=lambda x: x if isinstance(x, str) else json.dumps(x)[:24])
def test_an_entry_of_unknown_fate_is_never_sent_twice(play, phase, effect):
    play.fault(ORDER, phase, effect, symbol='ETHUSDT')
    i = play.wish(); play.step()
    if 'hang' in effect: time.sleep(2.6)
    play.step(4, ms=15_000); play.step(2, ms=MINUTE)
    mine = [o for o in play.entries() if o.client == f'ql-{i.id}-entry0']
    if 'hang' not in effect: assert len(mine) == (1 if phase == 'after_apply' else 0)
    assert len(mine) <= 1
    (row,) = play.orders(intent_id=i.id, role='entry')
    assert row['state'] == ('filled' if mine else 'dead')
    assert len({f['id'] for f in play.journal.rows(schema.fills)}) == len(mine)
    play.protected(); play.agree()


def test_while_unknown_the_symbol_is_locked_and_counted(play):
    play.fault(ORDER, 'instead', {'http': UNKNOWN_503})
    play.wish(); play.step()
    assert play.gateway.book().pending['ETHUSDT'] > 800
    again = play.wish('ETHUSDT', 'SELL', 500.); play.step()
    v = play.journal.one(sa.select(schema.verdicts).where(schema.verdicts.c.intent_id == again.id))
    assert v['outcome'] == 'rejected' and Reason.POSITION_EXISTS in v['reasons']
    assert not play.entries()


@pytest.mark.parametrize('code, status', ((-4120, 400), (-4045, 400), (-1102, 400)))
def test_a_refused_stop_closes_the_position_in_time(play, code, status):
    play.fault(ALGO, 'instead', {'http': [status, {'code': code, 'msg': 'Order type not supported for this endpoint.'}]}, count=99)
    i = play.wish(); play.step()
    assert not play.venue.account.held()
    play.step(1, ms=MINUTE)
    (out,) = play.journal.rows(schema.outcomes)
    assert out['intent_id'] == i.id and out['reason'] == Reason.NAKED_DEADLINE and out['closed_at'] - out['opened_at'] <= 10_000
    assert any(a['code'] == Reason.PROTECT and a['level'] == 'critical' for a in play.journal.rows(schema.alerts))
    assert play.orders(role='close')[0]['parent_id'] == f'ql-{i.id}-entry0'
    play.agree()


def test_with_time_left_the_stop_is_tried_again_before_the_deadline(play):
    play.gateway.guardian.pace_ms = 1000
    play.fault(ALGO, 'instead', {'http': [400, {'code': -4120, 'msg': 'x'}]}, count=2, type='STOP_MARKET')
    play.wish(); play.step()
    assert play.venue.account.held() and play.gateway.summary()['naked'] == 1
    play.step(1, ms=2000)
    play.protected(); play.agree()
    rows = play.journal.rows(schema.protections)
    assert [r['state'] for r in rows] == ['naked', 'protected'] and rows[-1]['naked_ms'] == 2000


@pytest.mark.parametrize('phase', ('before_apply', 'after_apply', 'instead'))
@pytest.mark.parametrize('effect', ({'http': UNKNOWN_503}, {'reset': True}, {'hang': 2.5}), ids=('503', 'reset', 'hang'))
def test_an_unknown_stop_is_placed_again_and_never_more_than_two_live(play, phase, effect):
    play.fault(ALGO, phase, effect, type='STOP_MARKET')
    play.wish(); play.step()
    play.protected()
    time.sleep(2.6 if 'hang' in effect else 0)
    assert sum(a.type == 'STOP_MARKET' for a in play.venue.waiting['ETHUSDT'].values()) <= 2
    play.step(2, ms=MINUTE)
    assert sum(a.type == 'STOP_MARKET' for a in play.venue.waiting['ETHUSDT'].values()) == 1
    play.protected(); play.agree()


def test_a_breached_stop_closes_at_market(play):
    play.fault(ALGO, 'instead', {'http': [400, {'code': -2021, 'msg': 'Order would immediately trigger.'}]}, type='STOP_MARKET')
    i = play.wish(); play.step(); play.step(1, ms=MINUTE)
    assert not play.venue.account.held() and not play.venue.waiting.get('ETHUSDT')
    (out,) = play.journal.rows(schema.outcomes)
    assert (out['intent_id'], out['reason']) == (i.id, Reason.STOP_BREACHED)
    assert not play.gateway.tripped and play.gateway.desk.errors.get('ETHUSDT', 0) == 0
    play.agree()


def test_a_target_that_is_already_reached_is_taken_at_market(play):
    play.fault(ALGO, 'instead', {'http': [400, {'code': -2021, 'msg': 'Order would immediately trigger.'}]}, type='TAKE_PROFIT_MARKET', closePosition='true')
    play.wish(); play.step(); play.step(1, ms=MINUTE)
    assert [r['reason'] for r in play.journal.rows(schema.outcomes)] == [Reason.TAKE_PROFIT]
    play.agree()


@pytest.mark.parametrize('phase', ('before_apply', 'after_apply'))
def test_an_unknown_close_ends_flat_and_never_flips(play, phase):
    play.wish(); play.step()
    play.fault(ORDER, phase, {'http': UNKNOWN_503}, reduceOnly='true')
    play.wish(side='SELL', action='close'); play.step(); play.step(3, ms=MINUTE)
    kill.put(play.home, 'FLATTEN', 'test', 'test', at=0)
    play.step(2, ms=MINUTE)
    assert not play.venue.account.held() and not play.venue.waiting
    assert len(play.journal.rows(schema.outcomes)) == 1
    play.agree()


def test_reduce_only_refused_because_it_is_gone(play):
    play.wish(); play.step()
    h = play.gateway.ledger.held['ETHUSDT']
    other = connect(play.settings)
    other.futures_create_order(symbol='ETHUSDT', side='SELL', type='MARKET', quantity=str(h.qty), reduceOnly='true', newClientOrderId='by-hand')
    play.wish(side='SELL', action='close'); play.gateway.account = lambda fresh: True
    play.step()
    del play.gateway.account
    play.step(2, ms=MINUTE)
    (out,) = play.journal.rows(schema.outcomes)
    assert out['reason'] == Reason.FOREIGN and not play.venue.waiting.get('ETHUSDT')
    assert 'by-hand' in play.orders(role='external')[0]['error']
    play.agree()


def test_part_of_an_entry_is_protected_and_the_rest_is_taken_back():
    stage = Stage(SYMBOLS); venue = stage.venue
    g = Gateway(stage.settings, stage.home, stage.journal, stage.client); g.start()
    venue.faults.add({'match': {'symbol': 'ETHUSDT', 'type': 'MARKET'}, 'effect': 'partial', 'args': {'frac': .37}})
    i = stage.wish('ETHUSDT', 'BUY', 900.); g.step()
    (o,) = [o for o in venue.orders.values() if '-entry' in o.client]
    stops = lambda: [a.qty for a in venue.waiting['ETHUSDT'].values() if a.type == 'STOP_MARKET']
    assert 0 < o.executed < o.qty and stops() == [o.executed] == [g.ledger.held['ETHUSDT'].qty] and not o.open
    for _ in range(2): stage.advance(MINUTE); g.step()
    assert g.ledger.orders[o.client].state in (State.CANCELED, State.EXPIRED) and g.ledger.orders[o.client].filled == o.executed
    assert g.book().pending == {} and len(stops()) == 1
    assert not [a for a in stage.journal.rows(schema.alerts) if a['level'] == 'critical']
    stage.close()


def rise(play, by='1.02'):
    "As if the position had been entered lower: its profit is now past the start of the trail"
    h = play.gateway.ledger.held['ETHUSDT']
    play.gateway.ledger.held['ETHUSDT'] = type(h)(**h.__dict__ | {'price': h.price/Decimal(by), 'best': h.mark*Decimal('1.008')})
    return play.gateway.ledger.held['ETHUSDT']


def test_a_trailing_stop_is_placed_before_the_old_one_goes(play):
    play.wish(); play.step(); seen = []
    play.venue.listeners.append(lambda e: seen.append((e['o']['X'], e['o']['o'])) if e['e'] == 'ALGO_UPDATE' else None)
    play.gateway.guardian.tend(rise(play)); play.gateway.ledger.commit()
    stops = [x for x in seen if x[1] == 'STOP_MARKET']
    assert stops == [('NEW', 'STOP_MARKET'), ('CANCELED', 'STOP_MARKET')]
    assert [r['reason'] for r in play.orders(role='stop')] == ['protect', 'trail']
    play.protected()


def test_if_the_new_stop_fails_the_old_one_stays(play):
    play.wish(); play.step()
    play.fault(ALGO, 'instead', {'http': UNKNOWN_503}, count=9)
    play.gateway.guardian.tend(rise(play)); play.gateway.ledger.commit()
    assert [(r['state'], r['reason']) for r in play.orders(role='stop')] == [('acked', 'protect'), ('unknown', 'trail')]
    play.protected(); play.heal()
    play.step(1, ms=MINUTE); play.protected(); assert play.venue.account.held()


def test_leverage_of_unknown_fate_waits_and_the_intent_is_used_once(play):
    play.fault(('POST', '/fapi/v1/leverage'), 'instead', {'http': UNKNOWN_503})
    i = play.wish(); play.step()
    assert not play.entries() and not play.journal.rows(schema.verdicts)
    play.step(2, ms=1000)
    assert [o.client for o in play.entries()] == [f'ql-{i.id}-entry0']


def test_an_unreadable_account_begins_nothing_but_still_guards(play):
    play.wish(); play.step()
    for path in ('/fapi/v3/account', '/fapi/v3/positionRisk', '/fapi/v1/openAlgoOrders', '/fapi/v1/time'):
        play.fault(('GET', path), 'instead', {'http': [200, {'totalWalletBalance': 'NaN', 'totalUnrealizedProfit': '0'}]})
        play.wish('SOLUSDT'); out = play.step(1)
        assert 'error' in out and len(play.entries()) == 1, path
        play.heal()
    play.step(); assert len(play.entries()) == 2
    play.protected(); play.agree()


def test_refusals_in_a_row_block_the_symbol(play):
    play.fault(ORDER, 'instead', {'http': [400, {'code': -2019, 'msg': 'Margin is insufficient.'}]}, count=9)
    for k in range(3): play.wish(usdt=500. + 50*k); play.step(1, ms=1000)
    assert play.gateway.desk.breakers.active() == {'ETHUSDT': Reason.BREAKER_SYMBOL}
    play.heal(); i = play.wish(usdt=600.); play.step(1, ms=1000)
    assert Reason.BREAKER_SYMBOL in play.journal.one(sa.select(schema.verdicts).where(schema.verdicts.c.intent_id == i.id))['reasons']
    j = play.wish('SOLUSDT'); play.step()
    assert play.orders(intent_id=j.id, role='entry')[0]['state'] == 'filled'


def test_the_loss_of_a_day_closes_everything_and_stays_tripped(play):
    with play.journal.write() as c: c.execute(schema.equity.update().values(equity=20_000., day_open=20_000.))
    play.gateway.day = None
    play.gateway.money = lambda *a: None
    play.gateway.day = (START, 20_000.); play.wish(usdt=500.); play.wish('SOLUSDT', usdt=400.)
    play.gateway.day = (START, 14_000.); play.step()
    assert len(play.venue.account.held()) == 2
    del play.gateway.money; play.gateway.day = None
    play.step(); assert play.venue.account.held(), 'one reading may be a misprint'
    play.step(1, ms=1000)
    assert not play.venue.account.held() and play.gateway.desk.breakers.active() == {'global': Reason.DAILY_DRAWDOWN}
    play.restart(); i = play.wish('XRPUSDT'); play.step(1, ms=1000)
    assert Reason.BREAKER_GLOBAL in play.journal.one(sa.select(schema.verdicts).where(schema.verdicts.c.intent_id == i.id))['reasons']
    assert {r['reason'] for r in play.journal.rows(schema.outcomes)} == {Reason.FLATTEN}
    play.agree()


@pytest.mark.parametrize('text, entries', (('{"level": "PAUSE", "why": "x", "by": "x", "at": 1}', 0), ('HALT', 0), ('garbage', 0), ('', 0)))
def test_the_kill_switch_stops_entries_even_when_it_cannot_be_read(play, text, entries):
    play.home.kill.write_text(text)
    i = play.wish(); play.step()
    assert Reason.KILL_SWITCH in play.journal.one(sa.select(schema.verdicts).where(schema.verdicts.c.intent_id == i.id))['reasons']
    assert len(play.entries()) == entries


def test_orphans_go_and_foreign_orders_stay(play):
    other = connect(play.settings)
    def algo(name): other.futures_create_algo_order(symbol='BTCUSDT', side='SELL', type='STOP_MARKET', algoType='CONDITIONAL', triggerPrice='50000', closePosition='false', quantity='0.002', reduceOnly='true', clientAlgoId=name)
    algo('ql-i00000000000000ff-stop0'); algo('manual-1')
    play.step(2, ms=1000)
    assert [a.client for a in play.venue.waiting['BTCUSDT'].values()] == ['manual-1']
    codes = [a['code'] for a in play.journal.rows(schema.alerts)]
    assert codes.count(Reason.ORPHAN) == 1 and codes.count(Reason.FOREIGN) == 1


def test_a_foreign_position_is_reported_counted_and_left_alone(play):
    connect(play.settings).futures_create_order(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.01')
    i = play.wish('BTCUSDT', 'BUY'); play.step(2, ms=1000)
    assert Reason.POSITION_EXISTS in play.journal.one(sa.select(schema.verdicts).where(schema.verdicts.c.intent_id == i.id))['reasons']
    assert [a['code'] for a in play.journal.rows(schema.alerts)].count(Reason.FOREIGN) >= 1
    assert play.venue.account.position('BTCUSDT').qty == Decimal('0.01') and not play.venue.waiting.get('BTCUSDT')


def test_a_message_that_is_not_the_intent_is_put_aside(play):
    i = play.wish(usdt=500.)
    with play.journal.write() as c:
        payload = play.journal.one(sa.select(schema.outbox.c.payload))['payload']
        c.execute(schema.outbox.update().values(payload=payload | {'notional_usdt': 2000.}))
    play.step()
    assert not play.entries() and not play.journal.rows(schema.verdicts)
    assert play.gateway.consumer.take(play.venue.now) == []


def test_the_same_intent_twice_is_one_order(play):
    i = play.wish(); play.step()
    with play.journal.write() as c: c.execute(schema.deliveries.update().values(acked_at=None))
    play.step(2, ms=1000)
    assert len(play.entries()) == 1 and len(play.journal.rows(schema.verdicts)) == 1


def test_hedge_mode_is_refused(play):
    play.fault(('GET', '/fapi/v1/accountConfig'), 'instead', {'http': [200, {'canTrade': True, 'dualSidePosition': True, 'multiAssetsMargin': False}]})
    with pytest.raises(GatewayRefused, match='one-way'): play.restart()


def test_it_does_not_start_when_it_cannot_compare(play):
    play.fault(('GET', '/fapi/v3/positionRisk'), 'instead', {'http': [500, {}]})
    with pytest.raises(GatewayRefused, match='cannot be compared'): play.restart()


def test_one_row_of_equity_per_instant(play):
    play.step(3); play.step(2, ms=MINUTE); play.step(2)
    at = [r['at'] for r in play.journal.rows(schema.equity)]
    assert len(at) == len(set(at)) == 3


def test_positions_live_through_hours_and_every_outcome_adds_up(play):
    for s, side in zip(SYMBOLS, ('BUY', 'SELL', 'BUY', 'SELL')): play.wish(s, side, 800.)
    play.step(); play.step(47*12, ms=5*MINUTE)
    play.protected(); play.agree()
    done = play.journal.rows(schema.outcomes)
    assert done and all(r['reason'] in ('stop_loss', 'take_profit', 'trail', 'half_taken') for r in done)
    for o in done:
        rows = play.journal.rows(sa.select(schema.fills).join(schema.orders).where(schema.orders.c.intent_id == o['intent_id']))
        assert o['realized'] == pytest.approx(sum(float(r['realized']) for r in rows)) and o['fees'] == pytest.approx(sum(float(r['fee']) for r in rows))
    money = sum(o['realized'] - o['fees'] + o['funding'] for o in done)
    if len(done) == 4: assert float(play.venue.account.wallet) == pytest.approx(14_000 + money, abs=.01)
    pulses = {r['part']: r['count'] for r in play.journal.rows(schema.pulses)}
    assert pulses['guard'] == pulses['gateway'] and 0 <= pulses['gateway'] - pulses['consumer'] <= 2
    assert max(r['naked_ms'] for r in play.journal.rows(schema.protections)) == 0


def test_only_one_gateway_per_home(tmp_path):
    held = hold(Home(tmp_path), 'gateway')
    with pytest.raises(ValueError, match='another gateway'): hold(Home(tmp_path), 'gateway')
    held.close(); hold(Home(tmp_path), 'gateway').close()


def test_the_gateway_imports_light():
    code = 'import sys, quantlib.execution.gateway; print(sorted(set(sys.modules) & {"torch", "xgboost", "lightgbm", "sklearn", "vectorbt", "matplotlib", "deltalake", "papermill", "talib", "quantlib.sandbox.exchange"}))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
