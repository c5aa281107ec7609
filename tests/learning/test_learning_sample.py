"The sample is whole, and the same for the same seed."
import pytest
import sqlalchemy as sa
from quantlib.journal import schema as S
from quantlib.learning.memory import memory
from quantlib.learning.outcomes import by_vote, calibration, labelled
from quantlib.learning.sample import sample


def test_same_seed_same_rows(tmp_path):
    a, b, c = (sample(f'sqlite:///{tmp_path}/{n}.db', hours=8, seed=s) for n, s in (('a', 1), ('b', 1), ('c', 2)))
    for t in S.tables: assert a.fingerprint(t) == b.fingerprint(t)
    assert a.fingerprint(S.fills) != c.fingerprint(S.fills)


@pytest.mark.parametrize('seed', [1, 2, 3])
def test_money_and_labels(tmp_path, seed):
    j = sample(f'sqlite:///{tmp_path}/j.db', hours=48, seed=seed)
    o, f, w = labelled(j), j.frame(S.fills), j.frame(S.equity).wallet
    assert len(o) == len(j.frame(S.outcomes)) and o.R.notna().all() and (o.stake > 0).all()
    assert abs(w.iloc[-1] - w.iloc[0] - f.realized.astype(float).sum() + f.fee.astype(float).sum()) < 1e-4
    assert memory(o).n.sum() == len(o) == calibration(o).n.sum()
    assert set(by_vote(o).index) == {'xgboost', 'lightgbm'} and (by_vote(o).n == len(o)).all()
    assert (abs(memory(o)['R']) <= abs(memory(o)['mean'].fillna(0)) + 1e-12).all()


def test_since(tmp_path):
    j = sample(f'sqlite:///{tmp_path}/j.db', hours=24)
    mid = j.scalar(sa.select(sa.func.max(S.outcomes.c.closed_at)))
    assert 0 < len(labelled(j, since=mid)) < len(labelled(j))
