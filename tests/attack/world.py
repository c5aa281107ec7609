"What the attack harnesses share: a rough market, a fast journal, and a stage with the gateway on it"
import shutil, tempfile
from pathlib import Path
from unittest import mock

import numpy as np, pandas as pd
import sqlalchemy as sa

from quantlib.core.clock import DAY, HOUR
from quantlib.core.settings import Home, parse
from quantlib.execution.gateway import Gateway
from quantlib.execution.lease import take
from quantlib.execution.rehearsal import START, Direct, wish
from quantlib.execution.stream import Inbox
from quantlib.journal.store import Journal
from quantlib.ops.watch import Watch
from quantlib.sandbox.exchange import Exchange as Venue
from quantlib.sandbox.market import Market
import quantlib.sandbox.private

SYMBOLS = ('BTCUSDT', 'ETHUSDT', 'SOLUSDT', 'XRPUSDT', 'DOGEUSDT')
PRICES = dict(BTCUSDT=100_000., ETHUSDT=2_500., SOLUSDT=150., XRPUSDT=2.2, DOGEUSDT=.2, BNBUSDT=650., ADAUSDT=.75, LINKUSDT=15.)
WEATHER = ('calm', 'trend', 'crash', 'spike', 'gap', 'wick')


def weather(rng, symbols=SYMBOLS, hours=30, before=26, bar=15):
    "Candles with trends, crashes, gaps and wicks, each where the seed puts it"
    n, at = (hours + before)*60//bar, START - before*HOUR
    rows = []
    for s in symbols:
        kind, scale = rng.choice(WEATHER, size=max(2, n//16)), float(rng.uniform(.0008, .004))
        drift = np.repeat([dict(calm=0, trend=.0012*rng.choice([-1, 1]), crash=-.006, spike=.006, gap=0, wick=0)[k] for k in kind], 16)
        drift = np.pad(drift, (0, n))[:n]
        r = rng.normal(0, scale, n) + drift
        close = PRICES[s]*np.exp(np.cumsum(r))
        start = np.r_[close[0], close[:-1]]
        for k in rng.choice(n, size=n//40): start[k] *= 1 + rng.normal(0, .012)
        high, low = np.maximum(start, close)*(1 + abs(rng.normal(0, scale/2, n))), np.minimum(start, close)*(1 - abs(rng.normal(0, scale/2, n)))
        for k in rng.choice(n, size=n//40): high[k] *= 1 + abs(rng.normal(0, .02))
        for k in rng.choice(n, size=n//40): low[k] *= 1 - abs(rng.normal(0, .02))
        rows.append(pd.DataFrame(dict(symbol=s, open_time=pd.to_datetime(at + np.arange(n)*bar*60_000, unit='ms', utc=True), open=start, high=high, low=low, close=close, volume=np.full(n, 2e7*bar/60/PRICES[s]))))
    return pd.concat(rows, ignore_index=True)


def _fast(dbapi, record):
    "No waiting for the disk or for a lock: here the machine does not fail, and a lock must be felt at once"
    for p in ('synchronous=OFF', 'busy_timeout=1'): dbapi.execute(f'PRAGMA {p}').fetchall()


MAKE, FIRST = sa.create_engine, []

def alike(url, **kw):
    "An engine that knows every statement that the first one of this process has compiled"
    e = MAKE(url, **kw)
    if not FIRST: FIRST.append(e)
    e.dialect, e._compiled_cache = FIRST[0].dialect, FIRST[0]._compiled_cache
    return e


def fast_journal(url):
    "A journal that does not wait for a disk"
    with mock.patch.object(sa, 'create_engine', alike): j = Journal(url)
    j.engine.dispose(); sa.event.listen(j.engine, 'connect', _fast)
    return j


class Line(Direct):
    "A line to the venue that can be listened to"
    answered = staticmethod(lambda answer: None)

    def skew(self): return self.clock.offset # The clock of this machine is that of the venue, unless `/time` says otherwise

    def _ask(self, *args):
        a = super()._ask(*args); self.answered(a)
        return a


class World:
    "A venue, a journal in memory-backed storage, and everything that a gateway needs"
    def __init__(self, rng, symbols=SYMBOLS, hours=26, **overrides):
        self.settings = parse({'universe': {'symbols': list(symbols)}} | overrides)
        self.venue = Venue(Market(weather(rng, symbols, hours), seed=int(rng.integers(1 << 30))), START)
        self.folder = Path(tempfile.mkdtemp(prefix='ql-', dir='/dev/shm' if Path('/dev/shm').is_dir() else None))
        self.home = Home(self.folder)
        self.journal = fast_journal(self.home.journal)
        self.watch = Watch(self.venue, self.journal, self.home.path/'EMERGENCY.log')

    def gateway(self, owner, **hooks):
        "A gateway in its first moment, with line, inbox and lease of its own; None while somebody leads"
        line, inbox, journal = Line(self.venue, self.settings), Inbox(), fast_journal(self.home.journal)
        line.simulated = False # it follows its own clock, as in production, and asks for the time only when it reads
        for k, f in hooks.items(): setattr(line, k, f)
        lease = journal.fence = take(journal, self.settings.suite.mode, owner, line.sync(), self.settings, {})
        if lease is None: return journal.close()
        self.venue.listeners.append(inbox.push)
        return Gateway(self.settings, self.home, journal, line, inbox, lease)

    def forget(self, g):
        "What is left of a process that is gone: nothing"
        self.venue.listeners = [f for f in self.venue.listeners if getattr(f, '__self__', None) is not g.inbox]
        g.journal.close()

    def wish(self, symbol, side, usdt=900., journal=None, **kw):
        "Publish an intent at the price of now"
        return wish(journal or self.journal, self.venue.now, symbol, side, kw.pop('price', None) or float(self.venue.mark(symbol)), usdt, **kw)

    def close(self):
        self.journal.close(); shutil.rmtree(self.folder, ignore_errors=True)
