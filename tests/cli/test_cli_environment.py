"A running fund in real time: the trading key reaches the gateway alone, dead parts come back, and the kill switch works beside it"
import os, signal, subprocess, sys, time
from pathlib import Path

import psutil
import pytest
from quantlib.cli.cli import _market, _trusted
from quantlib.cli.processes import Part, Supervisor, spawn
from quantlib.core.settings import Home

QUANTLIB = str(Path(sys.executable).with_name('quantlib'))
CANARY = 'CANARYcanaryCANARYcanary'
SETTINGS = '[universe]\nsymbols = BTCUSDT, ETHUSDT, SOLUSDT\nhistory_bars = 620\nsnapshot_bars = 600\n[models]\nrounds = 5\nmembers = xgboost, lightgbm\n[sandbox]\nport = 0\n'


ROLES = ('execution.gateway', 'cli sandbox', 'cli scheduler', 'zygote', 'ipykernel')


def environ(pid):
    try: return Path(f'/proc/{pid}/environ').read_bytes()
    except OSError: return b''


def role(p):
    try: line = ' '.join(p.cmdline())
    except psutil.Error: return ''
    return next((r for r in ROLES if r in line), line)


@pytest.fixture(scope='module')
def fund(tmp_path_factory):
    "`quantlib up` with a key in its environment, and what its processes were seen to hold"
    d = tmp_path_factory.mktemp('up'); (d/'settings.ini').write_text(SETTINGS)
    env = os.environ | {'QUANTLIB_SETTINGS': str(d/'settings.ini'), 'QUANTLIB_KEY': CANARY, 'QUANTLIB_SECRET': CANARY[::-1]}
    up = subprocess.Popen([QUANTLIB, 'up', '--home', str(d/'home'), '--seconds', '90'], env=env, cwd=d, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) # as a shell starts a background job
    yield up, d/'home', psutil.Process(up.pid)
    if up.poll() is None: up.send_signal(signal.SIGINT)
    up.communicate(timeout=30)


def watch(up, done, seconds):
    "Role → environments seen, until `done(roles)`"
    seen, end = {}, time.monotonic() + seconds
    while time.monotonic() < end and up.is_running():
        for p in up.children(recursive=True): seen.setdefault((role(p), p.pid), set()).add(environ(p.pid))
        if done({r for r, _ in seen}): break
        time.sleep(.1)
    return seen


def test_only_the_gateway_is_given_the_key(fund):
    up, home, process = fund
    seen = watch(process, lambda roles: set(ROLES) <= roles, 60)
    assert set(ROLES) <= {r for r, _ in seen}, sorted(seen)
    # a child between fork and exec still looks like `quantlib up` itself, which was given the key by hand
    for (r, pid), blocks in seen.items():
        for b in blocks:
            if r != 'execution.gateway' and 'quantlib up' not in r: assert CANARY.encode() not in b and CANARY[::-1].encode() not in b, r


def test_a_dead_gateway_comes_back(fund):
    up, home, process = fund
    old = next(p for p in process.children(recursive=True) if role(p) == 'execution.gateway')
    old.kill()
    new = lambda: [p for p in process.children(recursive=True) if role(p) == 'execution.gateway' and p.pid != old.pid]
    end = time.monotonic() + 15
    while not new() and time.monotonic() < end: time.sleep(.1)
    assert new(), 'started again after a pause'


def test_doctor_tells_when_the_market_ends(fund):
    up, home, _ = fund
    (fine, market), (whole, _) = _market(Home(home)), _trusted(Home(home))
    assert fine and 'ends 20' in market and whole


def test_no_secret_is_left_in_the_home(fund):
    up, home, _ = fund
    up.send_signal(signal.SIGINT)
    out, _ = up.communicate(timeout=40)
    assert 'synthetic market ends' in out and 'gateway had ended with code -9' in out and CANARY not in out, out
    for p in home.rglob('*'):
        if p.is_file(): assert CANARY.encode() not in p.read_bytes() and CANARY[::-1].encode() not in p.read_bytes(), p


def test_a_child_inherits_everything_but_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv('QUANTLIB_KEY', CANARY); monkeypatch.setenv('QUANTLIB_KEYFILE', '/etc/key'); monkeypatch.setenv('OTHER', 'kept')
    show = lambda env: spawn('x', ['json.tool', '--help'], Home(tmp_path), env, stdout=subprocess.DEVNULL)
    for env, there in ((None, False), ({'QUANTLIB_KEY': CANARY}, True)):
        p = show(env); block = environ(p.pid); p.wait()
        assert (CANARY.encode() in block) == there and b'OTHER=kept' in block and b'KEYFILE' not in block


def test_a_part_that_ends_says_with_what(tmp_path):
    s = Supervisor([Part('x', lambda: subprocess.Popen([sys.executable, '-c', 'raise SystemExit(3)']))])
    assert [p.starts for p in s.watch(0.0)] == [1]
    s.parts[0].child.wait()
    assert s.watch(1.0) == [] and s.parts[0].code == 3 and [p.starts for p in s.watch(2.1)] == [2]
    s.stop()
