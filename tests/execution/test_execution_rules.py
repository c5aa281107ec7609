"The exchange's filters under attack: real rules, absurd numbers, filters of the wrong exchange"
import json, math
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from quantlib.core.settings import load
from quantlib.core.types import Reason
from quantlib.execution.rules import RuleRefused, Rules, amount, text

META = Path(__file__).resolve().parents[2].parent/'shared'/'data'/'market'/'meta'
recorded = pytest.mark.skipif(not META.is_dir(), reason='recorded exchangeInfo is not here')
SYMBOLS = load().universe.symbols


def rules(name): return Rules(json.loads((META/name).read_text()))


@pytest.fixture(scope='module')
def real(): return rules('binance_usdm_exchangeInfo_2025-10-30.json')


@recorded
def test_every_symbol_of_the_universe_has_a_rule(real):
    assert set(SYMBOLS) <= real.tradable


@recorded
@settings(deadline=None, max_examples=300)
@given(symbol=st.sampled_from(SYMBOLS), usdt=st.floats(1, 3000), price=st.floats(1e-6, 2e5))
def test_a_quantity_is_on_the_step_and_never_worth_more(real, symbol, usdt, price):
    r = real[symbol]
    try: q = real.quantity(symbol, usdt, price)
    except RuleRefused as e: assert e.reason in (Reason.MIN_NOTIONAL,); return
    assert q % r.step == 0 and r.least <= q <= r.most
    assert q*Decimal(str(price)) <= Decimal(str(usdt))
    assert q*Decimal(str(price)) >= r.min_notional
    assert q == r.most or (q + r.step)*Decimal(str(price)) > Decimal(str(usdt))


@recorded
@settings(deadline=None, max_examples=300)
@given(symbol=st.sampled_from(SYMBOLS), p=st.floats(1e-4, 2e5), toward=st.floats(1e-4, 2e5))
def test_a_price_is_on_the_tick_and_moves_toward_the_market(real, symbol, p, toward):
    r = real[symbol]
    try: px = real.price(symbol, p, toward)
    except RuleRefused as e: assert e.reason == Reason.BAD_NUMBER; return
    exact = Decimal(str(p))
    assert px % r.tick == 0 and abs(px - exact) < r.tick
    assert px >= exact if exact < Decimal(str(toward)) else px <= exact


@recorded
@settings(deadline=None, max_examples=200)
@given(symbol=st.sampled_from(SYMBOLS), steps=st.integers(1, 10**6), share=st.floats(.01, 1))
def test_a_part_is_never_more_than_the_whole(real, symbol, steps, share):
    held = real[symbol].step*steps
    q = real.part(symbol, held, share)
    assert 0 <= q <= held and q % real[symbol].step == 0


@recorded
@settings(deadline=None, max_examples=200)
@given(symbol=st.sampled_from(SYMBOLS), bad=st.sampled_from([math.nan, math.inf, -math.inf, 0, -1, None, '', 'NaN', '1e999999999', [], {}, True and 'x']))
def test_no_absurd_number_gets_through(real, symbol, bad):
    for f in (lambda: real.quantity(symbol, bad, 1), lambda: real.quantity(symbol, 100, bad), lambda: real.price(symbol, bad, 1), lambda: real.price(symbol, 1, bad), lambda: real.part(symbol, bad)):
        with pytest.raises(RuleRefused): f()


@settings(deadline=None)
@given(st.decimals(min_value='1e-12', max_value='1e12', allow_nan=False, allow_infinity=False, places=12))
def test_text_is_plain_and_exact(d):
    t = text(d)
    assert 'E' not in t.upper() and Decimal(t) == d and amount(t) == d


def closes():
    df = pd.read_parquet(META.parent/'usdm_1h_45sym_2023-01_2025-09.parquet', columns=['symbol', 'open_time', 'close'])
    return df.sort_values('open_time').groupby('symbol').close.last()


@recorded
def test_filters_of_the_right_exchange_fit_and_those_of_the_test_network_do_not(real):
    px, most = closes(), load().risk.max_position_usdt
    for s in SYMBOLS: real.fit(s, px[s], most)
    wrong, refused = rules('testnet_binance_usdm_exchangeInfo_2026-03-31.json'), {}
    for s in SYMBOLS:
        try: wrong.fit(s, px[s], most)
        except RuleRefused as e: refused[s] = str(e)
    assert 'cannot close a position' in refused['1000BONKUSDT']
    assert 'not a USDT perpetual' in refused['ICPUSDT']


@recorded
def test_old_filters_do_not_fit_new_prices():
    old, px = rules('binance_usdm_exchangeInfo_2021-09-06.json'), closes()
    with pytest.raises(RuleRefused, match='tick'): old.fit('ICPUSDT', px['ICPUSDT'], 2000)
