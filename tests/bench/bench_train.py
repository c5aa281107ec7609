"""CPU and wall seconds of features, training and forecasts on 42 symbols × 1,296 hourly bars, all kinds; run: python tests/bench/bench_train.py [bars]"""
import resource, sys, time
from tempfile import TemporaryDirectory
from quantlib.core.clock import HOUR
from quantlib.data.features import features
from quantlib.data.synthetic import market
from quantlib.models.calibrate import Gate
from quantlib.models.common import Common
from quantlib.models.forecast import forecast
from quantlib.models.panel import Panel
from quantlib.models.registry import Registry
from quantlib.models.train import rows, train

KINDS = ['ridge', 'xgboost', 'lightgbm', 'nhits', 'patchtst']


def seconds(f, times=3):
    "The least CPU and wall seconds of `times` runs, and the last result"
    best = []
    for _ in range(times):
        cpu, wall = time.process_time(), time.perf_counter(); out = f(); best.append((time.process_time() - cpu, time.perf_counter() - wall))
    return *map(min, zip(*best)), out


def main():
    bars = int(sys.argv[1]) if len(sys.argv) > 1 else 1296
    px = market([f'C{i:02d}USDT' for i in range(42)], 1_746_000_000_000 // HOUR * HOUR, bars, seed=1)
    said = lambda name, cpu, wall, more='': print(f'{name:10} {cpu:9.3f} CPU-s {wall:9.3f} s wall  {more}', flush=True)
    said('features', *seconds(lambda: features(px))[:2], f'{len(px):,} rows')
    *spent, p = seconds(lambda: rows(px), 1); said('rows', *spent)
    *spent, done = seconds(lambda: train(px, KINDS, seed=7), 1); said('train', *spent, 'five kinds, test and served fit, report cards; limits at 1,296 bars 180 CPU-s, 120 s')
    *spent, common = seconds(lambda: Common().fit(p, 7), 1); said('common', *spent)
    *spent, gate = seconds(lambda: Gate.fit(p), 1); said('gate', *spent)
    with TemporaryDirectory() as d:
        reg = Registry(d)
        *spent, ids = seconds(lambda: {t.forecaster.kind: reg.save(t, 0, 0) for t in done}, 1); said('save', *spent)
        for k, i in ids.items(): reg.promote(k, i, 0)
        *spent, (models, missing) = seconds(lambda: reg.load_champions(KINDS)); said('load', *spent, str(missing or ''))
    late = px[px.open_time >= px.open_time.max() - 700*(px.open_time.diff().iloc[1])].reset_index(drop=True)
    *spent, now = seconds(lambda: (lambda p: p.take(p.times == p.times.max()))(Panel.of(late))); said('panel', *spent, '42 symbols, 700 hours')
    for k, (i, m) in models.items(): said(k, *seconds(lambda: forecast(m, i, now).p_up(), 10)[:2], '42 symbols')
    said('all', *seconds(lambda: [forecast(m, i, now).p_up() for i, m in models.values()], 10)[:2], 'forecasts of every kind; limit 0.150 s')
    said('beside', *seconds(lambda: (common.predict(now), gate.flag(now)), 10)[:2], 'common part and gate')
    print(f'most memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20:.2f} GB; limit 3')
    for t in done: print('\n'.join(t.verdict()))


if __name__ == '__main__': main()
