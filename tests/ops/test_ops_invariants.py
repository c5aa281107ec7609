"One lie for each invariant, planted in a run that is true; each is found by its own sentence"
from copy import deepcopy
from dataclasses import replace
from decimal import Decimal

import pytest
import sqlalchemy as sa

from quantlib.core.clock import HOUR, MINUTE
from quantlib.execution.gateway import Gateway
from quantlib.execution.rehearsal import Stage
from quantlib.journal import schema
from quantlib.ops.invariants import INVARIANTS, Shot, bare, check, facts, figures, guards, judge, kills_of, of_venue
from quantlib.ops.watch import Watch


@pytest.fixture(scope='module')
def run():
    "Three entries, one of them closed; journal and venue at rest"
    s = Stage(('BTCUSDT', 'ETHUSDT', 'SOLUSDT'), hours=6)
    s.watch = Watch(s.venue, s.journal)
    g = Gateway(s.settings, s.home, s.journal, s.client); g.start()
    for name in ('BTCUSDT', 'ETHUSDT', 'SOLUSDT'): s.wish(name, 'BUY')
    def minutes(n):
        for _ in range(n): s.venue.advance(s.venue.now + MINUTE); s.watch.look(); g.step()
    minutes(3); s.wish('SOLUSDT', 'SELL', action='close'); minutes(20)
    yield s
    s.close()


@pytest.fixture
def f(run): return facts(run.journal, run.settings, run.venue.now, view=of_venue(run.venue))


def ids(f): return {b.id for b in check(f)}
def first(rows, **where): return next(r for r in rows if all(r[k] == v for k, v in where.items()))
def changed(f, table, **values):
    "The facts with the first row of a table changed"
    rows = deepcopy(f.tables[table]); rows[0] |= values
    return f.but(**{table: rows})


def test_a_true_run_breaks_nothing_and_is_judged(f, run):
    assert check(f) == [] and run.watch.breaches == []
    verdicts = {j.id: j.verdict for j in judge(f)}
    assert set(verdicts) == set(INVARIANTS) == {f'I{n}' for n in (*range(1, 13), *range(14, 20), 22, 23)}
    assert 'red' not in verdicts.values()
    assert {i for i, v in verdicts.items() if v == 'grey'} <= {'I8', 'I15', 'I18'}, 'what is grey here is judged nowhere'
    assert figures(f)['naked_s']['n'] == 3


def test_without_the_exchange_nothing_is_green_that_needs_it(f, run):
    alone = {j.id: j for j in judge(facts(run.journal, run.settings, run.venue.now))}
    for i in ('I1', 'I2', 'I7', 'I9', 'I10', 'I11', 'I22'): assert (alone[i].verdict, 'not judged' in alone[i].why) == ('grey', True)


def test_sent_twice(f):
    e = next(s for s in f.view.past if s.ours and not s.algo)
    assert ids(f.but(dict(past=f.view.past + (e,)))) == {'I1'}


def test_an_order_that_nobody_wrote_down(f):
    ghost = Shot('ql-i0123456789abcdef-entry0', 'BTCUSDT', 'BUY', 'MARKET', Decimal('.01'), Decimal(0), False, False, False, 'FILLED', f.now - MINUTE)
    assert ids(f.but(dict(past=f.view.past + (ghost,)))) == {'I2'}


def test_written_down_after_it_was_sent(f):
    o = first(f.orders, role='entry')
    assert 'I2' in ids(f.but(orders=[r | {'sent_at': r['sent_at'] + 5_000, 'acked_at': r['sent_at'] + 5_000, 'done_at': r['sent_at'] + 5_000} if r is o else r for r in f.orders]))


def test_an_entry_without_approval(f):
    assert 'I2' in ids(f.but(verdicts=[v | {'outcome': 'rejected'} for v in f.verdicts]))


def test_a_name_that_does_not_follow(f):
    assert 'I3' in ids(changed(f, 'orders', id='ql-i0123456789abcdef-entry0'))


def test_judged_twice(f): assert ids(f.but(verdicts=f.verdicts + [f.verdicts[-1]])) == {'I3'}


def test_a_minute_without_a_stop(f):
    assert ids(changed(f, 'protections', naked_ms=60_000)) == {'I4'}
    start = dict(fence=1, account='a', owner='o', taken_at=f.protections[0]['at'] - 20_000, until=f.now + HOUR, ended_at=None)
    assert ids(changed(f.but(leases=[start]), 'protections', naked_ms=25_000)) - {'I18'} == set(), 'a process that died may take longer'


def test_a_stop_that_is_gone(f): assert {'I4', 'I7'} == ids(f.but(dict(open=tuple(s for s in f.view.open if s.type != 'STOP_MARKET'))))


def test_a_way_out_that_was_barred(f):
    close = {i['id'] for i in f.intents if i['action'] == 'close'}
    assert 'I5' in ids(f.but(verdicts=[v | dict(outcome='rejected', reasons=['min_notional']) if v['intent_id'] in close else v for v in f.verdicts]))


def test_flatten_that_does_not_end_flat(f):
    late = type(f)(f.settings, f.now, 0, f.tables, f.view, ((f.now - 40_000, None, 'flatten'),), ())
    assert ids(late) == {'I5'}


def test_an_unknown_order_that_is_forgotten(f):
    orders = [o | {'state': 'unknown', 'created_at': o['created_at'] - HOUR, 'sent_at': o['sent_at'] - HOUR} if o['role'] == 'entry' and o['symbol'] == 'SOLUSDT' else o for o in f.orders]
    assert 'I6' in ids(f.but(orders=orders))


def test_a_fill_that_was_not_booked(f): assert 'I7' in ids(f.but(fills=f.fills[1:]))
def test_a_fill_booked_at_another_price(f): assert ids(changed(f, 'fills', price='1')) == {'I7'}
def test_a_fill_out_of_nothing(f): assert 'I7' in ids(f.but(fills=f.fills + [f.fills[0] | {'id': 'BTCUSDT:1'}]))
def test_a_position_that_is_another(f): assert 'I7' in ids(changed(f, 'positions', qty='9'))


def test_money_that_nobody_explains(f):
    rows = [dict(id=str(n), kind=k, symbol=x['symbol'], amount=str(a), at=x['at'], trade=x['id'].split(':')[1]) for n, x in enumerate(f.fills)
            for k, a in (('REALIZED_PNL', Decimal(x['realized'])), ('COMMISSION', -Decimal(x['fee'])))]
    assert ids(f.but(income=rows)) == set()
    assert ids(f.but(income=rows[:-1])) == {'I8'}


def test_a_close_that_is_not_reduce_only(f):
    past = tuple(replace(s, reduces=False) if s.client.endswith('close0') else s for s in f.view.past)
    assert ids(f.but(dict(past=past))) == {'I9'}


def test_a_close_that_turns_the_position_round(f):
    trades = tuple(t | {'qty': t['qty']*2} if t['client'].endswith('close0') else t for t in f.view.trades)
    assert 'I9' in ids(f.but(dict(trades=trades)))


def test_an_orphan_and_a_third_stop(f):
    stop = next(s for s in f.view.open if s.type == 'STOP_MARKET')
    orphan = replace(stop, client=stop.client[:-1] + '7', symbol='SOLUSDT', at=f.now - HOUR)
    assert 'I10' in ids(f.but(dict(open=f.view.open + (orphan,))))
    three = tuple(replace(stop, client=stop.client[:-1] + str(k)) for k in (7, 8))
    assert 'I10' in ids(f.but(dict(open=f.view.open + three)))


@pytest.mark.parametrize('qty', ('1e-05', '0.00012345', 'NaN'))
def test_a_quantity_off_the_grid(f, qty): assert 'I11' in ids(changed(f, 'orders', qty=qty)) or qty == 'NaN'


def test_an_approval_beyond_a_limit(f):
    for k, v in dict(notional_usdt=99_999.).items(): assert 'I12' in ids(changed(f, 'verdicts', **{k: v}))
    book = f.verdicts[0]['book']
    assert 'I12' in ids(changed(f, 'verdicts', book=book | dict(equity=10.)))
    assert 'I12' in ids(changed(f, 'verdicts', book=book | dict(day_open=2*book['equity'])))


def test_an_entry_in_flight_that_was_not_counted(f):
    v = f.verdicts[-2]
    flying = [o | {'done_at': None, 'created_at': v['at'] - 5_000, 'sent_at': v['at'] - 5_000, 'symbol': 'XRPUSDT'} if o['role'] == 'entry' and o['intent_id'] != v['intent_id'] else o for o in f.orders]
    assert 'I12' in ids(f.but(orders=flying, verdicts=[v]))


@pytest.mark.parametrize('x', ('NaN', 'Infinity', '-1', '1e30', ''))
def test_garbage(f, x): assert 'I14' in ids(changed(f, 'fills', price=x))


def test_an_entry_against_a_breaker(f):
    tripped = dict(seq=1, scope='global', reason='daily_drawdown', detail='', tripped_at=f.entries[0]['created_at'] - 5_000, cleared_at=None, cleared_why=None)
    assert ids(f.but(breakers=[tripped])) == {'I15'}


def test_an_entry_into_a_sick_world(f):
    sick = lambda **w: f.but(verdicts=[v | {'book': v['book'] | {'world': w}} for v in f.verdicts])
    for w in (dict(canary=False), dict(reconciled=False), dict(kill='pause'), dict(stream_ms=10**6), dict(skew_ms=-900)): assert ids(sick(**w)) == {'I15'}, w
    assert ids(sick(canary=True, reconciled=True, kill=None, stream_ms=None, skew_ms=3, leader=True)) == set()


def test_an_old_decision(f): assert 'I16' in ids(changed(f, 'cycles', snapshot=dict(slot=f.now - 9*HOUR)))
@pytest.mark.parametrize('voted', [True, False])
def test_an_old_model_may_be_there_but_not_vote(f, voted):
    c = f.cycles[0]; vote = dict(cycle_id=c['id'], votes=[dict(kind='ridge', digest='d1')] if voted else [])
    limit = 3*f.settings.jobs.retrain*MINUTE
    for extra, red in ((HOUR, voted), (0, False)):
        assert ('I16' in ids(f.but(models=[dict(digest='d1', created_at=c['snapshot'].get('slot', c['slot']) - limit - extra)], signals=[vote]))) == red


def test_a_future_decision(f): assert 'I16' in ids(changed(f, 'cycles', snapshot=dict(slot=f.now + HOUR)))
def test_time_that_goes_back(f): assert 'I17' in ids(changed(f, 'orders', acked_at=f.orders[0]['created_at'] - 1))
def test_time_to_come(f): assert 'I17' in ids(changed(f, 'orders', done_at=f.now + HOUR))


def test_two_leaders(f):
    leases = [dict(fence=n, account='a', owner='o', taken_at=f.now - HOUR + n, until=f.now, ended_at=None) for n in (1, 2)]
    fenced = f.but(leases=leases, orders=[o | {'fence': 2} for o in f.orders], verdicts=[v | {'fence': 2} for v in f.verdicts])
    assert ids(fenced) == set()
    assert ids(changed(fenced, 'orders', fence=1)) == {'I18'}


def test_a_secret_in_an_alert(f):
    row = dict(seq=1, at=f.now, level='info', code='unknown_outcome', message='GET /x?signature=' + '0123456789abcdef'*4, cause=None, run_id=None)
    assert ids(f.but(alerts=f.alerts + [row])) == {'I19'}
    plain = f.but(alerts=f.alerts + [row | {'message': 'the key is hunter2hunter2'}])
    assert ids(plain) == set() and ids(type(f)(f.settings, f.now, 0, plain.tables, f.view, (), ('hunter2hunter2',))) == {'I19'}


def test_a_stranger_that_nobody_told_of(f):
    held = f.view.positions | {'SOLUSDT': (Decimal(1), Decimal(150), Decimal(150), Decimal(50))}
    assert 'I22' in ids(f.but(dict(positions=held)))


def test_an_entry_while_the_switch_is_set(f):
    told = ((f.entries[0]['created_at'] - 5_000, None, 'pause'),)
    assert 'I23' in ids(type(f)(f.settings, f.now, 0, f.tables, f.view, told, ()))


def test_the_history_of_the_switch():
    log = [dict(at=1, what='put', level='PAUSE'), dict(at=5, what='put', level='FLATTEN'), dict(at=9, what='clear', level='PAUSE'), dict(at=12, what='clear', level='')]
    assert kills_of(log) == ((1, 5, 'pause'), (5, 9, 'flatten'), (9, 12, 'pause'))


LONG = (Decimal(2), Decimal(100), Decimal(101), Decimal(60))
STOP = Shot('ql-x-stop0', 'BTCUSDT', 'SELL', 'STOP_MARKET', Decimal(2), Decimal(98), True, True, False, 'NEW', 0)


@pytest.mark.parametrize('change, ok', [({}, True), (dict(side='BUY'), False), (dict(reduces=False), False), (dict(trigger=Decimal(59)), False), (dict(trigger=Decimal(102)), False), (dict(status='CANCELED'), False),
    (dict(type='TAKE_PROFIT_MARKET'), False), (dict(algo=False), False), (dict(status='TRIGGERING', fired=1), True), (dict(status='TRIGGERING', fired=-4_000), False)])
def test_what_counts_as_a_stop(change, ok): assert guards(replace(STOP, **change), LONG, 0) is ok


def test_halves_cover_together():
    half = replace(STOP, qty=Decimal(1))
    assert (bare(LONG, [half], 0), bare(LONG, [half, half], 0), bare(LONG, [replace(half, whole=True, qty=Decimal(0))], 0)) == (1, 0, 0)


def test_watch_sees_what_is_over_before_anybody_looks(run):
    v, w = run.venue, run.watch
    n, was = len(w.spans), len(w.breaches)
    stop = next(a for a in v.waiting['BTCUSDT'].values() if a.type == 'STOP_MARKET')
    p = dict(symbol='BTCUSDT', side=stop.side, algoType='CONDITIONAL', type='STOP_MARKET', quantity=str(stop.qty), reduceOnly='true', triggerPrice=str(stop.trigger), workingType='MARK_PRICE')
    v.end_algo(stop, 'CANCELED'); v.advance(v.now + 7_000)
    v.call('POST', '/fapi/v1/algoOrder', **p, clientAlgoId='ql-i0000000000000000-stop9')
    assert (len(w.spans), w.spans[-1].ms) == (n + 1, 7_000)
    assert [b.id for b in w.breaches[was:]] == ['I2'], 'and that nobody had written down the new stop'
