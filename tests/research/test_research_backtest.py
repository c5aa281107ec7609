"Fills come one bar later, costs are paid, parts add up, and a gap is refused."
import numpy as np, pandas as pd
import pytest
import sqlalchemy as sa
from quantlib.core.clock import HOUR, parse_iso
from quantlib.data.synthetic import funding, market
from quantlib.journal.schema import cycles
from quantlib.research.backtest import backtest, sides_of, wide
from quantlib.learning.sample import sample

START, NAMES = parse_iso('2025-03-01T00:00Z'), ['ADAUSDT', 'BTCUSDT', 'ETHUSDT']
PX = market(NAMES, START, 200, seed=8)


def sides(seed, p=.2):
    rng, c = np.random.default_rng(seed), wide(PX, 'close')
    x = pd.DataFrame(rng.integers(-1, 2, c.shape), c.index, c.columns)
    return x.where(rng.random(c.shape) < p).ffill().fillna(0)


def by_hand(side, rates, notional=1000., fee=5e-4, slip=1e-4):
    "The same account, one contract and one bar at a time"
    o, c, total = wide(PX, 'open'), wide(PX, 'close'), 14_000.
    rate = rates.pivot(index='time', columns='symbol', values='rate')
    for s in NAMES:
        cash = qty = last = 0.
        for i, t in enumerate(o.index):
            if t in rate.index: cash -= qty*o.at[t, s]*rate.at[t, s]
            want = side[s].iloc[i - 1] if i else 0
            if want != last:
                d, last = want*notional/o.at[t, s] - qty, want
                p = o.at[t, s]*(1 + slip*np.sign(d))
                cash -= d*p + abs(d)*p*fee; qty += d
        total += cash + qty*c[s].iloc[-1]
    return total


@pytest.mark.parametrize('seed', range(4))
def test_equals_an_account_kept_by_hand(seed):
    rates = funding(NAMES, START, 200, seed)
    b = backtest(PX, sides(seed), rates)
    assert abs(b.equity.iloc[-1] - by_hand(sides(seed), rates)) < 1e-6
    t = b.summary()
    assert abs(t['gross'] + t['fees'] + t['slippage'] + t['funding'] - t['net']) < 1e-6 and abs(t['net'] - (b.equity.iloc[-1] - 14_000)) < 1e-6


@pytest.mark.parametrize('seed', range(4))
def test_never_filled_in_the_bar_that_made_the_side(seed):
    x = sides(seed); b = backtest(PX, x)
    o = wide(PX, 'open')
    for r in b.orders.itertuples():
        i = x.index.get_loc(r.time)
        assert i > 0 and abs(r.price/o.at[r.time, r.symbol] - (1.0001 if r.side == 'BUY' else .9999)) < 1e-12
        before = x[r.symbol].iloc[i - 2] if i > 1 else 0
        assert x[r.symbol].iloc[i - 1] != before


def test_the_future_does_not_change_the_past():
    x = sides(1); y = x.copy(); y.iloc[120:] = 0
    a, b = backtest(PX, x), backtest(PX, y)
    assert a.equity.iloc[:121].equals(b.equity.iloc[:121])


def test_no_side_no_cost():
    b = backtest(PX, sides(1)*0, funding(NAMES, START, 200, 1))
    assert (b.equity == 14_000).all() and len(b.orders) == 0


def test_refusals():
    with pytest.raises(ValueError, match='has no bar at'): backtest(PX.drop(index=5), sides(1))
    with pytest.raises(ValueError, match='−1, 0 or 1'): backtest(PX, sides(1)*.5)


def test_sides_of_a_journal_are_known_at_the_close(tmp_path):
    j = sample(f'sqlite:///{tmp_path}/j.db', hours=6)
    x = sides_of(j)
    first = j.scalar(sa.select(sa.func.min(cycles.c.slot)))
    assert x.index[0] == pd.Timestamp(first - HOUR, unit='ms', tz='UTC') and set(np.unique(x)) <= {-1, 0, 1}
