"The page asks nobody else for anything, and its sums add up."
import re
import nbformat
import pandas as pd
import pytest
import sqlalchemy as sa
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from quantlib.journal import schema as S
from quantlib.journal.store import Journal
from quantlib.learning import memory, outcomes
from quantlib.ops import alerts, reports
from quantlib.ops.audit import audit
from quantlib.research import plots

PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='


def write(path, *outputs, text='# Report\n> A day'):
    cells = [new_markdown_cell(text)] + [new_code_cell(f'secret_code_{i}()', outputs=[new_output('display_data', o)]) for i, o in enumerate(outputs)]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_self_contained(day, tmp_path):
    home, j, s, now = day
    nb = write(tmp_path/'report.ipynb', {'text/html': audit(home, j, s, now)._repr_html_()}, {'image/png': PNG}, {'text/html': reports.money(j).to_html()}, {'text/markdown': reports.headline(j)._repr_markdown_()})
    text = reports.to_html(nb, tmp_path/'out'/'day.html', 'A day & more').read_text()
    assert not re.findall(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//', text, re.I)
    assert '<script' not in text and 'secret_code' not in text and '@import' not in text
    assert 'data:image/png;base64' in text and 'A day &amp; more' in text and 'champion' not in text.split('<body>')[0]
    assert reports.fetches(text) == []


@pytest.mark.parametrize('bad', ['<img src="https://x.org/a.png">', "<link rel=stylesheet href='//cdn/x.css'>", '<iframe src=http://x></iframe>', '<style>body{background:url(https://x/y.png)}</style>',
                                 '<style>@import "https://x/y.css"</style>', '<img alt=1 src=logo.png>'])
def test_anything_from_elsewhere_is_refused(tmp_path, bad):
    with pytest.raises(ValueError, match='would load'): reports.to_html(write(tmp_path/'bad.ipynb', {'text/html': bad}), tmp_path/'bad.html', 'Bad')
    assert not list(tmp_path.glob('*.html')) and not list(tmp_path.glob('.*.new'))


def test_scripts_are_removed(tmp_path):
    out = reports.to_html(write(tmp_path/'r.ipynb', {'text/html': '<script src="https://x/y.js"></script><p>kept</p>'}), tmp_path/'r.html', 'R').read_text()
    assert 'kept' in out and 'y.js' not in out


def test_money_shows_a_difference(day):
    j = day[1]
    assert abs(reports.money(j).usdt['difference']) < .01
    with j.write() as c: c.execute(S.fills.delete().where(S.fills.c.id == j.frame(S.fills).id.iloc[-1]))
    assert abs(reports.money(j).usdt['difference']) > .01


def test_tables_of_an_empty_day(tmp_path):
    j = Journal(f'sqlite:///{tmp_path}/j.db')
    assert len(reports.trades(j)) == 0 and len(reports.verdicts(j)) == 0 and len(reports.by_reason(j)) == 0
    with pytest.raises(ValueError, match='equity row'): reports.money(j)
    for draw in (plots.equity, plots.protection, plots.paths, plots.weights):
        with pytest.raises(plots.NothingToDraw): draw(j)
        assert isinstance(plots.drawn(draw, j), str)
    closed = outcomes.labelled(j)
    for t in (reports.trades(j), reports.by_reason(j), memory.memory(closed), outcomes.by_vote(closed), alerts.tally(j)): assert '<table>' in reports.Table(t)._repr_html_()
    assert len(alerts.recent(j)) == 0 and len(alerts.tally(j)) == 0
    with j.write() as c: c.execute(S.equity.insert().values(at=0, wallet=1., unrealized=0., equity=1., gross=0., positions=0, day_open=1.))
    assert reports.headline(j)['won'] == 'no position was closed'


def test_markup_in_messages_is_escaped(day):
    home, j, s, now = day
    r = S.runs.c.id == j.scalar(sa.select(S.runs.c.id).where(S.runs.c.job == 'audit'))
    with j.write() as c: c.execute(S.runs.update().where(r).values(state='failed', error='<img src=x onerror=alert(1)>'))
    assert '<img' not in audit(home, j, s, now)._repr_html_()


def test_log_survives_a_torn_line(day, tmp_path):
    j, log = day[1], tmp_path/'logs'/'alerts.jsonl'
    n = alerts.forward(j, log)
    assert n == len(alerts.recent(j)) and alerts.forward(j, log) == 0
    whole = log.read_text()
    log.write_text(whole[:-20])
    assert alerts.forward(j, log) == 1 and log.read_text() == whole


def test_a_table_of_odd_values():
    df = pd.DataFrame({'n': [1_000, 2], 'net': [-0.0, float('nan')], 'loss': [-12.5, 3.], 'text': ['<b>', None]})
    text = reports.Table(df, '<i>')._repr_html_()
    assert '1,000' in text and '&lt;b&gt;' in text and '&lt;i&gt;' in text and '<b>' not in text
    assert '-0.0' not in text and 'nan' not in text and 'color:#cf222e">-12.50' in text
    long = reports.Table(pd.DataFrame({'k': range(100)}), most=4)._repr_html_()
    assert '… 96 more …' in long and long.count('<tr>') == 6
