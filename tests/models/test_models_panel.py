"The panel under gaps, late listings, permutations and truncation"
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from quantlib.core.clock import HOUR
from quantlib.data.features import WARMUP
from quantlib.data.synthetic import market
from quantlib.models.forecast import HORIZONS
from quantlib.models.panel import LEAST, Panel, fair, scaled, settled

START, SYMBOLS = 1_750_000_000_000 // HOUR * HOUR, [f'C{i:02d}USDT' for i in range(7)]


@pytest.fixture(scope='module')
def px(): return market(SYMBOLS, START, 420, seed=11)


@pytest.fixture(scope='module')
def whole(px): return Panel.of(px)


def _until(px, hours): return px[px.open_time.astype('int64') < START + hours*HOUR].reset_index(drop=True)


def test_a_truncated_history_gives_the_same_rows_bit_for_bit(px, whole):
    whole.ranks()
    for hours in (330, 377, 419):
        cut = Panel.of(_until(px, hours)); old = whole.take(whole.times < START + hours*HOUR)
        assert cut.X.equals(old.X) and cut.R.equals(whole.R.iloc[:hours]) and np.array_equal(cut.ranks(), old.ranks(), equal_nan=True)
        at = np.arange(len(cut)) % 13 == 0
        assert np.array_equal(cut.windows(48)[np.flatnonzero(at)], old.windows(48)[np.flatnonzero(at)], equal_nan=True)
        for h in HORIZONS:
            end = START + (hours - 1)*HOUR
            assert np.allclose(cut.known(h, end, 50), whole.known(h, end, 50), equal_nan=True, atol=0)


@pytest.mark.parametrize('h', HORIZONS)
def test_known_labels_end_at_the_bar_and_not_a_bar_later(whole, h):
    t = whole.Y[h].index.asi8; at = int(t[-40]); y = fair(whole.Y[h].to_numpy())
    assert np.array_equal(whole.known(h, at, 30), y[len(t) - 40 - h - 29:len(t) - 40 - h + 1], equal_nan=True)
    spoilt = Panel(whole.X, whole.R, {h: whole.Y[h].where((t + h*HOUR <= at)[:, None] & np.ones(whole.R.shape, bool), 99.)})
    assert np.array_equal(spoilt.known(h, at, 30), whole.known(h, at, 30), equal_nan=True)


def test_ranks_do_not_depend_on_names_and_a_missing_symbol_only_closes_the_row(whole):
    r = pd.DataFrame(whole.ranks(), whole.X.index); turn = dict(zip(SYMBOLS, SYMBOLS[::-1]))
    X = whole.X.rename(index=turn, level='symbol').sort_index()
    assert np.array_equal(pd.DataFrame(Panel(X, whole.R, whole.Y).ranks(), X.index).rename(index=turn, level='symbol').reindex(r.index), r, equal_nan=True)
    X = whole.X.drop('C03USDT', level='symbol'); less = pd.DataFrame(Panel(X, whole.R, whole.Y).ranks(), X.index).tail(400)
    a, b = less.xs('C06USDT').iloc[-1], r.xs('C06USDT').iloc[-1]
    assert (np.abs(a - b) <= 1/5).all() and less.abs().max().max() <= .5


@given(st.integers(LEAST, 9), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_ranks_are_those_of_pandas(n, seed):
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([[f'S{i}' for i in range(n)], pd.date_range('2026-01-01', periods=4, freq='1h', tz='UTC').as_unit('ms')], names=['symbol', 'open_time'])
    X = pd.DataFrame(rng.integers(0, 4, (4*n, 3))*1., index).mask(rng.random((4*n, 3)) < .2)
    r = Panel(X, pd.DataFrame(0., index.levels[1], index.levels[0]), {}).ranks(); g = X.groupby(level='open_time'); count = g.transform('count')
    want = ((g.rank() - 1)/(count - 1) - .5).where(count >= LEAST)
    assert np.allclose(r, want, equal_nan=True, atol=1e-6)


def test_a_gap_spoils_only_what_touches_it(px, whole):
    hole = (px.symbol == 'C03USDT') & (px.open_time.astype('int64') == START + 380*HOUR)
    p = Panel.of(px[~hole].reset_index(drop=True)); R, W = p.R, whole.R
    others = [s for s in SYMBOLS if s != 'C03USDT']
    assert R[others].equals(W[others]) and R['C03USDT'].iloc[:380].equals(W['C03USDT'].iloc[:380]) and R['C03USDT'].iloc[380:].isna().all()  # volatility starts again
    w = p.windows(24); i, s = p.places()
    assert not w.whole[(s == 3) & (i >= 380)].any() and w.whole[(s != 3) & (i >= 49 + 24)].all()
    assert p.Y[24]['C03USDT'].iloc[356:380].isna().all()  # no label reaches over the gap


def test_a_late_listing_and_a_delisting_live_beside_the_others(px):
    t = px.open_time.astype('int64'); late, gone = (px.symbol == 'C01USDT') & (t < START + 100*HOUR), (px.symbol == 'C02USDT') & (t > START + 350*HOUR)
    p = Panel.of(px[~late & ~gone].reset_index(drop=True)); keep = settled(p.X.index); at = (p.times - START)//HOUR
    assert at[keep & (p.symbols == 'C01USDT')].min() == 100 + WARMUP and at[p.symbols == 'C02USDT'].max() == 350
    assert np.isfinite(p.label(1)[(at == 400) & (p.symbols != 'C02USDT')]).all() and np.isnan(p.label(24)[(at > 326) & (p.symbols == 'C02USDT')]).all()


def test_relative_labels_of_an_instant_have_a_middle_of_zero_and_one_symbol_has_none(whole):
    for h in HORIZONS:
        y = pd.Series(whole.label(h), whole.times).groupby(level=0).median().dropna()
        assert len(y) > 300 and y.abs().max() < 1e-9
    assert np.isnan(fair(np.array([[1., np.nan, np.nan]]))).all()


def test_scaled_returns_do_not_contain_their_own_bar_in_the_scale(px):
    wild = px.copy(); last = wild.symbol.ne(wild.symbol.shift(-1)); factor = 1.5
    wild.loc[last, 'close'] *= factor; wild.loc[last, 'high'] = wild.loc[last, ['high', 'close']].max(axis=1)
    a, b = scaled(px).iloc[-1], scaled(wild).iloc[-1]
    assert (b > a).all() and scaled(px).iloc[:-1].equals(scaled(wild).iloc[:-1])


def test_settled_copes_with_nothing_and_little():
    empty = pd.MultiIndex.from_arrays([pd.Index([], dtype=str), pd.DatetimeIndex([], tz='UTC').as_unit('ms')], names=['symbol', 'open_time'])
    assert len(settled(empty)) == 0
