"SIGKILL at twenty moments: what the journal says and what the exchange holds stay one story"
import json, os, random, signal, subprocess, sys, time
from decimal import Decimal

import pytest, requests
import sqlalchemy as sa

from quantlib.core.clock import MINUTE
from quantlib.core.settings import Home, parse, save
from quantlib.execution.client import connect
from quantlib.execution.rehearsal import START, wish
from quantlib.journal import schema
from quantlib.journal.store import Journal

SYMBOLS = ['BTCUSDT', 'ETHUSDT', 'SOLUSDT', 'XRPUSDT', 'BNBUSDT', 'ADAUSDT', 'DOGEUSDT', 'LINKUSDT']
SERVE = '''
import sys
from quantlib.core.clock import HOUR
from quantlib.data.synthetic import market
from quantlib.sandbox.market import Market
from quantlib.sandbox.server import serve
symbols, start = sys.argv[1].split(','), int(sys.argv[2])
serve(Market(market(symbols, start - 48*HOUR, 120, seed=11), seed=11), 0, start)
'''
PATHS = [('POST', '/fapi/v1/order'), ('POST', '/fapi/v1/algoOrder'), ('GET', '/fapi/v1/userTrades'), ('POST', '/fapi/v1/leverage'), ('DELETE', '/fapi/v1/algoOrder'), ('GET', '/fapi/v1/openAlgoOrders')]
ENV = os.environ | {'OMP_NUM_THREADS': '1'}


class World:
    "Sandbox and gateway as processes, and what a test may ask them"
    def __init__(self, path):
        self.sandbox = subprocess.Popen([sys.executable, '-c', SERVE, ','.join(SYMBOLS), str(START)], stdout=subprocess.PIPE, text=True, env=ENV)
        self.url = self.sandbox.stdout.readline().split()[1]
        self.settings = parse({'universe': {'symbols': SYMBOLS}, 'execution': {'url': self.url}})
        self.home = Home(path); save(self.settings, self.home)
        self.journal, self.client = Journal(self.home.journal), connect(self.settings)
        self.gateway = None

    def start(self):
        self.gateway = subprocess.Popen([sys.executable, '-m', 'quantlib.execution.gateway', '--home', str(self.home.path), '--stepped'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV)

    def step(self):
        print('step', file=self.gateway.stdin, flush=True)
        line = self.gateway.stdout.readline()
        assert line, f'the gateway ended with {self.gateway.wait()}'
        return json.loads(line)

    def kill(self):
        self.gateway.send_signal(signal.SIGKILL); self.gateway.wait()

    def sim(self, what, **body): return requests.post(f'{self.url}/_sim/{what}', json=body).json()
    def advance(self, ms): self.sim('clock', advance_ms=ms); return self.client.sync()
    def hang(self, rng):
        method, path = rng.choice(PATHS)
        self.sim('fault', match=dict(method=method, path=path), phase=rng.choice(['before_apply', 'after_apply']), effect='hang', args=dict(s=.5))

    def wishes(self, rng):
        "Two openings where nothing is held, and sometimes a close"
        now, held = self.client.sync(), {p['symbol']: Decimal(p['positionAmt']) for p in self.client.futures_position_information()}
        marks = {r['symbol']: float(r['markPrice']) for r in self.client.futures_mark_price()}
        for s in rng.sample([s for s in SYMBOLS if s not in held], k=min(2, len(SYMBOLS) - len(held))): wish(self.journal, now, s, rng.choice(['BUY', 'SELL']), marks[s], rng.choice([300., 600., 900.]))
        closing = [s for s in held if held[s]]
        if len(closing) > 3 or (closing and rng.random() < .4):
            s = rng.choice(closing); wish(self.journal, now, s, 'SELL' if held[s] > 0 else 'BUY', marks[s], action='close')

    def stop(self):
        if self.gateway and self.gateway.poll() is None: self.kill()
        self.sandbox.terminate(); self.sandbox.wait(); self.journal.close()


def trades(w):
    return [t for s in SYMBOLS for t in w.client.futures_account_trades(symbol=s, limit=1000)]


def names(w):
    "orderId → client id, of everything the exchange ever had"
    return {o['orderId']: o['clientOrderId'] for s in SYMBOLS for o in w.client.futures_get_all_orders(symbol=s, limit=1000)}


def check_fill_sets(w):
    "No intent was filled by more than one entry, nor for more than its order asked"
    name, entered = names(w), {}
    asked = {r['id']: Decimal(r['qty']) for r in w.journal.rows(schema.orders)}
    for t in trades(w):
        i = name[t['orderId']]
        if '-entry' in i: entered.setdefault(i, {}).setdefault(t['orderId'], Decimal(0)); entered[i][t['orderId']] += Decimal(t['qty'])
    for i, fills in entered.items():
        assert i in asked, f'{i} reached the exchange without a row in the journal'
        assert len(fills) == 1 and sum(fills.values()) <= asked[i], (i, fills)
    assert all(i.endswith('-entry0') for i in entered)
    return entered


def check_protected(w):
    algos = w.client.futures_get_open_algo_orders()
    for p in w.client.futures_position_information():
        q = Decimal(p['positionAmt'])
        if not q: continue
        stops = [a for a in algos if a['symbol'] == p['symbol'] and a['orderType'] == 'STOP_MARKET' and a['reduceOnly'] and (a['side'] == 'SELL') == (q > 0)]
        assert sum(Decimal(a['quantity']) for a in stops) >= abs(q), f'{p["symbol"]} {q} has no stop'
        assert len(stops) <= 2


def check_agree(w):
    "Quantities, sets of resting orders, and trades by id"
    theirs = {p['symbol']: Decimal(p['positionAmt']) for p in w.client.futures_position_information() if Decimal(p['positionAmt'])}
    assert {r['symbol']: Decimal(r['qty']) for r in w.journal.rows(schema.positions)} == theirs
    o = schema.orders.c
    ours = {r['id'] for r in w.journal.rows(sa.select(o.id).where(o.algo, o.state == 'acked'))}
    assert ours == {a['clientAlgoId'] for a in w.client.futures_get_open_algo_orders()}
    fills = {r['id']: (Decimal(r['qty']), Decimal(r['price']), Decimal(r['fee'])) for r in w.journal.rows(schema.fills)}
    assert fills == {f"{t['symbol']}:{t['id']}": (Decimal(t['qty']), Decimal(t['price']), Decimal(t['commission'])) for t in trades(w)}


@pytest.fixture
def world(tmp_path):
    w = World(tmp_path)
    yield w
    w.stop()


def test_twenty_kills_leave_one_story(world):
    w, rng, t0 = world, random.Random(20250510), time.monotonic()
    w.start(); w.step()
    killed_in = []
    for k in range(20):
        w.advance(MINUTE); w.wishes(rng)
        if k % 2: w.hang(rng)                                  # hold one request on the wire, and kill there
        print('step', file=w.gateway.stdin, flush=True)
        time.sleep(rng.uniform(.1, .35) if k % 2 else rng.uniform(.0, .09))
        w.kill(); killed_in.append({r['state'] for r in w.journal.rows(schema.orders)})
        requests.delete(w.url + '/_sim/fault')
        time.sleep(.6 if k % 2 else 0)                         # what was on the wire arrives after all
        at = w.client.sync()
        w.start(); out = w.step()
        w.advance(10_000); w.step()
        assert w.client.sync() - at <= 30_000
        check_fill_sets(w); check_protected(w); check_agree(w)
        assert out['naked'] == 0
    for _ in range(3): w.advance(MINUTE); w.step()
    entered = check_fill_sets(w); check_protected(w); check_agree(w)
    assert len(entered) >= 10 and any('sending' in s for s in killed_in), 'the kills did not meet the gateway at work'
    assert max(r['naked_ms'] for r in w.journal.rows(schema.protections)) <= 30_000
    assert not w.journal.rows(sa.select(schema.orders).where(schema.orders.c.state == 'unknown', schema.orders.c.role == 'entry'))
    assert time.monotonic() - t0 < 300
