"The gateway against an exchange that spoils any reply in any way, against a strange hand and against a reset account"
import copy, json, random
from decimal import Decimal

import pytest, requests
import sqlalchemy as sa

from quantlib.core.clock import MINUTE
from quantlib.core.settings import Home
from quantlib.core.types import Reason
from quantlib.execution import kill
from quantlib.execution.client import Garbled, whole
from quantlib.execution.gateway import Gateway, GatewayRefused
from quantlib.execution.orders import seen
from quantlib.execution.reconcile import differences, read, read_fill
from quantlib.execution.rehearsal import START, Stage, Wire
from quantlib.journal import schema
from quantlib.journal.store import Journal

SYMBOLS = ('BTCUSDT', 'ETHUSDT', 'SOLUSDT', 'XRPUSDT', 'DOGEUSDT', 'BNBUSDT')
WRONG = [None, 'NaN', 'Infinity', '', {}, [], 'abc', True, -1, '-5', '1e30', 0, 10**18]
KINDS = ['lost before', 'lost after', '503 before', '503 after', 'wrong', 'wrong', 'wrong', 'cut', 'empty', 'html', 'refused', 'error in 200']


@pytest.fixture
def stage():
    s = Stage(SYMBOLS)
    yield s
    s.close()


def begin(stage):
    g = Gateway(stage.settings, stage.home, stage.journal, stage.connect())
    g.start()
    return g


def spoil(stage, method, path, status, body):
    "Put `body` in the place of every reply of an endpoint"
    stage.wire.spoil = lambda m, p: (status, json.dumps(body)) if m == method and p.split('?')[0] == path else None


def minutes(stage, g, n=1, ms=MINUTE):
    for _ in range(n): stage.venue.advance(stage.venue.now + ms); out = g.step()
    return out


def spots(x, path=()):
    "Every place in a JSON value where something else may stand"
    for k, v in x.items() if isinstance(x, dict) else list(enumerate(x))[:6] if isinstance(x, list) else ():
        yield path + (k,)
        yield from spots(v, path + (k,))


def wrong(body, rng):
    "`body` with one wrong value, or one key less"
    body = copy.deepcopy(body); places = list(spots(body))
    if not places: return rng.choice(WRONG)
    *way, last = rng.choice(places); x = body
    for k in way: x = x[k]
    if isinstance(x, dict) and rng.random() < .25: del x[last]
    else: x[last] = rng.choice(WRONG)
    return body


class Liar(Wire):
    "Spoils a share `p` of all requests"
    def __init__(self, venue, rng): super().__init__(venue); self.rng, self.p, self.lies = rng, 0, 0

    def _go(self, method, uri, params=None, data=None, headers=None, timeout=None):
        rng = self.rng
        kind = rng.choice(KINDS) if rng.random() < self.p else None
        if kind is None: return super()._go(method, uri, params=params, data=data)
        self.lies += 1
        if kind == 'lost before': raise requests.ReadTimeout('lost')
        if kind == '503 before': return self.reply(503, '{"code":-1000,"msg":"Unknown error"}')
        if kind == 'refused': return self.reply(400, json.dumps(dict(code=rng.choice([-2019, -4120, -1102, -2021, -2022, -1111] if method != 'GET' else [-1102, -1021, -1003]), msg='no')))
        r = super()._go(method, uri, params=params, data=data)
        if kind == 'lost after': raise requests.ConnectionError('lost')
        if kind == '503 after': return self.reply(503, '<html>')
        text = r.text
        return self.reply(r.status_code, {'wrong': lambda: json.dumps(wrong(r.json(), rng)), 'cut': lambda: text[:rng.randrange(len(text) or 1)], 'empty': lambda: '',
            'html': lambda: '<html>ok</html>', 'error in 200': lambda: '{"code":-2013,"msg":"x"}'}[kind]())

    def reply(self, status, text):
        r = requests.Response(); r.status_code, r._content = status, text.encode()
        return r


def bare(venue):
    "Positions without a stop on their whole quantity, and symbols with more than two stops"
    stops = lambda p: [a for a in venue.waiting.get(p.symbol, {}).values() if a.type == 'STOP_MARKET' and a.reduce_only and a.buy == (p.qty < 0)]
    return [p.symbol for p in venue.account.held() if sum(a.qty for a in stops(p)) < abs(p.qty) or len(stops(p)) > 2]


def restarted(stage, wire):
    "A new gateway, tried until the exchange can be read"
    for k in range(40):
        if k >= 12: wire.p = 0
        try:
            g = Gateway(stage.settings, stage.home, stage.journal, stage.connect()); g.start()
            return g
        except GatewayRefused: stage.venue.advance(stage.venue.now + 1000)
    raise AssertionError('the gateway never starts')


@pytest.mark.parametrize('seed', (103, 514, 516))
def test_any_reply_may_be_spoiled_and_the_story_stays_one(seed):
    rng, stage = random.Random(seed), Stage(SYMBOLS, seed=seed % 5)
    venue, wire = stage.venue, Liar(stage.venue, rng)
    stage.wire = stage.client.session = wire
    g = begin(stage)
    for phase in range(10):
        wire.p = p = rng.choice([.05, .15, .4, .8])
        for _ in range(rng.randrange(3, 12)):
            for _ in range(rng.choice([0, 1, 1, 2, 3])):
                s = rng.choice(SYMBOLS); h = g.ledger.held.get(s)
                if h and rng.random() < .5: stage.wish(s, h.exit, action='close')
                else: stage.wish(s, rng.choice(['BUY', 'SELL']), rng.choice([150., 500., 2000.]), stop=rng.choice([.01, .02]))
            g.step(); venue.advance(venue.now + rng.randrange(2_000, 30_000))
            if rng.random() < .08: g = restarted(stage, wire); wire.p = p
        wire.p = 0
        for s in g.desk.breakers.active(): g.desk.breakers.clear(s, 'next phase', venue.now)
        minutes(stage, g, 1, 5_000)
        if bare(venue): minutes(stage, g, 1, 5_000)
        assert not bare(venue), phase
    minutes(stage, g, 50)
    orders = stage.journal.rows(schema.orders)
    entries = [o.client for o in venue.orders.values() if '-entry' in o.client]
    assert len(entries) == len(set(entries)) > 5 and wire.lies > 50 and all(c.endswith('-entry0') for c in entries)
    assert set(entries) <= {o['id'] for o in orders}
    assert differences({s: h.qty for s, h in g.ledger.held.items()}, list(g.ledger.orders.values()), read(g.client, venue.now)) == []
    number = lambda r, *keys: tuple(Decimal(r[k]) for k in keys)
    assert {r['id']: number(r, 'qty', 'price', 'fee') + (r['side'],) for r in stage.journal.rows(schema.fills)} == {
        f"{t['symbol']}:{t['id']}": number(t, 'qty', 'price', 'commission') + (t['side'],) for t in venue.trades}
    done = {r['intent_id'] for r in stage.journal.rows(schema.outcomes)}
    assert {o['intent_id'] for o in orders if o['role'] == 'entry' and Decimal(o['filled'])} == done | {h.intent.id for h in g.ledger.held.values()}
    assert not [o['id'] for o in orders if o['state'] in ('sending', 'unknown') or o['role'] == 'external']
    stage.close()


@pytest.mark.parametrize('status, body', ((503, {'code': -1000, 'msg': 'x'}), (200, {}), (200, [{'symbol': 'ETHUSDT', 'markPrice': 'NaN', 'time': 1}]), (200, [7])))
def test_unreadable_marks_do_not_end_the_gateway_and_lose_no_intent(stage, status, body):
    g = begin(stage); i = stage.wish('ETHUSDT', 'BUY', 900.)
    spoil(stage, 'GET', '/fapi/v1/premiumIndex', status, body)
    g.step()
    assert not g.ledger.held and not stage.journal.rows(schema.verdicts)
    stage.wire.spoil = lambda m, p: None
    minutes(stage, g)
    assert g.ledger.held['ETHUSDT'].intent.id == i.id and not bare(stage.venue)


@pytest.mark.parametrize('time', (True, None, 'abc', '1767225600000', 0, -1, 10**18, 1.5, {}))
def test_what_is_no_time_dates_nothing(stage, time):
    g = begin(stage); at = g.now
    spoil(stage, 'GET', '/fapi/v1/time', 200, {'serverTime': time})
    assert 'error' in g.step() and g.now == at == g.client.clock.now()
    assert {r['at'] for r in stage.journal.rows(schema.equity)} == {START}


TRADE = dict(id=5, orderId=9, symbol='ETHUSDT', side='BUY', qty='0.1', price='4000', commission='0.2', realizedPnl='0', maker=False, time=START)

@pytest.mark.parametrize('change', ({'side': 'null'}, {'side': None}, {'symbol': 'BTCUSDT'}, {'id': True}, {'id': 'abc'}, {'orderId': {}}, {'qty': '0'}, {'qty': '-1'}, {'qty': 'NaN'},
    {'price': '0'}, {'commission': '1e30'}, {'maker': 'yes'}, {'time': True}, {'time': -4}), ids=str)
def test_a_trade_that_makes_no_sense_is_not_booked(change):
    assert read_fill(TRADE, 'ETHUSDT').id == 'ETHUSDT:5'
    with pytest.raises(Garbled): read_fill(TRADE | change, 'ETHUSDT')


def test_more_than_was_asked_for_cannot_be_filled(stage):
    g = begin(stage); stage.wish('ETHUSDT', 'BUY', 900.); g.step()
    o = g.ledger.orders[g.ledger.held['ETHUSDT'].entry]
    for q in ('1e30', '-1', str(o.qty*2)):
        with pytest.raises(Garbled): seen(o, {'orderId': 7, 'status': 'FILLED', 'executedQty': q}, START)
    for x in (True, 'abc', {}, 0):
        with pytest.raises(Garbled): seen(o, {'orderId': x, 'status': 'FILLED'}, START)
    (fill,) = g.ledger.fills[o.intent_id]
    with pytest.raises(Garbled): g.ledger.book(o, type(fill)(**fill.__dict__ | {'id': 'ETHUSDT:77', 'qty': Decimal(3)}), START)
    assert g.ledger.held['ETHUSDT'].qty == o.qty == o.filled
    assert whole({'id': '12'}, 'id') == 12


@pytest.mark.parametrize('row', ({'markPrice': '-5'}, {'markPrice': '1e9'}, {'entryPrice': '0'}, {'symbol': True}), ids=str)
def test_a_picture_with_a_misprint_is_no_picture(stage, row):
    g = begin(stage); stage.wish('ETHUSDT', 'SELL', 900.); g.step()
    best = g.ledger.held['ETHUSDT'].best
    spoil(stage, 'GET', '/fapi/v3/positionRisk', 200, [stage.client.futures_position_information()[0] | row])
    assert 'error' in g.step() and g.ledger.held['ETHUSDT'].best == best


@pytest.mark.parametrize('answer', ({'leverage': 20, 'symbol': 'ETHUSDT'}, {'leverage': True, 'symbol': 'ETHUSDT'}, {'leverage': 5, 'symbol': 'BTCUSDT'}), ids=str)
def test_no_entry_on_a_leverage_that_is_not_ours(stage, answer):
    g = begin(stage); stage.wish('ETHUSDT', 'BUY', 900.)
    spoil(stage, 'POST', '/fapi/v1/leverage', 200, answer)
    g.step()
    assert not g.ledger.held and not stage.venue.account.held()
    stage.wire.spoil = lambda m, p: None
    minutes(stage, g); assert 'ETHUSDT' in g.ledger.held


def test_an_error_while_following_the_account_does_not_stop_the_guard(stage):
    g = begin(stage); stage.wish('ETHUSDT', 'BUY', 900.); g.step()
    g.dispute = lambda truth: 1/0
    stage.wish('SOLUSDT', 'BUY', 900.); before = stage.journal.one(sa.select(schema.pulses).where(schema.pulses.c.part == 'guard'))['count']
    minutes(stage, g)
    assert stage.journal.one(sa.select(schema.pulses).where(schema.pulses.c.part == 'guard'))['count'] == before + 1
    assert set(g.ledger.held) == {'ETHUSDT'}, 'nothing new begins on an account that was not understood'


@pytest.mark.parametrize('flatten', (False, True))
def test_a_reset_account_is_told_once_and_gets_no_orders(flatten):
    stage, fresh = Stage(SYMBOLS), Stage(SYMBOLS)
    g = begin(stage)
    for s in SYMBOLS[:3]: stage.wish(s, 'BUY', 700.)
    g.step(); assert len(g.ledger.held) == 3
    stage.wire.venue = stage.venue = fresh.venue
    if flatten: kill.put(stage.home, 'FLATTEN', 'test', 'test', at=0)
    g = begin(stage); minutes(stage, g, 3)
    sent = len(stage.journal.rows(schema.orders)); minutes(stage, g, 30)
    assert len(stage.journal.rows(schema.orders)) == sent <= 9 + 3*8
    told = [a for a in stage.journal.rows(schema.alerts) if 'was the account reset' in a['message']]
    assert len(told) == 3 and {a['level'] for a in told} == {'critical'}
    assert stage.journal.one(sa.select(schema.pulses).where(schema.pulses.c.part == 'gateway'))['detail']['differences'] == sorted(SYMBOLS[:3])
    stage.close(); fresh.close()


@pytest.mark.parametrize('side', ('BUY', 'SELL'))
def test_a_position_turned_round_by_a_strange_hand_is_protected_on_its_new_side(stage, side):
    g = begin(stage); i = stage.wish('ETHUSDT', side, 900.); g.step()
    h = g.ledger.held['ETHUSDT']
    stage.connect().futures_create_order(symbol='ETHUSDT', side=h.exit, type='MARKET', quantity=str(abs(h.qty)*2), newClientOrderId='by-hand')
    minutes(stage, g, 1, 5_000)
    turned = g.ledger.held['ETHUSDT']
    assert turned.qty == -h.qty and not bare(stage.venue) and turned.naked_since is None
    kill.put(stage.home, 'FLATTEN', 'test', 'test', at=0)
    minutes(stage, g, 2, 5_000)
    assert not stage.venue.account.held() and not stage.venue.waiting.get('ETHUSDT')
    assert [o['intent_id'] for o in stage.journal.rows(schema.outcomes)] == [i.id]


def test_a_foreign_position_is_a_difference(stage):
    g = begin(stage)
    stage.connect().futures_create_order(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.01', newClientOrderId='by-hand')
    minutes(stage, g)
    assert stage.journal.one(sa.select(schema.pulses).where(schema.pulses.c.part == 'gateway'))['detail']['differences'] == ['BTCUSDT']
    i = stage.wish('BTCUSDT', 'BUY', 900.); minutes(stage, g)
    assert {Reason.NOT_TRADABLE, Reason.POSITION_EXISTS} <= set(stage.journal.one(sa.select(schema.verdicts).where(schema.verdicts.c.intent_id == i.id))['reasons'])
    assert g.ledger.orders == {}


def test_an_empty_journal_leaves_the_stops_of_what_it_does_not_know(stage, tmp_path):
    "A second home on an account that holds something: it may not undress the positions of the first"
    g = begin(stage); stage.wish('ETHUSDT', 'BUY', 900.); g.step(); minutes(stage, g)
    rests = {a.client for a in stage.venue.waiting['ETHUSDT'].values()}
    journal = Journal(Home(tmp_path).journal)
    other = Gateway(stage.settings, Home(tmp_path), journal, stage.connect()); other.start(); minutes(stage, other, 3)
    assert rests and {a.client for a in stage.venue.waiting['ETHUSDT'].values()} == rests and not bare(stage.venue)
    assert {a['code'] for a in journal.rows(schema.alerts) if a['level'] == 'critical'} == {Reason.FOREIGN}
    journal.close()


@pytest.mark.parametrize('change', ({'action': 'foo'}, {'side': 'UP'}, {'regime': None}, {'more': 1}), ids=str)
def test_a_message_that_cannot_be_acted_on_is_put_aside_and_the_next_one_served(stage, change):
    from quantlib.core.ids import digest
    g = begin(stage); i = stage.wish('ETHUSDT', 'BUY', 900.); j = stage.wish('SOLUSDT', 'BUY', 900.)
    bad = stage.journal.one(sa.select(schema.intents.c.payload).where(schema.intents.c.id == i.id))['payload'] | change
    with stage.journal.write() as c:
        c.execute(schema.intents.update().where(schema.intents.c.id == i.id).values(payload=bad, payload_digest=digest(bad)))
        c.execute(schema.outbox.update().where(schema.outbox.c.key == i.id).values(payload=bad))
    g.step()
    assert set(g.ledger.held) == {'SOLUSDT'} and g.consumer.take(stage.venue.now) == []
    assert [a['cause'] for a in stage.journal.rows(schema.alerts) if a['code'] == Reason.BAD_NUMBER] == [i.id]


def test_what_goes_together_with_its_position_is_no_orphan(stage):
    g = begin(stage); stage.wish('ETHUSDT', 'BUY', 900., stop=0.01); g.step()
    for _ in range(60):
        minutes(stage, g, 20)
        if stage.journal.rows(schema.outcomes): break
    assert stage.journal.rows(schema.outcomes) and not stage.venue.waiting.get('ETHUSDT')
    assert not [a for a in stage.journal.rows(schema.alerts) if 'orphan' in a['message'] or a['code'] == Reason.ORPHAN]


def test_a_stop_that_was_lost_with_its_position_keeps_nobody_awake(stage):
    "The news that a stop is gone may come after the position is: there is nothing left to protect, and no reason to look every second"
    g = begin(stage)
    g.desk.lost['gone'] = Reason.STOP_LOST; assert g.urgent
    minutes(stage, g); assert not g.urgent and not g.desk.lost
