"A whole small fund in one process, for tests that stage a failure or look inside"
from quantlib.core import settings as conf
from quantlib.core.clock import HOUR, MINUTE, floor
from quantlib.data.synthetic import market
from quantlib.execution.client import connect
from quantlib.execution.gateway import Gateway
from quantlib.journal.store import Journal
from quantlib.ops.audit import audit
from quantlib.sandbox.market import Market
from quantlib.sandbox.server import start
from quantlib.schedule.jobs import Run, job
from quantlib.schedule.ledger import Ledger
from quantlib.strategy import decide

START = 1_767_225_600_000
SYMBOLS = ('AAVEUSDT', 'ADAUSDT', 'AVAXUSDT', 'BNBUSDT', 'BTCUSDT', 'DOGEUSDT', 'DOTUSDT', 'ETHUSDT', 'LINKUSDT', 'LTCUSDT', 'NEARUSDT', 'SOLUSDT', 'UNIUSDT', 'XRPUSDT')


class Fund:
    "Sandbox in a thread, the scheduled functions called directly, the gateway stepped by hand"
    def __init__(self, path, hours=24, seed=7, symbols=SYMBOLS, bars=620, **overrides):
        candles = market(symbols, START - bars*HOUR, bars + hours + 1, seed)
        self.server = start(Market(candles, seed=seed), start_ms=START + 15_000)
        self.home = conf.Home(path)
        base = {'suite': {'seed': seed}, 'universe': {'symbols': symbols, 'history_bars': bars, 'snapshot_bars': 600}, 'models': {'rounds': 20, 'members': ('xgboost', 'lightgbm')},
                'execution': {'url': self.server.url}, 'jobs': {'ingest': 60, 'trade': 60, 'retrain': 0, 'report': 0, 'audit': 0}}
        for section, values in overrides.items(): base[section] = base.get(section, {}) | values
        self.settings = conf.load(overrides=base)
        conf.save(self.settings, self.home)
        self.journal, self.now, self.seen = Journal(self.home.journal), START + 15_000, {}
        self.ledger = Ledger(self.journal)

    def run(self, name, slot, act):
        "What the runner does around a notebook, without the notebook"
        id = self.ledger.claim(name, slot, self.now, 300_000, again=True)
        r = Run(job(name), slot, 'paper', self.home, self.settings, id)
        try: act(r)
        except BaseException as e: self.ledger.finish(id, 'failed', self.now, 0.0, error=repr(e)); raise
        self.ledger.finish(id, 'done', self.now, 0.1, {'run': id})
        r.journal.close()

    def prepare(self):
        "Candles, models and a gateway"
        self.run('ingest', START, lambda r: r.ingest())
        self.run('retrain', START, lambda r: r.retrain())
        self.gateway = self.new_gateway()
        return self

    def new_gateway(self):
        s = self.settings
        g = Gateway(s, self.home, self.journal, connect(s, s.sandbox.key, s.sandbox.secret))
        g.start()
        return g

    def trade(self, slot, twist=lambda cycle: cycle, served=None):
        "The cells of trade.ipynb; `twist` may spoil the decided cycle, `served` the models it uses"
        def act(r):
            if served: r._served = served
            snapshot = r.snapshot()
            policy = r.policy(snapshot)
            cycle = twist(decide.cycle(snapshot, r.served, r.book, policy, r.settings))
            r.publish(snapshot, cycle, policy)
        self.run('trade', slot, act)

    def hour(self, **kw):
        "One simulated hour: candles and a decision, then sixty steps of the gateway"
        slot = floor(self.now, HOUR)
        if slot != START: self.run('ingest', slot, lambda r: r.ingest())
        self.trade(slot, **kw)
        for _ in range(60):
            self.seen = self.gateway.step()
            self.now = self.server.advance(MINUTE)

    def hours(self, n, **kw):
        for _ in range(n): self.hour(**kw)
        self.seen = self.gateway.step()
        return self

    def audit(self): return audit(self.home, self.journal, self.settings, self.now)

    def close(self):
        self.journal.close(); self.server.stop()
