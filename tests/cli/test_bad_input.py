"Bad input gets one sentence that names the value and the cure, exit code 2, and nothing is lost or half-written"
import json, os, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fund import START, Fund
from quantlib.core.clock import HOUR, iso
from quantlib.data.synthetic import market
from quantlib.journal.schema import runs
from quantlib.models.registry import Registry

QUANTLIB = str(Path(sys.executable).with_name('quantlib'))
ROOT = Path(__file__).resolve().parents[2]


def quantlib(*args, cwd, **env):
    return subprocess.run([QUANTLIB, *map(str, args)], cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=120)


def refused(r, *words):
    "One clear error, no traceback"
    assert r.returncode == 2, r.stderr[-2000:]
    lines = [l for l in r.stderr.strip().splitlines() if l.startswith('quantlib:')]
    assert len(lines) == 1 and 'Traceback' not in r.stderr, r.stderr
    for w in words: assert w in lines[0], lines[0]


@pytest.fixture(scope='module')
def candles(): return market(('BTCUSDT', 'ETHUSDT'), START - 30*HOUR, 30, 7)


SPOILS = {
    'missing column': (lambda d: d.drop(columns='volume'), ['volume']),
    'duplicate bars': (lambda d: pd.concat([d, d.iloc[[5]]]), ['BTCUSDT']),
    'NaN price': (lambda d: d.assign(close=d.close.where(d.index != 7)), ['close', 'nan']),
    'negative price': (lambda d: d.assign(low=np.where(d.index == 9, -1.0, d.low)), ['low', '-1']),
    'high below low': (lambda d: d.assign(high=np.where(d.index == 3, d.low*0.5, d.high)), ['high']),
    'no known symbol': (lambda d: d[d.symbol == 'BTCUSDT'].assign(symbol='XXXUSDT'), ['symbols']),
    'no rows': (lambda d: d.iloc[:0], ['rows']),
    'too short': (lambda d: d, ['--start']),
}


@pytest.mark.parametrize('name', SPOILS)
def test_candle_files(name, candles, tmp_path):
    spoil, words = SPOILS[name]
    spoil(candles).to_parquet(tmp_path/'bad.parquet')
    home = tmp_path/'home'; home.mkdir(); (home/'summary.json').write_text('{"kept": 1}')
    refused(quantlib('demo', '--replay', 'bad.parquet', '--home', home, cwd=tmp_path), *words)
    assert {p.name for p in home.iterdir()} == {'summary.json'}, 'an earlier run is left as it was'


def test_a_file_that_is_no_parquet(tmp_path):
    (tmp_path/'bad.parquet').write_text('open,high\n1,2\n')
    refused(quantlib('demo', '--replay', 'bad.parquet', '--home', tmp_path/'h', cwd=tmp_path), 'not a Parquet')
    refused(quantlib('data', '--import', 'gone.parquet', '--home', tmp_path/'h', cwd=tmp_path), 'gone.parquet')


@pytest.mark.parametrize('line,words', [('[risk]\nmax_leverage = 125', ['max_leverage = 125', '1 to 30']), ('[risk]\nmax_leverge = 5', ['max_leverge', 'max_leverage']),
    ('[strategy]\nmin_confidence = high', ['min_confidence = high']), ('[rsik]\nx = 1', ['rsik']), ('[suite]\nmode = real', ['paper']), ('no section', ['settings.ini'])])
def test_settings(line, words, tmp_path):
    (tmp_path/'settings.ini').write_text(line + '\n[universe]\nsymbols = BTCUSDT\n')
    refused(quantlib('demo', '--home', tmp_path/'h', cwd=tmp_path), *words)
    assert not (tmp_path/'h').exists()


@pytest.fixture(scope='module')
def fund(tmp_path_factory):
    f = Fund(tmp_path_factory.mktemp('fund')).prepare()
    f.hours(1)
    yield f
    f.close()


def test_unknown_job_and_bad_slot(fund, tmp_path):
    refused(quantlib('run', 'trad', '--slot', iso(START), '--home', fund.home.path, cwd=tmp_path), "'trad'", 'trade')
    refused(quantlib('run', 'trade', '--slot', 'noon', '--home', fund.home.path, cwd=tmp_path), "'noon'")
    refused(quantlib('audit', '--home', tmp_path/'nothing', cwd=tmp_path), 'no journal')


@pytest.mark.parametrize('spoil', ['untagged', 'renamed', 'gone'])
def test_a_notebook_that_does_not_fit_its_job(spoil, fund, tmp_path):
    shutil.copytree(ROOT/'scheduled', tmp_path/'scheduled', ignore=shutil.ignore_patterns('runs'))
    p = tmp_path/'scheduled'/'trade.ipynb'; nb = json.loads(p.read_text())
    cell = next(c for c in nb['cells'] if 'parameters' in c['metadata'].get('tags', []))
    if spoil == 'untagged': cell['metadata'] = {}
    if spoil == 'renamed': cell['source'] = [l.replace('slot:', 'when:') for l in cell['source']]
    p.write_text(json.dumps(nb)) if spoil != 'gone' else p.unlink()
    before = fund.journal.fingerprint(runs)
    refused(quantlib('run', 'trade', '--slot', iso(START + 5*HOUR), '--home', fund.home.path, cwd=tmp_path), 'trade.ipynb')
    assert before == fund.journal.fingerprint(runs), 'the slot was not claimed'


def test_one_notebook_by_hand_and_a_wrong_model_hash(fund, tmp_path):
    "`quantlib run` works against a living exchange; a spoiled model is refused, named, and the vote is degraded"
    ok = quantlib('run', 'trade', '--slot', iso(START), '--home', fund.home.path, '--json', cwd=tmp_path)
    assert ok.returncode == 0 and json.loads(ok.stdout)['state'] == 'done', ok.stdout + ok.stderr
    registry = Registry(fund.home.models)
    digest = registry.champion()['xgboost']
    spoiled = next(p for p in (fund.home.models/'xgboost'/digest).iterdir() if p.name != 'manifest.json')
    spoiled.write_bytes(spoiled.read_bytes() + b' ')
    models, missing = registry.load_champions(('xgboost', 'lightgbm'))
    assert set(models) == {'lightgbm'} and digest in missing['xgboost'] and spoiled.name in missing['xgboost']
    d = quantlib('doctor', '--home', fund.home.path, '--json', cwd=tmp_path)
    told = json.loads(d.stdout)
    assert d.returncode == 1 and {k for k, v in told.items() if v.startswith('PROBLEM')} - {'paper market'} == {'models'} and spoiled.name in told['models']
    r = json.loads(quantlib('signal', 'BTCUSDT', '--home', fund.home.path, '--json', cwd=tmp_path).stdout)
    assert r['path'] == 'degraded' and 'xgboost' in r['missing'] and [v['kind'] for v in r['votes']] == ['lightgbm']


@pytest.mark.parametrize('args,words', [(('kill', 'stop'), ['stop', 'FLATTEN']), (('kill', 'halt'), ['reason']), (('kill', 'clear', '--why', 'x'), ['nothing to clear']), (('kill', 'clear', '--to', 'off', '--why', 'x'), ['off']),
    (('arm',), ['terminal'])])
def test_stopping_and_arming(args, words, tmp_path):
    refused(quantlib(*args, '--home', tmp_path/'h', cwd=tmp_path), *words)
    assert not (tmp_path/'h'/'KILL').exists() and not (tmp_path/'h'/'ARMED').exists()


def test_the_switch_works_while_everything_else_is_broken(tmp_path):
    "A journal that is no database, settings that cannot be read, no bus, no gateway: the switch is set, shown and cleared"
    home = tmp_path/'h'; home.mkdir()
    (home/'journal.db').write_bytes(b'garbage'*400); (home/'settings.json').write_text('{')
    (tmp_path/'settings.ini').write_text('[nonsense')
    r = quantlib('kill', 'flatten', '--why', 'drill', '--home', home, '--json', cwd=tmp_path)
    assert r.returncode == 0 and json.loads(r.stdout)['level'] == 'FLATTEN' and 'not read' in json.loads(r.stdout)['breakers']
    assert json.loads(quantlib('kill', '--home', home, '--json', cwd=tmp_path).stdout)['why'] == 'drill'
    assert quantlib('kill', 'clear', '--why', 'drill over', '--home', home, cwd=tmp_path).returncode == 0 and not (home/'KILL').exists()
    assert [json.loads(l)['what'] for l in (home/'KILL.log').read_text().splitlines()] == ['put', 'clear'] and (home/'journal.db').read_bytes() == b'garbage'*400


def test_clearing_lifts_the_breakers_too(fund, tmp_path):
    from quantlib.core.types import Reason
    from quantlib.risk.breakers import Breakers
    b = Breakers(fund.journal)
    with fund.journal.write() as c: b.trip(c, 'ETHUSDT', Reason.TOO_MANY_ENTRIES, 'seven in an hour', fund.now)
    assert json.loads(quantlib('kill', '--home', fund.home.path, '--json', cwd=tmp_path).stdout)['breakers'] == {'ETHUSDT': 'too_many_entries'}
    r = quantlib('kill', 'clear', '--why', 'looked at it', '--home', fund.home.path, '--json', cwd=tmp_path)
    assert r.returncode == 0 and json.loads(r.stdout)['lifted'] == ['ETHUSDT'] and not b.active()
