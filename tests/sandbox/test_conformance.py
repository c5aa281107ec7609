"""Is the sandbox the venue it stands for? Requests, events and refusals, compared shape for shape with recordings and reference tables

The same suite speaks to Binance demo trading: `pytest tests/sandbox/test_conformance.py --exchange demo` with BINANCE_DEMO_KEY and BINANCE_DEMO_SECRET in the environment."""
import json
import os

import pytest

from quantlib.sandbox.server import start
from sandbox_kit import START, two
from venue_kit import MARKET, Recorded, Venue, demo, heard, unlike

R = 'recorded_mainnet_public_2026-09-15.json'
P = 'recorded_ccxt_static_private.json'
N = 'nautilus_trader/'
INTS = 'orderId id time updateTime goodTillDate adl'


def live(file, key): return Recorded(file, key)
def ccxt(key): return Recorded(P, key, INTS)
def page(name): return Recorded(N + name)


@pytest.fixture(scope='module')
def venue(request):
    if request.config.getoption('--exchange', 'sandbox') == 'demo':
        if not os.environ.get('BINANCE_DEMO_KEY'): pytest.skip('no BINANCE_DEMO_KEY in the environment')
        v = demo()
        v.clean(); yield v; v.clean()
    else:
        with start(two(), START) as s:
            yield Venue(s.url, s.url.replace('http', 'ws'), 'paper', 'paper', s)


def compared(want, got, more='', less=''):
    "Assert that the shapes agree"
    if isinstance(want, Recorded):
        if not MARKET.exists(): pytest.skip('the recordings are not here')
        want = want.load()
    assert (out := unlike(want, got, more.split(), less.split())) == [], '\n'.join(out)


# Shapes of the reference tables, for what nobody recorded

ROW = 'clientOrderId:s cumQty:n executedQty:n orderId:i origQty:n price:n reduceOnly:b side:s positionSide:s status:s stopPrice:n closePosition:b symbol:s timeInForce:s type:s origType:s updateTime:i workingType:s priceProtect:b priceMatch:s selfTradePreventionMode:s goodTillDate:i ~avgPrice:n ~cumQuote:n'
FOUND = ROW.replace('cumQty:n ', '~cumQty:n ') + ' time:i ~activatePrice:n ~priceRate:n ~pair:s ~cumBase:n'
OK = 'code:i msg:s'
ALGO = 'algoId:i clientAlgoId:s algoType:s orderType:s symbol:s side:s positionSide:s timeInForce:s quantity:n algoStatus:s triggerPrice:n price:n icebergQuantity:? selfTradePreventionMode:s workingType:s priceMatch:s closePosition:b priceProtect:b reduceOnly:b activatePrice:s callbackRate:s createTime:i updateTime:i triggerTime:i goodTillDate:i'
ONE_ALGO = ALGO + ' actualOrderId:s actualPrice:n actualType:s actualQty:n'
SOME_ALGO = ALGO + ' actualOrderId:s actualPrice:n tpTriggerPrice:n tpPrice:n slTriggerPrice:n slPrice:n tpOrderType:s ~actualType:s ~actualQty:n'
TRADE = 'buyer:b commission:n commissionAsset:s id:i maker:b orderId:i price:n qty:n quoteQty:n baseQty:n realizedPnl:n side:s positionSide:s symbol:s pair:s marginAsset:s time:i'
CONFIG = 'feeTier:i canTrade:b canDeposit:b canWithdraw:b dualSidePosition:b updateTime:i multiAssetsMargin:b tradeGroupId:i'
RIGHTS = 'ipRestrict:b createTime:i enableReading:b enableWithdrawals:b enableInternalTransfer:b enableMargin:b enableFutures:b permitsUniversalTransfer:b enableVanillaOptions:b enableFixApiTrade:b enableFixReadOnly:b enableSpotAndMarginTrading:b enablePortfolioMarginTrading:b ~tradingAuthorityExpirationTime:i'
BRACKET = [dict(symbol=('str',), brackets=['bracket:i initialLeverage:i notionalCap:f notionalFloor:f maintMarginRatio:f cum:f']) | {'~notionalCoef': ('float',)}]
BAR = [1, '1', '1', '1', '1', '1', 1, '1', 1, '1', '1', '0']


def held(v):
    "A small long position and a resting order, for the endpoints that show them"
    if not any(float(p['positionAmt']) for p in v.call('GET', '/fapi/v3/positionRisk', symbol='BTCUSDT')): v.trade(quantity='0.004')
    return v


def kept(f):
    "Run `f` with a fresh order or position and leave nothing behind"
    def run(v):
        try: return f(held(v))
        finally: v.clean()
    return run


def closed(v, path='/fapi/v1/order', **p):
    o = v.limit(); v.call('DELETE', '/fapi/v1/order', symbol='BTCUSDT', orderId=o['orderId'])
    return v.call('GET', path, symbol='BTCUSDT', **p)
def g(path, **p): return lambda v: v.get(path, **p)
def s(path, **p): return kept(lambda v: v.call('GET', path, **p))
BTC = dict(symbol='BTCUSDT')

PUBLIC = [ # (request, source, how it is asked, shape, keys that may be there too, keys that need not)
    ('GET /fapi/v1/ping', '§3.1', g('/fapi/v1/ping'), {}),
    ('GET /api/v3/ping', '§2.2', g('/api/v3/ping'), {}),
    ('GET /api/v3/time', '§2.2', g('/api/v3/time'), 'serverTime:i'),
    ('GET /fapi/v1/time', 'mainnet 2026-09-15', g('/fapi/v1/time'), live(R, 'GET /fapi/v1/time')),
    ('GET /fapi/v1/exchangeInfo', '§3.2', lambda v: {k: x for k, x in v.get('/fapi/v1/exchangeInfo').items() if k != 'symbols'},
        dict(timezone=('str',), serverTime=('int',), futuresType=('str',), rateLimits=['rateLimitType:s interval:s intervalNum:i limit:i'], exchangeFilters=[], assets=['asset:s marginAvailable:b autoAssetExchange:?'])),
    ('GET /fapi/v1/exchangeInfo top', 'mainnet 2026-09-15', lambda v: {k: 1 for k in v.get('/fapi/v1/exchangeInfo')}, lambda: {k: 1 for k in live(R, 'exchangeInfo.meta').load()['top_keys']}),
    ('GET /fapi/v1/exchangeInfo limits', 'mainnet 2026-09-15', lambda v: v.get('/fapi/v1/exchangeInfo')['rateLimits'], lambda: live(R, 'exchangeInfo.meta').load()['rateLimits']),
    ('GET /fapi/v1/exchangeInfo symbol', 'mainnet 2026-09-15', lambda v: plain(btc(v)), lambda: plain(live(R, 'exchangeInfo.symbols[BTCUSDT]').load())),
    ('GET /fapi/v1/exchangeInfo filters', 'mainnet 2026-09-15', lambda v: filters(btc(v)), lambda: filters(live(R, 'exchangeInfo.symbols[BTCUSDT]').load())),
    ('GET /fapi/v1/klines', 'mainnet 2026-09-15', g('/fapi/v1/klines', **BTC, interval='1m', limit=3), live(R, 'GET /fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=3')),
    ('GET /fapi/v1/continuousKlines', 'docs fixture', g('/fapi/v1/continuousKlines', pair='BTCUSDT', contractType='PERPETUAL', interval='1m', limit=3), page('http_futures_market_continuous_klines.json')),
    ('GET /fapi/v1/markPriceKlines', 'docs fixture', g('/fapi/v1/markPriceKlines', **BTC, interval='1m', limit=3), page('http_futures_market_mark_price_klines.json')),
    ('GET /fapi/v1/indexPriceKlines', 'docs fixture', g('/fapi/v1/indexPriceKlines', pair='BTCUSDT', interval='1m', limit=3), page('http_futures_market_index_price_klines.json')),
    ('GET /fapi/v1/premiumIndexKlines', '§3.1', g('/fapi/v1/premiumIndexKlines', **BTC, interval='1m', limit=3), [BAR]),
    ('GET /fapi/v1/ticker/24hr', 'mainnet 2026-09-15', g('/fapi/v1/ticker/24hr', **BTC), live(R, 'GET /fapi/v1/ticker/24hr?symbol=BTCUSDT')),
    ('GET /fapi/v1/ticker/24hr all', 'docs fixture', g('/fapi/v1/ticker/24hr'), lambda: [page('http_futures_market_ticker_24hr.json').load()]),
    ('GET /fapi/v1/ticker/price', 'docs fixture', g('/fapi/v1/ticker/price', **BTC), page('http_futures_market_ticker_price.json')),
    ('GET /fapi/v2/ticker/price', 'mainnet 2026-09-15', g('/fapi/v2/ticker/price', **BTC), live(R, 'GET /fapi/v2/ticker/price?symbol=BTCUSDT')),
    ('GET /fapi/v2/ticker/price all', '§3.1', g('/fapi/v2/ticker/price'), ['symbol:s price:n time:i']),
    ('GET /fapi/v1/ticker/bookTicker', 'mainnet 2026-09-15', g('/fapi/v1/ticker/bookTicker', **BTC), live(R, 'GET /fapi/v1/ticker/bookTicker?symbol=BTCUSDT')),
    ('GET /fapi/v1/ticker/bookTicker all', '§3.1', g('/fapi/v1/ticker/bookTicker'), ['symbol:s bidPrice:n bidQty:n askPrice:n askQty:n time:i ~lastUpdateId:i']),
    ('GET /fapi/v1/depth', 'mainnet 2026-09-15', g('/fapi/v1/depth', **BTC, limit=5), live(R, 'GET /fapi/v1/depth?symbol=BTCUSDT&limit=5')),
    ('GET /fapi/v1/trades', 'docs fixture', g('/fapi/v1/trades', **BTC, limit=3), page('http_futures_market_trades.json'), 'isRPITrade'),
    ('GET /fapi/v1/historicalTrades', 'docs fixture', lambda v: v.call('GET', '/fapi/v1/historicalTrades', 'key', **BTC, limit=3), page('http_futures_market_historical_trades.json'), 'isRPITrade'),
    ('GET /fapi/v1/aggTrades', 'mainnet 2026-09-15', g('/fapi/v1/aggTrades', **BTC, limit=2), live(R, 'GET /fapi/v1/aggTrades?symbol=BTCUSDT&limit=2')),
    ('GET /fapi/v1/premiumIndex', 'mainnet 2026-09-15', g('/fapi/v1/premiumIndex', **BTC), live(R, 'GET /fapi/v1/premiumIndex?symbol=BTCUSDT')),
    ('GET /fapi/v1/premiumIndex all', '§3.1', g('/fapi/v1/premiumIndex'), ['symbol:s markPrice:n indexPrice:n estimatedSettlePrice:n lastFundingRate:? interestRate:? nextFundingTime:i time:i']),
    ('GET /fapi/v1/fundingRate', 'mainnet 2026-09-15', g('/fapi/v1/fundingRate', **BTC, limit=2), live(R, 'GET /fapi/v1/fundingRate?symbol=BTCUSDT&limit=2')),
    ('GET /fapi/v1/openInterest', 'mainnet 2026-09-15', g('/fapi/v1/openInterest', **BTC), live(R, 'GET /fapi/v1/openInterest?symbol=BTCUSDT')),
    ('GET /futures/data/openInterestHist', 'docs fixture', g('/futures/data/openInterestHist', **BTC, period='1h', limit=2), page('http_futures_market_open_interest_historical.json'), 'CMCCirculatingSupply'),
    ('GET /futures/data/topLongShortPositionRatio', 'docs fixture', g('/futures/data/topLongShortPositionRatio', **BTC, period='1h', limit=2), page('http_futures_market_top_long_short_position_ratio.json')),
    ('GET /futures/data/topLongShortAccountRatio', 'docs fixture', g('/futures/data/topLongShortAccountRatio', **BTC, period='1h', limit=2), page('http_futures_market_top_long_short_account_ratio.json')),
    ('GET /futures/data/globalLongShortAccountRatio', 'docs fixture', g('/futures/data/globalLongShortAccountRatio', **BTC, period='1h', limit=2), page('http_futures_market_global_long_short_account_ratio.json')),
    ('GET /futures/data/takerlongshortRatio', 'docs fixture', g('/futures/data/takerlongshortRatio', **BTC, period='1h', limit=2), page('http_futures_market_taker_long_short_ratio.json')),
    ('GET /fapi/v1/assetIndex', 'docs fixture', g('/fapi/v1/assetIndex', symbol='BTCUSD'), page('http_futures_market_asset_index.json')),
]


def btc(v): return next(x for x in v.get('/fapi/v1/exchangeInfo')['symbols'] if x['symbol'] == 'BTCUSDT')
def plain(x): return {k: y for k, y in x.items() if k != 'filters'}
def filters(x): return {f['filterType']: f for f in x['filters']}


def amended(v):
    o = v.limit()
    return v.call('PUT', '/fapi/v1/order', **BTC, orderId=o['orderId'], side='BUY', quantity='0.003', price=v.px(0.965))


def batch(v, method='POST'):
    price = v.px(0.97)
    rows = v.call('POST', '/fapi/v1/batchOrders', batchOrders=json.dumps([dict(symbol='BTCUSDT', side='BUY', type='LIMIT', timeInForce='GTC', quantity='0.002', price=price)]*2))
    if method == 'POST': return rows
    if method == 'PUT': return v.call('PUT', '/fapi/v1/batchOrders', batchOrders=json.dumps([dict(symbol='BTCUSDT', side='BUY', orderId=r['orderId'], quantity='0.003', price=price) for r in rows]))
    return v.call('DELETE', '/fapi/v1/batchOrders', **BTC, orderIdList=json.dumps([r['orderId'] for r in rows]))


def listen(v, method):
    key = v.call('POST', '/fapi/v1/listenKey', 'key')
    return key if method == 'POST' else v.call(method, '/fapi/v1/listenKey', 'key', listenKey=key['listenKey'])


PRIVATE = [
    ('GET /fapi/v2/account', 'docs fixture', s('/fapi/v2/account'), page('rs_http_json_account_info_v2.json'), 'feeBurn breakEvenPrice notional isolatedWallet'),
    ('GET /fapi/v3/account', 'ccxt recording', s('/fapi/v3/account'), ccxt('GET /fapi/v3/account')),
    ('GET /fapi/v2/balance', 'docs fixture', s('/fapi/v2/balance'), page('rs_http_json_balance.json')),
    ('GET /fapi/v3/balance', 'docs fixture', s('/fapi/v3/balance'), page('rs_http_json_balance.json')),
    ('GET /fapi/v2/positionRisk', 'docs fixture', s('/fapi/v2/positionRisk', **BTC), page('rs_http_json_position_risk.json')),
    ('GET /fapi/v2/positionRisk one-way', 'docs fixture', s('/fapi/v2/positionRisk', **BTC), page('http_futures_account_positions_one_way.json'), 'breakEvenPrice notional isolatedWallet'),
    ('GET /fapi/v3/positionRisk', 'ccxt recording', s('/fapi/v3/positionRisk', **BTC), ccxt('GET /fapi/v3/positionRisk')),
    ('GET /fapi/v1/accountConfig', '§3.3', s('/fapi/v1/accountConfig'), CONFIG),
    ('GET /fapi/v1/symbolConfig', 'docs fixture', s('/fapi/v1/symbolConfig', **BTC), page('http_futures_account_symbol_config.json')),
    ('GET /fapi/v1/income', '§3.3', s('/fapi/v1/income', limit=5), ['symbol:s incomeType:s income:n asset:s info:s time:i tranId:i tradeId:s']),
    ('GET /fapi/v1/leverageBracket', '§3.3', s('/fapi/v1/leverageBracket'), BRACKET),
    ('GET /fapi/v1/commissionRate', 'docs fixture', s('/fapi/v1/commissionRate', **BTC), page('http_futures_wallet_commission_rate_btcusdt.json'), 'rpiCommissionRate'),
    ('GET /fapi/v1/positionSide/dual', 'docs fixture', s('/fapi/v1/positionSide/dual'), page('http_futures_account_position_side_dual.json')),
    ('GET /fapi/v1/multiAssetsMargin', '§3.3', s('/fapi/v1/multiAssetsMargin'), 'multiAssetsMargin:b'),
    ('GET /fapi/v1/feeBurn', '§3.3', s('/fapi/v1/feeBurn'), 'feeBurn:b'),
    ('GET /fapi/v1/rateLimit/order', '§3.3', s('/fapi/v1/rateLimit/order'), ['rateLimitType:s interval:s intervalNum:i limit:i ~count:i']),
    ('GET /fapi/v1/adlQuantile', '§3.3', s('/fapi/v1/adlQuantile', **BTC), None),
    ('GET /sapi/v1/account/apiRestrictions', '§3.3', s('/sapi/v1/account/apiRestrictions'), RIGHTS),
    ('POST /fapi/v1/leverage', '§3.3', lambda v: v.call('POST', '/fapi/v1/leverage', **BTC, leverage=8), 'leverage:i maxNotionalValue:n symbol:s'),
    ('POST /fapi/v1/marginType', '§3.3', lambda v: (v.clean(), v.call('POST', '/fapi/v1/marginType', **BTC, marginType='ISOLATED'), v.call('POST', '/fapi/v1/marginType', **BTC, marginType='CROSSED'))[-1], OK),
    ('POST /fapi/v1/positionSide/dual', '§3.3', lambda v: (v.clean(), v.call('POST', '/fapi/v1/positionSide/dual', dualSidePosition='true'), v.call('POST', '/fapi/v1/positionSide/dual', dualSidePosition='false'))[-1], OK),
    ('POST /fapi/v1/multiAssetsMargin', '§3.3', lambda v: (v.clean(), v.call('POST', '/fapi/v1/multiAssetsMargin', multiAssetsMargin='true'), v.call('POST', '/fapi/v1/multiAssetsMargin', multiAssetsMargin='false'))[-1], OK),
    ('POST /fapi/v1/positionMargin', '§3.3', lambda v: margin(v), 'amount:f code:i msg:s type:i'),
    ('POST /fapi/v1/order LIMIT', '§3.4', kept(lambda v: v.limit()), ROW),
    ('POST /fapi/v1/order recorded keys', 'ccxt recording', kept(lambda v: [v.limit()]), ccxt('POST /fapi/v1/batchOrders (limit sell)')),
    ('POST /fapi/v1/order MARKET RESULT', '§3.4', kept(lambda v: v.trade(newOrderRespType='RESULT')), ROW),
    ('POST /fapi/v1/order/test', '§3.4', kept(lambda v: v.call('POST', '/fapi/v1/order/test', **BTC, side='BUY', type='LIMIT', timeInForce='GTC', quantity='0.002', price=v.px(0.97))), ROW),
    ('PUT /fapi/v1/order', '§3.4', kept(amended), ROW),
    ('GET /fapi/v1/order', 'docs fixture', kept(lambda v: v.call('GET', '/fapi/v1/order', **BTC, orderId=v.limit()['orderId'])), page('rs_http_json_order_response.json')),
    ('DELETE /fapi/v1/order', '§3.4', kept(lambda v: v.call('DELETE', '/fapi/v1/order', **BTC, orderId=v.limit()['orderId'])), ROW),
    ('GET /fapi/v1/openOrder', 'ccxt recording', kept(lambda v: v.call('GET', '/fapi/v1/openOrder', **BTC, orderId=v.limit()['orderId'])), ccxt('GET /fapi/v1/openOrder')),
    ('GET /fapi/v1/openOrders', '§3.4', kept(lambda v: (v.limit(), v.call('GET', '/fapi/v1/openOrders', **BTC))[1]), [FOUND]),
    ('GET /fapi/v1/allOrders', 'docs fixture', kept(lambda v: closed(v, '/fapi/v1/allOrders', limit=5)), page('http_futures_account_orders.json'), 'priceMatch selfTradePreventionMode goodTillDate pair cumBase', 'activatePrice priceRate'),
    ('DELETE /fapi/v1/allOpenOrders', '§1.4', kept(lambda v: v.call('DELETE', '/fapi/v1/allOpenOrders', **BTC)), OK),
    ('POST /fapi/v1/batchOrders', 'ccxt recording', kept(batch), ccxt('POST /fapi/v1/batchOrders (limit sell)')),
    ('PUT /fapi/v1/batchOrders', '§3.4', kept(lambda v: batch(v, 'PUT')), [ROW]),
    ('DELETE /fapi/v1/batchOrders', '§3.4', kept(lambda v: batch(v, 'DELETE')), [ROW]),
    ('POST /fapi/v1/countdownCancelAll', '§3.4', lambda v: v.call('POST', '/fapi/v1/countdownCancelAll', **BTC, countdownTime=0), 'symbol:s countdownTime:n'),
    ('GET /fapi/v1/userTrades', '§3.4', kept(lambda v: v.call('GET', '/fapi/v1/userTrades', **BTC, limit=5)), [TRADE]),
    ('GET /fapi/v1/userTrades recorded keys', 'ccxt recording', kept(lambda v: v.call('GET', '/fapi/v1/userTrades', **BTC, limit=5)), ccxt('GET /fapi/v1/userTrades'), 'pair baseQty'),
    ('GET /fapi/v1/userTrades docs keys', 'docs fixture', kept(lambda v: v.call('GET', '/fapi/v1/userTrades', **BTC, limit=5)), page('http_futures_account_trades.json'), 'pair baseQty'),
    ('POST /fapi/v1/listenKey', '§3.4', lambda v: listen(v, 'POST'), 'listenKey:s'),
    ('PUT /fapi/v1/listenKey', '§3.4', lambda v: listen(v, 'PUT'), 'listenKey:s'),
    ('DELETE /fapi/v1/listenKey', '§3.4', lambda v: listen(v, 'DELETE'), {}),
    ('POST /fapi/v1/algoOrder', '§1.4', kept(lambda v: v.algo()), ALGO),
    ('POST /fapi/v1/algoOrder closePosition', '§1.4', kept(lambda v: v.algo(quantity=None, closePosition='true')), ALGO),
    ('POST /fapi/v1/algoOrder trailing', '§1.4', kept(lambda v: v.algo(type='TRAILING_STOP_MARKET', triggerPrice=None, callbackRate='1.0')), ALGO),
    ('POST /fapi/v1/algoOrder STOP', '§1.4', kept(lambda v: v.algo(type='STOP', price=v.px(0.79), timeInForce='GTC')), ALGO),
    ('GET /fapi/v1/algoOrder', '§1.4', kept(lambda v: v.call('GET', '/fapi/v1/algoOrder', algoId=v.algo()['algoId'])), ONE_ALGO),
    ('DELETE /fapi/v1/algoOrder', '§1.4', kept(lambda v: v.call('DELETE', '/fapi/v1/algoOrder', algoId=v.algo()['algoId'])), 'algoId:i clientAlgoId:s code:n msg:s'),
    ('GET /fapi/v1/openAlgoOrders', '§1.4', kept(lambda v: (v.algo(), v.call('GET', '/fapi/v1/openAlgoOrders', **BTC))[1]), [SOME_ALGO]),
    ('GET /fapi/v1/allAlgoOrders', '§1.4', kept(lambda v: (v.algo(), v.call('GET', '/fapi/v1/allAlgoOrders', **BTC))[1]), [SOME_ALGO]),
    ('DELETE /fapi/v1/algoOpenOrders', '§1.4', kept(lambda v: v.call('DELETE', '/fapi/v1/algoOpenOrders', **BTC)), OK),
]


def margin(v):
    "Add margin to an isolated position"
    v.clean(); v.ask('POST', '/fapi/v1/marginType', **BTC, marginType='ISOLATED')
    try:
        v.trade()
        return v.call('POST', '/fapi/v1/positionMargin', **BTC, amount='1', type=1)
    finally: v.clean(); v.ask('POST', '/fapi/v1/marginType', **BTC, marginType='CROSSED')


SANDBOX_ONLY = {'GET /fapi/v1/assetIndex', 'GET /sapi/v1/account/apiRestrictions', 'POST /fapi/v1/multiAssetsMargin'} # The demo venue refuses or lacks them


def test_the_suite_is_as_large_as_it_says(): assert len(PUBLIC + PRIVATE) >= 60 and len({e[1] for e in ERRORS} | {e[2] for e in WORLD}) >= 30


@pytest.mark.parametrize('pair', PUBLIC + PRIVATE, ids=lambda p: f'{p[0]} [{p[1]}]')
def test_an_answer_has_the_shape_of_the_venue(venue, pair):
    name, _, ask, want, more, less = (*pair, '', '')[:6]
    if venue.sandbox is None and name in SANDBOX_ONLY: pytest.skip('not on the demo venue')
    if callable(want):
        if not MARKET.exists(): pytest.skip('the recordings are not here')
        want = want()
    got = ask(venue)
    if want is not None: compared(want, got, more, less)


# Refusals: (what, code, source, request); the request gives (status, body, headers)

def o(v, **p): return v.ask('POST', '/fapi/v1/order', **{k: x for k, x in (dict(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.002') | p).items() if x is not None})
def l(v, **p): return o(v, **dict(type='LIMIT', timeInForce='GTC', price=v.px(0.97)) | p)
def a(v, **p): return v.ask('POST', '/fapi/v1/algoOrder', **{k: x for k, x in (dict(algoType='CONDITIONAL', symbol='BTCUSDT', side='SELL', type='STOP_MARKET', quantity='0.002', triggerPrice=v.px(0.8)) | p).items() if x is not None})
def q(path, access='open', **p): return lambda v: v.ask('GET', path, access, **p)
def b(path, **p): return lambda v: v.ask('GET', path, **p)


def twice(v):
    "The same client id twice among open orders"
    name = v.name(); v.limit(newClientOrderId=name)
    return l(v, newClientOrderId=name)


ERRORS = [
    ('no key', -2014, 'mainnet 2026-09-15', lambda v: v.ask('GET', '/fapi/v3/balance', head=False)),
    ('historical trades without a key', -2014, 'mainnet 2026-09-15', lambda v: v.ask('GET', '/fapi/v1/historicalTrades', 'open', symbol='BTCUSDT', limit=1)),
    ('another key', -2015, '§4.3', lambda v: v.ask('GET', '/fapi/v3/balance', key='other')),
    ('a wrong signature', -1022, '§4.3', lambda v: v.ask('GET', '/fapi/v3/balance', secret='other')),
    ('a late timestamp', -1021, '§4.1', lambda v: v.ask('GET', '/fapi/v3/balance', shift=-9000)),
    ('an early timestamp', -1021, '§4.1', lambda v: v.ask('GET', '/fapi/v3/balance', shift=60_000)),
    ('no signature', -1102, '§4.3', lambda v: v.ask('GET', '/fapi/v3/balance', drop=('signature',))),
    ('no interval', -1102, '§4.3', q('/fapi/v1/klines', symbol='BTCUSDT')),
    ('an unknown symbol', -1121, 'mainnet 2026-09-15', q('/fapi/v1/ticker/24hr', symbol='NOTAREALSYM')),
    ('an unknown interval', -1120, 'mainnet 2026-09-15', q('/fapi/v1/klines', symbol='BTCUSDT', interval='1s', limit=1)),
    ('too many candles', -1130, 'mainnet 2026-09-15', q('/fapi/v1/klines', symbol='BTCUSDT', interval='1m', limit=2000)),
    ('too many aggregate trades', -1130, 'mainnet 2026-09-15', q('/fapi/v1/aggTrades', symbol='BTCUSDT', limit=1001)),
    ('an odd depth', -4021, 'mainnet 2026-09-15', q('/fapi/v1/depth', symbol='BTCUSDT', limit=3)),
    ('an order type of spot', -1116, 'issue Lean.Brokerages.Binance#45', lambda v: o(v, type='LIMIT_MAKER')),
    ('an unknown side', -1117, '§4.3', lambda v: o(v, side='LONG')),
    ('an unknown time in force', -1115, '§4.3', lambda v: l(v, timeInForce='DAY')),
    ('an unknown response type', -1136, '§4.3', lambda v: o(v, newOrderRespType='SOME')),
    ('no quantity', -1102, '§4.3', lambda v: o(v, quantity=None)),
    ('no price', -1102, '§4.3', lambda v: l(v, price=None)),
    ('a quantity of zero', -4003, 'issue Binance-Futures-Trading-Bot#52', lambda v: o(v, quantity='0')),
    ('too little', -4164, 'issue alpha-rptr#77', lambda v: o(v, symbol='ETHUSDT', quantity='0.001')),
    ('too much', -4005, '§3.2', lambda v: o(v, quantity='100000')),
    ('too many decimals of quantity', -1111, '§3.2', lambda v: o(v, quantity='0.0020001')),
    ('too many decimals of price', -1111, '§3.2', lambda v: l(v, price=v.px(0.97) + '00001')),
    ('a price off the tick', -4014, '§3.2', lambda v: l(v, price=v.px(0.97) + '1')),
    ('a price below the least', -4013, '§3.2', lambda v: l(v, price='1.0')),
    ('a buy far above the mark', -4016, '§3.2', lambda v: l(v, price=v.px(1.3))),
    ('a sell far below the mark', -4024, '§3.2', lambda v: l(v, side='SELL', price=v.px(0.7))),
    ('more than the margin carries', -2019, 'issue ccxt#7542', lambda v: o(v, quantity='90')),
    ('reduce-only without a position', -2022, 'pull ccxt#11068', lambda v: (v.clean(), o(v, side='SELL', reduceOnly='true'))[1]),
    ('a long client id', -4015, '§5', lambda v: l(v, newClientOrderId='x'*37)),
    ('odd letters in a client id', -4015, '§5', lambda v: l(v, newClientOrderId='a b')),
    ('the same client id twice', -4116, '§5', twice),
    ('a stop at the order endpoint', -4120, 'issue freqtrade#12610', lambda v: o(v, type='STOP_MARKET', side='SELL', stopPrice=v.px(0.8))),
    ('a trailing stop at the order endpoint', -4120, '§1.1', lambda v: o(v, type='TRAILING_STOP_MARKET', side='SELL', callbackRate='1')),
    ('hedge side in one-way mode', -4061, '§4.3', lambda v: o(v, positionSide='LONG')),
    ('no such side of a position', -4060, '§4.3', lambda v: o(v, positionSide='UP')),
    ('a query without any id', -1102, '§4.3', b('/fapi/v1/order', symbol='BTCUSDT')),
    ('a query for nothing', -2013, '§4.3', b('/fapi/v1/order', symbol='BTCUSDT', orderId=1)),
    ('a query for no open order', -2013, '§3.4', b('/fapi/v1/openOrder', symbol='BTCUSDT', origClientOrderId='nobody')),
    ('a cancel for nothing', -2011, '§4.3', lambda v: v.ask('DELETE', '/fapi/v1/order', symbol='BTCUSDT', origClientOrderId='nobody')),
    ('an algo query for nothing', -2013, '§1.4', b('/fapi/v1/algoOrder', clientAlgoId='nobody')),
    ('an algo cancel for nothing', -2011, '§1.4', lambda v: v.ask('DELETE', '/fapi/v1/algoOrder', clientAlgoId='nobody')),
    ('FOK that cannot fill', -5021, '§4.3', lambda v: l(v, timeInForce='FOK')),
    ('post-only that would take', -5022, 'issue binance-futures-connector-java#51', lambda v: l(v, timeInForce='GTX', price=v.px(1.01))),
    ('a stop that is already through', -2021, 'pull ccxt#11068', lambda v: a(v, triggerPrice=v.px(1.1))),
    ('closePosition with a quantity', -4137, '§1.3', lambda v: a(v, closePosition='true')),
    ('closePosition with reduce-only', -4138, '§1.3', lambda v: a(v, closePosition='true', quantity=None, reduceOnly='true')),
    ('a second closePosition stop', -4130, '§1.3', lambda v: (held(v).algo(quantity=None, closePosition='true'), a(v, quantity=None, closePosition='true'))[1]),
    ('an odd working type', -4031, '§4.3', lambda v: a(v, workingType='LAST')),
    ('a conditional order without a trigger', -1102, '§1.3', lambda v: a(v, triggerPrice=None)),
    ('an impossible leverage', -4028, '§3.3', lambda v: v.ask('POST', '/fapi/v1/leverage', symbol='BTCUSDT', leverage=500)),
    ('the margin type it has', -4046, 'issue binance-connector-python#538', lambda v: v.ask('POST', '/fapi/v1/marginType', symbol='BTCUSDT', marginType='CROSSED')),
    ('the position mode it has', -4059, '§3.3', lambda v: v.ask('POST', '/fapi/v1/positionSide/dual', dualSidePosition='false')),
    ('the multi-assets mode it has', -4171, '§3.3', lambda v: v.ask('POST', '/fapi/v1/multiAssetsMargin', multiAssetsMargin='false')),
    ('a mode change with open orders', -4067, 'issue binance-connector-python#538', lambda v: (v.clean(), v.limit(), v.ask('POST', '/fapi/v1/positionSide/dual', dualSidePosition='true'))[2]),
    ('a mode change with a position', -4068, '§3.3', lambda v: (v.clean(), held(v).ask('POST', '/fapi/v1/positionSide/dual', dualSidePosition='true'))[1]),
    ('another margin type with open orders', -4047, '§3.3', lambda v: (v.clean(), v.limit(), v.ask('POST', '/fapi/v1/marginType', symbol='BTCUSDT', marginType='ISOLATED'))[2]),
    ('another margin type with a position', -4048, '§3.3', lambda v: (v.clean(), held(v).ask('POST', '/fapi/v1/marginType', symbol='BTCUSDT', marginType='ISOLATED'))[1]),
    ('six orders in a batch', -4082, '§3.4', lambda v: v.ask('POST', '/fapi/v1/batchOrders', batchOrders='[' + ','.join(['{"symbol":"BTCUSDT"}']*6) + ']')),
    ('an amendment that changes nothing', -5027, '§3.4', lambda v: same(v)),
    ('a listen key that is gone', -1125, '§3.4', lambda v: (v.call('POST', '/fapi/v1/listenKey', 'key'), v.call('DELETE', '/fapi/v1/listenKey', 'key'), v.ask('PUT', '/fapi/v1/listenKey', 'key'))[2]),
]


def same(v):
    r = v.limit()
    return v.ask('PUT', '/fapi/v1/order', symbol='BTCUSDT', orderId=r['orderId'], side='BUY', quantity=r['origQty'], price=r['price'])


@pytest.mark.parametrize('what, code, source, request_', ERRORS, ids=[f'{e[1]} {e[0]}' for e in ERRORS])
def test_a_refusal_has_the_code_of_the_venue(venue, what, code, source, request_):
    try: status, body, _ = request_(venue)
    finally: venue.clean()
    assert (status, body.get('code')) == (401 if code in (-2014, -2015) else 400, code), body
    assert set(body) == {'code', 'msg'} and body['msg']


def hedged(v, f):
    "What `f` is answered in hedge mode"
    v.clean(); v.sim('world', hedge=True)
    try: return f(v)
    finally: v.clean(); v.sim('world', hedge=False)


def limited(v, f, **limits):
    "What `f` is answered under other limits, and the world as it was"
    v.clean(); v.rest(60); old = v.sim('world')['limits']; v.sim('world', limits=limits)
    try: return f(v)
    finally: v.sim('world', limits=old); v.rest(60)


def broken(v, status):
    "An order for a symbol that is not trading"
    v.sim('world', status=dict(BTCUSDT=status))
    try: return o(v)
    finally: v.sim('world', status=dict(BTCUSDT='TRADING'))


def revoked(v):
    v.sim('world', revoke_key=True)
    try: return v.ask('GET', '/fapi/v3/balance')
    finally: v.sim('world', revoke_key=False)


WORLD = [ # Refusals that need another world: (what, status, code, source, request)
    ('reduce-only in hedge mode', 400, -1106, 'issue python-binance#947', lambda v: hedged(v, lambda v: o(v, positionSide='LONG', reduceOnly='true'))),
    ('no side of the position in hedge mode', 400, -4061, '§4.3', lambda v: hedged(v, o)),
    ('too many orders in ten seconds', 429, -1015, '§4.2', lambda v: limited(v, lambda v: [l(v) for _ in range(4)][-1], orders_10s=2)),
    ('too much weight', 429, -1003, '§4.2', lambda v: limited(v, lambda v: next(r for _ in range(30) if (r := v.ask('GET', '/fapi/v1/time', 'open'))[0] != 200), weight=20)),
    ('too many conditional orders', 400, -4045, '§1.1', lambda v: limited(v, lambda v: [a(v) for _ in range(3)][-1], algos=2)),
    ('more than the bracket allows', 400, -2027, '§7', lambda v: (v.call('POST', '/fapi/v1/leverage', symbol='BTCUSDT', leverage=125), v.sim('world', transfer=5_000_000), o(v, quantity='100'), v.sim('world', transfer=-5_000_000), v.call('POST', '/fapi/v1/leverage', symbol='BTCUSDT', leverage=5))[2]),
    ('a symbol that is closed', 400, -4141, '§4.3', lambda v: broken(v, 'SETTLING')),
    ('a key that was revoked', 401, -2015, '§4.3', revoked),
]


@pytest.mark.parametrize('what, status, code, source, request_', WORLD, ids=[f'{e[2]} {e[0]}' for e in WORLD])
def test_a_refusal_of_another_world(venue, what, status, code, source, request_):
    if not venue.sandbox: pytest.skip('the world is not ours to change')
    try: got, body, head = request_(venue)
    finally: venue.clean()
    assert (got, body.get('code')) == (status, code), body
    if status == 429: assert int(head['Retry-After']) > 0


def test_refusals_say_what_was_recorded(venue):
    if not MARKET.exists(): pytest.skip('the recordings are not here')
    known = {e['code']: e['msg'] for e in Recorded('recorded_errors_from_issues.json').load()} | {e['body']['code']: e['body']['msg'] for e in live(R, 'errors').load()}
    wrong = {}
    for what, code, _, ask in ERRORS:
        if code in known and '{' not in known[code] and code not in (-4164, -4021, -1130):
            try: body = ask(venue)[1]
            finally: venue.clean()
            if body.get('msg') != known[code]: wrong[what] = (body, known[code])
    assert wrong == {}


def test_items_of_a_batch_are_refused_one_by_one(venue):
    "§3.4: an item's error comes with HTTP 200, beside its neighbours"
    rows = venue.call('POST', '/fapi/v1/batchOrders', batchOrders=json.dumps([dict(symbol='BTCUSDT', side='BUY', type='LIMIT', timeInForce='GTC', quantity='0.002', price=venue.px(0.97)),
        dict(symbol='BTCUSDT', side='SELL', type='STOP_MARKET', quantity='0.002', stopPrice=venue.px(0.8))]))
    venue.clean()
    assert rows[0]['status'] == 'NEW' and rows[1]['code'] == -4120


def test_order_headers_count_weight_and_orders(venue):
    "§4.2"
    _, _, h = l(venue); venue.clean()
    assert all(h[k].isdigit() for k in ('X-MBX-USED-WEIGHT-1M', 'X-MBX-ORDER-COUNT-10S', 'X-MBX-ORDER-COUNT-1M'))


# WebSocket streams

STREAMS = [ # (stream, route, source, shape, surplus keys allowed, keys that need not be there)
    ('btcusdt@markPrice@1s', 'market', 'docs fixture', page('rs_market_data_json_mark_price_stream.json'), 'ap ps', ''),
    ('!markPrice@arr@1s', 'market', '§6.2', ['e:s E:i s:s p:n ~ap:n i:n P:n r:s T:i ~st:i'], '', ''),
    ('btcusdt@kline_1m', 'market', 'docs fixture', page('rs_market_data_json_kline_stream_open.json'), '', ''),
    ('btcusdt_perpetual@continuousKline_1m', 'market', '§6.2', dict(e=('str',), E=('int',), ps=('str',), ct=('str',), k='t:i T:i i:s f:i L:i o:n c:n h:n l:n v:n n:i x:b q:n V:n Q:n B:n'), 'st', ''),
    ('btcusdt@aggTrade', 'market', 'docs fixture', page('rs_market_data_json_agg_trade_stream.json'), 'nq', ''),
    ('btcusdt@trade', 'public', 'docs fixture', page('rs_market_data_json_trade_stream.json'), 'X st ps', ''),
    ('btcusdt@bookTicker', 'public', 'docs fixture', page('ws_futures_book_ticker.json'), '', 'ps'),
    ('!bookTicker', 'public', 'docs fixture', page('ws_futures_book_ticker.json'), '', 'ps'),
    ('btcusdt@ticker', 'market', 'docs fixture', page('rs_market_data_json_ticker_stream.json'), 'ps', ''),
    ('!ticker@arr', 'market', 'docs fixture', lambda: [page('ws_futures_ticker_24hr.json').load()], 'ps', ''),
    ('btcusdt@miniTicker', 'market', '§6.2', 'e:s E:i s:s c:n o:n h:n l:n v:n q:n ~st:i ~ps:s', '', ''),
    ('!miniTicker@arr', 'market', '§6.2', ['e:s E:i s:s c:n o:n h:n l:n v:n q:n ~st:i ~ps:s'], '', ''),
    ('btcusdt@depth5@100ms', 'public', 'docs fixture', page('ws_futures_depth_update.json'), '', ''),
    ('btcusdt@depth@100ms', 'public', 'docs fixture', page('rs_market_data_json_depth_update_stream.json'), '', ''),
    ('btcusdt@bookTicker', 'public', 'feed of 2024-08-08', lambda: heard('usdm_ws_btcusdt_20240808.gz', 'bookTicker'), 'st ps', ''),
    ('btcusdt@markPrice@1s', 'market', 'feed of 2023-04-05', lambda: heard('usdm_ws_btcusdt_20230405.dat.gz', 'markPriceUpdate'), 'ap st ps', ''),
    ('btcusdt@trade', 'public', 'feed of 2024-08-08', lambda: heard('usdm_ws_btcusdt_20240808.gz', 'trade'), 'st ps', ''),
    ('btcusdt@depth@100ms', 'public', 'feed of 2024-08-08', lambda: heard('usdm_ws_btcusdt_20240808.gz', 'depthUpdate'), 'st ps', ''),
]


@pytest.mark.parametrize('name, route, source, want, more, less', STREAMS, ids=[f'{e[0]} [{e[2]}]' for e in STREAMS])
def test_a_stream_has_the_shape_of_the_venue(venue, name, route, source, want, more, less):
    if not MARKET.exists() and (callable(want) or isinstance(want, Recorded)): pytest.skip('the recordings are not here')
    want = want() if callable(want) else want
    ws = venue.socket(f'/{route}/stream?streams={name}')
    try:
        for _ in range(2): venue.tick(6000)
        got = ws.read(0.2 if venue.sandbox else 4, 40)
    finally: ws.close()
    assert got and got[0]['stream'] == name
    full = max(got, key=lambda m: len(m['data'].get('b', '')) and len(m['data'].get('a', '')) if isinstance(m['data'], dict) else 0)
    compared(want, full['data'], more, less)


@pytest.mark.parametrize('path', ['/market/ws/btcusdt@bookTicker', '/public/ws/btcusdt@markPrice', '/private/ws?listenKey=' + 'z'*64])
def test_the_wrong_route_and_a_bogus_key_are_silent(venue, path):
    "§6.1: the connection is taken, the subscription acknowledged, and nothing ever comes"
    ws = venue.socket(path)
    try:
        ws.send(dict(method='SUBSCRIBE', params=['BTCUSDT@nonsense'], id=7)); venue.tick(4000)
        assert ws.read(0.3 if venue.sandbox else 3) in ([dict(result=None, id=7)], [])
    finally: ws.close()


# User events

class Ear:
    "The user stream of a venue"
    def __init__(self, venue):
        self.venue, self.key = venue, venue.call('POST', '/fapi/v1/listenKey', 'key')['listenKey']
        self.ws = venue.socket(f'/private/ws?listenKey={self.key}')
    def __enter__(self): return self
    def __exit__(self, *exc): self.ws.close(); self.venue.clean()
    def read(self): return self.ws.read(0.3 if self.venue.sandbox else 3)
    def of(self, kind, events=None, **match):
        "The first event of `kind` whose body has these values"
        events = self.read() if events is None else events
        return next((e for e in events if e['e'] == kind and all(e.get('o', e).get(k) == x for k, x in match.items())), None)


OTU = 'ORDER_TRADE_UPDATE'
LATE = 'N n AP cr gtd W pm V er M rm ia' # Keys that come with some events only, or were added after the fixture


@pytest.fixture
def ear(venue):
    venue.clean()
    with Ear(venue) as e: yield e


def test_events_of_a_fill(ear):
    v = ear.venue; v.trade(); v.tick(1000)
    events = ear.read()
    compared(page('rs_user_data_json_order_update_trade.json'), ear.of(OTU, events, x='TRADE'), LATE, LATE)
    compared(page('ws_futures_order_update_trade_reduce_only_qty.json'), ear.of(OTU, events, x='TRADE'), LATE + ' er', LATE)
    compared(page('rs_user_data_json_account_update.json'), ear.of('ACCOUNT_UPDATE', events), '', '')
    compared(page('rs_user_data_json_trade_lite.json'), ear.of('TRADE_LITE', events), '', '')
    assert ear.of(OTU, events, x='NEW') and ear.of('ACCOUNT_UPDATE', events)['a']['m'] == 'ORDER'


def test_events_of_a_resting_order(ear):
    v = ear.venue; r = v.limit(); v.call('DELETE', '/fapi/v1/order', symbol='BTCUSDT', orderId=r['orderId'])
    events = ear.read()
    compared(page('rs_user_data_json_order_update_new.json'), ear.of(OTU, events, x='NEW'), LATE, LATE)
    compared(page('ws_futures_order_update_new_price_match.json'), ear.of(OTU, events, x='NEW'), LATE, LATE)
    assert ear.of(OTU, events, x='CANCELED', X='CANCELED') and not ear.of('ACCOUNT_UPDATE', events), '§6.3: an order that was not filled changes no balance'


def test_events_of_an_amendment(ear):
    amended(ear.venue)
    assert ear.of(OTU, x='AMENDMENT')['o']['q'].startswith('0.003')


def test_events_of_a_conditional_order(ear):
    v = ear.venue; r = v.algo(); v.call('DELETE', '/fapi/v1/algoOrder', algoId=r['algoId'])
    events = ear.read()
    compared(page('rs_user_data_json_algo_update_new.json'), ear.of('ALGO_UPDATE', events, X='NEW'), LATE, LATE)
    compared(page('rs_user_data_json_algo_update_canceled.json'), ear.of('ALGO_UPDATE', events, X='CANCELED'), LATE, LATE)


def test_events_of_a_stop_that_fires(ear):
    v = ear.venue
    if not v.sandbox: pytest.skip('a real market does not fall on request')
    v.trade(); r = v.algo(0.99, reduceOnly='true', workingType='MARK_PRICE'); ear.read()
    v.sim('world', price=dict(BTCUSDT=0.985)); v.tick(60_000)
    try: events = ear.read()
    finally: v.sim('world', price=dict(BTCUSDT=1/0.985)); v.tick(60_000)
    assert [e['o']['X'] for e in events if e['e'] == 'ALGO_UPDATE'] == ['TRIGGERING', 'TRIGGERED', 'FINISHED']
    for state in ('triggering', 'triggered', 'finished'): compared(page(f'ws_futures_algo_update_{state}.json'), ear.of('ALGO_UPDATE', events, X=state.upper()), LATE, LATE + (' ap aq act' if state == 'triggering' else ''))
    child = ear.of(OTU, events, x='TRADE')['o']
    assert child['ot'] == 'STOP_MARKET' and str(child['i']) == ear.of('ALGO_UPDATE', events, X='TRIGGERED')['o']['ai'] and child['i'] != r['algoId']


def test_events_of_the_account(ear):
    v = ear.venue
    v.call('POST', '/fapi/v1/leverage', symbol='BTCUSDT', leverage=6); v.call('POST', '/fapi/v1/leverage', symbol='BTCUSDT', leverage=5)
    compared(dict(e=('str',), E=('int',), T=('int',), ac='s:s l:i'), ear.of('ACCOUNT_CONFIG_UPDATE'))


@pytest.mark.parametrize('what, fixtures, client', [('liquidate', ['ws_futures_order_update_liquidation.json', 'rs_user_data_json_order_update_calculated.json'], 'autoclose-'), ('adl', ['ws_futures_order_update_adl.json', 'rs_user_data_json_order_update_adl.json'], 'adl_autoclose')])
def test_events_of_a_forced_close(ear, what, fixtures, client):
    v = ear.venue
    if not v.sandbox: pytest.skip('nobody is liquidated on request')
    v.trade(quantity='0.01'); v.tick(1000); ear.read()
    v.sim('world', **{what: 'BTCUSDT' if what == 'liquidate' else dict(symbol='BTCUSDT', fraction=0.5)}); v.tick(1000)
    event = next(e for e in ear.read() if e['e'] == OTU and e['o']['c'].startswith(client) and e['o']['l'] != '0')
    assert event['o']['x'] in ('CALCULATED', 'TRADE')
    for f in fixtures: compared(page(f), event, LATE, LATE)


def test_an_expired_listen_key_is_said_and_the_socket_stays(ear):
    v = ear.venue
    if not v.sandbox: pytest.skip('a key lives for an hour')
    v.sim('fault', effect='expire_listen_key'); v.tick(1000)
    compared('e:s E:i listenKey:s', ear.of('listenKeyExpired'))
