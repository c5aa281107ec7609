"The journal under concurrency and death: nothing half-written, nothing twice, nothing lost"
import os, signal, subprocess, sys, time

import pytest
import sqlalchemy as sa
from quantlib.journal import bus, schema
from quantlib.journal.store import Journal, JournalError

T0 = 1_746_835_200_000
WRITER = '''
import sys
from quantlib.journal.store import Journal
from quantlib.journal import bus, schema
j, me, n = Journal(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print('ready', flush=True)
for k in range(n):
    with j.write() as c:
        c.execute(schema.runs.insert().values(id=f'{me}:{k}', job=me, slot=k, state='running', claimed_at=k))
        bus.publish(c, 's', f'{me}:{k}', {'k': k}, k)
    print(k, flush=True)
'''


def url(tmp_path): return f'sqlite:///{tmp_path}/journal.db'


def writer(tmp_path, me, n): return subprocess.Popen([sys.executable, '-c', WRITER, url(tmp_path), me, str(n)], stdout=subprocess.PIPE, text=True)


def test_every_connection_is_durable(tmp_path):
    j = Journal(url(tmp_path))
    with j.engine.connect() as a, j.engine.connect() as b:
        for c in (a, b): assert [c.exec_driver_sql(f'PRAGMA {p}').scalar() for p in ('journal_mode', 'synchronous', 'foreign_keys')] == ['wal', 2, 1]


def test_three_writers_lose_nothing(tmp_path):
    Journal(url(tmp_path)).close()
    ps = [writer(tmp_path, f'w{i}', 60) for i in range(3)]
    assert [p.wait(120) for p in ps] == [0, 0, 0]
    j = Journal(url(tmp_path))
    assert len(j.frame(schema.runs)) == len(j.frame(schema.outbox)) == 180


@pytest.mark.parametrize('seed', range(6))
def test_a_killed_writer_leaves_whole_transactions(tmp_path, seed):
    Journal(url(tmp_path)).close()
    p = writer(tmp_path, 'w', 10_000)
    assert p.stdout.readline().strip() == 'ready'
    time.sleep(0.02 + 0.03*seed); os.kill(p.pid, signal.SIGKILL); p.wait()
    told = [int(x) for x in p.stdout.read().split()]
    j = Journal(url(tmp_path))
    runs, sent = j.frame(schema.runs), j.frame(schema.outbox)
    assert set(runs.id) == set(sent.key), 'a row and its message are one commit'
    assert len(runs) >= len(told), 'what was confirmed is there'
    assert j.scalar(sa.text('PRAGMA integrity_check')) == 'ok'


def test_a_message_is_worked_off_once_by_two_consumers(tmp_path):
    j = Journal(url(tmp_path))
    with j.write() as c:
        for k in range(40): bus.publish(c, 's', str(k), {'k': k}, T0)
    a, b = (bus.Consumer(j, 's', 'g', n, idle_ms=1000) for n in 'ab')
    done = []
    for now in range(T0, T0 + 40_000, 500):
        for who in (a, b):
            for m in who.take(now, 3)[:2]:          # takes three, works two, dies before the third
                with j.write() as c: who.ack(c, m['seq'], now)
                done.append(m['key'])
    assert sorted(done, key=int) == [str(k) for k in range(40)]
    assert bus.lag(j, 's', 'g', T0 + 99_000) == dict(published=40, acked=40, waiting=0, oldest_ms=0)


def test_an_acknowledgement_dies_with_its_effect(tmp_path):
    j = Journal(url(tmp_path))
    with j.write() as c: bus.publish(c, 's', 'x', {}, T0)
    who = bus.Consumer(j, 's', 'g', 'a')
    m = who.take(T0)[0]
    with pytest.raises(ZeroDivisionError):
        with j.write() as c: who.ack(c, m['seq'], T0); 1/0
    assert [x['count'] for x in who.take(T0)] == [2]


def test_no_row_without_its_cause(tmp_path):
    j = Journal(url(tmp_path))
    with pytest.raises(sa.exc.IntegrityError):
        with j.write() as c: c.execute(schema.policy.insert().values(cycle_id='nowhere', weights={}, returns={}))
    with pytest.raises(JournalError):
        with j.write() as c: bus.Consumer(j, 's', 'g', 'a').ack(c, 7, T0)


def test_a_network_drive_is_refused(tmp_path, monkeypatch):
    "A file system that cannot do WAL gives another journal mode; that is not good enough"
    import quantlib.journal.store as store
    class Odd:
        def execute(self, q): self.q = q; return self
        def fetchall(self): return []
        def fetchone(self): return ('delete',) if 'journal_mode' in self.q else (2,) if 'synchronous' in self.q else (1,)
        def close(self): pass
    with pytest.raises(JournalError, match='network drive'): store._pragmas(30)(type('C', (), {'cursor': lambda s: Odd()})(), None)
