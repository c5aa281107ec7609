"Signed order round trips a second over HTTP and in process, and the cost of a simulated minute: `python tests/bench/bench_sandbox.py`"
import os
import resource
import subprocess
import sys
import time

import numpy as np
import pandas as pd

from quantlib.core.clock import HOUR, MINUTE, parse_iso
from quantlib.sandbox.book import Params
from quantlib.sandbox.contracts import table
from quantlib.sandbox.exchange import Exchange
from quantlib.sandbox.market import Market
from quantlib.sandbox.rest import sign
from quantlib.sandbox.server import serve

START = parse_iso('2025-05-11T00:00Z')


def market(hours=120):
    "42 random walks"
    rng, out = np.random.default_rng(1), []
    for s, c in table().items():
        px = max(float(c.tick)*50_000, float(c.min_price)*5)*np.exp(np.cumsum(rng.normal(0, .005, hours)))
        o = np.r_[px[0], px[:-1]]
        t = pd.date_range('2025-05-10', periods=hours, freq='h', tz='UTC').as_unit('ms')
        out.append(pd.DataFrame(dict(symbol=s, open_time=t, open=o, high=np.maximum(o, px)*1.002, low=np.minimum(o, px)*.998, close=px, volume=1e6)))
    return Market(pd.concat(out))


def rate(f, n):
    "Calls of `f` a second"
    t = time.perf_counter()
    for _ in range(n): f()
    return n/(time.perf_counter() - t)


def per_core(f, n):
    "Calls of `f` a second of processor time"
    own = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    t = own()
    for _ in range(n): f()
    return n/(own() - t)


def spent(pid):
    "Seconds of processor time a process has used"
    x = open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()
    return (int(x[11]) + int(x[12]))/os.sysconf('SC_CLK_TCK')


def over_http():
    "A server process and python-binance against it"
    import requests
    from binance.client import Client
    p = subprocess.Popen([sys.executable, __file__, 'serve'], stdout=subprocess.PIPE, text=True)
    try:
        url = p.stdout.readline().split()[-1]
        class Local(Client):
            API_URL, FUTURES_URL = f'{url}/api', f'{url}/fapi'
            timestamp_offset = property(lambda self: START - time.time()*1000, lambda self, v: None)
        c = Local('paper', 'paper')
        sides = iter(['BUY', 'SELL']*10_000)
        order = lambda: c.futures_create_order(symbol='ETHUSDT', side=next(sides), type='MARKET', quantity='0.05')
        requests.post(url + '/_sim/world', json=dict(limits=dict(weight=10**9, orders_10s=10**9, orders_1m=10**9)), timeout=30).raise_for_status()
        rate(order, 50)
        before = spent(p.pid)
        yield 'orders over HTTP (python-binance), a second', rate(order, 1000)
        yield 'orders over HTTP, a second of the server\'s core', 1000/(spent(p.pid) - before)
        yield 'klines 1,296 bars over HTTP, a second', rate(lambda: c.futures_klines(symbol='BTCUSDT', interval='1m', limit=1296), 50)
        t = time.perf_counter()
        requests.post(url + '/_sim/clock', json=dict(advance_ms=HOUR), timeout=30)
        yield 'an hour of the clock over HTTP, ms', (time.perf_counter() - t)*1e3
    finally:
        p.terminate(); p.wait(10)


def in_process():
    "The engine alone"
    ex = Exchange(market(), START)
    ex.limits |= dict(orders_10s=10**9, orders_1m=10**9)
    sides = iter(['BUY', 'SELL']*30_000)
    params = lambda: Params(symbol='ETHUSDT', side=next(sides), type='MARKET', quantity='0.05')
    def signed():
        "Sign as a client does, then what the server does with it but for HTTP"
        q = '&'.join(f'{k}={v}' for k, v in (params() | dict(timestamp=ex.now)).items())
        assert ex.request('POST', '/fapi/v1/order', '', q + '&signature=' + sign(ex.secret, q), ex.key).status == 200
    rate(signed, 200)
    yield 'orders in process, a second', rate(lambda: ex.place(params()), 3000)
    yield 'order answers in process (no signature, faults and limits looked at), a second', rate(lambda: ex.answer('POST', '/fapi/v1/order', params(), ex.key), 3000)
    yield 'signed order round trips in process, a second of a core', per_core(signed, 3000)
    ex.faults.add(dict(match=dict(method='POST', path='*', prob=1e-9), effect='reset', phase='after_apply', count=None))
    yield 'signed order round trips in process with a fault waiting, a second of a core', per_core(signed, 3000)
    ex.faults.clear()
    for s in list(table())[:12]:
        px, c = ex.mark(s), ex.contracts[s]
        ex.account.leverages[s] = 20
        ex.place(Params(symbol=s, side='BUY', type='MARKET', quantity=str(max(c.min_qty, 300//px//c.step*c.step, (c.min_notional*2/px//c.step + 1)*c.step))))
        for kind, k in (('STOP_MARKET', '0.5'), ('TAKE_PROFIT_MARKET', '2')):
            ex.place_algo(Params(algoType='CONDITIONAL', symbol=s, side='SELL', type=kind, closePosition='true', triggerPrice=str(px*type(px)(k)//c.tick*c.tick), workingType='MARK_PRICE'))
    n, t = 24*60, time.perf_counter()
    for _ in range(n): ex.advance(ex.now + MINUTE)
    yield f'a simulated minute, {len(ex.account.held())} positions and {sum(map(len, ex.waiting.values()))} conditional orders, ms', (time.perf_counter() - t)/n*1e3


if __name__ == '__main__':
    if sys.argv[1:] == ['serve']: serve(market(), 0, START)
    else:
        for name, x in (*in_process(), *over_http()): print(f'{name}: {x:,.2f}')
