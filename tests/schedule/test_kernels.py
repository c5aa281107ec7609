"""Attacks on the zygote and its kernels: leaks, hangs, orphans, strangers"""
import asyncio, os, signal, socket, stat, struct, subprocess, sys, textwrap, time
from contextlib import asynccontextmanager
from pathlib import Path
import pytest
from quantlib.schedule.kernels import (SOCKET_BYTES, WARM, ZygoteError, ask_zygote, is_warm, kernel_manager, scratch, socket_path, start_zygote,
    stop_zygote, warm_kernels)

@asynccontextmanager
async def kernel(name=WARM, env=None, cwd='/'):
    with scratch() as folder:
        km = kernel_manager(name, folder)
        await km.start_kernel(env={**os.environ, **(env or {})}, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        kc = km.client(); kc.start_channels()
        try:
            await kc.wait_for_ready(60)
            yield km, kc
        finally:
            kc.stop_channels()
            await km.shutdown_kernel(now=True)

async def ask(kc, code, timeout=90):
    "What `code` prints"
    said = []
    def hook(m):
        if m['msg_type'] == 'stream': said.append(m['content']['text'])
        if m['msg_type'] == 'error': said.append(f"{m['content']['ename']}: {m['content']['evalue']}")
    await kc.execute_interactive(code, output_hook=hook, timeout=timeout)
    return ''.join(said).strip()

def fresh(code, **kw):
    "What `code` prints in a new warm kernel"
    async def go():
        async with kernel(**kw) as (km, kc):
            assert is_warm(km)
            return await ask(kc, code)
    return asyncio.run(go())

def gone(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] == 'Z'
    except FileNotFoundError: return True

def eventually(condition, seconds=10):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition(): return True
        time.sleep(0.02)
    return False

def test_state_does_not_leak(zygote):
    fresh("import builtins, pandas, os; builtins.leak = pandas.leak = 1; os.environ['LEAK'] = '1'; os.chdir('/proc')")
    assert fresh("import builtins, pandas, os; print(hasattr(builtins, 'leak'), hasattr(pandas, 'leak'), 'LEAK' in os.environ, os.getcwd())") == 'False False False /'

def test_random_numbers_differ_between_forks(zygote):
    code = 'import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1).item())'
    for one, other in zip(fresh(code).split(), fresh(code).split()): assert one != other

def test_project_is_not_preloaded(zygote):
    assert fresh("import sys; print([m for m in sys.modules if m.split('.')[0] == 'quantlib'], 'xgboost' in sys.modules)") == '[] True'

def test_environment_and_folder_are_the_callers(zygote, tmp_path):
    code = "import os; print(os.getcwd(), os.environ['HELLO'], os.environ.get('JPY_PARENT_PID'))"
    assert fresh(code, env={'HELLO': 'you', 'JPY_PARENT_PID': '1'}, cwd=tmp_path) == f'{tmp_path} you None'

def test_native_threads_work_after_the_fork(zygote):
    code = '''
        import os, numpy as np, pandas as pd, xgboost, lightgbm, torch, deltalake, tempfile
        os.environ['OMP_NUM_THREADS'] = '2'
        X = np.random.rand(3000, 10); y = X[:, 0]
        xgboost.train({'nthread': 2}, xgboost.DMatrix(X, y), 5).predict(xgboost.DMatrix(X))
        lightgbm.train({'num_threads': 2, 'verbose': -1}, lightgbm.Dataset(X, y), 5).predict(X)
        torch.set_num_threads(2)
        w = torch.rand(400, 400, requires_grad=True); (w @ w).sum().backward()
        np.linalg.svd(X @ X.T[:, :300])
        d = tempfile.mkdtemp(); deltalake.write_deltalake(d, pd.DataFrame(X, columns=list('abcdefghij')))
        print(len(deltalake.DeltaTable(d).to_pandas()))'''
    assert fresh(textwrap.dedent(code)) == '3000'

def test_many_kernels_at_once(zygote):
    async def one(i):
        async with kernel() as (km, kc): return is_warm(km), await ask(kc, f'print({i}*{i})')
    async def go(): return await asyncio.gather(*(one(i) for i in range(4)))
    assert asyncio.run(go()) == [(True, str(i*i)) for i in range(4)]
    assert eventually(lambda: zygote.facts()['kernels'] == 0)

def test_interrupt_and_restart(zygote):
    async def go():
        async with kernel() as (km, kc):
            await ask(kc, 'x = 1')
            running = asyncio.create_task(ask(kc, 'import time; time.sleep(60)'))
            await asyncio.sleep(0.3)
            await km.interrupt_kernel()
            assert 'KeyboardInterrupt' in await asyncio.wait_for(running, 10)
            assert await ask(kc, 'print(x)') == '1'
            await km.restart_kernel(now=True)
            await kc.wait_for_ready(60)
            assert is_warm(km) and 'NameError' in await ask(kc, 'print(x)')
    asyncio.run(go())

def test_exit_code_of_a_killed_kernel(zygote):
    async def go():
        async with kernel() as (km, kc):
            process = km.provisioner.process
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait(10) == -signal.SIGKILL
    asyncio.run(go())

def test_kernel_group_ends_with_its_owner(zygote, tmp_path):
    """The owner is killed with no chance to clean up; its kernel and what that started must go"""
    owner = tmp_path/'owner.py'
    owner.write_text(textwrap.dedent('''
        import asyncio, os, sys
        from pathlib import Path
        sys.path.insert(0, str(Path(sys.argv[1])))
        from test_kernels import *
        async def go():
            async with kernel() as (km, kc):
                child = await ask(kc, "import subprocess; print(subprocess.Popen(['sleep', '300']).pid)")
                print(is_warm(km), km.provisioner.pid, child, flush=True)
                await asyncio.sleep(300)
        asyncio.run(go())'''))
    with subprocess.Popen([sys.executable, owner, Path(__file__).parent], stdout=subprocess.PIPE, text=True) as p:
        warm, *pids = p.stdout.readline().split()
        assert warm == 'True' and not any(map(gone, pids))
        p.kill()
    assert eventually(lambda: all(map(gone, pids)))

def test_owned_zygote_ends_with_its_owner(tmp_path):
    code = 'import sys, time; from quantlib.schedule.kernels import *; z = start_zygote(sys.argv[1]); z.ready(120); print(z.facts()["pid"], flush=True); time.sleep(300)'
    with subprocess.Popen([sys.executable, '-c', code, tmp_path/'z.sock'], stdout=subprocess.PIPE, text=True) as p:
        pid = int(p.stdout.readline())
        assert not gone(pid)
        p.kill()
    assert eventually(lambda: gone(pid)) and not (tmp_path/'z.sock').exists()

def test_zygote_dies_kernel_lives_next_is_cold(tmp_path, monkeypatch):
    monkeypatch.setenv('JUPYTER_PATH', '')
    async def go():
        with warm_kernels(tmp_path) as z:
            assert z.ready(120)
            async with kernel() as (km, kc):
                z.process.kill(); z.process.wait()
                assert await ask(kc, 'print(6*7)') == '42'
                process = km.provisioner.process
                os.kill(process.pid, signal.SIGKILL)
                assert process.wait(10) == 255
            async with kernel() as (km, kc): assert not is_warm(km) and await ask(kc, 'print(6*7)') == '42'
            with start_zygote(z.path) as again: assert again.ready(120)  # the dead one's socket file is in the way
    asyncio.run(go())

def test_changed_packages_renew_the_zygote(tmp_path, monkeypatch):
    monkeypatch.setenv('JUPYTER_PATH', '')
    packages = tmp_path/'site-packages'
    packages.mkdir()
    monkeypatch.setenv('PYTHONPATH', str(packages))
    async def warm():
        async with kernel() as (km, _): return is_warm(km)
    with warm_kernels(tmp_path) as z:
        assert z.ready(120) and asyncio.run(warm())
        before = z.facts()
        (packages/'something-1.0.dist-info').mkdir()
        assert not asyncio.run(warm())
        assert z.ready(120) and asyncio.run(warm())
        assert z.facts()['pid'] == before['pid'] and z.facts()['fingerprint'] != before['fingerprint']

def test_second_thread_is_refused(tmp_path, monkeypatch):
    (tmp_path/'sitecustomize.py').write_text('import threading, time\nthreading.Thread(target=time.sleep, args=(300,), daemon=True).start()')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    z = start_zygote(tmp_path/'z.sock', log=tmp_path/'log')
    with pytest.raises(ZygoteError, match='2 threads'): z.ready(120)

def test_strangers_and_nonsense(zygote):
    assert stat.S_IMODE(os.stat(zygote.path).st_mode) == 0o600
    for junk in (b'', b'\0', b'\0\0\0\5hello', struct.pack('>I', 2) + b'[]', struct.pack('>I', 14) + b'{"op": "dance"}', struct.pack('>I', 15) + b'{"op":"kernel"}'):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(zygote.path)); s.sendall(junk)
    assert eventually(lambda: ask_zygote(zygote.path) is not None)
    assert fresh('print(1)') == '1'

def test_second_zygote_leaves_the_first_alone(zygote):
    pid = zygote.facts()['pid']
    from quantlib.schedule import zygote as z
    r = subprocess.run([sys.executable, z.__file__, str(zygote.path)], capture_output=True, text=True, timeout=120)
    assert r.returncode == 1 and 'another one serves' in r.stderr
    assert zygote.facts()['pid'] == pid

def test_unowned_zygote_stays_until_stopped(tmp_path):
    code = 'import sys; from quantlib.schedule.kernels import *; print(start_zygote(sys.argv[1], owned=False).ready(120))'
    r = subprocess.run([sys.executable, '-c', code, tmp_path/'z.sock'], capture_output=True, text=True, timeout=120)
    assert r.stdout.strip() == 'True'
    pid = ask_zygote(tmp_path/'z.sock')['pid']
    assert stop_zygote(tmp_path/'z.sock') and eventually(lambda: gone(pid)) and not stop_zygote(tmp_path/'z.sock')

def test_deep_home_gets_a_short_socket(tmp_path):
    deep = tmp_path/('a'*100)/('b'*100)
    assert len(os.fsencode(socket_path(deep))) <= SOCKET_BYTES
    assert socket_path(deep) == socket_path(deep) != socket_path(deep/'c')
    assert stat.S_IMODE(socket_path(deep).parent.stat().st_mode) == 0o700
    assert socket_path('/h').parent == Path('/h')
