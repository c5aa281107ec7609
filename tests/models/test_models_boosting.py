"Boosted forecasters: what trees do with the order of the symbols"
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from quantlib.models.boosting import LGBM, XGB
from quantlib.models.panel import Panel
from quantlib.models.validate import rank_ic
from quantlib.models.located import split

trees = pytest.mark.parametrize('kind', ['xgboost', 'lightgbm'])


@trees
@settings(max_examples=25, deadline=None)
@given(power=st.floats(.2, 5), scale=st.floats(1e-4, 1e4))
def test_only_the_order_counts(planted, fitted, kind, power, scale):
    p = planted.take(np.arange(len(planted)) % 500 > 495)
    X = scale*np.sign(p.X)*p.X.abs()**power
    assert (fitted[kind].predict(Panel(X, p.R, p.Y)) == fitted[kind].predict(Panel(p.X, p.R, p.Y))).all()


@trees
def test_a_row_alone_gives_the_same_bits_as_in_a_batch(planted, fitted, kind):
    p = planted.take(np.arange(42)*100); c = fitted[kind].centres(p)
    assert all((fitted[kind].centres(p.take(np.array([i])))[0] == c[i]).all() for i in range(len(p)))


@trees
def test_a_planted_order_is_found_and_noise_is_not(panel_of, kind):
    def ic(signal):
        p = panel_of(hours=900, signal=signal, seed=9); old, new = split(p.times, .3, 24); held = p.take(new)
        y, c = held.label(1), {'xgboost': XGB, 'lightgbm': LGBM}[kind](rounds=30).fit(p.take(old), 1).centres(held)[:, 0]
        return rank_ic(c[np.isfinite(y)], y[np.isfinite(y)], held.times[np.isfinite(y)]).mean()
    assert ic(.3) > .15 and abs(ic(0.)) < 3/np.sqrt(9*270)


@trees
def test_rounds_are_what_was_asked_for(planted, kind, fitted):
    m = fitted[kind].boosters[24]
    assert (m.num_boosted_rounds() if kind == 'xgboost' else m.num_trees()) == 15
