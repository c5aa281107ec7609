"Chances read from quantiles, attacked with arbitrary quantiles"
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from quantlib.models.forecast import LEAST, HORIZONS, LEVELS, Forecast, p_up

value = st.floats(-50, 50, allow_nan=False) | st.sampled_from([0., -0., 1e-300, -1e-300, 1e-9, -5e-324])
quantiles = st.lists(value, min_size=5, max_size=5).map(sorted).map(np.array)


@given(quantiles)
def test_chance_is_inside_its_edges(q): assert LEAST <= p_up(q) <= 1 - LEAST


@given(quantiles)
def test_upside_down_is_the_other_chance(q): assert p_up(q) + p_up(-q[::-1]) == pytest.approx(1, abs=1e-9)


@given(quantiles, st.floats(0, 5))
def test_moving_up_never_lowers_the_chance(q, step): assert p_up(q + step) >= p_up(q) - 1e-9


@given(quantiles)
def test_sign_of_the_median_decides_the_side(q):
    if q[2] > 0: assert p_up(q) >= .5
    if q[2] < 0: assert p_up(q) <= .5


@given(quantiles)
def test_agrees_with_the_levels_at_the_quantiles(q):
    for i, level in enumerate(LEVELS):
        if len(set(q)) == 5: assert p_up(q - q[i]) == pytest.approx(1 - level, abs=1e-9)


@given(st.lists(quantiles, min_size=1, max_size=6))
def test_a_row_alone_gives_the_same_bits_as_in_a_batch(rows):
    assert (p_up(np.stack(rows)) == np.array([p_up(r) for r in rows])).all()


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_one_missing_quantile_makes_the_chance_missing(bad):
    q = np.array([-1., -.5, 0, .5, 1]); q[3] = bad
    assert np.isnan(p_up(q))


@pytest.mark.parametrize('spoil, words', [
    (lambda q: q[:, :2], 'shape'), (lambda q: q[..., ::-1], 'cross'), (lambda q: np.where(np.arange(5) == 2, np.nan, q), 'half missing'),
    (lambda q: np.where(np.arange(5) == 4, np.inf, q), 'half missing'), (lambda q: np.where(np.arange(3)[:, None] == 1, np.nan, q), 'half missing')])
def test_bad_quantiles_are_refused(spoil, words):
    q = np.tile(np.arange(5.), (2, 3, 1))
    with pytest.raises(ValueError, match=words): Forecast('xgboost', 'd', ('A', 'B'), spoil(q))


def test_a_forecast_cannot_be_changed_afterwards():
    q = np.tile(np.arange(5.), (1, 3, 1)); f = Forecast('xgboost', 'd', ['A'], q)
    q[:] = np.nan
    assert f.missing == () and f.symbols == ('A',) and len(f.horizons) == len(HORIZONS)
    with pytest.raises(ValueError): f.q[0, 0, 0] = 7
