"The gateway as a process that hears the exchange: it trades, a second one waits, and it ends when told to"
import os, signal, subprocess, sys, time

import requests

from quantlib.core.clock import HOUR
from quantlib.core.settings import Home, parse, save
from quantlib.data.synthetic import market
from quantlib.execution.rehearsal import START, wish
from quantlib.journal import schema
from quantlib.journal.store import Journal
from quantlib.sandbox.market import Market
from quantlib.sandbox.server import start

SYMBOLS = ['BTCUSDT', 'ETHUSDT']


def until(f, seconds=40):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if f(): return True
        time.sleep(.1)
    return False


def spawn(home, name): return subprocess.Popen([sys.executable, '-m', 'quantlib.execution.gateway', '--home', str(home.path)], stderr=(home.path/name).open('w'), env=os.environ | {'OMP_NUM_THREADS': '1'})


def test_it_hears_trades_leads_alone_and_ends_when_told(tmp_path):
    run = start(Market(market(SYMBOLS, START - 48*HOUR, 96, seed=7), seed=7), START)
    settings = parse({'universe': {'symbols': SYMBOLS}, 'execution': {'url': run.url, 'tick_s': 1}})
    home = Home(tmp_path); save(settings, home)
    journal = Journal(home.journal)
    first = spawn(home, 'first'); others = []
    try:
        assert until(lambda: journal.rows(schema.pulses)), (home.path/'first').read_text()
        wish(journal, run.exchange.now, 'ETHUSDT', 'BUY', float(run.exchange.mark('ETHUSDT')), 900.)
        assert until(lambda: len(run.exchange.waiting.get('ETHUSDT', {})) >= 3), (home.path/'first').read_text()
        others.append(spawn(home, 'second')); run.advance(1000)
        assert until(lambda: 'waiting' in (home.path/'second').read_text())
        assert requests.post(f'{run.url}/_sim/clock', json={'advance_ms': 2000}).status_code == 200
        assert len(journal.rows(schema.leases)) == 1 and others[0].poll() is None
        t = time.monotonic(); first.send_signal(signal.SIGTERM); assert first.wait(10) == 0 and time.monotonic() - t < 5
        assert until(lambda: len(journal.rows(schema.leases)) == 2), 'the second one leads now'
        assert len(run.exchange.waiting['ETHUSDT']) == 3 and len(journal.rows(schema.orders)) == 4
    finally:
        for p in (first, *others): p.kill(); p.wait()
        journal.close(); run.stop()
