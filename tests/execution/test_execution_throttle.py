"Budgets under arbitrary traffic: no minute too full, exits never without their part, silence when the exchange asks for it"
import math
from collections import Counter
from decimal import Decimal
from types import SimpleNamespace

from hypothesis import given, strategies as st
from quantlib.core.clock import DAY, HOUR, MINUTE
from quantlib.core.settings import load
from quantlib.execution.throttle import BAN_MS, LIMIT, LONGEST_MS, Budget, Pace, duplicate, entries_latch

S, NOW = load(), 1_767_225_600_000
SYMBOLS = ('AUSDT', 'BUSDT', 'CUSDT')
traffic = st.lists(st.tuples(st.integers(0, 9_000), st.sampled_from(SYMBOLS), st.booleans()), max_size=300)
budgets = st.tuples(st.integers(10, 60), st.integers(5, 30), st.floats(.1, .9))


def run(shape, calls):
    "Each granted call as (time, symbol, essential)"
    b, now, out = Budget(*shape), NOW, []
    for step, symbol, essential in calls:
        now += step
        if b.take(now, symbol, essential): out.append((now, symbol, essential))
    return out


@given(budgets, traffic)
def test_no_window_holds_more_than_the_budget(shape, calls):
    total, each, reserve = shape
    sent = run(shape, calls)
    for end, *_ in sent:
        window = [x for x in sent if end - MINUTE < x[0] <= end]
        assert len(window) <= total
        assert max(Counter(s for _, s, _ in window).values()) <= each
        entries = [x for x in window if not x[2]]
        assert len(entries) <= math.floor(total*(1 - reserve)) and max(Counter(s for _, s, _ in entries).values(), default=0) <= math.floor(each*(1 - reserve))


@given(budgets, traffic)
def test_exits_always_have_their_reserve(shape, calls):
    "Whatever entries did, as many exits pass as the reserve holds"
    total, each, reserve = shape
    b, now = Budget(*shape), NOW
    for step, symbol, _ in calls: now += step; b.take(now, symbol, False)
    exits = sum(b.take(now, 'AUSDT', True) for _ in range(total))
    assert exits >= min(total - math.floor(total*(1 - reserve)), each - math.floor(each*(1 - reserve)))


@given(budgets, traffic)
def test_what_is_left_is_what_passes(shape, calls):
    b, now = Budget(*shape), NOW
    for step, symbol, essential in calls:
        now += step
        left = b.left(now, symbol)
        assert b.take(now, symbol, essential) == (left[essential] > 0) and 0 <= left[0] <= left[1]


def test_a_clock_that_runs_back_frees_nothing():
    b = Budget(10, 10, .2)
    assert sum(b.take(NOW, 'AUSDT', True) for _ in range(20)) == 10
    assert not b.take(NOW - DAY, 'AUSDT', True) and not b.take(NOW + MINUTE - 1, 'AUSDT', True) and b.take(NOW + MINUTE, 'AUSDT', True)


def outcome(kind='throttled', code=-1003, path='', retry_after=None, until=None): return SimpleNamespace(kind=kind, code=code, path=path, retry_after=retry_after, until=until)


@given(st.lists(st.tuples(st.integers(0, 50_000), st.integers(0, 3_000)), max_size=40), st.booleans())
def test_weight_keeps_its_reserve(said, essential):
    p, now, used = Pace(), NOW, {}
    for step, weight in said:
        now += step
        p.told({'X-Mbx-Used-Weight-1m': str(weight)}, now)
        used[now//MINUTE] = max(used.get(now//MINUTE, 0), weight)
        assert p.may(now, essential) == (used[now//MINUTE] < (LIMIT if essential else .8*LIMIT))
    assert p.may(now + MINUTE)


def test_silence_when_it_is_asked_for():
    def after(o):
        p = Pace(); p.told(o, NOW); return p
    p = after(outcome(retry_after=7_000))
    assert not p.may(NOW + 6_999, True) and p.may(NOW + 7_000)
    assert after(outcome()).until == NOW + MINUTE, 'a 429 without a time ends with the minute'
    assert after(outcome(path='banned', retry_after=5_000)).until == NOW + BAN_MS, 'no ban is shorter'
    until = NOW + 600_000
    assert after(outcome(path='banned', until=until)).until == until
    busy = after(outcome(code=-1008))
    assert not busy.may(NOW) and busy.may(NOW, True) and busy.may(NOW + 1_000)
    assert after(outcome('refused', -2019)).may(NOW)


@given(st.integers(0, 10**12), st.sampled_from(['banned', '']))
def test_an_absurd_time_does_not_close_for_ever(retry, path):
    p = Pace(); p.told(outcome(path=path, retry_after=retry), NOW)
    assert p.may(NOW + (LONGEST_MS if path else MINUTE))


@given(st.dictionaries(st.sampled_from(['x-mbx-used-weight-1m', 'Retry-After', 'Date']), st.one_of(st.text(max_size=20), st.integers(), st.none(), st.floats())))
def test_garbage_in_headers_is_ignored(headers): assert isinstance((lambda p: (p.told(headers, NOW), p.may(NOW))[1])(Pace()), bool)


@given(st.lists(st.tuples(st.integers(0, 3*HOUR), st.sampled_from(SYMBOLS)), max_size=120))
def test_entries_never_pass_their_latch(steps):
    s = S.model_copy(update={'risk': S.risk.model_copy(update={'entries_day': 20})})
    now, sent, latched = NOW, [], set()
    for step, symbol in steps:
        now += step
        scope = entries_latch(sent, symbol, now, s)
        if scope: latched.add(scope)
        if not latched & {symbol, 'global'}: sent.append((now, symbol))
        assert len([a for a, _ in sent if a > now - DAY]) <= 20
        assert max(Counter(x for a, x in sent if a > now - HOUR).values(), default=0) <= s.risk.symbol_entries_hour


def test_a_duplicate_is_the_same_number_however_it_is_written():
    sent = [(NOW, 'AUSDT', 'BUY', Decimal('1.50'))]
    ask = lambda qty, at=NOW, s=S, side='BUY', symbol='AUSDT': duplicate(sent, symbol, side, Decimal(qty), at, s)
    assert ask('1.5') and ask('1.500', NOW + 59_999)
    assert not ask('1.51') and not ask('1.5', side='SELL') and not ask('1.5', symbol='BUSDT') and not ask('1.5', NOW + 60_000)
    assert not ask('1.5', s=S.model_copy(update={'execution': S.execution.model_copy(update={'duplicate_s': 0})}))
