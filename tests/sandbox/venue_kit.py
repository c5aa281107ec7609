"A venue spoken to with nothing but requests, and the comparison of what it says with what is known"
import gzip
import hashlib
import hmac
import json
import os
import re
import time
from pathlib import Path
from urllib.parse import urlencode

import requests
from websockets.sync.client import connect

MARKET = Path(__file__).resolve().parents[2].parent/'shared'/'data'/'market'
NUMBER = re.compile(r'[+-]?\d+(\.\d+)?$')
NAMES = dict(n='num', s='str', i='int', b='bool', f='float', z='null')


class Any:
    "A value that is not compared"
    def __repr__(self): return 'any'
ANY = Any()


def shape(text):
    "An object's shape from `name:type` words: n number as text, s text, i integer, f number, b boolean, ? anything; a ~ before the name makes the key optional"
    return {k: (ANY if t == '?' else NAMES[t],) for k, t in (w.split(':') for w in text.split())}


def kind(v):
    "The type of a JSON value; numbers written as text are their own type"
    if v is None: return 'null'
    if isinstance(v, bool): return 'bool'
    if isinstance(v, (int, float)): return 'int' if isinstance(v, int) else 'float'
    return ('num' if NUMBER.match(v) else 'str') if isinstance(v, str) else type(v).__name__


def fits(want, got):
    "Does a value of type `got` pass where `want` was seen?"
    return want == got or want == 'null' or (want, got) in {('str', 'num'), ('float', 'int')}


def unlike(want, got, more=(), less=(), at='$'):
    "Where `got` is not shaped like `want`, a recorded example or a `shape`; keys in `more` may be there, keys in `less` need not"
    if isinstance(want, str) and ':' in want and want.split(':')[0].strip('~').isalnum() and '{' not in want and at == '$': want = shape(want)
    if isinstance(want, tuple): return [] if want[0] is ANY or fits(want[0], kind(got)) else [f'{at} is {kind(got)} {got!r:.40}, not {want[0]}']
    if isinstance(want, dict):
        if not isinstance(got, dict): return [f'{at} is {kind(got)}, not an object']
        names = {k.strip('~'): (k, v) for k, v in want.items()}
        out = [f'{at}.{k} is missing' for k, (name, _) in names.items() if name[0] != '~' and k not in got and k not in less]
        out += [f'{at}.{k} is surplus' for k in got if k not in names and k not in more]
        return out + [w for k in got if k in names for w in unlike(as_shape(names[k][1]), got[k], more, less, f'{at}.{k}')]
    if isinstance(want, list):
        if not isinstance(got, list): return [f'{at} is {kind(got)}, not a list']
        if want and not got: return [f'{at} is empty']
        if not want: return []
        if not isinstance(want[0], (dict, list, tuple, str)) or (isinstance(want[0], str) and len({kind(x) for x in want}) > 1) or (isinstance(want[0], int)):
            return [w for k, (a, b) in enumerate(zip(want, got)) for w in unlike(a, b, at=f'{at}[{k}]')] + [f'{at} has {len(got)} fields, not {len(want)}']*(len(got) != len(want))
        first = union(want) if all(isinstance(x, dict) for x in want) else want[0]
        return [w for k, x in enumerate(got) for w in unlike(as_shape(first), x, more, less, f'{at}[{k}]')]
    return [] if want is ANY or fits(kind(want), kind(got)) else [f'{at} is {kind(got)} {got!r:.40}, not {kind(want)}']


def as_shape(x): return shape(x) if isinstance(x, str) and re.match(r'~?\w+:[nsifb?]( |$)', x) else x


def union(rows):
    "The keys of all rows; what only some have is optional"
    always = set.intersection(*({k.strip('~') for k in r} for r in rows))
    return {(k if k.strip('~') in always or k[0] == '~' else '~' + k): v for r in rows for k, v in r.items()}


class Recorded:
    "A body of the recordings, read when the test runs"
    def __init__(self, file, key=None, ints=''): self.file, self.key, self.ints = file, key, ints.split()
    def __repr__(self): return f'{self.file}{"#" + self.key if self.key else ""}'

    def load(self):
        "The body; integers that the recording's harness turned into text are integers again"
        d = json.loads((MARKET/'responses'/self.file).read_text())
        for k in ([self.key] if self.key else []): d = d[k]
        d = d['data'] if isinstance(d, dict) and set(d) == {'stream', 'data'} else d
        fix = lambda x: [fix(y) for y in x] if isinstance(x, list) else {k: int(v) if k in self.ints else fix(v) for k, v in x.items()} if isinstance(x, dict) else x
        return fix(d)


def heard(name, event):
    "The first `event` in a raw recording of the market streams"
    with gzip.open(MARKET/'feeds'/name, 'rt') as f:
        for line in f:
            if f'"e":"{event}"' in line: return json.loads(line[line.index('{'):])['data']


class Socket:
    "A WebSocket connection that collects what comes"
    def __init__(self, url): self.ws = connect(url, open_timeout=10, max_size=None).__enter__()
    def send(self, d): self.ws.send(json.dumps(d))
    def close(self): self.ws.close()

    def read(self, quiet=0.25, most=400):
        "What arrives until it is `quiet` for so many seconds"
        out = []
        while len(out) < most:
            try: out.append(json.loads(self.ws.recv(quiet)))
            except TimeoutError: return out
        return out


class Venue:
    "An exchange under test: the sandbox or the real demo venue"
    def __init__(self, url, streams, key, secret, sandbox=None):
        self.url, self.streams, self.key, self.secret, self.sandbox, self.http = url, streams, key, secret, sandbox, requests.Session()
        self.skew, self.made = 0, 0

    def now(self): return self.http.get(self.url + '/fapi/v1/time', timeout=10).json()['serverTime']

    def ask(self, method, path, access='signed', key=None, secret=None, shift=0, head=True, drop=(), **p):
        "One request, signed by hand: (status, body, headers)"
        p = {k: v for k, v in p.items() if v is not None}
        if access == 'signed': p['timestamp'] = self.now() + shift
        text = urlencode({k: v for k, v in p.items() if k not in drop})
        if access == 'signed' and 'signature' not in drop: text += '&signature=' + hmac.new((secret or self.secret).encode(), text.encode(), hashlib.sha256).hexdigest()
        h = {'X-MBX-APIKEY': key or self.key} if access != 'open' and head else {}
        form = method in ('POST', 'PUT')
        r = self.http.request(method, self.url + path + ('' if form or not text else '?' + text), data=text if form else None, headers=h | {'Content-Type': 'application/x-www-form-urlencoded'}, timeout=20)
        self.pace(r.headers)
        return r.status_code, r.json(), r.headers

    def pace(self, h):
        "Be polite: wait for the next window before a limit is reached"
        if int(h.get('X-MBX-USED-WEIGHT-1M', 0)) > 1500 or int(h.get('X-MBX-ORDER-COUNT-1M', 0)) > 900: self.rest(60)
        elif int(h.get('X-MBX-ORDER-COUNT-10S', 0)) > 200: self.rest(10)

    def rest(self, s):
        "Let the window of `s` seconds end"
        left = s*1000 - self.now() % (s*1000) + 50
        if self.sandbox: self.sim('clock', advance_ms=left)
        else: time.sleep(left/1000)

    def call(self, method, path, access='signed', **p):
        "The body of a request that must succeed"
        status, body, _ = self.ask(method, path, access, **p)
        assert status == 200, f'{method} {path} {p}: {status} {body}'
        return body

    def get(self, path, **p): return self.call('GET', path, 'open', **p)

    def sim(self, path, **d):
        r = self.http.post(f'{self.url}/_sim/{path}', json=d, timeout=20)
        assert r.status_code == 200, r.text
        return r.json()

    def tick(self, ms):
        "Let time pass: the sandbox is told, the real world is waited for"
        if self.sandbox: return self.sim('clock', advance_ms=ms)
        time.sleep(min(ms/1000, 4))

    def socket(self, path): return Socket(self.streams + path)

    def name(self):
        "A fresh client id"
        self.made += 1
        return f'conform-{os.getpid()}-{int(time.time()*1000) % 10**9}-{self.made}'

    # what the tests arrange

    def px(self, factor=1., symbol='BTCUSDT'): return f"{float(self.get('/fapi/v1/ticker/price', symbol=symbol)['price'])*factor:.1f}"

    def trade(self, side='BUY', quantity='0.002', **p): return self.call('POST', '/fapi/v1/order', symbol='BTCUSDT', side=side, type='MARKET', quantity=quantity, **p)
    def limit(self, factor=0.97, **p): return self.call('POST', '/fapi/v1/order', **dict(symbol='BTCUSDT', side='BUY', type='LIMIT', timeInForce='GTC', quantity='0.002', price=self.px(factor)) | p)
    def algo(self, factor=0.8, **p):
        return self.call('POST', '/fapi/v1/algoOrder', **dict(algoType='CONDITIONAL', symbol='BTCUSDT', side='SELL', type='STOP_MARKET', quantity='0.002', triggerPrice=self.px(factor), clientAlgoId=self.name()) | p)

    def clean(self, symbol='BTCUSDT'):
        "No orders and no position"
        self.ask('DELETE', '/fapi/v1/allOpenOrders', symbol=symbol); self.ask('DELETE', '/fapi/v1/algoOpenOrders', symbol=symbol)
        for p in self.call('GET', '/fapi/v3/positionRisk', symbol=symbol):
            q = float(p['positionAmt'])
            if q: self.ask('POST', '/fapi/v1/order', symbol=symbol, side='SELL' if q > 0 else 'BUY', type='MARKET', quantity=p['positionAmt'].lstrip('-'), reduceOnly='true')


def demo():
    "Binance demo trading, with the key of the environment"
    return Venue('https://demo-fapi.binance.com', 'wss://fstream.binancefuture.com', os.environ['BINANCE_DEMO_KEY'], os.environ['BINANCE_DEMO_SECRET'])
