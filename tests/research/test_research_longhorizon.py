"The long-horizon benchmark on files of every shape it claims to read"
import json
from pathlib import Path
import numpy as np, pandas as pd, pytest
from quantlib.research.longhorizon import ETT, MODELS, bench, ett, last_value, load, run, split, together

REAL = Path(__file__).resolve().parents[2].parent/'shared'/'data'/'ett'/'ETTh1.csv'


def frame(n, step, columns, seed=0):
    rng, t = np.random.default_rng(seed), np.arange(n)
    x = np.stack([np.sin(2*np.pi*t/24 + k) for k in range(len(columns))], 1) + .3*rng.standard_normal((n, len(columns))) + 5*rng.standard_normal(len(columns))
    return pd.DataFrame(x, columns=list(columns)).assign(date=pd.date_range('2016-07-01', periods=n, freq=step))[['date', *columns]]


@pytest.fixture
def file(tmp_path):
    def make(*a, **kw): frame(*a, **kw).to_csv(tmp_path/'f.csv', index=False); return tmp_path/'f.csv'
    return make


@pytest.mark.parametrize('n,step,columns,cuts', [(17_420, 'h', ETT, (8640, 2880, 2880)), (69_680, '15min', ETT, (34_560, 11_520, 11_520)), (14_399, 'h', ETT, (10_079, 1441, 2879)),
                                                 (7_588, 'D', 'abcdefgh', (5311, 760, 1517)), (966, '7D', 'abcdefg', (676, 97, 193)), (17_420, 'h', 'abcdefg', (12_194, 1742, 3484))])
def test_the_split_follows_from_the_file(n, step, columns, cuts):
    s = split(pd.DataFrame(dict(date=pd.date_range('2016', periods=n, freq=step)) | {c: 0. for c in columns}))
    assert (s['train'], s['valid'], s['test']) == cuts and (('ETT' in s['rule']) == (cuts[1] == cuts[2]))


def test_windows_of_the_parts_meet_and_never_share_a_target(file):
    task = load(file(900, 'D', 'abc'))
    a, b, c = (task.windows(p, 40, 7) for p in ('train', 'valid', 'test'))
    n = task.cuts['train'], task.cuts['valid'], task.cuts['test']
    assert (len(a), len(b), len(c)) == (n[0] - 46, n[1] - 6, n[2] - 6)
    z = task.z.astype(np.float32)
    for w, (lo, hi) in zip((a, b, c), (task.bounds(p) for p in ('train', 'valid', 'test'))):
        first, last = w.view[0].numpy(), w.view[-1].numpy()
        lo = lo or 40
        assert np.array_equal(first[:, 40:], z[:, lo:lo+7]) and np.array_equal(last[:, 40:], z[:, hi-7:hi])


def test_the_scale_is_that_of_the_learning_part_alone(file):
    path = file(900, 'D', 'abc'); df = pd.read_csv(path); n = load(path).cuts['train']
    df.iloc[n:, 1:] *= 1000; df.to_csv(path, index=False); spoiled = load(path)
    assert np.allclose(spoiled.z[:, :n].mean(1), 0, atol=1e-9) and np.allclose(spoiled.z[:, :n].std(1), 1)


@pytest.mark.parametrize('model', ['ridge', 'nhits', 'patchtst'])
def test_the_test_part_has_no_say_in_what_is_learnt(file, model):
    path = file(800, 'h', 'ab'); task = load(path); lo, _ = task.bounds('test')
    other = load(path); other.z[:, lo + 60:] = 99.
    a, b = (run(t, model, 6, seed=1, effort=.01) for t in (task, other))
    assert np.array_equal(a.p[:60 - 6], b.p[:60 - 6]) and a.curve[-1]['valid'] == b.curve[-1]['valid']


@pytest.mark.parametrize('n,step,columns,horizon', [(966, '7D', 'abcdefg', 24), (1100, 'D', 'abcdefgh', 96), (1500, '15min', ETT, 48), (700, 'h', ('load',), 1)])
def test_files_of_other_kinds_run_unchanged(file, n, step, columns, horizon):
    r = bench(file(n, step, columns), 'ensemble', horizon, seeds=1, effort=.01)
    assert r['test_windows'] == r['split']['test'] - horizon + 1 and len(r['columns']) == len(columns)
    assert list(r['mean']) == list(MODELS) and all(np.isfinite(v['mse']) and v['cpu_s'] > 0 for v in r['mean'].values())
    assert r == json.loads(json.dumps(r)) and r['settings']['nhits']['length'] <= r['split']['train'] // 4


def test_scores_are_those_of_all_windows(file):
    task = load(file(700, 'h', 'abc')); r = run(task, 'ridge', 5)
    lo, hi = task.bounds('test')
    truth = np.stack([task.z[:, i:i+5] for i in range(lo, hi - 4)])
    assert abs(np.square(r.p - truth).mean() - r.mse) < 1e-6 and abs(np.abs(r.p - truth).mean() - r.mae) < 1e-6
    assert np.allclose(last_value(task, 5).p[0], task.z[:, lo-1:lo].repeat(5, 1), atol=1e-6)
    two = together([r, last_value(task, 5)])
    assert np.allclose(two.p, (r.p + last_value(task, 5).p)/2) and two.model == 'ensemble'


def test_same_seed_same_figures_also_in_another_process(file):
    path = file(400, 'h', 'ab')
    a, b = bench(path, 'nhits', 4, seeds=2, effort=.02), bench(path, 'nhits', 4, seeds=1, effort=.02, processes=2)
    assert a['runs'][0]['mse'] == b['runs'][0]['mse'] and a['runs'][0]['mse'] != a['runs'][1]['mse']


def test_bad_files_and_wishes_are_refused(file, tmp_path):
    path = file(400, 'h', 'ab'); df = pd.read_csv(path)
    df.assign(a=df.a.where(df.index != 7)).to_csv(tmp_path/'gap.csv', index=False)
    with pytest.raises(ValueError, match='odd values in a'): load(tmp_path/'gap.csv')
    df.drop(columns='date').to_csv(tmp_path/'nodate.csv', index=False)
    with pytest.raises(ValueError, match='`date` first'): load(tmp_path/'nodate.csv')
    for kw in (dict(model='arima'), dict(horizon=0), dict(seeds=0)):
        with pytest.raises(ValueError): bench(path, **kw)
    with pytest.raises(ValueError, match='too few'): bench(path, 'patchtst', 300, seeds=1)
    df[:30].to_csv(tmp_path/'short.csv', index=False)
    with pytest.raises(ValueError): bench(tmp_path/'short.csv', 'nhits', 4, seeds=1)


def test_the_words_say_the_split(file):
    text = ett(file(700, 'h', 'abc'), 'ridge', 5)
    assert '70/10/20' in text and 'test windows' in text and 'last value' in text
    assert json.loads(ett(file(700, 'h', 'abc'), 'ridge', 5, as_json=True))['model'] == 'ridge'


@pytest.mark.skipif(not REAL.exists(), reason='the public file is not here')
def test_ridge_reaches_its_figure_on_the_public_file():
    r = bench(REAL, 'ridge', 96)
    assert r['test_windows'] == 2785 and r['mean']['ridge']['mse'] < .366 and r['mean']['ridge']['mae'] < .393
