"One scenario's stage: a sandbox on a port, a home, the real gateway behind python-binance, and a watch that judges every instant"
import shutil
import tempfile
import threading
import time
from decimal import Decimal
from functools import cache
from pathlib import Path

import requests
import sqlalchemy as sa

from quantlib.core.clock import HOUR, MINUTE
from quantlib.core.settings import Home, parse
from quantlib.core.types import Reason
from quantlib.data.synthetic import market as synthetic
from quantlib.execution.client import connect
from quantlib.execution.gateway import Gateway, GatewayRefused
from quantlib.execution.rehearsal import START, wish
from quantlib.journal import schema
from quantlib.journal.store import Journal
from quantlib.ops.invariants import check, facts, of_venue
from quantlib.ops.watch import Watch
from quantlib.sandbox.market import Market
from quantlib.sandbox.server import start

SYMBOLS = ['BTCUSDT', 'ETHUSDT', 'SOLUSDT', 'XRPUSDT']
ORDER, ALGO = '/fapi/v1/order', '/fapi/v1/algoOrder'
SECOND = 1000


@cache
def candles(at=START): return synthetic(SYMBOLS, at - 48*HOUR, 96, seed=7)


class Scene:
    "The stage of one scenario"
    def __init__(self, stream=False, begin=True, symbols=SYMBOLS, real=False, key='paper', secret='paper', **overrides):
        self.folder, self.real = Path(tempfile.mkdtemp(prefix='scene-')), real
        at = round(time.time()*1000) if real else START
        self.run = start(Market(candles(at - at % HOUR), seed=7), at, speed=1. if real else None, key=key, secret=secret)
        self.venue, self.stream, self.inbox, self.listener = self.run.exchange, stream, None, None
        execution = dict(url=self.run.url, timeout_s=1, tick_s=1, canary_s=0, reconcile_s=20) | overrides.pop('execution', {})
        self.settings = parse({'universe': {'symbols': list(symbols)}, 'execution': execution} | overrides)
        self.home, self.log, self.said, self.effects = Home(self.folder), [], [], set()
        self.journal = Journal(self.home.make().journal)
        self.watch = Watch(self.venue, self.journal, self.home.path/'EMERGENCY.log')
        self._record()
        if begin: self.restart()

    def _record(self):
        "Note every request that reaches the exchange, with its status"
        answer = self.venue.request
        def request(method, path, query='', body='', key=None):
            a = answer(method, path, query, body, key)
            self.log.append((method, path, dict(x.split('=', 1) for x in f'{query}&{body}'.split('&') if '=' in x), a.status))
            return a
        self.venue.request = request

    # the gateway

    def restart(self, **kw):
        "Start a gateway on this home, as after a crash"
        if self.stream:
            from quantlib.execution.stream import Inbox, Listener
            if self.listener: self.listener.stop()
            self.inbox = Inbox()
            self.listener = Listener(self.settings, self.venue.key, self.venue.secret, self.inbox)
            self.listener.start()
        old = getattr(self, 'gateway', None)
        if old is not None and getattr(old, 'lease', None) is not None: self.advance(round(self.settings.execution.lease_s*1000) + SECOND)
        client = connect(self.settings)
        if self.real: client.simulated, client._clock = False, None # the venue's time runs like ours
        self.gateway = Gateway(self.settings, self.home, self.journal, client, **({'inbox': self.inbox} if self.stream else {}))
        self.gateway.start()
        return self.gateway

    def advance(self, ms):
        "Let exchange time pass"
        if ms: requests.post(f'{self.run.url}/_sim/clock', json=dict(advance_ms=ms), timeout=30).raise_for_status()
        self.watch.look()

    def step(self, n=1, ms=None):
        "`n` steps of the gateway, `ms` of exchange time before each; what a step costs in real time passes too"
        for _ in range(n):
            self.advance((0 if self.real else SECOND) if ms is None else ms)
            if self.stream: time.sleep(0.03)
            t = time.monotonic()
            out = self.gateway.step()
            if not self.real: self.advance(round((time.monotonic() - t)*1000))
            self.said.append(out)
        return self.said[-1]

    def until(self, what, most_s, ms=SECOND):
        "Step until `what()` holds; the exchange seconds it took"
        begun = self.venue.now
        while not what():
            assert self.venue.now - begun <= most_s*1000, f'not within {most_s} s: {getattr(what, "__doc__", None) or what}'
            self.step(1, ms)
        return (self.venue.now - begun)/1000

    # faults and the world

    def fault(self, effect, phase='instead', method='POST', path=ORDER, count=1, seed=0, ttl=None, event=None, match=None, **args):
        "Put a fault"
        m = dict(match or {}) | (dict(event=event) if event else {} if effect in ENGINE else dict(method=method, path=path))
        d = dict(match=m, phase=phase, effect=effect, args=args, seed=seed, count=count) | (dict(ttl=ttl) if ttl is not None else {})
        r = requests.post(f'{self.run.url}/_sim/fault', json={k: v for k, v in d.items() if v is not None}, timeout=10)
        assert r.status_code == 200, r.text
        self.effects.add(effect)

    def refuse(self, code, msg='refused', status=400, path=ALGO, method='POST', count=1, match=None): self.fault('http', 'instead', method, path, count, match=match, status=status, body=dict(code=code, msg=msg))
    def heal(self): requests.delete(f'{self.run.url}/_sim/fault', timeout=10)

    def world(self, **changes):
        "Change the world outside the gateway"
        r = requests.post(f'{self.run.url}/_sim/world', json=changes, timeout=10)
        assert r.status_code == 200, r.text
        self.watch.look()
        return r.json()

    def when(self, effect, f):
        "Do `f` as soon as a fault has struck, while the gateway waits for its reply"
        n = self.venue.faults.hits[effect]
        def watch():
            end = time.monotonic() + 10
            while self.venue.faults.hits[effect] == n and time.monotonic() < end: time.sleep(0.005)
            f()
        t = threading.Thread(target=watch); t.start()
        return t

    # what is wanted and what is there

    def wish(self, symbol='ETHUSDT', side='BUY', usdt=900., **kw): return wish(self.journal, self.venue.now, symbol, side, float(self.venue.mark(symbol)), usdt, **kw)

    def hold(self, symbol='ETHUSDT', side='BUY', usdt=900.):
        "A protected position of ours"
        i = self.wish(symbol, side, usdt)
        self.step(3)
        assert self.qty(symbol), f'no position: {self.why(i)}'
        assert self.safe(symbol)
        return i

    def why(self, i): return (self.journal.one(sa.select(schema.verdicts).where(schema.verdicts.c.intent_id == i.id)) or {}).get('reasons')
    def qty(self, symbol='ETHUSDT'): return self.venue.account.position(symbol).qty
    def orders(self, **where):
        t = schema.orders
        return self.journal.rows(sa.select(t).where(*[t.c[k] == v for k, v in where.items()]).order_by(t.c.created_at, t.c.id))
    def entries(self, i=None): return [o for o in self.venue.orders.values() if '-entry' in o.client and (i is None or i.id in o.client)]
    def stops(self, symbol='ETHUSDT'): return [a for a in self.venue.waiting.get(symbol, {}).values() if a.type == 'STOP_MARKET' and a.client.startswith('ql-') and '-canary' not in a.client]
    def rests(self, symbol='ETHUSDT'): return [a for a in self.venue.waiting.get(symbol, {}).values() if a.client.startswith('ql-')]
    def codes(self): return [a['code'] for a in self.journal.rows(schema.alerts)]
    def asked(self, method, path, **params): return [x for x in self.log if x[0] == method and x[1] == path and all(x[2].get(k) == v for k, v in params.items())]

    def safe(self, symbol='ETHUSDT'):
        "The whole position has a live stop"
        self.watch.look()
        return symbol not in self.watch.naked

    # judgement

    def protect_ms(self): return max([x.ms for x in self.watch.spans] + [self.venue.now - t for t in self.watch.naked.values()], default=0)

    def agree(self):
        "Journal and exchange agree on quantities and trades"
        theirs = {f"{t['symbol']}:{t['id']}" for t in self.venue.trades if not self.venue.orders[t['orderId']].client.startswith(('manual', 'foreign'))}
        assert {r['id'] for r in self.journal.rows(schema.fills)} == theirs, 'fills differ'
        rows = {r['symbol']: Decimal(r['qty']) for r in self.journal.rows(schema.positions)}
        assert rows == {p.symbol: p.qty for p in self.venue.account.held() if p.symbol in self.watch.own or p.symbol in rows}, 'positions differ'

    def settle(self, ids, s=120, foreign=False):
        "A quiet tail, then everything that must be true"
        assert not (blind := [e for e in self.effects if not self.venue.faults.hits[e]]), f'{blind} never struck'
        self.heal()
        self.step(4, 5*SECOND); self.step(max(1, s//30), 30*SECOND)
        if not foreign: self.agree()
        for p in self.venue.account.held(): assert p.symbol not in self.watch.own or self.safe(p.symbol), f'{p.symbol} is naked at the end'
        for x in SYMBOLS:
            if not self.qty(x): assert not [a for a in self.rests(x) if a.status == 'NEW'], f'orphans in {x}'
            assert len(self.stops(x)) <= 2, f'{len(self.stops(x))} stops in {x}'
        bad = list(self.watch.breaches) + check(facts(self.journal, self.settings, self.venue.now, view=of_venue(self.venue)), ids)
        assert not bad, '; '.join(f'{b.id} {b.what}' for b in bad[:4])

    def close(self):
        if self.listener: self.listener.stop()
        self.run.stop(); self.journal.close()
        shutil.rmtree(self.folder, ignore_errors=True)


ENGINE = ('partial', 'reject_at_trigger', 'stick_status', 'dup_event', 'reorder', 'drop_event', 'expire_listen_key', 'silence')
