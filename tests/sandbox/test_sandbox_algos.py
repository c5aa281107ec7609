"Stops, targets and trailing stops, by mark and by last price"
import pytest
from decimal import Decimal
from hypothesis import given, settings, strategies as st

import quantlib.sandbox.private  # noqa: F401
from quantlib.core.clock import HOUR
from quantlib.sandbox.book import Params
from quantlib.sandbox.exchange import Exchange
from quantlib.sandbox.market import STEP, Market
from quantlib.sandbox.server import start
from sandbox_kit import START, client, scripted, walk

UP = ((101_500, 99_900, 101_000), (101_200, 98_500, 98_800))


def venue(*bars, **kw):
    "An exchange over a scripted market, and the list of its events"
    ex, events = Exchange(Market(scripted(*(bars or UP))), START, **kw), []
    ex.listeners.append(events.append)
    return ex, events


def buy(ex, qty='0.010', side='BUY'): return ex.call('POST', '/fapi/v1/order', symbol='BTCUSDT', side=side, type='MARKET', quantity=qty)
def algo(ex, **p): return ex.place_algo(Params(dict(algoType='CONDITIONAL', symbol='BTCUSDT', side='SELL') | p))


def minute_of(m, working, hit):
    "The first waypoint after the start at which `hit` is true"
    f = m.mark if working == 'MARK_PRICE' else m.price
    return next(t for t in range(START + STEP, START + 20*HOUR, STEP) if hit(f('BTCUSDT', t)))


@pytest.mark.parametrize('working', ['MARK_PRICE', 'CONTRACT_PRICE'])
@pytest.mark.parametrize('kind, side, px, hit', [
    ('STOP_MARKET', 'SELL', '98900', lambda x: x <= 98_900), ('TAKE_PROFIT_MARKET', 'SELL', '101200', lambda x: x >= 101_200),
    ('STOP_MARKET', 'BUY', '101200', lambda x: x >= 101_200), ('TAKE_PROFIT_MARKET', 'BUY', '98900', lambda x: x <= 98_900)])
def test_triggers_at_the_first_waypoint_that_reaches_it(working, kind, side, px, hit):
    ex, _ = venue()
    buy(ex, side='BUY' if side == 'SELL' else 'SELL')
    a = algo(ex, type=kind, side=side, triggerPrice=px, closePosition='true', workingType=working)
    at = minute_of(ex.market, working, hit)
    ex.advance(at - 1); assert a.status == 'NEW'
    ex.advance(at); assert a.status == 'FINISHED' and a.triggered == at and a.child.status == 'FILLED'
    assert ex.account.held() == [] and a.child.executed == Decimal('0.010')


def test_mark_ignores_a_spike_that_last_sees():
    ex, _ = venue((100_000, 99_000, 100_000))
    buy(ex)
    low = min(ex.market.mark('BTCUSDT', t) for t in range(START, START + HOUR, STEP))
    by_mark = algo(ex, type='STOP_MARKET', triggerPrice='99010', quantity='0.010', reduceOnly='true', workingType='MARK_PRICE')
    by_last = algo(ex, type='STOP_MARKET', triggerPrice='99000', quantity='0.005', reduceOnly='true', workingType='CONTRACT_PRICE')
    ex.advance(START + HOUR)
    assert by_last.status == 'FINISHED' and by_last.child.executed == Decimal('0.005')
    assert (by_mark.status == 'NEW') == (low > 99_010)


def test_events_of_a_stop():
    ex, events = venue()
    buy(ex); events.clear()
    a = algo(ex, type='STOP_MARKET', triggerPrice='98900', closePosition='true', clientAlgoId='ql-s')
    ex.advance(START + 2*HOUR)
    lite = next(e for e in events if e['e'] == 'TRADE_LITE'); events.remove(lite)
    seen = [(e['e'], e['o'].get('x', e['o']['X'])) if 'o' in e else (e['e'], e['a']['m']) for e in events]
    assert seen == [('ALGO_UPDATE', 'NEW'), ('ALGO_UPDATE', 'TRIGGERING'), ('ALGO_UPDATE', 'TRIGGERED'), ('ORDER_TRADE_UPDATE', 'NEW'), ('ORDER_TRADE_UPDATE', 'TRADE'), ('ACCOUNT_UPDATE', 'ORDER'), ('ALGO_UPDATE', 'FINISHED')]
    child = events[4]['o']
    assert child['i'] != a.id and child['c'] == 'ql-s' and child['ot'] == 'STOP_MARKET' and child['o'] == 'MARKET' and child['cp'] and events[-1]['o']['ai'] == str(child['i'])
    q = ex.call('GET', '/fapi/v1/algoOrder', clientAlgoId='ql-s')
    assert q['algoStatus'] == 'FINISHED' and q['actualOrderId'] == str(child['i'])
    assert ex.call('GET', '/fapi/v1/order', symbol='BTCUSDT', orderId=q['actualOrderId'])['status'] == 'FILLED'
    assert events[-2]['a']['P'][0]['pa'] == '0.000'


def test_close_position_is_sized_at_the_trigger():
    ex, _ = venue()
    buy(ex)
    a = algo(ex, type='STOP_MARKET', triggerPrice='98900', closePosition='true')
    buy(ex, '0.030')
    ex.advance(START + 2*HOUR)
    assert a.child.executed == Decimal('0.040') and ex.account.held() == []


def test_close_position_without_position_expires_and_never_opens_one():
    ex, _ = venue()
    a = algo(ex, type='STOP_MARKET', triggerPrice='98900', closePosition='true')
    b = algo(ex, type='STOP_MARKET', triggerPrice='98950', quantity='0.010', reduceOnly='true')
    ex.advance(START + 2*HOUR)
    assert (a.status, b.status, b.reason) == ('EXPIRED', 'REJECTED', 'ReduceOnly Order is rejected.') and not ex.orders and ex.account.wallet == 14_000


def test_reduce_only_stop_is_trimmed():
    ex, _ = venue()
    buy(ex)
    a = algo(ex, type='STOP_MARKET', triggerPrice='98900', quantity='0.500', reduceOnly='true')
    ex.advance(START + 2*HOUR)
    assert a.child.executed == Decimal('0.010') and ex.account.held() == []


@pytest.mark.parametrize('tif, status', [('GTE_GTC', 'EXPIRED'), ('GTC', 'NEW')])
def test_only_gte_orders_go_with_the_position(tif, status):
    ex, _ = venue()
    buy(ex)
    a = algo(ex, type='STOP_MARKET', triggerPrice='90000', closePosition='true', timeInForce=tif)
    buy(ex, side='SELL')
    assert a.status == status


def test_margin_is_asked_only_at_the_trigger():
    ex, events = venue()
    a = algo(ex, type='STOP_MARKET', side='BUY', triggerPrice='101200', quantity='100')
    ex.advance(START + HOUR)
    assert (a.status, a.reason) == ('REJECTED', 'Margin is insufficient.') and events[-1]['o']['rm'] == 'Margin is insufficient.' and not ex.orders


def test_stop_limit_rests_after_the_trigger():
    ex, _ = venue()
    buy(ex)
    a = algo(ex, type='STOP', triggerPrice='98900', price='98950', quantity='0.010', reduceOnly='true')
    at = minute_of(ex.market, 'CONTRACT_PRICE', lambda x: x <= 98_900)
    ex.advance(at)
    if a.status == 'TRIGGERED': assert a.child.type == 'LIMIT' and a.child.open
    ex.advance(START + 2*HOUR)
    assert a.child.price == 98_950
    if a.child.open: ex.cancel(Params(symbol='BTCUSDT', orderId=a.child.id)); assert a.status == 'FINISHED'


def test_target_limit_fills_at_its_price_or_better():
    ex, _ = venue()
    buy(ex)
    a = algo(ex, type='TAKE_PROFIT', triggerPrice='101000', price='101100', quantity='0.010', reduceOnly='true')
    ex.advance(START + HOUR)
    assert a.child.status == 'FILLED' and a.child.average >= 101_100


@pytest.mark.parametrize('side, activate', [('SELL', '101000'), ('BUY', '99000'), ('SELL', None), ('BUY', None)])
@pytest.mark.parametrize('working', ['MARK_PRICE', 'CONTRACT_PRICE'])
def test_trailing_stop_follows_the_best_price(side, activate, working):
    ex, events = venue((101_500, 99_900, 101_000), (101_200, 98_500, 98_800), (101_400, 98_700, 101_300))
    buy(ex, side='BUY' if side == 'SELL' else 'SELL'); events.clear()
    a = algo(ex, type='TRAILING_STOP_MARKET', side=side, quantity='0.010', reduceOnly='true', callbackRate='0.5', workingType=working, **({'activatePrice': activate} if activate else {}))
    f = ex.market.mark if working == 'MARK_PRICE' else ex.market.price
    best, act, want = None, float(activate) if activate else f('BTCUSDT', START), None
    for t in range(START + STEP, START + 3*HOUR, STEP):
        x = f('BTCUSDT', t)
        if best is None and not (x >= act if side == 'SELL' else x <= act): continue
        best = x if best is None else (max if side == 'SELL' else min)(best, x)
        dx, db = Decimal(str(x)), Decimal(str(best))
        if dx <= db*Decimal('.995') if side == 'SELL' else dx >= db*Decimal('1.005'): want = t; break
    ex.advance(START + 3*HOUR - 1)
    assert a.triggered == (want or 0) and want
    new = [e['o']['ia'] for e in events if e['e'] == 'ALGO_UPDATE' and e['o']['X'] == 'NEW']
    assert new == [False, True]


def test_over_http_with_python_binance():
    with start(Market(scripted(*UP)), START) as server:
        c = client(server)
        c.futures_create_order(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.010')
        s = c.futures_create_order(symbol='BTCUSDT', side='SELL', type='STOP_MARKET', stopPrice='98900', closePosition='true', workingType='MARK_PRICE', clientAlgoId='ql-stop', newClientOrderId='lost')
        t = c.futures_create_algo_order(symbol='BTCUSDT', side='SELL', type='TAKE_PROFIT_MARKET', triggerPrice='120000', quantity='0.010', reduceOnly='true')
        assert s['orderType'] == 'STOP_MARKET' and s['algoStatus'] == 'NEW' and s['clientAlgoId'] == 'ql-stop' and s['closePosition'] is True and s['quantity'] == '0'
        assert {a['algoId'] for a in c.futures_get_open_algo_orders(symbol='BTCUSDT')} == {s['algoId'], t['algoId']}
        assert c.futures_get_open_orders() == []
        server.advance(2*HOUR)
        assert c.futures_get_algo_order(clientAlgoId='ql-stop')['algoStatus'] == 'FINISHED' and c.futures_position_information() == []
        gone = c.futures_cancel_algo_order(algoId=t['algoId'])
        assert (gone['code'], gone['msg']) == ('200', 'success')
        assert [a['algoStatus'] for a in c.futures_get_all_algo_orders(symbol='BTCUSDT')] == ['FINISHED', 'CANCELED']


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(20, 400), st.lists(st.integers(1, 7*60*1000), min_size=1, max_size=30))
def test_how_the_clock_is_cut_does_not_matter(seed, dist, cuts):
    "One jump and many small steps see the same fills at the same instants"
    def run(steps):
        ex = Exchange(Market(walk('BTCUSDT', 100_000.0, seed=seed)), START)
        px = Decimal(int(ex.last('BTCUSDT')))
        buy(ex)
        algo(ex, type='STOP_MARKET', triggerPrice=str(px - 10*dist), closePosition='true', workingType='MARK_PRICE')
        algo(ex, type='TAKE_PROFIT_MARKET', triggerPrice=str(px + 10*dist), closePosition='true')
        for s in steps: ex.advance(ex.now + s)
        return [(t['time'], t['price'], t['qty']) for t in ex.trades], ex.account.wallet, [a.status for a in ex.algos.values()]
    assert run(cuts) == run([sum(cuts)])
