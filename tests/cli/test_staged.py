"Each failure of the predecessor, staged on a running fund, turns exactly its wire red"
from dataclasses import replace

import pytest
import requests
from fund import START, Fund
from quantlib.core.clock import HOUR
from quantlib.core.types import SignalPath
from quantlib.journal import schema


@pytest.fixture
def fund(tmp_path):
    f = Fund(tmp_path).prepare()
    yield f
    f.close()


def test_nothing_staged_is_healthy(fund):
    a = fund.hours(6).audit()
    assert a.healthy, str(a)
    assert {r.verdict for r in a.rows} <= {'green', 'grey'} and len([r for r in a.rows if r.verdict == 'green']) >= 11


def test_no_model_loadable(fund):
    fund.hours(1)
    for p in fund.home.models.rglob('*'):
        if p.is_file() and p.parent.parent.parent == fund.home.models and p.name != 'manifest.json': p.write_bytes(p.read_bytes() + b' ')
    a = fund.hours(5).audit()
    assert a.red == ('vote',), str(a)
    signals = fund.journal.frame(schema.signals)
    late = signals[signals.path == 'fallback']
    assert len(late) == 5*len(fund.settings.universe.symbols) and all('refused' in str(m) for m in late.missing)
    codes = set(fund.journal.frame(schema.alerts).code)
    assert {'model_refused', 'fallback_used'} <= codes


def test_consumer_stopped(fund):
    fund.gateway.consume = lambda: None
    a = fund.hours(3).audit()
    assert a.red == ('consumed',), str(a)


def test_stop_refused(fund):
    refuse = {'match': {'method': 'POST', 'path': '/fapi/v1/algoOrder'}, 'phase': 'instead', 'count': 10_000,
              'effect': 'http', 'args': {'status': 400, 'body': {'code': -4120, 'msg': 'Order type not supported for this endpoint.'}}}
    assert requests.post(f'{fund.server.url}/_sim/fault', json=refuse, timeout=5).ok
    a = fund.hours(3).audit()
    assert a.red == ('protection',), str(a)
    assert not fund.gateway.desk.truth.positions, 'a position without a stop is closed'


def test_guard_stopped(fund):
    fund.gateway.guard = lambda: None
    a = fund.hours(3).audit()
    assert a.red == ('guard',), str(a)


def test_sizes_fixed(fund):
    def fixed(cycle):
        "Every entry 150 USDT, as the predecessor did it"
        intents = [replace(i, notional_usdt=150.0) if i.action == 'open' else i for i in cycle.intents]
        wanted = {i.symbol: i for i in intents if i.action == 'open'}
        decisions = [replace(d, target_usdt=150.0*wanted[d.symbol].side.sign) if d.symbol in wanted else d for d in cycle.decisions]
        return replace(cycle, intents=intents, decisions=decisions)
    a = fund.hours(6, twist=fixed).audit()
    assert a.red == ('sizing',), str(a)


def test_retrained_model_not_loaded(fund):
    from quantlib.models.registry import Registry
    old = Registry(fund.home.models).load_champions(fund.settings.models.members)
    fund.hours(3)
    fund.settings = fund.settings.model_copy(update={'models': fund.settings.models.model_copy(update={'rounds': 25})})
    fund.run('retrain', START + 3*HOUR, lambda r: promoted(r))
    a = fund.hours(2, served=old).audit()
    assert a.red == ('served',), str(a)


def promoted(r):
    "Retrain, and make sure that the new versions are the champions"
    done = r.retrain()
    for kind in r.settings.models.members: crown(r, kind, done)


def crown(r, kind, done):
    new = done[kind]['digest']
    if r.registry.champion()[kind] == new: return
    before = r.registry.champion()[kind]
    r.registry.promote(kind, new, r.clock.now())
    with r.journal.write() as c: c.execute(schema.promotions.insert().values(kind=kind, digest=new, previous=before, at=r.clock.now(), reason='by hand'))
