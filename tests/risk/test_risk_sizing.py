"Sizes and distances under arbitrary inputs"
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, strategies as st

from quantlib.core.settings import load
from quantlib.core.types import Book, Position, Regime, Side
from quantlib.risk.portfolio import cluster, correlation, heat, peers
from quantlib.risk.sizing import PACE, size, stops

S = load()
NAMES = ('BTCUSDT', 'ETHUSDT', 'SOLUSDT')
books = st.builds(lambda e, ps: Book(0, e, e, {n: Position(n, q, 100., 100., f) for n, (q, f) in ps.items()}), st.floats(1_000, 50_000),
                  st.dictionaries(st.sampled_from(NAMES), st.tuples(st.floats(-100, 100), st.floats(0, .02)), max_size=3))
sides, vols, sure, fracs = st.sampled_from([Side.BUY, Side.SELL]), st.floats(1e-4, .2), st.floats(.5, .99), st.floats(.01, .02)


def usdt(c, v, side, book, near=NAMES, frac=.015, scale=1.): return size(c, v, 'ADAUSDT', side, book, list(near), frac, S, scale)[0]


@given(sure, vols, sides, books, fracs)
def test_within_every_ceiling(c, v, side, book, frac):
    x, r = usdt(c, v, side, book, frac=frac), S.risk
    assert x == 0 or r.min_position_usdt <= x <= r.max_position_usdt
    if x:
        assert x + book.gross <= r.max_gross*book.equity
        assert x + cluster(book, 'ADAUSDT', side, list(NAMES)) <= r.max_cluster*book.equity
        assert x*frac + heat(book, S) <= r.max_heat*book.equity*(1 + 1e-12)
        assert x <= PACE*book.equity


@given(sure, sure, vols, sides, books)
def test_surer_is_never_smaller(a, b, v, side, book):
    lo, hi = sorted((a, b))
    assert usdt(lo, v, side, book) <= usdt(hi, v, side, book)


@given(sure, vols, vols, sides, books)
def test_wilder_is_never_larger(c, a, b, side, book):
    lo, hi = sorted((a, b))
    assert usdt(c, hi, side, book) <= usdt(c, lo, side, book)


@given(st.floats(.53, .58), st.floats(.003, .02), st.floats(1.02, 1.5))
def test_sizes_really_vary(c, v, k):
    empty = Book(0, 14_000., 14_000.)
    assert usdt(c, v*k, Side.BUY, empty) < usdt(c, v, Side.BUY, empty) < usdt(c + .01, v, Side.BUY, empty)


@given(sure, vols, sides, books, st.floats(1, 5_000))
def test_a_fuller_book_never_gets_more(c, v, side, book, more):
    fuller = Book(0, book.equity, book.equity, book.positions, {'XRPUSDT': more*side.sign})
    assert usdt(c, v, side, fuller, (*NAMES, 'XRPUSDT')) <= usdt(c, v, side, book)


@given(st.sampled_from(['confidence', 'vol', 'equity', 'scale']), st.sampled_from([math.nan, math.inf, -.1]))
def test_a_bad_number_raises(where, bad):
    a = dict(c=.55, v=.01, side=Side.BUY, book=Book(0, 14_000., 14_000.), scale=1.)
    a |= {'confidence': {'c': bad}, 'vol': {'v': bad}, 'equity': {'book': Book(0, bad, bad)}, 'scale': {'scale': bad}}[where]
    with pytest.raises(ValueError, match=where): usdt(**a)


@given(st.floats(1e-6, .5), st.sampled_from(list(Regime)))
def test_distances_stay_inside_their_bounds(natr, regime):
    stop, take = stops(natr, regime, S.exits)
    assert .01 <= stop <= .02 <= take <= .05 and stop <= take


@given(st.floats(1e-6, .5), st.floats(1e-6, .5), st.sampled_from(list(Regime)))
def test_distances_widen_with_volatility(a, b, regime):
    lo, hi = sorted((a, b))
    assert all(x <= y for x, y in zip(stops(lo, regime, S.exits), stops(hi, regime, S.exits)))


@pytest.mark.parametrize('natr', [math.nan, math.inf, 0., -.01])
def test_no_distance_without_a_range(natr):
    with pytest.raises(ValueError, match='natr'): stops(natr, Regime.RANGING, S.exits)


def panel(n, seed, same):
    rng = np.random.default_rng(seed); f = rng.standard_normal(n)*.01
    t = pd.date_range('2026-01-01', periods=n, freq='h', tz='UTC', unit='ms')
    px = {s: np.exp(np.cumsum(f*same + rng.standard_normal(n)*.002)) for s in NAMES}
    return pd.concat([pd.DataFrame({'symbol': s, 'open_time': t, 'close': p}) for s, p in px.items()], ignore_index=True)


def test_peers_are_mutual_and_never_oneself():
    near = peers(panel(400, 1, 1.))
    assert all(len(v) == 2 and s not in v and v == sorted(v) for s, v in near.items())
    assert all(v == [] for v in peers(panel(400, 1, 0.)).values())


def test_a_young_or_dead_symbol_counts_as_moving_with_all():
    c = panel(400, 1, 0.)
    young = c[(c.symbol != 'SOLUSDT') | (c.open_time >= c.open_time.max() - pd.Timedelta('50h'))]
    assert correlation(young).loc['SOLUSDT', 'BTCUSDT'] != correlation(young).loc['SOLUSDT', 'BTCUSDT']
    assert peers(young)['SOLUSDT'] == ['BTCUSDT', 'ETHUSDT'] and 'SOLUSDT' in peers(young)['BTCUSDT']
    dead = c.assign(close=c.close.where(c.symbol != 'SOLUSDT', 1.))
    assert peers(dead)['SOLUSDT'] == ['BTCUSDT', 'ETHUSDT']
