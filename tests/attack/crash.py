"""kill -9 at every I/O step of the gateway

    python tests/attack/crash.py --jobs 2                     every step of every scenario, in every mode
    python tests/attack/crash.py --sample 200 --seed 1        some of them
    python tests/attack/crash.py --double 200 --seed 1        a second death while the first one is being repaired
    python tests/attack/crash.py --cell trail:61:between      one of them, told step by step

The exchange lives here; the gateway is a child process behind a pipe, started as its `main` starts it. A seam around transport, transactions and files numbers what the child does and kills it at one step:
`before` it, `between` (the exchange has done it and the reply is never read; a commit is torn in the middle), `after` it, or after it with everything lost that no fsync had reached (`lose`). The story then goes on with a
second child: recovery, the rest of the story, a quiet end, FLATTEN. `pause` stops the child like a debugger instead; it wakes when another one leads. All invariants are judged against exchange and journal."""
import argparse, gc, os, resource, shutil, signal, sys, tempfile, threading, time, traceback
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import Pipe, get_context
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np, pandas as pd
import sqlalchemy as sa

from quantlib.core.clock import HOUR, iso
from quantlib.core.ids import PREFIX
from quantlib.core.settings import Home, parse
from quantlib.execution import kill
from quantlib.execution.gateway import Gateway, GatewayRefused, models_of, opened
from quantlib.execution.lease import LeaseRefused, code_digest, owner, release, wait
from quantlib.execution.rehearsal import START, Direct, wish
from quantlib.execution.stream import Inbox
from quantlib.journal import schema
from quantlib.journal.store import Journal, JournalError, NotLeader
from quantlib.ops.invariants import check, facts, of_venue, spread
from quantlib.ops.watch import Watch
from quantlib.sandbox.book import Params, Refused
from quantlib.sandbox.exchange import Exchange as Venue
from quantlib.sandbox.market import Market
from quantlib.sandbox.rest import Answer

from world import FIRST, MAKE, alike

PRICES = dict(ETHUSDT=2_500., SOLUSDT=150.)
MODES = ('before', 'between', 'after', 'lose')
ORDER, ALGO = '/fapi/v1/order', '/fapi/v1/algoOrder'
AWAY_MS = 3_000 # Until the supervisor has started another gateway
SETTINGS = parse({'universe': {'symbols': list(PRICES)}, 'execution': dict(reconcile_s=15)})


def still(hours=3, before=25, bar=15):
    "Candles in which nothing happens; what does happen is done by hand"
    n, at = (hours + before)*60//bar, START - before*HOUR
    t = pd.to_datetime(at + np.arange(n)*bar*60_000, unit='ms', utc=True)
    return pd.concat([pd.DataFrame(dict(symbol=s, open_time=t, open=p, high=p*1.00004, low=p*.99996, close=p, volume=2e7*bar/60/p)) for s, p in PRICES.items()], ignore_index=True)


# -- in the child -----------------------------------------------------------------------------------------------------------------------------------------------------------------------

class Seam:
    "Numbers what reaches the wire and the disk, and ends the process at one step"
    def __init__(self, pipe, folder, at=0, mode=''):
        self.pipe, self.at, self.mode, self.n, self.labels, self.undo = pipe, at, mode, 0, [], None
        self.wal = Path(folder)/'journal.db-wal'
        self.durable = self.size()

    def size(self): return self.wal.stat().st_size if self.wal.exists() else 0

    def step(self, label, do, between=None):
        "Do one thing, if the process lives that long"
        self.n += 1; self.labels.append(label)
        here = self.n == self.at and self.mode
        if here in ('before', 'pause'): self.end(label)
        if here == 'between' and between: return between()
        out = do()
        if here in ('between', 'after', 'lose'): self.end(label)
        return out

    def end(self, label):
        "The process is no more, or stands still"
        self.pipe.send(('paused' if self.mode == 'pause' else 'dying', self.n, label))
        if self.mode == 'pause': return os.kill(os.getpid(), signal.SIGSTOP)
        if self.mode == 'lose': self.lose()
        os.kill(os.getpid(), signal.SIGKILL)

    def lose(self):
        "What no fsync had reached is gone"
        if self.undo: os.replace(*self.undo)
        if self.size() > self.durable: os.truncate(self.wal, self.durable)

    # what is wrapped

    def install(self):
        "Put the seam around transactions and files of this process"
        commit, fsync, replace = sa.engine.default.DefaultDialect.do_commit, os.fsync, os.replace
        sa.event.listen(sa.Engine, 'before_cursor_execute', lambda c, cur, q, *_: self.began(q, 'before'))
        sa.event.listen(sa.Engine, 'after_cursor_execute', lambda c, cur, q, *_: self.began(q, 'after'))
        sa.engine.default.DefaultDialect.do_commit = lambda d, c: self.step('commit', lambda: self.commit(d, c, commit), lambda: self.torn(d, c, commit))
        os.fsync = lambda fd: self.step(f'fsync {Path(os.readlink(f"/proc/self/fd/{fd}")).name}', lambda: fsync(fd), lambda: self.half_written(fd))
        os.replace = lambda a, b: self.step(f'rename {Path(a).name}', lambda: self.renamed(a, b, replace))

    def began(self, statement, when):
        "A transaction begins; both sides of it are one step"
        if statement != 'BEGIN IMMEDIATE': return
        if when == 'before': self.n += 1; self.labels.append('begin')
        if self.n == self.at and self.mode in (when, *(('between', 'lose') if when == 'after' else ())): self.end('begin')

    def commit(self, dialect, c, do):
        do(dialect, c)
        if c.cursor().execute('PRAGMA synchronous').fetchone()[0] >= 2: self.durable = self.size()

    def torn(self, dialect, c, do):
        "Only a part of the frames has reached the disk"
        was = self.size(); do(dialect, c); now = self.size()
        if now > was: os.truncate(self.wal, (was + now)//2)
        self.end('commit')

    def half_written(self, fd):
        os.truncate(fd, max(0, os.fstat(fd).st_size - 40)); self.end('fsync')

    def renamed(self, a, b, do): do(a, b); self.undo = b, a


class Far:
    "An exchange at the other end of a pipe, as `Direct` sees it"
    def __init__(self, pipe, seam, inbox, about):
        self.pipe, self.seam, self.inbox, self.marks = pipe, seam, inbox, []
        self.now, self.key, self.secret, end = about
        self.market = SimpleNamespace(end=end)

    def answer(self, method, path, p, key=None):
        "One request"
        self.seam.step(f'{method} {path}', lambda: self.reply(method, path, dict(p), key), lambda: self.unread(method, path, dict(p), key))
        return self.got

    def reply(self, *what): self.pipe.send(('ask', *what)); self.got = self.take()

    def unread(self, *what):
        self.pipe.send(('ask', *what)); self.pipe.poll(None); self.seam.end(f'{what[0]} {what[1]}')

    def take(self):
        "An answer, with the time and the events that came along"
        self.now, events, out = self.pipe.recv()
        if events: self.seam.step('events ' + ' '.join(sorted({e['e'] for e in events})), lambda: [self.inbox.push(e) for e in events])
        return out

    def advance(self, to): self.pipe.send(('wait', to)); self.take()


def impatient(dbapi, record): dbapi.execute('PRAGMA busy_timeout=1').fetchall()


def life(pipe, folder, about, at, mode):
    "The life of a gateway process: as `main`, with the exchange at the other end of a pipe"
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20)) # a gateway that runs in circles
    sa.create_engine = alike
    seam, inbox = Seam(pipe, folder, at, mode), Inbox()
    far, home = Far(pipe, seam, inbox, about), Home(folder)
    seam.install()
    client = Direct(far, SETTINGS)
    try:
        journal = opened(home, SETTINGS, client)
        journal.engine.dispose(); sa.event.listen(journal.engine, 'connect', impatient)
        lease = journal.fence = wait(journal, 'paper', owner(), client.sync, SETTINGS, models_of(home), threading.Event(), pause_s=.01)
        g = Gateway(SETTINGS, home, journal, client, inbox, lease)
        g.start()
        while True:
            pipe.send(('stepped', g.due, seam.n))
            far.now, events, order = pipe.recv()
            if order == 'end': release(journal, g.lease, g.now); pipe.send(('ended', '')); break
            if order[0]: seam.durable = max(seam.durable, order[0])
            if events: seam.step('events ' + ' '.join(sorted({e['e'] for e in events})), lambda: [inbox.push(e) for e in events])
            inbox.push(order[1])
            g.step()
    except NotLeader as e: pipe.send(('ended', f'NotLeader: {e}'))
    except (GatewayRefused, LeaseRefused, JournalError) as e: pipe.send(('refused', f'{type(e).__name__}: {e}'))
    except Exception: pipe.send(('raised', traceback.format_exc()[-1500:]))
    pipe.send(('labels', seam.labels))


# -- the cell -----------------------------------------------------------------------------------------------------------------------------------------------------------------------------

class Loose(Journal):
    "A journal that holds no connection while it is not used"
    def __init__(self, url):
        super().__init__(url)
        self.engine.dispose(); self.engine = alike(self.url, poolclass=sa.pool.NullPool)
        sa.event.listen(self.engine, 'connect', lambda d, r: [d.execute(f'PRAGMA {p}').fetchall() for p in ('synchronous=FULL', 'foreign_keys=ON', 'busy_timeout=2000')])


class Cell:
    "One story, with the deaths that it is given"
    def __init__(self, name, deaths=(), trace=False):
        self.name, self.deaths, self.trace = name, list(deaths), trace
        self.venue = Venue(Market(still(), seed=1), START)
        self.folder = Path(tempfile.mkdtemp(prefix='crash-', dir='/dev/shm' if Path('/dev/shm').is_dir() else None))
        self.home, self.heard = Home(self.folder), []
        self.journal = Loose(self.home.journal)
        self.watch = Watch(self.venue, self.journal, self.folder/'EMERGENCY.log')
        self.watch.causes = lambda s, at: 'crash' if any(at - 10_000 <= t <= self.venue.now for t in self.died) else 'ours'
        self.venue.listeners.append(self.heard.append)
        self.pid, self.pipe, self.due, self.floor, self.lock, self.pace = None, None, 0, 0, None, 1_000
        self.held_up, self.died, self.labels, self.kills, self.killed, self.paused, self.refusals, self.said, self.lives, self.n, self.last = False, [], [], [], [], None, 0, '', 0, 0, 0

    def note(self, *text):
        if self.trace: print(iso(self.venue.now), *text, flush=True)

    # the process

    def begin(self):
        "Fork a gateway; False if it died before it was ready"
        at, mode = self.deaths.pop(0) if self.deaths else (0, '')
        self.pipe, far = Pipe()
        self.lives += 1
        about = (self.venue.now, self.venue.key, self.venue.secret, self.venue.market.end)
        self.heard.clear()
        self.pid = os.fork()
        if not self.pid:
            try: self.pipe.close(); life(far, self.folder, about, at, mode)
            finally: os._exit(0)
        far.close()
        self.note('gateway', self.pid, 'begins')
        return self.serve()

    def serve(self):
        "Be the exchange until the child has done its step; False if it will not"
        while True:
            try: m = self.pipe.recv()
            except (EOFError, ConnectionResetError): return self.gone('died')
            if m[0] == 'ask': self.pipe.send((*self.answer(*m[1:])[:2], self.got))
            elif m[0] == 'wait': self.venue.advance(max(self.venue.now, m[1])); self.pipe.send((self.venue.now, self.events(), None))
            elif m[0] == 'stepped': self.due, self.n = m[1:]; return True
            elif m[0] == 'dying': self.killed.append(m[2]); self.note('kill -9 at', *m[1:])
            elif m[0] == 'paused': self.killed.append(m[2]); self.note('stopped at', *m[1:]); return self.stand()
            elif m[0] == 'refused': self.refusals += 1; self.note(*m); self.said = m[1]
            elif m[0] == 'raised': self.watch.breach('I14', f'the gateway raised {m[1]}')
            elif m[0] == 'ended': self.note(*m)
            elif m[0] == 'labels': self.labels.append(m[1])

    def answer(self, method, path, p, key):
        "Let a request take its time, on the way there and back"
        v = self.venue
        v.advance(v.now + 4)
        p = Params(p)
        try:
            if 'timestamp' in p: v.in_time(p)
            self.got = v.answer(method, path, p, key)
        except Refused as e: self.got = Answer(e.status, e.body(), {})
        self.note('   ', method, path, {k: x for k, x in p.items() if k not in ('recvWindow', 'timestamp')}, self.got.status, str(self.got.body)[:90] if self.got.status != 200 else '')
        v.advance(v.now + 4)
        self.watch.look()
        return v.now, self.events()

    def events(self): out = self.heard[:]; self.heard.clear(); return out

    def gone(self, why):
        "The child is no more; let some time pass"
        os.waitpid(self.pid, 0); self.pipe.close(); self.pid = None
        self.died.append(self.venue.now); self.note('gateway', why)
        return False

    def stand(self):
        "The child stands still until another one has led for a while"
        os.waitpid(self.pid, os.WUNTRACED)
        self.died.append(self.venue.now)
        self.pass_(round(SETTINGS.execution.lease_s*1000) + 500 - AWAY_MS)
        if self.killed[-1] == 'commit': self.held_up = True; os.kill(self.pid, signal.SIGCONT); return self.serve() # it held the journal, so nobody else could lead
        self.paused, self.pid = (self.pid, self.pipe), None
        return False

    def wake(self):
        "The leader of the past goes on; what it sends must not be taken"
        (pid, pipe), self.paused, alive, sent = self.paused, None, (self.pid, self.pipe, self.due), sum(self.watch.arrived.values())
        self.pid, self.pipe = pid, pipe
        os.kill(pid, signal.SIGCONT)
        while self.serve(): self.pipe.send((self.venue.now, [], (0, self.marks())))
        self.pid, self.pipe, self.due = alive
        if sum(self.watch.arrived.values()) != sent: self.watch.breach('I18', 'a leader of the past sent an order')

    def pass_(self, ms):
        "Time without a gateway"
        end = self.venue.now + ms
        while self.venue.now < end: self.venue.advance(min(end, self.venue.now + 1000)); self.looked()

    def looked(self):
        self.watch.look()
        if self.lock and self.venue.now >= self.free: self.unlock()

    def ensure(self):
        "A gateway that is ready"
        while self.pid is None:
            if self.lives: self.pass_(AWAY_MS)
            if self.lives > 12: raise RuntimeError(f'the gateway never starts: {self.said}')
            self.begin()

    def marks(self): v = self.venue; return [dict(e='markPriceUpdate', E=v.now, s=s, p=str(v.mark(s)), st=1) for s in v.listed()]

    def step(self):
        "One step of the gateway"
        self.ensure()
        try: self.pipe.send((self.venue.now, self.events(), (self.floor, self.marks())))
        except OSError: return self.gone('died')
        self.serve()
        self.watch.look()

    # the story

    def run(self, s):
        "Let `s` seconds pass"
        end = self.venue.now + round(s*1000)
        self.step()
        while self.venue.now < end:
            pace = 1_000 if self.watch.naked else self.pace
            self.venue.advance(max(self.venue.now, min(end, max(self.venue.now + 100, min(self.due, self.venue.now + pace)))))
            self.looked()
            if self.paused and self.pid and self.venue.now - self.died[-1] > 40_000: self.wake()
            self.step()

    def mark(self): self.step(); self.ensure(); self.base = self.n; self.first = self.lives
    def wrote(self): f = self.folder/'journal.db-wal'; self.floor = f.stat().st_size if f.exists() else 0
    def wish(self, symbol, side, usdt=900., **kw): i = wish(self.journal, self.venue.now, symbol, side, float(self.venue.mark(symbol)), usdt, **kw); self.wrote(); return i
    def fault(self, **kw): self.venue.faults.add(kw)
    def world(self, **kw): self.note('>>', kw); self.venue.world(**kw); self.watch.look()
    def price(self, symbol, k): self.world(price={symbol: k})

    def kill(self, level):
        kill.put(self.home, level, 'exercise', 'crash', self.venue.now); self.kills.append([self.venue.now, None, level.lower()]); self.note('>> kill', level)
    def clear(self):
        if kill.read(self.home): kill.clear(self.home, 'the exercise is over', 'crash', self.venue.now)
        for k in self.kills: k[1] = k[1] or self.venue.now

    def locked(self, s):
        "Somebody holds the journal for `s` seconds"
        self.lock, self.free = self.journal.engine.raw_connection(), self.venue.now + s*1000
        self.lock.dbapi_connection.execute('BEGIN IMMEDIATE')
    def unlock(self):
        if self.lock: self.lock.dbapi_connection.rollback(); self.lock.close(); self.lock = None

    def restart(self):
        "The supervisor ends the gateway and starts it again"
        self.ensure(); self.over(); self.ensure()

    def over(self): self.pipe.send((self.venue.now, [], 'end')); self.serve()

    # the end

    def judge(self, when):
        "Every invariant, and that no story is left unfinished"
        j, o = self.journal, schema.orders
        for b in check(facts(j, SETTINGS, self.venue.now, view=of_venue(self.venue), kills=tuple(map(tuple, self.kills)))):
            if not (b.id == 'I4' and self.held_up): self.watch.breach(b.id, f'{when}: {b.what}') # a machine that stood still for so long protects nothing
        ends, held = {x['intent_id'] for x in j.rows(schema.outcomes)}, {p['intent_id'] for p in j.rows(schema.positions)}
        for x in j.rows(o):
            if x['role'] == 'entry' and x['filled'] != '0' and x['intent_id'] not in ends | held: self.watch.breach('L1', f'{when}: the story of {x["id"]} has no end')
            if x['state'] in ('sending', 'unknown') and not x['algo']: self.watch.breach('I6', f'{when}: {x["id"]} is {x["state"]}')
        judged = {v['intent_id'] for v in j.rows(schema.verdicts)}
        for i in j.rows(schema.intents):
            if i['id'] not in judged: self.watch.breach('L2', f'{when}: {i["id"]} was never judged')

    def finish(self):
        "Rest, judge, flatten, judge again"
        v = self.venue
        v.faults.clear(); self.unlock(); self.clear()
        self.pace = 5_000; self.run(SCENARIOS[self.name].tail)
        if self.paused: self.wake()
        b = schema.breakers
        self.judge('rest')
        with self.journal.write() as c: c.execute(b.update().where(b.c.cleared_at.is_(None)).values(cleared_at=v.now, cleared_why='the exercise is over'))
        self.kill('FLATTEN'); self.run(10)
        if left := [p.symbol for p in v.account.held()]: self.run(20); left = [p.symbol for p in v.account.held()]
        if left: self.watch.breach('I5', f'{", ".join(left)} open 30 s after FLATTEN')
        self.run(20)
        if rest := [a.client for w in v.waiting.values() for a in w.values() if a.client.startswith(PREFIX)]: self.watch.breach('I10', f'{", ".join(rest)} rest on a flat account')
        self.judge('flat')

    def play(self):
        "The whole cell; what was found"
        t = time.perf_counter()
        try:
            if SCENARIOS[self.name].begin: self.mark()
            else: self.base, self.first = 0, 1
            SCENARIOS[self.name].f(self)
            self.last = self.n
            self.finish()
            if self.pid: self.over()
        except Exception: self.watch.breach('L3', f'the cell broke: {traceback.format_exc()[-900:]}')
        late = [s for s in self.watch.spans if s.ms > (30_000 if s.cause == 'crash' else 10_000)]
        for s in late: self.watch.breach('I4', f'{s.symbol} naked for {s.ms/1000:.1f} s ({s.cause})')
        self.close()
        return dict(name=self.name, killed=self.killed, breaches=[(b.id, b.what) for b in self.watch.breaches], spans=[(s.ms, s.cause) for s in self.watch.spans], labels=self.labels, base=(self.base, self.first, self.last), lives=self.lives, s=time.perf_counter() - t)

    def close(self):
        for pid in [self.pid] + ([self.paused[0]] if self.paused else []):
            if pid: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
        self.unlock(); self.journal.close(); shutil.rmtree(self.folder, ignore_errors=True)


# -- the stories --------------------------------------------------------------------------------------------------------------------------------------------------------------------------

SCENARIOS = {}

TAIL_S = 45 # Two deaths, and the half minute after which an order that nobody saw is proved never to have been

def story(name, begin=True, tail=TAIL_S, modes=MODES):
    "Put a story on the list; with `begin` its steps are counted after a quiet start"
    def put(f): SCENARIOS[name] = SimpleNamespace(f=f, begin=begin, tail=tail, modes=modes, why=f.__doc__); return f
    return put

def held(c, symbol='ETHUSDT', side='BUY', **kw): c.wish(symbol, side, **kw); c.run(3); c.mark()

@story('entry', begin=False)
def _(c):
    "The first start on an empty home, an entry, its stop and its target"
    c.run(1); c.wish('ETHUSDT', 'BUY'); c.run(3)

@story('partial')
def _(c):
    "An entry that fills in part"
    c.fault(match={'type': 'MARKET'}, effect='partial', args=dict(frac=.37)); c.wish('SOLUSDT', 'SELL'); c.run(4)

@story('trail')
def _(c):
    "The stop follows the price"
    held(c); c.price('ETHUSDT', 1.012); c.run(3); c.price('ETHUSDT', 1.008); c.run(3)

@story('take')
def _(c):
    "The target is hit"
    held(c, take=.02); c.price('ETHUSDT', 1.022); c.run(4)

@story('stop')
def _(c):
    "The stop is hit"
    held(c, 'SOLUSDT', 'SELL'); c.price('SOLUSDT', 1.017); c.run(4)

@story('close')
def _(c):
    "An intent closes the position"
    held(c); c.wish('ETHUSDT', 'SELL', action='close'); c.run(4)

@story('emergency')
def _(c):
    "No stop is taken any more: the position is closed at its deadline"
    c.fault(match=dict(method='POST', path=ALGO), phase='instead', effect='http', args=dict(status=400, body=dict(code=-4120, msg='Order type not supported for this endpoint. Please use the Algo Order API endpoints instead.')), ttl=40, count=None)
    c.wish('ETHUSDT', 'BUY'); c.run(9)

@story('half')
def _(c):
    "Half is taken at three per cent, then the rest is stopped out"
    held(c); c.price('ETHUSDT', 1.032); c.run(4); c.price('ETHUSDT', .975); c.run(4)

@story('flatten')
def _(c):
    "Everything is closed by the kill switch"
    c.wish('SOLUSDT', 'SELL'); held(c); c.kill('FLATTEN'); c.run(5); c.clear()

@story('unknown', tail=60)
def _(c):
    "An entry of unknown fate that nobody can see for a while, and a restart in the middle"
    c.fault(match=dict(method='POST', path=ORDER), phase='after_apply', effect='http', args=dict(like='unknown'))
    c.fault(match=dict(method='*', path='*'), effect='forget', args=dict(client_id='*', s=12))
    c.wish('ETHUSDT', 'BUY'); c.run(4); c.restart(); c.run(12)

@story('locked', tail=60)
def _(c):
    "The journal is held by somebody else while everything must be closed"
    held(c); c.locked(3); c.kill('FLATTEN'); c.run(7); c.clear()

@story('handover', modes=('pause',), tail=60)
def _(c):
    "The leader stands still, another one leads, then the first goes on"
    c.wish('ETHUSDT', 'BUY'); c.run(3); c.price('ETHUSDT', 1.012); c.run(3); c.wish('ETHUSDT', 'SELL', action='close'); c.run(4)


# -- all of it ----------------------------------------------------------------------------------------------------------------------------------------------------------------------------

def fits(label, mode):
    "Whether a mode means something at a step"
    if label.startswith('GET'): return mode != 'lose'
    if label.startswith('events'): return mode in ('before', 'after', 'pause')
    if label == 'begin': return mode in ('before', 'after', 'pause')
    if label.startswith('rename'): return mode in ('before', 'after', 'lose')
    return True

def cells(names=None) -> list:
    "Every (scenario, deaths): each step of each life of the undisturbed story, in each mode that means something there"
    out = []
    for name in names or SCENARIOS:
        calm = Cell(name).play()
        if calm['breaches']: print(f'{name} without any death: {calm["breaches"][:4]}', flush=True)
        base, first, last = calm['base']
        story = [x[:last] if i == len(calm['labels']) - 1 else x for i, x in enumerate(calm['labels'])]
        for i, labels in enumerate(story[first - 1:]):
            skip = [(0, '')]*(first - 1 + i)
            out += [(name, (*skip, (k, m)), label) for k, label in enumerate(labels, 1) if i or k > base for m in SCENARIOS[name].modes if fits(label, m)]
    return out

def command(name, deaths): return 'python tests/attack/crash.py --cell ' + name + ''.join(f':{k}:{m}' for k, m in deaths)

def one(job): name, deaths = job[:2]; return Cell(name, deaths).play() | dict(deaths=deaths, mode=next(m for k, m in deaths if k))

def doubles(all_, n, seed):
    "Pairs of deaths: at a step of the story, and at one of the recovery after it"
    r = Random(seed)
    single = [x for x in all_ if x[0] != 'handover']
    return [(name, (*deaths, (r.randrange(1, 45), r.choice(MODES))), label) for name, deaths, label in (r.choice(single) for _ in range(n))]

def warm():
    "Compile in this process what every child will need"
    code_digest(); FIRST.append(MAKE('sqlite://')); FIRST[0].connect().close()
    c = Cell('entry')
    inbox, client, c.journal.engine = Inbox(), Direct(c.venue, SETTINGS), alike(c.journal.url)
    c.venue.listeners.append(inbox.push)
    g = Gateway(SETTINGS, c.home, c.journal, client, inbox); g.start()
    for k in range(8):
        if k in (1, 4): wish(c.journal, c.venue.now, 'ETHUSDT', 'BUY' if k == 1 else 'SELL', float(c.venue.mark('ETHUSDT')), action='open' if k == 1 else 'close')
        c.venue.advance(c.venue.now + 1_000); inbox.push(c.marks()); g.step()
    c.judge('warm'); g.eyes.close(); c.close()

def many(jobs, work):
    gc.collect(); gc.freeze()
    if jobs == 1: return [one(x) for x in work]
    out, t = [], time.perf_counter()
    with ProcessPoolExecutor(jobs, mp_context=get_context('fork')) as pool:
        for d in pool.map(one, work, chunksize=4):
            out.append(d)
            if not len(out) % 100: print(f'{len(out)} of {len(work)} cells, {sum(bool(x["breaches"]) for x in out)} with breaches, {time.perf_counter() - t:.0f} s', file=sys.stderr, flush=True)
    return out

def report(done, took):
    "What was found"
    n, modes = Counter((d['name'], d['mode']) for d in done), sorted({d['mode'] for d in done}, key=lambda m: (*MODES, 'pause').index(m))
    print('scenario   ' + ''.join(f'{m:>9}' for m in modes) + '      all')
    for name in dict.fromkeys(d['name'] for d in done): print(f'{name:11}' + ''.join(f'{n[name, m]:9}' for m in modes) + f'{sum(n[name, m] for m in modes):9}')
    died, bad = sum(bool(d['killed']) for d in done), [d for d in done if d['breaches']]
    print(f'\n{len(done)} cells, the process died in {died} of them (and {sum(len(d["killed"]) > 1 for d in done)} times twice), in {took:.0f} s; {sum(len(d["breaches"]) for d in bad)} breaches in {len(bad)} cells')
    for cause in ('ours', 'crash'):
        s = spread([ms/1000 for d in done for ms, c in d['spans'] if c == cause])
        print(f'naked seconds, {"after a death" if cause == "crash" else "without one"}: n {s["n"]}, p50 {s["p50"]:.2f}, p99 {s["p99"]:.2f}, max {s["max"]:.2f}')
    every, edges = [ms/1000 for d in done for ms, _ in d['spans']], (0, .5, 1, 2, 5, 10, 20, 30, 1e9)
    print('histogram    ' + '  '.join(f'<{b:g}s {sum(a <= x < b for x in every)}' for a, b in zip(edges, edges[1:])))
    print('died at      ' + ', '.join(f'{k} {v}' for k, v in Counter(x for d in done for x in d['killed'][:1]).most_common()))
    kinds = defaultdict(list)
    for d in bad:
        for i in {i for i, _ in d['breaches']}: kinds[i].append(d)
    for i, ds in sorted(kinds.items()):
        print(f'\n{i}: {len(ds)} cells')
        for d in ds[:4]: print(f'   {command(d["name"], d["deaths"])}   [{", ".join(d["killed"])}]\n      {next(w for k, w in d["breaches"] if k == i)[:300]}')
    return bad

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--jobs', type=int, default=1); p.add_argument('--sample', type=int); p.add_argument('--seed', type=int, default=0); p.add_argument('--double', type=int, default=0)
    p.add_argument('--scenario', nargs='*'); p.add_argument('--cell'); p.add_argument('--count', action='store_true')
    a = p.parse_args(argv)
    if os.environ.get('PYTHONHASHSEED') != '0': os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {'PYTHONHASHSEED': '0'}) # so that a step has the same number in every process
    warm()
    if a.cell:
        name, *rest = a.cell.split(':')
        d = Cell(name, [(int(k), m) for k, m in zip(rest[::2], rest[1::2])], trace=True).play()
        for b in d['breaches']: print('  ', *b)
        return bool(d['breaches'])
    t = time.perf_counter()
    work = cells(a.scenario)
    if a.count: print(Counter(x[0] for x in work), len(work), Counter(x[2] for x in work)); return 0
    work = doubles(work, a.double, a.seed) if a.double else Random(a.seed).sample(work, min(a.sample, len(work))) if a.sample else work
    return bool(report(many(a.jobs, work), time.perf_counter() - t))


if __name__ == '__main__': sys.exit(main())
