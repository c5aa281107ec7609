"The house rules that a machine can check: sync, rooms, notebooks, parameters"
import ast, json, re, shutil, subprocess, sys
from collections import Counter
from pathlib import Path

import pytest
from quantlib.schedule.jobs import JOBS
from quantlib.schedule.runner import parameters

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ['core', 'journal', 'data', 'models', 'risk', 'strategy', 'exits', 'sandbox', 'execution', 'learning', 'research', 'ops', 'schedule', 'cli']
BY_HAND = {'__init__.py', 'schedule/zygote.py'}  # plain Python that no notebook exports
TOP = {'nbs', 'quantlib', 'scheduled', 'models', 'tests', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE'}
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(x.startswith(('_', '.')) for x in p.relative_to(ROOT).parts))
SCHEDULED = sorted((ROOT/'scheduled').glob('*.ipynb'))


def cells(path): return json.loads(path.read_text())['cells']
def source(cell): return ''.join(cell['source'])
def exported(path): return next((m[1] for c in cells(path) if (m := re.match(r'#\| default_exp (\S+)', source(c)))), None)
def script(name): return str(Path(sys.executable).with_name(name))


def modules():
    return [p for p in (ROOT/'quantlib').rglob('*.py') if p.name not in ('__init__.py', '_modidx.py')]


def test_top_level_holds_what_was_agreed():
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split('\n')
    top = {p.split('/')[0] for p in tracked if p}
    assert {t for t in top if not t.startswith('.')} <= TOP


def test_each_module_has_one_notebook():
    targets = Counter(exported(p) for p in NOTEBOOKS if exported(p))
    assert [t for t, n in targets.items() if n > 1] == []
    made = {str(p.relative_to(ROOT/'quantlib').with_suffix('')).replace('/', '.') for p in modules() if str(p.relative_to(ROOT/'quantlib')) not in BY_HAND}
    assert made == set(targets), 'a module without its notebook is stale; a notebook without its module was not exported'


def test_hand_written_modules_say_so():
    for name in BY_HAND - {'__init__.py'}:
        first = ast.get_docstring(ast.parse((ROOT/'quantlib'/name).read_text())).split('\n')[0]
        assert 'hand' in first.lower(), f'{name}: the first docstring line must say that it is written by hand and why'


def test_generated_code_is_in_sync(tmp_path):
    for d in ('nbs', 'quantlib'): shutil.copytree(ROOT/d, tmp_path/d, ignore=shutil.ignore_patterns('__pycache__', '_proc'))
    for f in ('pyproject.toml', 'README.md'): shutil.copy(ROOT/f, tmp_path/f)
    r = subprocess.run([script('nbdev-export')], cwd=tmp_path, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    for p in [*modules(), ROOT/'quantlib'/'_modidx.py']:
        assert p.read_text() == (tmp_path/p.relative_to(ROOT)).read_text(), f'{p.relative_to(ROOT)} is not what its notebook exports: run nbdev-export'


def test_notebooks_are_clean(tmp_path):
    shutil.copy(ROOT/'pyproject.toml', tmp_path)
    for p in NOTEBOOKS + SCHEDULED:
        q = tmp_path/p.relative_to(ROOT); q.parent.mkdir(parents=True, exist_ok=True); shutil.copy(p, q)
    for d in ('nbs', 'scheduled'): subprocess.run([script('nbdev-clean'), '--fname', d], cwd=tmp_path, capture_output=True)
    for p in NOTEBOOKS + SCHEDULED: assert json.loads(p.read_text()) == json.loads((tmp_path/p.relative_to(ROOT)).read_text()), f'{p.relative_to(ROOT)} is not clean: run nbdev-clean'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_has_the_house_form(path):
    cs = cells(path)
    assert path.stat().st_size <= 250*1024 and len(cs) <= 75
    assert re.match(r'# \S', source(cs[0])) and '\n> ' in source(cs[0]), 'opens with a title and a summary line'
    if not exported(path): return
    assert any(c['cell_type'] == 'markdown' and source(c).startswith('#| export') for c in cs), 'a markdown overview is exported'
    for c in cs:
        if c['cell_type'] != 'code': continue
        assert '#| export' in source(c) or not re.search(r'\bprint\(', source(c)), f'an example ends with its value, not with print: {source(c)[:60]!r}'
        lines = [l for l in source(c).split('\n') if l.strip() and not l.startswith('#|')]
        imports = [l for l in lines if re.match(r'(from \S+ )?import ', l)]
        assert not imports or len(imports) == len(lines) or source(c).startswith('#| hide\nimport nbdev') or 'sys.modules' in source(c) or all(l[0] in ' )#' or l in imports for l in lines), f'imports share a cell with code: {source(c)[:80]!r}'


def test_a_room_imports_only_rooms_above_it():
    wrong = []
    for p in modules():
        room = p.relative_to(ROOT/'quantlib').parts[0]
        for node in ast.walk(ast.parse(p.read_text())):
            if isinstance(node, ast.ImportFrom):
                name = node.module or ''
                other = name.split('.')[1] if name.startswith('quantlib.') else name.split('.')[0] if node.level == 2 else room if node.level else None
                if other in ROOMS and ROOMS.index(other) > ROOMS.index(room): wrong.append(f'{p.relative_to(ROOT)} imports {other}')
    assert wrong == []


def unordered(x):
    "Whether an expression is a set, whose order differs from process to process"
    if isinstance(x, ast.BinOp) and isinstance(x.op, (ast.BitOr, ast.BitAnd, ast.Sub)): return any(unordered(y) or (isinstance(y, ast.Call) and getattr(y.func, 'attr', '') in ('keys', 'items')) for y in (x.left, x.right))
    return isinstance(x, (ast.Set, ast.SetComp)) or (isinstance(x, ast.Call) and getattr(x.func, 'id', '') in ('set', 'frozenset'))


def test_nothing_is_done_in_the_order_of_a_set():
    wrong = []
    for p in modules():
        for node in ast.walk(ast.parse(p.read_text())):
            turns = [node.iter] if isinstance(node, ast.For) else [g.iter for g in node.generators] if isinstance(node, (ast.ListComp, ast.DictComp)) else []
            wrong += [f'{p.relative_to(ROOT)}:{node.lineno} goes through {ast.unparse(x)}; sort it' for x in turns if unordered(x)]
    assert wrong == []


def test_no_pickle():
    for p in modules():
        for node in ast.walk(ast.parse(p.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {'pickle', 'joblib', 'dill', 'cloudpickle', 'shelve'} & {(n or '').split('.')[0] for n in names}, p


def test_every_job_has_its_notebook():
    assert {p.name for p in SCHEDULED} == {j.notebook for j in JOBS.values()}


@pytest.mark.parametrize('path', SCHEDULED, ids=lambda p: p.stem)
def test_scheduled_notebook_is_thin_and_declared(path):
    found = parameters(path)
    assert {n: p.type for n, p in found.items()} == {n: t.__name__ for n, t in JOBS[path.stem].params.items()}
    assert all(p.help for p in found.values()) and found['mode'].default == 'paper'
    cs = [c for c in cells(path) if c['cell_type'] == 'code']
    assert len(cells(path)) <= 12
    for c in cs:
        assert not c['outputs'] and c['execution_count'] is None
        assert not [n for n in ast.walk(ast.parse(source(c))) if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.For, ast.While))]


def test_readme_is_the_first_notebook():
    from quantlib.cli.readme import readme
    assert (ROOT/'README.md').read_text() == readme(ROOT/'nbs'/'index.ipynb'), 'run python -m quantlib.cli.readme'
