"Panels of the right shape with a planted signal or none, without a market behind them"
import numpy as np, pandas as pd, pytest
from quantlib.models.forecast import HORIZONS
from quantlib.models.fit import Recipe
from quantlib.models.panel import Panel
from quantlib.models.train import KINDS


def _panel(symbols=10, hours=500, columns=8, signal=.3, seed=0):
    "`x0` of a bar is worth `signal` usual moves of the next return; the other features are noise"
    rng = np.random.default_rng(seed)
    times = pd.date_range('2026-01-01', periods=hours, freq='1h', tz='UTC').as_unit('ms').rename('open_time')
    names = pd.Index([f'C{i:02d}USDT' for i in range(symbols)], name='symbol')
    x = rng.standard_normal((columns, hours, symbols)); r = rng.standard_t(4, (hours, symbols))/2**.5 + .7*rng.standard_normal((hours, 1))
    r[1:] += signal*x[0, :-1]
    R = pd.DataFrame(r.astype(np.float32), times, names)
    X = pd.DataFrame(x.transpose(2, 1, 0).reshape(-1, columns), pd.MultiIndex.from_product([names, times]), [f'x{i}' for i in range(columns)])
    return Panel(X, R, {h: R.rolling(h).sum().shift(-h)/h**.5 for h in HORIZONS})


def _quick(kind):
    "A forecaster that learns in a fraction of a second"
    m = KINDS[kind](rounds=15) if kind in ('xgboost', 'lightgbm') else KINDS[kind]()
    if kind in ('nhits', 'patchtst'): m.recipe = Recipe(steps=12, batch=128, rate=3e-3, checks=2)
    return m


@pytest.fixture(scope='session')
def panel_of(): return _panel


@pytest.fixture(scope='session')
def quick(): return _quick


@pytest.fixture(scope='session')
def planted(): return _panel()


@pytest.fixture(scope='session')
def fitted(planted): return {k: _quick(k).fit(planted, 3) for k in KINDS}
