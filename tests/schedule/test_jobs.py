"What a job reads from the exchange, when replies come spoiled"
import pytest
from quantlib.core.clock import iso
from quantlib.data import history
from quantlib.schedule.jobs import Run, job

NOW, BTC = 1_746_835_200_000, dict(symbol='BTCUSDT', markPrice='100000.0', lastFundingRate='0.0001')
SPOILED = [None, {}, [{}], ['BTCUSDT'], [BTC | dict(markPrice=None)], [BTC | dict(markPrice='NaN')], [BTC | dict(markPrice='-1')], [BTC | dict(lastFundingRate='Infinity')], [{k: v for k, v in BTC.items() if k != 'lastFundingRate'}]]


class Line:
    "A client whose first replies are spoiled"
    def __init__(self, spoiled): self.spoiled, self.asked = list(spoiled), 0
    def say(self, good): self.asked += 1; return self.spoiled.pop(0) if self.spoiled else good
    def futures_mark_price(self): return self.say([BTC, dict(symbol='OTHERUSDT', markPrice='', lastFundingRate='')])
    def futures_time(self): return self.say(dict(serverTime=NOW))


@pytest.fixture
def run(monkeypatch):
    from types import SimpleNamespace
    from quantlib.strategy.decide import Snapshot
    r = object.__new__(Run); r.job, r.slot, r.mode, r.store, r.settings = job('trade'), NOW, 'paper', None, SimpleNamespace(universe=SimpleNamespace(symbols=['BTCUSDT'], snapshot_bars=5))
    monkeypatch.setattr(history.again, '__defaults__', (lambda s: None,)); monkeypatch.setattr(Snapshot, 'take', lambda *a: a[-2:])
    return r


@pytest.mark.parametrize('reply', SPOILED)
def test_prices_are_asked_for_again(run, reply):
    run.client = Line([reply, reply])
    marks, funding = run.snapshot()
    if reply == {}: assert run.client.asked == 1 and not marks # nothing is known of any contract, and `Snapshot` says so
    else: assert marks == {'BTCUSDT': 100_000.} and funding == {'BTCUSDT': .0001} and run.client.asked == 3


def test_the_time_is_asked_for_again_and_not_for_ever(run):
    run.client = Line([{}, dict(serverTime=None)])
    assert iso(run.clock.now()) == '2025-05-10T00:00Z' and run.client.asked == 3
    del run.__dict__['clock']; run.client = Line([{}]*9)
    with pytest.raises(KeyError): run.clock
    assert run.client.asked == 4
