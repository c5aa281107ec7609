"Keys, signatures, time stamps, headers, limits and controls over real HTTP"
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
                    (lambda: c.futures_change_position_mode(dualSidePosition='true'), -4068)]:
        with pytest.raises(BinanceAPIException) as e: f()
        assert e.value.code == code
    key = c.futures_stream_get_listen_key()
    assert len(key) == 64 and c.futures_stream_keepalive(key) == dict(listenKey=key)


@pytest.mark.parametrize('body', ['{', '[]', '{}', '{"advance_ms": -1}', '{"to": 5}', '{"advance_ms": "x"}', '{"advance_ms": 1, "to": 2}', '{"to": 99999999999999}', '{"advance_ms": null}', '{"speed": 0}', '{"speed": "x"}'])
def test_clock_refuses_nonsense(server, body):
    now = server.exchange.now
    r = requests.post(server.url + '/_sim/clock', data=body, timeout=5)
    assert r.status_code == 400 and r.json()['error'] and server.exchange.now == now


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
        assert requests.post(fast.url + '/_sim/clock', json=dict(speed=None), timeout=5).json()['speed'] is None
        before = fast.exchange.now
        time.sleep(0.1)
        assert fast.exchange.now == before, 'a frozen one does not'
        requests.post(fast.url + '/_sim/clock', json=dict(speed=60), timeout=5)
        time.sleep(0.2)
        assert fast.exchange.now > before


@pytest.fixture
def strict():
    with start(two(), START) as s:
        s.exchange.limits = dict(weight=40, orders_10s=3, orders_1m=5, algos=200)
        yield s


def test_weight_above_the_limit_is_429_then_418_then_forgiven(strict):
    ask = lambda: requests.get(strict.url + '/fapi/v1/klines?symbol=BTCUSDT&interval=1h&limit=1500', timeout=5)
    strict.advance(15_000)
    assert [ask().status_code for _ in range(4)] == [200]*4
    r = ask()
    assert (r.status_code, r.json()['code'], r.headers['Retry-After']) == (429, -1003, '45'), 'to the end of the minute'
    assert ask().status_code == 429
    strict.advance(45_000)
    assert ask().status_code == 200, 'who waits is served'
    codes = [ask().status_code for _ in range(16)]
    assert codes[:3] == [200]*3 and codes[3:13] == [429]*10 and codes[13:] == [418]*3
    r = ask()
    assert r.headers['Retry-After'] == '120' and str(strict.exchange.now + 120_000) in r.json()['msg']
    strict.advance(119_000)
    assert requests.get(strict.url + '/fapi/v1/time', timeout=5).status_code == 418
    strict.advance(1_000)
    assert requests.get(strict.url + '/fapi/v1/time', timeout=5).status_code == 200
    [ask() for _ in range(15)]
    assert ask().headers['Retry-After'] == '240', 'the second ban is longer'


def test_orders_above_the_count_are_1015(strict):
    order = dict(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.002')
    send = lambda: call(strict, 'POST', '/fapi/v1/order', order, body=True)
    assert [send()[0] for _ in range(3)] == [200]*3
    status, body, head = send()
    assert (status, body['code'], head['Retry-After'], len(strict.exchange.orders)) == (429, -1015, '10', 3)
    assert call(strict, 'GET', '/fapi/v1/openOrders', dict(symbol='BTCUSDT'))[0] == 200, 'reads go on'
    strict.advance(10_000)
    assert send()[0] == 200
    assert send()[1]['msg'] == 'Too many new orders; current limit is 5 orders per MINUTE.'


def test_real_looking_and_revoked_keys(server):
    assert call(server, 'GET', '/fapi/v3/balance', key='aB3'*21 + 'x')[:2] == (401, dict(code=-2014, msg='This is a sandbox, and the key looks like a real one; nothing was done with it.'))
    server.exchange.revoked = True
    try: assert call(server, 'GET', '/fapi/v3/balance')[1]['code'] == -2015
    finally: server.exchange.revoked = False
    assert call(server, 'GET', '/fapi/v3/balance')[0] == 200


def test_skew_moves_the_gateway_and_not_the_engine(server):
    ex = server.exchange
    ex.skew_ms = -30_000
    try:
        assert call(server, 'GET', '/fapi/v1/time', sign=False)[1] == dict(serverTime=ex.now - 30_000)
        assert call(server, 'GET', '/fapi/v3/balance')[1]['code'] == -1021
        assert call(server, 'GET', '/fapi/v3/balance', shift=-30_000)[0] == 200
    finally: ex.skew_ms = 0


def test_restrictions_of_the_key(server):
    assert call(server, 'GET', '/sapi/v1/account/apiRestrictions')[1] | {} == dict(ipRestrict=True, createTime=START, enableReading=True, enableFutures=True) | dict.fromkeys(
        'enableWithdrawals enableInternalTransfer enableMargin permitsUniversalTransfer enableVanillaOptions enableFixApiTrade enableFixReadOnly enableSpotAndMarginTrading enablePortfolioMarginTrading'.split(), False)
    server.exchange.restrictions = dict(enableWithdrawals=True)
    try: assert call(server, 'GET', '/sapi/v1/account/apiRestrictions')[1]['enableWithdrawals'] is True
    finally: server.exchange.restrictions = {}


def test_shared_pools_have_their_own_count(strict):
    strict.exchange.limits['weight'] = 10**6
    ask = lambda n=1: [strict.exchange.request('GET', '/fapi/v1/fundingInfo').status for _ in range(n)][-1]
    assert (ask(250), [strict.exchange.request('GET', '/fapi/v1/fundingRate').status for _ in range(250)][-1], ask()) == (200, 200, 429)
    strict.advance(5*MINUTE)
    assert ask() == 200


def test_parameters_come_as_clients_send_them(server):
    "Query or form for every verb, booleans in any case, list names in lower and camel case, JSON with spaces"
    batch = [dict(symbol='BTCUSDT', side='BUY', type='LIMIT', timeInForce='GTC', quantity='0.002', price=str(97_000 + i), newClientOrderId=f'ql-batch-{i}') for i in range(4)]
    for body in (True, False):
        status, rows, head = call(server, 'POST', '/fapi/v1/batchOrders', dict(batchOrders=json.dumps(batch)), body=body)
        assert status == 200 and [r['clientOrderId'] for r in rows] == [b['newClientOrderId'] for b in batch]
        for i, name in enumerate(('orderIdList', 'orderidlist', 'origClientOrderIdList', 'origclientorderidlist')):
            one = [rows[i]['orderId']] if i < 2 else [rows[i]['clientOrderId']]
            assert call(server, 'DELETE', '/fapi/v1/batchOrders', dict(symbol='BTCUSDT') | {name: json.dumps(one, separators=(' , ', ' : '))}, body=body)[1][0]['status'] == 'CANCELED', name
    call(server, 'POST', '/fapi/v1/order', dict(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.002'), body=True)
    for flag in ('True', 'true', 'TRUE'):
        r = call(server, 'POST', '/fapi/v1/order', dict(symbol='BTCUSDT', side='SELL', type='LIMIT', timeInForce='GTC', quantity='0.002', price='104000', reduceOnly=flag))[1]
        assert r['reduceOnly'] is True
        assert call(server, 'DELETE', '/fapi/v1/order', dict(symbol='BTCUSDT', orderId=r['orderId']), body=True)[1]['status'] == 'CANCELED'
    assert call(server, 'POST', '/fapi/v1/order', dict(symbol='BTCUSDT', side='SELL', type='MARKET', quantity='0.002', reduceOnly='yes'))[1]['code'] == -1130


def test_trades_agree_on_every_page(server):
    get = lambda path, **p: requests.get(f'{server.url}/fapi/v1/{path}', params=dict(symbol='BTCUSDT') | p, headers={'X-MBX-APIKEY': 'paper'}, timeout=10).json()
    new = get('aggTrades', limit=1000)
    assert len(new) == 1000 and [r['a'] for r in new] == list(range(new[0]['a'], new[0]['a'] + 1000)) and new[-1]['T'] <= server.exchange.now
    assert get('aggTrades', fromId=new[500]['a'], limit=10) == new[500:510]
    assert get('aggTrades', startTime=new[500]['T'], endTime=new[519]['T']) == new[500:520] == get('aggTrades', startTime=new[500]['T'] - 1, limit=20)
    assert [(r['id'], r['price']) for r in get('trades', limit=3)] == [(r['a'], r['p']) for r in new[-3:]]
    assert get('historicalTrades', limit=5, fromId=new[0]['a'])[0]['time'] == new[0]['T']
    assert requests.get(server.url + '/fapi/v1/historicalTrades?symbol=BTCUSDT', timeout=5).json()['code'] == -2014
    assert get('aggTrades', limit=1001)['code'] == -1130 and get('aggTrades', startTime=START - 72*3_600_000)['code'] == -4166
    assert get('aggTrades', startTime=START - 7_200_000, endTime=START)['code'] == -1127


@pytest.mark.parametrize('name, key', [('openInterestHist', 'symbol'), ('topLongShortPositionRatio', 'symbol'), ('topLongShortAccountRatio', 'symbol'), ('globalLongShortAccountRatio', 'symbol'), ('takerlongshortRatio', 'symbol'), ('basis', 'pair')])
def test_statistics_are_reproducible_pages(server, name, key):
    get = lambda **p: requests.get(f'{server.url}/futures/data/{name}', params={key: 'ETHUSDT', 'contractType': 'PERPETUAL', 'period': '1h'} | p, timeout=5).json()
    rows = get(limit=5)
    at = [int(r['timestamp']) for r in rows]
    assert at == [at[0] + i*3_600_000 for i in range(5)] and at[-1] <= server.exchange.now
    assert get(startTime=at[2], limit=2) == rows[2:4] and get(period='7m')['code'] == -1130 and get(limit=501)['code'] == -1130


def test_world_over_http(server):
    r = requests.post(server.url + '/_sim/world', json=dict(restrictions=dict(ipRestrict=False)), timeout=5)
    assert r.status_code == 200 and server.exchange.restrictions['ipRestrict'] is False
    requests.post(server.url + '/_sim/world', json=dict(restrictions={}), timeout=5)
    for body in ('[1]', '{"nonsense": 1}', '{'): assert requests.post(server.url + '/_sim/world', data=body, timeout=5).status_code == 400
    assert isinstance(requests.get(server.url + '/_sim/world', timeout=5).json(), dict)
    assert 'POST /_sim/world' in requests.get(server.url + '/_sim/nothing', timeout=5).json()['error']


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
