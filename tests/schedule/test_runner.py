"""Attacks on the runner: every way in which a notebook can end without having finished, and every wrong parameter"""
import asyncio, json, os, subprocess, sys, threading, time
from pathlib import Path
import nbformat, pytest
from hypothesis import given, settings, strategies as st
from quantlib.schedule.kernels import _short_folder
from quantlib.schedule.runner import RESULT_MIME, RunRefused, check_parameters, execute, parameters

ROOT = Path(__file__).resolve().parents[2]
PARAMS = "slot:str='2026-01-01T00:00Z' # Scheduled instant\nlots:int=1 # How many\nshare:float=0.5"
CLOSE = 'from quantlib.schedule.runner import write_record\nwrite_record(dict(slot=slot, lots=lots, share=share))'
DECLARED = dict(slot=str, lots=int, share=float)
VALUES = dict(slot='2026-02-01T00:00Z', lots=7, share=0.25)

@pytest.fixture
def run(zygote, tmp_path):
    def go(path, **kw): return execute(path, **(dict(params=VALUES, declared=DECLARED, out_path=tmp_path/'runs'/'out.ipynb', deadline_s=60) | kw))
    return go

def read(r): return nbformat.read(r.path, as_version=4)

def gone(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] == 'Z'
    except FileNotFoundError: return True

def test_done(run, notebook, tmp_path):
    r = run(notebook(PARAMS, 'import matplotlib.pyplot as plt; plt.plot([1, 2]);', CLOSE))
    assert (r.state, r.result, r.error, r.warm) == ('done', VALUES, None, True)
    nb = read(r)
    nbformat.validate(nb)
    assert nb.metadata.quantlib.state == 'done' and nb.metadata.quantlib.parameters == VALUES
    assert 'image/png' in nb.cells[2].outputs[0].data and nb.cells[3].outputs[0].data[RESULT_MIME] == VALUES
    assert {c.metadata.papermill.status for c in nb.cells} == {'completed'}
    assert [p.name for p in (tmp_path/'runs').iterdir()] == ['out.ipynb']

def test_plot_survives_a_daemons_backend(run, notebook):
    r = run(notebook(PARAMS, 'import matplotlib.pyplot as plt; plt.plot([1, 2]);', CLOSE), env={**os.environ, 'MPLBACKEND': 'Agg'})
    assert 'image/png' in read(r).cells[2].outputs[0].data

@pytest.mark.parametrize('cell, error', [
    ("raise ValueError('boom')", 'cell 2 raised ValueError: boom'),
    ('import sys; sys.exit(0)', 'cell 2 raised SystemExit: 0'),
    ('exit()', 'no record'),
    ('import os; os.kill(os.getpid(), 9)', 'DeadKernelError: Kernel died, exit code -9'),
    ('import os; os._exit(0)', 'DeadKernelError: Kernel died, exit code 0'),
    ('import ctypes; ctypes.string_at(0)', 'exit code -11'),
    ('if True', 'SyntaxError'),
], ids=lambda v: v[:24])
def test_no_end_no_success(run, notebook, cell, error):
    r = run(notebook(PARAMS, cell, CLOSE if 'exit()' not in cell else '1'))
    assert r.state == 'failed' and error in r.error and r.result is None
    nb = read(r)
    assert nb.metadata.quantlib.state == 'failed' and nb.metadata.quantlib.error == r.error
    assert nb.cells[-1].metadata.papermill.status != 'completed'

@pytest.mark.parametrize('cell, error', [
    ('x = 1', 'no record'),
    ('from quantlib.schedule.runner import write_record; write_record([1])', 'takes a dict'),
    ("import os; open(os.environ['QUANTLIB_RESULT'], 'w').write('{\"half')", 'unreadable record'),
    ("from quantlib.schedule.runner import write_record; write_record({'x': float('nan')})", 'ValueError'),
    (CLOSE + '\nraise KeyError(1)', 'KeyError'),
    (CLOSE + '\nimport sys; sys.exit(0)', 'SystemExit'),
    (CLOSE + '\nimport os; os.kill(os.getpid(), 9)', 'Kernel died'),
], ids=['none', 'list', 'half', 'nan', 'error-after', 'exit-after', 'death-after'])
def test_record_must_be_whole_and_last(run, notebook, cell, error):
    r = run(notebook(PARAMS, cell))
    assert r.state == 'failed' and error in r.error

def test_death_is_visible_in_the_copy(run, notebook):
    """Papermill alone marks all of these cells completed"""
    nb = read(run(notebook(PARAMS, '1', 'import os; os.kill(os.getpid(), 9)', '2', CLOSE)))
    assert [c.metadata.papermill.status for c in nb.cells] == ['completed']*3 + ['failed', 'pending', 'pending']
    assert nb.metadata.papermill.exception is True

@pytest.mark.parametrize('stubborn', [False, True], ids=['sleeping', 'ignoring-signals'])
def test_deadline_leaves_no_orphan(run, notebook, tmp_path, stubborn):
    cell = f'''
import os, signal, subprocess, time
if {stubborn}: [signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)]
child = subprocess.Popen(['sleep', '300'])
open({str(tmp_path/"pids")!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')
time.sleep(300)'''
    started = time.monotonic()
    r = run(notebook(PARAMS, cell, CLOSE), deadline_s=1.5)
    assert r.state == 'timeout' and 'deadline of 1.5 s' in r.error and time.monotonic() - started < 15
    time.sleep(0.2)
    assert all(map(gone, (tmp_path/'pids').read_text().split()))
    assert read(r).metadata.quantlib.state == 'timeout'

def test_deadline_covers_the_start(run, notebook):
    assert run(notebook(PARAMS, CLOSE), deadline_s=0.001).state == 'timeout'

def test_deadline_covers_many_short_cells(run, notebook):
    assert run(notebook(PARAMS, *['import time; time.sleep(0.4)']*8, CLOSE), deadline_s=1.5).state == 'timeout'

def test_background_processes_end_with_the_run(run, notebook, tmp_path):
    r = run(notebook(PARAMS, f"import subprocess; open({str(tmp_path/'pid')!r}, 'w').write(str(subprocess.Popen(['sleep', '300']).pid))", CLOSE))
    time.sleep(0.2)
    assert r.state == 'done' and gone((tmp_path/'pid').read_text())

def test_copy_is_never_overwritten(run, notebook):
    nb = notebook(PARAMS, CLOSE)
    first, second, third = run(nb), run(nb), run(nb)
    assert [x.path.name for x in (first, second, third)] == ['out.ipynb', 'out-2.ipynb', 'out-3.ipynb']
    assert read(first).metadata.quantlib.seconds == first.seconds

def test_odd_paths(run, notebook, tmp_path):
    """papermill formats its paths with the parameters; a brace in one raises there"""
    folder = tmp_path/'{x} ä'
    folder.mkdir()
    odd = notebook(PARAMS, CLOSE).rename(folder/'nb{0}.ipynb')
    assert run(odd, out_path=folder/'out{slot}.ipynb').path == folder/'out{slot}.ipynb'

def test_cold_when_nobody_prepared(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv('JUPYTER_PATH', '')
    r = execute(notebook(PARAMS, CLOSE), VALUES, DECLARED, tmp_path/'out.ipynb', 60)
    assert (r.state, r.warm) == ('done', False)

def test_environment_is_what_was_given(run, notebook, monkeypatch):
    monkeypatch.setenv('API_SECRET', 'x')
    cell = "import os; from quantlib.schedule.runner import write_record; write_record({'found': 'API_SECRET' in os.environ})"
    assert run(notebook(PARAMS, cell), env={k: v for k, v in os.environ.items() if k != 'API_SECRET'}).result == {'found': False}
    assert run(notebook(PARAMS, cell)).result == {'found': True}

def test_two_at_once_and_inside_a_loop(run, notebook, tmp_path):
    nb, results = notebook(PARAMS, 'import time; time.sleep(0.5)', CLOSE), []
    threads = [threading.Thread(target=lambda: results.append(run(nb))) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert [r.state for r in results] == ['done']*3 and len({r.path for r in results}) == 3
    async def inside(): return run(nb)
    assert asyncio.run(inside()).state == 'done'

def test_nothing_is_left_behind(run, notebook):
    before = set(_short_folder(f'ql-{os.getuid()}').iterdir())
    run(notebook(PARAMS, CLOSE)); run(notebook(PARAMS, '1/0'))
    assert set(_short_folder(f'ql-{os.getuid()}').iterdir()) <= before

@pytest.mark.parametrize('cells, tags, values, error', [
    ([PARAMS], (), VALUES, '0 cells tagged'),
    ([PARAMS, PARAMS], (['parameters'], ['parameters']), VALUES, '2 cells tagged'),
    ([PARAMS], (['parameters'],), {**VALUES, 'slots': 'x'}, "unknown parameter 'slots'"),
    ([PARAMS], (['parameters'],), {k: v for k, v in VALUES.items() if k != 'slot'}, "no parameter 'slot'"),
    ([PARAMS], (['parameters'],), {**VALUES, 'lots': '7'}, 'not int'),
    ([PARAMS], (['parameters'],), {**VALUES, 'lots': True}, 'not int'),
    ([PARAMS], (['parameters'],), {**VALUES, 'lots': 7.0}, 'not int'),
    ([PARAMS], (['parameters'],), {**VALUES, 'slot': None}, 'not str'),
    ([PARAMS], (['parameters'],), {**VALUES, 'share': float('nan')}, 'not finite'),
    ([PARAMS], (['parameters'],), {**VALUES, 'share': float('inf')}, 'not finite'),
    ([PARAMS + '\nextra=1'], (['parameters'],), VALUES, "declares unknown parameter 'extra'"),
    ([PARAMS.replace('lots:int=1', 'lot:int=1')], (['parameters'],), VALUES, "unknown parameter 'lot'"),
    ([PARAMS.replace('lots:int', 'lots:str')], (['parameters'],), VALUES, 'annotated str'),
    ([PARAMS.replace('lots:int=1', "lots='1'")], (['parameters'],), VALUES, 'default'),
    ([PARAMS + '\nimport os'], (['parameters'],), VALUES, 'is not `name:type = value`'),
    ([PARAMS.replace('=1', '=int(1)')], (['parameters'],), VALUES, 'parameters cell'),
    ([PARAMS.replace('=1', '=')], (['parameters'],), VALUES, 'parameters cell'),
])
def test_refused_and_nothing_written(notebook, tmp_path, cells, tags, values, error):
    r = execute(notebook(*cells, CLOSE, tags=tags), values, DECLARED, tmp_path/'runs'/'out.ipynb', 60)
    assert r.state == 'failed' and r.path is None and r.error.startswith('RunRefused') and error in r.error
    assert not (tmp_path/'runs').exists()

@pytest.mark.parametrize('content', ['', 'no json', '{}', '[]'])
def test_unreadable_notebook(tmp_path, content):
    (tmp_path/'nb.ipynb').write_text(content)
    for path in (tmp_path/'nb.ipynb', tmp_path/'none.ipynb'):
        assert 'not a readable notebook' in execute(path, VALUES, DECLARED, tmp_path/'out.ipynb', 60).error

def test_unknown_kernel(notebook, tmp_path):
    r = execute(notebook(PARAMS, CLOSE), VALUES, DECLARED, tmp_path/'out.ipynb', 60, kernel='fortran')
    assert r.state == 'failed' and 'fortran' in r.error and not (tmp_path/'out.ipynb').exists()

def test_int_will_do_for_float(run, notebook):
    assert run(notebook(PARAMS, CLOSE), params={**VALUES, 'share': 1}).result['share'] == 1

def test_values_reach_the_notebook_unchanged(run, notebook):
    nasty = {**VALUES, 'slot': 'a\'b"c\\n{x}\n# ☃ %s', 'lots': -10**20}
    assert run(notebook(PARAMS, CLOSE), params=nasty).result == nasty

def test_tag_survives_cleaning(notebook):
    path = notebook(PARAMS, CLOSE)
    subprocess.run([Path(sys.executable).with_name('nbdev-clean'), '--fname', path], cwd=ROOT, check=True)
    assert list(parameters(path)) == ['slot', 'lots', 'share'] and parameters(path)['slot'].help == 'Scheduled instant'

@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(['slot', 'lots', 'share', 'lot', 'Slot', '']), st.one_of(st.text(max_size=3), st.integers(), st.floats(), st.booleans(), st.none())))
def test_only_exact_values_pass(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp()/'only.ipynb'
    if not path.exists():
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PARAMS, metadata=dict(tags=['parameters']))])
        nbformat.write(nb, path)
    right = (set(values) == set(DECLARED) and type(values['slot']) is str and type(values['lots']) is int
        and type(values['share']) in (int, float) and abs(values['share']) < float('inf'))
    try: check_parameters(path, values, DECLARED); passed = True
    except RunRefused: passed = False
    assert passed == right
