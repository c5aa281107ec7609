"The vote, with arbitrary forecasts and absences"
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from quantlib.core.types import SignalPath
from quantlib.models.ensemble import FLOOR, blend, kept, vote, weigh
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


# Weights

DESIGN = {'a': .1, 'b': .3, 'c': .6}
def _card(ic, se): return {f'h{h}': dict(rank_ic=ic, rank_ic_t=ic/se) for h in (1, 4, 24)}
card = st.none() | st.tuples(st.floats(-.1, .1).filter(lambda x: abs(x) > 1e-6), st.floats(1e-4, .1))


@given(st.tuples(*[card]*3))
@settings(max_examples=100, deadline=None)
def test_weights_are_positive_shares_whatever_the_cards_say(cards):
    w = weigh(DESIGN, {k: {} if c is None else _card(*c) for k, c in zip(KINDS, cards)}).weights
    assert np.allclose(np.sum(list(w.values()), 0), 1) and all(x > 0 for v in w.values() for x in v)


def test_differences_within_the_noise_leave_the_design():
    w = weigh(DESIGN, {'a': _card(.030, .003), 'b': _card(.028, .003), 'c': _card(.027, .003)})
    assert {k: v[0] for k, v in w.weights.items()} == pytest.approx(DESIGN) and '0% of the differences kept' in w.why


def test_a_member_that_stands_out_gains_and_one_that_fails_keeps_a_tenth():
    better = weigh(DESIGN, {'a': _card(.06, .001), 'b': _card(.02, .001), 'c': _card(.02, .001)}).weights
    assert better['a'][0] > 1.5*DESIGN['a'] and better['b'][0]/better['c'][0] == pytest.approx(.5)
    worse = weigh(DESIGN, {'a': _card(.03, .001), 'b': _card(.03, .001), 'c': _card(-.03, .001)}).weights
    assert worse['c'][0]/worse['b'][0] == pytest.approx(FLOOR*.6/(worse['b'][0]*0 + .3*(1 + kept([(.03, .001)]*2 + [(-.03, .001)])*2)), rel=1e-6)


def test_members_without_a_card_and_members_that_all_fail_keep_the_design():
    w = weigh(DESIGN, {'a': {}, 'b': _card(.05, .001), 'c': _card(.01, .001)}).weights
    assert w['b'][0]/w['c'][0] > .5 and w['a'][0] == pytest.approx(.1/(.1 + .3*(1 + kept([(.05, .001), (.01, .001)])*2/3) + .6*(1 - kept([(.05, .001), (.01, .001)])*2/3)))
    assert {k: v[0] for k, v in weigh(DESIGN, {k: _card(x, .001) for k, x in zip(KINDS, (-.05, -.01, -.02))}).weights.items()} == pytest.approx(DESIGN)


def test_a_horizon_is_weighed_by_its_own_card():
    cards = {k: _card(.02, .001) for k in KINDS}; cards['a']['h4'] = dict(rank_ic=.08, rank_ic_t=80.)
    w = weigh(DESIGN, cards).weights['a']
    assert w[1] > w[0] == pytest.approx(.1) and w[2] == w[0]


@given(st.lists(st.tuples(st.floats(-.1, .1), st.floats(0, .1)), max_size=6))
@settings(max_examples=100, deadline=None)
def test_kept_is_a_share(skills): assert 0 <= kept(skills) <= 1
