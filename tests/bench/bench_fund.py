"""The figures of the walking skeleton, measured in one run: `python tests/bench/bench_fund.py [--hours 48] [--runs 7]`

Prints the 49 indicators over 42 × 10,000 bars, a full training, a warm run of `trade.ipynb` against the same notebook under the cold papermill
command, and the whole demo. Seconds depend on the machine and on its neighbours; the ratio is taken pair by pair in this run."""
import argparse, json, statistics, subprocess, sys, tempfile, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fund import START, Fund
from quantlib.core import settings as conf
from quantlib.core.clock import HOUR, iso
from quantlib.data.features import features
from quantlib.data.synthetic import market
from quantlib.models.train import train
from quantlib.schedule.jobs import notebooks
from quantlib.schedule.kernels import warm_kernels
from quantlib.schedule.scheduler import Scheduler

BIN = Path(sys.executable).parent


def timed(f, *a, **kw):
    t = time.perf_counter(); f(*a, **kw)
    return time.perf_counter() - t


def indicators(symbols):
    c = market(symbols, START, 10_000, 7)
    return min(timed(features, c) for _ in range(3))


def training(s): return timed(train, market(s.universe.symbols, START, s.universe.history_bars, 7), list(s.models.members), 7, rounds=s.models.rounds, threads=s.models.threads)


def trade_runs(symbols, n):
    "Warm runs by the scheduler and cold ones by the papermill command, in turns"
    fund = Fund(tempfile.mkdtemp(), symbols=symbols, bars=1296, universe={'snapshot_bars': 1000}).prepare()
    fund.gateway.step()
    params = [x for k, v in dict(slot=iso(START), mode='paper', home=str(fund.home.path)).items() for x in ('-p', k, v)]
    warm, cold = [], []
    with warm_kernels(fund.home.path) as z:
        z.ready(60)
        scheduler = Scheduler(fund.settings, fund.home, fund.journal, since=START)
        for i in range(n):
            r = scheduler.run('trade', START, fund.now, again=True)
            assert r.state == 'done' and r.warm, r
            warm.append(r.seconds)
            cold.append(timed(subprocess.run, [BIN/'papermill', notebooks()/'trade.ipynb', Path(fund.home.path)/f'cold{i}.ipynb', *params], check=True, capture_output=True))
    fund.close()
    return warm, cold


def main():
    p = argparse.ArgumentParser(); p.add_argument('--hours', type=int, default=48); p.add_argument('--runs', type=int, default=7)
    a, s = p.parse_args(), conf.load()
    say = lambda what, got, aim: print(f'{what:58} {got:>16}   aim {aim}', flush=True)
    say('49 indicators, 42 × 10,000 bars', f'{indicators(s.universe.symbols):.2f} s', '≤ 0.6 s')
    say(f'training, {", ".join(s.models.members)}, 42 × {s.universe.history_bars} bars', f'{training(s):.1f} s', '≤ 40 s')
    warm, cold = trade_runs(s.universe.symbols, a.runs)
    say('trade.ipynb warm, median from runner to committed', f'{statistics.median(warm):.2f} s', '≤ 2 s')
    say('trade.ipynb cold, papermill command, median', f'{statistics.median(cold):.2f} s', '')
    say('cold : warm, median of pairs', f'{statistics.median(c/w for c, w in zip(cold, warm)):.1f} ×', '')
    with tempfile.TemporaryDirectory() as home:
        t = time.perf_counter()
        facts = json.loads(subprocess.run([BIN/'quantlib', 'demo', '--hours', str(a.hours), '--home', home, '--json'], capture_output=True, text=True).stdout)
        say(f'quantlib demo, {a.hours} h, {facts["entries_filled"]} entries, {"healthy" if facts["healthy"] else "NOT healthy"}', f'{time.perf_counter() - t:.0f} s', '≤ 240 s')
    print('of which', facts['seconds'])


if __name__ == '__main__': main()
