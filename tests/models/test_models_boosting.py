"Boosted forecasters: order of quantiles, missing features, purge, determinism, coverage"
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from quantlib.core.clock import HOUR
from quantlib.models.boosting import KINDS, LGBM, XGB, Zero, offsets, split
from quantlib.models.forecast import Forecaster, HORIZONS, forecast

trees = pytest.mark.parametrize('cls', [XGB, LGBM])


@pytest.fixture(scope='module')
def fitted(planted): return {c: c(rounds=20).fit(*planted, seed=3) for c in (XGB, LGBM, Zero)}


@pytest.mark.parametrize('cls', [XGB, LGBM, Zero])
def test_every_kind_follows_the_protocol(cls): assert isinstance(cls(), Forecaster) and KINDS[cls.kind] is cls


@trees
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=8, max_size=8), min_size=1, max_size=5))
def test_quantiles_never_cross_whatever_the_features(fitted, cls, rows):
    q = fitted[cls].predict(pd.DataFrame(rows, columns=fitted[cls].features))
    assert np.isfinite(q).all() and (np.diff(q, axis=-1) >= 0).all()


@trees
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 1e300])
def test_a_spoilt_feature_makes_its_row_missing_and_no_other(fitted, planted, cls, bad):
    X = planted[0].tail(5).copy(); clean = fitted[cls].predict(X)
    X.iloc[2, 4] = bad
    q = fitted[cls].predict(X)
    assert np.isnan(q[2]).all() and (np.delete(q, 2, 0) == np.delete(clean, 2, 0)).all()


@trees
def test_all_rows_missing_is_a_forecast_of_nothing(fitted, planted, cls):
    X = planted[0].tail(3) * np.nan; X.index = ['A', 'B', 'C']
    f = forecast(fitted[cls], 'd', X)
    assert f.missing == ('A', 'B', 'C') and np.isnan(f.p_up()).all()


@trees
def test_a_row_alone_gives_the_same_bits_as_in_a_batch(fitted, planted, cls):
    X = planted[0].tail(42); q = fitted[cls].predict(X)
    assert all((fitted[cls].predict(X.iloc[[i]])[0] == q[i]).all() for i in range(len(X)))


@trees
def test_same_seed_same_bits_other_seed_other_model(fitted, planted, cls, tmp_path):
    again, other = cls(rounds=20).fit(*planted, seed=3), cls(rounds=20).fit(*planted, seed=4)
    texts = []
    for name, m in (('a', fitted[cls]), ('b', again), ('c', other)):
        (tmp_path/name).mkdir(); texts.append([(n, (tmp_path/name/n).read_bytes()) for n in m.save(tmp_path/name)])
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize('cls', [XGB, LGBM, Zero])
def test_saved_and_loaded_answers_with_the_same_bits(fitted, planted, cls, tmp_path):
    names = fitted[cls].save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert (cls.load(tmp_path).predict(planted[0]) == fitted[cls].predict(planted[0])).all()
    with pytest.raises(ValueError, match='not'): KINDS['xgboost' if cls is LGBM else 'lightgbm'].load(tmp_path)


@given(st.integers(30, 400), st.sampled_from([1, 4, 24]), st.floats(.05, .5), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_no_label_reaches_over_the_cut(n, h, share, symbols, seed):
    at = np.flatnonzero(np.random.default_rng(seed).random(2*n) < .6) * HOUR  # hours with gaps
    times = np.tile(at, symbols)
    old, new = split(times, share, h)
    assert not (old & new).any() and new.any()
    if old.any(): assert (times[old] + h*HOUR).max() <= times[new].min()


@trees
def test_the_centre_learns_nothing_after_the_cut(planted, cls, tmp_path):
    X, Y = planted; t = X.index.get_level_values('open_time').asi8
    for h in HORIZONS:
        old, _ = split(t, .2, h)
        poisoned = Y.where(pd.Series(old, X.index), 40.)
        a, b = cls(rounds=5).fit(X, Y, 1), cls(rounds=5).fit(X, poisoned, 1)
        assert (a._ask(a.boosters[h], X.to_numpy(np.float32)) == b._ask(b.boosters[h], X.to_numpy(np.float32))).all()
        assert (b.offsets[h] != a.offsets[h]).any()


def test_a_leaky_label_one_bar_inside_the_purge_would_be_seen(planted):
    X, Y = planted; t = X.index.get_level_values('open_time').asi8
    assert split(t, .2, 24)[0].sum() < split(t, .2, 4)[0].sum() < split(t, .2, 1)[0].sum()


@given(st.integers(100, 2000), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_offsets_cover_their_own_misses(n, seed):
    miss = np.abs(np.random.default_rng(seed).standard_t(3, n)); o = offsets(miss)
    assert (np.diff(o) >= 0).all() and (o == -o[::-1]).all() and o[2] == 0
    assert (miss <= o[4]).mean() >= .9 and (miss <= o[3]).mean() >= .5


def test_coverage_holds_out_of_time(panel_of):
    X, Y = panel_of(signal=.1, hours=1500, seed=5); t = X.index.get_level_values('open_time').asi8
    old, new = split(t, .3, 24)
    q, y = XGB(rounds=20).fit(X[old], Y[old], 1).predict(X[new]), Y[new].to_numpy()
    ok = np.isfinite(y)
    for i in range(3): assert abs(((q[:, i, 0] <= y[:, i]) & (y[:, i] <= q[:, i, 4]))[ok[:, i]].mean() - .9) < .02


@pytest.mark.parametrize('spoil, words', [
    (lambda X, Y: (X.groupby(level=0).head(20), Y.groupby(level=0).head(20)), 'history'), (lambda X, Y: (X.head(600), Y.head(600)), 'two symbols'), (lambda X, Y: (X, Y.iloc[::-1]), 'indexes'), (lambda X, Y: (X, Y * np.nan), 'no labelled row on one side')])
def test_what_cannot_be_learnt_is_refused_with_a_cure(planted, spoil, words):
    with pytest.raises(ValueError, match=words): XGB().fit(*spoil(*planted), seed=1)


@trees
def test_unfitted_models_neither_speak_nor_save(planted, cls, tmp_path):
    with pytest.raises(ValueError, match='learnt nothing'): cls().predict(planted[0])
    with pytest.raises(ValueError, match='learnt nothing'): cls().save(tmp_path)


@trees
def test_shuffled_columns_are_refused(fitted, planted, cls):
    with pytest.raises(ValueError, match='another order'): fitted[cls].predict(planted[0].iloc[:3, ::-1])
    with pytest.raises(ValueError, match='x7'): fitted[cls].predict(planted[0].iloc[:3, :-1])
