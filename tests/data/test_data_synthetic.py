import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from quantlib.core.clock import HOUR
from quantlib.data.candles import BARS, bar_ms, check, gaps
from quantlib.data.synthetic import LEVELS, funding, level, market

START = 1_735_689_600_000
ALL = [f'{k}USDT' for k in LEVELS]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([*ALL, 'NEWUSDT', 'A1USDT']), min_size=1, max_size=5), st.integers(1, 300), st.integers(0, 2**31), st.sampled_from(list(BARS)))
def test_any_market_passes_the_check(names, bars, seed, bar):
    d = market(names, START, bars, seed, bar)
    assert check(d).equals(d) and len(d) == bars*len(set(names)) and not len(gaps(d, bar))
    if bars > 1: assert bar_ms(d) == BARS[bar]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 400), st.sampled_from(ALL))
def test_a_market_does_not_depend_on_company_or_length(seed, bars, name):
    whole = market([name, 'BTCUSDT', 'ETHUSDT'], START, 400, seed)
    part = market([name], START, bars, seed)
    assert part.equals(whole[whole.symbol == name].head(bars).reset_index(drop=True))


def test_seeds_differ_and_repeat():
    a, b, c = (market(['BTCUSDT'], START, 200, s) for s in (1, 1, 2))
    assert a.equals(b) and not a.close.equals(c.close)
    assert funding(['BTCUSDT'], START, 100, 1).equals(funding(['BTCUSDT'], START, 100, 1))


def test_it_moves_like_crypto():
    d = market(ALL, START, 3000, 11)
    r = np.log(d.pivot(index='open_time', columns='symbol', values='close')).diff().dropna()
    vol = r.std()*100
    assert vol.between(.3, 2).all() and vol['BTCUSDT'] < vol['WIFUSDT']
    assert (r.kurt() > 3).all()                                        # fat tails
    assert .35 < r.corr()['BTCUSDT'].drop('BTCUSDT').mean() < .8       # one factor
    assert np.mean([r[s].abs().autocorr(6) for s in r]) > .05          # clusters
    last = d.groupby('symbol').close.last()
    assert all(level(s)[0]/10 < p < level(s)[0]*10 for s, p in last.items())
    usd = (d.close*d.volume).groupby(d.symbol).median()
    assert all(level(s)[2]/4 < v < level(s)[2]*4 for s, v in usd.items())


def test_the_planted_edge_is_there_and_weak():
    from quantlib.data.synthetic import _returns
    ic = []
    for seed in range(3):
        r, sigma, phase = _returns(ALL[:20], 4000, seed, 1)
        z = pd.DataFrame(r/sigma)
        slow = z.ewm(span=36, adjust=False).mean().to_numpy()[:-1]
        trending = phase[1:] == 1
        ic.append(np.corrcoef(slow[trending], z.to_numpy()[1:][trending])[0, 1])
    assert .05 < np.mean(ic) < .2, ic


def test_funding_times_and_size():
    f = funding(['BTCUSDT', 'ETHUSDT'], START + HOUR, 24*10, 3)
    assert (f.time.dt.hour % 8 == 0).all() and f.groupby('symbol').size().eq(30).all()
    assert f.rate.abs().max() < .0075 and f.time.min().value//10**6 == START + 8*HOUR


@pytest.mark.parametrize('args, why', [((['BTCUSDT'], START + 1, 5, 1), 'floor'), ((['BTCUSDT'], START, 0, 1), 'at least one'), (([], START, 5, 1), 'at least one'),
                                       ((['BTCUSDT'], START, 5, 1, '4h'), "bar '4h'")])
def test_impossible_markets(args, why):
    with pytest.raises(ValueError, match=why): market(*args)
