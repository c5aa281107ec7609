"The picture of the account does not depend on how often or in which order it is told"
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings, strategies as st

from quantlib.core.clock import DAY, HOUR, MINUTE
from quantlib.core.types import Intent, Reason, Regime, Side, SignalPath, Verdict
from quantlib.execution.client import Garbled
from quantlib.execution.orders import State, entry_of, guard_of
from quantlib.execution.reconcile import Difference, Truth, differences, external, heard_fill, income, money, read, read_fill, told, trades
from quantlib.execution.rehearsal import Stage
from quantlib.journal import schema
from quantlib.journal.store import Journal
from quantlib.sandbox.streams import mark_news

NOW = 1_746_835_200_000
INTENT = Intent('i0123456789abcdef', 'c0', 'ETHUSDT', 'open', Side.BUY, 900., 4000., .6, SignalPath.ENSEMBLE, Regime.RANGING, .01, .03, NOW + 1000)
ENTRY = replace(entry_of(INTENT, Verdict(INTENT.id, 'approved', 900., ('ok',), NOW), Decimal('0.2'), NOW), state=State.FILLED, filled=Decimal('0.2'))
STOP = replace(guard_of(ENTRY, 'stop', 0, Decimal('0.2'), Decimal('3950'), Reason.PROTECT, NOW), state=State.ACKED)
START = Truth(NOW, Decimal(14000), Decimal(0), asof=NOW)


def account(t, wb=None, **P):
    return dict(e='ACCOUNT_UPDATE', E=t, T=t, a=dict(m='ORDER', B=[dict(a='USDT', wb=str(wb))] if wb else [], P=[dict(s=s, pa=str(q), ep='4000' if q else '0', ps='BOTH') for s, q in P.items()]))

def algo(t, i, X): return dict(e='ALGO_UPDATE', E=t, T=t, o=dict(caid=f'ql-i0-stop{i}', aid=i + 1, s='ETHUSDT', S='SELL', o='STOP_MARKET', X=X, tp='3950', q='0.2'))
def order(t, i, X, z): return dict(e='ORDER_TRADE_UPDATE', E=t, T=t, o=dict(c=f'web_{i}', i=i + 1, s='ETHUSDT', S='SELL', o='LIMIT', X=X, x='NEW', z=z, q='1', p='5000'))
def mark(t, p): return [dict(e='markPriceUpdate', E=t, s=s, p=p) for s in ('ETHUSDT', 'BTCUSDT', 'NOWHERE')]

events = st.one_of(
    st.builds(lambda s, q, w: ('account', s, q, w), st.sampled_from(['ETHUSDT', 'BTCUSDT']), st.integers(-3, 3), st.one_of(st.none(), st.integers(13_000, 15_000))),
    st.builds(lambda i, X: ('algo', i, X, 0), st.integers(0, 2), st.sampled_from(['NEW', 'TRIGGERING', 'TRIGGERED', 'FINISHED', 'CANCELED', 'REJECTED', 'EXPIRED'])),
    st.builds(lambda i, X: ('order', i, X, 0), st.integers(0, 2), st.sampled_from(['NEW', 'PARTIALLY_FILLED', 'FILLED', 'CANCELED'])),
    st.builds(lambda p: ('mark', p, 0, 0), st.integers(3000, 5000)))

def event(t, e):
    kind, a, b, c = e
    if kind == 'account': return account(t, c, **{a: b})
    return algo(t, a, b) if kind == 'algo' else order(t, a, b, '0') if kind == 'order' else mark(t, str(a))


@settings(deadline=None, max_examples=250)
@given(st.data(), st.lists(events, max_size=10))
def test_duplicates_and_disorder_change_nothing(data, story):
    story = [event(NOW + 1 + n, e) for n, e in enumerate(story)]
    straight = START
    for e in story: straight = told(straight, e)
    jumbled = START
    for e in data.draw(st.permutations(story + data.draw(st.lists(st.sampled_from(story), max_size=4)) if story else [])): jumbled = told(jumbled, e)
    for t in (straight, jumbled):
        for e in story: assert told(t, e) in (t, replace(t, stamps=told(t, e).stamps)) or any(isinstance(x, list) for x in story)
    got, want = ((t.wallet, {s: p[0] for s, p in t.positions.items()}, {i: r['algoStatus'] for i, r in t.algos.items()}, {i: r['status'] for i, r in t.orders.items()}) for t in (jumbled, straight))
    assert got == want
    assert jumbled.unrealized == sum((q*(m - e) for q, e, m in jumbled.positions.values()), Decimal(0))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(-9, 0), events), max_size=6))
def test_what_happened_before_the_read_is_known(old):
    for dt, e in old:
        if e[0] != 'mark' and dt < 0: assert told(START, event(NOW + dt, e)) in (START, replace(START, at=NOW))


@settings(deadline=None, max_examples=300)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4) | st.sampled_from(['ACCOUNT_UPDATE', 'ALGO_UPDATE', 'ORDER_TRADE_UPDATE', 'markPriceUpdate', 'USDT', 'ETHUSDT', '1', 'NaN', NOW + 5]),
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.sampled_from(list('eoasTEBPXpq') + ['wb', 'pa', 'ep', 'ps', 'caid', 'aid', 'z']), c, max_size=7), max_leaves=14))
def test_garbage_is_refused_or_ignored(x):
    t = replace(START, positions={'ETHUSDT': (Decimal(1), Decimal(4000), Decimal(4000))})
    try: got = told(t, x)
    except Garbled: return
    assert got.wallet.is_finite() and got.unrealized.is_finite() and all(n.is_finite() for p in got.positions.values() for n in p)
    assert all(e > 0 and m > 0 and q for q, e, m in got.positions.values())


@settings(deadline=None, max_examples=150)
@given(st.data(), st.booleans(), st.booleans(), st.sampled_from(['0.2', '0.1', '-0.2', None]))
def test_differences_do_not_depend_on_order_and_say_all(data, listed, foreign, qty):
    algos = {STOP.id: dict(algoId=1, clientAlgoId=STOP.id, symbol='ETHUSDT', algoStatus='NEW')} if listed else {}
    orders = {'web_1': dict(orderId=5, clientOrderId='web_1', symbol='XRPUSDT', status='NEW'), 'ql-old-entry0': dict(orderId=6, clientOrderId='ql-old-entry0', symbol='ETHUSDT', status='NEW')} if foreign else {}
    t = replace(START, positions={'ETHUSDT': (Decimal(qty), Decimal(4000), Decimal(4000))} if qty else {}, algos=algos, orders=orders)
    want = differences({'ETHUSDT': Decimal('0.2')}, [ENTRY, STOP], t)
    assert differences({'ETHUSDT': Decimal('0.2')}, data.draw(st.permutations([ENTRY, STOP, STOP])), replace(t, orders=dict(data.draw(st.permutations(list(orders.items())))))) == want
    assert {(d.kind, d.what, d.algo) for d in want} == ({('quantity', 'position', False)} if qty != '0.2' else set()) | ({('missing', STOP.id, True)} if not listed else set()) | \
        ({('foreign', 'web_1', False), ('orphan', 'ql-old-entry0', False)} if foreign else set())


def test_the_child_of_a_stop_is_no_stranger():
    t = replace(START, orders={'x': dict(orderId=900, clientOrderId='x', symbol='ETHUSDT', status='NEW')})
    fired = replace(STOP, child_id='900', triggered_at=NOW)
    assert differences({}, [fired], t) == [] and [d.kind for d in differences({}, [STOP], t)] == ['missing', 'foreign']


@pytest.fixture(scope='module')
def stage():
    s = Stage(direct=True, hours=40); s.events = []
    s.venue.limits['weight'] = 10**9
    s.venue.listeners.append(s.events.append)
    yield s
    s.close()


def same(a, b):
    assert (a.wallet, a.algos.keys(), a.orders.keys()) == (b.wallet, b.algos.keys(), b.orders.keys())
    assert {s: (p[0], round(p[1], 6)) for s, p in a.positions.items()} == {s: (p[0], round(p[1], 6)) for s, p in b.positions.items()}
    assert abs(a.unrealized - b.unrealized) < Decimal('0.0001')


def test_the_stream_tells_what_a_read_shows(stage):
    c, v = stage.client, stage.venue
    t = read(c, v.now)
    def order(**p): return c.futures_create_order(**p)
    order(symbol='ETHUSDT', side='BUY', type='MARKET', quantity='0.5')
    px = float(v.mark('ETHUSDT'))
    for f, kind, i in ((.99, 'STOP_MARKET', 'a'), (1.004, 'TAKE_PROFIT_MARKET', 'b'), (.97, 'STOP_MARKET', 'c')):
        order(symbol='ETHUSDT', side='SELL', type=kind, quantity='0.2', triggerPrice=f'{px*f:.2f}', reduceOnly='true', workingType='MARK_PRICE', clientAlgoId=f'ql-{i}')
    order(symbol='SOLUSDT', side='SELL', type='LIMIT', timeInForce='GTC', price=f"{float(v.mark('SOLUSDT'))*1.01:.2f}", quantity='10', newClientOrderId='web_1')
    c.futures_cancel_algo_order(clientAlgoId='ql-c')
    for _ in range(20):
        stage.advance(30*MINUTE)
        for e in stage.events: t = told(t, e)
        t = told(t, [mark_news(v, s) for s in v.listed()])
        stage.events.clear()
        same(t, read(c, v.now))


def test_fills_are_the_same_heard_or_read(stage):
    heard = []
    stage.venue.listeners.append(lambda e: heard.append(heard_fill(e)))
    at = stage.venue.now
    stage.client.futures_create_order(symbol='XRPUSDT', side='BUY', type='MARKET', quantity='100')
    stage.client.futures_create_order(symbol='XRPUSDT', side='SELL', type='MARKET', quantity='100', reduceOnly='true')
    heard = [f for f in heard if f]
    assert heard == trades(stage.client, 'XRPUSDT', at, stage.venue.now) and len(heard) >= 2
    assert sum(f.signed for f in heard) == 0


@pytest.mark.parametrize('bad', (dict(l='NaN'), dict(L='-1'), dict(l='0'), dict(t=None), dict(S='HOLD'), dict(m='yes'), dict(n='99999999'), dict(s=None), dict(T=0), dict(rp=None)))
def test_an_odd_execution_is_refused(bad):
    good = dict(x='TRADE', X='FILLED', s='BTCUSDT', S='BUY', i=900, t=501, l='0.008', z='0.008', L='104000.0', n='0.416', N='USDT', rp='0', m=False, T=NOW)
    with pytest.raises(Garbled): heard_fill(dict(e='ORDER_TRADE_UPDATE', o=good | bad))
    assert heard_fill(dict(e='ORDER_TRADE_UPDATE', o=good | dict(x='NEW'))) is None and heard_fill(dict(e='ORDER_TRADE_UPDATE', o=good | dict(n='0.001', N='BNB'))).fee == 0


def test_liquidation_and_its_kin_are_told_apart():
    assert [external(n) for n in ('autoclose-1700', 'adl_autoclose', 'settlement_autoclose-1', 'web', 'ql-autoclose-')] == [Reason.LIQUIDATED, Reason.DELEVERAGED, Reason.SETTLED, Reason.FOREIGN, Reason.FOREIGN]


class Pages:
    "An exchange with a long history, at most 1000 rows a page"
    def __init__(self, rows): self.rows, self.asked = rows, 0
    def futures_income_history(self, startTime, endTime, limit): self.asked += 1; return [r for r in self.rows if startTime <= r['time'] <= endTime][:limit]


def test_income_is_read_page_by_page_and_once():
    rows = [dict(incomeType='COMMISSION', income='-0.1', asset='USDT' if n % 7 else 'BNB', time=NOW + n*1000//3, tranId=n + 1, tradeId=str(n), symbol='ETHUSDT') for n in range(2500)]
    got = income(Pages(rows), NOW, NOW + 20*DAY)
    assert len(got) == len({r['id'] for r in got}) == sum(n % 7 != 0 for n in range(2500)) and got == sorted(got, key=lambda r: (r['at'], r['id']))
    for bad in (dict(income='NaN'), dict(incomeType=None), dict(tranId=None), dict(tranId=''), dict(asset=None), dict(asset='-USDT'), dict(incomeType=''), dict(symbol=''), dict(tradeId=None)):
        with pytest.raises(Garbled): income(Pages([rows[1] | bad]), NOW, NOW + DAY)
    with pytest.raises(Garbled, match='of which trade'): income(Pages([{k: v for k, v in rows[1].items() if k != 'tradeId'}]), NOW, NOW + DAY)
    (paid,) = income(Pages([dict(incomeType='TRANSFER', income='5', asset='USDT', time=NOW, tranId=7, symbol='')]), NOW, NOW + DAY)
    assert paid['trade'] == '' and paid['id'] == 'TRANSFER:7:'


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 80_000), st.integers(-500, 500)), min_size=3, max_size=8), st.sampled_from([0, 0, 3, -40]))
def test_money_adds_up_or_is_named(moves, missing):
    j = Journal('sqlite://')
    at, wallet = NOW, Decimal(14000)
    with j.write() as c:
        def picture(t): c.execute(schema.equity.insert().values(at=t, wallet=float(wallet), unrealized=0., equity=0., gross=0., positions=0, day_open=0.))
        picture(at)
        for n, (wait, cents) in enumerate(moves):
            at += 3_000 + wait; wallet += Decimal(cents)/100
            for _ in range(2): j.add(c, schema.income, dict(id=f'X:{n}', kind='X', symbol='', amount=str(Decimal(cents)/100), at=at, trade=''))
            if wait > 4_000: picture(at + 2_500)
        at += 10_000; wallet += Decimal(missing)/100
        picture(at)
    d = money(j, at + 2*MINUTE)
    assert (d is None) if abs(missing) <= 1 else d == Difference('money', '', 'wallet', d.journal, d.exchange) and Decimal(d.exchange) - Decimal(d.journal) == Decimal(missing)/100
    j.close()
