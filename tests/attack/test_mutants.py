"A slice of the planted bugs; all of them are `python tests/attack/mutants.py --jobs 2`"
import pytest

import crash, mutants

SLICE = ('p3-triggering', 'p6-no-reduce', 'p8-old-stops', 'p11-failed', 'p14-by-order', 'p16-retry', 'late-journal', 'no-sync')


@pytest.fixture(scope='module', autouse=True)
def warm(): crash.warm()


@pytest.mark.parametrize('name', SLICE)
def test_a_planted_bug_is_caught(name): assert mutants.hunt(name)['ids']


@pytest.mark.parametrize('killer', sorted({mutants.MUTANTS[n].killers[0] for n in SLICE}))
def test_its_killer_finds_nothing_without_a_bug(killer): assert mutants.killed_by(killer) == []


def test_there_are_enough_of_them():
    assert len(mutants.MUTANTS) >= 30
    assert {x for m in mutants.MUTANTS.values() for x in m.incident.split(', ')} >= {f'P{k}' for k in range(1, 28)}
