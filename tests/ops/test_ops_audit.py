"Each failure of the predecessor, staged on a whole journal, turns exactly its wire red."
import json, shutil
import pytest
import sqlalchemy as sa
from quantlib.core.clock import HOUR, MINUTE, iso
from quantlib.core.types import Reason
from quantlib.journal import schema as S
from quantlib.journal.store import Journal
from quantlib.ops.audit import audit
from quantlib.ops.wires import WIRES


def red(day, **kw):
    home, j, s, now = day
    return audit(home, j, s, kw.pop('now', now), **kw).red


def sql(day, *statements):
    with day[1].write() as c:
        for q in statements: c.execute(q)


def wipe_gateway(c, keep_guard=True):
    "What the journal would hold if no intent had ever been consumed"
    for t in (S.outcomes, S.protections, S.positions, S.fills): c.execute(t.delete())
    c.execute(S.orders.update().values(parent_id=None))
    for t in (S.orders, S.verdicts, S.deliveries): c.execute(t.delete())


def test_whole_day_is_healthy(day):
    home, j, s, now = day
    a = audit(home, j, s, now)
    assert a.healthy and not a.red, str(a)
    assert {r.wire for r in a.rows} == set(WIRES)
    assert json.loads(a.json())['healthy'] is True
    for r in a.rows: assert r.ran and r.evidence


def test_audit_is_a_function_of_its_arguments(day):
    home, j, s, now = day
    assert audit(home, j, s, now) == audit(home, j, s, now)


# 1: no model loadable, every signal from the fallback
def test_no_model_loadable(day):
    home, j, s, now = day
    why = {k: 'the hash of h1.txt is wrong' for k in s.models.members}
    sql(day, S.cycles.update().values(models={}, missing=why), S.signals.update().values(path='fallback', votes=[], missing=why),
        S.intents.update().values(path='fallback', notional_usdt=150.))
    with j.write() as c:
        for k in c.execute(sa.select(S.cycles.c.id, S.cycles.c.at)).all(): j.alert(k.at, 'critical', Reason.FALLBACK_USED, 'fallback', cause=k.id, c=c)
    a = audit(home, j, s, now)
    assert a.red == ('vote',), str(a)
    assert a['served'].verdict == 'grey' and 'hash of h1.txt' in a['served'].ran
    assert a['sizing'].verdict == 'grey'


def newest(j): return j.scalar(sa.select(S.cycles.c.id).order_by(S.cycles.c.slot.desc()))


def test_nobody_votes_in_the_newest_cycle(day):
    home, j, s, now = day; c, why = newest(j), {k: 'version 12 gave no number' for k in s.models.members}
    sql(day, S.signals.update().where(S.signals.c.cycle_id == c).values(path='fallback', votes=[], missing=why))
    j.alert(now, 'critical', Reason.FALLBACK_USED, 'fallback', cause=c)
    a = audit(home, j, s, now)
    assert a.red == ('vote',) and 'no model voted in the newest cycle' in a['vote'].ran and 'gave no number' in a['vote'].ran and not a.healthy


@pytest.mark.parametrize('told', [True, False])
def test_a_degraded_vote_is_named_now_and_has_its_alert(day, told):
    home, j, s, now = day; c, (k, *_) = newest(j), s.models.members
    for r in j.rows(sa.select(S.signals).where(S.signals.c.cycle_id == c)):
        sql(day, S.signals.update().where(S.signals.c.id == r['id']).values(path='degraded', votes=[v for v in r['votes'] if v['kind'] != k], missing={k: 'it is older than 3 retrain periods'}))
    if told: j.alert(now, 'warning', Reason.DEGRADED_VOTE, 'degraded', cause=c)
    a = audit(home, j, s, now)
    assert a.red == (() if told else ('vote',)) and (f'{k}: it is older' in a['vote'].ran if told else 'without an alert' in a['vote'].ran)


@pytest.mark.parametrize('told, opened', [(True, False), (False, False), (True, True)])
def test_a_bar_unlike_the_learnt_ones_is_told_and_not_entered(day, told, opened):
    home, j, s, now = day
    entered = {(i['cycle_id'], i['symbol']) for i in j.rows(S.intents) if i['action'] == 'open'}
    r = next(r for r in j.rows(S.signals) if ((r['cycle_id'], r['symbol']) in entered) == opened)
    sql(day, S.signals.update().where(S.signals.c.id == r['id']).values(votes=[v | dict(odd='rsi14 lies 3 ranges outside') for v in r['votes']]))
    if told: j.alert(now, 'warning', Reason.OUT_OF_DISTRIBUTION, 'odd', cause=r['symbol'])
    a = audit(home, j, s, now)
    assert a.red == (() if told and not opened else ('vote',)) and ('1 bars unlike' in a['vote'].ran or 'unlike all' in a['vote'].ran)


# 2: the consumer is stopped, from the start and halfway
def test_consumer_never_started(day):
    with day[1].write() as c: wipe_gateway(c); c.execute(S.pulses.delete().where(S.pulses.c.part == 'consumer'))
    a = audit(*day)
    assert a.red == ('consumed',), str(a)
    assert 'waited' in a['consumed'].ran
    assert {a[w].verdict for w in ('orders', 'fills', 'protection', 'outcomes')} == {'grey'}


def test_consumer_stopped_in_the_last_hours(day):
    home, j, s, now = day
    sql(day, S.pulses.update().where(S.pulses.c.part == 'consumer').values(at=now - 3*HOUR))
    assert red(day) == ('consumed',)


def test_consumer_alive_but_blind(day):
    with day[1].write() as c: wipe_gateway(c)
    assert red(day) == ('consumed',)


# 3: stops are refused; the positions are closed after the deadline, or stand naked
def test_stop_refused(day):
    sql(day, S.orders.update().where(S.orders.c.role == 'stop').values(state='refused', acked_at=None, error='refused -2021'))
    a = audit(*day)
    assert a.red == ('protection',), str(a)
    assert list(a['protection'].evidence['refused']) == ['refused -2021']


def test_stop_refused_and_explained_as_breached_is_still_red(day):
    sql(day, S.orders.update().where(S.orders.c.role == 'stop').values(state='refused', acked_at=None, error='refused -2021', reason=Reason.STOP_BREACHED.value))
    assert red(day) == ('protection',)


def test_one_breached_stop_is_explained(day):
    home, j, s, now = day
    first = j.scalar(sa.select(S.outcomes.c.intent_id))
    sql(day, S.orders.update().where(S.orders.c.role == 'stop', S.orders.c.intent_id == first).values(state='refused', acked_at=None, reason=Reason.STOP_BREACHED.value))
    a = audit(*day)
    assert a.healthy and a['protection'].evidence['breached'] == 1


@pytest.mark.parametrize('change', [dict(state='canceled'), dict(qty='0.000001'), dict(trigger='-3.5'), dict(trigger='0'), dict(side='the wrong one')])
def test_open_position_without_a_real_stop(day, change):
    home, j, s, now = day
    held = j.rows(S.positions)[0]
    if 'side' in change: change = dict(side='SELL' if float(held['qty']) < 0 else 'BUY')
    sql(day, S.orders.update().where(S.orders.c.role == 'stop', S.orders.c.intent_id == held['intent_id']).values(**change))
    a = audit(*day)
    assert a.red == ('protection',), str(a)
    assert held['symbol'] in a['protection'].ran


def test_naked_past_the_deadline(day):
    home, j, s, now = day
    sql(day, S.protections.update().where(S.protections.c.seq == 3).values(naked_ms=60_000))
    a = audit(*day)
    assert a.red == ('protection',) and '60 s' in a['protection'].ran


# 4: the guard is stopped
@pytest.mark.parametrize('stage', ['silent', 'never', 'rare'])
def test_guard_stopped(day, stage):
    home, j, s, now = day
    mine = S.pulses.c.part == 'guard'
    sql(day, {'silent': S.pulses.update().where(mine).values(at=now - HOUR), 'never': S.pulses.delete().where(mine), 'rare': S.pulses.update().where(mine).values(count=100)}[stage])
    assert red(day) == ('guard',)


# 5: sizes are fixed
def test_sizes_fixed(day):
    sql(day, S.intents.update().where(S.intents.c.action == 'open').values(notional_usdt=150.))
    a = audit(*day)
    assert a.red == ('sizing',) and '150' in a['sizing'].ran


# 6: a retrained model is not loaded
def test_promoted_but_not_loaded(day):
    home, j, s, now = day
    late = j.one(sa.select(S.promotions).order_by(S.promotions.c.at.desc()))
    old = {p['kind']: p['digest'] for p in j.rows(S.promotions) if p['at'] < late['at']}
    with j.write() as c:
        for k in c.execute(sa.select(S.cycles).where(S.cycles.c.at > late['at'])).mappings().all():
            c.execute(S.cycles.update().where(S.cycles.c.id == k['id']).values(models=old))
            for g in c.execute(sa.select(S.signals).where(S.signals.c.cycle_id == k['id'])).mappings().all():
                c.execute(S.signals.update().where(S.signals.c.id == g['id']).values(votes=[v | {'digest': old[v['kind']]} for v in g['votes']]))
    a = audit(*day)
    assert a.red == ('served',), str(a)
    assert late['digest'] in a['served'].ran


def test_trained_and_forgotten(day):
    home, j, s, now = day
    run = j.scalar(sa.select(S.runs.c.id).where(S.runs.c.job == 'retrain'))
    sql(day, S.models.insert().values(digest='f'*16, kind='xgboost', created_at=now - HOUR, run_id=run, candle_version=3, manifest={}))
    a = audit(*day)
    assert a.red == ('served',) and 'never judged' in a['served'].ran


def test_pointer_disagrees_with_the_journal(day):
    home = day[0]
    p = json.loads((home.models/'champion.json').read_text()); p['xgboost'][0]['digest'] = '0'*16
    (home.models/'champion.json').write_text(json.dumps(p))
    assert red(day) == ('served',)


# the wires that the predecessor did not even have
def test_stale_candles(day):
    home, j, s, now = day
    a = audit(home, j, s, now + 3*HOUR)
    assert a['candles'].verdict == 'red' and 'younger than' in a['candles'].ran


def test_empty_store_is_red_when_cycles_ran(day):
    shutil.rmtree(day[0].candles)
    assert red(day) == ('candles',)


def test_decision_without_intent(day):
    home, j, s, now = day
    d = j.scalar(sa.select(S.decisions.c.id).where(S.decisions.c.action == 'hold'))
    sql(day, S.decisions.update().where(S.decisions.c.id == d).values(action='open'))
    a = audit(*day)
    assert a.red == ('intents',) and d in a['intents'].ran


def test_fallback_without_an_alert(day):
    home, j, s, now = day
    g = j.scalar(sa.select(S.signals.c.id))
    sql(day, S.signals.update().where(S.signals.c.id == g).values(path='fallback', votes=[]))
    a = audit(*day)
    assert a.red == ('vote',) and 'without an alert' in a['vote'].ran


def test_ensemble_label_on_one_vote(day):
    home, j, s, now = day
    g = j.one(sa.select(S.signals))
    sql(day, S.signals.update().where(S.signals.c.id == g['id']).values(votes=g['votes'][:1]))
    assert red(day) == ('vote',)


def test_entry_without_a_verdict(day):
    home, j, s, now = day
    o = j.scalar(sa.select(S.orders.c.id).where(S.orders.c.role == 'entry'))
    sql(day, S.orders.update().where(S.orders.c.id == o).values(verdict_id=None))
    assert red(day) == ('orders',)


def test_unknown_outcome_that_nobody_proved(day):
    home, j, s, now = day
    i, e = j.scalar(sa.select(S.intents.c.id)), j.one(sa.select(S.orders).where(S.orders.c.role == 'entry'))
    sql(day, S.orders.insert().values(**e | dict(id='ql-lost-close0', role='close', state='unknown', filled='0', verdict_id=None, acked_at=None, done_at=None, created_at=now - 20*MINUTE)))
    assert red(day) == ('orders',)


def test_fills_that_do_not_add_up(day):
    home, j, s, now = day
    x = j.one(sa.select(S.fills).join(S.orders, S.orders.c.id == S.fills.c.order_id).where(S.orders.c.role == 'take'))
    sql(day, S.orders.update().where(S.orders.c.id == x['order_id']).values(filled='0.5'))
    a = audit(*day)
    assert a.red == ('fills',) and x['order_id'] in a['fills'].ran


def test_closed_position_without_outcome(day):
    home, j, s, now = day
    i = j.scalar(sa.select(S.outcomes.c.intent_id))
    sql(day, S.outcomes.delete().where(S.outcomes.c.intent_id == i))
    a = audit(*day)
    assert a.red == ('outcomes',) and i in a['outcomes'].ran


@pytest.mark.parametrize('state', ['failed', 'lost', 'missed', 'timeout', None])
def test_runs(day, state):
    home, j, s, now = day
    r = S.runs.c.id == f'audit:{iso(now - 5*HOUR)}'
    sql(day, S.runs.update().where(r).values(state=state, error='boom') if state else S.runs.delete().where(r))
    a = audit(*day)
    assert a.red == ('runs',) and (state or 'absent') in a['runs'].ran


def test_a_repeat_by_hand_heals_a_run(day):
    home, j, s, now = day
    row = j.one(sa.select(S.runs).where(S.runs.c.id == f'audit:{iso(now - 5*HOUR)}'))
    sql(day, S.runs.update().where(S.runs.c.id == row['id']).values(state='failed'), S.runs.insert().values(**row | dict(id=row['id'] + '#1', attempt=1)))
    assert red(day) == ()


def test_difference_with_the_exchange(day):
    sql(day, S.pulses.update().where(S.pulses.c.part == 'gateway').values(detail=dict(differences=['BTCUSDT'])))
    day[1].alert(day[3], 'critical', Reason.FOREIGN, 'BTCUSDT position: journal 0.01, exchange 0')
    a = audit(*day)
    assert a.red == ('agreement',) and 'BTCUSDT' in a['agreement'].ran


def test_nothing_ran(tmp_path, day):
    home, _, s, now = day
    j = Journal(f'sqlite:///{tmp_path}/empty.db')
    a = audit(home, j, s, now)
    assert not a.healthy and not a.red and a['guard'].verdict == 'grey'
    j.close()


def test_old_incidents_leave_the_window(day):
    home, j, s, now = day
    sql(day, S.protections.update().where(S.protections.c.seq == 1).values(naked_ms=60_000))
    assert red(day) == ('protection',) and 'protection' not in red(day, hours=2)


def test_naked_until_closed(day):
    home, j, s, now = day
    x = j.one(sa.select(S.outcomes))
    sql(day, S.protections.update().where(S.protections.c.intent_id == x['intent_id']).values(state='naked', naked_ms=0, at=x['closed_at'] - 120_000))
    a = audit(*day)
    assert a.red == ('protection',) and '2 min' in a['protection'].ran


def test_naked_and_covered_again_in_time(day):
    home, j, s, now = day
    p = j.one(sa.select(S.protections))
    sql(day, S.protections.insert().values(**{k: v for k, v in p.items() if k != 'seq'} | dict(at=p['at'] + 60_000, state='naked', naked_ms=0)),
        S.protections.insert().values(**{k: v for k, v in p.items() if k != 'seq'} | dict(at=p['at'] + 65_000, state='protected', naked_ms=5_000)))
    a = audit(*day)
    assert a.healthy and a['protection'].evidence['longest_naked_ms'] == 5_000
