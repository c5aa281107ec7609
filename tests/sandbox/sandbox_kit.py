"Markets and clients for the sandbox tests"
import time

import numpy as np
import pandas as pd
from binance.client import Client

from quantlib.core.clock import HOUR, parse_iso
from quantlib.sandbox.market import Market

T0 = parse_iso('2025-05-10T00:00Z')
START = T0 + 24*HOUR


def frame(symbol, rows, bar=HOUR, at=T0):
    "Candles from rows of open, high, low, close"
    x = np.array(rows, float)
    t = pd.to_datetime(at + bar*np.arange(len(x)), unit='ms', utc=True).as_unit('ms')
    return pd.DataFrame(dict(symbol=symbol, open_time=t, open=x[:, 0], high=x[:, 1], low=x[:, 2], close=x[:, 3], volume=1000.0))


def flat(symbol='BTCUSDT', px=100_000.0, hours=24):
    "Rows that never move"
    return [(px, px, px, px)]*hours


def scripted(*bars, symbol='BTCUSDT', px=100_000.0, after=24):
    "A flat day, then the given (high, low, close) bars, then flat again; the clock starts where the script does"
    rows, last = flat(px=px), px
    for high, low, close in bars:
        rows.append((last, high, low, close)); last = close
    return frame(symbol, rows + [(last, last, last, last)]*after)


def walk(symbol, px, hours=96, seed=0, vol=.006, decimals=2):
    "Candles of a random walk"
    rng = np.random.default_rng([seed, len(symbol), ord(symbol[0])])
    c = px*np.exp(np.cumsum(rng.normal(0, vol, hours)))
    o = np.r_[px, c[:-1]]
    h, l = np.maximum(o, c)*(1 + rng.uniform(0, .004, hours)), np.minimum(o, c)*(1 - rng.uniform(0, .004, hours))
    return frame(symbol, np.round(np.column_stack([o, h, l, c]), decimals))


def two():
    "BTC and ETH, walking"
    return Market(pd.concat([walk('BTCUSDT', 100_000.0), walk('ETHUSDT', 2_500.0)]))


def client(server, key='paper', secret='paper', base=Client):
    "python-binance, unmodified but for its addresses and its watch, which shows the exchange's time"
    class Local(base):
        API_URL, MARGIN_API_URL = f'{server.url}/api', f'{server.url}/sapi'
        FUTURES_URL, FUTURES_DATA_URL = f'{server.url}/fapi', f'{server.url}/futures/data'
        WS_FUTURES_URL = server.url.replace('http', 'ws') + '/ws-fapi/v1'
        timestamp_offset = property(lambda self: server.exchange.now - time.time()*1000, lambda self, v: None)
    return Local(key, secret)
