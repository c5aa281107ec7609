"Partial fills, amendments, countdowns, and that the clock's jumps skip nothing"
from decimal import Decimal

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

import quantlib.sandbox.private  # noqa: F401
from quantlib.core.clock import DAY, HOUR, MINUTE
from quantlib.sandbox.book import Params, Refused, ladder, walk_depth
from quantlib.sandbox.exchange import Exchange
from quantlib.sandbox.market import STEP, Market
from sandbox_kit import START, flat, frame, scripted, walk

D = Decimal
LIMIT = dict(symbol='BTCUSDT', side='BUY', type='LIMIT', timeInForce='GTC', quantity='0.100', price='100010.0')


def venue(df=None, **kw): return Exchange(Market(scripted() if df is None else df), START, **kw)
def place(ex, **p): return ex.place(Params(LIMIT | p))
def market(ex, side, qty, **p): return ex.place(Params(dict(symbol='BTCUSDT', side=side, type='MARKET', quantity=qty) | p))
def refused(code, f, *a, **k):
    with pytest.raises(Refused) as e: f(*a, **k)
    assert e.value.code == code, e.value


class Plodder(Exchange):
    "Looks at everything at every waypoint"
    def alarm(self, symbol): return self.now - self.now % STEP + STEP
    def carries_until(self):
        self.strained = (None, 0)
        return self.now - self.now % STEP + STEP


acts = st.lists(st.tuples(st.sampled_from(['MARKET', 'LIMIT', 'STOP', 'TAKE', 'TRAIL', 'WAIT', 'WAIT', 'CRASH', 'WICK']), st.sampled_from(['BTCUSDT', 'ETHUSDT']), st.integers(1, 60)), min_size=4, max_size=14)


def played(kind, df, todo, equity, depth):
    "The events of a story"
    ex, events = kind(Market(df), START, equity=equity), []
    ex.listeners.append(events.append)
    ex.world(depth=dict.fromkeys(('BTCUSDT', 'ETHUSDT'), depth))
    for what, s, n in todo:
        c, px, side = ex.contracts[s], ex.last(s), 'BUY' if n % 2 else 'SELL'
        at = lambda k: str(D(str(px))*D(str(k if side == 'BUY' else 2 - k))//c.tick*c.tick)
        p = dict(symbol=s, side=side, quantity=str(c.step*n*(1 if s == 'BTCUSDT' else 20)))
        algo = p | dict(algoType='CONDITIONAL', workingType='MARK_PRICE' if n % 3 else 'CONTRACT_PRICE')
        try:
            if what == 'MARKET': ex.place(Params(p | dict(type='MARKET')))
            if what == 'LIMIT': ex.place(Params(p | dict(type='LIMIT', timeInForce='GTC', price=at(1 - n/5000))))
            if what == 'STOP': ex.place_algo(Params(algo | dict(type='STOP_MARKET', triggerPrice=at(1 + n/4000))))
            if what == 'TAKE': ex.place_algo(Params(algo | dict(type='TAKE_PROFIT_MARKET', triggerPrice=at(1 - n/4000), reduceOnly='true')))
            if what == 'TRAIL': ex.place_algo(Params(algo | dict(type='TRAILING_STOP_MARKET', callbackRate='0.5')))
            if what == 'CRASH': ex.world(price={s: 1 - n/500})
            if what == 'WICK': ex.world(wick={s: 1 + (n - 30)/600})
        except Refused: pass
        if what == 'WAIT': ex.advance(min(ex.now + n*7*MINUTE + n*1000, START + 70*HOUR))
    ex.advance(START + 71*HOUR)
    return events, ex.account.wallet


@settings(max_examples=12, deadline=None)
@given(acts, st.integers(0, 30), st.sampled_from([900, 14_000]), st.sampled_from([2_000, 1_000_000]))
def test_jumping_from_alarm_to_alarm_skips_nothing(todo, seed, equity, depth):
    df = pd.concat([walk('BTCUSDT', 100_000.0, seed=seed, vol=.01), walk('ETHUSDT', 2_500.0, seed=seed, vol=.012)])
    assert played(Exchange, df, todo, equity, depth) == played(Plodder, df, todo, equity, depth)


@given(st.integers(1, 400), st.integers(100, 5000), st.integers(0, 9000), st.booleans())
def test_walking_the_depth_takes_what_is_there_best_first(n, each, used, buy):
    rows = walk_depth(ladder(D(100), D('0.5'), buy), D(each), D(used), D(n), D('0.1'), None, buy)
    px = [p for p, _ in rows]
    assert px == sorted(px, reverse=not buy) and sum(q for _, q in rows) <= n and all(q > 0 and q % D('0.1') == 0 and p*q <= each for p, q in rows)
    whole = walk_depth(ladder(D(100), D('0.5'), buy), D(10**9), D(0), D(n), D('0.1'), None, buy)
    assert whole == [(D(100), D(n))]


def test_a_market_order_larger_than_the_book_is_filled_in_part():
    ex, events = venue(), []
    ex.listeners.append(events.append)
    ex.world(depth={'BTCUSDT': 1_000})
    o = market(ex, 'BUY', '1')
    assert (o.status, o.executed) == ('EXPIRED', D('0.180')) and 100_010 < o.average < 100_200
    end = [e['o'] for e in events if e['e'] == 'ORDER_TRADE_UPDATE'][-1]
    assert (end['x'], end['X'], end['er'], end['z']) == ('EXPIRED', 'EXPIRED', '9', '0.180') and ex.account.position('BTCUSDT').qty == o.executed
    assert market(ex, 'BUY', '0.100').executed <= D('0.020'), 'what was taken is gone until the next waypoint'
    ex.advance(ex.now + STEP); assert market(ex, 'BUY', '0.100').executed == D('0.100')


def test_a_limit_order_fills_as_time_passes():
    ex = venue()
    ex.world(depth={'BTCUSDT': 3_000})
    a = place(ex); got = [a.executed]
    assert a.status == 'PARTIALLY_FILLED' and a.executed == D('0.029')
    while a.open: ex.advance(ex.now + STEP); got.append(a.executed)
    assert a.status == 'FILLED' and got == sorted(set(got)) and len(got) == 4
    fills = [t for t in ex.trades if t['orderId'] == a.id]
    assert [t['maker'] for t in fills] == [False, True, True, True] and sum(D(t['qty']) for t in fills) == a.qty
    ioc = place(ex, timeInForce='IOC'); assert (ioc.status, ioc.executed) == ('EXPIRED', D('0.029'))
    refused(-5021, place, ex, timeInForce='FOK', quantity='0.200')


def test_a_fault_fills_a_part():
    ex = venue()
    ex.faults.add(dict(match={'symbol': 'BTCUSDT'}, effect='partial', args={'frac': .37}))
    o = market(ex, 'BUY', '0.100'); assert (o.status, o.executed) == ('EXPIRED', D('0.037'))
    ex.faults.add(dict(match={'symbol': 'BTCUSDT'}, effect='partial', args={'frac': .37}))
    o = place(ex); assert (o.status, o.executed) == ('PARTIALLY_FILLED', D('0.037'))
    ex.advance(ex.now + STEP); assert o.status == 'FILLED'


def test_amendments():
    ex, events = venue(), []
    ex.listeners.append(events.append)
    o = place(ex, price='99000')
    ask = dict(symbol='BTCUSDT', orderId=o.id, side='BUY', quantity='0.200', price='99500')
    got = ex.call('PUT', '/fapi/v1/order', **ask)
    assert (got['orderId'], got['price'], got['origQty'], got['status']) == (o.id, '99500', '0.200', 'NEW') and events[-1]['o']['x'] == 'AMENDMENT'
    refused(-5027, ex.amend, Params(ask)); refused(-4014, ex.amend, Params(ask | dict(price='99500.05'))); refused(-2019, ex.amend, Params(ask | dict(quantity='9')))
    refused(-2013, ex.amend, Params(ask | dict(orderId=1))); assert (o.qty, o.price) == (D('0.200'), D('99500')) and ex.open['BTCUSDT'][o.id] is o
    ex.amend(Params(ask | dict(price='100500'))); assert o.status == 'FILLED' and o.average == 100_010
    g = place(ex, price='99000', timeInForce='GTX')
    ex.amend(Params(symbol='BTCUSDT', orderId=g.id, side='BUY', quantity='0.100', price='100500')); assert (g.status, g.executed) == ('CANCELED', 0)
    ex.world(depth={'BTCUSDT': 1_000}); ex.advance(ex.now + STEP); h = place(ex)
    ex.amend(Params(symbol='BTCUSDT', orderId=h.id, side='BUY', quantity='0.002', price='100010')); assert h.status == 'CANCELED' and h.executed > D('0.002')


def test_countdown_and_good_till_end_orders_in_time():
    ex = venue()
    a, s = place(ex, price='99000'), ex.place_algo(Params(algoType='CONDITIONAL', symbol='BTCUSDT', side='SELL', type='STOP_MARKET', triggerPrice='90000', quantity='0.010'))
    assert ex.call('POST', '/fapi/v1/countdownCancelAll', symbol='BTCUSDT', countdownTime='30000') == dict(symbol='BTCUSDT', countdownTime='30000')
    ex.advance(START + 20_000); ex.call('POST', '/fapi/v1/countdownCancelAll', symbol='BTCUSDT', countdownTime='30000')
    ex.advance(START + 49_999); assert a.open
    ex.advance(START + 50_000); assert a.status == 'CANCELED' and s.open
    b = place(ex, price='99000'); ex.countdown('BTCUSDT', 5_000); ex.countdown('BTCUSDT', 0); ex.advance(START + MINUTE); assert b.open
    till = START + 20*MINUTE
    g = place(ex, price='99000', timeInForce='GTD', goodTillDate=str(till))
    refused(-5040, place, ex, price='99000', timeInForce='GTD', goodTillDate=str(ex.now + 600_000)); refused(-1102, place, ex, price='99000', timeInForce='GTD')
    ex.advance(till - 1); assert g.open
    ex.advance(till); assert g.status == 'EXPIRED'


def test_a_full_size_target_in_the_book_blocks_the_way_out():
    ex = venue()
    market(ex, 'BUY', '0.100')
    tp = place(ex, side='SELL', price='102000', reduceOnly='true')
    refused(-4118, market, ex, 'SELL', '0.100', reduceOnly='true')
    ex.amend(Params(symbol='BTCUSDT', orderId=tp.id, side='SELL', quantity='0.050', price='102000'))
    assert market(ex, 'SELL', '0.100', reduceOnly='true').status == 'FILLED' and tp.status == 'EXPIRED' and not ex.account.held()
    refused(-2022, market, ex, 'SELL', '0.100', reduceOnly='true')


def test_queries_forget():
    ex = venue(frame('BTCUSDT', flat(hours=24*100)))
    gone, kept = place(ex, price='99000', newClientOrderId='gone'), market(ex, 'BUY', '0.010')
    ex.cancel(Params(symbol='BTCUSDT', orderId=gone.id))
    ask = dict(algoType='CONDITIONAL', symbol='BTCUSDT', side='SELL', type='STOP_MARKET', triggerPrice='90000', quantity='0.010')
    a = ex.place_algo(Params(ask)); ex.cancel_algo(Params(algoId=a.id))
    market(ex, 'SELL', '0.010')
    ex.advance(START + 3*DAY); ex.find(Params(symbol='BTCUSDT', orderId=gone.id)); ex.find_algo(Params(algoId=a.id))
    ex.advance(ex.now + 1); refused(-2013, ex.find, Params(symbol='BTCUSDT', origClientOrderId='gone')); refused(-2013, ex.find_algo, Params(algoId=a.id))
    assert gone.id not in [o['orderId'] for o in ex.call('GET', '/fapi/v1/allOrders', symbol='BTCUSDT', orderId='1')]
    ex.find(Params(symbol='BTCUSDT', orderId=kept.id)); ex.advance(START + 90*DAY + 1); refused(-2013, ex.find, Params(symbol='BTCUSDT', orderId=kept.id))


def test_price_match_and_order_test():
    ex = venue()
    row = ex.call('POST', '/fapi/v1/order/test', **LIMIT); assert row['status'] == 'NEW' and not ex.orders and not ex.open
    refused(-2019, ex.call, 'POST', '/fapi/v1/order/test', **LIMIT | dict(quantity='9'))
    p = {k: v for k, v in LIMIT.items() if k != 'price'}
    q = ex.place(Params(p | dict(priceMatch='QUEUE'))); assert (q.price, q.status) == (ex.quote('BTCUSDT')[0], 'NEW')
    q5 = ex.place(Params(p | dict(priceMatch='QUEUE_5'))); assert q5.price < q.price
    assert ex.place(Params(p | dict(priceMatch='OPPONENT'))).status == 'FILLED'
    refused(-5037, ex.place, Params(p | dict(priceMatch='BEST'))); refused(-1106, ex.place, Params(LIMIT | dict(priceMatch='QUEUE')))


def test_later_runs_in_order_at_its_time():
    ex, seen = venue(), []
    for at in (START + 70_001, START + 5, START + 5): ex.later(at, lambda at=at: seen.append((at, ex.now)))
    ex.later(START + 10, lambda: ex.later(START + 10, lambda: seen.append('nested')))
    ex.advance(START + 100_000)
    assert seen == [(START + 5,)*2, (START + 5,)*2, 'nested', (START + 70_001,)*2]


def test_stuck_and_rejected_at_the_trigger():
    ex = venue()
    market(ex, 'BUY', '0.010')
    ask = dict(algoType='CONDITIONAL', symbol='BTCUSDT', side='SELL', type='STOP_MARKET', quantity='0.010', reduceOnly='true')
    a, b = (ex.place_algo(Params(ask | dict(triggerPrice=px))) for px in ('99000', '98000'))
    ex.faults.add(dict(match={'symbol': 'BTCUSDT'}, effect='stick_status')); ex.world(price={'BTCUSDT': .985})
    assert a.status == 'TRIGGERING' and ex.account.held(); refused(-4117, ex.cancel_algo, Params(algoId=a.id))
    assert a.id in [r['algoId'] for r in ex.call('GET', '/fapi/v1/openAlgoOrders')]
    ex.faults.add(dict(match={'symbol': 'BTCUSDT'}, effect='reject_at_trigger')); ex.world(price={'BTCUSDT': .985}); ex.advance(ex.now + MINUTE)
    assert b.status == 'REJECTED' and ex.account.held()
    assert ex.cancel_algo(Params(algoId=a.id)).status == 'CANCELED'
