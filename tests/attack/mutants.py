"""Planted bugs, and what catches them

    python tests/attack/mutants.py --jobs 2            the kill table
    python tests/attack/mutants.py --only p8 p26       some of them
    python tests/attack/mutants.py --trace p8          one, told request by request

Each mutant puts a bug into the real modules while a killer plays: a short scripted story on an exchange in this process, or cells of `crash.py`. Whoever breaks an invariant, or what the story itself expects (`D`), is
caught. Every killer is first played without a mutant and must find nothing: otherwise it proves nothing."""
import argparse, os, sys, time, traceback
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from decimal import Decimal
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
sys.path.insert(0, str(Path(__file__).parent))

import sqlalchemy as sa

import crash
from crash import ALGO, ORDER, SETTINGS, Cell
from world import fast_journal
from quantlib.core.types import Reason
from quantlib.execution import canary, client, desk, emergency, gateway, guard, intake, kill, lease, ledger, orders, reconcile, rules, stream, throttle, watch
from quantlib.execution.gateway import Gateway, GatewayRefused
from quantlib.execution.orders import State, move
from quantlib.execution.rehearsal import Direct
from quantlib.execution.stream import Inbox
from quantlib.exits import plan
from quantlib.journal import schema, store
from quantlib.journal.store import JournalError, NotLeader
from quantlib.risk import limits
from quantlib.sandbox.rest import Answer

ROOMS = (canary, client, desk, emergency, gateway, guard, intake, kill, lease, ledger, orders, reconcile, rules, stream, throttle, watch, plan, store, limits)


# -- a stage in one process ---------------------------------------------------------------------------------------------------------------------------------------------------------------

class Play(Cell):
    "A story with the gateway in this process"
    def __init__(self, trace=False, **overrides):
        self.settings = crash.parse({'universe': {'symbols': list(crash.PRICES)}, 'execution': dict(reconcile_s=15)} | overrides)
        super().__init__('entry', trace=trace)
        self.g, self.from_, self.calls, self.rule, self.planted = None, None, [], None, '—'
        self.watch.causes = lambda s, at: 'ours'
        answer = self.venue.answer
        def ask(method, path, p, key=None, signed=None):
            a = (self.rule and self.rule(method, path, p)) or answer(method, path, p, key, signed)
            self.calls.append((self.venue.now, method, path, dict(p), a.status))
            self.note('   ', method, path, {k: x for k, x in p.items() if k not in ('recvWindow', 'timestamp')}, a.status, str(a.body)[:90] if a.status != 200 else '')
            if a.status == 418: self.watch.breach('I13', 'the exchange has banned us')
            return a
        self.venue.answer = ask

    def begin(self):
        self.lives += 1
        journal, inbox, c = fast_journal(self.home.journal), Inbox(), Direct(self.venue, self.settings)
        c.delay = lambda method, path: 4
        self.venue.listeners[:] = [inbox.push]
        l = journal.fence = lease.take(journal, 'paper', f'{lease._here()}:{4_000_000 + self.lives}:0', c.sync(), self.settings, {})
        self.g = Gateway(self.settings, self.home, journal, c, inbox, l)
        inbox.push(self.marks())
        try: self.g.start()
        except GatewayRefused as e: self.said = str(e); self.die()

    def die(self):
        "The process is gone"
        self.g.journal.close(); self.g = None

    def ensure(self):
        while self.g is None:
            if self.lives: self.pass_(3_000)
            if self.lives > 12: raise RuntimeError(f'the gateway never starts: {self.said}')
            self.begin()

    def step(self):
        self.ensure()
        if not any(f.effect == 'silence' and f.alive(self.venue.now) for f in self.venue.faults.waiting): self.g.inbox.push(self.marks())
        try: self.g.step()
        except (NotLeader, GatewayRefused, JournalError, sa.exc.SQLAlchemyError) as e: self.said = str(e); return self.die()
        self.due = self.g.due
        self.looked()

    def looked(self):
        super().looked()
        stops = Counter(s for s, w in self.venue.waiting.items() for a in w.values() if a.type == 'STOP_MARKET' and '-stop' in a.client)
        for s, n in stops.items():
            if n > 2: self.watch.breach('I10', f'{n} stops rest in {s}')

    def over(self): self.die()
    def close(self): self.unlock(); self.g and self.g.journal.close(); self.journal.close(); crash.shutil.rmtree(self.folder, ignore_errors=True)
    def mark(self): self.step(); self.from_ = self.venue.now

    # what a story expects

    def expect(self, what, text):
        if not what: self.watch.breach('D', text)
    def qty(self, symbol='ETHUSDT'): return self.venue.account.position(symbol).qty
    def holds(self, symbol='ETHUSDT'): self.expect(self.qty(symbol), f'{symbol} is not held any more')
    def flat(self, symbol='ETHUSDT'): self.expect(not self.qty(symbol), f'{symbol} is still held')
    def rests(self, role, symbol='ETHUSDT'): return [a for a in self.venue.waiting.get(symbol, {}).values() if f'-{role}' in a.client]
    def sent(self, method, path, **params): return [c for c in self.calls if c[1:3] == (method, path) and all(c[3].get(k) == v for k, v in params.items())]
    def covered(self): self.expect(not [s for s in self.watch.spans if s.at >= self.from_] and not self.watch.naked, 'a position stood naked while its stop was moved')
    def soon(self, s): self.expect(not [x for x in self.watch.spans if x.ms > s*1000] and not self.watch.naked, f'a position stood naked for longer than {s} s')
    def rows(self, t, **where): return self.journal.rows(sa.select(t).where(*[t.c[k] == v for k, v in where.items()]))
    def no_ghost(self):
        for o in self.rows(schema.orders, state='dead'): self.expect(o['id'] not in self.venue.named_algo and (o['symbol'], o['id']) not in self.venue.named, f'{o["id"]} was declared dead, and it lives')

    def refuse(self, method, path, code, count=None, status=400, ttl=None, **match):
        self.fault(match=dict(method=method, path=path) | match, phase='instead', effect='http', args=dict(status=status, body=dict(code=code, msg='refused for the exercise')), count=count, **({'ttl': ttl} if ttl else {}))
    def lose(self, method, path, phase='after_apply', count=1, effect='http', **kw):
        self.fault(match=dict(method=method, path=path), phase=phase, effect=effect, args=dict(like='unknown') if effect == 'http' else {}, count=count, **kw)
    def forget(self, s, **what): self.fault(match=dict(method='*', path='*'), effect='forget', args=dict(s=s, **what))
    def silence(self, s): self.fault(match={}, effect='silence', args=dict(s=s))

    def play(self, f):
        "A story, its quiet end, and what was found"
        t = time.process_time()
        try:
            self.mark(); f(self); self.no_ghost()
            self.rule = None
            self.finish()
            for x in self.watch.spans:
                if x.ms > 10_000: self.watch.breach('I4', f'{x.symbol} stood naked for {x.ms/1000:.1f} s')
        except Exception: self.watch.breach('L3', f'the story broke: {traceback.format_exc()[-700:]}')
        self.close()
        return dict(breaches=[(b.id, b.what) for b in self.watch.breaches if not (b.id == 'I2' and self.planted in b.what)], s=time.process_time() - t)


# -- the stories --------------------------------------------------------------------------------------------------------------------------------------------------------------------------

STORIES = {}
def story(f): STORIES[f.__name__] = f; return f
OTHER = dict(deaf=dict(execution=dict(reconcile_s=120))) # Settings of a story

def held(p, symbol='ETHUSDT', side='BUY', **kw): p.wish(symbol, side, **kw); p.run(3); p.mark()

@story
def calm(p):
    "A position is opened, held, and closed when an intent says so"
    held(p); p.run(12); p.holds(); p.expect(len(p.rests('stop')) == 1 and p.rests('take'), 'a stop and a target rest')
    p.wish('ETHUSDT', 'SELL', action='close'); p.run(3); p.flat(); p.expect(p.rows(schema.outcomes), 'the outcome is written')

@story
def trail(p):
    "The stop moves three times, without a gap and without a rest"
    held(p)
    for k in (1.013, 1.005, 1.005): p.price('ETHUSDT', k); p.run(4)
    s = p.rests('stop')
    p.covered(); p.holds(); p.expect(len(s) == 1 and abs(float(s[0].trigger)/float(p.venue.mark('ETHUSDT')) - .985) < .002, f'one stop follows the price, not {[(a.client, a.trigger) for a in s]}')

@story
def stuck_trail(p):
    "The new stop is refused while the old one should move"
    held(p); p.lose('POST', ALGO, 'before_apply', 3); p.price('ETHUSDT', 1.013); p.run(6); p.covered(); p.holds()

@story
def stop_hit(p):
    "The stop is hit; nothing of the position stays behind"
    held(p); p.price('ETHUSDT', .98); p.run(4); p.flat(); p.run(20)
    p.expect(not p.venue.waiting.get('ETHUSDT'), 'nothing rests for a position that is gone')
    p.expect([o['reason'] for o in p.rows(schema.outcomes)] == ['stop_loss'], f'the outcome says stop_loss, not {[o["reason"] for o in p.rows(schema.outcomes)]}')

@story
def wick(p):
    "The last price goes through the stop, the mark does not"
    held(p); p.world(wick={'ETHUSDT': .97}); p.run(4); p.holds()

@story
def stuck(p):
    "A stop is triggered and does not trade"
    held(p); p.fault(match={}, effect='stick_status', args={}); p.price('ETHUSDT', .98); p.run(14); p.flat()

@story
def rejected(p):
    "A stop is rejected at its trigger"
    held(p); p.fault(match={}, effect='reject_at_trigger', args={}); p.price('ETHUSDT', .98); p.run(12); p.flat()

@story
def no_stops(p):
    "No stop is taken any more"
    p.refuse('POST', ALGO, -4120, ttl=60); p.wish('ETHUSDT', 'BUY'); p.run(12); p.flat()

@story
def unwell(p):
    "No stop is answered for any more"
    p.lose('POST', ALGO, 'before_apply', None, ttl=60); p.wish('ETHUSDT', 'BUY'); p.run(12); p.flat()

@story
def no_canary(p):
    "No stop was ever taken: nothing is opened"
    p.over(); p.refuse('POST', ALGO, -4120, ttl=60); p.pass_(3_000); p.run(2); p.wish('ETHUSDT', 'BUY'); p.run(6); p.expect(not p.sent('POST', ORDER), 'nothing is opened while no stop can be placed')

@story
def unseen_stops(p):
    "Stops are taken, the answers are lost, and the lists do not show them"
    p.silence(60); p.forget(300, algo='*'); p.lose('POST', ALGO, count=40, effect='reset'); p.wish('ETHUSDT', 'BUY'); p.g.inbox.push(p.marks()); p.run(12)

@story
def gap(p):
    "The price falls through the stop before it is placed"
    def rule(method, path, q):
        if (method, path) == ('POST', ALGO): p.rule = None; p.price('ETHUSDT', .97)
    p.rule = rule; p.wish('ETHUSDT', 'BUY'); p.run(6); p.flat(); p.soon(2.5)

@story
def covered(p):
    "A resting target forbids every reduce-only close"
    held(p)
    p.rule = lambda method, path, q: Answer(400, dict(code=-4118, msg='ReduceOnly Order Failed.'), {}) if (method, path) == ('POST', ORDER) and q.get('reduceOnly') == 'true' and p.rests('half') + p.rests('take') else None
    p.wish('ETHUSDT', 'SELL', action='close'); p.run(5); p.flat()

@story
def flat_refused(p):
    "A close is refused because there is nothing to reduce, and there is"
    held(p); p.refuse('POST', ORDER, -2022, 1); p.wish('ETHUSDT', 'SELL', action='close'); p.run(14); p.kill('FLATTEN'); p.run(6); p.flat(); p.clear()

@story
def lost_close(p):
    "A close is done and its answer lost"
    held(p); p.lose('POST', ORDER); p.wish('ETHUSDT', 'SELL', action='close'); p.run(8); p.flat()

@story
def orphans(p):
    "An order of ours and one of somebody else rest for nothing"
    for name in ('ql-i0000000000000001-stop0', 'web_1'): p.world(trade=dict(symbol='SOLUSDT', side='SELL', type='STOP_MARKET', qty='1', triggerPrice='100', reduceOnly='true', client=name))
    p.watch.breaches.clear(); p.planted = 'ql-i0000000000000001'; p.run(40)
    p.expect([a.client for a in p.venue.waiting.get('SOLUSDT', {}).values()] == ['web_1'], f'ours is swept, the other stays; there are {[a.client for a in p.venue.waiting.get("SOLUSDT", {}).values()]}')

@story
def quiet_unknown(p):
    "An entry fills, its answer is lost and the stream is silent"
    p.silence(30); p.lose('POST', ORDER); p.wish('ETHUSDT', 'BUY'); p.g.inbox.push(p.marks()); p.run(12); p.holds(); p.run(25)

@story
def blind_unknown(p):
    "An entry fills, and for a minute and a half every view lags behind or fails"
    p.wish('ETHUSDT', 'BUY'); p.silence(90); p.g.inbox.push(p.marks()); p.lose('POST', ORDER)
    for path in ('/fapi/v3/positionRisk', '/fapi/v1/userTrades', '/fapi/v3/account'): p.fault(match=dict(method='GET', path=path), effect='stale_view', args=dict(s=80))
    p.fault(match=dict(method='GET', path=ORDER), phase='before_apply', effect='reset', args={}, count=None, ttl=80)
    for _ in range(17): p.run(5); p.no_ghost()
    p.run(65); p.watch.spans.clear()

@story
def hidden_unknown(p):
    "An entry fills; the query does not find it for a while"
    p.silence(20); p.lose('POST', ORDER)
    p.rule = lambda method, path, q: Answer(400, dict(code=-2013, msg='Order does not exist.'), {}) if (method, path) == ('GET', ORDER) and 'origClientOrderId' in q else None
    p.wish('ETHUSDT', 'BUY'); p.g.inbox.push(p.marks())
    for _ in range(24): p.run(1); p.no_ghost()
    p.expect(len([o for o in p.venue.orders.values() if '-entry' in o.client]) == 1, 'one entry was sent')

@story
def twice(p):
    "A second wish for a symbol whose entry is of unknown fate"
    p.silence(6); p.lose('POST', ORDER, 'before_apply'); p.wish('ETHUSDT', 'BUY'); p.g.inbox.push(p.marks()); p.run(2); p.venue.faults.clear(); p.wish('ETHUSDT', 'BUY', 500.); p.run(12)

@story
def partial(p):
    "An entry fills in part, in several executions"
    p.world(depth={'SOLUSDT': 200}); p.fault(match={'type': 'MARKET'}, effect='partial', args=dict(frac=.7)); p.wish('SOLUSDT', 'BUY', 1500.); p.run(5); p.holds('SOLUSDT')
    p.expect(sum(a.qty for a in p.rests('stop', 'SOLUSDT')) == p.qty('SOLUSDT'), 'the stop covers what is filled')
    p.over(); p.run(20); p.price('SOLUSDT', .98); p.run(4); p.flat('SOLUSDT')

@story
def liquidated(p):
    "The exchange liquidates"
    held(p); p.world(liquidate='ETHUSDT'); p.run(6); p.flat(); p.expect('liquidated' in {o['reason'] for o in p.rows(schema.outcomes)}, 'the outcome says liquidated')

@story
def runaway(p):
    "Somebody wishes for the same thing again and again"
    for k in range(9): p.wish('ETHUSDT', 'BUY', 300. + 20*k); p.run(1); p.wish('ETHUSDT', 'SELL', action='close'); p.run(61)
    n = len([o for o in p.venue.orders.values() if '-entry' in o.client])
    p.expect(n <= SETTINGS.risk.symbol_entries_hour, f'{n} entries within an hour')

@story
def closeless(p):
    "Every close is refused"
    held(p); p.refuse('POST', ORDER, -1111, ttl=50); p.kill('FLATTEN'); p.run(40)
    n = len(p.sent('POST', ORDER)) - 1
    p.expect(n <= 12, f'{n} closing orders within a minute'); p.run(25); p.flat(); p.clear()

@story
def dust(p):
    "What is left is worth less than the least notional"
    held(p); q = p.qty(); p.world(trade=dict(symbol='ETHUSDT', side='SELL', qty=str(q - Decimal('.001')))); p.run(4); p.kill('FLATTEN'); p.run(6); p.flat(); p.clear()

@story
def leverage(p):
    "The exchange takes no leverage any more while a position is to be closed"
    held(p); p.refuse('POST', '/fapi/v1/leverage', -4161, ttl=60); p.g.desk.levers.clear(); p.kill('FLATTEN'); p.run(12); p.flat(); p.clear()

@story
def deaf(p):
    "The owner closes by hand while events are lost, and the inbox says so; a reading for its own sake would come much later"
    held(p); p.run(15); p.venue.advance(p.venue.now + 100)
    for e in ('ORDER_TRADE_UPDATE', 'ACCOUNT_UPDATE', 'ALGO_UPDATE', 'TRADE_LITE'): p.fault(match=dict(event=e), effect='drop_event', args={}, count=None, ttl=4)
    p.world(trade=dict(symbol='ETHUSDT', side='SELL', qty=str(p.qty()))); p.venue.advance(p.venue.now + 2_000); p.g.inbox.gap('the connection was lost'); p.run(6)
    p.expect(not p.rows(schema.positions), 'the journal knows that the position is gone'); p.pace = 5_000; p.run(250)

@story
def stale(p):
    "Nobody has said anything for long"
    p.g.inbox.links = dict(private=True); p.silence(100); p.run(80); p.wish('ETHUSDT', 'BUY'); p.run(4); p.expect(not p.sent('POST', ORDER), 'nothing is opened while the stream is silent')

@story
def late_clock(p):
    "The clocks are three seconds apart"
    p.world(skew_ms=3000); p.run(20); p.wish('ETHUSDT', 'BUY'); p.run(4); p.expect(not p.sent('POST', ORDER), 'nothing is opened while the clocks differ'); p.world(skew_ms=0)

@story
def throttled(p):
    "Few requests are allowed"
    held(p); p.g.client.simulated = False; p.world(limits=dict(weight=60)); p.run(70); p.world(limits=dict(weight=2400)); p.run(60)

@story
def killed(p):
    "The kill switch says PAUSE"
    p.kill('PAUSE'); p.run(2); p.wish('ETHUSDT', 'BUY'); p.run(4); p.expect(not p.sent('POST', ORDER), 'nothing is opened'); p.clear()

@story
def halted(p):
    "The kill switch is set between verdict and order"
    def rule(method, path, q):
        if path == '/fapi/v1/leverage': p.rule = None; p.kill('HALT')
    p.rule = rule; p.wish('ETHUSDT', 'BUY'); p.run(4); p.expect(not p.sent('POST', ORDER), 'nothing is sent after HALT'); p.clear()

@story
def no_number(p):
    "An intent with a number that is none of ours"
    p.wish('ETHUSDT', 'BUY', 900., stop=.9)
    p.run(4); p.expect(not p.sent('POST', ORDER), 'nothing is opened with a stop out of its range')

@story
def halves(p):
    "Half is taken at three per cent and the rest is held"
    held(p); q = p.qty(); p.price('ETHUSDT', 1.0305); p.run(5); p.expect(abs(p.qty() - q/2) <= Decimal('.001'), f'{p.qty()} of {q} is held after the half')

@story
def crossing(p):
    "The rest of an entry fills in the moment in which it is cancelled"
    p.fault(match={'type': 'MARKET'}, effect='partial', args=dict(frac=.4)); p.silence(8)
    def rule(method, path, q):
        if (method, path) == ('DELETE', ORDER): p.rule = None; o = p.venue.clients[q['origClientOrderId']]; p.venue.fill(o, p.venue.quote(o.symbol)[1], False)
    p.rule = rule; p.wish('ETHUSDT', 'BUY'); p.g.inbox.push(p.marks()); p.run(12); p.expect(p.rests('stop') and p.rests('stop')[0].qty == p.qty(), 'the stop covers everything')


# -- how a bug is planted ---------------------------------------------------------------------------------------------------------------------------------------------------------------

MUTANTS = {}

def mutant(name, incident, *killers):
    "Put a bug on the list: a generator function that plants it, yields, and takes it out again"
    def put(f): MUTANTS[name] = SimpleNamespace(plant=contextmanager(f), incident=incident, killers=killers, why=f.__doc__); return f
    return put

@contextmanager
def everywhere(old, new):
    "Replace a function in every module that knows it"
    with ExitStack() as s:
        for m in ROOMS:
            for k, v in list(vars(m).items()):
                if v is old: s.enter_context(patch.object(m, k, new))
        yield

def method(cls, name, new): return patch.object(cls, name, new)


# -- the bugs -------------------------------------------------------------------------------------------------------------------------------------------------------------------------------

@mutant('p1-canary', 'P1', 'no_canary')
def _():
    "The canary is said to be alive without being asked"
    def run(self): self.at, self.passed, self.why = self.desk.now, True, ''; return True
    with method(canary.Canary, 'run', run): yield

@mutant('p2-no-cap', 'P2', 'unseen_stops')
def _():
    "Stops are placed again and again while none is seen"
    with everywhere(orders.room, lambda rows: True): yield

@mutant('p3-triggering', 'P3', 'stuck')
def _():
    "A triggered stop counts as a stop for ever"
    live = lambda p, rows, mark: ('protected', Reason.OK) if any(r.role == 'stop' and r.live for r in rows) else ('naked', Reason.PROTECT)
    with method(orders.Order, 'firing', property(lambda o: False)), everywhere(orders.stuck, lambda o, now: False), patch.object(guard, 'covered', live): yield

@mutant('p4-child', 'P4', 'stop_hit')
def _():
    "The new orderId of a triggered stop is not followed"
    hear, of = desk.Desk.hear, desk.Desk.owner
    def owner(self, f):
        o = of(self, f)
        return None if o is not None and o.algo else o
    with method(desk.Desk, 'hear', lambda self, e: None if e['e'] == 'ORDER_TRADE_UPDATE' and e['o'].get('ot') != e['o'].get('o') else hear(self, e)), method(desk.Desk, 'owner', owner): yield

@mutant('p5-covered', 'P5', 'covered')
def _():
    "Targets that stand in the way of a close are left there"
    with method(guard.Guard, '_clear', lambda self, h: False), method(guard.Guard, 'sweep', lambda self, i: None): yield

@mutant('p6-no-reduce', 'P6', 'flat_refused')
def _():
    "After -2022 the close is sent without reduce-only"
    request = orders.request
    def bad(o):
        name, needs, p = request(o)
        if o.role == 'close' and not o.id.endswith('close0'): p.pop('reduceOnly', None)
        return name, needs, p
    with everywhere(request, bad): yield

@mutant('p7-through', 'P7', 'gap')
def _():
    "A stop that would trigger at once is only noted"
    with method(guard.Guard, 'passed', lambda self, h, w: None): yield

@mutant('p8-old-stops', 'P8', 'trail')
def _():
    "Replaced stops are left where they are"
    with method(guard.Guard, '_drop', lambda self, rows: None): yield

@mutant('p9-leftover', 'P9', 'stop_hit')
def _():
    "What rests for a position that is gone is left there"
    cancel = desk.Desk.cancel
    with method(guard.Guard, 'sweep', lambda self, i: None), method(gateway.Gateway, 'orphan', lambda self, d: None), method(desk.Desk, 'cancel', lambda self, o: cancel(self, o) if o.symbol in self.ledger.held else o): yield

@mutant('p10-orphan', 'P10', 'orphans')
def _():
    "Orphans are not swept"
    with method(gateway.Gateway, 'orphan', lambda self, d: None): yield

@mutant('p11-failed', 'P11', 'quiet_unknown')
def _():
    "No answer is taken for a refusal"
    with everywhere(orders.failed, lambda o, outcome, now: move(o, State.REFUSED, now, error='failed')): yield

@mutant('p12-network', 'P12, P13', 'blind_unknown')
def _():
    "A network error is taken for *not found*"
    def prove(self, o):
        name, needs, params = orders.question(o)
        try: row = self.ask(name, needs, **params); new = orders.seen(o, row, self.now)
        except Exception: return self._not_found(o)
        return self.turned(o, new)
    with method(desk.Desk, 'prove', prove): yield

@mutant('p13-once', 'P13', 'hidden_unknown')
def _():
    "One answer *not found* is enough to declare an order dead"
    with everywhere(orders.is_dead, lambda o, s, now, w: o.state == State.UNKNOWN and s.times > 0), method(desk.Desk, 'explained', lambda self, s: True): yield

@mutant('p14-by-order', 'P14', 'partial')
def _():
    "Fills are keyed by order instead of by execution"
    read = reconcile.read_fill
    with everywhere(read, lambda r, s: replace(f := read(r, s), id=f'{s}:{f.order}')): yield

@mutant('p14-again', 'P14', 'partial')
def _():
    "After a restart everything is booked again"
    load = ledger.Ledger.load
    def bad(self): load(self); self.booked = set()
    def book(self, o, f, now):
        if f.id in self.booked: return False
        self.booked.add(f.id); self.fills.setdefault(o.intent_id, []).append(f)
        self.put(orders.traded(o, o.filled + f.qty, now), now); return True
    with method(ledger.Ledger, 'load', bad), method(ledger.Ledger, 'book', book): yield

@mutant('p15-exists', 'P15, P16', 'hidden_unknown')
def _():
    "An entry of unknown fate is sent again under another name"
    follow = gateway.Gateway.follow
    def bad(self, o, truth):
        if o.role == 'entry' and o.state == State.UNKNOWN and o.id.endswith('entry0') and o.id[:-1] + '1' not in self.ledger.orders:
            n = replace(o, id=o.id[:-1] + '1', state=State.SENDING, created_at=self.now, sent_at=None, error=None)
            with patch.object(desk.Desk, 'against', lambda self, o: None): self.desk.send(n)
        return follow(self, o, truth)
    with method(gateway.Gateway, 'follow', bad): yield

@mutant('p16-retry', 'P16', 'quiet_unknown', 'lost_close')
def _():
    "A retry around every request"
    ask = desk.Desk.ask
    def bad(self, name, needs=(), many=False, **p):
        try: return ask(self, name, needs, many, **p)
        except Exception: return ask(self, name, needs, many, **p)
    with method(desk.Desk, 'ask', bad): yield

@mutant('p17-local', 'P17', 'calm')
def _():
    "The stop is kept in memory only"
    place = guard.Guard.place
    def bad(self, h, w, reason): return None if w.role == 'stop' else place(self, h, w, reason)
    with method(guard.Guard, 'place', bad), method(guard.Guard, 'state', lambda self, h, without=(): ('protected', Reason.OK)): yield

@mutant('p18-liquidated', 'P18', 'liquidated')
def _():
    "Orders of the exchange itself are overlooked"
    with method(desk.Desk, '_external', lambda self, f, name: None): yield

@mutant('p19-runaway', 'P19', 'runaway')
def _():
    "Nobody counts entries"
    with everywhere(throttle.entries_latch, lambda *a: None): yield

@mutant('p19-closes', 'P19', 'closeless')
def _():
    "Nobody counts closing orders"
    with patch.object(guard, 'CLOSES_MIN', 10**9): yield

@mutant('p20-dust', 'P20', 'dust')
def _():
    "The least notional bars closes too"
    may = guard.Guard.may_try
    with method(guard.Guard, 'may_try', lambda self, h: abs(h.qty)*h.mark >= self.desk.rules[h.symbol].min_notional and may(self, h)): yield

@mutant('p21-foreign', 'P21', 'orphans')
def _():
    "Whatever rests and is not known is cancelled, whoever placed it"
    with patch.object(reconcile, 'PREFIX', ''): yield

@mutant('p22-gap', 'P22, P23', 'deaf')
def _():
    "A lost connection is no reason to read the account"
    with method(stream.Inbox, 'gap', lambda self, why: None): yield

@mutant('p23-silence', 'P23', 'stale')
def _():
    "A silent stream is no reason to open nothing"
    health = watch.Watch.health
    with method(watch.Watch, 'health', lambda self, now, stream=None: tuple(r for r in health(self, now, stream) if r != Reason.STREAM_STALE)), patch.object(limits, 'MARK_AGE_MS', 10**9): yield

@mutant('p24-429', 'P24', 'throttled')
def _():
    "429 is ignored"
    with method(throttle.Pace, 'may', lambda self, now, essential=False: True): yield

@mutant('p25-clock', 'P25', 'late_clock')
def _():
    "The distance of the clocks is no reason to open nothing"
    health = watch.Watch.health
    with method(watch.Watch, 'health', lambda self, now, stream=None: tuple(r for r in health(self, now, stream) if r != Reason.CLOCK_SKEW)): yield

@mutant('p26-size', 'P26', 'partial', 'calm')
def _():
    "The stop is for half of the position, and that is taken for enough"
    wants, cov = guard.Guard.wants, guard.covered
    def bad(self, h): return tuple(replace(w, qty=float(self.desk.rules.part(h.symbol, abs(h.qty), .5))) if w.role == 'stop' else w for w in wants(self, h))
    with method(guard.Guard, 'wants', bad), patch.object(guard, 'covered', lambda p, rows, mark: cov(replace(p, qty=p.qty*.4), rows, mark)): yield

@mutant('p27-leverage', 'P27', 'leverage')
def _():
    "A close asks for the leverage first"
    close = guard.Guard._close
    def bad(self, h, reason, qty, verdict): self.desk.levers.pop(h.symbol, None); self.desk.leverage(h.symbol); return close(self, h, reason, qty, verdict)
    with method(guard.Guard, '_close', bad): yield

@mutant('cancel-create', 'freqtrade', 'stuck_trail', 'trail')
def _():
    "The old stop is cancelled before the new one is placed"
    place = guard.Guard.place
    def bad(self, h, w, reason):
        if w.role == 'stop':
            for o in self.ledger.of(h.intent.id, 'stop'):
                if o.live: self.desk.cancel(o)
        return place(self, h, w, reason)
    with method(guard.Guard, 'place', bad): yield

@mutant('no-reduce', 'hummingbot', 'calm')
def _():
    "Stops and closes are sent without reduce-only"
    request = orders.request
    def bad(o): name, needs, p = request(o); return name, needs, {k: v for k, v in p.items() if k != 'reduceOnly'}
    with everywhere(request, bad): yield

@mutant('emergency-open', 'hummingbot', 'no_stops')
def _():
    "The emergency close is sent without reduce-only"
    request = orders.request
    def bad(o): name, needs, p = request(o); return name, needs, {k: v for k, v in p.items() if o.reason != Reason.NAKED_DEADLINE.value or k != 'reduceOnly'}
    with everywhere(request, bad): yield

@mutant('nan-limit', 'NaN', 'no_number')
def _():
    "A limit that says *must not exceed* instead of *must be in range*"
    with everywhere(limits.numbers, lambda *a: []), patch.object(limits, 'cushion', lambda *a, **k: float('inf')): yield

@mutant('late-deadline', 'freqtrade', 'unwell', 'no_stops')
def _():
    "The deadline holds for definite refusals only"
    late = guard.Guard.late
    def bad(self, h): return late(self, h) and not any(o.state == State.UNKNOWN for o in self.ledger.of(h.intent.id, 'stop'))
    with method(guard.Guard, 'late', bad): yield

@mutant('no-deadline', 'freqtrade', 'no_stops')
def _():
    "There is no deadline"
    with method(guard.Guard, 'late', lambda self, h: False): yield

@mutant('wrong-list', 'namespace', 'orphans')
def _():
    "Open stops are looked for among the regular orders"
    read = reconcile.read
    with everywhere(read, lambda c, now: replace(read(c, now), algos={})): yield

@mutant('wrong-cancel', 'namespace', 'calm', 'trail')
def _():
    "Stops are cancelled as regular orders"
    def bad(self, symbol, name, algo): return self.ask('futures_cancel_order', ('orderId', 'status'), symbol=symbol, origClientOrderId=name)
    with method(desk.Desk, 'cancel_named', bad), method(canary.Canary, 'run', lambda self: setattr(self, 'at', self.desk.now) or setattr(self, 'passed', True) or True): yield

@mutant('no-kill', 'kill switch', 'killed')
def _():
    "The file of the kill switch is not read"
    with method(desk.Desk, 'kill', property(lambda self: None)): yield

@mutant('kill-once', 'kill switch', 'halted')
def _():
    "The kill switch is read at the verdict, not before the send"
    with everywhere(desk.forbids, lambda k, o: False): yield

@mutant('wrong-side', 'stop', 'calm')
def _():
    "The stop is on the side of the position"
    with everywhere(orders.guard_of, lambda e, role, gen, qty, trigger, reason, now, side='': orders._follow(e, role, gen, qty, reason, now, e.side, algo=True, trigger=trigger)): yield

@mutant('last-price', 'stop', 'wick')
def _():
    "Stops look at the last price"
    request = orders.request
    def bad(o): name, needs, p = request(o); return name, needs, p | ({'workingType': 'CONTRACT_PRICE'} if o.algo else {})
    with everywhere(request, bad): yield

@mutant('rounding', 'P20, -1111', 'calm')
def _():
    "Quantities are not rounded to the step"
    with method(rules.Rules, 'quantity', lambda self, s, usdt, px: Decimal(str(usdt))/Decimal(str(px))), method(desk.Desk, 'sound', lambda self, o: True): yield

@mutant('exponent', '1e-05', 'calm')
def _():
    "Numbers are sent as floats print them"
    bad = lambda x: f'{Decimal(x):E}'
    with patch.object(orders, 'text', bad), method(desk.Desk, 'sound', lambda self, o: True): yield

@mutant('no-half', 'exit plan', 'halves')
def _():
    "The half at three per cent is forgotten"
    wants = guard.Guard.wants
    with method(guard.Guard, 'wants', lambda self, h: tuple(w for w in wants(self, h) if w.role != 'half')): yield

@mutant('unlocked', 'unknown', 'twice')
def _():
    "An entry of unknown fate is neither counted nor locks its symbol"
    book = intake.Intake.book
    with method(intake.Intake, 'locks', lambda self, s: ()), method(intake.Intake, 'book', lambda self: replace(book(self), pending={})): yield

@mutant('late-journal', 'journal first', 'calm')
def _():
    "The journal is written after the order was sent"
    with method(ledger.Ledger, 'secure', lambda self, o: None): yield

@mutant('late-verdict', 'journal first', 'calm')
def _():
    "The verdict is written after the order was sent"
    def open_(self, intent, ack):
        book, world = self.book(), self.world(intent)
        verdict, order = self.sized(intake.gate(intent, book, world, self.settings, self.now), intent)
        row = self.verdict_row(verdict, book, world)
        if order is not None:
            self.sent.append((self.now, order.symbol, order.side, order.qty)); o = self.desk.send(order)
            if o.exchange_id: self.attempt(self.desk.absorb, o.id, o.symbol)
        self.ledger.later(lambda c: c.execute(schema.verdicts.insert().values(**row))); ack()
        if intent.symbol in self.ledger.held: self.guardian.tend(self.ledger.held[intent.symbol])
    with method(intake.Intake, 'open', open_): yield

@mutant('early-ack', 'ack before effect', 'cell:entry:POST /fapi/v1/leverage:before', 'cell:entry:POST /fapi/v1/leverage:after')
def _():
    "A message is acknowledged before anything came of it"
    handle = intake.Intake.handle
    def bad(self, m): self.ledger.later(lambda c: self.consumer.ack(c, m['seq'], self.now)); self.ledger.commit(); return handle(self, m)
    with method(intake.Intake, 'handle', bad): yield

@mutant('no-sync', 'power loss', 'cell:entry:POST /fapi/v1/order:lose')
def _():
    "The journal does not wait for the disk"
    pragmas = store._pragmas
    def bad(patience):
        def on_connect(dbapi, record): pragmas(patience)(dbapi, record); dbapi.execute('PRAGMA synchronous=NORMAL').fetchall()
        return on_connect
    with patch.object(store, '_pragmas', bad): yield

@mutant('no-fence', 'fencing', 'pause:handover:POST /fapi/v1/algoOrder', 'pause:handover:begin')
def _():
    "The fence is not checked"
    with method(desk.Desk, 'lead', lambda self, exit: None), method(store.Journal, 'led', lambda self, c, fence: None), everywhere(lease.renew, lambda j, l, now: replace(l, until=now + 15_000, ends=lease.elapsed() + 15)): yield


# -- killing --------------------------------------------------------------------------------------------------------------------------------------------------------------------------------

def steps_of(name, wanted, mode):
    "The deaths of a story at the steps with a label, under the bug that is planted now"
    calm = Cell(name).play()
    base, first, last = calm['base']
    ks = [k for k, x in enumerate(calm['labels'][first - 1], 1) if x == wanted and k > base and k <= last + 40]
    return ks[:1] + ks[1:3] + ks[-3:]

def killed_by(killer, trace=False) -> list:
    "What a killer finds now"
    kind, _, rest = killer.partition(':')
    if not rest: return Play(trace, **OTHER.get(killer, {})).play(STORIES[killer])['breaches']
    name, label, *mode = rest.split(':')
    out = []
    for k in steps_of(name, label, mode):
        out = Cell(name, [(k, 'pause' if kind == 'pause' else mode[0])], trace).play()['breaches']
        if out: break
    return out

def hunt(name, trace=False):
    "The first killer that catches a mutant"
    m, t = MUTANTS[name], time.perf_counter()
    for killer in m.killers:
        try:
            with m.plant(): found = killed_by(killer, trace)
        except AttributeError as e: return dict(name=name, killer='', ids=[], what=f'cannot be planted: {e}', s=0)
        if found: return dict(name=name, killer=killer, ids=sorted({i for i, _ in found}), what=found[0][1], s=time.perf_counter() - t)
    return dict(name=name, killer='', ids=[], what='SURVIVES', s=time.perf_counter() - t)

def control(killer): return killer, killed_by(killer)

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--jobs', type=int, default=1); p.add_argument('--only', nargs='*'); p.add_argument('--trace')
    a = p.parse_args(argv)
    if os.environ.get('PYTHONHASHSEED') != '0': os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {'PYTHONHASHSEED': '0'})
    crash.warm()
    if a.trace:
        if a.trace in STORIES: print(*killed_by(a.trace, True), sep='\n')
        else: print(hunt(a.trace, True))
        return 0
    names = [n for n in MUTANTS if not a.only or any(n.startswith(x) for x in a.only)]
    killers, t = sorted({k for n in names for k in MUTANTS[n].killers}), time.perf_counter()
    with ProcessPoolExecutor(a.jobs, mp_context=get_context('fork')) as pool: clean, caught = list(pool.map(control, killers)), list(pool.map(hunt, names))
    sick = {k: f for k, f in clean if f}
    print(f'{"mutant":15} {"incident":16} {"killed by":46} {"broken":18} the bug')
    for r in caught: print(f'{r["name"]:15} {MUTANTS[r["name"]].incident:16} {r["killer"] or "— SURVIVES —":46} {" ".join(r["ids"]):18} {MUTANTS[r["name"]].why}' + (' [its killer is sick]' if r['killer'] in sick else ''))
    alive = [r['name'] for r in caught if not r['killer']]
    for r in caught:
        if r['what'].startswith('cannot'): print('  ', r['name'], r['what'])
    print(f'\n{len(caught) - len(alive)} of {len(caught)} planted bugs caught in {time.perf_counter() - t:.0f} s; {len(killers) - len(sick)} of {len(killers)} killers find nothing without a bug' + (f'; ALIVE: {", ".join(alive)}' if alive else ''))
    for k, f in sick.items(): print(f'   {k} without a bug: {f[:3]}')
    return 1 if alive or sick else 0


if __name__ == '__main__': sys.exit(main())
