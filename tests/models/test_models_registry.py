"The registry under damage, crashes and concurrent writers"
import json, os, pickletools, re, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pytest
from quantlib.models.calibrate import Gate
from quantlib.models.fit import Recipe
from quantlib.models.registry import ModelRefused, Registry
from quantlib.models.train import KINDS, Trained

CARD = {f'h{h}': dict(rank_ic=.01, beats_zero=False) for h in (1, 4, 24)}
FILES = {'xgboost': ['h1.ubj', 'h24.ubj', 'h4.ubj'], 'lightgbm': ['h1.txt', 'h24.txt', 'h4.txt'], 'ridge': ['ridge.safetensors'], 'nhits': ['net.safetensors']}
AT = 1_767_225_600_000


def _gate(panel): return Gate(panel.features, (-1.,)*len(panel.features), (1.,)*len(panel.features), .25, .5, 3)


def _trained(panel, kind, seed=1):
    m = KINDS[kind](rounds=5) if kind in ('xgboost', 'lightgbm') else KINDS[kind]()
    if kind == 'nhits': m.recipe = Recipe(steps=2, batch=64, checks=1)
    return Trained(m.fit(panel, seed), CARD, _gate(panel), dict(start='2026-01-01T00:00Z', end='2026-01-30T03:00Z', rows=len(panel)), seed)


@pytest.fixture(scope='module')
def two(planted): return {k: _trained(planted, k) for k in FILES}


@pytest.fixture(scope='module')
def kept(planted, two, tmp_path_factory):
    reg = Registry(tmp_path_factory.mktemp('reg'), features=planted.features)
    ids = {k: reg.save(t, 3, AT) for k, t in two.items()}
    for k, d in ids.items(): reg.promote(k, d, AT)
    return reg, ids


@pytest.fixture
def reg(kept, tmp_path):
    shutil.copytree(kept[0].root, tmp_path/'models')
    return Registry(tmp_path/'models', features=kept[0].features), kept[1]


def _cut(p): p.write_bytes(p.read_bytes()[:-max(1, p.stat().st_size // 3)])
def _empty(p): p.write_bytes(b'')
def _flip(p): b = bytearray(p.read_bytes()); b[len(b)//2] ^= 1; p.write_bytes(bytes(b))
def _grow(p): p.write_bytes(p.read_bytes() + b'x')
def _gone(p): p.unlink()
def _folder(p): p.unlink(); p.mkdir()


@pytest.mark.parametrize('damage', [_cut, _empty, _flip, _grow, _gone, _folder])
@pytest.mark.parametrize('kind, name', [(k, n) for k, ns in FILES.items() for n in [*ns, 'model.json', 'manifest.json']])
def test_every_damage_to_every_file_is_refused_and_the_other_model_still_serves(reg, kind, name, damage):
    reg, ids = reg
    damage(reg.root/kind/ids[kind]/name)
    with pytest.raises(ModelRefused) as e: reg.load(kind, ids[kind])
    assert (e.value.kind, e.value.digest) == (kind, ids[kind]) and name in e.value.why
    assert re.search('restore|retrain|put it back', e.value.why)
    models, missing = reg.load_champions(tuple(FILES))
    assert set(missing) == {kind} and name in missing[kind] and set(models) == set(FILES) - {kind}


@pytest.mark.parametrize('key', ['files', 'features', 'features_digest', 'candle_version', 'span', 'seed', 'metrics', 'gate', 'created_at', 'versions', 'kind', 'digest', 'seal'])
@pytest.mark.parametrize('how', ['change', 'drop'])
def test_no_line_of_a_manifest_can_be_edited(reg, key, how):
    reg, ids = reg; p = reg.root/'xgboost'/ids['xgboost']/'manifest.json'; m = json.loads(p.read_text())
    if how == 'drop': del m[key]
    else: m[key] = 'edited'
    p.write_text(json.dumps(m))
    with pytest.raises(ModelRefused, match='edited|not a manifest|belongs'): reg.load('xgboost', ids['xgboost'])


@pytest.mark.parametrize('text', ['', '[]', '7', 'null', '{"a": NaN}', '{}', '"x"', '\x00\xff'])
def test_a_manifest_that_is_no_manifest(reg, text):
    reg, ids = reg; (reg.root/'xgboost'/ids['xgboost']/'manifest.json').write_text(text)
    with pytest.raises(ModelRefused, match='manifest.json'): reg.load('xgboost', ids['xgboost'])


def test_a_whole_model_under_another_name_is_refused(reg, planted):
    reg, ids = reg; other = reg.save(_trained(planted, 'xgboost', seed=2), 3, AT)
    shutil.rmtree(reg.root/'xgboost'/ids['xgboost']); shutil.copytree(reg.root/'xgboost'/other, reg.root/'xgboost'/ids['xgboost'])
    with pytest.raises(ModelRefused, match='belongs to'): reg.load('xgboost', ids['xgboost'])


@pytest.mark.parametrize('kind, digest', [('../xgboost', '0'*16), ('catboost', '0'*16), ('xgboost', '../../etc'), ('xgboost', ''), ('xgboost', 'F'*16), ('xgboost', '0'*16)])
def test_names_that_are_no_model(reg, kind, digest):
    with pytest.raises(ModelRefused): reg[0].load(kind, digest)
    with pytest.raises(ModelRefused): reg[0].promote(kind, digest, AT)
    assert reg[0].champion() == reg[1]


@pytest.mark.parametrize('change', [lambda f: f[:-1], lambda f: [*f, 'new'], lambda f: f[::-1], lambda f: ['y', *f[1:]]])
def test_other_features_are_refused(reg, change):
    reg, ids = reg; now = Registry(reg.root, features=change(list(reg.features)))
    with pytest.raises(ModelRefused, match='other features.*retrain'): now.load('xgboost', ids['xgboost'])


def test_a_file_the_library_cannot_read_is_refused_even_with_a_right_hash(planted, tmp_path, two):
    class Broken:
        kind, features = 'xgboost', tuple(planted.features)
        def save(self, folder):
            names = two['xgboost'].forecaster.save(folder); (Path(folder)/'h4.ubj').write_bytes(b'{L'); return names
    reg = Registry(tmp_path, features=planted.features)
    d = reg.save(Trained(Broken(), CARD, _gate(planted), two['xgboost'].span, 1), 3, AT)
    with pytest.raises(ModelRefused, match='library cannot read'): reg.load('xgboost', d)
    with pytest.raises(ModelRefused): reg.promote('xgboost', d, AT)
    assert reg.champion() == {}


def test_digest_is_content_and_not_time(planted, two, tmp_path):
    a, b = Registry(tmp_path/'a', features=planted.features), Registry(tmp_path/'b', features=planted.features)
    same = _trained(planted, 'lightgbm')
    d = a.save(two['lightgbm'], 3, AT)
    assert d == b.save(same, 3, AT + 5) and d != b.save(same, 4, AT) and d != b.save(_trained(planted, 'lightgbm', 2), 3, AT)
    assert a.manifest('lightgbm', d)['created_at'] == AT and b.manifest('lightgbm', d)['created_at'] == AT + 5


def test_loaded_models_answer_with_the_same_bits(kept, two, planted):
    models, missing = kept[0].load_champions(tuple(FILES))
    assert not missing
    for k, (d, f) in models.items(): assert d == kept[1][k] and f.gate == two[k].gate and np.array_equal(f.predict(planted), two[k].forecaster.predict(planted), equal_nan=True)


def test_saving_again_heals_a_damaged_model(reg, two):
    reg, ids = reg; _cut(reg.root/'xgboost'/ids['xgboost']/'h4.ubj')
    assert reg.save(two['xgboost'], 3, AT) == ids['xgboost'] and reg.load('xgboost', ids['xgboost'])


# Crashes

@pytest.mark.parametrize('step', range(1, 12))
def test_a_crash_at_any_disk_step_of_save_leaves_no_half_model(planted, two, tmp_path, monkeypatch, step):
    reg, n = Registry(tmp_path, features=planted.features), [0]
    def dying(real):
        def f(*a, **kw):
            n[0] += 1
            if n[0] == step: raise KeyboardInterrupt
            return real(*a, **kw)
        return f
    with monkeypatch.context() as m:
        for name in ('fsync', 'rename', 'open'): m.setattr(os, name, dying(getattr(os, name)))
        try: reg.save(two['xgboost'], 3, AT); died = False
        except KeyboardInterrupt: died = True
    found = list(reg.root.glob('*/*/manifest.json'))
    for p in found: reg.load(p.parts[-3], p.parts[-2])
    assert died and len(found) <= 1
    d = reg.save(two['xgboost'], 3, AT)
    assert reg.load('xgboost', d) and not (reg.root/'.saving').exists()


@pytest.mark.parametrize('name', ['fsync', 'replace', 'open'])
@pytest.mark.parametrize('step', [1, 2])
def test_a_crash_while_promoting_leaves_the_old_or_the_new_champion(reg, planted, monkeypatch, name, step):
    reg, ids = reg; new = reg.save(_trained(planted, 'xgboost', 2), 3, AT); n = [0]; real = getattr(os, name)
    def dying(*a, **kw):
        n[0] += 1
        if n[0] == step: raise KeyboardInterrupt
        return real(*a, **kw)
    with monkeypatch.context() as m:
        m.setattr(os, name, dying)
        try: reg.promote('xgboost', new, AT + 1)
        except KeyboardInterrupt: pass
    assert reg.champion()['xgboost'] in (ids['xgboost'], new) and reg.champion()['lightgbm'] == ids['lightgbm']
    assert reg.promote('xgboost', new, AT + 1)['xgboost'] == new


def test_kill_9_while_promoting_never_leaves_an_unreadable_pointer(reg, planted):
    reg, ids = reg; new = reg.save(_trained(planted, 'xgboost', 2), 3, AT)
    code = ('import sys; from quantlib.models.registry import Registry; r = Registry(sys.argv[1], features=sys.argv[4].split(","))\n'
            'print("go", flush=True)\nwhile True:\n  for d in sys.argv[2:4]: r.promote("xgboost", d, 1)')
    for wait in (.0, .05):
        p = subprocess.Popen([sys.executable, '-c', code, str(reg.root), ids['xgboost'], new, ','.join(reg.features)], stdout=subprocess.PIPE)
        p.stdout.readline(); time.sleep(wait); p.send_signal(signal.SIGKILL); p.wait(); p.stdout.close()
        assert reg.champion()['xgboost'] in (ids['xgboost'], new) and reg.champion()['lightgbm'] == ids['lightgbm']
        assert not reg.load_champions(tuple(FILES))[1]


def test_writers_side_by_side_lose_nothing(reg, planted):
    reg, ids = reg
    code = ('import sys; from quantlib.models.registry import Registry; r = Registry(sys.argv[1], features=sys.argv[4].split(","))\n'
            'for i in range(20): r.promote(sys.argv[2], sys.argv[3], i)')
    reg.pointer.unlink()
    ps = [subprocess.Popen([sys.executable, '-c', code, str(reg.root), k, d, ','.join(reg.features)]) for k, d in list(ids.items())[:2]]
    assert [p.wait() for p in ps] == [0, 0] and reg.champion() == dict(list(ids.items())[:2])


# Pointer

@pytest.mark.parametrize('text', ['', '{', '[]', '{"xgboost": "abc"}', '{"xgboost": []}', '{"xgboost": [{}]}', '{"xgboost": [7]}', 'null'])
def test_a_damaged_pointer_serves_nobody_and_says_why(reg, text):
    reg, ids = reg; reg.pointer.write_text(text)
    models, missing = reg.load_champions(tuple(FILES))
    assert models == {} and all('champion.json' in w and 'promote again' in w for w in missing.values()) and set(missing) == set(FILES)
    with pytest.raises(ModelRefused): reg.promote('xgboost', ids['xgboost'], AT)
    with pytest.raises(ModelRefused): reg.rollback('xgboost')


def test_history_is_bounded_and_rollback_walks_it(reg, planted):
    reg, ids = reg; line = [ids['xgboost']]
    for s in range(2, 7):
        line.append(reg.save(_trained(planted, 'xgboost', s), 3, AT + s)); reg.promote('xgboost', line[-1], AT + s)
    assert reg.promote('xgboost', line[-1], AT + 99)['xgboost'] == line[-1]  # a second time changes nothing
    assert [reg.rollback('xgboost') for _ in range(3)] == line[-2:-5:-1]
    with pytest.raises(ModelRefused, match='no former champion'): reg.rollback('xgboost')
    assert reg.champion()['lightgbm'] == ids['lightgbm']


def test_rollback_refuses_a_damaged_former_champion(reg, planted):
    reg, ids = reg; new = reg.save(_trained(planted, 'xgboost', 2), 3, AT); reg.promote('xgboost', new, AT)
    _cut(reg.root/'xgboost'/ids['xgboost']/'h1.ubj')
    with pytest.raises(ModelRefused, match='h1.ubj'): reg.rollback('xgboost')
    assert reg.champion()['xgboost'] == new


def test_an_empty_registry_names_every_missing_member(tmp_path):
    assert Registry(tmp_path).load_champions(('xgboost', 'nhits')) == ({}, {k: 'no champion; train and promote one' for k in ('xgboost', 'nhits')})


# No pickle

def test_nothing_kept_is_a_pickle(kept):
    for p in kept[0].root.rglob('*'):
        if not p.is_file(): continue
        assert p.suffix in ('.json', '.ubj', '.txt', '.safetensors') or p.name == '.lock'
        b = p.read_bytes()
        assert not b.startswith(b'\x80') and b'pickle' not in b
        if b:
            with pytest.raises(ValueError): list(pickletools.genops(b))


def test_no_model_code_imports_a_pickler():
    import quantlib.models
    for p in Path(quantlib.models.__path__[0]).glob('*.py'):
        assert not re.search(r'\b(pickle|joblib|dill|cloudpickle|torch\.load|read_pickle|allow_pickle)\b', p.read_text()), p
