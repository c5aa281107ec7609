"Every way a request can end has one meaning, and no error tells a secret"
import itertools, json

import pytest, requests
from binance.exceptions import BinanceAPIException, BinanceRequestException
from hypothesis import given, settings, strategies as st

from quantlib.core.settings import parse
from quantlib.execution.client import Garbled, Unreachable, ask, classify, connect, kind_of, number

KINDS = {'refused', 'unknown', 'throttled', 'clock', 'gone'}


class Canned:
    "A transport that answers once"
    def __init__(self, status, body): self.status, self.body = status, body
    def close(self): pass
    def go(self, uri, **kw):
        if isinstance(self.body, Exception): raise self.body
        r = requests.Response(); r.status_code, r._content = self.status, self.body
        return r
    get = post = put = delete = go


@pytest.fixture(scope='module')
def client():
    c = connect(parse({'universe': {'symbols': 'BTCUSDT'}}), 'KEYKEYKEY', 'SECRETSECRET')
    c.session = Canned(200, b'{"serverTime": 1746835200000}'); c.sync()
    c._synced = float('inf')
    return c


def order(client, status, body):
    client.session = Canned(status, body)
    try: return ask(client, 'futures_create_order', ('orderId', 'status'), symbol='BTCUSDT', side='BUY', type='MARKET', quantity='1')
    except Exception as e: return classify(e)


def test_the_table_is_total():
    for status, code in itertools.product(range(0, 600), (0, *range(-5100, -999, 7), -1000, -1001, -1003, -1006, -1007, -1008, -1015, -1021, -2011, -2013, -4116, -5028, 1, 200)):
        assert kind_of(status, code) in KINDS


def test_nothing_from_the_server_side_is_a_refusal():
    for status in (0, 100, 200, 201, 302, 408, 500, 502, 503, 504, 520, 599):
        for code in (0, -1, -2019, -2021, -4120, -1111): assert kind_of(status, code) == 'unknown', (status, code)


@pytest.mark.parametrize('code', (-1000, -1001, -1006, -1007, -4116, -4117))
def test_codes_that_say_unknown_are_unknown_with_any_status(code):
    assert {kind_of(s, code) for s in (200, 400, 401, 403, 418, 429, 500, 503)} == {'unknown'}


@settings(deadline=None, max_examples=300)
@given(status=st.integers(200, 599), body=st.one_of(st.binary(max_size=60), st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.sampled_from(['code', 'msg', 'orderId', 'status', 'x']), c, max_size=4), max_leaves=6).map(lambda x: json.dumps(x).encode())))
def test_garbled_replies_never_become_success_by_accident(client, status, body):
    got = order(client, status, body)
    if isinstance(got, dict): assert 200 <= status < 300 and got['orderId'] is not None and got['status'] is not None
    else: assert got.kind in KINDS and (got.kind == 'unknown' or status >= 400)


@pytest.mark.parametrize('error', (requests.ConnectTimeout('x'), requests.ReadTimeout('x'), requests.ConnectionError('reset'), requests.exceptions.ChunkedEncodingError('cut'),
    OSError('gone'), ValueError('what'), RecursionError(), MemoryError()))
def test_transport_trouble_is_unknown(client, error):
    assert order(client, 0, error).kind == 'unknown'
    assert classify(error).kind == 'unknown'


def test_no_secret_in_any_error(client):
    leak = 'https://x/fapi/v1/order?symbol=B&signature=deadbeef0123 SECRETSECRET KEYKEYKEY {"X-MBX-APIKEY": "KEYKEYKEY"}'
    seen = []
    for status, body in ((0, requests.ReadTimeout(leak)), (0, ValueError(leak)), (400, json.dumps({'code': -1022, 'msg': leak}).encode()), (200, leak.encode()), (503, leak.encode())):
        client.session = Canned(status, body)
        with pytest.raises(Exception) as e: client.futures_create_order(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='1')
        seen += [str(e.value), repr(e.value), repr(vars(e.value)), repr(e.value.__cause__), repr(e.value.__context__), classify(e.value).text]
    for text in seen:
        for s in ('SECRETSECRET', 'KEYKEYKEY', 'deadbeef0123'): assert s not in text


def test_each_request_is_sent_once(client):
    class Count(Canned):
        n = 0
        def go(self, uri, **kw): Count.n += 1; raise requests.ReadTimeout('t')
        get = post = put = delete = go
    client.session = Count(0, b'')
    with pytest.raises(Unreachable): client.futures_create_order(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='1')
    assert Count.n == 1


@pytest.mark.parametrize('bad', ('NaN', 'Infinity', '-Infinity', '', 'x', None, [], {}, '1,5'))
def test_numbers_of_a_reply_are_numbers(bad):
    with pytest.raises(Garbled): number({'a': bad}, 'a')
