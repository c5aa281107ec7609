"Regimes, playbooks and the selector: causal, total, and exactly the published fallback"
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from quantlib.core.clock import HOUR, parse_iso
from quantlib.core.settings import load
from quantlib.core.types import Playbook, Regime, Side
from quantlib.data.features import features
from quantlib.data.synthetic import market
from quantlib.strategy import meta
from quantlib.strategy.playbooks import CHOICES, agreement, direction, momentum
from quantlib.strategy.regime import latch, latest, regimes
from quantlib.strategy.snapshot import Snapshot

S, END = load(), parse_iso('2025-03-01T00:00Z')
NAMES = ['BTCUSDT', 'ETHUSDT', 'SOLUSDT', 'XRPUSDT']
CANDLES = market(NAMES, END - 700*HOUR, 700, seed=2)
F = features(CANDLES)
values = st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=60)


@given(values, st.data())
def test_the_latch_knows_no_future(x, data):
    x = np.array(x); k = data.draw(st.integers(1, len(x)))
    assert (latch(x, .6, .4)[:k] == latch(x[:k], .6, .4)).all()


@given(values)
def test_the_latch_is_hysteresis(x):
    state = False
    for v, got in zip(x, latch(np.array(x), .6, .4)):
        state = True if v > .6 else state if v >= .4 else False
        assert got == state


@given(st.integers(1, 699))
def test_regimes_are_causal(k):
    at = pd.Timestamp(END - k*HOUR, unit='ms', tz='UTC')
    cut = F[F.index.get_level_values('open_time') < at]
    a, b = regimes(cut), regimes(F).reindex(cut.index)
    assert a.cat.codes.tolist() == b.cat.codes.tolist()


def test_a_gap_forgets_the_state():
    t = CANDLES.open_time
    holed = CANDLES[~((CANDLES.symbol == 'ETHUSDT') & (t == t.max() - pd.Timedelta('150h')))].reset_index(drop=True)
    r = regimes(features(holed))
    assert r.xs('ETHUSDT').iloc[-150:].isna().all() and r.xs('BTCUSDT').equals(regimes(F).xs('BTCUSDT'))
    assert 'ETHUSDT' not in latest(features(holed)) and set(latest(F)) == set(NAMES)


def test_every_regime_and_direction_occurs():
    assert set(regimes(F).dropna()) == {r.value for r in Regime}
    for p in (Playbook.TREND, Playbook.REVERSION): assert set(direction(p, F.dropna())) == {-1., 0., 1.}
    assert set(direction(Playbook.ASIDE, F)) == {0.}
    with pytest.raises(ValueError, match='momentum'): direction(Playbook.MOMENTUM, F)


@given(st.sampled_from([-1., 0., 1.]), st.sampled_from([Side.BUY, Side.SELL]))
def test_a_playbook_only_vetoes_or_scales(d, side):
    assert agreement(d, side) == {side.sign: 1., 0: .5, -side.sign: 0.}[int(d)]


TABLE = [(1.0, 'HOLD', .30), (-1.0, 'HOLD', .30), (0., 'HOLD', .30), (.99, 'HOLD', .30), (-.5, 'HOLD', .30), (1.01, 'BUY', .5202), (-1.01, 'SELL', .5202), (2., 'BUY', .54), (-2.5, 'SELL', .55),
         (10., 'BUY', .70), (-15., 'SELL', .80), (22.5, 'BUY', .95), (22.6, 'BUY', .95), (-60., 'SELL', .95), (400., 'BUY', .95)]


@pytest.mark.parametrize('percent,side,confidence', TABLE)
def test_the_fallback_is_the_published_rule(percent, side, confidence):
    got = momentum(percent/100)
    assert got[0] == side and math.isclose(got[1], confidence, abs_tol=1e-12)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_the_fallback_needs_a_number(bad):
    with pytest.raises(ValueError): momentum(bad)


returns = st.fixed_dictionaries({}, optional={r.value: st.fixed_dictionaries({p.value: st.floats(-.5, .5) for p in CHOICES}) for r in Regime})


@given(st.lists(returns, max_size=60), st.floats(.001, .5), st.floats(.1, 200))
def test_weights_stay_a_distribution_and_none_dies(bars, share, rate):
    w = meta.start()
    for r in bars:
        new = meta.update(w, r, share, rate)
        assert all(new[k] == w[k] for k in w if k not in r)
        w = new
    for x in w.values():
        assert math.isclose(sum(x.values()), 1) and min(x.values()) >= share/len(x)*(1 - 1e-9)
    assert json.loads(json.dumps(w)) == w


@given(st.floats(.001, .3), st.sampled_from(CHOICES), st.sampled_from(list(Regime)))
def test_the_best_playbook_wins_and_can_be_overtaken(edge, best, regime):
    w, bar = meta.start(), lambda p: {regime.value: {q.value: edge*(q == p) for q in CHOICES}}
    for _ in range(60): w = meta.update(w, bar(best), .02, 8.)
    assert meta.select(w, regime) == best
    other = next(p for p in CHOICES if p != best)
    for _ in range(2000):
        w = meta.update(w, bar(other), .02, 8.)
        if meta.select(w, regime) == other: break
    assert meta.select(w, regime) == other


@pytest.mark.parametrize('bad', [{'trending': {'trend': 1.}}, {'sideways': {p.value: 0. for p in CHOICES}}, {'trending': {p.value: math.nan for p in CHOICES}}])
def test_the_selector_refuses_what_it_cannot_read(bad):
    with pytest.raises(ValueError): meta.update(meta.start(), bad, .02, 8.)


def test_warm_and_the_cycle_add_each_bar_once():
    now, before = Snapshot(END, CANDLES, {}, {}, 0), None
    cut = CANDLES[CANDLES.open_time < CANDLES.open_time.max()].reset_index(drop=True)
    before = Snapshot(END - HOUR, cut, {}, {}, 0)
    stepped = meta.update(meta.warm(before, S), meta.returns_of(before), S.strategy.share, S.strategy.learning_rate)
    assert stepped == meta.warm(now, S)


def test_a_paper_return_is_direction_times_move():
    snap = Snapshot(END, CANDLES, {}, {}, 0)
    close = pd.Series(CANDLES.close.to_numpy(), F.index)
    for p in (Playbook.TREND, Playbook.REVERSION):
        d = direction(p, F).xs('BTCUSDT').to_numpy(); c = close.xs('BTCUSDT').to_numpy(); v = snap.vol.xs('BTCUSDT').to_numpy()
        k = 500
        want = (d[k]*math.log(c[k + 1]/c[k]) - meta.COST*abs(d[k] - d[k - 1]))/(v[k]*meta.WEEK)
        assert math.isclose(meta.earnings(F, snap.vol, close, p)[k, 0], np.clip(want, -meta.MOST, meta.MOST), rel_tol=1e-12)
