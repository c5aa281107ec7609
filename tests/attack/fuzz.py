"""Replies and events that are almost right: `python tests/attack/fuzz.py --n 100000` mutates what the gateway reads and prints what came of it

Every reply must become a typed value or a typed error: never a success out of garbage, never an order because of it, never an error that the loop does not know, never much memory."""
import argparse
import copy
import json
import multiprocessing
import random
import resource
import sys
import time
from collections import Counter
from decimal import Decimal

import requests
from binance.exceptions import BinanceAPIException, BinanceRequestException

from quantlib.core.clock import HOUR
from quantlib.execution import orders, reconcile
from quantlib.execution.client import ClientRefused, Garbled, ask, classify
from quantlib.execution.gateway import Gateway, GatewayRefused
from quantlib.execution.orders import State
from quantlib.execution.rehearsal import Direct, Stage, received
from quantlib.execution.rules import RuleRefused, Rules
from quantlib.sandbox.rest import Answer

TYPED = (Garbled, BinanceAPIException, BinanceRequestException, requests.RequestException, ClientRefused, RuleRefused, GatewayRefused)

# Mutations

LITERALS = {'@nan@': 'NaN', '@inf@': 'Infinity', '@-inf@': '-Infinity', '@big@': '1e400', '@-0@': '-0', '@huge@': '9'*400, '@deep@': '['*2000 + ']'*2000, '@deepobj@': '{"a":'*2000 + '1' + '}'*2000}
STRANGE = ['币安人生USDT', '', ' ', 'NaN', 'Infinity', '-1', '1e400', '0x10', '1,5', '\u0661', 'true', 'null', '\x00', "'; DROP TABLE orders; --", '<b>', 'a'*5000, '-0', '1_000', '１２']
SWAPS = [None, True, False, 0, -1, 10**30, 1.5, '', 'x', [], {}, [[]], {'code': -1000, 'msg': 'x'}]


def nodes(x, path=()):
    "The path of every part of a JSON value"
    out = [path]
    items = list(x.items()) if isinstance(x, dict) else list(enumerate(x)) if isinstance(x, list) else []
    if len(items) > 40: items = items[:20] + items[-20:]
    for k, v in items: out += nodes(v, (*path, k))
    return out


def put(x, path, value):
    "`x` with another value at `path`"
    if not path: return value
    at = x
    for k in path[:-1]: at = at[k]
    at[path[-1]] = value
    return x


def get(x, path):
    for k in path: x = x[k]
    return x


def structural(body, rng):
    "`body` with one part changed: (what was done, text)"
    x = copy.deepcopy(body)
    path = rng.choice(nodes(x))
    what = rng.choice(('swap', 'null', 'missing', 'extra', 'literal', 'strange', 'retype', 'negate', 'double', 'cut', 'scale'))
    old = get(x, path)
    if what == 'swap': x = put(x, path, copy.deepcopy(rng.choice(SWAPS)))
    elif what == 'null': x = put(x, path, None)
    elif what == 'missing' and path:
        holder = get(x, path[:-1]); del holder[path[-1]]
    elif what == 'extra' and isinstance(old, dict): old[rng.choice(('code', 'extra', '币'))] = rng.choice((-1000, 'x', None, '@nan@'))
    elif what == 'extra' and isinstance(old, list): old.append(rng.choice((None, {}, [], 'x', 7)))
    elif what == 'literal': x = put(x, path, rng.choice(list(LITERALS)))
    elif what == 'strange': x = put(x, path, rng.choice(STRANGE))
    elif what == 'retype': x = put(x, path, str(old) if isinstance(old, (int, float)) else float(old) if isinstance(old, str) and old.replace('.', '', 1).isdigit() else [old])
    elif what == 'negate' and isinstance(old, (int, float)) and not isinstance(old, bool): x = put(x, path, -old)
    elif what == 'negate' and isinstance(old, str): x = put(x, path, '-' + old)
    elif what == 'double' and isinstance(old, list) and old: old.append(copy.deepcopy(old[0]))
    elif what == 'cut' and isinstance(old, list) and old: del old[len(old)//2:]
    elif what == 'scale' and isinstance(old, str) and old.replace('.', '', 1).isdigit(): x = put(x, path, old + '0'*rng.choice((5, 30, 400)))
    else: x, what = put(x, path, rng.choice(STRANGE)), 'strange'
    return what, literal(x)


def literal(x):
    "JSON text in which the marks stand for what `json` would not write"
    text = json.dumps(x)
    for mark, lit in LITERALS.items(): text = text.replace(f'"{mark}"', lit)
    return text


def mutate(body, rng):
    "(what was done, status, bytes) instead of `body`"
    if rng.random() < 0.85: what, text = structural(body, rng); return what, 200, text.encode()
    text = json.dumps(body)
    what = rng.choice(('truncated', 'html', 'error', 'empty', 'bytes', 'bom', 'long', 'status', 'twice', 'deep'))
    if what == 'truncated': return what, 200, text[:rng.randrange(max(1, len(text)))].encode()
    if what == 'html': return what, rng.choice((200, 403, 502, 503)), b'<html><body>503 Service Temporarily Unavailable</body></html>'
    if what == 'error': return what, 200, json.dumps(dict(code=rng.choice((-1000, -1007, -2013, -4120)), msg='x')).encode()
    if what == 'empty': return what, rng.choice((200, 204, 500)), b''
    if what == 'bytes': b = bytearray(text.encode()); b[rng.randrange(len(b))] = rng.randrange(256); return what, 200, bytes(b)
    if what == 'bom': return what, 200, b'\xef\xbb\xbf' + text.encode()
    if what == 'long' and rng.random() < 0.05: return what, 200, b'{"a":"' + b'x'*10_000_000 + b'"}'
    if what == 'status': return what, rng.choice((100, 201, 300, 400, 401, 408, 418, 429, 500, 599)), text.encode()
    if what == 'twice': return what, 200, (text + text).encode()
    return 'deep', 200, LITERALS['@deepobj@'].encode()


class Fuzzed(Direct):
    "A client whose replies are spoiled on request"
    spoil, seen, did = None, 0, None

    def _carry(self, method, uri, signed, force_params=False, data=None, **kw):
        a = self._ask(method.upper(), uri[8:], signed, data or {})
        self.seen += 1
        if self.spoil and a.status == 200 and self.spoil(method.upper(), uri[8:], self.seen):
            self.did = (method.upper(), uri[8:], *mutate(a.body, self.rng))
            self.spoil = None
            a = Answer(self.did[3], None, a.headers, raw=self.did[4])
        self.response = a
        r = received(a, self.patience['get' if method == 'get' else 'order'], self.wait)
        r.encoding = 'utf-8' # as the exchange's header says
        return self._handle_response(r)


# What is fuzzed

class Bench:
    "A gateway with protected positions, whose client can be spoiled"
    def __init__(self, seed):
        self.rng, self.count, self.kinds, self.where, self.untyped, self.bad = random.Random(seed), 0, Counter(), Counter(), Counter(), []
        self.stage = None
        self.fresh()

    def fresh(self):
        "Begin again with two protected positions, one of them short"
        if self.stage: self.stage.close()
        self.stage = Stage(direct=True, journal='sqlite://', hours=400, execution=dict(canary_s=0))
        self.client = Fuzzed(self.stage.venue, self.stage.settings)
        self.client.rng = self.rng
        self.inbox = self.stage.inbox
        self.gateway = Gateway(self.stage.settings, self.stage.home, self.stage.journal, self.client, inbox=self.inbox)
        self.gateway.start()
        self.stage.wish('ETHUSDT', 'BUY'); self.stage.wish('SOLUSDT', 'SELL', 700.)
        for _ in range(4): self.stage.advance(1000); self.gateway.step()
        assert len(self.stage.venue.account.held()) == 2, 'the bench could not be set up'
        self.born = self.stage.venue.now

    @property
    def venue(self): return self.stage.venue
    def state(self):
        v = self.venue
        return (len(v.orders), tuple(sorted((p.symbol, p.qty) for p in v.account.held())), tuple(sorted(a.client for w in v.waiting.values() for a in w.values())))

    def wrong(self, what):
        "Note a violation with the mutation that led to it"
        d = self.client.did
        self.bad.append(f'{what} after {d[2] if d else "event"} in {" ".join(d[:2]) if d else self.event}: {(d[4][:160] if d else "")!r}')

    def case(self):
        "One mutated reply or event"
        self.client.did, self.event = None, ''
        self.venue.counts.clear() # no limit stands between the mutations
        r = self.rng.random()
        (self.reader if r < 0.87 else self.quiet if r < 0.95 else self.told if r < 0.999 else self.entry)()
        self.count += 1
        if self.client.did: self.kinds[self.client.did[2]] += 1; self.where[' '.join(self.client.did[:2])] += 1
        self.client.spoil = None

    # one reader alone

    def readers(self):
        c, v = self.client, self.venue
        since = v.now - 2*HOUR
        h = next(iter(self.gateway.ledger.held.values()))
        mine = [o for o in self.gateway.ledger.orders.values() if o.state in (State.ACKED, State.FILLED)]
        o = self.rng.choice(mine)
        out = [lambda: c.sync(), lambda: reconcile.read(c, v.now), lambda: reconcile.read(c, v.now), lambda: reconcile.trades(c, h.symbol, since, v.now), lambda: Rules(c.futures_exchange_info()),
               lambda: reconcile.funding(c, h.symbol, since, v.now), lambda: self.found(o)]
        if hasattr(reconcile, 'income'): out.append(lambda: reconcile.income(c, since, v.now))
        return out

    def found(self, o):
        "An order asked for by its name"
        name, needs, params = orders.question(o)
        new = orders.seen(o, ask(self.client, name, needs, **params), self.venue.now)
        if (new.id, new.symbol, new.side) != (o.id, o.symbol, o.side): self.wrong('another order was believed')
        if new.filled > max(o.qty, o.filled) and o.qty: self.wrong(f'{new.filled} of {o.qty} filled was believed')

    def reader(self):
        "What one reader makes of it"
        f, n = self.rng.choice(self.readers()), self.client.seen + self.rng.randint(1, 3)
        self.client.spoil = lambda m, p, k: k >= n
        try: value = f()
        except TYPED: return
        except Exception as e: self.untyped[f'{type(e).__name__} {self.client.did and self.client.did[1]}'] += 1; return self.wrong(f'{type(e).__name__}: {e!s:.80}')
        for d in decimals(value):
            if not d.is_finite(): return self.wrong(f'{d} passed')

    # a whole step

    def step(self, ms=1000):
        self.stage.advance(ms)
        try: self.gateway.step()
        except Exception as e: self.untyped[type(e).__name__] += 1; self.wrong(f'the loop ended with {type(e).__name__}: {e!s:.80}'); self.fresh(); return False
        return True

    def quiet(self):
        "Nothing is to be done, one reply of the step is spoiled: nothing may be sent"
        if self.venue.now - self.born > 200*HOUR: self.fresh()
        before, n = self.state(), self.client.seen + self.rng.randint(1, 8)
        self.truthful()
        self.client.spoil = lambda m, p, k: k >= n
        if not self.step(): return
        d = self.client.did
        self.client.spoil = None
        after = self.state()
        if after[:2] != before[:2]: self.wrong(f'orders or positions changed: {before[:2]} -> {after[:2]}'); return self.fresh()
        if after != before and not shorter(d): self.wrong(f'resting orders changed: {set(before[2]) ^ set(after[2])}'); return self.fresh()
        if after != before: self.fresh()

    def truthful(self):
        "Make the next step read the whole account"
        self.inbox.gap('fuzz')

    def told(self):
        "A spoiled event of the user stream"
        events = [e for e in EVENTS(self)]
        e = self.rng.choice(events)
        before = self.state()
        what, status, raw = mutate(e, self.rng)
        try: said = json.loads(raw)
        except (ValueError, RecursionError): said = raw.decode('utf8', 'replace')
        self.event = f'{e["e"]} {what}'
        self.kinds[what] += 1; self.where[f'event {e["e"]}'] += 1
        try: self.inbox.push(said)
        except Exception as x: self.untyped[f'{type(x).__name__} in the inbox'] += 1; return self.wrong(f'{type(x).__name__} in the inbox: {x!s:.80}')
        if not self.step(100) or not self.step(): return
        if self.state()[:2] != before[:2]: self.wrong(f'orders or positions changed by an event: {raw[:200]!r}'); self.fresh()

    def entry(self):
        "An intent whose replies are spoiled: at most one entry, and never without a stop for long"
        v, n = self.venue, self.client.seen + self.rng.randint(1, 12)
        i = self.stage.wish('XRPUSDT', self.rng.choice(('BUY', 'SELL')), self.rng.uniform(300, 900), life_ms=6000)
        self.client.spoil = (lambda m, p, k: m == 'POST') if self.rng.random() < 0.5 else (lambda m, p, k: k >= n)
        if not self.step(): return
        for _ in range(8):
            if not self.step(): return
        mine = [o for o in v.orders.values() if i.id in o.client and '-entry' in o.client]
        if len(mine) > 1: self.wrong(f'{len(mine)} entries')
        for p in v.account.held():
            stops = [a for a in v.waiting.get(p.symbol, {}).values() if a.type == 'STOP_MARKET' and a.buy == (p.qty < 0)]
            if not any(a.close_position for a in stops) and sum(a.qty for a in stops) < abs(p.qty): self.wrong(f'{p.symbol} has no stop 8 s later')
        if len(mine) or self.rng.random() < 0.1: self.fresh()


def EVENTS(bench):
    "Well-formed events of the present state"
    v, g = bench.venue, bench.gateway
    now, out = v.now, [dict(e='markPriceUpdate', E=v.now, s='ETHUSDT', p=str(v.mark('ETHUSDT')), ap=str(v.mark('ETHUSDT')), i='1', P='1', r='0.0001', T=v.now + HOUR, st=1)]
    for p in v.account.held():
        out.append(dict(e='ACCOUNT_UPDATE', E=now, T=now, a=dict(m='ORDER', B=[dict(a='USDT', wb=str(v.account.wallet), cw=str(v.account.wallet), bc='0')], P=[dict(s=p.symbol, pa=str(p.qty), ep=str(p.entry), bep='1', cr='0', up='0', mt='cross', iw='0', ps='BOTH')])))
    for w in v.waiting.values():
        for a in w.values(): out.append(dict(e='ALGO_UPDATE', T=now, E=now, o=dict(caid=a.client, aid=a.id, at='CONDITIONAL', o=a.type, s=a.symbol, S=a.side, ps='BOTH', f='GTC', q=str(a.qty), X='NEW', ai='', ap='0', aq='0', act='0', tp=str(a.trigger), p='0', V='NONE', wt=a.working, pm='NONE', cp=False, pP=False, R=True, tt=0, gtd=0)))
    for o in list(v.orders.values())[-3:]:
        out.append(dict(e='ORDER_TRADE_UPDATE', E=now, T=now, o=dict(s=o.symbol, c=o.client, S=o.side, o=o.type, f='GTC', q=str(o.qty), p='0', ap=str(o.average), sp='0', x='NEW', X='NEW', i=o.id, l='0', z='0', L='0', T=now, t=0, b='0', a='0', m=False, R=o.reduce_only, wt='CONTRACT_PRICE', ot=o.type, ps='BOTH', cp=False, pP=False, si=0, ss=0, rp='0', V='NONE', pm='NONE', gtd=0, er='0')))
    out.append(dict(e='listenKeyExpired', E=now, listenKey='x'))
    return out


def shorter(d):
    "Whether the spoiled reply is a valid, shorter list, or one in which a resting order is not shown: a lie nobody can see through at once"
    return bool(d) and d[0] == 'GET' and 'lgo' in d[1]


def decimals(x, deep=0):
    "The numbers that a reader has made; what it passes on as it came is read when it is used"
    if isinstance(x, Decimal): yield x
    elif deep < 6:
        if isinstance(x, dict): x = x.values()
        elif hasattr(x, '__dataclass_fields__'): x = [getattr(x, k) for k in x.__dataclass_fields__]
        if isinstance(x, (list, tuple, set)) or hasattr(x, '__iter__') and not isinstance(x, (str, bytes)):
            for y in x: yield from decimals(y, deep + 1)


def fuzz(n, seed=1, show=False, most_bad=10):
    "Run `n` cases; the bench with its counts"
    b = Bench(seed)
    caught = lambda module: setattr(module, 'classify', lambda e, real=classify: (b.untyped.update([f'{type(e).__name__} inside']) or b.wrong(f'{type(e).__name__} inside: {e!s:.80}') if not isinstance(e, TYPED) else None) or real(e))
    judges = [m for n, m in list(sys.modules.items()) if n.startswith('quantlib.execution.') and getattr(m, 'classify', None) is classify and not n.endswith('.client')]
    for m in judges: caught(m)
    b.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    try:
        for k in range(n):
            b.case()
            if show and k and k % 10_000 == 0: print(f'{k} replies, {len(b.bad)} violations, {b.rss():.0f} MB more', flush=True)
            if len(b.bad) >= most_bad: break
    finally:
        for m in judges: m.classify = classify
        b.grown = b.rss(); b.stage.close()
    return b


Bench.rss = lambda self: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024 - self.memory


def part(job):
    "One process's share: what of its bench can be sent back"
    n, seed, bad = job
    b = fuzz(n, seed, True, bad)
    return b.count, b.kinds, b.where, b.untyped, b.bad, b.grown


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--n', type=int, default=100_000)
    p.add_argument('--seed', type=int, default=1)
    p.add_argument('--bad', type=int, default=50, help='stop after so many violations')
    p.add_argument('--jobs', type=int, default=2, help='processes')
    a = p.parse_args()
    t, share = time.monotonic(), -(-a.n//a.jobs)
    with multiprocessing.get_context('spawn').Pool(a.jobs) as pool: parts = pool.map(part, [(min(share, a.n - k*share), a.seed + k, a.bad) for k in range(a.jobs)])
    count, kinds, where, untyped = sum(x[0] for x in parts), sum((x[1] for x in parts), Counter()), sum((x[2] for x in parts), Counter()), sum((x[3] for x in parts), Counter())
    bad, grown = [v for x in parts for v in x[4]], max(x[5] for x in parts)
    print('mutations:', ', '.join(f'{k} {n}' for k, n in kinds.most_common()))
    print('replies and events:', ', '.join(f'{k} {n}' for k, n in where.most_common()))
    for what, n in Counter(x.partition(' after ')[0] for x in bad).most_common(): print(f'VIOLATION {n} times:', next(x for x in bad if x.startswith(what)))
    print(f'{count} mutated replies and events (seeds {a.seed} to {a.seed + a.jobs - 1}): {sum(untyped.values())} untyped errors {dict(untyped) or ""}, {len(bad)} violations, memory +{grown:.0f} MB in each of {a.jobs} processes, {time.monotonic() - t:.0f} s')
    return 1 if bad or grown > 200 else 0


if __name__ == '__main__': sys.exit(main())
