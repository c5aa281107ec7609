"The plan under arbitrary positions and orders: idempotent, tightening only, and honest about what protects"
import math
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from quantlib.core.settings import load
from quantlib.core.types import Position, Reason, Regime, Side
from quantlib.exits.plan import Resting, covered, diff, wanted
from quantlib.risk.sizing import stops

X, MOVE = load().exits, .0005
qtys = st.floats(1e-3, 1e6).flatmap(lambda q: st.sampled_from([q, -q]))
natrs, regimes = st.floats(1e-4, .1), st.sampled_from(list(Regime))
gains = st.floats(-.009, .045)  # best excursion since the entry, as a gain


def make(qty, entry, natr, regime):
    stop, take = stops(natr, regime, X)
    return Position('ADAUSDT', qty, entry, entry, stop), take


def best(p, gain): return p.entry*(1 + gain*(1 if p.qty > 0 else -1))


def settle(wants, resting, move=MOVE, n=[0]):
    place, cancel = diff(wants, resting, move)
    new = []
    for w in place:
        n[0] += 1
        new.append(Resting(f'o{n[0]}', w.role, w.side, w.qty, w.trigger, w.close_position))
    return [r for r in [*resting, *new] if r.id not in {c.id for c in cancel}]


orders = st.lists(st.builds(lambda i, role, side, q, t, cp, live: Resting(i, role, side, None if cp else q, t, cp, live), st.uuids().map(str), st.sampled_from(['stop', 'take', 'half', 'odd']),
                            st.sampled_from([Side.BUY, Side.SELL]), st.floats(.1, 100), st.floats(50, 150), st.booleans(), st.booleans()), max_size=6, unique_by=lambda r: r.id)


@given(qtys, st.floats(1e-6, 1e6), natrs, regimes, gains, st.booleans())
def test_a_position_always_wants_a_stop_and_a_target(qty, entry, natr, regime, gain, half_done):
    p, take = make(qty, entry, natr, regime)
    wants = {w.role: w for w in wanted(p, best(p, gain), half_done, X, take)}
    out, sign = (Side.SELL, 1) if qty > 0 else (Side.BUY, -1)
    assert {'stop', 'take'} <= set(wants) and ('half' in wants) == (take > X.half_at and not half_done)
    assert all(w.side == out and w.trigger > 0 for w in wants.values())
    assert (wants['stop'].qty, wants['stop'].close_position) == (abs(qty), False)
    assert (wants['take'].qty, wants['take'].close_position) == (None, True)
    assert (best(p, gain) - wants['stop'].trigger)*sign > 0 < (wants['take'].trigger - entry)*sign
    if 'half' in wants: assert wants['half'].qty == abs(qty)/2


@given(qtys, natrs, regimes, gains, st.booleans(), orders)
def test_applying_the_difference_leaves_none(qty, natr, regime, gain, half_done, resting):
    p, take = make(qty, 100., natr, regime)
    wants = wanted(p, best(p, gain), half_done, X, take)
    after = settle(wants, resting)
    assert diff(wants, after, MOVE) == ((), ())
    assert sorted(r.role for r in after) == sorted(w.role for w in wants)


@given(qtys, natrs, regimes, st.lists(gains, min_size=1, max_size=15))
def test_the_resting_stop_never_loosens(qty, natr, regime, looks):
    p, take = make(qty, 100., natr, regime); sign = 1 if qty > 0 else -1
    resting, last = [], None
    for gain in looks:  # in any order: the best price may be forgotten
        resting = settle(wanted(p, best(p, gain), False, X, take), resting)
        now = next(r.trigger for r in resting if r.role == 'stop')
        assert last is None or (now - last)*sign >= 0
        last = now


@given(qtys, natrs, regimes, gains)
def test_shrinking_keeps_the_tighter_price(qty, natr, regime, gain):
    p, take = make(qty, 100., natr, regime)
    resting = settle(wanted(p, best(p, gain), False, X, take), [])
    stop = next(r for r in resting if r.role == 'stop')
    half = replace(p, qty=qty/2)
    after = settle(wanted(half, 100., True, X, take), resting)
    new = next(r for r in after if r.role == 'stop')
    assert new.qty == abs(qty)/2 and new.trigger == stop.trigger and not any(r.role == 'half' for r in after)


@given(qtys, natrs, regimes, gains)
def test_a_new_stop_is_placed_beside_the_old(qty, natr, regime, gain):
    "Place first, cancel after: between the two the position is covered"
    p, take = make(qty, 100., natr, regime)
    resting = settle(wanted(p, 100., False, X, take), [])
    place, cancel = diff(wanted(p, best(p, gain), False, X, take), resting, MOVE)
    assert len([w for w in place if w.role == 'stop']) == len([r for r in cancel if r.role == 'stop'])
    mark = best(p, gain)
    assert covered(p, resting, mark)[0] == 'protected'


def test_small_moves_are_not_worth_an_order():
    p, take = make(10., 100., .012, Regime.TRENDING)
    resting = settle(wanted(p, 103., False, X, take), [])
    assert diff(wanted(p, 103.04, False, X, take), resting, MOVE) == ((), ())
    assert len(diff(wanted(p, 103.2, False, X, take), resting, MOVE)[0]) == 1


def test_a_flat_position_wants_nothing_and_everything_goes():
    p, take = make(10., 100., .012, Regime.TRENDING)
    resting = settle(wanted(p, 100., False, X, take), [])
    assert diff(wanted(replace(p, qty=0.), 100., False, X, take), resting, MOVE) == ((), tuple(resting))


def test_a_forgotten_stop_distance_is_the_widest():
    p = Position('ADAUSDT', 10., 100., 100.)
    assert math.isclose(wanted(p, 100., False, X, .03)[0].trigger, 100*(1 - X.stop_max))


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_a_quantity_that_is_no_number_raises(bad):
    with pytest.raises(ValueError, match='ADAUSDT'): wanted(Position('ADAUSDT', bad, 100., 100., .01), 100., False, X, .03)


@given(qtys, st.floats(50, 150), orders)
def test_protected_means_that_live_stops_cover_all_of_it(qty, mark, resting):
    p = Position('ADAUSDT', qty, 100., mark, .01); out, sign = (Side.SELL, 1) if qty > 0 else (Side.BUY, -1)
    good = [r for r in resting if r.role == 'stop' and r.live and r.side == out and (mark - r.trigger)*sign > 0]
    enough = any(r.close_position for r in good) or sum(r.qty for r in good if r.qty) >= abs(qty)*(1 - 1e-9)
    state, why = covered(p, resting, mark)
    assert (state == 'protected') == bool(good and enough) == (why == Reason.OK)


@given(qtys, natrs, regimes, st.sampled_from([math.nan, math.inf, 0., -5.]))
def test_no_mark_no_protection(qty, natr, regime, mark):
    p, take = make(qty, 100., natr, regime)
    assert covered(p, settle(wanted(p, 100., False, X, take), []), mark) == ('naked', Reason.BAD_NUMBER)


@pytest.mark.parametrize('trigger', [math.nan, math.inf, -97., 0.])
def test_the_predecessors_negative_stop_protects_nothing(trigger):
    p = Position('ADAUSDT', 10., 100., 100., .01)
    assert covered(p, [Resting('x', 'stop', Side.SELL, 10., trigger)], 100.) == ('naked', Reason.PROTECT)
