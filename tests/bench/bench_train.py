"""Seconds for features, labels, fit and predict on 42 symbols × 1,296 hourly bars; run: python tests/bench/bench_train.py"""
import time
from tempfile import TemporaryDirectory
from quantlib.core.clock import HOUR
from quantlib.data.features import features
from quantlib.data.labels import labels
from quantlib.data.synthetic import market
from quantlib.models.forecast import forecast
from quantlib.models.registry import Registry
from quantlib.models.train import train

KINDS = ['xgboost', 'lightgbm']


def seconds(f, times=3):
    "The best of `times` runs and the last result"
    best = float('inf')
    for _ in range(times):
        start = time.perf_counter(); out = f(); best = min(best, time.perf_counter() - start)
    return best, out


def main():
    px = market([f'C{i:02d}USDT' for i in range(42)], 1_746_000_000_000 // HOUR * HOUR, 1296, seed=1)
    features_s, X = seconds(lambda: features(px))
    labels_s, _ = seconds(lambda: labels(px))
    fit_s, done = seconds(lambda: train(px, KINDS, seed=7), 1)
    with TemporaryDirectory() as d:
        reg = Registry(d)
        save_s, ids = seconds(lambda: {t.forecaster.kind: reg.save(t, 0, 0) for t in done}, 1)
        for k, i in ids.items(): reg.promote(k, i, 0)
        load_s, (models, missing) = seconds(lambda: reg.load_champions(KINDS))
    now = X.groupby(level='symbol').tail(1).droplevel('open_time')
    predict_s, _ = seconds(lambda: [forecast(m, i, now).p_up() for i, m in models.values()], 20)
    print(f'features {features_s:.3f} s\nlabels   {labels_s:.3f} s\ntrain    {fit_s:.2f} s  (both kinds, 3 horizons, test and served fit, report card; limit 40)')
    print(f'save     {save_s:.3f} s\nload     {load_s:.4f} s\npredict  {predict_s*1000:.1f} ms (42 symbols, both models; limit 30)')
    for t in done: print('\n'.join(t.verdict()))


if __name__ == '__main__': main()
