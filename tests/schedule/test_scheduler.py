"Slots: each is run once, in order, or written down; none is forgotten"
import pytest
from hypothesis import given, strategies as st
from quantlib.core.clock import DAY, HOUR, MINUTE, floor
from quantlib.journal.store import Journal
from quantlib.schedule.jobs import JOBS
from quantlib.schedule.ledger import Ledger
from quantlib.schedule.scheduler import due, path_of, kernel_env

T0 = 1_722_772_800_000  # 2024-08-04T12:00Z
TRADE, RETRAIN = JOBS['trade'], JOBS['retrain']


def test_a_run_off_the_grid_does_not_hide_the_next_slot():
    "The first training happens when the fund starts, at noon; the daily one at midnight is due all the same"
    assert due(RETRAIN, 1440, T0 + 12*HOUR + 2*MINUTE, T0, T0, 600_000) == (T0 + 12*HOUR, [])


@given(st.sampled_from([5, 15, 60, 240, 1440]), st.lists(st.integers(1_000, 8*HOUR), min_size=1, max_size=60), st.sampled_from(['trade', 'retrain']), st.integers(0, 3*HOUR))
def test_every_slot_is_run_or_missed_exactly_once(every, pauses, name, shift):
    job, step, now, last, seen = JOBS[name], every*MINUTE, T0 + shift, None, []
    since = now
    for p in pauses:
        run, missed = due(job, every, now, last, since, 600_000, most=10_000)
        assert all(s % step == 0 and s >= floor(since, step) for s in missed + [run] if s is not None)
        assert run is None or (now >= run + job.delay_s*1000 and run not in missed)
        new = sorted(missed + ([run] if run is not None else []))
        seen += new; last = max([*new, last or 0]) or last
        now += p
    assert seen == sorted(set(seen))
    if seen: assert seen == list(range(seen[0], seen[-1] + 1, step)), 'no slot is forgotten'


@given(st.integers(0, 3*DAY))
def test_trade_never_runs_late(late):
    run, _ = due(TRADE, 60, T0 + late, T0 - HOUR, T0 - DAY, 600_000)
    assert run is None or T0 + late - run - 10_000 <= 600_000


def test_two_schedulers_share_the_slots(tmp_path):
    j = Journal(f'sqlite:///{tmp_path}/j.db')
    a, b = Ledger(j), Ledger(j)
    for k in range(20):
        mine, other = (x.claim('ingest', T0 + k*HOUR, T0, 60_000) for x in (a, b))
        assert mine and other is None
        a.finish(mine, 'done', T0)


def test_overlap_is_skipped_and_lost_runs_are_found(tmp_path):
    ledger = Ledger(Journal(f'sqlite:///{tmp_path}/j.db'))
    first = ledger.claim('trade', T0, T0, 300_000)
    assert ledger.claim('trade', T0 + HOUR, T0 + 1000, 300_000) is None
    assert ledger.sweep(T0 + 300_001) == [first]
    assert ledger.claim('trade', T0 + 2*HOUR, T0 + 400_000, 300_000)


def test_a_kernel_gets_no_key(monkeypatch):
    for k in ('QUANTLIB_KEY', 'QUANTLIB_SECRET', 'binance_api_secret', 'MY_TOKEN', 'DB_PASSWORD'): monkeypatch.setenv(k, 'canary')
    assert 'canary' not in kernel_env({}).values()


def test_executed_copies_have_a_place_of_their_own(tmp_path):
    paths = {path_of(tmp_path, f'trade:2024-08-04T12:00Z{n}', 'trade', T0) for n in ('', '#1', '#2')}
    assert len(paths) == 3 and all(':' not in p.name for p in paths)


def test_a_run_by_hand_leaves_the_slot_to_the_scheduler(tmp_path):
    ledger = Ledger(Journal(f'sqlite:///{tmp_path}/j.db'))
    assert ledger.claim('trade', T0, T0, 300_000, by_hand=True) == 'trade:2024-08-04T12:00Z#1'
    assert ledger.last_slot('trade') is None
    ledger.finish('trade:2024-08-04T12:00Z#1', 'done', T0)
    assert ledger.claim('trade', T0, T0, 300_000) == 'trade:2024-08-04T12:00Z'
    assert ledger.claim('trade', T0, T0, 300_000) is None
    assert ledger.claim('trade', T0, T0, 300_000, by_hand=True).endswith('#2')


def test_a_restarted_scheduler_owes_the_slots_of_its_absence():
    "It began at noon, ran 12:00 and 13:00, died, and is back at 15:00:20"
    run, missed = due(TRADE, 60, T0 + 3*HOUR + 20_000, T0 + HOUR, T0, 600_000)
    assert run == T0 + 3*HOUR and missed == [T0 + 2*HOUR]
