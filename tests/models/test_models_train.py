"Training end to end: what it may see, what it must find, what it must not"
import numpy as np, pandas as pd, pytest
from quantlib.core.clock import HOUR
from quantlib.data.features import FEATURES, WARMUP
from quantlib.data.synthetic import market
from quantlib.models.fit import Recipe
from quantlib.models.forecast import HORIZONS
from quantlib.models.located import Zero, split
from quantlib.models.networks import Networked
from quantlib.models.panel import Panel
from quantlib.models.train import KINDS, TEST, card, rows, train

START, SYMBOLS = 1_750_000_000_000 // HOUR * HOUR, [f'C{i:02d}USDT' for i in range(14)]


@pytest.fixture(scope='module')
def px(): return market(SYMBOLS, START, 800, seed=11)


@pytest.fixture(scope='module')
def learnt(px): return rows(px)


@pytest.fixture(autouse=True)
def short(monkeypatch): monkeypatch.setattr(Networked, 'recipe', Recipe(steps=10, batch=128, rate=1e-3, checks=2))


def _bytes(trained, folder):
    folder.mkdir()
    return [(n, (folder/n).read_bytes()) for n in trained.forecaster.save(folder)], trained.metrics, trained.span


def _judged(kind, learnt, X=None, seed=7):
    "Report card of a kind, fitted before the cut and asked after it"
    p = learnt if X is None else Panel(X, learnt.R, learnt.Y); old, new = split(p.times, TEST, max(HORIZONS)); held = p.take(new)
    model = KINDS[kind](rounds=30) if kind in ('xgboost', 'lightgbm') else KINDS[kind]()
    return card(model.fit(p.take(old), seed).predict(held), Zero().fit(p.take(old), seed).predict(held), held)


def test_same_seed_same_bits_with_any_number_of_threads(px, tmp_path):
    kinds = ['ridge', 'xgboost', 'lightgbm', 'nhits', 'patchtst']
    runs = [train(px, kinds, 7, threads=t, rounds=8) for t in (1, 3)]
    for i, k in enumerate(kinds):
        a, b = (_bytes(r[i], tmp_path/f'{n}{i}') for n, r in enumerate(runs))
        assert a == b, k


def test_nothing_after_train_end_is_seen(px, tmp_path):
    end = START + 700*HOUR
    late = px.open_time.astype('int64') + HOUR > end
    poisoned = px.copy(); cols = ['open', 'high', 'low', 'close']
    poisoned.loc[late, cols] = poisoned.loc[late, cols] * 7
    a, b, c = (train(p, ['xgboost'], 7, train_end=e, rounds=5)[0] for p, e in ((px, end), (poisoned, end), (px[~late].reset_index(drop=True), None)))
    assert _bytes(a, tmp_path/'a') == _bytes(b, tmp_path/'b') == _bytes(c, tmp_path/'c')
    assert a.span['end'] < pd.Timestamp(end, unit='ms').strftime('%Y-%m-%dT%H:%MZ')


def test_the_test_fit_does_not_see_the_held_out_slice(px, learnt, monkeypatch):
    old, new = split(learnt.times, TEST, 24); seen = []
    class Spy(Zero):
        kind = 'spy'
        def fit(self, panel, seed): seen.append(panel.X.index); return super().fit(panel, seed)
    monkeypatch.setitem(KINDS, 'spy', Spy)
    c = train(px, ['spy'], 1)[0].metrics; test = min(seen, key=len)
    assert len(seen) == 2 and test.equals(learnt.X.index[old]) and max(seen, key=len).equals(learnt.X.index)
    assert test.get_level_values(1).asi8.max() + 24*HOUR <= learnt.times[new].min()
    assert c['h1']['rows'] == np.isfinite(learnt.label(1)[new]).sum()
    assert c['h1']['pinball'] == c['h1']['pinball_zero'] and not c['h1']['beats_zero'] and c['h1']['rank_ic'] is None


def test_rows_in_warm_up_and_after_gaps_are_left_out(px):
    hole = (px.symbol == 'C03USDT') & (px.open_time.astype('int64') == START + 360*HOUR)
    p = rows(px[~hole].reset_index(drop=True)); at = (p.times - START)//HOUR; c3 = at[p.symbols == 'C03USDT']
    assert at[p.symbols != 'C03USDT'].min() == WARMUP
    assert set(c3) <= set(range(WARMUP, 360)) | set(range(361 + WARMUP, 800)) and 361 + WARMUP in c3 and 359 not in c3
    assert p.X.notna().all().all() and np.isfinite(np.stack([p.label(h) for h in HORIZONS])).any(0).all()


@pytest.mark.parametrize('kind', ['ridge', 'lightgbm'])
def test_planted_order_is_found(kind):
    t = {'h1': [], 'h4': []}
    for seed in (21, 22):  # one market of 54 days is a noisy witness: two are pooled (Stouffer)
        c = _judged(kind, rows(market([f'C{i:02d}USDT' for i in range(30)], START, 1296, seed=seed)))
        for h in t: t[h].append(c[h]['rank_ic_t'] or 0.)
    assert all(sum(x) / len(x)**.5 > 3 for x in t.values()), t


@pytest.mark.parametrize('kind', ['ridge', 'xgboost', 'lightgbm'])
def test_noise_canary_stays_silent(learnt, kind):
    beats, each = 0, []
    for seed in range(5):
        c = _judged(kind, learnt, pd.DataFrame(np.random.default_rng(seed).standard_normal(learnt.X.shape), learnt.X.index, learnt.X.columns), seed)
        beats += sum(x['beats_zero'] for x in c.values()); each += [x['rank_ic'] or 0. for x in c.values()]
    each = np.array(each)
    assert abs(each.mean()) <= 3 * each.std(ddof=1) / np.sqrt(len(each)) and beats <= 2, (each, beats)


def test_a_feature_from_the_next_bar_is_seen_by_the_report_card(learnt):
    c = _judged('lightgbm', learnt, learnt.X.assign(**{FEATURES[0]: np.nan_to_num(learnt.label(1))}))['h1']
    assert c['rank_ic'] > .8 and c['beats_zero']


def test_a_symbol_in_warm_up_is_missing_at_prediction(px):
    m = train(px, ['xgboost'], 7, rounds=5)[0].forecaster
    young = (px.symbol == 'C05USDT') & (px.open_time.astype('int64') < START + 700*HOUR); p = Panel.of(px[~young].reset_index(drop=True)); now = p.take(p.times == p.times.max())
    q, c5 = m.predict(now), np.asarray(now.symbols) == 'C05USDT'
    assert np.isnan(q[c5]).all() and np.isfinite(q[~c5]).all()


@pytest.mark.parametrize('bad, words', [
    (lambda px: train(px, ['catboost'], 1), 'catboost'), (lambda px: rows(px.groupby('symbol').head(WARMUP).reset_index(drop=True)), 'more than'),
    (lambda px: rows(px, train_end=START + 60*HOUR), 'more than'), (lambda px: rows(market(SYMBOLS[:2], START, 900, seed=1, bar='15m')), 'resample')])
def test_refusals_name_the_cure(px, bad, words):
    with pytest.raises(ValueError, match=words): bad(px)
