"The common part: causal, silent on noise, able to speak"
import numpy as np, pandas as pd, pytest
from quantlib.core.clock import HOUR
from quantlib.models.common import Common, middle, pulse
from quantlib.models.forecast import HORIZONS
from quantlib.models.panel import LEAST, Panel


def _market(hours=2400, symbols=8, lean=0., seed=0):
    rng = np.random.default_rng(seed); r = .7*rng.standard_normal((hours, symbols)) + .7*rng.standard_normal((hours, 1))
    for t in range(1, hours): r[t] += lean*r[t-1].mean()
    at = pd.date_range('2026-01-01', periods=hours, freq='1h', tz='UTC').as_unit('ms').rename('open_time')
    R = pd.DataFrame(r.astype(np.float32), at, pd.Index([f'C{i}USDT' for i in range(symbols)], name='symbol'))
    return Panel(pd.DataFrame(index=pd.MultiIndex.from_product([R.columns, at[400:]])), R, {h: R.rolling(h).sum().shift(-h)/h**.5 for h in HORIZONS})


@pytest.fixture(scope='module')
def still(): return _market()


@pytest.fixture(scope='module')
def model(still): return Common().fit(still, 1)


def test_noise_is_met_with_silence_most_of_the_time():
    kept = np.array([list(Common().fit(_market(1600, 6, seed=s), 1).trust.values()) for s in range(12)])
    assert (kept > 0).mean() < .15


def test_a_lean_is_found_and_said():
    m = Common().fit(_market(lean=.3, seed=3), 1)
    assert m.trust[1] > .5 and 'beats zero' in m.verdict()[0] and 'NOT' not in m.verdict()[0]


def test_the_future_changes_nothing(still, model):
    cut = still.times.max() - 200*HOUR; seen = still.R.index.asi8 <= cut; t = still.R.index.asi8
    ended = {h: y.where(np.repeat((t + h*HOUR <= cut)[:, None], y.shape[1], 1)) for h, y in still.Y.items()}
    past = Panel(still.X[still.times <= cut], still.R[seen], {h: y[seen] for h, y in ended.items()})
    q = model.predict(still)[:len(np.unique(past.times))]
    assert np.allclose(model.predict(past), q, equal_nan=True, atol=1e-12)


def test_equal_histories_give_equal_bits(still, model): assert np.array_equal(Common().fit(still).predict(still), model.predict(still), equal_nan=True)


def test_symbols_are_interchangeable_and_one_may_be_missing(still, model):
    turned = Panel(still.X, still.R.iloc[:, ::-1], {h: y.iloc[:, ::-1] for h, y in still.Y.items()})
    assert np.allclose(model.predict(turned), model.predict(still), equal_nan=True, atol=1e-6)
    R = still.R.copy(); R.iloc[:, 0] = np.nan
    assert np.isfinite(model.predict(Panel(still.X, R, still.Y))[-1]).all()


def test_a_hole_in_the_market_silences_it(still, model):
    R = still.R.copy(); R.iloc[-10, LEAST - 1:] = np.nan
    q = model.predict(Panel(still.X, R, still.Y))
    assert np.isnan(q[-1]).all() and np.isfinite(q[-11]).all() and np.isnan(middle(R)[-10]) and np.isnan(pulse(Panel(still.X, R, still.Y))[-1]).any()


def test_bands_cover_and_are_ordered(still, model):
    q = model.predict(still); i = still.R.index.get_indexer(pd.to_datetime(np.unique(still.times), unit='ms', utc=True))
    for k, h in enumerate(HORIZONS[:2]):
        y = middle(still.Y[h])[i]; ok = np.isfinite(y) & np.isfinite(q[:, k]).all(1)
        assert (np.diff(q[ok, k], axis=1) >= 0).all() and abs(((q[:, k, 0] <= y) & (y <= q[:, k, 4]))[ok].mean() - .9) < .04


def test_too_little_history_and_an_unfitted_model_are_refused(still):
    with pytest.raises(ValueError, match='more history'): Common().fit(still.take(still.times < still.times.min() + 200*HOUR), 1)
    with pytest.raises(ValueError, match='learnt nothing'): Common().predict(still)
