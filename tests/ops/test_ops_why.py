"From any row back to its run."
import json
import pytest
import sqlalchemy as sa
from quantlib.journal import schema as S
from quantlib.ops.why import UnknownId, why

TAIL = ['decision', 'signal', 'cycle', 'model', 'model', 'candles', 'run']
INTENT = ['intent', 'verdict'] + TAIL


def ids(j):
    first = lambda q: j.scalar(q)
    o, f = S.orders.c, S.fills.c
    entry = first(sa.select(o.id).where(o.role == 'entry'))
    stop = first(sa.select(o.id).where(o.role == 'stop'))
    return {'entry fill': (first(sa.select(f.id).where(f.order_id.like('%entry0'))), ['fill', 'order'] + INTENT),
            'stop fill': (first(sa.select(f.id).where(f.order_id.like('%stop0'))), ['fill', 'order', 'order'] + INTENT),
            'close fill': (first(sa.select(f.id).where(f.order_id.like('%close0'))), ['fill', 'order', 'order'] + INTENT),
            'entry': (entry, ['order'] + INTENT), 'stop': (stop, ['order', 'order'] + INTENT),
            'outcome': (first(sa.select(S.outcomes.c.id)), ['outcome'] + INTENT), 'verdict': (first(sa.select(S.verdicts.c.id)), ['verdict'] + INTENT),
            'intent': (first(sa.select(S.intents.c.id)), INTENT), 'decision': (first(sa.select(S.decisions.c.id)), TAIL), 'signal': (first(sa.select(S.signals.c.id)), TAIL[1:]),
            'cycle': (first(sa.select(S.cycles.c.id)), TAIL[2:]), 'run': (first(sa.select(S.runs.c.id).where(S.runs.c.job == 'trade')), ['run']),
            'model': (first(sa.select(S.models.c.digest)), ['model', 'run'])}


@pytest.mark.parametrize('kind', ['entry fill', 'stop fill', 'close fill', 'entry', 'stop', 'outcome', 'verdict', 'intent', 'decision', 'signal', 'cycle', 'run', 'model'])
def test_every_kind_of_id(day, kind):
    id, way = ids(day[1])[kind]
    w = why(day[1], id)
    assert [s.what for s in w.steps] == way
    assert w.steps[0].id == id
    assert json.loads(w.json())['id'] == id
    for s in w.steps: assert s.id in str(w) and s.id in w._repr_markdown_() and s.says in str(w)


def test_every_fill_leads_to_everything_the_walk_asks_for(day):
    j = day[1]
    for f in j.rows(S.fills):
        rows = {s.what: s.row for s in why(j, f['id']).steps}
        assert rows['verdict']['outcome'] == 'approved' and rows['decision']['sizing'] and rows['decision']['playbook'] and rows['decision']['regime']
        assert {v['kind']: v['digest'] for v in rows['signal']['votes']} == rows['cycle']['models']
        assert rows['candles']['bars'] > 0 and rows['run']['notebook'].endswith('.ipynb')


def test_what_came_of_an_intent(day):
    j = day[1]
    x = j.one(sa.select(S.outcomes))
    w = why(j, x['intent_id'])
    assert {'order', 'fill', 'outcome'} <= {s.what for s in w.follows}
    assert [s.at for s in w.follows] == sorted(s.at for s in w.follows)
    assert not {s.id for s in w.steps} & {s.id for s in w.follows}


def test_number_of_the_exchange(day):
    j = day[1]
    id = j.scalar(sa.select(S.orders.c.id))
    with j.write() as c: c.execute(S.orders.update().where(S.orders.c.id == id).values(exchange_id='987', child_id='988'))
    assert why(j, '987').steps[0].id == why(j, '988').steps[0].id == id


@pytest.mark.parametrize('id', ['', 'BTCUSDT:99999', 'ql-nothing', "'; drop table fills; --", 'trade'])
def test_unknown_id(day, id):
    with pytest.raises(UnknownId) as e: why(day[1], id)
    assert repr(id) in str(e.value) and 'ql-' in str(e.value)


def test_the_cell_that_decided(day):
    home, j, s, now = day
    id, _ = ids(j)['cycle']
    run = j.one(sa.select(S.runs).join(S.cycles, S.cycles.c.run_id == S.runs.c.id).where(S.cycles.c.id == id))
    path = home.path/run['notebook']; path.parent.mkdir(parents=True)
    cells = [dict(cell_type='markdown', id='m0', source=['# Trade']), dict(cell_type='code', id='c0', source=['from quantlib.strategy import decide']), dict(cell_type='code', id='c1', source=['cycle = ', 'decide.cycle(snapshot)'])]
    path.write_text(json.dumps(dict(cells=cells)))
    last = why(j, id).steps[-1]
    assert (last.what, last.id) == ('cell', 'cell 3 (id c1)')
