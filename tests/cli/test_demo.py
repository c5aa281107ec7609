"The walk: one command runs the fund, and every claim about it is checked on what it left behind"
import json, os, subprocess, sys
from pathlib import Path

import nbformat
import pytest
import sqlalchemy as sa
from quantlib.core import settings as conf
from quantlib.data.candles import CandleStore
from quantlib.journal import schema
from quantlib.journal.store import Journal
from quantlib.models.registry import Registry
from quantlib.ops.why import why
from quantlib.research import parity

HOURS = 14
CANARY = 'canary-7f3a91c2d4e5'
QUANTLIB = str(Path(sys.executable).with_name('quantlib'))


def quantlib(*args, cwd=None, timeout=400, **env):
    return subprocess.run([QUANTLIB, *map(str, args)], cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A demo as a user starts it, in an empty folder"
    cwd = tmp_path_factory.mktemp('desk')
    return cwd, quantlib('demo', '--hours', HOURS, '--seed', 11, '--json', cwd=cwd, BINANCE_API_SECRET=CANARY, QUANTLIB_TEST_TOKEN=CANARY)


@pytest.fixture(scope='module')
def facts(run): return json.loads(run[1].stdout)


@pytest.fixture(scope='module')
def home(facts): return conf.Home(facts['home'])


@pytest.fixture(scope='module')
def journal(home):
    j = Journal(home.journal)
    yield j
    j.close()


def test_one_command_runs_the_fund(run, facts):
    assert run[1].returncode == 0, run[1].stderr[-3000:]
    assert facts['healthy'] and facts['symbols'] == 42 and facts['cycles'] == HOURS
    assert facts['signals'] == {'ensemble': 42*HOURS}
    assert facts['entries_filled'] >= 10 and facts['fills'] >= facts['entries_filled']
    assert Path(facts['home']) == run[0]/'.quantlib', 'all state lies in the default home'
    assert {p.name for p in run[0].iterdir()} == {'.quantlib'}


def test_every_open_position_has_a_stop_and_a_target(facts):
    for p in facts['open']:
        assert p['stop'] and p['target'], p
        long, mark = float(p['qty']) > 0, float(p['mark'])
        assert (float(p['stop']) < mark) == long and float(p['stop']) > 0


def test_every_entry_was_protected_in_time(journal):
    p = journal.frame(schema.protections)
    entries = journal.frame(sa.select(schema.orders.c.intent_id).where(schema.orders.c.role == 'entry', schema.orders.c.state == 'filled'))
    assert set(entries.intent_id) <= set(p[p.state == 'protected'].intent_id)
    assert p.naked_ms.max() <= 10_000


def test_every_order_leads_back_to_everything_that_made_it(journal):
    orders = journal.rows(sa.select(schema.orders.c['id', 'role', 'state']))
    assert {'entry', 'stop', 'take'} <= {o['role'] for o in orders}
    for o in orders[::max(1, len(orders)//15)]:
        text = why(journal, o['id']).json()
        for needed in ('intent', 'verdict', 'sizing', 'playbook', 'regime', 'votes', 'candle', 'run', 'notebook'): assert needed in text, (o, needed)
        for kind in ('xgboost', 'lightgbm'): assert kind in text


def test_why_and_audit_from_the_command_line(run, home, journal):
    fill = journal.scalar(sa.select(schema.fills.c.id).limit(1))
    w = quantlib('why', fill, '--home', home.path, '--json')
    assert w.returncode == 0 and json.loads(w.stdout)['id'] == fill
    a = quantlib('audit', '--home', home.path, '--json')
    assert a.returncode == 0 and json.loads(a.stdout)['healthy']
    rows = json.loads(a.stdout)['rows']
    assert all(r['designed'] and r['ran'] and r['evidence'] for r in rows if r['verdict'] == 'green')
    bad = quantlib('why', 'no-such-id', '--home', home.path)
    assert bad.returncode == 2 and 'no-such-id' in bad.stderr and 'Traceback' not in bad.stderr


def test_signal_says_which_model_versions_voted_how(home):
    r = quantlib('signal', 'BTCUSDT', '--home', home.path, '--json')
    body = json.loads(r.stdout)
    assert body['symbol'] == 'BTCUSDT' and body['side'] in ('BUY', 'SELL', 'HOLD') and 0 < body['confidence'] < 1
    champions = Registry(home.models).champion()
    assert {v['kind']: v['digest'] for v in body['votes']} == champions


def test_every_run_is_on_record_and_its_notebook_is_kept(home, journal):
    runs = journal.rows(schema.runs)
    assert {r['state'] for r in runs} == {'done'}
    assert sum(r['job'] == 'trade' for r in runs) == HOURS
    for r in runs:
        nb = nbformat.read(r['notebook'], as_version=4)
        assert nb.metadata['quantlib']['state'] == 'done' and nb.metadata['quantlib']['parameters']['slot'] == r['params']['slot']
        assert r['result']['run'] == r['id']


def test_notebook_and_research_decide_the_same(home, journal):
    store, registry, s = CandleStore(home.candles), Registry(home.models), conf.of_home(home)
    for c in journal.rows(sa.select(schema.cycles.c.id)):
        diff = parity.differences(journal, store, registry, c['id'], s)
        assert diff.empty, diff.to_string()


def test_report_is_one_page_that_asks_nobody(facts):
    text = Path(facts['report']).read_text()
    assert text.count('data:image/png;base64') >= 4 and 'http://' not in text and 'https://' not in text.replace('https://www.w3.org', '')


def test_no_secret_is_left_behind(home):
    for p in home.path.rglob('*'):
        if p.is_file(): assert CANARY.encode() not in p.read_bytes(), p


def test_data_doctor_and_kill(home):
    d = json.loads(quantlib('data', '--home', home.path, '--json').stdout)
    assert d['symbols'] == 42 and d['gaps'] == 0
    assert quantlib('doctor', '--home', home.path).returncode == 0
    assert quantlib('kill', 'pause', '--home', home.path, '--why', 'test').returncode == 0 and home.kill.exists()
    assert quantlib('doctor', '--home', home.path).returncode == 1, 'a set kill switch is a problem'
    assert quantlib('kill', 'clear', '--home', home.path).returncode == 2, 'lifting it needs a reason'
    assert quantlib('kill', 'clear', '--why', 'tested', '--home', home.path).returncode == 0 and not home.kill.exists()


def test_an_unreachable_exchange_is_one_sentence(home):
    r = quantlib('run', 'trade', '--slot', '2026-01-01T00:00Z', '--home', home.path)
    assert r.returncode == 2 and 'Traceback' not in r.stderr and len(r.stderr.strip().splitlines()) == 1
