"User and market streams with python-binance's own sockets"
import asyncio
import contextlib
import json
import time

import aiohttp
import pytest
from binance import AsyncClient, BinanceSocketManager
from binance.ws.reconnecting_websocket import ReconnectingWebsocket

from quantlib.core.clock import HOUR, MINUTE
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
        timestamp_offset = property(lambda self: server.exchange.now - time.time()*1000, lambda self, v: None)
    c = await Local.create('paper', 'paper')
    bsm = BinanceSocketManager(c, max_queue_size=5000)
    bsm.FSTREAM_URL = server.url.replace('http', 'ws') + '/'
    try: yield c, bsm
    finally: await c.close_connection()


async def hear(sock, n=1, timeout=5): return [await asyncio.wait_for(sock.recv(), timeout) for _ in range(n)]


def run(coro): return asyncio.run(coro)


def test_user_stream_tells_of_fills_and_stops():
    async def main(server):
        async with manager(server) as (c, bsm), bsm.futures_user_socket() as sock:
            await asyncio.sleep(0.1)
            o = await c.futures_create_order(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.010', newClientOrderId='ql-1')
            new, fill, account = await hear(sock, 3)
            assert (new['o']['x'], fill['o']['x'], fill['o']['X'], fill['o']['c'], fill['o']['i'], fill['o']['n']) == ('NEW', 'TRADE', 'FILLED', 'ql-1', o['orderId'], '0.50005000')
            assert account['e'] == 'ACCOUNT_UPDATE' and account['a']['P'][0]['pa'] == '0.010' and account['a']['B'][0]['wb'] == '13999.49995000'
            await c.futures_create_order(symbol='BTCUSDT', side='SELL', type='STOP_MARKET', triggerPrice='98900', closePosition='true', clientAlgoId='ql-stop')
            assert (await hear(sock))[0]['o']['X'] == 'NEW'
            server.advance(2*HOUR)
            seen = await hear(sock, 6)
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


def test_streams_follow_a_running_clock():
    async def main(server):
        async with manager(server) as (c, bsm), bsm.futures_multiplex_socket(['btcusdt@markPrice@1s']) as sock:
            at = [m['data']['E'] for m in await hear(sock, 5)]
            assert at == sorted(set(at)) and at[-1] > at[0]
    with start(two(), START, speed=120) as server: run(main(server))
