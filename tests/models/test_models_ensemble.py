"The vote, with arbitrary forecasts and absences"
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from quantlib.core.types import SignalPath
from quantlib.models.ensemble import blend, vote
from quantlib.models.forecast import LEAST, Forecast

KINDS, SYMBOLS, HW = ('a', 'b', 'c'), ('X', 'Y', 'Z'), {1: .3, 4: .4, 24: .3}
number = st.floats(-8, 8, allow_nan=False)
row = st.none() | st.lists(st.lists(number, min_size=5, max_size=5).map(sorted), min_size=3, max_size=3)
weights = st.tuples(*[st.floats(.01, 1)]*3).map(lambda w: dict(zip(KINDS, w)))


def _forecast(kind, rows): return Forecast(kind, 'd'+kind, SYMBOLS, np.array([np.full((3, 5), np.nan) if r is None else r for r in rows]))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.none() | st.lists(row, min_size=3, max_size=3), min_size=3, max_size=3), weights)
def test_every_absence_is_named_and_no_chance_leaves_its_bounds(said, w):
    fs = [_forecast(k, r) for k, r in zip(KINDS, said) if r is not None]
    missing = {k: 'gone' for k, r in zip(KINDS, said) if r is None}
    out = vote(fs, w, HW, missing, KINDS, symbols=SYMBOLS)
    assert [b.symbol for b in out] == list(SYMBOLS)
    for i, b in enumerate(out):
        spoke = {k for k, r in zip(KINDS, said) if r is not None and r[i] is not None}
        assert {v.kind for v in b.votes} == spoke and set(b.missing) == set(KINDS) - spoke
        assert b.path == (SignalPath.ENSEMBLE if len(spoke) == 3 else SignalPath.DEGRADED if spoke else SignalPath.FALLBACK)
        if spoke: assert LEAST <= b.p_up <= 1 - LEAST and .5 <= b.confidence < 1 and all(0 < v.p_up < 1 for v in b.votes)
        else: assert b.p_up is None and b.confidence is None and b.side == 'HOLD'


@given(st.lists(st.lists(row, min_size=3, max_size=3), min_size=3, max_size=3), weights)
@settings(max_examples=60, deadline=None)
def test_a_missing_model_counts_as_absent_and_never_as_zero(said, w):
    fs = [_forecast(k, r) for k, r in zip(KINDS, said)]
    full = vote(fs, w, HW, {}, KINDS, symbols=SYMBOLS)
    for i, s in enumerate(SYMBOLS):
        there = [f for f in fs if s not in f.missing]
        gone = {f.kind: 'gone' for f in fs if s in f.missing}
        alone = vote(there, w, HW, gone, KINDS, symbols=(s,))[0]
        assert alone.p_up is None and full[i].p_up is None or alone.p_up == pytest.approx(full[i].p_up, abs=1e-12)


def test_weights_pull_the_blend_towards_the_heavier_member():
    up, down = (np.tile(np.arange(-2., 3) + c, (1, 3, 1)) for c in (.5, -.5))
    q, here = blend(np.stack([up, down]), [3, 1])
    assert np.allclose(q, np.arange(-2., 3) + .25) and here.all()
    both = lambda a, b: vote([Forecast('a', '', ('X',), up), Forecast('b', '', ('X',), down)], dict(a=a, b=b), HW, {}, ('a', 'b'), symbols=('X',))[0].p_up
    assert both(3, 1) == both(.3, .1) > both(1, 1) == .5 > both(1, 3)


def test_symbols_are_matched_by_name_and_unknown_ones_are_missing():
    q = np.stack([np.tile(np.arange(-2., 3) + c, (3, 1)) for c in (1, -1)])
    a, b = Forecast('a', '', ('X', 'Y'), q), Forecast('b', '', ('Y', 'X'), q[::-1])
    out = vote([a, b], dict(a=1, b=1), HW, {}, ('a', 'b'), symbols=('Y', 'X', 'W'))
    assert out[0].p_up < .5 < out[1].p_up and out[2].path == 'fallback' and set(out[2].missing) == {'a', 'b'}


def _one(kind): return Forecast(kind, 'd', ('X',), np.tile(np.arange(5.), (1, 3, 1)))


@pytest.mark.parametrize('kw, words', [
    (dict(missing={}), 'neither voted nor'), (dict(forecasts=[_one('a'), _one('a')]), 'twice'), (dict(members=('b',)), 'no member'),
    (dict(missing={'a': 'x', 'b': 'x'}), 'only be one'), (dict(weights={}), 'positive'), (dict(weights={'a': 0}), 'positive'),
    (dict(weights={'a': float('nan')}), 'positive'), (dict(weights={'a': float('inf')}), 'positive'), (dict(horizon_weights={1: 1.}), 'horizon weights'),
    (dict(horizon_weights={1: 0., 4: 0., 24: 0.}), 'horizon weights'), (dict(horizon_weights={1: 1., 4: float('nan'), 24: 1.}), 'horizon weights')])
def test_a_vote_that_is_not_wired_is_refused(kw, words):
    good = dict(forecasts=[_one('a')], weights={'a': 1.}, horizon_weights=HW, missing={'b': 'x'}, members=('a', 'b'), symbols=('X',))
    vote(**good)
    with pytest.raises(ValueError, match=words): vote(**good | kw)
