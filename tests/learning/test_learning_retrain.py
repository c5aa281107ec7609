"Retraining sees only the past, promotes only what is not worse, and can die anywhere."
import json
import pytest
import sqlalchemy as sa
from quantlib.core.clock import HOUR, iso, parse_iso
from quantlib.core.settings import load
from quantlib.data.candles import CandleStore
from quantlib.data.synthetic import market
from quantlib.journal import schema as S
from quantlib.journal.store import Journal
from quantlib.learning import retrain as module
from quantlib.learning.retrain import history, retrain, skill
from quantlib.models.registry import Registry
from quantlib.strategy.decide import aged

SLOT = parse_iso('2025-03-01T00:00Z')
NAMES = tuple(f'C{i}USDT' for i in range(8))


class World:
    "A store, a registry and a journal"
    def __init__(self, folder, bars=560, extra=24):
        self.s = load(overrides={'universe': {'symbols': NAMES, 'history_bars': 560}, 'models': {'rounds': 5, 'members': 'xgboost, lightgbm'}})
        self.store, self.registry, self.j = CandleStore(folder/'candles'), Registry(folder/'models'), Journal(f'sqlite:///{folder}/journal.db')
        self.store.append(market(list(NAMES), SLOT - bars*HOUR, bars + extra, seed=4))

    def run(self, slot=SLOT, n=0):
        id = f'retrain:{iso(slot)}#{n}'
        with self.j.write() as c: self.j.add(c, S.runs, dict(id=id, job='retrain', slot=slot, attempt=n, state='running', claimed_at=slot))
        return retrain(self.store, self.registry, self.j, self.s, slot, id, at=slot + 60_000)

    def newest(self):
        return {p['kind']: p['digest'] for p in self.j.rows(S.promotions)}


@pytest.fixture
def world(tmp_path):
    w = World(tmp_path)
    yield w
    w.j.close()


def test_candles_after_the_slot_change_nothing(tmp_path):
    (tmp_path/'a').mkdir(); (tmp_path/'b').mkdir()
    a, b = World(tmp_path/'a', extra=0), World(tmp_path/'b', extra=48)
    assert history(a.store, a.s, SLOT).equals(history(b.store, b.s, SLOT))
    left, right = a.run(), b.run()
    assert {k: r['skill'] for k, r in left.items()} == {k: r['skill'] for k, r in right.items()}
    for k, r in left.items():
        m, n = a.registry.manifest(k, r['digest']), b.registry.manifest(k, right[k]['digest'])
        assert m['files'] == n['files'] and m['span'] == n['span'] and parse_iso(m['span']['end']) < SLOT


def test_a_slot_inside_an_hour_sees_only_closed_bars(world):
    assert int(history(world.store, world.s, SLOT + 40*60_000).open_time.max().timestamp()*1000) == SLOT - HOUR


def test_first_champion_is_promoted_and_on_record(world):
    r = world.run()
    assert all(x['promoted'] for x in r.values())
    assert world.newest() == world.registry.champion() == {k: x['digest'] for k, x in r.items()}
    assert {m['digest'] for m in world.j.rows(S.models)} == {x['digest'] for x in r.values()}
    assert world.j.frame(S.alerts).code.tolist() == ['promoted', 'promoted']


@pytest.mark.parametrize('shift, promoted', [(-1., False), (1., True)])
def test_the_champion_gives_way_only_to_one_that_is_not_worse(world, monkeypatch, shift, promoted):
    old = {k: x['digest'] for k, x in world.run().items()}
    mine, calls = skill, []
    def biased(metrics):  # the challenger is measured first, then the champion
        calls.append(1)
        return mine(metrics) + (shift if len(calls) % 2 else 0)
    monkeypatch.setattr(module, 'skill', biased)
    r = world.run(SLOT + 4*HOUR)
    assert [x['promoted'] for x in r.values()] == [promoted]*2
    champion = world.registry.champion()
    assert champion == (({k: x['digest'] for k, x in r.items()}) if promoted else old)
    assert world.newest() == champion
    assert set(world.j.frame(S.alerts).code[2:]) == {'promoted' if promoted else 'kept'}
    for k in champion: world.registry.load(k, r[k]['digest'])


def test_a_champion_that_keeps_winning_gives_way_before_it_is_too_old_to_vote(world, monkeypatch):
    "Kept twice; at the third retraining it would be silent before the fourth, so a worse challenger takes its place"
    first, period = {k: x['digest'] for k, x in world.run().items()}, world.s.jobs.retrain*60_000
    best = [skill(world.registry.load(k, d).card) for k, d in first.items()]
    monkeypatch.setattr(module, 'skill', lambda metrics: 0. if skill(metrics) in best else -1.)
    for n in (1, 2):
        assert not any(x['promoted'] for x in world.run(SLOT + n*period).values()) and world.registry.champion() == first
        assert not any(aged(world.registry.load(k, d), SLOT + (n + 1)*period, world.s) for k, d in first.items())
    r = world.run(SLOT + 3*period)
    assert all(x['promoted'] and 'older than 3 retrain periods' in x['why'] for x in r.values()) and world.newest() == world.registry.champion()


def test_repeating_changes_nothing(world):
    world.run(); before = world.j.fingerprint(S.promotions), world.j.fingerprint(S.models), world.registry.pointer.read_text()
    r = world.run(n=1)
    assert not any(x['promoted'] for x in r.values())
    assert before == (world.j.fingerprint(S.promotions), world.j.fingerprint(S.models), world.registry.pointer.read_text())


@pytest.mark.parametrize('where', ['save', 'promote', 'announce'])
def test_dying_at_any_step_leaves_a_whole_registry_and_the_next_run_heals(world, monkeypatch, where):
    world.run()
    def die(*a, **kw): raise KeyboardInterrupt('killed')
    with monkeypatch.context() as m:
        m.setattr(module, 'skill', lambda metrics: 1.)
        if where == 'announce': m.setattr(module, 'announce', die)
        else: m.setattr(Registry, where, die)
        with pytest.raises(KeyboardInterrupt): world.run(SLOT + 4*HOUR)
    for k, d in world.registry.champion().items(): world.registry.load(k, d)
    monkeypatch.setattr(module, 'skill', lambda metrics: 1.)
    r = world.run(SLOT + 4*HOUR, n=1)
    assert world.newest() == world.registry.champion() == {k: x['digest'] for k, x in r.items()}


def test_a_broken_champion_is_replaced(world):
    first = world.run()
    (world.registry.root/'xgboost'/first['xgboost']['digest']/'h4.ubj').write_bytes(b'cut')
    r = world.run(SLOT + 4*HOUR)
    assert r['xgboost']['promoted'] and 'cannot be served' in r['xgboost']['why']


def test_a_pointer_that_cannot_be_read_is_not_overwritten(world):
    world.run(); world.registry.pointer.write_text('{half')
    with pytest.raises(Exception, match='cannot be read'): world.run(SLOT + 4*HOUR)
    assert world.registry.pointer.read_text() == '{half'


def test_too_little_history_changes_nothing(tmp_path):
    w = World(tmp_path, bars=100, extra=0)
    with pytest.raises(ValueError, match='no row to learn from'): w.run()
    assert w.registry.champion() == {} and len(w.j.frame(S.models)) == 0


def test_skill_of_the_baseline_is_zero():
    assert skill({f'h{h}': dict(pinball=.3, pinball_zero=.3) for h in (1, 4, 24)}) == 0
