"Every way a request can end has one meaning, and no error tells a secret"
import ast, itertools, json, re
from pathlib import Path

import pytest, requests
from binance.exceptions import BinanceAPIException, BinanceRequestException
from hypothesis import given, settings, strategies as st

from quantlib.core.settings import parse
from quantlib.execution.rehearsal import Direct, Stage, received
from quantlib.execution.client import TABLE, ClientRefused, Garbled, Outcome, Unreachable, ask, classify, connect, number, rule, whole

KINDS = {'refused', 'unknown', 'throttled', 'clock', 'gone'}
PATHS = {'', 'breached', 'flat', 'covered', 'full', 'moved', 'exists', 'margin', 'filters', 'bracket', 'mode', 'permission', 'banned'}
CODES = range(-5100, -999)


class Canned:
    "A transport that answers once"
    def __init__(self, status, body, headers={}): self.status, self.body, self.headers = status, body, headers
    def close(self): pass
    def go(self, uri, **kw):
        if isinstance(self.body, Exception): raise self.body
        r = requests.Response(); r.status_code, r._content = self.status, self.body
        r.headers.update(self.headers)
        return r
    get = post = put = delete = go


@pytest.fixture(scope='module')
def client():
    c = connect(parse({'universe': {'symbols': 'BTCUSDT'}}), 'KEYKEYKEY', 'SECRETSECRET')
    c.session = Canned(200, b'{"serverTime": 1746835200000}'); c.sync()
    c._synced = float('inf')
    return c


def order(client, status, body, headers={}):
    client.session = Canned(status, body, headers)
    try: return ask(client, 'futures_create_order', ('orderId', 'status'), symbol='BTCUSDT', side='BUY', type='MARKET', quantity='1')
    except Exception as e: return classify(e)


def test_the_table_is_total():
    for status in (-1, 0, 99, 100, 200, 399, 400, 401, 403, 404, 408, 410, 418, 429, 451, 499, 500, 503, 599, 600, 1000):
        for code in CODES if status == 400 else (*CODES[::37], 0, 1, 200): assert rule(status, code) in TABLE


@settings(deadline=None, max_examples=400)
@given(status=st.one_of(st.integers(), st.integers(0, 600)), code=st.one_of(st.integers(), st.integers(-5100, 10)), text=st.one_of(st.text(max_size=80), st.sampled_from(['Unknown error', 'banned until 1746835200000', '<html>', 'Service Unavailable.'])))
def test_any_reply_has_one_row(status, code, text):
    r = rule(status, code, text)
    assert r in TABLE and r.kind in KINDS and r.path in PATHS and r.fits(status, code, text)
    if r.kind in ('refused', 'clock', 'gone'): assert 400 <= status < 500 and r is not TABLE[-1] and (r.codes or r.text or r.statuses[0] == r.statuses[1] or r.statuses == (404, 405))


@settings(deadline=None, max_examples=300)
@given(code=st.one_of(st.none(), st.integers(), st.text(max_size=3), st.floats(), st.booleans()), status=st.one_of(st.none(), st.integers(), st.text(max_size=2)), message=st.one_of(st.none(), st.text(max_size=30), st.integers()),
    wait=st.one_of(st.none(), st.integers(), st.text(max_size=3)))
def test_classify_never_raises(code, status, message, wait):
    for cls in (ValueError, BinanceAPIException):
        e = cls.__new__(cls); e.code, e.status_code, e.message, e.retry_after = code, status, message, wait
        assert isinstance(classify(e), Outcome) and classify(e).kind in KINDS


@pytest.mark.parametrize('status,code,text,kind,path', [
    (503, -1000, 'Unknown error, please check your request or try again later.', 'unknown', ''), (503, 0, 'Service Unavailable.', 'unknown', ''),
    (503, -1001, 'Internal error; unable to process your request. Please try again.', 'unknown', ''), (503, -1008, 'Request throttled by system-level protection', 'throttled', ''),
    (408, -1007, 'Timeout', 'unknown', ''), (418, -1003, 'Way too many requests; IP banned until 1746835200000.', 'throttled', 'banned'), (429, -1015, 'Too many new orders', 'throttled', ''), (429, 0, '<html>', 'throttled', ''),
    (403, 0, '<html>', 'throttled', 'banned'), (403, -2015, 'Invalid API-key', 'refused', 'permission'), (451, 0, '', 'refused', 'permission'), (401, -2014, '', 'refused', 'permission'), (404, 0, '<html>', 'refused', 'moved'),
    (400, -4120, 'Please use the Algo Order API endpoints instead.', 'refused', 'moved'), (400, -4999, 'This endpoint has moved', 'refused', 'moved'), (400, -4999, 'whatever', 'unknown', ''), (400, -2021, '', 'refused', 'breached'),
    (400, -4142, '', 'refused', 'breached'), (400, -2022, '', 'refused', 'flat'), (400, -4118, '', 'refused', 'covered'), (400, -4116, '', 'unknown', 'exists'), (400, -4045, '', 'refused', 'full'), (200, -2013, '', 'unknown', '')])
def test_what_the_documentation_says(status, code, text, kind, path):
    assert (rule(status, code, text).kind, rule(status, code, text).path) == (kind, path)


def test_every_documented_code_has_a_row_of_its_own():
    known = """-1000 -1001 -1002 -1003 -1006 -1007 -1008 -1010 -1013 -1014 -1020 -1011 -1015 -1016 -1021 -1022 -1023 -1127 -4165 -1099 -1100 -1101 -1102 -1103 -1104 -1105 -1106 -1111 -1112 -1114 -1115 -1116 -1117 -1118 -1119 -1120 -1121
        -1122 -1128 -1130 -1136 -1125 -2010 -2011 -2012 -2013 -2014 -2015 -2017 -2018 -2019 -2020 -2021 -2022 -2023 -2024 -2025 -2026 -2027 -2028 -4001 -4003 -4004 -4005 -4013 -4014 -4015 -4016 -4024 -4023 -4028 -4031 -4060 -4104 -4044 -4054
        -4055 -4045 -4046 -4052 -4059 -4171 -5027 -4047 -4048 -4067 -4068 -4050 -4051 -4061 -4062 -4082 -4083 -4087 -4088 -4189 -4192 -4400 -4401 -4105 -4106 -4107 -4109 -4116 -4117 -4118 -4120 -4130 -4131 -4135 -4136 -4137 -4138 -4142 -4140
        -4141 -4144 -4161 -4164 -4183 -4184 -4210 -4211 -4202 -4203 -4204 -4205 -4206 -4207 -4208 -4209 -4403 -4402 -5021 -5022 -5024 -5025 -5026 -5029 -5043 -5047 -5028 -5037 -5038 -5039 -5040 -5041"""
    assert [c for c in known.split() if not rule(400, int(c)).codes] == []


def test_limits_are_read_from_headers(client):
    o = order(client, 429, b'{"code":-1003,"msg":"Too many requests"}', {'Retry-After': '12', 'x-mbx-used-weight-1m': '2401', 'X-MBX-ORDER-COUNT-10S': 'NaN'})
    assert (o.kind, o.retry_after, client.used) == ('throttled', 12_000, dict(weight=2401, retry_after=12_000))
    assert order(client, 418, b'{"code":-1003,"msg":"Way too many requests; IP banned until 1746835299000."}').until == 1_746_835_299_000


ORDERS = {'futures_create_order', 'futures_create_algo_order', 'futures_place_batch_order'}

def sends(node):
    "Whether a piece of code sends an order"
    for c in ast.walk(node):
        if not isinstance(c, ast.Call): continue
        name = getattr(c.func, 'attr', getattr(c.func, 'id', ''))
        if name in ORDERS or (name == 'send' and ast.unparse(c.func).endswith('desk.send')): return True
        if name == 'ask' and any(isinstance(a, ast.Constant) and a.value in ORDERS for a in c.args): return True
    return False


def test_nobody_repeats_an_order():
    for p in (Path(__file__).resolve().parents[2]/'quantlib').rglob('*.py'):
        tree = ast.parse(p.read_text())
        for n in ast.walk(tree):
            if isinstance(n, (ast.Import, ast.ImportFrom)):
                names = {a.name for a in n.names} | {getattr(n, 'module', '') or ''}
                assert not {x.split('.')[0] for x in names} & {'tenacity', 'backoff', 'retrying', 'retry', 'stamina'}, p
            if not isinstance(n, ast.FunctionDef): continue
            if p.parent.name != 'execution': continue
            if p.name == 'guard.py' and n.name == 'place': continue  # a stop, and one more generation of it
            assert not any(sends(x) for x in ast.walk(n) if isinstance(x, (ast.For, ast.While, ast.comprehension))), f'{p.name} {n.name}: an order in a loop'
            assert not any(re.search('retry|again|attempts', ast.unparse(d)) for d in n.decorator_list), f'{p.name} {n.name}'


def test_the_lint_sees_what_it_should():
    bad = 'def f(c):\n    while True:\n        try: return c.futures_create_order(symbol="B")\n        except Exception: pass'
    assert any(sends(x) for x in ast.walk(ast.parse(bad)) if isinstance(x, ast.While))


def test_a_key_goes_nowhere_else():
    real = 'A1b2'*16
    for mode, url in (('paper', ''), ('paper', 'http://127.0.0.1:1'), ('demo', 'http://127.0.0.1:1')):
        with pytest.raises(ClientRefused) as e: connect(parse({'suite': {'mode': mode}, 'universe': {'symbols': 'BTCUSDT'}}), real, 's', url)
        assert real not in str(e.value)
    for url in ('http://evil.example', 'http://127.0.0.1.evil.example', 'https://localhost@evil.example', 'http://10.0.0.1'):
        with pytest.raises(ClientRefused): connect(parse({'suite': {'mode': 'demo'}, 'universe': {'symbols': 'BTCUSDT'}}), real, 's', url)


def test_nothing_from_the_server_side_is_a_refusal():
    for status in (0, 100, 200, 201, 302, 408, 500, 502, 503, 504, 520, 599):
        for code in (0, -1, -2019, -2021, -4120, -1111): assert rule(status, code).kind == 'unknown', (status, code)


@pytest.mark.parametrize('code', (-1000, -1001, -1006, -1007, -4116, -4117))
def test_codes_that_say_unknown_are_unknown_with_any_status(code):
    assert {rule(s, code).kind for s in (200, 400, 401, 403, 418, 429, 500, 503)} == {'unknown'}


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


@pytest.mark.parametrize('bad', ('NaN', 'Infinity', '-Infinity', '', 'x', None, [], {}, '1,5', '1e999999', '-1e400', pytest.param(10**6000, id='huge'), pytest.param('9'*9000, id='long')))
def test_numbers_of_a_reply_are_numbers(bad):
    with pytest.raises(Garbled): number({'a': bad}, 'a')
    with pytest.raises(Garbled): whole({'a': bad}, 'a')


SPOILS = [('http', dict(like='unknown')), ('http', dict(status=503, body='Service Unavailable.')), ('http', dict(status=429, body={'code': -1003, 'msg': 'x'}, headers={'Retry-After': '9'})), ('reset', {}), ('hang', dict(s=30)),
    ('hang', dict(s=1)), ('slow', dict(bytes_s=20)), ('truncate', dict(n=14)), ('html', {}), ('empty', {}), ('nan', {}), ('json_mutate', {}), ('ok_with_error_body', {}), ('delay_apply', dict(s=2))]

def meet(stage, effect, args, phase):
    "How an order ends under a fault, and how many were booked"
    v = stage.venue; v.faults.clear()
    v.faults.add(dict(match=dict(method='POST', path='/fapi/v1/order'), phase=phase, effect=effect, args=args, seed=3))
    before = len(v.orders)
    try: got = ask(stage.client, 'futures_create_order', ('orderId', 'status'), symbol='ETHUSDT', side='BUY', type='MARKET', quantity='0.01'); got = (got['status'], got.get('executedQty'))
    except Exception as e: got = (type(e).__name__, classify(e))
    v.faults.clear()
    said = re.sub(r'\d+ more expected', 'more expected', repr(got))  # the two books fill at prices of different length
    return said, len(v.orders) - before, stage.client.used.get('retry_after')


def test_without_a_wire_the_same_is_met():
    stages = [Stage(direct=d, hours=3) for d in (False, True)]
    for s in stages: s.client.sync(); s.client._synced = float('inf')
    for effect, args in SPOILS:
        for phase in ('before_apply', 'after_apply', 'instead'):
            a, b = (meet(s, effect, args, phase) for s in stages)
            assert a == b, (effect, phase)
            assert a[1] == (phase == 'after_apply' and effect != 'delay_apply'), (effect, phase)
            stages[0].venue.advance(stages[1].venue.now); stages[0].client._clock.sync()
    assert stages[1].venue.now > stages[1].venue.start  # what hangs takes time
    for s in stages: s.close()


def test_time_passes_on_the_way():
    s, asked = Stage(direct=True, hours=3), []
    s.client.delay = lambda method, path: asked.append((method, path)) or 70
    s.client.futures_create_order(symbol='ETHUSDT', side='BUY', type='MARKET', quantity='0.01')
    assert s.venue.now - s.venue.start == 140 and asked == [('POST', '/fapi/v1/order')]*2
    s.client.delay = None
    s.venue.key = 'another'
    with pytest.raises(BinanceAPIException, match='-2015'): s.client.futures_account()
    s.close()
