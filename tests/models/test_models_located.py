"What every kind of forecaster owes: bits, gaps, order, files, and nothing from the future"
import json
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from quantlib.core.clock import DAY, HOUR
from quantlib.models.forecast import HORIZONS, LEVELS
from quantlib.models.linear import LADDER
from quantlib.models.located import Located, Zero, offsets, split, trust, widths
from quantlib.models.panel import LEAST, Panel
from quantlib.models.train import KINDS

every = pytest.mark.parametrize('kind', KINDS)
learners = pytest.mark.parametrize('kind', [k for k in KINDS if k != 'zero'])


def _rows(panel, X): return Panel(X, panel.R, panel.Y)  # without the ranks that `take` hands on
def _after(panel, hours): return panel.take(panel.times >= panel.times.max() - (hours - 1)*HOUR)
def _masked(panel, keep, other):
    "The panel with labels changed to `other(y)` where `keep(open times, hours)` is False"
    at = panel.R.index.asi8
    return Panel(panel.X, panel.R, {h: pd.DataFrame(np.where(keep(at, h)[:, None], y, other(y)), y.index, y.columns) for h, y in panel.Y.items()})

def _same(a, b): return np.array_equal(a, b, equal_nan=True)


# Bits

@every
def test_same_seed_same_bits(planted, quick, fitted, kind, tmp_path):
    texts = []
    for name, m in (('a', fitted[kind]), ('b', quick(kind).fit(planted, 3))):
        (tmp_path/name).mkdir(); texts.append([(n, (tmp_path/name/n).read_bytes()) for n in m.save(tmp_path/name)])
    assert texts[0] == texts[1]


@pytest.mark.parametrize('kind', ['xgboost', 'lightgbm', 'nhits', 'patchtst'])
def test_another_seed_is_another_model(planted, quick, fitted, kind):
    p = _after(planted, 10)
    assert (quick(kind).fit(planted, 4).centres(p) != fitted[kind].centres(p)).any()


@every
def test_saved_and_loaded_answers_with_the_same_bits(planted, fitted, kind, tmp_path):
    names = fitted[kind].save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    again = KINDS[kind].load(tmp_path)
    assert _same(again.predict(planted), fitted[kind].predict(planted)) and (again.trust, again.features, again.seed) == (fitted[kind].trust, fitted[kind].features, 3)


@every
def test_fit_leaves_the_callers_chance_alone(planted, quick, kind):
    import torch
    np.random.seed(5); torch.manual_seed(5); quick(kind).fit(planted, 3); a = np.random.random(), torch.rand(1).item()
    np.random.seed(5); torch.manual_seed(5)
    assert a == (np.random.random(), torch.rand(1).item())


# Rows that are not whole

@every
def test_quantiles_are_ordered_and_half_missing_rows_do_not_exist(planted, fitted, kind):
    q = fitted[kind].predict(planted)
    assert q.shape == (len(planted), len(HORIZONS), len(LEVELS))
    ok = np.isfinite(q).all((1, 2))
    assert (ok | np.isnan(q).all((1, 2))).all() and ok.mean() > .7 and (np.diff(q[ok], axis=-1) >= 0).all()


@every
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_spoilt_feature_silences_its_row_and_no_other(planted, fitted, kind, bad):
    p = _after(planted, 3); X = p.X.copy(); clean = fitted[kind].predict(p)
    X.iloc[4, 5] = bad
    q = fitted[kind].predict(_rows(p, X))
    assert np.isnan(q[4]).all() and np.isfinite(np.delete(q, 4, 0)).all()
    other_hours = p.times != p.times[4]
    assert _same(q[other_hours], clean[other_hours])


@every
def test_a_symbol_that_is_missing_or_silent_changes_no_one_elses_answer_differently(planted, fitted, kind):
    p = _after(planted, 5); gone = p.symbols == 'C03USDT'; X = p.X.copy(); X.loc['C03USDT'] = np.nan
    without, silent = fitted[kind].predict(_rows(p, p.X[~gone])), fitted[kind].predict(_rows(p, X))
    assert np.isfinite(without).all() and np.allclose(without, silent[~gone], atol=1e-6) and np.isnan(silent[gone]).all()


@every
def test_the_names_of_the_symbols_mean_nothing(planted, fitted, kind):
    p, turn = _after(planted, 6), np.random.default_rng(0).permutation(10)
    names = planted.R.columns; new = dict(zip(names, names[turn]))
    def named(f): return f.rename(columns=new)[names]
    X = p.X.rename(index=new, level='symbol').sort_index()
    q = Panel(X, named(planted.R), {h: named(y) for h, y in planted.Y.items()}); q = fitted[kind].predict(q)
    want = pd.DataFrame(fitted[kind].predict(p).reshape(len(p), -1), p.X.index).rename(index=new, level='symbol').reindex(X.index)
    assert np.allclose(q.reshape(len(p), -1), want, atol=2e-5)


@every
def test_a_row_alone_gives_what_it_gives_in_a_batch(planted, fitted, kind):
    p = _after(planted, 4); p.ranks(); q = fitted[kind].predict(p)
    for i in (0, 7, len(p) - 1): assert np.allclose(fitted[kind].predict(p.take(np.array([i])))[0], q[i], atol=2e-6)


@every
def test_too_few_symbols_say_nothing(planted, fitted, kind):
    p = _after(planted, 3)
    assert np.isnan(fitted[kind].predict(_rows(p, p.X[np.isin(p.symbols, planted.R.columns[:LEAST - 1])]))).all()


@pytest.mark.parametrize('kind', ['nhits', 'patchtst'])
def test_a_network_is_silent_while_a_gap_lies_in_its_window(planted, fitted, kind):
    R = planted.R.copy(); R.iloc[380, 2] = np.nan
    q = fitted[kind].predict(Panel(planted.X, R, planted.Y)); i, s = planted.places()
    hole = (s == 2) & (i >= 380) & (i < 380 + 96)
    assert np.isnan(q[hole]).all() and np.isfinite(q[(i >= 95) & ~hole]).all()


# Nothing from the future

@every
def test_the_answer_at_an_hour_does_not_know_what_comes_after(planted, fitted, kind):
    cut = planted.times.max() - 100*HOUR; seen = planted.R.index.asi8 <= cut
    ended = _masked(planted, lambda at, h: at + h*HOUR <= cut, lambda y: np.nan)
    past = Panel(planted.X[planted.times <= cut], planted.R[seen], {h: y[seen] for h, y in ended.Y.items()})
    assert np.allclose(fitted[kind].predict(past), fitted[kind].predict(planted)[planted.times <= cut], equal_nan=True, atol=1e-6)


@learners
def test_the_centre_learns_nothing_after_the_cut(planted, quick, kind):
    old, _ = split(planted.times, .2, 24)
    turned = _masked(planted, lambda at, h: at <= planted.times[old].max(), lambda y: -3*y)
    a, b = quick(kind).fit(planted, 1), quick(kind).fit(turned, 1)
    p = _after(planted, 20)
    assert _same(a.centres(p), b.centres(p)) and (a.offsets[1] != b.offsets[1]).any()


@pytest.mark.parametrize('h', HORIZONS)
def test_widths_know_only_labels_that_have_ended(planted, h):
    last = planted.times.max()//DAY*DAY; p = planted.take(planted.times >= last); fit = np.array([-9., -9, 0, 9, 9])
    spoilt = lambda late: widths(_masked(p, lambda at, k: at + k*HOUR <= last + late, lambda y: 77*np.sign(y)), h, fit, 100)
    assert _same(widths(p, h, fit, 100), spoilt(0)) and spoilt(0).max() < 9 and not _same(spoilt(0), spoilt(-HOUR))


@given(st.integers(30, 400), st.sampled_from([1, 4, 24]), st.floats(.05, .5), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_no_label_reaches_over_the_cut(n, h, share, symbols, seed):
    at = np.flatnonzero(np.random.default_rng(seed).random(2*n) < .6) * HOUR  # hours with gaps
    times = np.tile(at, symbols)
    old, new = split(times, share, h)
    assert not (old & new).any() and new.any()
    if old.any(): assert (times[old] + h*HOUR).max() <= times[new].min()


# Trust and offsets

@given(st.integers(0, 2**31), st.sampled_from([1, 4, 24]), st.floats(1e-6, 2))
@settings(max_examples=60, deadline=None)
def test_trust_is_a_share_whatever_it_is_given(seed, h, size):
    rng = np.random.default_rng(seed); c, y = size*rng.standard_normal(400), rng.standard_t(3, 400)
    t = trust(c, y, np.repeat(np.arange(40), 10), h)
    assert 0 <= t <= 1


def test_trust_in_noise_fades_with_the_evidence():
    rng = np.random.default_rng(0)
    kept = [np.mean([trust(.1*rng.standard_normal(10*n), rng.standard_normal(10*n), np.repeat(np.arange(n), 10), 1) for _ in range(60)]) for n in (30, 300, 3000)]
    assert kept[0] > kept[1] > kept[2] and kept[2] < .05


@given(st.integers(100, 2000), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_offsets_cover_their_own_misses(n, seed):
    miss = np.abs(np.random.default_rng(seed).standard_t(3, n)); o = offsets(miss)
    assert (np.diff(o) >= 0).all() and (o == -o[::-1]).all() and o[2] == 0
    assert (miss <= o[4]).mean() >= .9 and (miss <= o[3]).mean() >= .5


# Files

@every
def test_a_folder_of_another_kind_is_refused(fitted, kind, tmp_path):
    fitted[kind].save(tmp_path); other = next(k for k in KINDS if k != kind)
    with pytest.raises(ValueError, match='not'): KINDS[other].load(tmp_path)


@every
@pytest.mark.parametrize('change', [lambda d: d.pop('offsets'), lambda d: d.update(levels=[.1, .5, .9]), lambda d: d['trust'].pop('24'), lambda d: d['offsets'].update({'48': [0]*5})])
def test_an_edited_description_is_refused(fitted, kind, change, tmp_path):
    fitted[kind].save(tmp_path); f = tmp_path/'model.json'; d = json.loads(f.read_text()); change(d); f.write_text(json.dumps(d))
    with pytest.raises((ValueError, KeyError)): KINDS[kind].load(tmp_path)


@pytest.mark.parametrize('kind', ['ridge', 'nhits', 'patchtst'])  # a cut file of trees aborts the process inside its library: the registry compares hashes before it opens one
@pytest.mark.parametrize('how', ['cut', 'empty', 'gone'])
def test_a_damaged_file_does_not_load(fitted, kind, how, tmp_path):
    f = tmp_path/next(n for n in fitted[kind].save(tmp_path) if n != 'model.json')
    if how == 'gone': f.unlink()
    else: f.write_bytes(f.read_bytes()[:len(f.read_bytes())//2] if how == 'cut' else b'')
    with pytest.raises(Exception): KINDS[kind].load(tmp_path)


@every
def test_nothing_in_a_folder_can_run_code(fitted, kind, tmp_path):
    assert all(n.rsplit('.', 1)[1] in ('json', 'safetensors', 'ubj', 'txt') for n in fitted[kind].save(tmp_path))


# Refusals

@pytest.mark.parametrize('kind', [*KINDS, *LADDER])
def test_unfitted_models_neither_speak_nor_save(planted, kind, tmp_path):
    m = (KINDS | LADDER)[kind]()
    with pytest.raises(ValueError, match='learnt nothing'): m.predict(planted)
    with pytest.raises(ValueError, match='learnt nothing'): m.save(tmp_path)


@every
def test_other_features_are_refused(planted, fitted, kind):
    with pytest.raises(ValueError, match='another order'): fitted[kind].predict(_rows(planted, planted.X.iloc[:3, ::-1]))
    with pytest.raises(ValueError, match='x7'): fitted[kind].predict(_rows(planted, planted.X.iloc[:3, :-1]))


@pytest.mark.parametrize('spoil, words', [
    (lambda p: p.take(p.times < p.times.min() + 20*HOUR), 'history'), (lambda p: p.take(p.symbols == 'C00USDT'), 'symbols'),
    (lambda p: p.take(p.times == p.times[0]), 'open times'), (lambda p: Panel(p.X*np.nan, p.R, p.Y), 'no usable row')])
def test_what_cannot_be_learnt_is_refused_with_a_cure(planted, spoil, words):
    with pytest.raises(ValueError, match=words): Zero().fit(spoil(planted), seed=1)


def test_coverage_holds_out_of_time(panel_of):
    p = panel_of(signal=.1, hours=1500, seed=5); old, new = split(p.times, .3, 24); m = Zero().fit(p.take(old), 1); held = p.take(new); q = m.predict(held)
    for i, h in enumerate(HORIZONS):
        y = held.label(h); ok = np.isfinite(y)
        assert abs(((q[:, i, 0] <= y) & (y <= q[:, i, 4]))[ok].mean() - .9) < .025


def test_every_kind_and_step_of_the_ladder_is_located():
    assert all(issubclass(c, Located) and c.kind == k for k, c in (KINDS | LADDER).items())
