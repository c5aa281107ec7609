"""Days of trading in a hostile world, in one process, repeatable from a number

    python tests/attack/simulate.py --days 500 --seed 0 --jobs 2      the whole
    python tests/attack/simulate.py --seed-only 17 --trace            one day, told step by step
    python tests/attack/simulate.py --twice 20                        the same day gives the same events in each process

Each seed is a day: a market, intents, and a swarm of faults of a few kinds, chosen by the seed. The last hour has no new fault and ends at rest. Every event of the venue is judged
when it happens (`ops.watch`), the whole story at the end (`ops.invariants`)."""
import argparse, hashlib, json, os, subprocess, sys, time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import numpy as np, requests
import sqlalchemy as sa
from binance.exceptions import BinanceAPIException, BinanceRequestException
sys.path.insert(0, str(Path(__file__).parent))

from world import SYMBOLS, World, fast_journal
from quantlib.core.clock import DAY, HOUR, MINUTE, iso
from quantlib.core.types import Reason
from quantlib.execution import kill, lease
from quantlib.execution.client import Garbled
from quantlib.execution.gateway import GatewayRefused
from quantlib.execution.rehearsal import START
from quantlib.journal import schema
from quantlib.journal.bus import publish
from quantlib.journal.store import JournalError, NotLeader
from quantlib.ops.invariants import AFTER_START_MS, CEILING_MS, check, facts, of_venue, spread
from quantlib.sandbox.contracts import table
from quantlib.sandbox.market import STEP

TAIL = HOUR # The end of each day, without new faults
PULSE = 2*MINUTE # A gateway that holds something is stepped this often although nothing happens; in truth the marks wake it every second
ORDER, ALGO = '/fapi/v1/order', '/fapi/v1/algoOrder'
ENDPOINTS = [('POST', ORDER), ('POST', ALGO), ('DELETE', ALGO), ('GET', ORDER), ('GET', ALGO), ('GET', '/fapi/v1/openAlgoOrders'), ('GET', '/fapi/v1/openOrders'), ('GET', '/fapi/v3/positionRisk'),
    ('GET', '/fapi/v3/account'), ('GET', '/fapi/v1/userTrades'), ('GET', '/fapi/v1/income'), ('GET', '/fapi/v1/time'), ('GET', '/fapi/v1/premiumIndex'), ('GET', '/fapi/v1/exchangeInfo'), ('POST', '/fapi/v1/leverage')]
TRANSPORT = ('http', 'reset', 'hang', 'slow', 'truncate', 'html', 'empty', 'nan', 'json_mutate', 'ok_with_error_body')
LIKES = ('unknown', 'unavailable', 'internal', 'throttled', 'timeout', 'unexpected', 'waf', 'moved')


class Crash(BaseException):
    "The process ends between two instructions; nothing may catch it"


@dataclass
class Act:
    "Something that happens at an instant"
    at:int; kind:str; args:dict = field(default_factory=dict); fault:bool = True; seed:int = 0

    def __str__(self): return f'{iso(self.at)} {self.kind} {json.dumps(self.args, default=str)}'


# -- what may happen ----------------------------------------------------------------------------------------------------------------------------------------------------------------------

def transport(r):
    "A spoiled reply on one endpoint, before or after the book was changed"
    (method, path), effect = r.choice(ENDPOINTS[:3]*2 + ENDPOINTS), r.choice(TRANSPORT)
    args = {'http': lambda: dict(like=r.choice(LIKES)), 'hang': lambda: dict(s=r.choice([1, 5, 30])), 'slow': lambda: dict(bytes_s=r.choice([50, 2000])), 'truncate': lambda: dict(n=r.randrange(40)),
            'ok_with_error_body': lambda: dict(code=r.choice([-2013, -1000, -2022]), msg='x')}.get(effect, dict)()
    return dict(match=dict(method=method, path=path), phase=r.choice(['before_apply', 'after_apply']), effect=effect, args=args, seed=r.randrange(1000), ttl=r.choice([120, 900]), count=r.choice([1, 1, 1, 2, 3]))


def refused(r):
    "A definite refusal of an order"
    path, code = r.choice([(ALGO, -2021), (ALGO, -4120), (ALGO, -4045), (ALGO, -1111), (ORDER, -2019), (ORDER, -1111), (ORDER, -4118), (ORDER, -2022), (ORDER, -1008), (ALGO, -4116), (ORDER, -4131), (ALGO, -2015), (ALGO, -1021), (ORDER, -5028)])
    return dict(match=dict(method='POST', path=path), phase='instead', effect='http', args=dict(status=400, body=dict(code=code, msg='refused for the exercise')), ttl=300, count=r.choice([1, 1, 2, 4]))


def view(r):
    "A reply that was true once, or an order that is not shown"
    if r.random() < .5: return dict(match=dict(method='GET', path=r.choice(['/fapi/v3/positionRisk', '/fapi/v1/openAlgoOrders', '/fapi/v3/account', ALGO, ORDER, '/fapi/v1/userTrades'])), effect='stale_view', args=dict(s=r.choice([5, 30, 120])))
    return dict(match=dict(method='*', path='*'), effect='forget', args=dict(s=r.choice([60, 600, 2400]), **r.choice([dict(algo='*'), dict(client_id='*')])))


def engine(r):
    "The matching engine is late, partial, or does not honour a trigger"
    effect = r.choice(['delay_apply', 'partial', 'partial', 'reject_at_trigger', 'stick_status'])
    match = dict(method='POST', path=r.choice([ORDER, ALGO])) if effect == 'delay_apply' else {}
    return dict(match=match, effect=effect, args=dict(delay_apply=dict(s=r.choice([1, 2, 5, 20])), partial=dict(frac=r.choice([.1, .37, .8]))).get(effect, {}), ttl=3600, count=r.choice([1, 1, 2]), phase='instead')


def event(r):
    "The user stream repeats, swaps, loses or stops"
    effect = r.choice(['dup_event', 'reorder', 'drop_event', 'silence', 'expire_listen_key'])
    match = {} if effect == 'silence' else dict(event='listenKey') if effect == 'expire_listen_key' else dict(event=r.choice(['ORDER_TRADE_UPDATE', 'ACCOUNT_UPDATE', 'ALGO_UPDATE']))
    args = dict(silence=dict(s=r.choice([20, 90, 300])), reorder=dict(k=r.choice([1, 2, 5]))).get(effect, {})
    return dict(match=match, effect=effect, args=args, phase='instead') | (dict(ttl=600, count=r.choice([1, 2, 4])) if effect not in ('silence', 'expire_listen_key') else {})


def outage(r): return dict(match=dict(method='*', path='*'), phase=r.choice(['before_apply', 'after_apply']), effect=r.choice(['reset', 'html']), ttl=r.choice([10, 30, 60]), count=None)


FAULTS = dict(transport=transport, refused=refused, view=view, engine=engine, event=event, outage=outage)
WORLD = ('manual_new', 'manual_more', 'manual_close', 'manual_cancel', 'adl', 'liquidate', 'status', 'hedge', 'multi_assets', 'leverage', 'revoke', 'skew', 'jump', 'funding', 'transfer', 'filters', 'can_trade', 'brackets', 'limits', 'depth')
MACHINE = ('crash', 'crash_inside', 'locked', 'kill', 'handover', 'redeliver', 'disconnect')
KINDS = tuple(FAULTS) + WORLD + MACHINE


def schedule(seed, hours=24):
    "What happens on the day of a seed: intents and a swarm of faults of a few kinds"
    r, acts = Random(f'day {seed}'), []
    end = START + hours*HOUR - TAIL
    for _ in range(r.randrange(12, 40) if hours == 24 else r.randrange(8, 16)):
        at = r.randrange(START + MINUTE, end)
        acts.append(Act(at, r.choices(['open', 'close', 'twice', 'stale', 'late', 'garbage'], [14, 5, 1, 1, 1, 1])[0], dict(symbol=r.choice(SYMBOLS)), fault=False, seed=r.randrange(1 << 30)))
    moments = [a.at for a in acts]
    for kind in [k for k in KINDS if r.random() < .22]:
        for _ in range(r.randrange(1, 6 if kind in FAULTS else 3)):
            at = r.choice(moments) + r.choice([-5_000, -1_000, -200, 100, 400, 30_000]) if r.random() < .75 else r.randrange(START + MINUTE, end)
            args = FAULTS[kind](r) if kind in FAULTS else dict(symbol=r.choice(SYMBOLS))
            acts.append(Act(min(max(at, START + 30_000), end), kind, args, seed=r.randrange(1 << 30)))
    return sorted(acts, key=lambda a: (a.at, a.seed))


# -- a day ----------------------------------------------------------------------------------------------------------------------------------------------------------------------------------

class Day:
    "One seed, from midnight to rest"
    def __init__(self, seed, keep=None, trace=False, hours=24):
        self.seed, self.r, self.trace, self.log, self.end = seed, Random(f'run {seed}'), trace, [], START + hours*HOUR
        self.acts = [a for i, a in enumerate(schedule(seed, hours)) if not a.fault or keep is None or i in keep]
        self.world = World(np.random.default_rng(seed), hours=hours + 2, execution=dict(lease_s=300)) # renewed with each sign of life, so that a quiet day has few steps
        self.venue, self.watch = self.world.venue, self.world.watch
        self.g, self.paused, self.born, self.restart_at, self.deaths, self.lock = None, None, 0, START, Counter(), None
        self.seen, self.kills, self.foreign, self.quiet, self.outages, self.trouble, self.marked, self.fuse, self.undo = Counter(), [], set(), False, [], [], 0, None, []
        self.watch.causes = self.cause
        self.venue.listeners.append(self.heard)
        self.heard_now, self.steps = False, 0

    def note(self, text):
        line = f'{iso(self.venue.now)} {text}'
        self.log.append(line)
        if self.trace: print(line, flush=True)

    def heard(self, e):
        "Somebody spoke: the gateway will be asked"
        self.heard_now = True
        if self.trace: o = e.get('o', {}); self.note(f'    {e["e"]} {o.get("c") or o.get("caid") or ""} {o.get("x") or ""} {o.get("X") or ""} {o.get("s") or ""} {o.get("l") or ""}')

    def cause(self, symbol, at):
        "What a stretch without a stop is due to"
        span = at - 45_000, self.venue.now
        if any(a <= span[1] and b + 10_000 >= at and s in (symbol, '*') for a, b, s in self.outages): return 'outage'
        if any(at - 60_000 <= t <= span[1] for t, k in self.trouble if k == 'crash'): return 'crash'
        if any(a <= span[1] and (b or self.venue.now) >= at for a, b, level in self.kills if level == 'halt'): return 'halt'
        if any(at - 1_000 <= t <= at and s == symbol for t, s in self.foreign): return 'foreign'
        return 'ours'

    def answerable(self, s):
        "How much of a stretch without a stop the exchange would have answered in, ms"
        left, end = 0, s.at
        for a, b in sorted((a, b) for a, b, symbol in self.outages if symbol in (s.symbol, '*')) + [(s.at + s.ms, s.at + s.ms)]:
            left, end = left + max(0, min(a, s.at + s.ms) - end), max(end, b)
        return left

    def delay(self, method, path):
        "Time on the wire, and the instant at which the machine may stop"
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0: self.fuse = None; raise Crash
        return self.r.choice((4, 9, 20, 60)) if self.r.random() < .97 else 400

    def answered(self, a):
        "What the venue says about our rate"
        if a.status == 429: self.seen['429 of the venue'] += 1
        if a.status == 418: self.seen['418 of the venue'] += 1; self.watch.breach('I13', 'the venue has banned us') if self.seen['418 of the venue'] == 1 else None

    # -- the process

    def begin(self):
        "Start a gateway as the supervisor of the machine would"
        if self.venue.now < self.restart_at: return
        if self.lock: return self.die(JournalError('the journal is locked'), 'start')
        try:
            self.g = self.world.gateway(f'{lease._here()}:{4_000_000 + self.deaths.total()}:0', delay=self.delay, answered=self.answered)
            if self.g is None: self.restart_at = self.venue.now + 1_000; return # somebody leads
            self.venue.call('POST', '/fapi/v1/listenKey')
            self.g.start()
            self.note('gateway starts')
        except (GatewayRefused, JournalError, lease.LeaseRefused, sa.exc.SQLAlchemyError, BinanceAPIException, BinanceRequestException, requests.RequestException, Garbled, Crash) as e: self.die(e, 'start')

    def die(self, e, why):
        "The process is gone; the supervisor waits some seconds"
        self.note(f'gateway dies: {why} {type(e).__name__} {e}')
        self.deaths[f'{why} {type(e).__name__}'] += 1
        if self.g: self.world.forget(self.g)
        self.g, self.fuse, self.restart_at = None, None, self.venue.now + self.r.choice((1_000, 3_000, 8_000))
        self.trouble.append((self.venue.now, 'crash'))

    @property
    def due(self):
        "When the gateway wants to be asked, on the clock of the venue; its own may be wrong"
        return self.g.due - self.g.client.clock.offset

    def step(self, g=None):
        "One step; an exception that no process should die of is a finding"
        self.marks(); self.steps += 1
        try: (g or self.g).step()
        except (JournalError, sa.exc.SQLAlchemyError, Crash, GatewayRefused) as e: self.die(e, 'step')
        except Exception as e:
            self.watch.breach('I14', f'the gateway raised {type(e).__name__}: {e}', trace=traced(e)); self.die(e, 'step')
        self.watch.look()

    # -- time

    def until(self, end):
        "Let the day go on to an instant"
        v, acts = self.venue, self.acts
        while v.now < end:
            due = self.due if self.g else max(self.restart_at, v.now + 1)
            hot = bool(self.watch.naked)
            target = min(end, due, acts[0].at if acts else end, v.now + (1_000 if hot else PULSE if v.account.held() else DAY), max(v.next_instant(), v.now))
            self.heard_now = False
            v.advance(max(v.now, target))
            if self.heard_now or hot: self.watch.look()
            pulse = v.now - self.marked >= (STEP if hot else PULSE) and bool(v.account.held())
            while acts and acts[0].at <= v.now: self.do(acts.pop(0))
            if self.g is None: self.begin()
            elif self.heard_now or pulse or v.now >= self.due: self.step()

    def marks(self):
        "The mark prices of now, on the stream; in truth they come every second"
        self.marked = v = self.venue.now
        if any(f.effect == 'silence' and f.alive(v) for f in self.venue.faults.waiting): return
        self.g.inbox.push([dict(e='markPriceUpdate', E=v, s=s, p=str(self.venue.mark(s)), st=1) for s in self.venue.listed()])

    # -- acts

    def do(self, a):
        "Let an act happen"
        self.note(f'>> {a.kind} {a.args}')
        self.seen[a.kind] += 1
        if a.kind in FAULTS:
            self.venue.faults.add(a.args)
            if a.kind == 'outage': self.outages.append((a.at, a.at + a.args['ttl']*1000, '*'))
        else: getattr(self, a.kind)(Random(a.seed), **a.args)
        self.heard_now = True

    def world_of(self, **changes):
        try: self.venue.world(**changes)
        except Exception as e: self.note(f'world {changes}: {type(e).__name__} {e}')

    def later(self, ms, f): self.acts.append(Act(self.venue.now + ms, 'healed', dict(f=f), fault=False)); self.acts.sort(key=lambda a: (a.at, a.seed))
    def healed(self, r, f): f()

    def open(self, r, symbol, **kw):
        if self.lock: return
        self.world.wish(symbol, r.choice(['BUY', 'SELL']), r.choice([100., 300., 900., 2000., 5000.]), stop=r.choice([.01, .015, .02]), take=r.choice([.02, .03, .045]), **kw)
    def close(self, r, symbol):
        p = self.venue.account.position(symbol).qty
        if not self.lock: self.world.wish(symbol, 'SELL' if p > 0 else 'BUY', action='close')
    def twice(self, r, symbol): self.open(r, symbol); self.open(Random(1), symbol); self.open(Random(1), symbol)
    def stale(self, r, symbol): self.open(r, symbol, price=float(self.venue.mark(symbol))*r.choice([.97, 1.03]))
    def late(self, r, symbol): self.open(r, symbol, life_ms=1)
    def garbage(self, r, symbol):
        payload = r.choice([{}, dict(id='x', action='open'), dict(id='i'*17, cycle='c', symbol=symbol, action='open', side='BUY', notional_usdt='NaN', price=None, confidence=2, path='ensemble', regime='x', stop_frac=-1, take_frac=0, expires_at=0)])
        if self.lock: return
        with self.world.journal.write() as c: publish(c, 'trade.intent', f'garbage-{r.randrange(1 << 30)}', payload, self.venue.now)
    def redeliver(self, r, symbol):
        d = schema.deliveries
        if self.lock: return
        with self.world.journal.write() as c: c.execute(d.update().where(d.c.seq % 3 == r.randrange(3)).values(acked_at=None, delivered_at=0))

    def held(self, r, ours=True):
        "A symbol in which the account holds something, ours or not"
        out = sorted(p.symbol for p in self.venue.account.held() if (p.symbol in self.watch.own) == ours)
        return r.choice(out) if out else None

    def hand(self, symbol, side, qty):
        "The owner trades by hand"
        self.foreign.add((self.venue.now, symbol))
        self.world_of(trade=dict(symbol=symbol, side=side, qty=str(qty), client=f'web_{self.venue.now}'))
    def manual_new(self, r, symbol):
        if not self.venue.account.position(symbol).qty: c = self.venue.contracts[symbol]; self.hand(symbol, r.choice(['BUY', 'SELL']), max(c.min_qty, (200/self.venue.mark(symbol))//c.step*c.step))
    def manual_more(self, r, symbol):
        if s := self.held(r): q = self.venue.account.position(s).qty; c = self.venue.contracts[s]; self.hand(s, 'BUY' if q > 0 else 'SELL', max(c.min_qty, abs(q)/2//c.step*c.step))
    def manual_close(self, r, symbol):
        if s := self.held(r): q = self.venue.account.position(s).qty; c = self.venue.contracts[s]; self.hand(s, 'SELL' if q > 0 else 'BUY', max(c.min_qty, abs(q)*r.choice([1, 2])//(1 if r.random() < .5 else 2)//c.step*c.step))
    def manual_cancel(self, r, symbol):
        names = sorted(a.client for w in self.venue.waiting.values() for a in w.values())
        if names: self.world_of(cancel=dict(client=r.choice(names)))
    def adl(self, r, symbol):
        if s := self.held(r): self.foreign.add((self.venue.now, s)); self.world_of(adl=dict(symbol=s, fraction=r.choice([.3, .5, 1])))
    def liquidate(self, r, symbol):
        if s := self.held(r): self.foreign.add((self.venue.now, s)); self.world_of(liquidate=dict(symbol=s))
    def status(self, r, symbol):
        self.world_of(status={symbol: r.choice(['BREAK', 'TRADING_HALT', 'TRADING_CANCEL_ONLY'])})
        ms = r.choice([5, 60])*MINUTE; self.outages.append((self.venue.now, self.venue.now + ms, symbol)); self.later(ms, lambda: self.world_of(status={symbol: 'TRADING'}))
    def hedge(self, r, symbol): self.world_of(hedge=True); self.later(20*MINUTE, lambda: self.world_of(hedge=False))
    def multi_assets(self, r, symbol): self.world_of(multi_assets=True); self.later(20*MINUTE, lambda: self.world_of(multi_assets=False))
    def leverage(self, r, symbol): self.world_of(leverage={symbol: r.choice([1, 2, 20])})
    def revoke(self, r, symbol):
        self.world_of(revoke_key=True); self.outages.append((self.venue.now, self.venue.now + 5*MINUTE, '*')); self.later(5*MINUTE, lambda: self.world_of(revoke_key=False))
    def skew(self, r, symbol): self.world_of(skew_ms=r.choice([-60_000, -3_000, -600, 600, 3_000, 60_000])); self.later(15*MINUTE, lambda: self.world_of(skew_ms=0))
    def jump(self, r, symbol): self.world_of(price={symbol: r.choice([.9, .97, 1.03, 1.1])})
    def funding(self, r, symbol): self.world_of(funding={symbol: r.choice([.01, -.01])})
    def transfer(self, r, symbol): self.world_of(transfer=r.choice([-1000, 500]))
    def filters(self, r, symbol):
        step = table()[symbol].step # the real one: another change may be in force
        self.world_of(filters={symbol: dict(step=str(step*10))}); self.later(r.choice([1, 6])*HOUR, lambda: self.world_of(filters={symbol: dict(step=str(step))}))
    def can_trade(self, r, symbol): self.world_of(can_trade=False); self.later(20*MINUTE, lambda: self.world_of(can_trade=True))
    def brackets(self, r, symbol): self.world_of(brackets={symbol: .01}); self.later(HOUR, lambda: self.world_of(brackets={symbol: 100}))
    def limits(self, r, symbol): self.world_of(limits=dict(weight=r.choice([300, 600]), orders_10s=5, orders_1m=20)); self.later(5*MINUTE, lambda: self.world_of(limits=dict(weight=2400, orders_10s=300, orders_1m=1200)))
    def depth(self, r, symbol): self.world_of(depth={symbol: r.choice([200, 1000])})

    def crash(self, r, symbol):
        if self.g: self.die(Crash(), 'kill -9')
    def crash_inside(self, r, symbol): self.fuse = r.randrange(1, 24); self.later(10*MINUTE, lambda: setattr(self, 'fuse', None))
    def disconnect(self, r, symbol):
        if self.g and self.g.inbox: self.g.inbox.gap('the connection was lost')
    def locked(self, r, symbol):
        if self.lock: return
        self.lock = self.world.journal.engine.raw_connection(); self.lock.dbapi_connection.execute('BEGIN IMMEDIATE')
        self.later(r.choice([2_000, 10_000, 40_000]), self.unlock)
    def unlock(self):
        if self.lock: self.lock.dbapi_connection.rollback(); self.lock.close(); self.lock = None
    def kill(self, r, symbol):
        level = r.choice(list(kill.Level)); kill.put(self.world.home, level, 'exercise', 'simulation', self.venue.now)
        self.kills.append([self.venue.now, None, level.name.lower()]); self.later(r.choice([2, 20])*MINUTE, self.unkill)
    def unkill(self):
        if kill.read(self.world.home): kill.clear(self.world.home, 'the exercise is over', 'simulation', self.venue.now)
        for k in self.kills: k[1] = k[1] or self.venue.now
    def handover(self, r, symbol):
        "The leader is stopped like a process in a debugger, another one takes over, then the first goes on"
        if self.g is None: return
        old, self.g, self.restart_at = self.g, None, self.venue.now + 17_000
        self.trouble.append((self.venue.now, 'crash'))
        def wakes():
            sent = len(self.watch.arrived)
            try: old.step()
            except (JournalError, GatewayRefused, sa.exc.SQLAlchemyError): self.seen['fence refusal'] += 1
            except Crash: self.seen['a leader of the past dies'] += 1
            if self.g and len(self.watch.arrived) != sent: self.watch.breach('I18', 'a leader of the past sent an order')
            self.world.forget(old)
        self.later(60_000, wakes)

    # -- the end

    def run(self):
        "The whole day; what was found"
        try:
            self.until(self.end - TAIL)
            self.rest()
            self.until(self.end)
            self.settle()
            for s in self.watch.spans:
                if self.answerable(s) > dict(ours=CEILING_MS, outage=CEILING_MS, crash=AFTER_START_MS).get(s.cause, DAY): self.watch.breach('I4', f'{s.symbol} stood naked for {s.ms/1000:.1f} s from {iso(s.at)} ({s.cause})')
        except Exception as e: self.watch.breach('I14', f'the day broke: {type(e).__name__}: {e}', trace=traced(e))
        self.count()
        out = dict(seed=self.seed, breaches=[(b.id, b.what) for b in self.watch.breaches], traces=[b.evidence.get('trace') for b in self.watch.breaches if b.evidence.get('trace')], spans=[(self.answerable(s), s.cause, s.ms) for s in self.watch.spans],
            seen=dict(self.seen), hash=self.hash(), hits=dict(self.venue.faults.hits), deaths=dict(self.deaths), log=self.log[-60:], steps=self.steps)
        self.unlock(); self.world.close()
        return out

    def rest(self):
        "Everything that was done to the world is healed, and people clear what they must"
        self.note('-- the quiet hour')
        for a in [a for a in self.acts if a.kind == 'healed']: a.args['f']()
        self.acts = []
        self.venue.faults.clear(); self.unlock(); self.unkill(); self.fuse = None
        b, now = schema.breakers, self.venue.now
        with self.world.journal.write() as c: c.execute(b.update().where(b.c.cleared_at.is_(None)).values(cleared_at=now, cleared_why='the exercise is over'))

    def settle(self):
        "At rest, everything must be true; then everything is closed"
        self.judge('rest')
        kill.put(self.world.home, kill.Level.FLATTEN, 'the day is over', 'simulation', self.venue.now)
        self.kills.append([self.venue.now, None, 'flatten'])
        if self.g: self.step()
        self.until(self.venue.now + 31_000)
        ours = [s for s in sorted(self.watch.own) if self.venue.account.position(s).qty]
        if ours: self.watch.breach('I5', f'{", ".join(ours)} open 30 s after FLATTEN')
        self.until(self.venue.now + 6*MINUTE)
        self.judge('flat')

    def judge(self, when):
        for b in check(facts(self.world.journal, self.world.settings, self.venue.now, view=of_venue(self.venue), kills=tuple(map(tuple, self.kills)), secrets=(self.venue.secret,) if len(self.venue.secret) > 8 else ())):
            if self.seen['skew'] and b.id in ('I2', 'I17', 'I18') and not b.what.endswith('not in the journal'): continue # dated by a clock that lied; the watch judged these at their instant
            if b.id == 'I4' and any(s.symbol in b.what and s.ms > CEILING_MS for s in self.watch.spans): continue # judged below, with its cause
            self.watch.breaches.append(b); self.note(f'!! {when} {b.id} {b.what}')

    def hash(self):
        "Names the story: every event, order and fill of the day"
        j, h = self.world.journal, self.watch.digest.copy()
        for t in (schema.orders, schema.fills, schema.verdicts, schema.outcomes): h.update(j.fingerprint(t).encode())
        return h.hexdigest()[:16]

    def count(self):
        "Which paths this day went"
        j, o, a = self.world.journal, schema.orders, schema.alerts
        orders, alerts = j.rows(o), j.rows(a)
        doubt, by = {x['cause'] for x in alerts if x['code'] == Reason.UNKNOWN_OUTCOME.value}, {x['id']: x for x in orders}
        for i in sorted(doubt & by.keys()): self.seen['UNKNOWN → DEAD' if by[i]['state'] == 'dead' else 'UNKNOWN → ACKED'] += 1
        self.seen.update({k: n for k, n in {'emergency close': sum(x['reason'] == Reason.NAKED_DEADLINE.value for x in orders), 'stop breached': sum(x['reason'] == Reason.STOP_BREACHED.value for x in orders), 'stuck trigger': sum(x['reason'] == Reason.STUCK_TRIGGER.value for x in orders),
            'generation-2 stop': sum(x['role'] == 'stop' and not x['id'].endswith('stop0') for x in orders), 'trailed stop': sum(x['reason'] == Reason.TRAIL.value for x in orders),
            'funding row': j.scalar(sa.select(sa.func.count()).select_from(schema.income).where(schema.income.c.kind == 'FUNDING_FEE')), '-4118 path': sum('-4118' in (x['error'] or '') for x in orders) + sum('-4118' in x['message'] for x in alerts),
            'DB-busy fail-closed': sum(x['code'] == Reason.NOT_RECONCILED.value and x['message'].startswith('the journal cannot') for x in alerts), 'not the leader': sum(n for k, n in self.deaths.items() if 'NotLeader' in k), 'entries': sum(x['role'] == 'entry' and x['filled'] != '0' for x in orders), 'fills': j.scalar(sa.select(sa.func.count()).select_from(schema.fills))}.items() if n})
        self.seen.update(Counter(f'alert {x["code"]}' for x in alerts))
        for v in j.rows(sa.select(schema.verdicts.c.outcome, schema.verdicts.c.reasons)):
            if v['outcome'] != 'approved': self.seen.update(f'verdict {x}' for x in v['reasons'])


def traced(e):
    import traceback
    return ''.join(traceback.format_exception(e)[-6:])


# -- many days ------------------------------------------------------------------------------------------------------------------------------------------------------------------------------

def run(seed, hours=24, keep=None, trace=False):
    t = time.process_time()
    return Day(seed, keep, trace, hours).run() | dict(cpu=time.process_time() - t)


def smallest(seed, ids, hours):
    "A small set of faults that still breaks the same sentence, by leaving out halves, then quarters …"
    everything = [i for i, a in enumerate(schedule(seed, hours)) if a.fault]
    broken = lambda keep: ids & {b for b, _ in run(seed, hours, set(keep))['breaches']}
    keep, n, tries = everything, 2, 0
    while len(keep) > 1 and n <= len(keep) and tries < 40:
        size = -(-len(keep)//n)
        for k in range(0, len(keep), size):
            tries += 1
            less = keep[:k] + keep[k + size:]
            if less and broken(less): keep, n = less, max(2, n - 1); break
        else: n = min(2*n, len(keep)) if n < len(keep) else len(keep) + 1
    return [a for i, a in enumerate(schedule(seed, hours)) if i in keep]


EFFECTS = TRANSPORT + ('stale_view', 'forget', 'delay_apply', 'partial', 'reject_at_trigger', 'stick_status', 'dup_event', 'reorder', 'drop_event', 'silence', 'expire_listen_key')
SOMETIMES = ('UNKNOWN → ACKED', 'UNKNOWN → DEAD', 'emergency close', 'stop breached', 'generation-2 stop', 'trailed stop', 'alert orphan', 'fence refusal', 'DB-busy fail-closed', 'alert gap', 'alert deleveraged', 'alert liquidated', 'alert foreign',
    'funding row', '-4118 path', 'stuck trigger', 'alert stop_rejected', 'alert stop_lost', 'alert canary_failed', 'verdict kill_switch', 'verdict unknown_pending', 'verdict clock_skew', 'verdict stream_stale', 'verdict not_reconciled',
    'verdict account_mode', 'verdict account_restricted', 'verdict duplicate', 'verdict rate_budget')


def git(): return subprocess.run(['git', 'describe', '--always', '--dirty'], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()


def report(days, took):
    "What many days showed"
    seen, hits, deaths = (sum((Counter(d[k]) for d in days), Counter()) for k in ('seen', 'hits', 'deaths'))
    bad = [d for d in days if d['breaches']]
    print(f'\n{len(days)} days in {took:.0f} s, {sum(d["cpu"] for d in days)/len(days):.2f} CPU-s a day; {sum(len(d["breaches"]) for d in days)} breaches in {len(bad)} days; entries {seen["entries"]}, fills {seen["fills"]}')
    for cause in ('ours', 'crash', 'foreign', 'halt', 'outage'):
        s = spread([ms/1000 for d in days for ms, c, _ in d['spans'] if c == cause])
        print(f'naked seconds, {cause:8} n {s["n"]:6}  p50 {s["p50"]:6.2f}  p99 {s["p99"]:6.2f}  max {s["max"]:6.2f}')
    print(f'             (without the time in which nobody would have answered; with it the longest lasted {max((ms for d in days for *_, ms in d["spans"]), default=0)/1000:.0f} s)')
    edges = (0, .5, 1, 2, 5, 10, 30, 60, 300, 1e9)
    every = [ms/1000 for d in days for ms, *_ in d['spans']]
    print('histogram   ' + '  '.join(f'<{b:g}s {sum(a <= x < b for x in every)}' for a, b in zip(edges, edges[1:])))
    print('effects     ' + ', '.join(f'{e} {hits[e]}' + ('' if hits[e] else ' (NEVER)') for e in EFFECTS))
    print('sometimes   ' + ', '.join(f'{e} {seen[e]}' + ('' if seen[e] else ' (NEVER)') for e in SOMETIMES))
    print('acts        ' + ', '.join(f'{e} {seen[e]}' + ('' if seen[e] else ' (NEVER)') for e in KINDS))
    print('deaths      ' + (', '.join(f'{k} {n}' for k, n in deaths.most_common()) or 'none'))
    print('log of all  ' + hashlib.sha256(''.join(d['hash'] for d in sorted(days, key=lambda d: d['seed'])).encode()).hexdigest()[:16])
    return bad


SALTS = 1, 2, 4, 5 # PYTHONHASHSEED

def twice(n, first, hours):
    "Whether a seed tells the same story in processes that hash their sets differently: two sets of two names agree by chance in half of the salts"
    ask = lambda salt: subprocess.run([sys.executable, __file__, '--hashes', str(first), str(n), '--hours', str(hours)], capture_output=True, text=True, env=os.environ | {'PYTHONHASHSEED': str(salt)}).stdout.split()
    with ThreadPoolExecutor(2) as pool: stories = list(pool.map(ask, SALTS))
    odd = [first + i for i, xs in enumerate(zip(*stories)) if len(set(xs)) > 1]
    silent = [len(x) for x in stories if len(x) != n]
    print(f'{n} seeds in {len(SALTS)} processes: {min(map(len, stories)) - len(odd)} equal' + (f', different: {odd}' if odd else '') + (f'; a process answered {silent[0]} only' if silent else ''))
    return not odd and not silent


def told(day):
    "A line about a day, for whoever waits"
    ids = sorted({i for i, _ in day['breaches']})
    print(f'seed {day["seed"]}: {day["cpu"]:.2f} CPU-s, {day["steps"]} steps, {sum(day["deaths"].values())} deaths{", breaches of " + ", ".join(ids) if ids else ""}', file=sys.stderr, flush=True)
    return day


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--days', type=int, default=20); p.add_argument('--seed', type=int, default=0); p.add_argument('--jobs', type=int, default=1); p.add_argument('--hours', type=int, default=24)
    p.add_argument('--seed-only', type=int); p.add_argument('--trace', action='store_true'); p.add_argument('--twice', type=int); p.add_argument('--hashes', type=int, nargs=2); p.add_argument('--no-shrink', action='store_true')
    a = p.parse_args(argv)
    if a.hashes: [print(run(s, a.hours)['hash'], flush=True) for s in range(a.hashes[0], sum(a.hashes))]; return 0
    if a.twice: return 0 if twice(a.twice, a.seed, a.hours) else 1
    seeds, t = [a.seed_only] if a.seed_only is not None else range(a.seed, a.seed + a.days), time.perf_counter()
    if a.jobs > 1 and len(seeds) > 1:
        with ProcessPoolExecutor(a.jobs) as pool: days = [told(d) for d in pool.map(partial(run, hours=a.hours), seeds, chunksize=1)]
    else: days = [told(run(s, a.hours, trace=a.trace)) for s in seeds]
    bad = report(days, time.perf_counter() - t)
    kinds = Counter(i for d in bad for i, _ in d['breaches'])
    if bad: print(f'breached    {dict(kinds)} in seeds {[d["seed"] for d in bad][:40]}')
    shown = set()
    for d in bad:
        new = {i for i, _ in d["breaches"]} - shown
        if not new or len(shown) > 12: continue
        shown |= new
        print(f'\n== seed {d["seed"]} at {git()}, {len(d["breaches"])} breaches')
        for i, what in d['breaches'][:6]: print(f'   {i} {what}')
        for x in d['traces'][:1]: print(x)
        if not a.no_shrink: print('   smallest set of faults:'); [print(f'     {x}') for x in smallest(d['seed'], new, a.hours)]
        print('   the end of the trace:'); [print(f'     {x}') for x in d['log'][-12:]]
    return 1 if bad else 0


if __name__ == '__main__': sys.exit(main())
