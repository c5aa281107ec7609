"User and market streams with python-binance's own sockets"
import asyncio
import contextlib
import json
import time

import aiohttp
import pytest
import requests
from binance import AsyncClient, BinanceSocketManager
from binance.exceptions import BinanceAPIException
from binance.ws.reconnecting_websocket import ReconnectingWebsocket

from quantlib.core.clock import HOUR, MINUTE
from quantlib.sandbox.rest import sign
from quantlib.sandbox.server import start
from sandbox_kit import START, Market, client, scripted, two


@pytest.fixture(autouse=True)
def quick_close(monkeypatch): monkeypatch.setattr(ReconnectingWebsocket, 'TIMEOUT', 1)  # its read loop looks at "close" only this often


@contextlib.asynccontextmanager
async def manager(server):
    "AsyncClient and socket manager, pointed at the server by attributes alone"
    class Local(AsyncClient):
        API_URL, MARGIN_API_URL = f'{server.url}/api', f'{server.url}/sapi'
        FUTURES_URL, FUTURES_DATA_URL = f'{server.url}/fapi', f'{server.url}/futures/data'
        WS_FUTURES_URL = server.url.replace('http', 'ws') + '/ws-fapi/v1'
        timestamp_offset = property(lambda self: server.exchange.now - time.time()*1000, lambda self, v: None)
    c = await Local.create('paper', 'paper')
    bsm = BinanceSocketManager(c, max_queue_size=5000)
    bsm.FSTREAM_URL = server.url.replace('http', 'ws') + '/'
    try: yield c, bsm
    finally: await c.close_connection()


async def hear(sock, n=1, timeout=5): return [await asyncio.wait_for(sock.recv(), timeout) for _ in range(n)]


async def until(sock, kind, state=None, timeout=5):
    "What a socket hears up to an event"
    out = []
    while not out or (out[-1]['e'], out[-1].get('o', {}).get('X', state)) != (kind, state): out += await hear(sock, timeout=timeout)
    return out


def run(coro): return asyncio.run(coro)


def test_user_stream_tells_of_fills_and_stops():
    async def main(server):
        async with manager(server) as (c, bsm), bsm.futures_user_socket() as sock:
            await asyncio.sleep(0.1)
            o = await c.futures_create_order(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.010', newClientOrderId='ql-1')
            new, lite, fill, account = await until(sock, 'ACCOUNT_UPDATE')
            assert (lite['e'], lite['t'], lite['c']) == ('TRADE_LITE', fill['o']['t'], 'ql-1')
            assert (new['o']['x'], fill['o']['x'], fill['o']['X'], fill['o']['c'], fill['o']['i'], fill['o']['n']) == ('NEW', 'TRADE', 'FILLED', 'ql-1', o['orderId'], '0.50005000')
            assert account['e'] == 'ACCOUNT_UPDATE' and account['a']['P'][0]['pa'] == '0.010' and account['a']['B'][0]['wb'] == '13999.49995000'
            await c.futures_create_order(symbol='BTCUSDT', side='SELL', type='STOP_MARKET', triggerPrice='98900', closePosition='true', clientAlgoId='ql-stop')
            assert (await hear(sock))[0]['o']['X'] == 'NEW'
            for _ in range(4):
                server.advance(HOUR//2)
                await c.futures_stream_get_listen_key() # Lives an hour of the exchange's clock
            seen = [e for e in await until(sock, 'ALGO_UPDATE', 'FINISHED') if e['e'] != 'TRADE_LITE']
            assert [(e['e'], e.get('o', {}).get('X')) for e in seen] == [('ALGO_UPDATE', 'TRIGGERING'), ('ALGO_UPDATE', 'TRIGGERED'), ('ORDER_TRADE_UPDATE', 'NEW'), ('ORDER_TRADE_UPDATE', 'FILLED'), ('ACCOUNT_UPDATE', None), ('ALGO_UPDATE', 'FINISHED')]
            assert all(START < e['E'] < START + 2*HOUR for e in seen)
    with start(Market(scripted((101_500, 99_900, 101_000), (101_200, 98_500, 98_800))), START) as server: run(main(server))


def test_market_streams():
    async def main(server):
        async with manager(server) as (c, bsm):
            async with bsm.futures_multiplex_socket(['btcusdt@kline_1m', 'ethusdt@markPrice@1s', '!miniTicker@arr', 'nonsense']) as sock:
                first = {m['stream']: m['data'] for m in await hear(sock, 3)}
                assert first['btcusdt@kline_1m']['k']['x'] is False and first['ethusdt@markPrice@1s']['e'] == 'markPriceUpdate' and len(first['!miniTicker@arr']) == 2
                server.advance(2*MINUTE + 1)
                more = [m for m in await hear(sock, 5) if m['stream'] == 'btcusdt@kline_1m']
                assert [m['data']['k']['x'] for m in more] == [True, True, False]
                rest = await c.futures_klines(symbol='BTCUSDT', interval='1m', limit=3)
                assert [m['data']['k']['c'] for m in more] == [r[4] for r in rest]
            async with bsm.kline_futures_socket('BTCUSDT', interval='1h') as sock:
                m, = await hear(sock)
                assert (m['e'], m['ps'], m['k']['i']) == ('continuous_kline', 'BTCUSDT', '1h')
            async with bsm.futures_multiplex_socket(['btcusdt@bookTicker'], category='public') as sock:
                m, = await hear(sock)
                assert float(m['data']['b']) < float(m['data']['a'])
    with start(two(), START) as server: run(main(server))


def test_wrong_routes_and_bogus_keys_are_acknowledged_and_silent():
    async def main(server):
        ws = server.url.replace('http', 'ws')
        async with aiohttp.ClientSession() as s:
            async with s.ws_connect(ws + '/market/ws/0') as w:
                await w.send_json(dict(method='SUBSCRIBE', params=['btcusdt@bookTicker', 'BTCUSDT@markPrice', 'what'], id=7))
                assert json.loads((await w.receive()).data) == dict(result=None, id=7)
                await w.send_json(dict(method='LIST_SUBSCRIPTIONS', id=8))
                assert json.loads((await w.receive()).data)['result'] == ['btcusdt@bookTicker', 'BTCUSDT@markPrice', 'what']
                await w.send_str('{nonsense')
                assert json.loads((await w.receive()).data)['code'] == 3
                await w.send_str('[1]')
                assert json.loads((await w.receive()).data)['code'] == 2
                server.advance(MINUTE)
                with pytest.raises(asyncio.TimeoutError): await asyncio.wait_for(w.receive(), 0.3)
                await w.send_json(dict(method='SUBSCRIBE', params=['btcusdt@markPrice'], id=9))
                assert json.loads((await w.receive()).data)['id'] == 9 and json.loads((await w.receive()).data)['e'] == 'markPriceUpdate'
                await w.send_json(dict(method='UNSUBSCRIBE', params=['btcusdt@markPrice'], id=10))
                assert json.loads((await w.receive()).data)['id'] == 10
                server.advance(MINUTE)
                with pytest.raises(asyncio.TimeoutError): await asyncio.wait_for(w.receive(), 0.3)
            async with s.ws_connect(ws + '/private/ws?listenKey=bogus') as w:
                client(server).futures_create_order(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.010')
                with pytest.raises(asyncio.TimeoutError): await asyncio.wait_for(w.receive(), 0.3)
            with pytest.raises(aiohttp.WSServerHandshakeError): await s.ws_connect(ws + '/elsewhere')
    with start(two(), START) as server: run(main(server))


def test_private_key_in_the_path_and_wrapped():
    async def main(server):
        ws, c = server.url.replace('http', 'ws'), client(server)
        key = c.futures_stream_get_listen_key()
        async with aiohttp.ClientSession() as s, s.ws_connect(f'{ws}/private/ws/{key}') as a, s.ws_connect(f'{ws}/private/stream?listenKey={key}') as b:
            await asyncio.to_thread(c.futures_create_order, symbol='BTCUSDT', side='BUY', type='LIMIT', timeInForce='GTC', quantity='0.010', price='98000')
            raw, wrapped = json.loads((await asyncio.wait_for(a.receive(), 5)).data), json.loads((await asyncio.wait_for(b.receive(), 5)).data)
            assert wrapped['data'] == raw and raw['e'] == 'ORDER_TRADE_UPDATE'
    with start(two(), START) as server: run(main(server))


def test_every_market_stream_speaks_on_its_route_alone():
    public = dict({'btcusdt@bookTicker': 'bookTicker', 'btcusdt@depth5@100ms': 'depthUpdate', 'btcusdt@depth20': 'depthUpdate', 'btcusdt@depth@100ms': 'depthUpdate', 'btcusdt@rpiDepth@500ms': 'depthUpdate', 'btcusdt@trade': 'trade'})
    market = {'btcusdt@aggTrade': 'aggTrade', 'btcusdt@kline_5m': 'kline', 'btcusdt_perpetual@continuousKline_1m': 'continuous_kline', 'btcusdt@markPrice': 'markPriceUpdate', 'btcusdt@markPrice@1s': 'markPriceUpdate',
              'btcusdt@ticker': '24hrTicker', 'btcusdt@miniTicker': '24hrMiniTicker', '!ticker@arr': '24hrTicker', '!markPrice@arr@1s': 'markPriceUpdate', '!miniTicker@arr': '24hrMiniTicker'}
    silent = ['btcusdt@compositeIndex', '!assetIndex@arr', 'tradingSession', '!contractInfo', 'btcusdt@forceOrder', '!forceOrder@arr', 'BTCUSDT@markPrice']
    async def main(server):
        ws, names = server.url.replace('http', 'ws'), '/'.join([*public, *market, *silent])
        async with aiohttp.ClientSession() as s, s.ws_connect(f'{ws}/public/stream?streams={names}') as a, s.ws_connect(f'{ws}/market/stream?streams={names}') as b, s.ws_connect(f'{ws}/stream?streams={names}') as c:
            for w, own in ((a, public), (b, market), (c, public)):
                got = {}
                server.advance(15_000)
                with contextlib.suppress(asyncio.TimeoutError):
                    while True:
                        d = json.loads((await asyncio.wait_for(w.receive(), 0.4)).data)
                        got[d['stream']] = d['data'][0]['e'] if isinstance(d['data'], list) else d['data']['e']
                assert got == own
    with start(two(), START) as server: run(main(server))


def test_a_book_kept_from_changes_equals_the_snapshot():
    async def main(server):
        c = client(server)
        async with aiohttp.ClientSession() as s, s.ws_connect(server.url.replace('http', 'ws') + '/public/ws/btcusdt@depth') as w:
            snap, sides, last = await asyncio.to_thread(c.futures_order_book, symbol='BTCUSDT', limit=1000), None, None
            sides = [{p: q for p, q in snap[k]} for k in ('bids', 'asks')]
            for i in range(6):
                if i: server.advance(40_000)
                if i == 3: await asyncio.to_thread(c.futures_create_order, symbol='BTCUSDT', side='BUY', type='MARKET', quantity='7'); server.advance(1_000)
                for _ in range(2 if i == 3 else 1):
                    e = json.loads((await asyncio.wait_for(w.receive(), 5)).data)
                    assert e['U'] <= snap['lastUpdateId'] <= e['u'] if last is None else e['pu'] == last
                    last = e['u']
                    for side, rows in zip(sides, (e['b'], e['a'])):
                        for p, q in rows: side.pop(p, None) if float(q) == 0 else side.__setitem__(p, q)
            now = await asyncio.to_thread(c.futures_order_book, symbol='BTCUSDT', limit=1000)
            assert [{p: q for p, q in now[k]} for k in ('bids', 'asks')] == sides and len(now['asks']) >= 15
    with start(two(), START) as server:
        server.exchange.account.leverages['BTCUSDT'] = 100
        run(main(server))


def test_liquidations_are_public_and_contracts_announce_their_state():
    async def main(server):
        ws, ex = server.url.replace('http', 'ws'), server.exchange
        await asyncio.to_thread(client(server).futures_create_order, symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.010')
        async with aiohttp.ClientSession() as s, s.ws_connect(f'{ws}/market/ws/btcusdt@forceOrder/!contractInfo/ethusdt@forceOrder') as w:
            await asyncio.sleep(0.1)
            world = lambda **d: requests.post(server.url + '/_sim/world', json=d, timeout=5).raise_for_status()
            await asyncio.to_thread(world, liquidate='BTCUSDT')
            e = json.loads((await asyncio.wait_for(w.receive(), 5)).data)
            assert (e['e'], e['o']['s'], e['o']['S'], e['o']['X'], e['o']['z']) == ('forceOrder', 'BTCUSDT', 'SELL', 'FILLED', '0.010')
            await asyncio.to_thread(world, status={'ETHUSDT': 'BREAK'})
            server.advance(1_000)
            e = json.loads((await asyncio.wait_for(w.receive(), 5)).data)
            assert (e['e'], e['s'], e['cs']) == ('contractInfo', 'ETHUSDT', 'BREAK')
    with start(two(), START) as server: run(main(server))


def test_listen_key_lives_an_hour_from_the_last_keepalive():
    async def main(server):
        ws, c = server.url.replace('http', 'ws'), client(server)
        key = await asyncio.to_thread(c.futures_stream_get_listen_key)
        async with aiohttp.ClientSession() as s, s.ws_connect(f'{ws}/private/ws?listenKey={key}&events=ALGO_UPDATE/listenKeyExpired') as w:
            await asyncio.sleep(0.05)
            server.advance(59*MINUTE)
            assert await asyncio.to_thread(c.futures_stream_keepalive, key) == dict(listenKey=key) == dict(listenKey=await asyncio.to_thread(c.futures_stream_get_listen_key))
            await asyncio.to_thread(c.futures_create_order, symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.010')
            server.advance(59*MINUTE)
            with pytest.raises(asyncio.TimeoutError): await asyncio.wait_for(w.receive(), 0.2)
            server.advance(2*MINUTE)
            assert json.loads((await asyncio.wait_for(w.receive(), 5)).data) == dict(e='listenKeyExpired', E=START + 119*MINUTE, listenKey=key)
            with pytest.raises(BinanceAPIException, match='1125'): await asyncio.to_thread(c.futures_stream_keepalive, key)
            assert not w.closed and await asyncio.to_thread(c.futures_stream_get_listen_key) != key
    with start(two(), START) as server: run(main(server))


def test_a_connection_ends_after_a_day_and_by_its_own_fault():
    async def main(server):
        async with aiohttp.ClientSession() as s:
            ws = server.url.replace('http', 'ws')
            async with s.ws_connect(ws + '/market/ws') as w:
                for i in range(45): await w.send_json(dict(method='LIST_SUBSCRIPTIONS', id=i))
                got = [await asyncio.wait_for(w.receive(), 5) for _ in range(41)]
                assert got[-1].type == aiohttp.WSMsgType.CLOSE and got[-1].data == 1008
            async with s.ws_connect(ws + '/market/ws') as w:
                await w.send_json(dict(method='SUBSCRIBE', params=[f'x{i}@ticker' for i in range(1025)], id=1))
                got = [await asyncio.wait_for(w.receive(), 5) for _ in range(3)]
                assert json.loads(got[1].data)['code'] == 4 and got[2].data == 1008
            async with s.ws_connect(ws + '/market/ws/btcusdt@markPrice') as w:
                await w.receive()
                await w.send_json(dict(method='SET_PROPERTY', params=['combined', True], id=1)); await w.receive()
                await w.send_json(dict(method='GET_PROPERTY', params=['combined'], id=2))
                assert json.loads((await w.receive()).data)['result'] is True
                server.advance(23*HOUR)
                assert json.loads((await w.receive()).data)['stream'] == 'btcusdt@markPrice'
                server.advance(HOUR)
                assert (await asyncio.wait_for(w.receive(), 5)).data == 1001
    with start(two(), START) as server: run(main(server))


def test_orders_over_websocket():
    async def main(server):
        async with manager(server) as (c, bsm):
            o = await c.ws_futures_create_order(symbol='BTCUSDT', side='BUY', type='LIMIT', timeInForce='GTC', quantity='0.010', price='97000', newClientOrderId='ql-1')
            assert (o['status'], o['clientOrderId']) == ('NEW', 'ql-1')
            assert (await c.ws_futures_get_order(symbol='BTCUSDT', orderId=o['orderId']))['price'] == '97000'
            assert (await c.ws_futures_cancel_order(symbol='BTCUSDT', orderId=o['orderId']))['status'] == 'CANCELED'
            await c.ws_futures_create_order(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.010')
            a = await c.ws_futures_create_order(symbol='BTCUSDT', side='SELL', type='STOP_MARKET', triggerPrice='90000', closePosition='true', algoType='CONDITIONAL')
            assert (await c.ws_futures_cancel_algo_order(algoId=a['algoId']))['code'] == '200'
            assert (await c.ws_futures_v2_account_position())[0]['positionAmt'] == '0.010' and (await c.ws_futures_v2_account_balance())[0]['asset'] == 'USDT'
            with pytest.raises(BinanceAPIException) as e: await c.ws_futures_get_order(symbol='BTCUSDT', orderId=1)
            assert e.value.code == -2013
            await c.ws_future.close()
        async with aiohttp.ClientSession() as s, s.ws_connect(server.url.replace('http', 'ws') + '/ws-fapi/v1') as w:
            async def ask(method, **p): await w.send_json(dict(id='x', method=method, params=p)); return json.loads((await asyncio.wait_for(w.receive(), 5)).data)
            assert (await ask('v2/account.balance'))['error']['code'] == -2014 and (await ask('nonsense'))['status'] == 400
            p = dict(apiKey='paper', timestamp=server.exchange.now)
            p['signature'] = sign('paper', '&'.join(f'{k}={v}' for k, v in sorted(p.items())))
            assert (await ask('session.logon', **p | dict(signature='0'*64)))['error']['code'] == -1022 and (await ask('session.logon', **p))['result']['apiKey'] == 'paper'
            r = await ask('v2/account.balance')
            assert r['status'] == 200 and [x['count'] for x in r['rateLimits']][0] > 0
            await ask('session.logout')
            assert (await ask('v2/account.balance'))['status'] == 401
    with start(two(), START) as server: run(main(server))


def test_streams_follow_a_running_clock():
    async def main(server):
        async with manager(server) as (c, bsm), bsm.futures_multiplex_socket(['btcusdt@markPrice@1s']) as sock:
            at = [m['data']['E'] for m in await hear(sock, 5)]
            assert at == sorted(set(at)) and at[-1] > at[0]
    with start(two(), START, speed=120) as server: run(main(server))
