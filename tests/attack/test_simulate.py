"A slice of the simulation: some short days with faults, and two of them twice. The whole: python tests/attack/simulate.py --days 500 --jobs 2"
import pytest
import simulate

HOURS = 4


@pytest.mark.parametrize('seed', range(104, 109))
def test_a_short_day_with_faults_breaks_nothing(seed):
    day = simulate.run(seed, HOURS)
    assert day['breaches'] == [], '\n'.join(day['log'][-12:])
    assert day['seen'].get('entries'), 'a day without an entry shows nothing'
    worst = max((ms for ms, cause, *_ in day['spans'] if cause == 'ours'), default=0)
    assert worst <= 10_000, f'a position stood without a stop for {worst/1000:.1f} s'


def test_the_same_seed_tells_the_same_story(): assert simulate.twice(2, 104, HOURS)


def test_the_schedule_is_a_function_of_the_seed():
    assert simulate.schedule(3) == simulate.schedule(3) != simulate.schedule(4)
    kinds = {a.kind for s in range(60) for a in simulate.schedule(s)}
    assert set(simulate.KINDS) <= kinds, f'never planned: {set(simulate.KINDS) - kinds}'


def test_a_planted_breach_is_found_and_made_small(monkeypatch):
    "A gateway that forgets its stops is caught by the watch"
    from quantlib.execution.guard import Guard
    monkeypatch.setattr(Guard, 'place', lambda self, h, w, reason: None)
    day = simulate.run(104, HOURS)
    assert any(i in ('I4', 'I5') for i, _ in day['breaches']) or any(c == 'ours' and ms > 4_000 for ms, c, *_ in day['spans'])
