"Prints how long the 49 features of 42 symbols x 10,000 bars take: python tests/bench/bench_features.py"
import json, time

from quantlib.data.features import features
from quantlib.data.labels import labels
from quantlib.data.synthetic import LEVELS, market


def best(f, n=5):
    "The fastest of `n` calls, seconds"
    times = []
    for _ in range(n):
        t = time.perf_counter()
        f()
        times.append(time.perf_counter() - t)
    return round(min(times), 4)


def main():
    "Time features on one and two threads, a decision's window, and labels"
    names = sorted(f'{k}USDT' for k in LEVELS)
    d = market(names, 1_735_689_600_000, 10_000, 7)
    tail = d.groupby('symbol').tail(1000).reset_index(drop=True)
    print(json.dumps(dict(symbols=len(names), bars=10_000, features_s=best(lambda: features(d)), features_one_thread_s=best(lambda: features(d, 1)),
                          features_1000_bars_s=best(lambda: features(tail)), labels_s=best(lambda: labels(d)), market_2000_bars_s=best(lambda: market(names, 1_735_689_600_000, 2000, 7), 2), target_s=.6)))


if __name__ == '__main__': main()
