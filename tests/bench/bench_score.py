"""What training, forecasting, scoring and the leak hunt cost: `python tests/bench/bench_score.py [--bars 1296] [--years]`

CPU seconds are those of this process, all threads together; wall seconds depend on the neighbours. `--years` trains on 42 × 17,520 bars too, which takes some minutes."""
import argparse, resource, statistics, time
from quantlib.core.clock import HOUR
from quantlib.data.synthetic import LEVELS, market
from quantlib.models.panel import Panel
from quantlib.models.train import KINDS, train
from quantlib.research.leaks import leaks
from quantlib.research.scoreboard import scoreboard

SYMBOLS, START, ALL = sorted(f'{k}USDT' for k in LEVELS), 1_735_689_600_000, [k for k in KINDS if k != 'zero']


def say(what, got, aim=''): print(f'{what:66} {got:>22}   {aim}', flush=True)
def peak(): return f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20:.2f} GB'


def spent(f):
    "What `f` gives, CPU and wall seconds"
    c, w = time.process_time(), time.perf_counter(); out = f()
    return out, time.process_time() - c, time.perf_counter() - w


def training(bars, aim):
    candles = market(SYMBOLS, START, bars, 7)
    done, cpu, wall = spent(lambda: train(candles, ALL, 7))
    say(f'training, {", ".join(ALL)}, 42 × {bars:,} bars', f'{cpu:.0f} CPU-s, {wall:.0f} s', aim)
    say('   peak memory so far', peak(), '≤ 3 GB')
    return done


def forecasting(models):
    "Milliseconds of a warm decision's forecasts, the panel apart"
    candles = market(SYMBOLS, START, 1000, 9); at = START + 999*HOUR
    def panel():
        p = Panel.of(candles); return p.take(p.times == at)
    def ask():
        rows = panel(); t = time.perf_counter()
        for m in models: m.forecaster.predict(rows)
        return 1e3*(time.perf_counter() - t)
    ask(); asked = [ask() for _ in range(9)]
    _, _, wall = min((spent(panel) for _ in range(5)), key=lambda x: x[2])
    say('forecasts of all models, 42 symbols, warm, median (best)', f'{statistics.median(asked):.0f} ({min(asked):.0f}) ms', '≤ 150 ms')
    say('   the panel of 1,000 bars before it', f'{1e3*wall:.0f} ms')


def scoring(bars=1100):
    candles = market(SYMBOLS[:20], START, bars, 7); cut = START + (bars - 240)*HOUR
    _, cpu, wall = spent(lambda: scoreboard(candles, cut, cut, START + bars*HOUR, tuple(ALL)))
    say(f'scoreboard, 20 × {bars:,} bars, all models', f'{cpu:.0f} CPU-s, {wall:.0f} s')
    r, cpu, wall = spent(leaks)
    say(f'leaks, {int(r.table.right.sum())} of {len(r.table)} found, clean: {r.clean is None}', f'{cpu:.0f} CPU-s, {wall:.0f} s', '≤ 90 s')


def main():
    p = argparse.ArgumentParser(); p.add_argument('--bars', type=int, default=1296); p.add_argument('--years', action='store_true')
    a = p.parse_args()
    forecasting(training(a.bars, '≤ 180 CPU-s, ≤ 120 s'))
    scoring()
    if a.years: training(17_520, '≤ 720 CPU-s')


if __name__ == '__main__': main()
