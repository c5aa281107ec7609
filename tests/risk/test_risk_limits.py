"The gate under arbitrary books and intents: monotone, NaN-proof, and never in the way of a close"
import math
from dataclasses import replace

import pytest
from hypothesis import example, given, settings as hyp, strategies as st

from quantlib.core.settings import load
from quantlib.core.types import Book, Intent, Position, Reason, Regime, Side, SignalPath
from quantlib.risk.limits import GATE, MARK_AGE_MS, SETTING, Tier, World, cushion, gate, reasons_table, tiers_of
from quantlib.risk.portfolio import cluster, heat

S, NOW = load(overrides={'risk': {'max_net': 2.0}}), 1_767_225_610_000
NAMES = ('ADAUSDT', 'BTCUSDT', 'ETHUSDT', 'SOLUSDT', 'XRPUSDT')
PEERS = {n: [m for m in NAMES[:4] if m != n] if n != 'XRPUSDT' else [] for n in NAMES}
TIERS = (Tier(50, 50_000., .01, 0.), Tier(10, 600_000., .05, 2_000.), Tier(2, 5e6, .25, 122_000.))
WORLD = World({n: (100., NOW) for n in NAMES}, frozenset(NAMES), {n: 5. for n in NAMES}, peers=PEERS, volumes={n: 1e6 for n in NAMES}, moves={n: .001 for n in NAMES},
              tiers={n: TIERS for n in (*NAMES, *(f'X{i}USDT' for i in range(20)))}, health=())

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
    Reason.MAX_NET: dict(settings=risk(max_net=.0001)),
    Reason.MAX_HEAT: dict(book=replace(BOOK, positions={'XRPUSDT': Position('XRPUSDT', -100., 100., 100., .09)})),
    Reason.MAX_CLUSTER: dict(book=replace(BOOK, positions={'BTCUSDT': Position('BTCUSDT', 168., 100., 100., .001)})),
    Reason.MIN_NOTIONAL: dict(world=replace(WORLD, min_notional={'ADAUSDT': 600.})),
    Reason.TARGET_TOO_SMALL: dict(intent=replace(BUY, notional_usdt=20.)),
    Reason.FAST_MARKET: dict(world=replace(WORLD, moves={'ADAUSDT': -S.risk.fast_move})),
    Reason.MAX_VOLUME: dict(world=replace(WORLD, volumes={'ADAUSDT': 1_000.})),
    Reason.BRACKET: dict(world=replace(WORLD, tiers={'ADAUSDT': (Tier(20, 50., .01, 0.), Tier(4, 1e6, .02, .5))})),
    Reason.STOP_BEYOND_LIQUIDATION: dict(world=replace(WORLD, tiers={'ADAUSDT': (Tier(20, 1e6, .99, 0.),)}), book=replace(BOOK, equity=480., day_open=480.), settings=risk(max_heat=.2, max_gross=2., max_cluster=2.)),
    Reason.DUPLICATE: dict(world=replace(WORLD, locked={'ADAUSDT': (Reason.DUPLICATE,)})),
    Reason.TOO_MANY_ENTRIES: dict(world=replace(WORLD, locked={'ADAUSDT': (Reason.TOO_MANY_ENTRIES,)})),
    Reason.UNKNOWN_PENDING: dict(world=replace(WORLD, locked={'ADAUSDT': (Reason.UNKNOWN_PENDING,)})),
    **{r: dict(world=replace(WORLD, health=(r,))) for r in (Reason.NOT_RECONCILED, Reason.STREAM_STALE, Reason.CLOCK_SKEW, Reason.CANARY_FAILED, Reason.NOT_LEADER, Reason.RATE_BUDGET, Reason.ACCOUNT_MODE, Reason.ACCOUNT_RESTRICTED)},
    Reason.BAD_NUMBER: dict(intent=replace(BUY, notional_usdt=math.nan)),
    Reason.MAX_POSITION: dict(intent=replace(BUY, notional_usdt=5_000.), book=replace(BOOK, pending={'ADAUSDT': 1.})),
    Reason.MAX_LEVERAGE: dict(book=replace(BOOK, positions={'XRPUSDT': Position('XRPUSDT', -800., 100., 100., .0001)})),
    Reason.FALLBACK_BUDGET: dict(intent=replace(BUY, path=SignalPath.FALLBACK, notional_usdt=150.), book=replace(BOOK, fallback_used=S.strategy.fallback_per_day)),
}


@pytest.mark.parametrize('reason', CASES, ids=str)
def test_every_reason_is_given_where_it_applies(reason):
    a = dict(intent=BUY, book=BOOK, world=WORLD, settings=S, now=NOW) | CASES[reason]
    v = gate(**a)
    assert reason in v.reasons and v.outcome == 'rejected'


def test_every_reason_of_the_gate_is_tried_and_in_the_table():
    closing = {Reason.OK, Reason.NO_POSITION}
    assert set(GATE) - closing == set(CASES), set(GATE) ^ set(CASES) ^ closing
    table = reasons_table(S)
    assert all(f'| `{r.value}` | {r.text} |' in table for r in GATE) and len(table.splitlines()) == len(GATE) + 2 and set(SETTING) <= set(GATE)


@pytest.mark.parametrize('field', ['volumes', 'moves', 'tiers', 'health'])
@pytest.mark.parametrize('nothing', ['none', 'empty', 'nan'])
def test_what_nobody_looked_at_is_refused(field, nothing):
    if field == 'health' and nothing != 'none': return
    value = {'none': None, 'empty': {}, 'nan': {'ADAUSDT': (Tier(50, math.nan, math.nan, 0.),) if field == 'tiers' else math.nan}}[nothing]
    v = gate(BUY, BOOK, replace(WORLD, **{field: value}), S, NOW)
    assert v.outcome == 'rejected' and {Reason.MAX_VOLUME, Reason.FAST_MARKET, Reason.BRACKET, Reason.NOT_RECONCILED} & set(v.reasons)


def test_a_held_symbol_without_tiers_refuses_every_entry():
    book = replace(BOOK, positions={'NEWUSDT': Position('NEWUSDT', 1., 100., 100., .01)})
    assert gate(BUY, book, WORLD, S, NOW).reasons == (Reason.STOP_BEYOND_LIQUIDATION,)


def test_health_closes_nothing():
    long = replace(BOOK, positions={'ADAUSDT': Position('ADAUSDT', 1., 100., 100., .01)})
    w = World({}, frozenset(), {}, health=tuple(r for r in GATE), locked={'ADAUSDT': (Reason.UNKNOWN_PENDING,)})
    assert gate(replace(BUY, action='close', side=Side.SELL, notional_usdt=0.), long, w, S, NOW).outcome == 'approved'


def liquidated(book, tiers, new, gap):
    "Walk every price to a little beyond its stop, all at once, and look at the account as the exchange does"
    equity = need = 0.
    for p in book.positions.values():
        end = p.entry*(1 - math.copysign(1, p.qty)*(p.stop_frac + gap*.999)) if p.qty else p.mark
        worse = min(p.mark, end) if p.qty > 0 else max(p.mark, end)
        equity += p.qty*(worse - p.mark); need += max(t.rate*abs(p.qty*worse) - t.cum for t in tiers)
    usdt, way = new
    return book.equity + equity - usdt*(way + gap*.999) <= need + max(t.rate*usdt*(1 - way) - t.cum for t in tiers)


@given(opens, st.dictionaries(st.sampled_from(NAMES[1:]), st.tuples(st.floats(-500, 500), st.floats(.002, .02), st.floats(60, 160)), max_size=4), st.floats(200, 20_000))
def test_no_approved_entry_could_be_liquidated_before_its_stops(intent, held, equity):
    wide = risk(max_gross=2., max_heat=.2, max_cluster=2., max_leverage=30)
    book = Book(NOW, equity, equity, {n: Position(n, q, e, 100., f) for n, (q, f, e) in held.items()})
    v = gate(intent, book, WORLD, wide, NOW)
    if v.outcome != 'rejected':
        assert not liquidated(book, TIERS, (v.notional_usdt, intent.stop_frac), S.risk.liquidation_gap)
        assert cushion(book, WORLD, wide, {'ADAUSDT': (v.notional_usdt, intent.stop_frac)}) > 0


junk = st.one_of(st.none(), st.booleans(), st.text(max_size=3), st.sampled_from([math.nan, math.inf, -math.inf, 0, -1, 1e308, -1e308, 10**400, -10**400, 5e-324]), st.floats(), st.integers())
numbers = st.one_of(junk, st.floats(0, 1e5))
FIELDS = ['notional_usdt', 'price', 'confidence', 'stop_frac', 'take_frac', 'expires_at', 'symbol', 'action', 'side', 'path', 'equity', 'day_open', 'fallback_used', 'pending', 'qty', 'entry', 'mark', 'stop',
          'marks', 'mark_at', 'min_notional', 'volumes', 'moves', 'tier', 'tripped', 'killed', 'health', 'locked', 'no marks', 'no volumes', 'no moves', 'no tiers', 'no health']


def spoiled(intent, book, world, where, x):
    "A world in which one thing is `x`"
    n, held = 'ADAUSDT', 'BTCUSDT'
    if where in ('notional_usdt', 'price', 'confidence', 'stop_frac', 'take_frac', 'expires_at', 'symbol', 'action', 'side', 'path'): return replace(intent, **{where: x}), book, world
    if where in ('equity', 'day_open', 'fallback_used'): return intent, replace(book, **{where: x}), world
    if where == 'pending': return intent, replace(book, pending={held: x}), world
    if where in ('qty', 'entry', 'mark', 'stop'): return intent, replace(book, positions={held: replace(Position(held, 1., 100., 100., .01), **{dict(stop='stop_frac').get(where, where): x})}), world
    if where in ('marks', 'mark_at'): return intent, book, replace(world, marks={n: (x, NOW) if where == 'marks' else (100., x)})
    if where in ('min_notional', 'volumes', 'moves'): return intent, book, replace(world, **{where: {n: x}})
    if where == 'tier': return intent, book, replace(world, tiers={**WORLD.tiers, n: (Tier(20, x if isinstance(x, float) else math.nan, .01, 0.), Tier(5, 1_500., .02, 0.))})
    if where in ('tripped', 'locked'): return intent, book, replace(world, **{where: {n: (Reason.DUPLICATE,)}})
    if where == 'killed': return intent, book, replace(world, killed=True)
    if where == 'health': return intent, book, replace(world, health=(Reason.CLOCK_SKEW,))
    return intent, book, replace(world, **{where[3:]: {} if where == 'no marks' else None})


@hyp(max_examples=400)
@given(opens, books, st.lists(st.tuples(st.sampled_from(FIELDS), numbers), max_size=2))
def test_no_world_however_broken_gets_an_entry_past_a_limit(intent, book, spoils):
    "Sound worlds in which up to two things are missing, absurd or no number: no exception but for an intent that is none, no approval that breaks a limit"
    world = WORLD
    for where, x in spoils: intent, book, world = spoiled(intent, book, world, where, x)
    try: v = gate(intent, book, world, S, NOW)
    except ValueError: assert intent.action not in ('open', 'close') or intent.side not in list(Side); return
    assert math.isfinite(v.notional_usdt) and v.notional_usdt >= 0
    if intent.action != 'open' or v.outcome == 'rejected': return
    n, usdt, (mark, at) = intent.symbol, v.notional_usdt, world.marks[intent.symbol]
    assert n in world.tradable and not world.killed and not world.tripped and world.health == () and not world.locked and n not in book.positions and n not in book.pending
    assert abs(mark - intent.price) <= S.risk.price_collar*intent.price and abs(NOW - at) <= MARK_AGE_MS and NOW < intent.expires_at
    assert S.risk.min_position_usdt <= usdt <= min(S.risk.max_position_usdt, intent.notional_usdt, world.volumes[n]*S.risk.volume_share) and usdt >= world.min_notional[n]
    assert book.gross + usdt <= S.risk.max_gross*book.equity*(1 + 1e-9) and abs(world.moves[n]) < S.risk.fast_move and usdt <= max(t.cap for t in world.tiers[n] if t.leverage >= S.risk.max_leverage)


@given(st.recursive(junk, lambda x: st.one_of(st.lists(x, max_size=3), st.dictionaries(st.sampled_from(['symbol', 'brackets', 'initialLeverage', 'notionalCap', 'maintMarginRatio', 'cum']), x, max_size=6)), max_leaves=20))
@example([{'symbol': None, 'brackets': []}])
@example([{'symbol': None, 'brackets': [dict(initialLeverage=20, notionalCap=5e4, maintMarginRatio=.01, cum=0)]}])
@example([{'symbol': 'BTCUSDT', 'brackets': [dict(initialLeverage=math.inf, notionalCap=5e4, maintMarginRatio=.01, cum=0)]}])
@example([{'symbol': 'BTCUSDT', 'brackets': [dict(initialLeverage=20, notionalCap=10**400, maintMarginRatio=.01, cum=0)]}])
def test_leverage_tiers_are_read_or_refused(rows):
    try: out = tiers_of(rows)
    except ValueError: return
    assert all(isinstance(s, str) for s in out) and all(ts and all(math.isfinite(x) for t in ts for x in (t.leverage, t.cap, t.rate, t.cum)) for ts in out.values())


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
