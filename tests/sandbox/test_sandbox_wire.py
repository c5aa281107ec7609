"Keys, signatures, time stamps, headers and faults over real HTTP"
import hashlib
import hmac
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
import requests
from binance.exceptions import BinanceAPIException

from quantlib.core.clock import MINUTE
from quantlib.sandbox.server import start
from sandbox_kit import START, client, two


@pytest.fixture(scope='module')
def server():
    with start(two(), START) as s: yield s


def call(server, method, path, params=(), key='paper', secret='paper', body=False, sign=True, raw=None, shift=0, drop=()):
    "One request, signed by hand; (status, json, headers)"
    p = dict(params)
    if sign: p |= dict(timestamp=server.exchange.now + shift)
    p = {k: v for k, v in p.items() if k not in drop}
    text = raw if raw is not None else urlencode(p)
    if sign: text += '&signature=' + hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    r = requests.request(method, server.url + path + ('' if body else '?' + text), data=text if body else None, headers={'X-MBX-APIKEY': key, 'Content-Type': 'application/x-www-form-urlencoded'} if key else {}, timeout=10)
    return r.status_code, r.json(), r.headers


@pytest.mark.parametrize('more, status, code', [
    (dict(key=None), 401, -2014), (dict(key='other'), 401, -2015), (dict(secret='wrong'), 400, -1022), (dict(shift=1000), 400, -1021), (dict(shift=-5001), 400, -1021),
    (dict(drop=['timestamp']), 400, -1102), (dict(sign=False), 400, -1102), (dict(params=dict(recvWindow=60001)), 400, -1131), (dict(shift=-9000, params=dict(recvWindow=10000)), 200, None),
    (dict(shift=999), 200, None), (dict(shift=-5000), 200, None), (dict(params=dict(timestamp='now')), 400, -1102)])
def test_admission(server, more, status, code):
    if more.get('params', {}).get('timestamp') == 'now': s, d, _ = call(server, 'GET', '/fapi/v3/balance', raw='timestamp=now')
    else: s, d, _ = call(server, 'GET', '/fapi/v3/balance', **more)
    assert (s, d.get('code') if isinstance(d, dict) else None) == (status, code)


def test_signature_over_raw_or_decoded_text(server):
    "python-binance signs the decoded text and sends the encoded one"
    plain = f'newClientOrderId=a:b/c&symbol=BTCUSDT&timestamp={server.exchange.now}'
    sig = hmac.new(b'paper', plain.encode(), hashlib.sha256).hexdigest()
    sent = plain.replace('a:b/c', quote('a:b/c', safe=''))
    r = requests.get(f'{server.url}/fapi/v1/openOrders?{sent}&signature={sig.upper()}', headers={'X-MBX-APIKEY': 'paper'}, timeout=10)
    assert r.json() == []


def test_query_and_body_are_both_read_and_signed(server):
    q, b = 'symbol=BTCUSDT', f'leverage=7&timestamp={server.exchange.now}'
    sig = hmac.new(b'paper', (q + b).encode(), hashlib.sha256).hexdigest()
    r = requests.post(f'{server.url}/fapi/v1/leverage?{q}', data=f'{b}&signature={sig}', headers={'X-MBX-APIKEY': 'paper', 'Content-Type': 'application/x-www-form-urlencoded'}, timeout=10)
    assert r.json()['leverage'] == 7


def test_unknown_path_and_headers(server):
    assert call(server, 'GET', '/fapi/v1/nothing', sign=False)[:2] == (404, dict(code=-5000, msg='Path /fapi/v1/nothing, Method GET is invalid'))
    server.advance(MINUTE)
    a = int(call(server, 'GET', '/fapi/v1/time', sign=False)[2]['X-MBX-USED-WEIGHT-1M'])
    h = call(server, 'GET', '/fapi/v1/klines', dict(symbol='BTCUSDT', interval='1h', limit=1500), sign=False)[2]
    assert (a, int(h['X-MBX-USED-WEIGHT-1M'])) == (1, 11)
    h = call(server, 'POST', '/fapi/v1/order', dict(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.002'), body=True)[2]
    assert (h['X-MBX-ORDER-COUNT-10S'], h['X-MBX-ORDER-COUNT-1M']) == ('1', '1')
    server.advance(MINUTE)
    assert call(server, 'GET', '/fapi/v1/time', sign=False)[2]['X-MBX-USED-WEIGHT-1M'] == '1'


def test_every_public_call_of_python_binance(server):
    c = client(server)
    assert c.futures_ping() == {} and c.futures_time()['serverTime'] == server.exchange.now == c.get_server_time()['serverTime']
    info = c.futures_exchange_info()
    assert {s['symbol'] for s in info['symbols']} == {'BTCUSDT', 'ETHUSDT'} and all(len(s['filters']) == 7 for s in info['symbols'])
    assert len(c.futures_klines(symbol='BTCUSDT', interval='1h', limit=1500)) == 25
    assert c.futures_continuous_klines(pair='BTCUSDT', contractType='PERPETUAL', interval='1h', limit=2) == c.futures_klines(symbol='BTCUSDT', interval='1h', limit=2)
    for f in (c.futures_ticker, c.futures_symbol_ticker, c.futures_orderbook_ticker, c.futures_mark_price):
        assert f(symbol='ETHUSDT')['symbol'] == 'ETHUSDT' and len(f()) == 2
    book = c.futures_order_book(symbol='BTCUSDT', limit=5)
    assert float(book['bids'][0][0]) < float(book['asks'][0][0]) and len(book['bids']) == 5
    assert [r['fundingRate'] for r in c.futures_funding_rate(symbol='BTCUSDT')] == ['0.00010000']*4
    assert requests.get(server.url + '/fapi/v1/fundingInfo', timeout=5).json() == []
    with pytest.raises(BinanceAPIException) as e: c.futures_klines(symbol='BTCUSDT', interval='1s')
    assert e.value.code == -1120


def test_every_private_call_of_python_binance(server):
    c = client(server)
    assert c.futures_account(version=3)['assets'][0]['asset'] == 'USDT' and c.futures_account()['canTrade'] is True
    assert c.futures_account_balance()[0]['asset'] == 'USDT'
    assert {p['symbol'] for p in c.futures_position_information(version=2)} == {'BTCUSDT', 'ETHUSDT'}
    assert c.futures_leverage_bracket(symbol='BTCUSDT')[0]['brackets'][0]['initialLeverage'] == 150
    assert c.futures_commission_rate(symbol='BTCUSDT')['takerCommissionRate'] == '0.000500'
    assert c.futures_change_leverage(symbol='ETHUSDT', leverage=9) == dict(symbol='ETHUSDT', leverage=9, maxNotionalValue='150000000')
    assert c.futures_get_position_mode() == dict(dualSidePosition=False) and c.futures_get_multi_assets_mode() == dict(multiAssetsMargin=False)
    assert c.get_account_api_permissions()['enableWithdrawals'] is False
    assert c.futures_account_trades(symbol='ETHUSDT') == [] and c.futures_income_history()[0]['incomeType'] == 'TRANSFER'
    for f, code in [(lambda: c.futures_change_margin_type(symbol='ETHUSDT', marginType='CROSSED'), -4046), (lambda: c.futures_change_position_mode(dualSidePosition='false'), -4059),
                    (lambda: c.futures_change_multi_assets_mode(multiAssetsMargin=False), -4171), (lambda: c.futures_change_leverage(symbol='ETHUSDT', leverage=151), -4028),
                    (lambda: c.futures_change_position_mode(dualSidePosition='true'), -1020)]:
        with pytest.raises(BinanceAPIException) as e: f()
        assert e.value.code == code
    key = c.futures_stream_get_listen_key()
    assert len(key) == 64 and c.futures_stream_keepalive(key) == dict(listenKey=key)


def fault(server, phase, effect, path='/fapi/v1/order', method='POST', **match):
    r = requests.post(server.url + '/_sim/fault', json=dict(match=dict(method=method, path=path, **match), phase=phase, effect=effect), timeout=5)
    assert r.status_code == 200, r.text


def orders(server): return len(server.exchange.orders)


@pytest.mark.parametrize('phase, applied', [('before_apply', 0), ('after_apply', 1), ('instead', 0)])
@pytest.mark.parametrize('effect', [dict(http=[503, dict(code=-1000, msg='Unknown error, please check your request or try again later.')]), dict(reset=True)])
def test_fault_before_and_after_the_book_changed(server, phase, applied, effect):
    c, n = client(server), orders(server)
    fault(server, phase, effect)
    with pytest.raises((BinanceAPIException, requests.exceptions.ConnectionError)): c.futures_create_order(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.002')
    assert orders(server) == n + applied
    c.futures_create_order(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.002')
    assert orders(server) == n + applied + 1


def test_fault_hang_and_params_and_clear(server):
    c, n = client(server), orders(server)
    order = dict(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.002')
    fault(server, 'after_apply', dict(hang=1.0), params=dict(side='SELL'))
    t = time.monotonic(); c.futures_create_order(**order); assert time.monotonic() - t < 0.9
    with pytest.raises(requests.exceptions.ReadTimeout): c.futures_create_order(**order | dict(side='SELL'), requests_params=dict(timeout=0.3))
    assert orders(server) == n + 2
    fault(server, 'instead', dict(reset=True))
    assert requests.delete(server.url + '/_sim/fault', timeout=5).json()['waiting'] == []
    c.futures_create_order(**order)


@pytest.mark.parametrize('body', ['{', '[]', '{}', '{"advance_ms": -1}', '{"to": 5}', '{"advance_ms": "x"}', '{"advance_ms": 1, "to": 2}', '{"to": 99999999999999}', '{"advance_ms": null}'])
def test_clock_refuses_nonsense(server, body):
    now = server.exchange.now
    r = requests.post(server.url + '/_sim/clock', data=body, timeout=5)
    assert r.status_code == 400 and r.json()['error'] and server.exchange.now == now


@pytest.mark.parametrize('d', [{}, dict(match=dict(method='GET')), dict(match=dict(method='GET', path='/x'), phase='never', effect=dict(reset=True)),
                               dict(match=dict(method='GET', path='/x'), phase='instead', effect=dict(http=[503, {}], reset=True)), dict(match=dict(method='GET', path='/x'), phase='instead', effect=dict(hang=1e9))])
def test_fault_refuses_nonsense(server, d):
    assert requests.post(server.url + '/_sim/fault', json=d, timeout=5).status_code == 400


def test_clock_by_hand_and_by_speed(server):
    now = server.exchange.now
    assert requests.post(server.url + '/_sim/clock', json=dict(advance_ms=60_000), timeout=5).json() == dict(now=now + 60_000)
    assert requests.get(server.url + '/_sim/clock', timeout=5).json()['speed'] is None
    with start(two(), START, speed=600) as fast:
        time.sleep(0.3)
        assert 120_000 <= requests.get(fast.url + '/fapi/v1/time', timeout=5).json()['serverTime'] - START <= 2_000_000
        before = fast.exchange.now
        time.sleep(0.2)
        assert fast.exchange.now > before, 'a running clock moves without requests'


def test_only_loopback(server):
    port = int(server.url.rsplit(':', 1)[1])
    assert server.server.servers == [] or all(s.getsockname()[0] == '127.0.0.1' for x in server.server.servers for s in x.sockets)
    assert server.sock.getsockname() == ('127.0.0.1', port)
    with pytest.raises(OSError, match=f'port {port}'): start(two(), START, port=port)


def test_garbage_is_answered_with_json(server):
    for method, path, data in [('POST', '/fapi/v1/order', b'\xff\xfe%%%'), ('GET', '/fapi/v1/klines?symbol=%00&interval=1h', None), ('GET', '/fapi/v1/klines?symbol=BTCUSDT&interval=1h&limit=-5', None),
                               ('GET', '/fapi/v1/klines?symbol=BTCUSDT&interval=1h&startTime=99999999999999999999', None), ('GET', '/fapi/v1/depth?symbol=BTCUSDT&limit=abc', None)]:
        r = urllib.request.Request(server.url + path, data=data, method=method)
        try: body = urllib.request.urlopen(r, timeout=5).read()
        except urllib.error.HTTPError as e: assert 400 <= e.code < 500, (path, e.code); body = e.read()
        json.loads(body)


def test_serve_says_when_it_answers_and_ends_quietly():
    code = 'from sandbox_kit import *; from quantlib.sandbox.server import serve; serve(two(), 0, START, key="k", secret="s")'
    p = subprocess.Popen([sys.executable, '-c', code], cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        ready, url = p.stdout.readline().split()
        assert ready == 'ready' and requests.get(url + '/fapi/v1/time', timeout=5).json() == dict(serverTime=START)
        p.terminate()
        assert p.communicate(timeout=10)[1] == '' and p.returncode in (0, -15)
    finally: p.kill()
