import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from quantlib.core.clock import HOUR
from quantlib.data.labels import SPAN, labels, vol
from quantlib.data.synthetic import market

START = 1_735_689_600_000


def whole(): return market(['BTCUSDT', 'WIFUSDT'], START, 400, 5)


@settings(max_examples=6, deadline=None)
@given(st.sets(st.integers(1, 398), max_size=4))
def test_no_label_crosses_a_gap(holes):
    d = whole().drop(index=list(holes)).reset_index(drop=True)
    Y = labels(d)
    c = pd.Series(d.close.to_numpy(), Y.index)
    for h in (1, 4, 24):
        for s in ('BTCUSDT', 'WIFUSDT'):
            y, k = Y.loc[s], c.loc[s]
            known = y[f'r{h}'].dropna()
            run = [k.reindex(pd.date_range(t, periods=h + 1, freq='h')).notna().all() for t in known.index]
            assert all(run)
            later = k.reindex(known.index + pd.Timedelta(h, 'h')).to_numpy()
            np.testing.assert_allclose(known, np.log(later/k[known.index].to_numpy())/(y.vol[known.index]*h**.5), rtol=1e-9, atol=1e-12)
            unbroken = y.index[[t + pd.Timedelta(h, 'h') in k.index and k.reindex(pd.date_range(t, periods=h + 1, freq='h')).notna().all() for t in y.index]]
            assert y[f'r{h}'][unbroken].notna().sum() == y.vol[unbroken].notna().sum()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 400))
def test_vol_looks_back_only(n):
    d = whole()
    v = vol(d[d.open_time.astype('int64') < START + n*HOUR].reset_index(drop=True))
    assert v.to_numpy().tobytes() == vol(d)[v.index].to_numpy().tobytes()
    assert v.isna().sum() == 2*min(n, SPAN)


def test_the_end_has_no_label():
    Y = labels(whole())
    for s in ('BTCUSDT', 'WIFUSDT'):
        for h in (1, 4, 24): assert Y.loc[s, f'r{h}'].iloc[-h:].isna().all() and np.isfinite(Y.loc[s, f'r{h}'].iloc[SPAN:-h]).all()


def test_a_dead_market_has_no_volatility():
    d = whole()
    flat = d.assign(open=5., high=5., low=5., close=5.)
    assert vol(flat).isna().all() and labels(flat).isna().all(axis=None)


@pytest.mark.parametrize('horizons', [(0,), (-1, 4), (1.5,)])
def test_impossible_horizons(horizons):
    with pytest.raises(ValueError, match='horizons'): labels(whole(), horizons)
