"A slice of the deaths at every step; all of them are `python tests/attack/crash.py --jobs 2`"
import pytest

import crash

SLICE = ('POST /fapi/v1/order', 'POST /fapi/v1/algoOrder', 'DELETE /fapi/v1/algoOrder', 'commit', 'fsync EMERGENCY.log')
FEW = dict(entry=5, trail=4, stop=2, close=3, emergency=3, flatten=2, locked=3, unknown=2, handover=2)


@pytest.fixture(scope='module', autouse=True)
def warm(): crash.warm()


def chosen(name, n):
    "Every step that changes something, in every mode, thinned out to `n` cells"
    cells = [c for c in crash.cells([name]) if c[2] in SLICE]
    return [cells[i*len(cells)//n] for i in range(n)]


@pytest.mark.parametrize('name', FEW)
def test_no_death_breaks_the_story(name):
    for _, deaths, label in chosen(name, FEW[name]):
        d = crash.Cell(name, deaths).play()
        assert not d['breaches'] and d['killed'], crash.command(name, deaths) + f' [{label}] {d["breaches"][:3]}'


def test_a_second_death_in_the_recovery_breaks_nothing():
    work = crash.doubles([('entry', ((k, 'after'),), '') for k in (40, 46, 52)], 2, seed=1)
    for job in work: assert not (d := crash.one(job))['breaches'], crash.command(*job[:2]) + str(d['breaches'][:3])
