"Whatever happens to an order, it never goes where it may not go"
from decimal import Decimal

import pytest
from dataclasses import replace
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quantlib.core.types import Intent, Reason, Regime, Side, SignalPath, Verdict
from quantlib.execution.client import Garbled, Outcome
from quantlib.execution.orders import (ALGO_STATUSES, LIVE, MOVES, STATUSES, Search, State, absent, close_of, denied, entry_of, failed,
    from_row, ghosts, guard_of, heard, is_dead, missed, move, request, room, seen, steady, stuck, to_row, traded, untraded)

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


@settings(deadline=None, max_examples=250)
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
        assert from_row(to_row(o)) == replace(o, triggered_at=None)


def test_no_way_leads_back_to_sending():
    assert all(State.SENDING not in ends for ends in MOVES.values())


looks = st.lists(st.tuples(st.sampled_from(['absent', 'denied', 'untraded', 'steady', 'moved', 'mine']), st.integers(0, 100_000)), max_size=25)

@settings(deadline=None, max_examples=300)
@given(looks, st.integers(500, 10_000), st.booleans(), st.booleans())
def test_death_needs_the_whole_proof(story, window, algo, ready):
    o = failed(STOP if algo else ENTRY, Outcome('unknown', 0, ''), NOW)
    s, now, log = Search(), NOW + 12_000*ready, []
    for what, wait in story:
        now += wait; log.append((what, now))
        s = {'absent': lambda: absent(s, now), 'denied': lambda: denied(s, now), 'untraded': lambda: untraded(s, now), 'steady': lambda: steady(s, o, Decimal(0), now),
            'moved': lambda: steady(s, o, Decimal('0.05'), now), 'mine': lambda: steady(s, o, o.qty if o.side == 'BUY' else -o.qty, now)}[what]()
    if not is_dead(o, s, now, window): return
    closed = NOW + window + 1000
    told = [t for w, t in log if w in ('absent', 'denied')]
    moved = max([t for w, t in log if w in ('moved', 'mine')], default=0)
    calm = [t for w, t in log if w == 'steady' and t >= moved and t > NOW + 11_000]
    assert now > closed and len(told) >= 3 and told[-1] > closed
    assert told[-1] - told[0] >= (45*60_000 if algo and not any(w == 'denied' and t > closed for w, t in log) else 30_000)
    assert any(w == 'untraded' and t > closed for w, t in log) and calm[-1] - calm[0] >= 10_000 and calm[0] > closed


def proof(algo, end=60_000, **kw):
    "A search that proves death `end` ms after sending"
    s = Search(times=4, first=NOW + 10_000, last=NOW + end, untraded=NOW + end, steady=(NOW + 20_000, NOW + end), denied=NOW + end if algo else 0)
    return replace(s, **kw)


@pytest.mark.parametrize('algo', (False, True))
def test_each_piece_of_the_proof_is_needed(algo):
    o = failed(STOP if algo else ENTRY, Outcome('unknown', 0, ''), NOW)
    assert is_dead(o, proof(algo), NOW + 60_000, 3000)
    for lack in (dict(times=2), dict(first=NOW + 31_000), dict(last=NOW + 3_000), dict(untraded=0), dict(untraded=NOW + 4_000), dict(steady=()), dict(steady=(NOW + 51_000, NOW + 60_000)), dict(steady=(NOW + 1_000, NOW + 60_000)), dict(alive='exists')):
        assert not is_dead(o, proof(algo, **lack), NOW + 60_000, 3000), lack
    assert not is_dead(o, proof(algo), NOW + 4_000, 3000)
    assert not is_dead(replace(o, filled=Decimal('0.1')), proof(algo), NOW + 60_000, 3000)
    if algo: assert not is_dead(o, proof(algo, denied=0), NOW + 60_000, 3000) and is_dead(o, proof(algo, 50*60_000, denied=0), NOW + 50*60_000, 3000)


def test_a_duplicate_name_is_a_sign_of_life():
    o = failed(ENTRY, Outcome('unknown', -4116, '', 'exists'), NOW)
    assert o.state == State.UNKNOWN and not is_dead(o, proof(False, alive='exists'), NOW + 60_000, 3000)


def test_an_acknowledged_stop_survives_forgetful_reads():
    o, s, now = seen(STOP, {'algoId': 7, 'algoStatus': 'NEW'}, NOW), Search(), NOW
    for _ in range(88):
        now += 30_000; s = absent(s, now)
        assert missed(o, s, now) is o
    assert missed(o, absent(s, now + 120_000), now + 120_000).state == State.UNKNOWN
    assert missed(seen(ENTRY, {'orderId': 7, 'status': 'NEW', 'executedQty': '0'}, NOW), absent(Search(), NOW), NOW).state == State.UNKNOWN


def test_never_more_than_two_stops_and_trailing_goes_on():
    unknown, known = failed(STOP, Outcome('unknown', 0, ''), NOW), seen(replace(STOP, id='ql-i0123456789abcdef-stop1'), {'algoId': 7, 'algoStatus': 'NEW'}, NOW)
    assert room([]) and room([unknown]) and not room([unknown, known]) and not room([unknown, unknown])
    assert ghosts([unknown, known]) == [unknown] and ghosts([unknown, unknown]) == [] and ghosts([unknown, replace(known, triggered_at=NOW)]) == []
    dead = move(unknown, State.DEAD, NOW)
    assert room([dead, known]) and dead.state == State.DEAD


# what the stream says of one order, in the order in which it happened
def otu(X, z, x='TRADE', i=900, c=''): return dict(e='ORDER_TRADE_UPDATE', E=NOW, T=NOW, o=dict(s='ETHUSDT', c=c, i=i, X=X, x=x, z=z))
def alg(X, **kw): return dict(e='ALGO_UPDATE', E=NOW, T=NOW, o=dict(caid=STOP.id, aid=41, X=X, s='ETHUSDT', ai='', aq='0') | kw)

def entry_story(parts, end):
    out, z = [otu('NEW', '0', 'NEW', c=ENTRY.id)], Decimal(0)
    for p in parts:
        z += Decimal('0.05')*p
        out.append(otu('FILLED' if z == ENTRY.qty else 'PARTIALLY_FILLED', str(z), c=ENTRY.id))
    return (out + [otu(end, str(z), end, c=ENTRY.id)] if z < ENTRY.qty and end else out), z

def stop_story(fate):
    if fate == 'canceled': return [alg('NEW'), alg('CANCELED')], State.CANCELED
    if fate == 'expired': return [alg('NEW'), alg('EXPIRED', rm='Position is closed')], State.EXPIRED
    if fate == 'rejected': return [alg('NEW'), alg('TRIGGERING', tt=NOW), alg('REJECTED', rm='Margin is insufficient.')], State.REFUSED
    fired = [alg('NEW'), alg('TRIGGERING', tt=NOW), alg('TRIGGERED', ai='900', tt=NOW), otu('NEW', '0', 'NEW', c='x')]
    return fired + [otu('PARTIALLY_FILLED', '0.1'), otu('FILLED', '0.2'), alg('FINISHED', ai='900', aq='0.2')], State.FILLED


@settings(deadline=None, max_examples=250)
@given(st.data())
def test_events_in_any_order_and_number_end_in_one_place(data):
    parts = data.draw(st.sampled_from([(), (1,), (1, 1), (4,), (1, 3), (2, 1, 1)]))
    if data.draw(st.booleans()): o, (story, z), algo = ENTRY, entry_story(parts, data.draw(st.sampled_from(['CANCELED', 'EXPIRED', None]))), False
    else: o, (story, end), algo = STOP, stop_story(data.draw(st.sampled_from(['canceled', 'expired', 'rejected', 'filled']))), True
    straight = o
    for e in story: straight = heard(straight, e, NOW)
    jumble = data.draw(st.permutations(story + data.draw(st.lists(st.sampled_from(story), max_size=4))))
    for start in (o, failed(o, Outcome('unknown', 0, ''), NOW)):
        got, done = start, False
        for e in jumble:
            before, got = got, heard(got, e, NOW)
            assert got.filled >= before.filled and (got.state == before.state or got.state in MOVES[before.state])
            if before.state not in LIVE: assert got.state not in LIVE or (before.state == State.REFUSED and got.filled)
        if not algo: assert got.filled == z and got.live == straight.live and (straight.state != State.FILLED or got.state == State.FILLED)
        else:
            for e in story: got = heard(got, e, NOW)   # its child is known by number only after TRIGGERED was heard
            assert got.live is False and got.state == end
        assert heard(got, story[-1], NOW) == got


@settings(deadline=None, max_examples=250)
@given(st.sampled_from([ENTRY, STOP]), st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.sampled_from(['ORDER_TRADE_UPDATE', 'ALGO_UPDATE', 'FILLED', 'NEW', 'ETHUSDT', STOP.id, ENTRY.id, '0.1', 'NaN']),
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.sampled_from(['e', 'o', 's', 'c', 'i', 'X', 'z', 'caid', 'aid', 'ai', 'tt', 'rm', 'aq']), c, max_size=8), max_leaves=12))
def test_no_event_hurts(o, event):
    got = heard(o, event if isinstance(event, dict) else {'e': 'ALGO_UPDATE', 'o': event}, NOW)
    assert got.filled >= o.filled and got.filled <= o.qty and (got.state == o.state or got.state in MOVES[o.state])


@pytest.mark.parametrize('X', ([], {}, None, 7, True, 'NEW'))
@pytest.mark.parametrize('field', ('X', 'i', 'z', 'c', 's'))
def test_a_field_of_the_wrong_type_is_no_news(X, field):
    fired = heard(heard(STOP, alg('NEW'), NOW), alg('TRIGGERED', ai='900'), NOW)
    e = otu('FILLED', '0.2'); e['o'][field] = X
    assert heard(fired, e, NOW).state in (State.ACKED, State.FILLED) and heard(ENTRY, e, NOW).state in (State.SENDING, State.FILLED)


def test_a_stop_that_hangs_at_its_trigger_is_seen():
    o = heard(heard(STOP, alg('NEW'), NOW), alg('TRIGGERING', tt=NOW + 1000), NOW + 1000)
    assert o.firing and not stuck(o, NOW + 4000) and stuck(o, NOW + 4001)
    assert not stuck(heard(heard(o, alg('TRIGGERED', ai='900'), NOW + 5000), otu('PARTIALLY_FILLED', '0.1'), NOW + 5000), NOW + 60_000)
    assert seen(STOP, {'algoId': 41, 'algoStatus': 'TRIGGERING', 'triggerTime': NOW - 9000}, NOW).triggered_at == NOW - 9000
    assert heard(o, alg('REJECTED', rm='Margin is insufficient.'), NOW).error == 'rejected at its trigger: Margin is insufficient.'


class OneIntent(RuleBasedStateMachine):
    """An exchange that books an order at most once, a stream that repeats and reorders, replies that get lost: whatever happens,
    one intent fills at most once (I1), death is never declared of an order that lives, and what is known in the end is true"""
    def __init__(self):
        super().__init__()
        self.o, self.now, self.search, self.stream = replace(ENTRY, sent_at=NOW), NOW, Search(), []
        self.booked, self.pending, self.filled, self.sent, self.open = False, False, Decimal(0), 0, False

    @initialize(reaches=st.booleans(), late=st.booleans(), told=st.booleans())
    def send(self, reaches, late, told):
        self.sent += 1
        self.pending = reaches and late
        if reaches and not late: self.book()
        if told and self.booked: self.o = seen(self.o, self.row(), self.now)
        else: self.o = failed(self.o, Outcome('unknown', 0, 'no reply'), self.now)

    def row(self): return dict(orderId=900, status='FILLED' if self.filled == ENTRY.qty else 'PARTIALLY_FILLED' if self.open else 'EXPIRED', executedQty=str(self.filled))
    def book(self): self.booked, self.pending, self.open, self.filled = True, False, True, Decimal('0.05'); self.tell()  # a market order trades at once, if not whole
    def tell(self): r = self.row(); self.stream.append(otu(r['status'], r['executedQty'], c=ENTRY.id))

    @rule(ms=st.integers(1, 40_000))
    def wait(self, ms):
        self.now += ms
        if self.pending and self.now > NOW + 4_000: self.pending = False  # the engine refuses what is older than the window

    @precondition(lambda self: self.pending)
    @rule()
    def arrive(self): self.book()

    @precondition(lambda self: self.open and self.filled < ENTRY.qty)
    @rule(n=st.integers(1, 4))
    def trade(self, n): self.filled = min(ENTRY.qty, self.filled + n*Decimal('0.05')); self.open = self.filled < ENTRY.qty; self.tell()

    @precondition(lambda self: self.open)
    @rule()
    def expire(self): self.open = False; self.tell()

    @precondition(lambda self: self.stream)
    @rule(data=st.data())
    def hear(self, data): self.o = heard(self.o, data.draw(st.sampled_from(self.stream)), self.now)

    @rule(lies=st.booleans())
    def ask(self, lies):
        if self.booked and not lies: self.o = seen(self.o, self.row(), self.now)
        else: self.search = absent(self.search, self.now); self.o = missed(self.o, self.search, self.now)

    @rule()
    def read(self):
        delta = self.filled - self.o.filled
        self.search = steady(self.search, self.o, delta, self.now)
        if not delta: self.search = untraded(self.search, self.now)
        if is_dead(self.o, self.search, self.now, 3000): self.o = move(self.o, State.DEAD, self.now)

    @invariant()
    def true(self):
        assert self.sent <= 1 and self.o.filled <= self.filled <= ENTRY.qty
        if self.o.state == State.DEAD: assert not self.filled and not self.pending
        if self.o.state in (State.FILLED, State.PARTIAL): assert self.booked

    def teardown(self):
        "A quiet tail: everything is heard and read, and the journal says what is"
        if self.pending: self.pending = False
        for e in self.stream: self.o = heard(self.o, e, self.now)
        if self.booked: self.o = seen(self.o, self.row(), self.now)
        for _ in range(6):
            self.now += 10_000
            if not self.booked: self.search = absent(self.search, self.now)
            self.read()
        assert self.o.filled == self.filled and (self.o.live is self.open) and (self.booked or self.o.state == State.DEAD)

OneIntent.TestCase.settings = settings(max_examples=120, stateful_step_count=20, deadline=None)
test_one_intent_fills_once = OneIntent.TestCase


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
