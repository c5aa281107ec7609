"A slice of the sixty scenarios; the whole is `python tests/attack/scenarios.py`"
import pytest

from scenarios import AFTER, BEFORE, TABLE, play

FIRST_WAVE = ('A1 A2 A3 A4 A5 A6 A7 A9 A10 A11 A13 A14 A15 A16 A17 A19 B1 B2 B3 B4 B5 B6 B7 B8 B9 B10 B11 B12 C1 C5 C6 C8 C10 C12 '
              'D1 D2 D3 D4 D6 D7 D8 D10 D11 E1 E2 E3 E4 E5 E9 F1 F2 F4 F5 F9 G1 G2 G6 H1 H2 H5').split()
SLICE = [('A1', AFTER), ('A3', BEFORE), ('A10', ''), ('B1', ''), ('B3', AFTER), ('B6', ''), ('B7', ''), ('B10', ''), ('C6', ''), ('E4', ''), ('E5', ''), ('H5', '')]


def test_every_fault_of_the_first_wave_has_its_scenario():
    assert sorted(TABLE) == sorted(FIRST_WAVE) and len(FIRST_WAVE) == 60
    assert all(TABLE[i].phases == (BEFORE, AFTER) for i in ('A1', 'A2', 'A3', 'A4', 'A5', 'A6', 'A7', 'B3'))


@pytest.mark.parametrize('id, phase', SLICE, ids=lambda x: x or '-')
def test_scenario(id, phase): assert play(TABLE[id], phase).error == ''
