"Every refusal with its code, and the life of regular orders, over HTTP with python-binance"
import pytest
from binance.exceptions import BinanceAPIException
from decimal import Decimal

from quantlib.core.clock import HOUR
from quantlib.sandbox.server import start
from sandbox_kit import START, Market, client, scripted, walk
import pandas as pd

BUY = dict(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.010')
LIMIT = dict(symbol='BTCUSDT', side='BUY', type='LIMIT', timeInForce='GTC', quantity='0.010', price='99000.0')
STOP = dict(symbol='BTCUSDT', side='SELL', type='STOP_MARKET', quantity='0.010', triggerPrice='95000.0')


@pytest.fixture()
def server():
    "BTC at exactly 100,000 when the clock starts; an hour to 101,500, then one down to 98,500"
    m = Market(pd.concat([scripted((101_500, 99_900, 101_000), (101_200, 98_500, 98_800)), walk('ETHUSDT', 2_500.0)]))
    with start(m, START) as s: yield s


@pytest.fixture()
def c(server): return client(server)


def code(f, **p):
    with pytest.raises(BinanceAPIException) as e: f(**p)
    return e.value.code


@pytest.mark.parametrize('ask, want', [
    (BUY | dict(symbol='NOPE'), -1121), (BUY | dict(symbol=None), -1102), (BUY | dict(side='LONG'), -1117), (BUY | dict(type='LIMIT_MAKER'), -1116), (BUY | dict(quantity=None), -1102),
    (BUY | dict(quantity='abc'), -1102), (BUY | dict(quantity='NaN'), -1102), (BUY | dict(quantity='Infinity'), -1102), (BUY | dict(quantity='0'), -4003), (BUY | dict(quantity='-1'), -4003),
    (BUY | dict(quantity='0.0101'), -1111), (BUY | dict(quantity='121'), -4005), (LIMIT | dict(quantity='1001'), -4005), (BUY | dict(quantity='1e99999'), -4005), (BUY | dict(quantity='1e-99999'), -1111),
    (LIMIT | dict(price='99000.05'), -4014), (LIMIT | dict(price='99000.123'), -1111), (LIMIT | dict(price='1'), -4013), (LIMIT | dict(price='0'), -4013), (LIMIT | dict(price='5000000'), -4002),
    (LIMIT | dict(price=None), -1102), (LIMIT | dict(timeInForce=None), -1115), (LIMIT | dict(timeInForce='DAY'), -1115), (LIMIT | dict(price='105000.1'), -4016), (LIMIT | dict(side='SELL', price='94999.9'), -4024),
    (BUY | dict(quantity='0.001', symbol='ETHUSDT'), -4164), (LIMIT | dict(quantity='0.001'), -4164), (BUY | dict(timeInForce='GTC'), -1106), (BUY | dict(price='99000'), -1106),
    (BUY | dict(positionSide='LONG'), -4061), (BUY | dict(positionSide='UP'), -4060), (BUY | dict(newClientOrderId='a b'), -4015), (BUY | dict(newClientOrderId='x'*37), -4015),
    (BUY | dict(reduceOnly='true'), -2022), (BUY | dict(reduceOnly='maybe'), -1130), (BUY | dict(quantity='3'), -2019), (LIMIT | dict(timeInForce='GTX', price='100100'), -5022),
    (LIMIT | dict(timeInForce='FOK'), -5021), (BUY | dict(closePosition='true'), -4136), (BUY | dict(newOrderRespType='FULL'), -1136)])
def test_refusals_of_orders(c, server, ask, want):
    if want == -1115 and ask['timeInForce'] is None: want = -1102
    assert code(c.futures_create_order, **ask) == want
    assert not server.exchange.orders and server.exchange.account.wallet == 14_000


@pytest.mark.parametrize('kind', ['STOP', 'STOP_MARKET', 'TAKE_PROFIT', 'TAKE_PROFIT_MARKET', 'TRAILING_STOP_MARKET'])
def test_conditional_types_left_the_order_endpoint(c, kind):
    assert code(c._request_futures_api, method='post', path='order', signed=True, data=STOP | dict(type=kind)) == -4120


@pytest.mark.parametrize('ask, want', [
    (dict(symbol='NOPE'), -1121), (dict(triggerPrice=None), -1102), (dict(triggerPrice='95000.05'), -4014), (dict(triggerPrice='95000.123'), -1111), (dict(triggerPrice='0'), -4013), (dict(quantity=None), -1102),
    (dict(quantity='0.0001'), -1111), (dict(quantity='0'), -4003), (dict(quantity='500'), -4005), (dict(quantity='0.001'), -4164), (dict(triggerPrice='100000'), -2021), (dict(triggerPrice='100001'), -2021),
    (dict(type='TAKE_PROFIT_MARKET', triggerPrice='99000'), -2021), (dict(side='BUY', triggerPrice='99000'), -2021), (dict(closePosition='true'), -4137), (dict(closePosition='true', quantity=None, reduceOnly='true'), -4138),
    (dict(type='STOP', closePosition='true', quantity=None, price='94000'), -4136), (dict(type='STOP'), -1102), (dict(price='94000'), -1106), (dict(workingType='INDEX'), -4031), (dict(timeInForce='DAY'), -1115),
    (dict(timeInForce='GTE_GTC'), -4509), (dict(positionSide='SHORT'), -4061), (dict(clientAlgoId='ä'), -4015), (dict(type='TRAILING_STOP_MARKET', triggerPrice=None), -1102),
    (dict(type='TRAILING_STOP_MARKET', triggerPrice=None, callbackRate='0.05'), -1130), (dict(type='TRAILING_STOP_MARKET', triggerPrice=None, callbackRate='21'), -1130),
    (dict(type='TRAILING_STOP_MARKET', triggerPrice=None, callbackRate='1', activatePrice='99000'), -2021), (dict(type='TRAILING_STOP_MARKET', triggerPrice=None, callbackRate='1', activatePrice='101000.05'), -4014)])
def test_refusals_of_conditional_orders(c, server, ask, want):
    assert code(c.futures_create_order, **STOP | ask) == want
    assert not server.exchange.algos


def test_algo_type_is_needed(c): assert code(c._request_futures_api, method='post', path='algoOrder', signed=True, data=dict(STOP)) == -1102


def test_duplicates_only_among_open(c):
    a = c.futures_create_order(**LIMIT, newClientOrderId='ql-1')
    assert code(c.futures_create_order, **LIMIT, newClientOrderId='ql-1') == -4116
    c.futures_cancel_order(symbol='BTCUSDT', origClientOrderId='ql-1')
    b = c.futures_create_order(**LIMIT, newClientOrderId='ql-1')
    assert b['orderId'] > a['orderId'] == c.futures_get_order(symbol='BTCUSDT', orderId=a['orderId'])['orderId']
    assert c.futures_get_order(symbol='BTCUSDT', origClientOrderId='ql-1')['orderId'] == b['orderId']
    s = c.futures_create_order(**STOP, clientAlgoId='ql-2')
    assert code(c.futures_create_order, **STOP, clientAlgoId='ql-2') == -4116
    c.futures_cancel_algo_order(algoId=s['algoId'])
    assert c.futures_create_order(**STOP, clientAlgoId='ql-2')['algoId'] > s['algoId']


def test_one_close_position_order_per_side_and_type(c):
    ask = dict(symbol='BTCUSDT', side='SELL', closePosition='true')
    c.futures_create_order(**ask, type='STOP_MARKET', triggerPrice='95000')
    c.futures_create_order(**ask, type='TAKE_PROFIT_MARKET', triggerPrice='105000')
    assert code(c.futures_create_order, **ask, type='STOP_MARKET', triggerPrice='94000') == -4130
    assert code(c.futures_create_order, **ask, type='TAKE_PROFIT_MARKET', triggerPrice='106000') == -4130


def test_limits_of_open_orders(c, server):
    server.exchange.world(limits=dict(orders_10s=10_000, orders_1m=10_000, weight=10_000))
    for i in range(40): c.futures_place_batch_order(batchOrders=[LIMIT | dict(price=f'{95_100 + i*5 + k}.0') for k in range(5)])
    assert len(c.futures_get_open_orders(symbol='BTCUSDT')) == 200 and code(c.futures_create_order, **LIMIT) == -2025
    assert c.futures_cancel_all_open_orders(symbol='BTCUSDT')['code'] == 200 and c.futures_get_open_orders() == []
    for i in range(200): c.futures_create_order(**STOP | dict(triggerPrice=f'{90_000 + i}'))
    assert code(c.futures_create_order, **STOP) == -4045
    c.futures_cancel_all_algo_open_orders(symbol='BTCUSDT')
    assert c.futures_get_open_algo_orders() == []


def test_market_order_fills_half_a_spread_away(c):
    o = c.futures_create_order(**BUY, newOrderRespType='RESULT')
    assert (o['status'], o['executedQty'], o['avgPrice']) == ('FILLED', '0.010', '100010')
    assert c.futures_create_order(**BUY)['status'] == 'NEW'
    t = c.futures_account_trades(symbol='BTCUSDT')
    assert [(x['price'], x['maker'], x['commission'], x['orderId']) for x in t][0] == ('100010.00', False, '0.50005000', o['orderId'])
    p, = c.futures_position_information(symbol='BTCUSDT')
    assert (p['positionAmt'], Decimal(p['entryPrice']), p['positionSide']) == ('0.020', 100010, 'BOTH')


def test_limit_order_takes_or_waits(c, server):
    taken = c.futures_create_order(**LIMIT | dict(price='100500'), newOrderRespType='RESULT')
    assert (taken['status'], taken['avgPrice']) == ('FILLED', '100010')
    assert c.futures_create_order(**LIMIT | dict(timeInForce='IOC'), newOrderRespType='RESULT')['status'] == 'EXPIRED'
    w = c.futures_create_order(**LIMIT)
    assert w['status'] == 'NEW' and [o['orderId'] for o in c.futures_get_open_orders()] == [w['orderId']]
    server.advance(HOUR); assert c.futures_get_order(symbol='BTCUSDT', orderId=w['orderId'])['status'] == 'NEW'
    server.advance(HOUR)
    got = c.futures_get_order(symbol='BTCUSDT', orderId=w['orderId'])
    assert (got['status'], got['avgPrice']) == ('FILLED', '99000')
    trade = c.futures_account_trades(symbol='BTCUSDT', orderId=w['orderId'])[0]
    assert trade['maker'] is True and Decimal(trade['commission']) == Decimal('99000')*Decimal('0.010')*Decimal('0.0002')
    assert code(c.futures_cancel_order, symbol='BTCUSDT', orderId=w['orderId']) == -2011


def test_unknown_orders(c):
    assert code(c.futures_get_order, symbol='BTCUSDT', orderId=1) == -2013
    assert code(c.futures_get_order, symbol='BTCUSDT', origClientOrderId='nope') == -2013
    assert code(c.futures_get_order, symbol='BTCUSDT') == -1102
    assert code(c.futures_cancel_order, symbol='BTCUSDT', orderId=1) == -2011
    assert code(c.futures_get_algo_order, algoId=1) == -2013 and code(c.futures_cancel_algo_order, clientAlgoId='nope') == -2011
    o = c.futures_create_order(**LIMIT)
    assert code(c.futures_get_order, symbol='ETHUSDT', orderId=o['orderId']) == -2013


def test_reduce_only_only_shrinks(c, server):
    c.futures_create_order(**BUY)
    assert code(c.futures_create_order, **BUY, reduceOnly='true') == -2022
    o = c.futures_create_order(**BUY | dict(side='SELL', quantity='0.050'), reduceOnly='true', newOrderRespType='RESULT')
    assert (o['origQty'], o['executedQty'], o['status']) == ('0.010', '0.010', 'FILLED')
    assert c.futures_position_information() == []
    assert code(c.futures_create_order, **BUY | dict(side='SELL'), reduceOnly='true') == -2022


def test_reduce_only_may_be_dust(c, server):
    c.futures_create_order(**BUY)
    c.futures_create_order(**BUY | dict(side='SELL', quantity='0.009'))
    assert c.futures_create_order(**BUY | dict(side='SELL', quantity='0.001'), reduceOnly='true', newOrderRespType='RESULT')['status'] == 'FILLED'


def test_resting_reduce_only_expires_with_the_position(c):
    c.futures_create_order(**BUY)
    r = c.futures_create_order(**LIMIT | dict(side='SELL', price='102000'), reduceOnly='true')
    c.futures_create_order(**BUY | dict(side='SELL'))
    assert c.futures_get_order(symbol='BTCUSDT', orderId=r['orderId'])['status'] == 'EXPIRED'


def test_batch_answers_item_by_item(c):
    rows = c.futures_place_batch_order(batchOrders=[dict(LIMIT), LIMIT | dict(price='1'), STOP | dict(stopPrice='95000')])
    assert rows[0]['status'] == 'NEW' and [r['code'] for r in rows[1:]] == [-4013, -4120]
    gone = c.futures_cancel_orders(symbol='BTCUSDT', orderidlist=[rows[0]['orderId'], 5])
    assert gone[0]['status'] == 'CANCELED' and gone[1]['code'] == -2011
    assert code(c.futures_place_batch_order, batchOrders=[dict(LIMIT) for _ in range(6)]) == -4082


def test_leverage_bounds_positions(c):
    assert code(c.futures_change_leverage, symbol='BTCUSDT', leverage=0) == -4028
    c.futures_create_order(**BUY | dict(quantity='2.5'))
    assert code(c.futures_change_leverage, symbol='BTCUSDT', leverage=2) == -2028
    assert c.futures_change_leverage(symbol='BTCUSDT', leverage=150)['maxNotionalValue'] == '300000'
    assert code(c.futures_create_order, **BUY | dict(quantity='1')) == -2027
    a = c.futures_account(version=3)
    assert Decimal(a['totalInitialMargin']) == Decimal(a['positions'][0]['notional'])/150 or abs(Decimal(a['totalInitialMargin']) - Decimal(a['positions'][0]['notional'])/150) < Decimal('1e-7')


def test_open_orders_bind_margin_once(c):
    "A bid and an ask of the same size bind the larger side, not both"
    free = lambda: Decimal(c.futures_account(version=3)['availableBalance'])
    a = free(); c.futures_create_order(**LIMIT | dict(quantity='0.100', price='99000'))
    b = free(); c.futures_create_order(**LIMIT | dict(side='SELL', quantity='0.100', price='101000'))
    assert (a - b, b - free()) == (Decimal('495'), Decimal('10'))


def test_flip_takes_the_reduce_only_orders_along(c, server):
    c.futures_create_order(**BUY)
    r = c.futures_create_order(**LIMIT | dict(side='SELL', price='102000'), reduceOnly='true')
    s = c.futures_create_order(**STOP | dict(timeInForce='GTE_GTC'))
    c.futures_create_order(**BUY | dict(side='SELL', quantity='0.030'))
    assert c.futures_get_order(symbol='BTCUSDT', orderId=r['orderId'])['status'] == 'EXPIRED' and c.futures_get_algo_order(algoId=s['algoId'])['algoStatus'] == 'EXPIRED'
    assert c.futures_position_information()[0]['positionAmt'] == '-0.020'
