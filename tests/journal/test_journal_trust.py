"A journal that was damaged, cut off, copied badly or overtaken by another leader: it is refused with the cure, or it is a state that once was"
import random, shutil, time
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from hypothesis import given, settings, strategies as st
from quantlib.journal import schema
from quantlib.journal.store import Journal, JournalError, NotLeader

T0 = 1_746_835_200_000


def filled(path, rows=400):
    j = Journal(f'sqlite:///{path}')
    for k in range(rows//20):
        with j.write() as c:
            for n in range(20): c.execute(schema.runs.insert().values(id=f'{k}:{n}', job='x'*20, slot=20*k + n, state='running', claimed_at=k))
    return j


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    p = tmp_path_factory.mktemp('sound')/'journal.db'
    filled(p).close()
    return p


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9))
def test_flipped_bytes_lose_no_row_unnoticed(sound, tmp_path_factory, seed):
    "Bytes overwritten anywhere: the check refuses and names the cure, or every row is still there (a value changed inside a row is not seen: SQLite keeps no checksums)"
    p, rng = tmp_path_factory.mktemp('flip')/'journal.db', random.Random(seed)
    b = bytearray(sound.read_bytes())
    at = rng.randrange(len(b)); b[at:at + 64] = bytes(rng.randrange(256) for _ in b[at:at + 64])
    p.write_bytes(b)
    try: j = Journal(f'sqlite:///{p}'); j.check(); n = len(j.rows(schema.runs))
    except (JournalError, sa.exc.DatabaseError, ValueError) as e:
        assert not isinstance(e, JournalError) or 'aside' in str(e)
        return
    assert n == 400, 'what passes the check has lost nothing'


@pytest.mark.parametrize('share', [0., .3, .7, .999])
def test_a_cut_log_is_a_state_that_was(tmp_path, share):
    "The write-ahead log loses its end: what is left is a prefix of the transactions, each whole"
    j = filled(tmp_path/'journal.db', 200)
    for name in ('journal.db', 'journal.db-wal'): shutil.copy(tmp_path/name, tmp_path/f'copy{name[7:]}')
    j.close()
    wal = tmp_path/'copy.db-wal'; wal.write_bytes(wal.read_bytes()[:int(wal.stat().st_size*share)])
    k = Journal(f'sqlite:///{tmp_path}/copy.db'); k.check()
    slots = [r['slot'] for r in k.rows(sa.select(schema.runs.c.slot).order_by(schema.runs.c.slot))]
    assert slots == list(range(len(slots))) and len(slots) % 20 == 0


def test_a_journal_of_another_version_is_refused(tmp_path):
    j = filled(tmp_path/'journal.db', 20); j.check()
    with j.write() as c: c.exec_driver_sql('ALTER TABLE verdicts DROP COLUMN fence')
    with pytest.raises(JournalError, match='verdicts.fence.*empty journal'): j.check()


def test_a_locked_journal_fails_within_its_patience(tmp_path):
    "Another writer hangs: the write fails after a bounded wait and nothing is written"
    url = f'sqlite:///{tmp_path}/journal.db'
    a, b = Journal(url), Journal(url, patience_s=.3)
    with a.write():
        t = time.monotonic()
        with pytest.raises(sa.exc.OperationalError, match='locked'):
            with b.write() as c: c.execute(schema.runs.insert().values(id='r', job='x', slot=1, state='running', claimed_at=1))
        assert .2 < time.monotonic() - t < 3
    assert not b.rows(schema.runs)


def lease(c, account='paper'): return c.execute(schema.leases.insert().values(account=account, owner='a', taken_at=T0, until=T0, code='c', schema='s', settings='x', models={})).inserted_primary_key[0]


def test_every_way_to_write_is_fenced(tmp_path):
    j = Journal(f'sqlite:///{tmp_path}/journal.db')
    with j.write() as c: mine = lease(c); lease(c, 'another account')
    j.fence = SimpleNamespace(account='paper', fence=mine)
    j.alert(T0, 'info', 'sent', 'while leading')
    other = Journal(j.url)
    with other.write() as c: lease(c)
    for write in (lambda: j.alert(T0, 'info', 'sent', 'late'), lambda: j.write().__enter__()):
        with pytest.raises(NotLeader, match='nothing was written'): write()
    assert j.scalar(sa.select(sa.func.count()).select_from(schema.alerts)) == 1
    other.alert(T0, 'info', 'sent', 'the new leader') # the refused transactions hold no lock


def test_a_released_lease_writes_no_more(tmp_path):
    j = Journal(f'sqlite:///{tmp_path}/journal.db')
    with j.write() as c: j.fence = SimpleNamespace(account='paper', fence=lease(c))
    with j.write() as c: c.execute(schema.leases.update().values(ended_at=T0))
    with pytest.raises(NotLeader): j.alert(T0, 'info', 'sent', 'late')
