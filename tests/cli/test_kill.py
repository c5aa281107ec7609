"kill -9 of the gateway at random moments of a running fund: nothing doubles, nothing stays naked, journal and exchange agree"
import random, threading, time
from decimal import Decimal

import pytest
import sqlalchemy as sa
from fund import Fund
from quantlib.cli.processes import PartFailed, SteppedGateway
from quantlib.core.clock import HOUR, MINUTE
from quantlib.execution.client import connect
from quantlib.journal import schema

KILLS = 20


class Mortal:
    "A gateway process that is killed and started again"
    def __init__(self, fund, seed):
        self.fund, self.random, self.kills = fund, random.Random(seed), 0
        self.gateway = SteppedGateway(fund.home, fund.settings)
        self.step()

    def step(self):
        try: return self.gateway.step()
        except PartFailed:
            self.gateway.child.wait()
            self.gateway = SteppedGateway(self.fund.home, self.fund.settings)
            return self.gateway.step()

    def killed_step(self):
        "A step during which, at a random moment, the process is killed"
        child = self.gateway.child
        timer = threading.Timer(self.random.uniform(0, 0.12), child.kill)
        timer.start(); self.kills += 1
        seen = self.step()
        timer.join()
        return seen if self.gateway.child is not child else self.step()


def agree(fund):
    "Journal and exchange, compared by an account of its own"
    s = fund.settings
    client = connect(s, s.sandbox.key, s.sandbox.secret); client.sync()
    held = {r['symbol']: Decimal(r['positionAmt']) for r in client.futures_position_information() if Decimal(r['positionAmt'])}
    mine = {r['symbol']: Decimal(r['qty']) for r in fund.journal.rows(schema.positions) if Decimal(r['qty'])}
    assert held == mine
    resting = {a['clientAlgoId'] for a in client.futures_get_open_algo_orders()}
    assert resting == set(fund.journal.frame(sa.select(schema.orders.c.id).where(schema.orders.c.algo, schema.orders.c.state == 'acked')).id)
    theirs = {f'{t["symbol"]}:{t["id"]}': (Decimal(t['qty']), Decimal(t['price'])) for sym in s.universe.symbols for t in client.futures_account_trades(symbol=sym)}
    ours = {f['id']: (Decimal(f['qty']), Decimal(f['price'])) for f in fund.journal.rows(schema.fills)}
    assert ours == theirs
    for symbol in held:
        stops = [a for a in client.futures_get_open_algo_orders(symbol=symbol) if a['orderType'] == 'STOP_MARKET']
        assert sum(Decimal(a['quantity']) for a in stops) >= abs(held[symbol]) and all((a['side'] == 'SELL') == (held[symbol] > 0) for a in stops), symbol


def no_intent_twice(journal):
    "Each intent opened at most what was approved"
    o, f = schema.orders, schema.fills
    entries = journal.frame(sa.select(o.c.intent_id, o.c.id, o.c.qty).where(o.c.role == 'entry', o.c.filled != '0'))
    assert entries.intent_id.is_unique
    filled = journal.rows(sa.select(f.c.order_id, f.c.qty).where(f.c.order_id.in_(list(entries.id))))
    for row in entries.itertuples(): assert sum(Decimal(x['qty']) for x in filled if x['order_id'] == row.id) == Decimal(row.qty)


@pytest.mark.parametrize('seed', [1])
def test_twenty_kills(tmp_path, seed):
    fund = Fund(tmp_path, hours=KILLS + 4).prepare()
    fund.gateway = None
    mortal = Mortal(fund, seed)
    try:
        for h in range(KILLS):
            slot = fund.now - fund.now % HOUR
            if h: fund.run('ingest', slot, lambda r: r.ingest())
            fund.trade(slot)
            at = mortal.random.choice([0, 0, 0, 1, 7, 31])   # most kills hit the step that acts on the decision
            for m in range(60):
                fund.seen = mortal.killed_step() if m == at else mortal.step()
                if m == at: assert fund.seen['naked'] == 0, fund.seen  # protected in the same simulated minute
                fund.now = fund.server.advance(MINUTE)
        mortal.step()
        assert mortal.kills == KILLS
        agree(fund)
        no_intent_twice(fund.journal)
        assert fund.journal.frame(schema.protections).naked_ms.max() <= 30_000
        assert len(fund.journal.frame(schema.fills)) > 40, 'the fund traded'
        a = fund.audit()
        assert a.healthy, str(a)
    finally:
        mortal.gateway.close(); fund.close()
