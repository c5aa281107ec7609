"The gate under arbitrary books and intents: monotone, NaN-proof, and never in the way of a close"
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings as hyp, strategies as st

from quantlib.core.settings import load
from quantlib.core.types import Book, Intent, Position, Reason, Regime, Side, SignalPath
from quantlib.risk.limits import MARK_AGE_MS, World, gate
from quantlib.risk.portfolio import cluster, heat

S, NOW = load(), 1_767_225_610_000
NAMES = ('ADAUSDT', 'BTCUSDT', 'ETHUSDT', 'SOLUSDT', 'XRPUSDT')
PEERS = {n: [m for m in NAMES[:4] if m != n] if n != 'XRPUSDT' else [] for n in NAMES}
WORLD = World({n: (100., NOW) for n in NAMES}, frozenset(NAMES), {n: 5. for n in NAMES}, peers=PEERS)

money = st.floats(1, 30_000, allow_nan=False)
positions = st.dictionaries(st.sampled_from(NAMES[1:]), st.tuples(st.floats(-200, 200), st.floats(0, .02)), max_size=4)
books = st.builds(lambda e, o, ps: Book(NOW, e, max(e, o), {n: Position(n, q, 100., 100., f) for n, (q, f) in ps.items()}),
                  st.floats(8_000, 20_000), st.floats(8_000, 20_000), positions)
opens = st.builds(lambda n, side, c, f: Intent('i1', 'c1', 'ADAUSDT', 'open', side, n, 100., c, SignalPath.ENSEMBLE, Regime.RANGING, f, 2*f, NOW + 1),
                  money, st.sampled_from([Side.BUY, Side.SELL]), st.floats(.5, .99), st.floats(.01, .02))
BUY = Intent('i1', 'c1', 'ADAUSDT', 'open', Side.BUY, 500., 100., .55, SignalPath.ENSEMBLE, Regime.RANGING, .015, .03, NOW + 1)
BOOK = Book(NOW, 14_000., 14_000.)


def risk(**kw): return S.model_copy(update={'risk': S.risk.model_copy(update=kw)})


@given(opens, books, st.sampled_from(['max_position_usdt', 'max_gross', 'max_leverage', 'max_cluster', 'max_heat', 'daily_drawdown', 'max_positions', 'price_collar']),
       st.floats(.05, 1))
def test_a_tighter_limit_never_allows_more(intent, book, key, share):
    tight = getattr(S.risk, key)*share
    tight = type(getattr(S.risk, key))(tight)
    assert gate(intent, book, WORLD, risk(**{key: tight}), NOW).notional_usdt <= gate(intent, book, WORLD, S, NOW).notional_usdt


@given(opens, books)
def test_what_passes_is_within_every_limit(intent, book):
    v = gate(intent, book, WORLD, S, NOW)
    if v.outcome == 'rejected':
        assert v.notional_usdt == 0 and Reason.OK not in v.reasons and v.reasons
        return
    after = replace(book, positions={**book.positions, 'ADAUSDT': Position('ADAUSDT', v.notional_usdt/100*intent.side.sign, 100., 100., intent.stop_frac)})
    eps = 1e-6
    assert S.risk.min_position_usdt <= v.notional_usdt <= min(intent.notional_usdt, S.risk.max_position_usdt)
    assert after.gross <= S.risk.max_gross*book.equity + eps
    assert heat(after, S) <= S.risk.max_heat*book.equity + eps
    assert cluster(after, 'ADAUSDT', intent.side, PEERS['ADAUSDT']) <= S.risk.max_cluster*book.equity + eps
    assert (v.outcome == 'approved') == (v.notional_usdt == intent.notional_usdt) == (v.reasons == (Reason.OK,))


@given(opens, books, st.sampled_from([math.nan, math.inf, -math.inf, 0., -1.]),
       st.sampled_from(['notional_usdt', 'price', 'confidence', 'stop_frac', 'take_frac', 'equity', 'day_open', 'mark', 'least']))
def test_no_bad_number_passes(intent, book, bad, where):
    world = WORLD
    if where in ('equity', 'day_open'): book = replace(book, **{where: bad})
    elif where == 'mark': world = replace(world, marks={**world.marks, 'ADAUSDT': (bad, NOW)})
    elif where == 'least': world = replace(world, min_notional={**world.min_notional, 'ADAUSDT': bad})
    else: intent = replace(intent, **{where: bad})
    v = gate(intent, book, world, S, NOW)
    assert v.outcome == 'rejected' and v.notional_usdt == 0
    assert {Reason.BAD_NUMBER, Reason.STALE_PRICE} & set(v.reasons)


@pytest.mark.parametrize('bad', [math.nan, math.inf])
@pytest.mark.parametrize('where', ['qty', 'mark', 'stop_frac', 'pending'])
def test_a_bad_number_in_the_book_blocks_entries(bad, where):
    p = Position('BTCUSDT', 1., 100., 100., .01)
    book = replace(BOOK, pending={'BTCUSDT': bad}) if where == 'pending' else replace(BOOK, positions={'BTCUSDT': replace(p, **{where: bad})})
    assert Reason.BAD_NUMBER in gate(BUY, book, WORLD, S, NOW).reasons


@given(books, st.booleans(), st.floats(allow_nan=True), st.integers(-10**13, 10**13), st.sets(st.sampled_from(('global', *NAMES))))
def test_a_close_is_never_blocked(book, killed, junk, now, tripped):
    world = World({}, frozenset(), {}, {k: Reason.REFUSED for k in tripped}, killed)
    book = replace(book, equity=junk, day_open=junk)
    for n, p in book.positions.items():
        side = Side.SELL if p.qty > 0 else Side.BUY
        v = gate(Intent('i', 'c', n, 'close', side, 0., junk, .3, SignalPath.FALLBACK, Regime.VOLATILE, junk, junk, 0), book, world, S, now)
        assert v.outcome == ('approved' if p.qty else 'rejected')
        assert v.reasons == ((Reason.OK,) if p.qty else (Reason.NO_POSITION,))


def test_a_close_needs_a_position_on_the_other_side():
    out = replace(BUY, action='close', side=Side.BUY, notional_usdt=0.)
    assert gate(out, BOOK, WORLD, S, NOW).reasons == (Reason.NO_POSITION,)
    long = replace(BOOK, positions={'ADAUSDT': Position('ADAUSDT', 1., 100., 100., .01)})
    assert gate(out, long, WORLD, S, NOW).reasons == (Reason.NO_POSITION,)
    assert gate(replace(out, side=Side.SELL), long, WORLD, S, NOW).outcome == 'approved'
    lost = replace(BOOK, positions={'ADAUSDT': Position('ADAUSDT', math.nan, 100., 100., .01)})
    assert gate(replace(out, side=Side.SELL), lost, WORLD, S, NOW).reasons == (Reason.BAD_NUMBER,)


def test_dust_closes_below_the_least_notional():
    dust = replace(BOOK, positions={'ADAUSDT': Position('ADAUSDT', .01, 100., 100., .01)})
    assert gate(replace(BUY, action='close', side=Side.SELL, notional_usdt=0.), dust, WORLD, S, NOW).outcome == 'approved'


CASES = {
    Reason.KILL_SWITCH: dict(world=replace(WORLD, killed=True)),
    Reason.BREAKER_GLOBAL: dict(world=replace(WORLD, tripped={'global': Reason.DAILY_DRAWDOWN})),
    Reason.BREAKER_SYMBOL: dict(world=replace(WORLD, tripped={'ADAUSDT': Reason.REFUSED})),
    Reason.DAILY_DRAWDOWN: dict(book=replace(BOOK, equity=11_900.)),
    Reason.EXPIRED: dict(now=NOW + 1),
    Reason.STALE_PRICE: dict(world=replace(WORLD, marks={'ADAUSDT': (100., NOW - MARK_AGE_MS - 1)})),
    Reason.PRICE_MOVED: dict(world=replace(WORLD, marks={'ADAUSDT': (101.1, NOW)})),
    Reason.NOT_TRADABLE: dict(world=replace(WORLD, tradable=frozenset(NAMES[1:]))),
    Reason.POSITION_EXISTS: dict(book=replace(BOOK, pending={'ADAUSDT': -100.})),
    Reason.LOW_CONFIDENCE: dict(intent=replace(BUY, confidence=.501)),
    Reason.MAX_POSITIONS: dict(book=replace(BOOK, positions={f'X{i}USDT': Position(f'X{i}USDT', .01, 100., 100., .01) for i in range(S.risk.max_positions)})),
    Reason.MAX_GROSS: dict(book=replace(BOOK, positions={'XRPUSDT': Position('XRPUSDT', -280., 100., 100., .0001)})),
    Reason.MAX_HEAT: dict(book=replace(BOOK, positions={'XRPUSDT': Position('XRPUSDT', -100., 100., 100., .09)})),
    Reason.MAX_CLUSTER: dict(book=replace(BOOK, positions={'BTCUSDT': Position('BTCUSDT', 168., 100., 100., .001)})),
    Reason.MIN_NOTIONAL: dict(world=replace(WORLD, min_notional={'ADAUSDT': 600.})),
    Reason.TARGET_TOO_SMALL: dict(intent=replace(BUY, notional_usdt=20.)),
    Reason.FALLBACK_BUDGET: dict(intent=replace(BUY, path=SignalPath.FALLBACK, notional_usdt=150.), book=replace(BOOK, fallback_used=S.strategy.fallback_per_day)),
}


@pytest.mark.parametrize('reason', CASES, ids=str)
def test_every_reason_is_given_where_it_applies(reason):
    a = dict(intent=BUY, book=BOOK, world=WORLD, settings=S, now=NOW) | CASES[reason]
    v = gate(**a)
    assert reason in v.reasons and v.outcome == 'rejected'


def test_without_a_cause_it_is_approved():
    assert gate(BUY, BOOK, WORLD, S, NOW).reasons == (Reason.OK,)


def test_all_reasons_are_listed_at_once():
    v = gate(replace(BUY, confidence=.501, price=90.), replace(BOOK, equity=11_000.), replace(WORLD, killed=True, tripped={'global': Reason.FLATTEN, 'ADAUSDT': Reason.REFUSED}), S, NOW + 5)
    assert {Reason.KILL_SWITCH, Reason.BREAKER_GLOBAL, Reason.BREAKER_SYMBOL, Reason.DAILY_DRAWDOWN, Reason.EXPIRED, Reason.PRICE_MOVED, Reason.LOW_CONFIDENCE} <= set(v.reasons)


def test_a_fallback_is_cut_to_its_ceiling():
    v = gate(replace(BUY, path=SignalPath.FALLBACK, confidence=.521), BOOK, WORLD, S, NOW)
    assert (v.outcome, v.notional_usdt, v.reasons) == ('reduced', S.strategy.fallback_usdt, (Reason.MAX_POSITION,))


def test_unknown_peers_count_everything():
    book = replace(BOOK, positions={'XRPUSDT': Position('XRPUSDT', 167., 100., 100., .0001)})
    assert gate(BUY, book, WORLD, S, NOW).outcome == 'approved'
    assert Reason.MAX_CLUSTER in gate(BUY, book, replace(WORLD, peers={}), S, NOW).reasons


def test_an_unknown_action_raises():
    with pytest.raises(ValueError, match='flip'): gate(replace(BUY, action='flip'), BOOK, WORLD, S, NOW)
