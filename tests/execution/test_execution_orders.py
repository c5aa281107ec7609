"Whatever happens to an order, it never goes where it may not go"
from decimal import Decimal

import pytest
from hypothesis import given, settings, strategies as st

from quantlib.core.types import Intent, Reason, Regime, Side, SignalPath, Verdict
from quantlib.execution.client import Garbled, Outcome
from quantlib.execution.orders import (ALGO_STATUSES, MOVES, STATUSES, Search, State, absent, close_of, entry_of, failed, from_row, guard_of, is_dead, move, request, seen, to_row, traded)

NOW = 1_746_835_200_000
INTENT = Intent('i0123456789abcdef', 'c0', 'ETHUSDT', 'open', Side.BUY, 900., 4000., .6, SignalPath.ENSEMBLE, Regime.RANGING, .01, .03, NOW + 1000)
ENTRY = entry_of(INTENT, Verdict(INTENT.id, 'approved', 900., ('ok',), NOW), Decimal('0.2'), NOW)
STOP = guard_of(ENTRY, 'stop', 0, Decimal('0.2'), Decimal('3950'), Reason.PROTECT, NOW)

events = st.one_of(
    st.tuples(st.just('failed'), st.sampled_from(['refused', 'unknown', 'throttled', 'clock', 'gone'])),
    st.tuples(st.just('seen'), st.sampled_from([*STATUSES, *ALGO_STATUSES, 'WHAT', None, 7])),
    st.tuples(st.just('traded'), st.integers(0, 4)),
    st.tuples(st.just('dead'), st.none()))


def happen(o, what, x):
    if what == 'failed': return failed(o, Outcome(x, -1, 'text'), NOW)
    if what == 'seen': return seen(o, {'orderId': 1, 'algoId': 1, 'status': x, 'algoStatus': x, 'executedQty': '0.1'}, NOW)
    if what == 'traded': return traded(o, Decimal('0.05')*x, NOW)
    return move(o, State.DEAD, NOW)


@settings(deadline=None, max_examples=500)
@given(st.sampled_from([ENTRY, STOP]), st.lists(events, max_size=12))
def test_any_story_keeps_the_rules(o, story):
    for what, x in story:
        before = o
        try: o = happen(o, what, x)
        except Garbled: continue
        assert o.state == before.state or o.state in MOVES[before.state]
        assert o.state != State.SENDING or before.state == State.SENDING
        assert o.filled >= before.filled
        assert (o.id, o.qty, o.side, o.trigger) == (before.id, before.qty, before.side, before.trigger)
        assert from_row(to_row(o)) == o


def test_no_way_leads_back_to_sending():
    assert all(State.SENDING not in ends for ends in MOVES.values())


@settings(deadline=None)
@given(st.lists(st.integers(0, 100_000), max_size=8), st.integers(500, 10_000), st.booleans())
def test_death_needs_window_count_and_spread(waits, window, algo):
    o = failed(STOP if algo else ENTRY, Outcome('unknown', 0, ''), NOW)
    s, now = Search(), NOW
    for w in waits: now += w; s = absent(s, now)
    if is_dead(o, s, now, window):
        assert len(waits) >= 3 and now > NOW + window + 1000 and sum(waits[1:]) >= (45*60_000 if algo else 30_000)


def test_only_entries_can_open():
    for o in (STOP, close_of(ENTRY, 0, Decimal('0.2'), Reason.FLATTEN, NOW), guard_of(ENTRY, 'half', 0, Decimal('0.1'), Decimal('4200'), Reason.PROTECT, NOW)):
        assert request(o)[2].get('reduceOnly') == 'true' and o.side != ENTRY.side
    p = request(guard_of(ENTRY, 'take', 0, Decimal(0), Decimal('4200'), Reason.PROTECT, NOW))[2]
    assert p['closePosition'] == 'true' and 'quantity' not in p and 'reduceOnly' not in p


def test_everything_sent_is_text_under_our_name():
    for o in (ENTRY, STOP):
        name, needs, p = request(o)
        assert all(isinstance(v, str) for v in p.values())
        assert o.id in (p.get('newClientOrderId'), p.get('clientAlgoId')) and o.id.startswith('ql-') and len(o.id) <= 36


@pytest.mark.parametrize('bad', (Decimal(0), Decimal(-1)))
def test_no_order_without_a_positive_number(bad):
    with pytest.raises(ValueError): guard_of(ENTRY, 'stop', 0, bad, Decimal('3950'), Reason.PROTECT, NOW)
    with pytest.raises(ValueError): guard_of(ENTRY, 'stop', 0, Decimal(1), bad, Reason.PROTECT, NOW)
    with pytest.raises(ValueError): close_of(ENTRY, 0, bad, Reason.FLATTEN, NOW)
    with pytest.raises(ValueError): entry_of(INTENT, Verdict(INTENT.id, 'rejected', 0., ('ok',), NOW), Decimal(1), NOW)
