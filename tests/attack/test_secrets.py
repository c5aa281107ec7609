"No secret is written down, no code is loaded from data, no clock or dice in pure code, nobody listens beyond this machine"
import ast
import json
import os
import re
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from secret_hunt import CANARY, KEYLIKE, SIGNED, environs, traces

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(p for p in (ROOT/'quantlib').rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))
NOTEBOOKS = sorted(p for p in [*(ROOT/'nbs').rglob('*.ipynb'), *(ROOT/'scheduled').glob('*.ipynb')] if '.ipynb_checkpoints' not in str(p))


def name(path): return str(path.relative_to(ROOT/'quantlib'))


@cache
def calls(path):
    "Every call of a module as dotted text, with its line"
    out = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call): out.append((ast.unparse(node.func), node.lineno, node))
    return out


# S11, S12: no code out of data

LOADS = re.compile(r'(^|\.)(pickle|cPickle|cloudpickle|dill|joblib|torch|yaml|marshal|shelve)\.(load|loads|Unpickler|open|unsafe_load|full_load)$')


def test_nothing_is_unpickled():
    wrong = [f'{name(p)}:{line} {f}' for p in MODULES for f, line, _ in calls(p) if LOADS.search(f) or f in ('eval', 'exec') or f.endswith('.read_pickle')]
    assert wrong == []
    loose = [f'{name(p)}:{line}' for p in MODULES for f, line, node in calls(p) if f.endswith('np.load') and any(k.arg == 'allow_pickle' and getattr(k.value, 'value', True) for k in node.keywords)]
    assert loose == []


def test_the_loader_ban_finds_what_it_bans():
    for code in ('import torch\ntorch.load(f)', 'pickle.loads(b)', 'joblib.load(p)', 'yaml.load(s)', 'a.pickle.Unpickler(f)'):
        assert any(LOADS.search(ast.unparse(n.func)) for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call)), code
    assert not LOADS.search('json.load') and not LOADS.search('self.load')


# Reliability 5.0: pure modules ask nobody for the time and throw no dice

CLOCKS = re.compile(r'^(time\.time|time\.time_ns|datetime\.now|datetime\.utcnow|datetime\.datetime\.now|date\.today|pd\.Timestamp\.now|pd\.Timestamp\.utcnow|uuid\.uuid[14]|uuid[14]|os\.urandom|secrets\.\w+)$')
DICE = re.compile(r'^(random\.(?!Random$)\w+|np\.random\.(?!default_rng$|Generator$|SeedSequence$|PCG64$)\w+|numpy\.random\.\w+)$')
IMPURE = { # module -> why it may ask the machine
    'cli/cli.py': 'speaks to a person now', 'execution/client.py': 'stamps requests with the offset to the exchange', 'execution/kill.py': 'must work when there is no other clock', 'schedule/zygote.py': 'seeds every forked kernel anew'}


def test_pure_code_asks_for_no_time_and_throws_no_dice():
    wrong = [f'{name(p)}:{line} {f}' for p in MODULES if name(p) not in IMPURE for f, line, _ in calls(p) if CLOCKS.match(f) or DICE.match(f)]
    assert wrong == [], 'time and chance come in as arguments'


def test_no_permission_outlives_its_reason():
    used = {name(p) for p in MODULES for f, _, _ in calls(p) if CLOCKS.match(f) or DICE.match(f)}
    assert set(IMPURE) <= used, f'{sorted(set(IMPURE) - used)} ask for no time any more: take them off the list'


def test_dice_are_always_seeded():
    wrong = [f'{name(p)}:{line} {f}' for p in MODULES for f, line, node in calls(p) if f.endswith(('np.random.default_rng', 'random.Random')) and not node.args and not node.keywords]
    assert wrong == []


def test_orders_are_not_in_a_loop_that_retries():
    "P16: no retry decorator, and no loop with a swallowed exception, around what sends an order"
    wrong = []
    for p in MODULES:
        for node in ast.walk(ast.parse(p.read_text())):
            if isinstance(node, ast.FunctionDef) and any('retry' in ast.unparse(d).lower() or 'backoff' in ast.unparse(d).lower() for d in node.decorator_list): wrong.append(f'{name(p)}:{node.lineno} {node.name}')
    assert wrong == []


# S7: the client does not talk

def test_nobody_makes_the_client_verbose():
    wrong = [f'{name(p)}:{line}' for p in MODULES for f, line, node in calls(p) if any(k.arg == 'verbose' and getattr(k.value, 'value', False) is True for k in node.keywords)]
    assert wrong == []


# S6, S8: notebooks

def test_committed_notebooks_hold_no_key():
    wrong = []
    for p in NOTEBOOKS:
        for cell in json.loads(p.read_text())['cells']:
            text = ''.join(cell['source']) + json.dumps([o for o in cell.get('outputs', []) if 'image' not in json.dumps(o)[:200]])
            if KEYLIKE.search(text) or SIGNED.search(text): wrong.append(p.name)
    assert wrong == []


@pytest.mark.parametrize('path', sorted((ROOT/'scheduled').glob('*.ipynb')), ids=lambda p: p.stem)
def test_no_parameter_of_a_run_is_a_secret(path):
    from quantlib.schedule.runner import parameters
    assert not [k for k in parameters(path) if re.search('key|secret|token|pass', k, re.I)]


# S1, S8: a run with failures and a canary as its key

def test_a_run_with_failures_leaks_nothing():
    from scenarios import TABLE, play
    assert play(TABLE['H1']).error == ''


def test_the_hunt_finds_what_it_hunts(tmp_path):
    import sqlite3
    (tmp_path/'a.log').write_text(f'Authorization {CANARY[1]}')
    (tmp_path/'b.log').write_text('GET /x?signature=' + 'ab12'*16)
    (tmp_path/'c.log').write_text('key Zq4' + 'aB3'*20 + 'x')
    with sqlite3.connect(tmp_path/'d.db') as c: c.execute('CREATE TABLE t (x)'); c.execute('INSERT INTO t VALUES (?)', (CANARY[0],))
    assert {x.split(':')[0] for x in traces(tmp_path, CANARY)} == {'a.log', 'b.log', 'c.log', 'd.db'}


def test_only_the_gateway_is_given_the_key(tmp_path):
    "S1: a fund is started with a key in its environment; no kernel and no other process of it has it"
    from quantlib.schedule.scheduler import kernel_env
    env = os.environ | dict(QUANTLIB_KEY=CANARY[0], QUANTLIB_SECRET=CANARY[1])
    p = subprocess.Popen([sys.executable, '-c', 'import os, subprocess, sys; from quantlib.schedule.scheduler import kernel_env; k = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"], env=kernel_env({})); print(k.pid, flush=True); k.wait()'],
                         env=env, stdout=subprocess.PIPE, text=True)
    try:
        kernel = int(p.stdout.readline())
        time.sleep(0.1)
        have = {pid for pid, _ in environs(CANARY)}
        assert p.pid in have and kernel not in have, 'the search sees the parent, and the kernel has nothing'
    finally:
        os.kill(kernel, 9); p.kill(); p.wait(); p.stdout.close()


# S18: who listens

def test_everything_that_binds_binds_to_loopback():
    wrong = []
    for p in MODULES:
        text = p.read_text()
        wrong += [f'{name(p)}: {m[0]}' for m in re.finditer(r"['\"]0\.0\.0\.0['\"]|host=['\"](::)?['\"]", text)]
        wrong += [f'{name(p)}:{line} {ast.unparse(node)}' for f, line, node in calls(p) if f.endswith('.bind') and node.args and isinstance(node.args[0], ast.Tuple) and ast.unparse(node.args[0].elts[0]) not in ("'127.0.0.1'", "'::1'", "'localhost'")]
    assert wrong == []
