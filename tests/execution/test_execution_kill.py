"The kill switch alone: with nothing else alive, under races, crashes, a full disk, and never weaker than it was set"
import json, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, strategies as st
from quantlib.core.settings import Home
from quantlib.execution.kill import Kill, KillRefused, Level, clear, history, put, read


@given(st.lists(st.sampled_from(list(Level)), min_size=1, max_size=6))
def test_it_only_rises(tmp_path_factory, levels):
    home = Home(tmp_path_factory.mktemp('k'))
    for n, level in enumerate(levels, 1): assert put(home, level, 'test', 'me', n).level == max(levels[:n])
    assert [h['level'] for h in history(home)] == [x.name for x in levels]


@given(st.one_of(st.binary(max_size=200), st.text(max_size=80).map(str.encode), st.dictionaries(st.sampled_from(['level', 'why', 'by', 'at']), st.one_of(st.text(max_size=8), st.integers(), st.none())).map(lambda d: json.dumps(d).encode())))
def test_whatever_stands_in_the_file_stops_something(tmp_path_factory, content):
    home = Home(tmp_path_factory.mktemp('k'))
    home.kill.write_bytes(content)
    k = read(home)
    assert isinstance(k, Kill) and isinstance(k.level, Level)
    assert k.level == Level.CANCEL or content.decode().strip().upper() in Level.__members__ or json.loads(content)['level'] == k.level.name


def test_a_folder_or_a_file_of_the_older_kind_counts_as_cancel(tmp_path):
    home = Home(tmp_path/'a').make(); home.kill.mkdir()
    assert read(home).level == Level.CANCEL
    home = Home(tmp_path/'b').make(); home.kill.write_text('{"level": "halt", "why": "by hand"}')
    assert read(home).level == Level.CANCEL


def test_many_at_once_leave_the_highest(tmp_path):
    home = Home(tmp_path)
    with ThreadPoolExecutor(8) as pool: list(pool.map(lambda n: put(home, list(Level)[n % 5], f'n{n}', 'me', n), range(40)))
    assert read(home).level == Level.HALT and len(history(home)) == 40


def test_it_works_while_somebody_hangs_with_the_lock(tmp_path):
    home = Home(tmp_path)
    p = subprocess.Popen([sys.executable, '-c', f'import fcntl,time; f=open({str(tmp_path/"KILL.lock")!r},"a"); fcntl.flock(f,2); print(1,flush=True); time.sleep(60)'], stdout=subprocess.PIPE)
    p.stdout.readline(); t = time.monotonic()
    try: assert put(home, 'FLATTEN', 'test', 'me').level == Level.FLATTEN and time.monotonic() - t < 3
    finally: p.kill(); p.wait()


FULL = '''
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from quantlib.core.settings import Home
from quantlib.execution.kill import put
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
put(Home(sys.argv[1]), sys.argv[2], 'disk full', 'me')
'''


@pytest.mark.parametrize('before,asked,left', [(None, 'FLATTEN', Level.CANCEL), ('PAUSE', 'REDUCE', Level.CANCEL), ('FLATTEN', 'HALT', Level.FLATTEN)])
def test_a_full_disk_stops_too(tmp_path, before, asked, left):
    home = Home(tmp_path)
    if before: put(home, before, 'test', 'me')
    subprocess.run([sys.executable, '-c', FULL, str(tmp_path), asked], timeout=60)
    assert read(home).level == left


def test_killed_while_setting_leaves_no_half_file(tmp_path):
    home = Home(tmp_path)
    put(home, 'PAUSE', 'x'*2_000, 'me')
    code = f'from quantlib.core.settings import Home; from quantlib.execution.kill import put, clear, Level\nprint(1, flush=True)\nwhile True: put(Home({str(tmp_path)!r}), "FLATTEN", "y"*2000, "me"); clear(Home({str(tmp_path)!r}), "z", "me", to=Level.PAUSE)'
    for k in range(3):
        p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)
        p.stdout.readline(); time.sleep(0.013*(k + 1)); p.kill(); p.wait()
        assert read(home).level in (Level.PAUSE, Level.FLATTEN) and len(read(home).why) in (1, 2_000)


def test_only_a_person_with_a_reason_clears(tmp_path):
    home = Home(tmp_path)
    with pytest.raises(KillRefused, match='nothing to clear'): clear(home, 'why not', 'me')
    put(home, Level.HALT, 'test', 'me')
    for bad in ('', '  ', None):
        with pytest.raises(KillRefused, match='reason'): clear(home, bad, 'me')
        with pytest.raises(KillRefused, match='reason'): put(home, Level.HALT, bad, 'me')
    with pytest.raises(KillRefused, match='lower'): clear(home, 'x', 'me', to=Level.HALT)
    assert read(home).level == Level.HALT
    assert clear(home, 'step by step', 'me', to=Level.REDUCE).level == Level.REDUCE and clear(home, 'all fine', 'me') is None
    assert [(h['what'], h['level']) for h in history(home)] == [('put', 'HALT'), ('clear', 'REDUCE'), ('clear', '')]


def test_a_clearing_that_cannot_be_recorded_does_not_happen(tmp_path):
    home = Home(tmp_path)
    put(home, Level.REDUCE, 'test', 'me')
    (tmp_path/'KILL.log').unlink(); (tmp_path/'KILL.log').mkdir()
    with pytest.raises(OSError): clear(home, 'all fine', 'me')
    assert read(home).level == Level.REDUCE
