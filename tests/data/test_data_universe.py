from pathlib import Path
import json

import pytest

from quantlib.data.universe import UniverseError, absent, symbols

META = Path(__file__).resolve().parents[2].parent/'shared'/'data'/'market'


@pytest.mark.parametrize('names', [[], ['BTC'], ['btcusdt'], ['BTCUSDT '], ['BTC-USDT'], ['USDT'], [None], [1], ['BTCUSDT', 'BTCUSDT'], ['BTCUSDT\n']])
def test_bad_lists_are_refused(names):
    with pytest.raises(UniverseError): symbols(names)


def test_the_shipped_setting_is_the_universe():
    from quantlib.core.settings import load
    got = symbols(load(Path(__file__).resolve().parents[2]/'settings.ini'))
    assert len(got) == 42 and got == sorted(got)
    if (META/'universe42.json').exists(): assert got == sorted(json.loads((META/'universe42.json').read_text()))


@pytest.mark.skipif(not (META/'meta').exists(), reason='recorded data not here')
def test_recorded_exchange_info_trades_the_universe():
    info = json.loads((META/'meta'/'binance_usdm_exchangeInfo_2025-10-30.json').read_text())
    assert absent(json.loads((META/'universe42.json').read_text()), info) == {}
    assert set(absent(['BTCUSDT', 'NOSUCHUSDT'], info)) == {'NOSUCHUSDT'}
