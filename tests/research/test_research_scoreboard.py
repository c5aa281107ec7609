"The scoreboard: nothing leaks into it, its parts are what it says, and it is the same twice"
import json
import numpy as np, pandas as pd, pytest
from quantlib.core.clock import HOUR, parse_iso
from quantlib.data.synthetic import funding, market
from quantlib.models.validate import rank_ic
from quantlib.research.scoreboard import BEFORE, carried, choice, earned, following, mape, scoreboard, score_file, stretch

SINCE, CUT, END = parse_iso('2025-01-01'), parse_iso('2025-02-12'), parse_iso('2025-02-20')
KINDS = ('ridge', 'lightgbm')


@pytest.fixture(scope='module')
def px(): return market([f'C{i:02d}USDT' for i in range(9)], SINCE, 52*24, seed=5)


def _board(px, **kw): return scoreboard(px, CUT, CUT, END, KINDS, funding=funding(sorted(px.symbol.unique()), SINCE, 52*24, 5), rounds=8, **kw)


@pytest.fixture(scope='module')
def board(px): return _board(px, trials=10)


def _plain(b): d = b.json(); d.pop('spent'); return json.dumps(d, sort_keys=True, allow_nan=False)


def test_everybody_is_on_it_at_every_horizon(board):
    assert set(board.frame.index) == {(h, k) for h in (1, 4, 24) for k in ('zero', 'sign', 'momentum', 'ridge', 'lightgbm', 'ensemble')}
    assert len(board.verdicts()) == 15 + sum(map(len, map(board.vote, (1, 4, 24)))) and sum('does NOT beat' in v or ' beats ' in v for v in board.verdicts()) == 15


def test_it_is_the_same_twice_with_any_number_of_threads(px, board): assert _plain(_board(px, trials=10, threads=1)) == _plain(board)


def test_candles_after_the_end_change_nothing(px, board):
    late = px.open_time.astype('int64') >= END; poisoned = px.copy()
    poisoned.loc[late, ['open', 'high', 'low', 'close']] *= 3
    assert _plain(_board(poisoned, trials=10)) == _plain(board)


def test_models_know_nothing_after_the_end_of_training(px, board):
    late = px.open_time.astype('int64') >= CUT + 100*HOUR; poisoned = px.copy()
    poisoned.loc[late, ['open', 'high', 'low', 'close']] *= 3
    other = _board(poisoned, trials=10); early = board.test.times < CUT + 99*HOUR
    for k in board.q: np.testing.assert_array_equal(other.q[k][other.test.times < CUT + 99*HOUR], board.q[k][early])
    assert other.facts['weights'] == board.facts['weights']


def test_what_lies_long_before_the_judged_rows_does_not_matter():
    px = market(['AUSDT', 'BUSDT', 'CUSDT'], SINCE, 80*24, seed=2); start = SINCE + 75*24*HOUR; old = px.open_time.astype('int64') < start - BEFORE
    spoilt = px.copy(); spoilt.loc[old, ['open', 'high', 'low', 'close']] *= 3
    a, b = stretch(px, start, start + 48*HOUR), stretch(spoilt, start, start + 48*HOUR)
    assert old.any() and a.X.equals(b.X) and a.R.equals(b.R) and all(a.Y[h].equals(b.Y[h]) for h in a.Y)


def test_the_vote_is_the_mean_of_the_members(board):
    w = {k: np.array(x) for k, x in board.facts['weights'].items()}; assert set(w) == set(KINDS)
    np.testing.assert_allclose(sum(w.values()), 1.)
    np.testing.assert_allclose(board.q['ensemble'], sum(w[k][None, :, None]*board.q[k] for k in KINDS), atol=1e-12)


def test_rank_ic_of_the_table_is_that_of_the_quantiles(board):
    c, y = board.q['ridge'][:, 0, 2], board.test.label(1); ok = np.isfinite(y)
    assert board.frame.loc[(1, 'ridge'), 'rank_ic'] == pytest.approx(rank_ic(c[ok], y[ok], board.test.times[ok]).mean(), abs=1e-12)


def test_more_trials_make_a_record_less_likely_to_be_real(px, board):
    test, (r, paid) = board.test, following(px, None)
    t = carried(board.q['ridge'][:, 0, 2], test, 1, r, paid, 0.)
    d = [earned(t, n)['deflated'] for n in (1, 10, 1000)]
    assert d == sorted(d, reverse=True)


def test_a_choice_among_worthless_books_is_overfitted_and_a_real_edge_is_not():
    rng = np.random.default_rng(0); n = {f'm{i}': pd.Series(rng.normal(0, .01, 2000)) for i in range(8)}
    assert .2 < choice(n).pbo < .8 and choice(n | dict(edge=n['m0'] + .002)).pbo < .01
    flat = pd.Series(np.zeros(2000)); assert choice(dict(zero=flat, m0=n['m0'])) is None and choice({k: x[:40] for k, x in n.items()}) is None


def test_the_board_says_whether_the_choice_is_luck(board):
    j = board.json()['overfit']; assert set(j) == {'h1', 'h4', 'h24'}
    assert all(0 <= o['pbo'] <= 1 and o['splits'] == 12_870 for o in j.values() if o) and sum('PBO' in v for v in board.verdicts()) == sum(o is not None for o in j.values()) > 0


def test_following_pays_funding_to_the_position_that_was_held():
    t = pd.date_range('2025-01-01', periods=6, freq='1h', tz='UTC').as_unit('ms')
    px = pd.DataFrame(dict(symbol='A', open_time=t, open=np.exp(np.arange(6.)**2), high=1, low=1, close=1, volume=1))
    r, paid = following(px, pd.DataFrame(dict(symbol=['A'], time=[t[3]], rate=[.01])))
    assert r['A'].iloc[:3].round(9).tolist() == [3, 5, 7] and paid['A'].iloc[1] == .01 and np.nansum(paid) == .01


def test_the_last_value_is_the_forecast_of_nothing(board):
    sigma = np.full(len(board.test), .01)
    a, b = mape(np.zeros(len(board.test)), board.test, 4, sigma)
    assert a == b > 0


@pytest.mark.parametrize('end, start, stop', [(END, CUT, END), (CUT, END, CUT), (CUT, CUT, CUT)])
def test_a_board_that_could_not_be_honest_is_refused(px, end, start, stop):
    with pytest.raises(ValueError, match='must follow each other'): scoreboard(px, end, start, stop, KINDS)


def test_unknown_and_repeated_kinds_are_refused(px):
    for k in (('oracle',), ('ridge', 'ridge')):
        with pytest.raises(ValueError, match='at most once'): scoreboard(px, CUT, CUT, END, k)


def test_nothing_to_judge_is_said(px):
    with pytest.raises(ValueError, match='no settled bar'): stretch(px, parse_iso('2026-01-01'), parse_iso('2026-02-01'))


def test_a_file_gives_the_same_board(px, board, tmp_path):
    px.to_parquet(tmp_path/'c.parquet'); funding(sorted(px.symbol.unique()), SINCE, 52*24, 5).to_parquet(tmp_path/'f.parquet')
    d = score_file(tmp_path/'c.parquet', '2025-02-11', '2025-02-12', '2025-02-19', funding=tmp_path/'f.parquet', kinds=KINDS, rounds=8, trials=10)
    d.pop('spent'); assert json.dumps(d, sort_keys=True) == _plain(board)
    with pytest.raises(ValueError, match='NOPE'): score_file(tmp_path/'c.parquet', '2025-02-11', '2025-02-12', '2025-02-19', symbols=('NOPE',))
