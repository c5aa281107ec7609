"ccxt, which nobody here wrote, trades on the sandbox over HTTP and listens over WebSocket"
import asyncio
import time

import ccxt
import pytest

from quantlib.core.clock import HOUR, MINUTE
from quantlib.sandbox.server import start
from sandbox_kit import START, two

PAIR, ID = 'BTC/USDT:USDT', 'BTCUSDT'


def aim(ex, server):
    "Point a ccxt exchange at the sandbox: its addresses and its watch, nothing else"
    for name, url in ex.urls['api'].items():
        if isinstance(url, str) and '://' in url: ex.urls['api'][name] = server.url + '/' + url.split('/', 3)[3]
    ex.nonce = lambda: server.exchange.now
    return ex


@pytest.fixture(scope='module')
def server():
    with start(two(), START) as s: yield s


@pytest.fixture(scope='module')
def ex(server):
    e = aim(ccxt.binanceusdm(dict(apiKey='paper', secret='paper', enableRateLimit=False, options=dict(fetchCurrencies=False, fetchMargins=False))), server)
    e.load_markets()
    return e


@pytest.fixture(autouse=True)
def clean(ex):
    yield
    ex.cancel_all_orders(PAIR); ex.cancel_all_orders(PAIR, dict(trigger=True))
    for p in ex.fetch_positions([PAIR]):
        if p['contracts']: ex.create_order(PAIR, 'market', 'sell' if p['side'] == 'long' else 'buy', p['contracts'], None, dict(reduceOnly=True))


def px(ex, factor): return float(ex.price_to_precision(PAIR, ex.fetch_ticker(PAIR)['last']*factor))


def test_markets_have_their_rules(ex):
    m = ex.market(PAIR)
    assert (m['id'], m['linear'], m['active'], m['contractSize'], m['settle']) == (ID, True, True, 1, 'USDT')
    notional = next(float(f['notional']) for f in m['info']['filters'] if f['filterType'] == 'MIN_NOTIONAL')
    assert m['limits']['cost']['min'] == notional >= 50 and float(ex.amount_to_precision(PAIR, 0.12345)) == 0.123 and ex.price_to_precision(PAIR, 99_999.87) == '99999.9'
    assert set(ex.symbols) == {PAIR, 'ETH/USDT:USDT'}


def test_market_data(ex, server):
    assert ex.fetch_time() == server.exchange.now
    candles = ex.fetch_ohlcv(PAIR, '1h', limit=24)
    assert len(candles) == 24 and all(len(c) == 6 and c[2] >= c[3] for c in candles)
    book = ex.fetch_order_book(PAIR, 5)
    assert book['bids'][0][0] < book['asks'][0][0] and len(book['asks']) == 5
    assert abs(ex.fetch_ticker(PAIR)['last'] - candles[-1][4])/candles[-1][4] < 0.05
    assert ex.fetch_funding_rate(PAIR)['fundingRate'] == pytest.approx(1e-4)
    assert len(ex.fetch_funding_rate_history(PAIR, limit=3)) == 3
    assert all(t['price'] > 0 for t in ex.fetch_trades(PAIR, limit=5))
    assert {t['maintenanceMarginRate'] for t in ex.fetch_market_leverage_tiers(PAIR)[:1]} == {0.004}


def test_settings_of_the_account(ex):
    assert ex.set_leverage(7, PAIR)['leverage'] == 7
    assert ex.fetch_leverage(PAIR)['longLeverage'] == 7
    with pytest.raises(ccxt.ExchangeError, match='-4046'): ex.set_margin_mode('cross', PAIR)
    ex.set_margin_mode('isolated', PAIR); ex.set_margin_mode('cross', PAIR)
    assert ex.fetch_position_mode(PAIR)['hedged'] is False


def test_market_order_position_balance_and_trades(ex):
    before = ex.fetch_balance()['USDT']['total']
    o = ex.create_order(PAIR, 'market', 'buy', 0.01)
    assert (o['status'], o['filled'], o['remaining']) == ('closed', 0.01, 0) and o['average'] > 0
    (p,) = ex.fetch_positions([PAIR])
    assert (p['side'], p['contracts'], p['marginMode']) == ('long', 0.01, 'cross')
    assert p['liquidationPrice'] is None, 'an account this large is not liquidated by so little'
    (t,) = [t for t in ex.fetch_my_trades(PAIR, limit=5) if t['order'] == o['id']]
    assert t['fee']['currency'] == 'USDT' and t['fee']['cost'] == pytest.approx(0.0005*t['cost'], rel=1e-6) and t['takerOrMaker'] == 'taker'
    after = ex.fetch_balance()['USDT']
    assert after['total'] == pytest.approx(before - t['fee']['cost'] + p['unrealizedPnl'], abs=1e-4) and after['used'] > 0
    ex.create_order(PAIR, 'market', 'sell', 0.01, None, dict(reduceOnly=True))
    assert [p for p in ex.fetch_positions([PAIR]) if p['contracts']] == []
    with pytest.raises(ccxt.ExchangeError, match='-2022'): ex.create_order(PAIR, 'market', 'sell', 0.01, None, dict(reduceOnly=True))


def test_limit_orders_are_placed_found_changed_and_cancelled(ex):
    o = ex.create_order(PAIR, 'limit', 'buy', 0.01, px(ex, 0.97), dict(clientOrderId='foreign-1'))
    assert o['status'] == 'open' and o['clientOrderId'] == 'foreign-1'
    assert [x['id'] for x in ex.fetch_open_orders(PAIR)] == [o['id']] and ex.fetch_order(o['id'], PAIR)['status'] == 'open'
    e = ex.edit_order(o['id'], PAIR, 'limit', 'buy', 0.02, px(ex, 0.96))
    assert e['amount'] == 0.02 and ex.fetch_order(e['id'], PAIR)['price'] == px(ex, 0.96)
    assert ex.cancel_order(e['id'], PAIR)['status'] == 'canceled' and ex.fetch_open_orders(PAIR) == []
    assert 'canceled' in {x['status'] for x in ex.fetch_orders(PAIR, limit=10) if x['id'] == e['id']}
    with pytest.raises(ccxt.OrderNotFound): ex.cancel_order(o['id'], PAIR)
    two_ = ex.create_orders([dict(symbol=PAIR, type='limit', side='buy', amount=0.01, price=px(ex, 0.97)), dict(symbol=PAIR, type='limit', side='sell', amount=0.01, price=px(ex, 1.03))])
    assert [x['side'] for x in two_] == ['buy', 'sell'] and len(ex.fetch_open_orders(PAIR)) == 2
    ex.cancel_all_orders(PAIR); assert ex.fetch_open_orders(PAIR) == []


@pytest.mark.parametrize('kind, factor, more', [('market', 0.9, dict(stopLossPrice=1)), ('market', 1.1, dict(takeProfitPrice=1)), ('limit', 0.9, dict(stopLossPrice=1)), ('market', None, dict(trailingPercent=2.0))])
def test_conditional_orders_are_placed_and_cancelled(ex, kind, factor, more):
    ex.create_order(PAIR, 'market', 'buy', 0.01)
    more = {k: px(ex, factor) if factor else v for k, v in more.items()}
    o = ex.create_order(PAIR, kind, 'sell', 0.01, px(ex, 0.89) if kind == 'limit' else None, more | dict(reduceOnly=True))
    assert o['id'] and o['reduceOnly'] is True
    seen = ex.fetch_open_orders(PAIR, None, None, dict(trigger=True))
    assert [x['id'] for x in seen] == [o['id']] and ex.fetch_open_orders(PAIR) == []
    assert ex.fetch_order(o['id'], PAIR, dict(trigger=True))['id'] == o['id']
    ex.cancel_order(o['id'], PAIR, dict(trigger=True))
    assert ex.fetch_open_orders(PAIR, None, None, dict(trigger=True)) == []


def test_a_stop_at_the_old_endpoint_is_refused(ex):
    with pytest.raises(ccxt.ExchangeError, match='-4120'): ex.fapiPrivatePostOrder(dict(symbol=ID, side='SELL', type='STOP_MARKET', quantity='0.01', stopPrice='50000'))


def test_a_stop_fires_and_the_trade_is_found(ex, server):
    ex.create_order(PAIR, 'market', 'buy', 0.01)
    o = ex.create_order(PAIR, 'market', 'sell', 0.01, None, dict(stopLossPrice=px(ex, 0.995), reduceOnly=True))
    server.exchange.world(price={ID: 0.98})
    server.advance(2*MINUTE)
    fired = ex.fetch_order(o['id'], PAIR, dict(trigger=True))
    assert fired['info']['algoStatus'] == 'FINISHED' and [p for p in ex.fetch_positions([PAIR]) if p['contracts']] == []
    assert fired['info']['actualOrderId'] in {t['order'] for t in ex.fetch_my_trades(PAIR, limit=5)}
    server.exchange.world(price={ID: 1/0.98}); server.advance(MINUTE)


def test_funding_and_income(ex, server):
    ex.create_order(PAIR, 'market', 'buy', 0.01)
    server.advance(8*HOUR)
    paid = ex.fetch_funding_history(PAIR, limit=5)
    assert paid and all(r['code'] == 'USDT' and r['amount'] for r in paid)


def test_errors_arrive_as_errors(ex):
    with pytest.raises(ccxt.ExchangeError, match='-4164'): ex.create_order('ETH/USDT:USDT', 'market', 'buy', 0.001)
    with pytest.raises(ccxt.BaseError, match='-2019|-4005'): ex.create_order(PAIR, 'market', 'buy', 100)
    with pytest.raises(ccxt.ExchangeError): ex.fetch_order('1', PAIR)


def test_its_websocket_hears_the_market_and_the_account(server):
    import ccxt.pro as pro
    async def listen():
        e = aim(pro.binanceusdm(dict(apiKey='paper', secret='paper', enableRateLimit=False, options=dict(fetchCurrencies=False, fetchMargins=False))), server)
        ws = server.url.replace('http', 'ws')
        e.urls['api']['ws']['linear'] = ws + '/ws'
        try:
            await e.load_markets()
            candles, orders = asyncio.create_task(e.watch_ohlcv(PAIR, '1m')), asyncio.create_task(e.watch_orders(PAIR))
            await asyncio.sleep(0.5)
            await e.create_order(PAIR, 'market', 'buy', 0.01)
            deadline = time.monotonic() + 8
            while not (candles.done() and orders.done()) and time.monotonic() < deadline:
                await asyncio.to_thread(server.advance, 1000); await asyncio.sleep(0.1)
            assert candles.done() and len(candles.result()[-1]) == 6
            assert orders.done() and orders.result()[-1]['symbol'] == PAIR
        finally: await e.close()
    asyncio.run(listen())
