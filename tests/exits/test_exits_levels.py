"Levels and trailing under arbitrary prices: positive, on the right side, and never back"
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from quantlib.core.settings import load
from quantlib.core.types import Regime
from quantlib.exits.levels import levels, trail
from quantlib.risk.sizing import stops

X = load().exits
signs, regimes = st.sampled_from([1, -1]), st.sampled_from(list(Regime))
prices = st.floats(1e-9, 1e9)
natrs = st.floats(1e-6, 1.)
paths = st.lists(st.floats(-.03, .03), min_size=1, max_size=40)


@given(signs, prices, natrs, regimes)
def test_positive_and_on_the_right_side(sign, entry, natr, regime):
    stop, take = stops(natr, regime, X)
    l = levels(sign, entry, stop, take, X)
    assert all(math.isfinite(p) and p > 0 for p in (l.stop, l.take, l.trail_start))
    assert (l.stop - entry)*sign < 0 < (l.take - entry)*sign
    assert .01 - 1e-9 <= abs(l.stop/entry - 1) <= .02 + 1e-9
    assert .02 - 1e-9 <= abs(l.take/entry - 1) <= .05 + 1e-9
    assert (l.half is not None) == (take > X.half_at)
    if l.half is not None: assert entry*sign < l.half*sign < l.take*sign


@given(signs, prices, natrs, regimes, paths)
def test_trailing_never_loosens(sign, entry, natr, regime, moves):
    stop, take = stops(natr, regime, X)
    l = levels(sign, entry, stop, take, X)
    px = entry*np.exp(np.cumsum(moves))
    best = (np.maximum if sign > 0 else np.minimum).accumulate(np.r_[entry, px])
    s = np.array([trail(l, float(b), sign, stop) for b in best])
    assert (np.diff(s)*sign >= 0).all() and ((s - l.stop)*sign >= 0).all() and (s > 0).all()
    for b, x in zip(best, s):
        assert (b - x)*sign > 0, 'a stop at or through the best price would close at once'
        if (b - l.trail_start)*sign >= 0: assert (x - entry)*sign >= 0
        else: assert x == l.stop


@given(signs, prices)
def test_the_trail_starts_at_one_percent_and_keeps_its_distance(sign, entry):
    l = levels(sign, entry, .02, .05, X)
    assert trail(l, entry*(1 + sign*.0099), sign, .02) == l.stop
    assert trail(l, l.trail_start, sign, .02) == entry
    b = entry*(1 + sign*.045)
    assert math.isclose(trail(l, b, sign, .02), b*(1 - sign*.02))


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, 0., -3.])
@pytest.mark.parametrize('where', ['entry', 'stop_frac', 'take_frac', 'best'])
def test_a_bad_number_raises_with_its_name(where, bad):
    a = dict(side_sign=1, entry=100., stop_frac=.01, take_frac=.02, exits=X)
    with pytest.raises(ValueError, match=where):
        if where == 'best': trail(levels(**a), bad, 1, .01)
        else: levels(**(a | {where: bad}))


@pytest.mark.parametrize('frac', [1., 1.5, 2., 100.])
def test_the_predecessors_percent_is_refused(frac):
    with pytest.raises(ValueError, match='stop_frac'): levels(1, 100., frac, .02, X)


@pytest.mark.parametrize('sign', [0, 2, .5, None])
def test_a_side_is_plus_or_minus_one(sign):
    with pytest.raises(ValueError, match='side_sign'): levels(sign, 100., .01, .02, X)
