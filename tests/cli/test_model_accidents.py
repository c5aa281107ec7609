"Model files are deleted, damaged, poisoned and aged while the fund runs: each shows within one cycle, and every position stays guarded"
import json
import shutil

import numpy as np
import pytest
import fund as fund_
from fund import START, Fund
from safetensors import safe_open
from safetensors.numpy import save_file
from quantlib.core.clock import HOUR, MINUTE
from quantlib.core.types import Reason, SignalPath
from quantlib.data.synthetic import market
from quantlib.journal import schema
from quantlib.learning.retrain import model_row
from quantlib.models.registry import Registry, _names, _sha

MEMBERS = ('xgboost', 'lightgbm', 'nhits', 'patchtst', 'ridge')
WILD, AT = 'NEARUSDT', START + 8*HOUR  # a bar whose high lies half above its open
PERIOD = 1440  # minutes between retrainings; none falls due in the hours that are walked


class Accidents(Fund):
    "A small fund with all members, whose retraining is asked for by hand"
    def __init__(self, path):
        super().__init__(path, hours=30, models={'members': MEMBERS}, jobs={'retrain': PERIOD})
        self.registry, self.kinds = Registry(self.home.models), list(MEMBERS)

    def folder(self, kind): return self.registry.root/kind/self.registry.champion()[kind]

    def weights(self, kind): return next(p for p in sorted(self.folder(kind).iterdir()) if p.suffix in ('.safetensors', '.ubj', '.txt'))

    def reseal(self, kind, **change):
        "Write a champion's manifest anew, as if it had been trained so; its new version becomes champion and is on record"
        old = self.folder(kind); m = json.loads((old/'manifest.json').read_text())
        m = {k: v for k, v in m.items() if k not in ('digest', 'seal')} | dict(files={n: _sha(old/n) for n in m['files']}) | change
        name, seal = _names(m)
        (old/'manifest.json').write_text(json.dumps(m | dict(digest=name, seal=seal)))
        if name == old.name: return
        before = old.name; old.rename(old.with_name(name))
        self.registry.promote(kind, name, self.now)
        with self.journal.write() as c:
            self.journal.add(c, schema.models, model_row(self.registry.manifest(kind, name), None))
            c.execute(schema.promotions.insert().values(kind=kind, digest=name, previous=before, at=self.now, reason='staged'))

    def poison(self, kind):
        "As if the training had ended in NaN: whole files, right hashes, no number"
        p = self.weights(kind)
        with safe_open(p, 'np') as f: w, said = {k: np.full_like(f.get_tensor(k), np.nan) for k in f.keys()}, f.metadata()
        save_file(w, p, said); self.reseal(kind)

    def age(self, kind): self.reseal(kind, created_at=self.now - 3*PERIOD*MINUTE - HOUR)

    def cycle(self):
        "One hour; what its cycle left behind"
        self.hours(1)
        c = max(self.journal.rows(schema.cycles), key=lambda r: r['slot'])
        mine = lambda t: [r for r in self.journal.rows(t) if r['cycle_id'] == c['id']]
        return Left(c, mine(schema.signals), mine(schema.decisions), mine(schema.intents), [a for a in self.journal.rows(schema.alerts) if a['cause'] == c['id']], self.audit())

    def guarded(self):
        "Every position at the exchange has a stop of its size resting there"
        venue = self.server.exchange
        held = [p for p in venue.account.held() if p.qty]
        for p in held:
            stops = [a for a in venue.waiting.get(p.symbol, {}).values() if 'STOP' in a.type and 'PROFIT' not in a.type]
            assert sum(abs(a.qty) for a in stops) >= abs(p.qty), (p.symbol, p.qty, stops)
        return len(held)


class Left:
    "The rows of one cycle"
    def __init__(self, row, signals, decisions, intents, alerts, audit):
        self.row, self.signals, self.decisions, self.intents, self.alerts, self.audit = row, signals, decisions, intents, alerts, audit
    paths = property(lambda self: {s['path'] for s in self.signals})
    codes = property(lambda self: {a['code'] for a in self.alerts})
    opened = property(lambda self: [i for i in self.intents if i['action'] == 'open'])

    def missing(self):
        "Kind → why, the same for every symbol"
        each = [json.dumps(s['missing'], sort_keys=True) for s in self.signals]
        assert len(set(each)) == 1, set(each)
        return json.loads(each[0])

    def told(self, code, *words): return any(a['code'] == code.value and all(w in a['message'] for w in words) for a in self.alerts)


@pytest.fixture(scope='module')
def fund(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setattr(fund_, 'market', lambda *a: wild(market(*a)))
        f = Accidents(tmp_path_factory.mktemp('accidents')).prepare()
    yield f
    f.close()


def wild(candles):
    "The market with one bar like no other"
    here = (candles.symbol == WILD) & (candles.open_time.astype('int64') == AT)
    assert here.sum() == 1
    return candles.assign(high=candles.high.where(~here, candles.open*1.5))


def test_all_five_vote(fund):
    x = fund.cycle()
    assert x.paths == {'ensemble'} and not x.alerts and x.audit.healthy, str(x.audit)
    assert {v['kind'] for s in x.signals for v in s['votes']} == set(MEMBERS) and fund.guarded() >= 2


def test_a_deleted_file_shows_in_the_next_cycle(fund):
    fund.weights('lightgbm').unlink()
    x = fund.cycle()
    assert x.paths == {'degraded'} and set(x.missing()) == {'lightgbm'} and 'is missing' in x.missing()['lightgbm']
    assert x.told(Reason.MODEL_REFUSED, 'lightgbm', 'is missing') and x.told(Reason.DEGRADED_VOTE, 'lightgbm')
    assert 'lightgbm' in x.audit['vote'].ran and 'lightgbm' in x.audit['served'].ran and not x.audit.red, str(x.audit)
    assert len(x.decisions) == len(x.signals) and fund.guarded()


def test_flipped_bytes_show_in_the_next_cycle(fund):
    p = fund.weights('xgboost'); b = bytearray(p.read_bytes()); b[len(b)//2] ^= 0xff; p.write_bytes(bytes(b))
    x = fund.cycle()
    assert x.paths == {'degraded'} and set(x.missing()) == {'lightgbm', 'xgboost'} and f'the hash of {p.name} is wrong' in x.missing()['xgboost']
    assert x.told(Reason.MODEL_REFUSED, 'xgboost', 'hash') and 'xgboost' in x.audit['vote'].ran and not x.audit.red, str(x.audit)
    fund.guarded()


def test_a_model_that_gives_nan_is_silent_and_never_neutral(fund):
    fund.poison('nhits')
    x = fund.cycle()
    assert x.paths == {'degraded'} and set(x.missing()) == {'lightgbm', 'xgboost', 'nhits'} and 'gave no number' in x.missing()['nhits']
    assert {v['kind'] for s in x.signals for v in s['votes']} == {'patchtst', 'ridge'} and all(0 < v['p_up'] < 1 for s in x.signals for v in s['votes'])
    assert x.told(Reason.MODEL_FAILED, 'nhits', 'gave no number') and 'nhits' in x.audit['vote'].ran and not x.audit.red, str(x.audit)
    fund.guarded()


def test_an_old_model_is_silent(fund):
    fund.age('ridge')
    x = fund.cycle()
    assert x.paths == {'degraded'} and set(x.missing()) == set(MEMBERS) - {'patchtst'} and 'older than 3 retrain periods' in x.missing()['ridge']
    assert x.told(Reason.MODEL_STALE, 'ridge') and 'ridge' in x.audit['vote'].ran and not x.audit.red and not x.audit.broken, str(x.audit)
    fund.guarded()


def test_only_old_models_close_the_entries_and_exits_go_on(fund):
    fund.age('patchtst')
    x = fund.cycle()
    assert x.paths == {'fallback'} and set(x.missing()) == set(MEMBERS) and all(not s['votes'] for s in x.signals)
    assert not x.opened and any(s['side'] != 'HOLD' for s in x.signals)
    wished = {s['symbol'] for s in x.signals if s['side'] != 'HOLD'}
    flat = [d for d in x.decisions if d['symbol'] in wished and d['target_usdt'] == 0 and d['action'] == 'hold']
    assert flat and all(d['reasons'][0] == 'model_stale' for d in flat)
    assert x.told(Reason.MODEL_STALE, 'patchtst') and x.told(Reason.FALLBACK_USED) and x.audit.red == ('vote',) and 'no model voted in the newest cycle' in x.audit['vote'].ran, str(x.audit)
    fund.guarded()


def test_no_model_at_all_is_a_labelled_fallback_inside_its_budget(fund):
    for kind in MEMBERS: shutil.rmtree(fund.registry.root/kind)
    x = fund.cycle()
    assert x.paths == {'fallback'} and all('manifest.json is missing' in w for w in x.missing().values())
    assert x.opened and all(i['path'] == 'fallback' and i['notional_usdt'] == 150 for i in x.opened) and len(x.opened) <= fund.settings.strategy.fallback_per_day
    assert sum(a['code'] == 'model_refused' for a in x.alerts) == 5 and all(a['level'] == 'critical' for a in x.alerts if a['code'] in ('model_refused', 'fallback_used'))
    assert x.audit.red == ('vote',), str(x.audit)
    fund.guarded()


def test_a_retraining_heals_it_and_the_next_cycle_loads_what_it_made(fund):
    slot = fund.now//HOUR*HOUR
    fund.run('ingest', slot, lambda r: r.ingest())
    fund.run('retrain', slot, lambda r: r.retrain())
    x = fund.cycle()
    assert x.paths == {'ensemble'} and x.row['models'] == fund.registry.champion() and not x.row['missing'] and not x.alerts
    assert {(v['kind'], v['digest']) for s in x.signals for v in s['votes']} == set(fund.registry.champion().items())
    assert x.audit['served'].verdict == 'green' and 'no model voted' not in x.audit['vote'].ran and not x.audit.broken, str(x.audit)
    fund.guarded()


def test_a_bar_like_no_other_is_flagged_and_not_entered(fund):
    fund.cycle()  # while the wild bar of `WILD` is still open
    x = fund.cycle()
    s = {s['symbol']: {v['kind']: v['odd'] for v in s['votes'] if v['odd']} for s in x.signals}
    assert set(s[WILD]) == set(MEMBERS) and 'outside what was learnt from' in s[WILD]['ridge'] and x.paths == {'ensemble'}
    assert not any(i['symbol'] in [k for k, odd in s.items() if odd] for i in x.opened)
    told = [a for a in fund.journal.rows(schema.alerts) if a['code'] == 'out_of_distribution']
    assert [a['cause'] for a in told].count(WILD) == 1 and 'nothing is opened in it' in told[0]['message']
    assert 'bars unlike all that was learnt from' in x.audit['vote'].ran and 'unlike' not in str(x.audit['vote'].evidence.get('ran', '')) and not x.audit.broken, str(x.audit)
    fund.guarded()
    y = fund.cycle()
    assert any(v['odd'] for s in y.signals if s['symbol'] == WILD for v in s['votes']), 'a day of indicators remembers it'
    assert [a['cause'] for a in fund.journal.rows(schema.alerts) if a['code'] == 'out_of_distribution'].count(WILD) == 1


def test_every_fallback_and_degraded_signal_of_the_day_is_named_and_nothing_stood_naked(fund):
    signals, p = fund.journal.rows(schema.signals), fund.journal.frame(schema.protections)
    for s in signals: assert (s['path'] == SignalPath.ENSEMBLE) == (not s['missing']) and (s['path'] == SignalPath.FALLBACK) == (not s['votes'])
    entries = [o for o in fund.journal.rows(schema.orders) if o['role'] == 'entry' and o['state'] == 'filled']
    assert {o['intent_id'] for o in entries} <= set(p[p.state == 'protected'].intent_id) and p.naked_ms.max() <= 10_000
    assert {a.verdict for a in fund.audit().rows if a.wire in ('protection', 'guard', 'orders', 'fills', 'agreement', 'consumed')} == {'green'}
