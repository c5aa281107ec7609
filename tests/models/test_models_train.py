"Training end to end: what it may see, what it must find, what it must not"
import numpy as np, pandas as pd, pytest
from quantlib.core.clock import HOUR
from quantlib.data.features import FEATURES, WARMUP, features
from quantlib.data.synthetic import market
from quantlib.models.boosting import KINDS, split
from quantlib.models.train import TEST, _card, block_t, measure, panel, pinball, rank_ic, settled, train

START, SYMBOLS = 1_750_000_000_000 // HOUR * HOUR, [f'C{i:02d}USDT' for i in range(14)]


@pytest.fixture(scope='module')
def px(): return market(SYMBOLS, START, 800, seed=11)


def _bytes(trained, folder):
    folder.mkdir()
    return [(n, (folder/n).read_bytes()) for n in trained.forecaster.save(folder)], trained.metrics, trained.span


def test_same_seed_same_bits_with_any_number_of_threads(px, tmp_path):
    runs = [train(px, ['xgboost', 'lightgbm'], 7, threads=t, rounds=12) for t in (1, 2, 3)]
    for i in range(2):
        a, b, c = (_bytes(r[i], tmp_path/f'{n}{i}') for n, r in enumerate(runs))
        assert a == b == c
    assert _bytes(train(px, ['lightgbm'], 8, rounds=12)[0], tmp_path/'other')[0] != a[0]


def test_nothing_after_train_end_is_seen(px, tmp_path):
    end = START + 700*HOUR
    late = px.open_time.astype('int64') + HOUR > end
    poisoned = px.copy(); cols = ['open', 'high', 'low', 'close']
    poisoned.loc[late, cols] = poisoned.loc[late, cols] * 7
    a, b, c = (train(p, ['xgboost'], 7, train_end=e, rounds=5)[0] for p, e in ((px, end), (poisoned, end), (px[~late].reset_index(drop=True), None)))
    assert _bytes(a, tmp_path/'a') == _bytes(b, tmp_path/'b') == _bytes(c, tmp_path/'c')
    assert a.span['end'] < pd.Timestamp(end, unit='ms').strftime('%Y-%m-%dT%H:%MZ')


def test_the_test_fit_does_not_see_the_held_out_slice(px, monkeypatch):
    X, Y = panel(px); t = X.index.get_level_values('open_time').asi8
    old, new = split(t, TEST, 24)
    seen = []
    class Spy(KINDS['zero']):
        kind = 'spy'
        def fit(self, X, Y, seed): seen.append(X.index); return super().fit(X, Y, seed)
    monkeypatch.setitem(KINDS, 'spy', Spy)
    card = train(px, ['spy'], 1)[0].metrics
    test = min(seen, key=len)
    assert len(seen) == 2 and test.equals(X.index[old]) and max(seen, key=len).equals(X.index)
    assert test.get_level_values(1).asi8.max() + 24*HOUR <= t[new].min()
    assert card['h1']['rows'] == np.isfinite(Y.r1[new]).sum()
    assert card['h1']['pinball'] == card['h1']['pinball_zero'] and not card['h1']['beats_zero'] and card['h1']['rank_ic'] is None


def test_rows_in_warm_up_and_after_gaps_are_left_out(px):
    hole = (px.symbol == 'C03USDT') & (px.open_time.astype('int64') == START + 360*HOUR)
    X, Y = panel(px[~hole].reset_index(drop=True))
    at = (X.index.get_level_values(1).asi8 - START) // HOUR
    assert at[X.index.get_level_values(0) != 'C03USDT'].min() == WARMUP
    c3 = at[X.index.get_level_values(0) == 'C03USDT']
    assert set(c3) <= set(range(WARMUP, 360)) | set(range(361 + WARMUP, 800)) and 361 + WARMUP in c3 and 359 not in c3
    assert X.notna().all().all() and Y[['r1', 'r4', 'r24']].notna().any(axis=1).all()


def test_settled_copes_with_nothing_and_little():
    empty = pd.MultiIndex.from_arrays([pd.Index([], dtype=str), pd.DatetimeIndex([], tz='UTC').as_unit('ms')], names=['symbol', 'open_time'])
    assert len(settled(empty)) == 0


@pytest.mark.parametrize('kind', ['xgboost', 'lightgbm'])
def test_planted_order_is_found(kind):
    t = {'h1': [], 'h4': []}
    for seed in (21, 22, 23):  # one market of 54 days is a noisy witness: three are pooled (Stouffer)
        X, Y = panel(market([f'C{i:02d}USDT' for i in range(42)], START, 1296, seed=seed))
        old, new = split(X.index.get_level_values('open_time').asi8, TEST, 24)
        m, z = (KINDS[k]().fit(X[old], Y[old], 7) for k in (kind, 'zero'))
        card = _card(m, z, X[new], Y[new])
        for h in t: t[h].append(card[h]['rank_ic_t'])
    assert all(sum(x) / len(x)**.5 > 3 for x in t.values()), t


@pytest.mark.parametrize('kind', ['xgboost', 'lightgbm'])
def test_noise_canary_stays_silent(px, kind):
    X, Y = panel(px); t = X.index.get_level_values('open_time').asi8
    old, new = split(t, TEST, 24)
    beats = ics = 0; each = []
    for seed in range(6):
        N = pd.DataFrame(np.random.default_rng(seed).standard_normal(X.shape), X.index, X.columns)
        m, z = (KINDS[k](30).fit(N[old], Y[old], seed) for k in (kind, 'zero'))
        card = _card(m, z, N[new], Y[new]); beats += sum(c['beats_zero'] for c in card.values())
        each += [c['rank_ic'] for c in card.values()]
    each = np.array(each)
    assert abs(each.mean()) < 3 * each.std(ddof=1) / np.sqrt(len(each)) and beats <= 2, (each, beats)


def test_a_feature_from_the_next_bar_is_seen_by_the_report_card(px):
    X, Y = panel(px); t = X.index.get_level_values('open_time').asi8
    old, new = split(t, TEST, 24)
    L = X.assign(**{FEATURES[0]: Y.r1.fillna(0)})
    m, z = (KINDS[k](30).fit(L[old], Y[old], 1) for k in ('lightgbm', 'zero'))
    card = _card(m, z, L[new], Y[new])['h1']
    assert card['rank_ic'] > .8 and card['beats_zero']


def test_a_symbol_in_warm_up_is_missing_at_prediction(px):
    m = train(px, ['xgboost'], 7, rounds=5)[0].forecaster
    young = (px.symbol == 'C05USDT') & (px.open_time.astype('int64') < START + 700*HOUR)
    now = features(px[~young].reset_index(drop=True)).groupby(level='symbol').tail(1).droplevel('open_time')
    q = m.predict(now)
    assert np.isnan(q[list(now.index).index('C05USDT')]).all() and np.isfinite(np.delete(q, list(now.index).index('C05USDT'), 0)).all()


@pytest.mark.parametrize('bad, words', [
    (lambda px: train(px, ['catboost'], 1), 'catboost'), (lambda px: panel(px.groupby('symbol').head(WARMUP).reset_index(drop=True)), 'more than'),
    (lambda px: panel(px, train_end=START), 'no row'), (lambda px: panel(market(SYMBOLS[:2], START, 900, seed=1, bar='15m')), 'resample')])
def test_refusals_name_the_cure(px, bad, words):
    with pytest.raises(ValueError, match=words): bad(px)


# The figures of the report card against plain definitions

def test_rank_ic_is_spearman():
    rng = np.random.default_rng(0); t = np.repeat(np.arange(9), 12); c, y = rng.integers(0, 6, 108) * 1., rng.standard_normal(108)
    want = [pd.Series(c[t == i]).rank().corr(pd.Series(y[t == i]).rank()) for i in range(9)]
    assert np.allclose(rank_ic(c, y, t), want)
    assert len(rank_ic(np.ones(108), y, t)) == 0


def test_block_t_keeps_its_level_on_overlapping_noise():
    rng = np.random.default_rng(1); k = np.ones(24)/24
    t = np.array([block_t(np.convolve(rng.standard_normal(2023), k, 'valid')) for _ in range(1500)])
    assert .03 < (t > 1.833).mean() < .075


def test_pinball_is_least_at_the_true_quantile():
    y = np.random.default_rng(2).standard_normal(40_000); q = np.quantile(y, [.05, .25, .5, .75, .95])
    best = pinball(np.tile(q, (len(y), 1)), y).mean()
    for i in range(5):
        for d in (-.05, .05): assert pinball(np.tile(q + d*(np.arange(5) == i), (len(y), 1)), y).mean() > best


def test_card_leaves_out_missing_rows_and_says_when_there_is_nothing():
    rng = np.random.default_rng(3); q, y, t = np.sort(rng.standard_normal((400, 5)), 1), rng.standard_normal(400), np.repeat(np.arange(40), 10)
    q[:7] = np.nan; y[7:9] = np.nan
    assert measure(q, np.zeros((400, 5)), y, t)['rows'] == 391
    with pytest.raises(ValueError, match='no row'): measure(q * np.nan, q, y, t)
