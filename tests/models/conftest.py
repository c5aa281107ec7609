"Panels of the right shape with a planted signal or none, without a market behind them"
import numpy as np, pandas as pd, pytest


def _panel(symbols=12, hours=700, columns=8, signal=.25, seed=0):
    rng = np.random.default_rng(seed)
    times = pd.date_range('2026-01-01', periods=hours, freq='1h', tz='UTC').as_unit('ms')
    index = pd.MultiIndex.from_product([[f'C{i:02d}USDT' for i in range(symbols)], times], names=['symbol', 'open_time'])
    X = pd.DataFrame(rng.standard_normal((len(index), columns)), index, [f'x{i}' for i in range(columns)])
    Y = pd.DataFrame(rng.standard_t(4, (len(index), 3)), index, ['r1', 'r4', 'r24']) + signal * X[['x0']].to_numpy()
    for h in (1, 4, 24): Y.loc[Y.groupby(level='symbol').cumcount(ascending=False) < h, f'r{h}'] = np.nan
    return X, Y


@pytest.fixture(scope='session')
def panel_of(): return _panel


@pytest.fixture(scope='session')
def planted(): return _panel()
