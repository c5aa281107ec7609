"Calibration: what is causal, what the noise bands promise, what the gate lets through"
import json
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from statistics import NormalDist
from quantlib.core.clock import DAY, HOUR
from quantlib.data.synthetic import market
from quantlib.models.calibrate import Gate, adaptive, reliability, still
from quantlib.models.forecast import LEVELS
from quantlib.models.panel import Panel, settled
from quantlib.models.validate import worst_window

def logit(p): return np.log(p) - np.log1p(-p)
def chance(x): return 1/(1 + np.exp(-x))
SPREAD = np.array([-1.645, -.674, 0, .674, 1.645])


# Reliability

def test_a_perfect_model_leaves_the_band_one_time_in_twenty():
    rng, out, over = np.random.default_rng(0), 0, 0
    for _ in range(200):
        p = chance(.15*rng.standard_normal(2000)); r = reliability(p, rng.random(2000) < p, np.repeat(np.arange(200), 10))
        out += not r.holds; over += r.ece > r.limit
    assert 1 <= out <= 24 and over <= 22


def test_hours_that_move_together_are_counted_once():
    rng = np.random.default_rng(1); t = np.repeat(np.arange(400), 10); out = 0
    for _ in range(60):
        up = np.repeat(rng.random(400) < .5, 10); p = chance(.05*rng.standard_normal(4000)); r = reliability(p, up, t)
        out += not r.holds
    assert out <= 12 and r.frame.bets.sum() < 2600


def test_overlapping_labels_are_worth_fewer_outcomes():
    rng = np.random.default_rng(2); r = rng.standard_normal((3000, 5)); y = np.array([np.convolve(c, np.ones(24), 'valid') for c in r.T]).T
    p, t = chance(.02*rng.standard_normal(y.size)), np.repeat(np.arange(len(y)), 5)
    assert reliability(p, y.ravel() > 0, t, 24).frame.bets.sum() < reliability(p, y.ravel() > 0, t, 1).frame.bets.sum()/1.5


@pytest.mark.parametrize('h', [4, 24])
def test_a_perfect_model_of_overlapping_hours_stays_in_its_band(h):
    "Opinions that last for days meet labels that share hours"
    rng, out = np.random.default_rng(h), 0
    for _ in range(40):
        r, x, s = rng.standard_normal((1000 + h, 12)), rng.standard_normal(12), np.empty((1000, 12))
        for k in range(1000): x = .98*x + .2*rng.standard_normal(12); s[k] = x
        y = sum(r[k:k + 1000] for k in range(h))/h**.5; p = np.vectorize(NormalDist().cdf)(.03*s)
        out += not reliability(p.ravel(), (y + .03*s).ravel() > 0, np.repeat(np.arange(1000), 12), h).holds
    assert out <= 5


@pytest.mark.parametrize('wrong', [lambda p: p + .06, lambda p: chance(4*logit(p))])
def test_wrong_chances_are_seen(wrong):
    rng = np.random.default_rng(3); p = chance(.3*rng.standard_normal(20_000)); r = reliability(wrong(p), rng.random(20_000) < p, np.repeat(np.arange(2000), 10))
    assert not r.holds and r.ece > r.limit


def test_equal_chances_make_one_bin_and_too_few_are_refused():
    assert len(reliability(np.full(500, .5), np.arange(500) % 2 == 0, np.arange(500)).frame) == 1
    with pytest.raises(ValueError, match='do not fill'): reliability(np.full(50, .5), np.ones(50), np.arange(50))


# Widths that learn

def _toy(hours=3000, symbols=4, seed=0):
    rng = np.random.default_rng(seed); times = np.tile(np.arange(hours)*HOUR, symbols)
    scale = np.where(times >= hours//2*HOUR, 2., 1.); y = scale*rng.standard_normal(len(times))
    return np.tile(SPREAD, (len(times), 1)), y, times


@pytest.mark.parametrize('h', [1, 4, 24])
def test_a_tracker_knows_only_labels_that_have_ended(h):
    q, y, t = _toy(300); at = 200*HOUR; late = np.where(t + h*HOUR > at, 50., y); first = t <= at
    a, b = adaptive(q, y, t, h), adaptive(q, late, t, h)
    assert (a[first] == b[first]).all() and not (a == b).all()
    assert (adaptive(q[first], y[first], t[first], h) == a[first]).all()


def test_a_tracker_finds_the_level_after_a_break():
    q, y, t = _toy(); a = adaptive(q, y, t, 1); late = t >= 1700*HOUR
    inside = lambda x: ((x[:, 0] <= y) & (y <= x[:, -1]))[late]
    assert inside(q).mean() < .65 and abs(inside(a).mean() - .9) < .01 and worst_window(inside(a), t[late]) > .88
    assert abs(((a[:, 1] <= y) & (y <= a[:, 3]))[late].mean() - .5) < .02


def test_quantiles_stay_ordered_and_medians_where_they_were_and_holes_are_no_outcomes():
    q, y, t = _toy(400); q = q + .3; q[7] = np.nan; y[11] = np.nan; a = adaptive(q, y, t, 4, .2); ok = np.arange(len(q)) != 7
    assert np.isnan(a[7]).all() and (np.diff(a[ok], axis=1) >= 0).all() and (a[ok, 2] == .3).all()
    turn = np.random.default_rng(0).permutation(len(q))
    assert np.allclose(adaptive(q[turn], y[turn], t[turn], 4, .2), a[turn], equal_nan=True)


# The gate

@pytest.fixture(scope='module')
def px(): return market([f'C{i:02d}USDT' for i in range(8)], 1_746_000_000_000//DAY*DAY, 1100, seed=5)


@pytest.fixture(scope='module')
def board(px): p = Panel.of(px); return p.take(settled(p.X.index))


@pytest.fixture(scope='module')
def gate(board): return Gate.fit(board.take(board.times <= np.quantile(board.times, .75)))


def _newest(px, hours, change):
    "Whether the gate's row, the newest bar of the first symbol, is flagged after its last candles were changed"
    c = px.copy(); rows = c.index[c.symbol == 'C00USDT'][-hours:]; change(c, rows); p = Panel.of(c)
    return p.take((p.symbols == 'C00USDT') & (p.times == p.times.max()))

PRICES = ['open', 'high', 'low', 'close']
def _times(f): return lambda c, rows: c.__setitem__(PRICES, c[PRICES].where(~c.index.isin(rows)[:, None] & np.ones((len(c), 4), bool), c[PRICES]*f))
def _flat(c, rows): c.loc[rows, PRICES] = c.close[rows[0] - 1]
def _silent(c, rows): c.loc[rows, 'volume'] = 0.


def test_held_out_rows_pass(board, gate):
    odd, why = gate.flag(board.take(board.times > np.quantile(board.times, .75)))
    assert odd.mean() <= .01 and [w != '' for w in why] == odd.tolist()


@pytest.mark.parametrize('hours, change', [(1, _times(10)), (1, _times(.1)), (5, _times(10)), (40, _times(10)), (1, _times(2)), (4, _flat), (8, _flat), (30, _flat), (60, _silent)])
def test_nonsense_does_not_pass(px, gate, hours, change): assert gate.flag(_newest(px, hours, change))[0].all()


def test_untouched_and_another_unit_pass(px, gate):
    assert not gate.flag(_newest(px, 1, lambda c, rows: None))[0].any()
    assert not gate.flag(_newest(px, 1100, _times(1000.)))[0].any()  # the same contract quoted in thousands


def test_a_row_without_features_is_flagged_and_other_features_are_refused(board, gate):
    X = board.X.tail(3).copy(); X.iloc[1, 4] = np.nan
    odd, why = gate.flag(Panel(X, board.R, board.Y))
    assert odd[1] and 'no complete features' in why[1] and not odd[[0, 2]].any()
    with pytest.raises(ValueError, match='fit it again'): gate.flag(Panel(board.X.iloc[:, ::-1], board.R, board.Y))


def test_a_gate_survives_json_and_says_the_same(board, gate):
    again = Gate(**json.loads(json.dumps(gate.as_dict())))
    assert again == gate and again.flag(board)[1] == gate.flag(board)[1]


def test_too_little_teaches_no_gate(board):
    with pytest.raises(ValueError, match='at least'): Gate.fit(board.take(np.arange(500)))


def test_runs_without_a_move_are_counted(board):
    R = board.R*0 + 1.; R.iloc[-7:-2, 0] = 0.; R.iloc[-2:, 1] = 0.; p = Panel(board.X, R, board.Y); run = pd.Series(still(p), p.X.index)
    assert run.xs('C00USDT').iloc[-8:].tolist() == [0, 1, 2, 3, 4, 5, 0, 0] and run.xs('C01USDT').iloc[-3:].tolist() == [0, 1, 2] and run.xs('C02USDT').max() == 0
