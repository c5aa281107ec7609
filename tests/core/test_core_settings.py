"No file raises a ceiling; every refusal names section, key and value"
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from quantlib.core import settings as conf

ROOT = Path(__file__).resolve().parents[2]
BASE = {'universe': {'symbols': 'BTCUSDT'}}
CEILINGS = [('risk', 'max_leverage', 30), ('risk', 'max_gross', 2.0), ('risk', 'daily_drawdown', 0.15), ('risk', 'max_position_usdt', 2000), ('strategy', 'fallback_usdt', 150),
            ('exits', 'stop_max', 0.02), ('exits', 'take_max', 0.05)]


def limits():
    "Every number of the settings with its range"
    for section, f in conf.Settings.model_fields.items():
        for key, k in f.annotation.model_fields.items():
            hi = next((getattr(m, a) for m in k.metadata for a in ('le', 'lt') if hasattr(m, a)), None)
            if hi is not None: yield section, key, hi


@pytest.mark.parametrize('section,key,ceiling', CEILINGS)
def test_the_spec_is_the_ceiling(section, key, ceiling):
    assert (section, key, ceiling) in set(limits())
    with pytest.raises(conf.SettingsError, match=f'\\[{section}\\] {key} = '): conf.parse(BASE | {section: {key: str(ceiling*1.0001 if isinstance(ceiling, float) else ceiling + 1)}})


@given(st.sampled_from(sorted(limits())), st.sampled_from(['nan', 'inf', '-inf', '1e999', 'None', '', 'true', '0x10', '１２', '1,5', '--1']))
def test_odd_texts_are_refused_or_in_range(limit, text):
    section, key, hi = limit
    try: s = conf.parse(BASE | {section: BASE.get(section, {}) | {key: text}})
    except conf.SettingsError as e: assert section in str(e)
    else: assert getattr(getattr(s, section), key) <= hi


def test_the_shipped_file_is_complete_and_equals_the_defaults():
    s = conf.load(ROOT/'settings.ini')
    assert len(s.universe.symbols) == len(set(s.universe.symbols)) == 42
    assert s.model_dump(exclude={'universe'}) == conf.parse(BASE).model_dump(exclude={'universe'})
    text = (ROOT/'settings.ini').read_text()
    for section, f in conf.Settings.model_fields.items():
        for key in f.annotation.model_fields: assert f'\n{key} =' in text, f'[{section}] {key} is not in settings.ini'


@given(st.text(max_size=200))
def test_any_text_is_a_file_or_a_refusal(tmp_path_factory, text):
    p = tmp_path_factory.mktemp('s')/'settings.ini'; p.write_text(text, encoding='utf8', errors='replace')
    with pytest.raises(conf.SettingsError): conf.load(p)


def test_saved_settings_are_private_and_come_back(tmp_path):
    s = conf.load(ROOT/'settings.ini')
    p = conf.save(s, conf.Home(tmp_path))
    assert conf.of_home(conf.Home(tmp_path)) == s and p.stat().st_mode & 0o077 == 0
    p.write_text(p.read_text().replace('"max_leverage": 5', '"max_leverage": 500'))
    with pytest.raises(conf.SettingsError, match='max_leverage'): conf.of_home(conf.Home(tmp_path))
