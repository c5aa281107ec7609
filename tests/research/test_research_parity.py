"A cycle decided again is the same to the last bit, and a tampered row is found."
import numpy as np
import pytest
import sqlalchemy as sa
from quantlib.core.clock import HOUR, iso, parse_iso
from quantlib.core.settings import load
from quantlib.core.types import Book, Position
from quantlib.data.candles import CandleStore
from quantlib.data.synthetic import market
from quantlib.journal import schema as S
from quantlib.journal.store import Journal
from quantlib.learning.retrain import retrain
from quantlib.models.registry import ModelRefused, Registry
from quantlib.research import parity as P
from quantlib.strategy import decide, meta, record
from quantlib.strategy.snapshot import Snapshot

SLOT, NAMES = parse_iso('2025-03-01T00:00Z'), ('ADAUSDT', 'BTCUSDT', 'DOGEUSDT', 'ETHUSDT', 'LINKUSDT', 'SOLUSDT', 'XRPUSDT')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Three published cycles, one of them without models"
    folder = tmp_path_factory.mktemp('parity')
    s = load(overrides={'universe': {'symbols': NAMES, 'history_bars': 660, 'snapshot_bars': 600}, 'models': {'rounds': 5, 'members': 'xgboost, lightgbm'}, 'strategy': {'min_confidence': .5005}})
    store, registry, j = CandleStore(folder/'candles'), Registry(folder/'models'), Journal(f'sqlite:///{folder}/journal.db')
    px = market(list(NAMES), SLOT - 660*HOUR, 664, seed=9)
    store.append(px[px.open_time.astype('int64') < SLOT].reset_index(drop=True))
    run = lambda job, slot: _run(j, job, slot)
    retrain(store, registry, j, s, SLOT, run('retrain', SLOT), at=SLOT)
    book, policy, cycles = Book(SLOT, 14_000., 14_000., {'XRPUSDT': Position('XRPUSDT', -40., 2.5, 2.51, .015, SLOT - HOUR)}, {'ADAUSDT': 100.}), None, []
    for k in range(3):
        slot = SLOT + k*HOUR
        store.append(px[px.open_time.astype('int64') < slot].reset_index(drop=True))
        snap = Snapshot.take(store, slot, NAMES, 600, {'BTCUSDT': 95_000.1 + k}, {'BTCUSDT': 1e-4/3})
        served = registry.load_champions(s.models.members) if k < 2 else ({}, {m: 'no champion' for m in s.models.members})
        policy = policy or meta.warm(snap, s)
        made = decide.cycle(snap, served, book, policy, s)
        cycles.append(record.publish(j, run('trade', slot), 'paper', snap, made, served, book, policy, s.digest, 'code', at=slot + 1))
        policy = made.policy_after
    yield store, registry, j, s, cycles
    j.close()


def _run(j, job, slot):
    with j.write() as c: j.add(c, S.runs, dict(id=f'{job}:{iso(slot)}', job=job, slot=slot, attempt=0, state='done', claimed_at=slot))
    return f'{job}:{iso(slot)}'


def test_no_difference(world):
    store, registry, j, s, cycles = world
    for c in cycles: assert P.differences(j, store, registry, c, s).empty
    assert P.parity(j, store, registry, s).tolist() == [0, 0, 0]
    paths = {r['path'] for r in j.rows(S.signals)}
    assert paths == {'ensemble', 'fallback'}


def test_bars_that_came_later_change_nothing(world):
    store, registry, j, s, cycles = world
    store.append(market(list(NAMES), SLOT - 800*HOUR, 100, seed=1))
    store.append(market(list(NAMES), SLOT + 10*HOUR, 5, seed=1))
    for c in cycles: assert P.differences(j, store, registry, c, s).empty


TAMPERED = [('signals', dict(confidence=.5123)), ('signals', dict(side='HOLD')), ('decisions', dict(target_usdt=77.7)), ('decisions', dict(regime='none')), ('decisions', dict(reasons=['enter', 'ok'])), ('signals', dict(votes=[]))]


@pytest.mark.parametrize('table, change', TAMPERED)
def test_a_tampered_row_is_found(world, table, change):
    store, registry, j, s, cycles = world
    t = S.meta.tables[table]
    where = (t.c.cycle_id == cycles[0]) & (t.c.symbol == 'ETHUSDT')
    old = j.one(sa.select(t).where(where))
    with j.write() as c: c.execute(t.update().where(where).values(**change))
    d = P.differences(j, store, registry, cycles[0], s)
    with j.write() as c: c.execute(t.update().where(where).values(**old))
    assert d[['stage', 'symbol', 'field']].values.tolist() == [[table, 'ETHUSDT', next(iter(change))]]
    assert P.differences(j, store, registry, cycles[0], s).empty


def test_the_smallest_change_of_a_float_is_found(world):
    store, registry, j, s, cycles = world
    t = S.signals; where = (t.c.cycle_id == cycles[1]) & (t.c.symbol == 'BTCUSDT')
    old = j.one(sa.select(t).where(where))
    with j.write() as c: c.execute(t.update().where(where).values(confidence=float(np.nextafter(old['confidence'], 1))))
    d = P.differences(j, store, registry, cycles[1], s)
    with j.write() as c: c.execute(t.update().where(where).values(**old))
    assert len(d) == 1


def test_a_row_too_few_and_a_policy_that_was_edited(world):
    store, registry, j, s, cycles = world
    p = j.one(sa.select(S.policy).where(S.policy.c.cycle_id == cycles[0]))
    with j.write() as c: c.execute(S.policy.update().where(S.policy.c.cycle_id == cycles[0]).values(weights={}))
    assert P.differences(j, store, registry, cycles[0], s)['stage'].tolist() == ['policy']
    with j.write() as c: c.execute(S.policy.update().where(S.policy.c.cycle_id == cycles[0]).values(weights=p['weights']))
    i = j.one(sa.select(S.intents).where(S.intents.c.cycle_id == cycles[0]))
    assert i is not None
    with j.write() as c: c.execute(S.intents.delete().where(S.intents.c.id == i['id']))
    d = P.differences(j, store, registry, cycles[0], s)
    with j.write() as c: c.execute(S.intents.insert().values(**i))
    assert d.values.tolist() == [['intents', i['symbol'], 'row', 'absent', 'present']]


def test_other_settings_an_unknown_cycle_and_a_broken_model_are_refused(world):
    store, registry, j, s, cycles = world
    with pytest.raises(P.NotReplayable, match='settings'): P.replay(j, store, registry, cycles[0], load())
    with pytest.raises(P.NotReplayable, match="'c0'"): P.replay(j, store, registry, 'c0', s)
    d = P.cycle_row(j, cycles[0])['models']['xgboost']
    path = registry.root/'xgboost'/d/'h1.ubj'; good = path.read_bytes()
    path.write_bytes(good + b' ')
    with pytest.raises(ModelRefused): P.replay(j, store, registry, cycles[0], s)
    path.write_bytes(good)
