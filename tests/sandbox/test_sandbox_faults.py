"The fault vocabulary: what matches, what is refused, every transport fault on a real wire before and after the book changed, false views, late orders, disturbed events"
import asyncio
import json
import socket
import time
from collections import Counter

import aiohttp
import pytest
import requests
from hypothesis import given, settings, strategies as st

from quantlib.core.clock import HOUR, MINUTE
from quantlib.sandbox import rest
from quantlib.sandbox.book import Params
from quantlib.sandbox.exchange import Exchange
from quantlib.sandbox.faults import EFFECTS, PHASES, REPLIES, Faults, fault
from quantlib.sandbox.server import start
from sandbox_kit import START, client, two

ORDER = dict(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='0.002')
TRANSPORT = [k for k, v in EFFECTS.items() if v[0] == 'transport']


@pytest.fixture(scope='module')
def server():
    with start(two(), START) as s: yield s


@pytest.fixture
def ex(): return Exchange(two(), START)


def put(server, effect, phase=None, args=None, method='POST', path='/fapi/v1/order', **more):
    d = dict(match=dict(method=method, path=path) | more.pop('match', {}), effect=effect, args=args or {}) | more | (dict(phase=phase) if phase else {})
    r = requests.post(server.url + '/_sim/fault', json=d, timeout=5)
    assert r.status_code == 200, r.text


def ask(ex, method='POST', path='/fapi/v1/order', **p): return ex.answer(method, path, Params(p or ORDER), 'paper')


# what a client sees of each spoiled answer: an exception, or (status, text)
SEEN = dict(http=lambda r: r.status_code == 503 and r.json()['msg'].startswith('Unknown error'), reset=requests.ConnectionError, hang=requests.ReadTimeout, slow=requests.ConnectionError, truncate=requests.exceptions.ChunkedEncodingError,
            html=lambda r: r.status_code == 503 and r.text.startswith('<html>') and r.headers['content-type'] == 'text/html', empty=lambda r: r.status_code == 200 and r.content == b'',
            nan=lambda r: isinstance(r.json(), dict), json_mutate=lambda r: r.json() is not None, ok_with_error_body=lambda r: r.status_code == 200 and r.json()['code'] == -1000)
ARGS = dict(http=dict(like='unknown'), hang=dict(s=0.6))


@pytest.mark.parametrize('phase', PHASES)
@pytest.mark.parametrize('effect', TRANSPORT)
def test_transport_on_the_wire_in_every_phase(server, effect, phase):
    "The book changed after `after_apply` alone, and the client cannot tell"
    c, ex = client(server), server.exchange
    n, hits = len(ex.orders), ex.faults.hits[effect]
    put(server, effect, phase, ARGS.get(effect))
    p = f'symbol=BTCUSDT&side=BUY&type=MARKET&quantity=0.002&timestamp={ex.now}'
    send = lambda: requests.post(server.url + '/fapi/v1/order', data=p + '&signature=' + rest.sign('paper', p), headers={'X-MBX-APIKEY': 'paper', 'Content-Type': 'application/x-www-form-urlencoded'}, timeout=0.3 if effect == 'hang' else 10)
    if effect == 'slow': # 86 to 480 bytes at 200 a second
        t = time.monotonic(); r = send(); assert 0.3 < time.monotonic() - t < 4 and r.json()
    elif isinstance(SEEN[effect], type):
        with pytest.raises(SEEN[effect]): send()
    else: assert SEEN[effect](send())
    assert len(ex.orders) == n + (phase == 'after_apply') and ex.faults.hits[effect] == hits + 1
    c.futures_create_order(**ORDER)
    assert len(ex.orders) == n + 1 + (phase == 'after_apply'), 'the fault is over'


def test_a_reset_is_a_reset_and_a_truncation_keeps_its_length(server):
    def raw(method='GET', path='/fapi/v1/time'):
        with socket.create_connection(('127.0.0.1', int(server.url.rsplit(':', 1)[1])), 5) as s:
            s.sendall(f'{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n'.encode())
            out = b''
            while x := s.recv(4096): out += x
            return out
    put(server, 'reset', 'instead', method='GET', path='/fapi/v1/time')
    with pytest.raises(ConnectionResetError): raw()
    put(server, 'truncate', 'after_apply', dict(n=5), method='GET', path='/fapi/v1/time')
    head, _, body = raw().partition(b'\r\n\r\n')
    assert body == b'{"ser' and int(head.lower().split(b'content-length: ')[1].split(b'\r\n')[0]) > 5


def test_instead_counts_nothing_and_before_apply_counts(ex):
    for phase, weight, orders in (('instead', 0, 0), ('before_apply', 0, 1), ('after_apply', 0, 2)):
        ex.faults.add(dict(match=dict(method='POST', path='/fapi/v1/order'), effect='reset', phase=phase))
        ask(ex)
        assert ex.counts.get('10s', (0, 0))[1] == orders, phase
    assert len(ex.orders) == 1
    ex.faults.add(dict(match=dict(method='GET', path='*'), effect='truncate', phase='before_apply'))
    assert ask(ex, 'GET', '/fapi/v1/time').body == dict(serverTime=ex.now), 'a read changes nothing, so it is answered and then spoiled'


@pytest.mark.parametrize('like', list(REPLIES))
def test_the_venues_own_words(server, like):
    status, body, head = REPLIES[like]
    put(server, 'http', 'instead', dict(like=like, headers={'X-Who': 'me'}), method='GET', path='/fapi/v1/time')
    r = requests.get(server.url + '/fapi/v1/time', timeout=5)
    assert r.status_code == status and r.headers['X-Who'] == 'me' and all(r.headers[k] == v for k, v in head.items())
    assert (r.text if isinstance(body, str) else r.json()) == body


def test_http_with_body_and_headers(ex):
    ex.faults.add(dict(match=dict(method='POST', path='*'), effect='http', phase='before_apply', args=dict(status=418, body=dict(code=-1003, msg='banned'), headers={'Retry-After': 9})))
    a = ask(ex)
    assert (a.status, a.body['code'], a.headers['Retry-After'], len(ex.orders)) == (418, -1003, '9', 0)
    ex.faults.add(dict(match=dict(method='POST', path='*'), effect='http', phase='after_apply', args=dict(status=502, body='<html>Bad Gateway</html>')))
    assert (ask(ex).bytes(), len(ex.orders)) == (b'<html>Bad Gateway</html>', 1)


MATCHES = [(dict(symbol='ETHUSDT'), 'ETHUSDT', {}), (dict(type='LIMIT'), 'BTCUSDT', dict(type='LIMIT')), (dict(client_id='ql-7*'), 'BTCUSDT', dict(newClientOrderId='ql-71')),
           (dict(client_id='ql-a'), 'BTCUSDT', dict(clientAlgoId='ql-a')), (dict(params=dict(reduceOnly='true')), 'BTCUSDT', dict(reduceOnly='true')), (dict(path='/fapi/v1/or*'), 'BTCUSDT', {}), (dict(method='*'), 'BTCUSDT', {})]


@pytest.mark.parametrize('match, symbol, more', MATCHES)
def test_match(match, symbol, more):
    fs = Faults()
    fs.add(dict(match=dict(method='POST', path='/fapi/v1/order') | match, effect='reset', phase='instead'))
    if set(match) & {'symbol', 'type', 'client_id', 'params'}: assert fs.take('POST', '/fapi/v1/order', dict(symbol='SOLUSDT', type='MARKET', newClientOrderId='x'), 0) is None
    assert fs.take('POST', '/fapi/v1/algoOrder' if 'path' not in match and 'method' not in match and not more else '/other', dict(symbol=symbol) | more, 0) is None
    assert fs.take('POST', '/fapi/v1/order', dict(symbol=symbol) | more, 0).effect == 'reset'
    assert fs.take('POST', '/fapi/v1/order', dict(symbol=symbol) | more, 0) is None and fs.hits == Counter(reset=1)


def test_nth_count_ttl_and_prob():
    hit = lambda fs, n, step=0: [i for i in range(n) if fs.take('POST', '/x', {}, i*step)]
    def make(**d):
        fs = Faults(); fs.add(dict(match=dict(method='POST', path='/x') | d.pop('match', {}), effect='reset', phase='instead') | d)
        return fs
    assert hit(make(match=dict(nth=3)), 9) == [2] and hit(make(match=dict(nth=3), count=2), 9) == [2, 3] and hit(make(count=None, ttl=2.5), 9, 1000) == [0, 1, 2]
    a, b, c = (hit(make(match=dict(prob=.2), count=None, seed=s), 500) for s in (1, 1, 2))
    assert a == b != c and 60 < len(a) < 140


@pytest.mark.parametrize('d, says', [
    ({}, 'fault effect None is not one of http'), ([], 'a fault is an object'), (dict(effect='explode'), "'explode' is not one of"), (dict(effect={'http': [503, {}]}), 'is not one of'),
    (dict(effect='reset', phase='instead'), 'needs a method and a path'), (dict(effect='stale_view', match=dict(path='*')), 'needs a method and a path'),
    (dict(effect='reset', match=dict(method='GET', path='*')), 'needs a phase'), (dict(effect='reset', phase='never', match=dict(method='GET', path='*')), "phase 'never' is not one of before_apply"),
    (dict(effect='hang', phase='instead', match=dict(method='GET', path='*'), args=dict(s=1e9)), 'args s = 1000000000.0 must be a number from 0 to 86400'), (dict(effect='hang', phase='instead', match=dict(method='GET', path='*'), args=dict(s=True)), 'must be a number'),
    (dict(effect='hang', phase='instead', match=dict(method='GET', path='*'), args=dict(seconds=1)), "argument of hang 'seconds' is not known; use s"),
    (dict(effect='http', phase='instead', match=dict(method='GET', path='*')), 'need a status'), (dict(effect='http', phase='instead', match=dict(method='GET', path='*'), args=dict(like='odd')), "'odd' is not one of unknown"),
    (dict(effect='partial', match=dict(path='*')), "the match 'path' is not known; use symbol, type, client_id, nth, prob"), (dict(effect='partial', args=dict(frac=2)), 'from 0 to 1'),
    (dict(effect='forget', match=dict(method='GET', path='*')), 'need either client_id or algo'), (dict(effect='reset', phase='instead', match=dict(method='GET', path='*', nth=0)), 'nth = 0'),
    (dict(effect='reset', phase='instead', match=dict(method='GET', path='*', prob=2)), 'prob = 2'), (dict(effect='reset', phase='instead', match=dict(method='GET', path='*', sybol='X')), "match 'sybol' is not known"),
    (dict(effect='reset', phase='instead', match=dict(method='GET', path='*'), colour=1), "'colour' is not known"), (dict(effect='reset', phase='instead', match=dict(method='GET', path='*'), count=0), 'count = 0'),
    (dict(effect='reset', phase='instead', match='all'), "match 'all' must be an object"), (dict(effect='drop_event', match=dict(params={})), 'params'), (dict(effect='drop_event', seed='x'), "seed = 'x'"), (dict(effect='http', phase='instead', match=dict(method='GET', path='*'), args=dict(like=['x'])), "['x'] is not one of"), (dict(effect='reset', phase='instead', match=dict(method=1, path='*')), 'must be text')])
def test_nonsense_is_refused_with_the_value_and_the_cure(server, d, says):
    with pytest.raises(ValueError) as e: fault(d)
    assert says in str(e.value)
    r = requests.post(server.url + '/_sim/fault', json=d, timeout=5)
    assert r.status_code == 400 and says in r.json()['error']


@settings(max_examples=150, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3) | st.sampled_from([*EFFECTS, *PHASES]),
                    lambda x: st.lists(x, max_size=2) | st.dictionaries(st.sampled_from(['match', 'effect', 'args', 'phase', 'seed', 'ttl', 'count', 'method', 'path', 's', 'nth']), x, max_size=6), max_leaves=12))
def test_any_json_is_a_fault_or_a_value_error(d):
    try: f = fault(d)
    except ValueError: return
    assert f.effect in EFFECTS and json.dumps(f.row())


@pytest.mark.parametrize('effect', ['nan', 'json_mutate'])
def test_mutations_are_seeded_and_always_change_something(ex, effect):
    ask(ex)
    def body(seed):
        ex.faults.add(dict(match=dict(method='GET', path='*'), effect=effect, phase='after_apply', seed=seed))
        return ask(ex, 'GET', '/fapi/v3/account', x='1').bytes()
    plain, spoiled = ask(ex, 'GET', '/fapi/v3/account', x='1').bytes(), [body(s) for s in range(60)]
    assert plain not in spoiled and len(set(spoiled)) > 30 and body(7) == spoiled[7]


def test_delay_apply_lands_late_or_is_refused_by_the_engine(ex):
    order = lambda **kw: ask(ex, **ORDER | dict(timestamp=str(ex.now)) | kw)
    ex.faults.add(dict(match=dict(method='POST', path='/fapi/v1/order'), effect='delay_apply', args=dict(s=2)))
    a = order(newClientOrderId='late')
    assert (a.status, a.body['code'], len(ex.orders)) == (503, -1000, 0)
    assert ask(ex, 'GET', '/fapi/v1/order', symbol='BTCUSDT', origClientOrderId='late').body['code'] == -2013
    ex.advance(ex.now + 2_000)
    assert ask(ex, 'GET', '/fapi/v1/order', symbol='BTCUSDT', origClientOrderId='late').body['status'] == 'FILLED'
    for window, landed in (('60000', 2), ('5000', 2)):
        ex.faults.add(dict(match=dict(method='POST', path='/fapi/v1/order'), effect='delay_apply', args=dict(s=20)))
        order(recvWindow=window)
        ex.advance(ex.now + MINUTE)
        assert len(ex.orders) == landed
    assert ex.faults.hits['late -5028'] == 1


def test_stale_view_shows_what_was(ex):
    ask(ex)
    ex.faults.add(dict(match=dict(method='GET', path='/fapi/v3/positionRisk'), effect='stale_view', args=dict(s=30)))
    risk = lambda: [r['positionAmt'] for r in ask(ex, 'GET', '/fapi/v3/positionRisk', x='1').body]
    ask(ex)
    ex.advance(ex.now + 29_000)
    assert risk() == ['0.002'] and ask(ex, 'GET', '/fapi/v1/positionRisk').status == 404
    assert len(ask(ex, 'GET', '/fapi/v1/userTrades', symbol='BTCUSDT').body) == 2, 'other views are right'
    ex.advance(ex.now + 1_000)
    assert risk() == ['0.004'] and ex.faults.hits['stale_view'] == 1 and not ex.faults.waiting


def test_forget_hides_one_order_and_leaves_the_book_alone(ex):
    limit = dict(symbol='BTCUSDT', side='BUY', type='LIMIT', timeInForce='GTC', quantity='0.002', price='97000')
    for name in ('ql-a', 'ql-b'): ask(ex, **limit, newClientOrderId=name)
    ask(ex)
    a = ask(ex, 'POST', '/fapi/v1/algoOrder', algoType='CONDITIONAL', symbol='BTCUSDT', side='SELL', type='STOP_MARKET', triggerPrice='90000', closePosition='true', clientAlgoId='ql-stop').body
    ex.faults.add(dict(match=dict(method='*', path='*'), effect='forget', args=dict(client_id='ql-a', s=60)))
    ex.faults.add(dict(match=dict(method='GET', path='*'), effect='forget', args=dict(algo=str(a['algoId']), s=60)))
    find = lambda name, method='GET': ask(ex, method, '/fapi/v1/order', symbol='BTCUSDT', origClientOrderId=name).body.get('code')
    listed = lambda: {r['clientOrderId'] for r in ask(ex, 'GET', '/fapi/v1/openOrders', symbol='BTCUSDT').body}
    assert (find('ql-a'), find('ql-b'), find('ql-a', 'DELETE'), listed()) == (-2013, None, -2011, {'ql-b'})
    assert ask(ex, 'GET', '/fapi/v1/algoOrder', clientAlgoId='ql-stop').body['code'] == -2013 and ask(ex, 'GET', '/fapi/v1/openAlgoOrders', symbol='BTCUSDT').body == []
    assert len(ex.open['BTCUSDT']) == 2 and len(ex.waiting['BTCUSDT']) == 1
    ex.advance(ex.now + 60_000)
    assert find('ql-a') is None and listed() == {'ql-a', 'ql-b'} and ask(ex, 'GET', '/fapi/v1/algoOrder', clientAlgoId='ql-stop').body['algoId'] == a['algoId']


def events(ex, *effects, n=4):
    "Trade ids heard of `n` fills, and what comes later"
    heard = []
    ex.listeners.append(lambda e: heard.append(e['o']['t']) if e['e'] == 'ORDER_TRADE_UPDATE' and e['o']['x'] == 'TRADE' else None)
    for effect, args in effects: ex.faults.add(dict(effect=effect, args=args, match=dict(event='ORDER_TRADE_UPDATE', nth=2)))
    for _ in range(n): ask(ex)
    now = list(heard)
    ex.advance(ex.now + 10_000)
    first = ex.ids['trade'] - n + 1
    return [x - first for x in now], [x - first for x in heard]


def test_events_twice_never_and_late(ex):
    assert events(ex, ('dup_event', {})) == ([0, 0, 1, 2, 3], [0, 0, 1, 2, 3])
    assert events(ex, ('drop_event', {}))[1] == [1, 2, 3]
    assert events(ex, ('reorder', dict(k=4)))[1] == [1, 0, 2, 3], 'the account, the next order and its fill came first'
    assert events(ex, ('reorder', dict(k=1000, s=3))) == ([1, 2, 3], [1, 2, 3, 0])
    ex.faults.add(dict(effect='silence', args=dict(s=5)))
    assert events(ex) == ([], [])
    assert ex.faults.hits['silence'] >= 4 and events(ex)[0] == [0, 1, 2, 3], 'the time is over'


def test_engine_hooks_know_the_order():
    fs, o = Faults(), type('Order', (), dict(symbol='BTCUSDT', type='MARKET', client='ql-1'))
    fs.add(dict(effect='partial', match=dict(client_id='ql-*'), args=dict(frac=.37)))
    assert (str(fs.fraction(o)), fs.fraction(o)) == ('0.37', None)
    for effect, says in (('reject_at_trigger', 'reject'), ('stick_status', 'stick')):
        fs.add(dict(effect=effect, match=dict(symbol='BTCUSDT', type='MARKET')))
        assert (fs.at_trigger(type('Algo', (), dict(symbol='ETHUSDT', type='MARKET', client='x'))), fs.at_trigger(o), fs.at_trigger(o)) == (None, says, None)
    assert fs.hits == Counter(partial=1, reject_at_trigger=1, stick_status=1)


def test_silence_and_expiry_on_real_sockets():
    async def main(server):
        ws, c = server.url.replace('http', 'ws'), client(server)
        key = c.futures_stream_get_listen_key()
        async with aiohttp.ClientSession() as s, s.ws_connect(f'{ws}/private/ws/{key}') as mine, s.ws_connect(f'{ws}/market/ws/btcusdt@markPrice@1s') as mark:
            async def next_of(w): return json.loads((await asyncio.wait_for(w.receive(), 5)).data)
            assert (await next_of(mark))['e'] == 'markPriceUpdate'
            await asyncio.to_thread(requests.post, server.url + '/_sim/fault', json=dict(effect='silence', args=dict(s=60)))
            await asyncio.to_thread(c.futures_create_order, **ORDER)
            server.advance(30_000)
            for w in (mine, mark):
                with pytest.raises(asyncio.TimeoutError): await asyncio.wait_for(w.receive(), 0.2)
            server.advance(31_000)
            assert (await next_of(mark))['E'] == server.exchange.now
            await asyncio.to_thread(requests.post, server.url + '/_sim/fault', json=dict(effect='expire_listen_key'))
            assert await next_of(mine) == dict(e='listenKeyExpired', E=server.exchange.now, listenKey=key)
            await asyncio.to_thread(c.futures_create_order, **ORDER)
            with pytest.raises(asyncio.TimeoutError): await asyncio.wait_for(mine.receive(), 0.2)
            assert not mine.closed and await asyncio.to_thread(c.futures_stream_get_listen_key) != key
    with start(two(), START) as server: asyncio.run(main(server))
