"Money adds up: fees, funding, profit, margin and liquidation"
from decimal import Decimal

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

import quantlib.sandbox.private  # noqa: F401
from quantlib.core.clock import HOUR, MINUTE, iso
from quantlib.sandbox.account import Position
from quantlib.sandbox.book import Params, Refused
from quantlib.sandbox.exchange import Exchange
from quantlib.sandbox.market import Market
from sandbox_kit import START, T0, flat, frame, scripted, walk

D = Decimal


def venue(df=None, **kw): return Exchange(Market(df if df is not None else scripted(), funding=kw.pop('funding', None)), START, **kw)
def order(ex, side, qty, **p): return ex.place(Params(dict(symbol='BTCUSDT', side=side, type='MARKET', quantity=qty) | p))


@given(st.lists(st.tuples(st.integers(-50, 50).filter(bool), st.integers(1, 10**6)), min_size=1, max_size=30))
def test_position_profit_equals_cash_flow(trades):
    "Realised plus unrealised profit is what was sold minus what was bought plus what is left, whatever the order of trades"
    p, realised = Position('X'), D(0)
    for q, px in trades: realised += p.fill(D(q)/1000, D(px)/10)
    mark = D(777)
    cash = -sum(D(q)/1000*D(px)/10 for q, px in trades) + p.qty*mark
    assert abs(realised + p.upnl(mark) - cash) < D('1e-6')
    assert p.qty == sum(D(q) for q, _ in trades)/1000 and (p.qty != 0 or p.entry == 0)


ops = st.lists(st.tuples(st.sampled_from(['BUY', 'SELL', 'LIMIT', 'STOP', 'TAKE', 'WAIT', 'REDUCE', 'CANCEL']), st.sampled_from(['BTCUSDT', 'ETHUSDT']), st.integers(1, 60)), min_size=5, max_size=40)


@settings(max_examples=60, deadline=None)
@given(ops, st.integers(0, 50), st.sampled_from([800, 14_000]))
def test_wallet_is_its_history(steps, seed, equity):
    "Random trading: every ledger agrees with every other after every step"
    df = pd.concat([walk('BTCUSDT', 100_000.0, seed=seed, vol=.01), walk('ETHUSDT', 2_500.0, seed=seed, vol=.012)])
    ex, events = venue(df, equity=equity), []
    ex.listeners.append(events.append)
    for what, s, n in steps:
        c, px = ex.contracts[s], ex.last(s)
        qty, side = c.step*n*(1 if s == 'BTCUSDT' else 20), 'BUY' if n % 2 else 'SELL'
        at = lambda k: str((D(str(px))*D(str(k))//c.tick*c.tick))
        p = dict(symbol=s, quantity=str(qty), algoType='CONDITIONAL')
        try:
            if what in ('BUY', 'SELL'): ex.place(Params(p | dict(side=what, type='MARKET')))
            if what == 'REDUCE': ex.place(Params(p | dict(side=side, type='MARKET', reduceOnly='true')))
            if what == 'LIMIT': ex.place(Params(p | dict(side=side, type='LIMIT', timeInForce='GTC', price=at(1 - .004 if side == 'BUY' else 1.004))))
            if what == 'STOP': ex.place_algo(Params(p | dict(side=side, type='STOP_MARKET', triggerPrice=at(1.005 if side == 'BUY' else .995), workingType='MARK_PRICE')))
            if what == 'TAKE': ex.place_algo(Params(p | dict(side=side, type='TAKE_PROFIT_MARKET', triggerPrice=at(.99 if side == 'BUY' else 1.01), reduceOnly='true')))
            if what == 'CANCEL': ex.call('DELETE', '/fapi/v1/allOpenOrders', symbol=s)
            if what == 'WAIT': ex.advance(min(ex.now + n*10*MINUTE, START + 70*HOUR))
        except Refused as e: assert e.code in (-2019, -2022, -2021, -4164, -2027), e
        a = ex.account
        assert a.wallet == sum(i.amount for i in a.income)
        for sym in ('BTCUSDT', 'ETHUSDT'):
            fills = [t for t in ex.trades if t['symbol'] == sym]
            assert a.position(sym).qty == sum(D(t['qty'])*(1 if t['buyer'] else -1) for t in fills)
            assert -sum(D(t['commission']) for t in fills) == sum((i.amount for i in a.income if i.symbol == sym and i.kind == 'COMMISSION'), D(0))
            assert sum(D(t['realizedPnl']) for t in fills) == sum((i.amount for i in a.income if i.symbol == sym and i.kind == 'REALIZED_PNL'), D(0))
        assert all(o.reduce_only is False or ex.closable(o.symbol, o.buy) for book in ex.open.values() for o in book.values())
        m = ex.margins()
        assert not a.held() or m.equity > m.maintenance, 'a position the account cannot carry was left open'
    told = [e['a']['B'][0]['wb'] for e in events if e['e'] == 'ACCOUNT_UPDATE']
    assert not told or D(told[-1]) == ex.account.wallet
    assert [e['o']['t'] for e in events if e['e'] == 'ORDER_TRADE_UPDATE' and e['o']['t']] == [t['id'] for t in ex.trades]


def test_funding_is_paid_at_00_08_16_and_only_with_a_position():
    rates = pd.DataFrame(dict(symbol='BTCUSDT', time=pd.to_datetime([T0 + k*8*HOUR for k in range(12)], unit='ms', utc=True), rate=[k*1e-4 for k in range(12)]))
    ex = venue(funding=rates)
    order(ex, 'BUY', '0.100')
    ex.advance(START + 16*HOUR)
    paid = [(i.at, i.amount) for i in ex.account.income if i.kind == 'FUNDING_FEE']
    assert paid == [(START + 8*HOUR, D('-4.00000000')), (START + 16*HOUR, D('-5.00000000'))]
    order(ex, 'SELL', '0.200')
    ex.advance(START + 24*HOUR - 15_000); assert len([i for i in ex.account.income if i.kind == 'FUNDING_FEE']) == 2
    ex.advance(START + 24*HOUR); assert ex.account.income[-1].amount == D('6.00000000')


def test_four_hour_funding_is_settled_and_announced():
    rates = pd.DataFrame(dict(symbol='BTCUSDT', time=pd.to_datetime([T0 + k*4*HOUR for k in range(12)], unit='ms', utc=True), rate=1e-4))
    ex = venue(funding=rates)
    order(ex, 'BUY', '0.100'); ex.advance(START + 8*HOUR)
    assert len([i for i in ex.account.income if i.kind == 'FUNDING_FEE']) == 2
    assert ex.call('GET', '/fapi/v1/fundingInfo')[0]['fundingIntervalHours'] == 4
    assert ex.call('GET', '/fapi/v1/premiumIndex', symbol='BTCUSDT')['nextFundingTime'] == START + 12*HOUR


@pytest.mark.parametrize('side, bar', [('BUY', (100_000, 90_000, 90_500)), ('SELL', (110_000, 100_000, 109_000))])
def test_liquidation_at_the_first_mark_beyond_its_price(side, bar):
    ex, events = venue(scripted(bar), equity=1_000), []
    ex.listeners.append(events.append)
    order(ex, side, '0.150')
    resting = ex.place(Params(symbol='BTCUSDT', side='BUY', type='LIMIT', timeInForce='GTC', quantity='0.002', price='97000'))
    lp = ex.account.liquidation_price('BTCUSDT', ex.mark)
    assert D(ex.call('GET', '/fapi/v3/positionRisk')[0]['liquidationPrice']) == lp.quantize(D('1e-8'))
    events.clear()
    ex.advance(START + HOUR)
    row = [o for o in ex.orders.values() if o.client.startswith('autoclose-')]
    beyond = [t for t in range(START + 15_000, START + HOUR + 1, 15_000) if (D(str(ex.market.mark('BTCUSDT', t))) - lp)*(1 if side == 'BUY' else -1) <= 0]
    if resting.status == 'EXPIRED': assert row[0].at == beyond[0]
    assert ex.account.held() == [] and ex.account.wallet >= 0 and ex.account.wallet == sum(i.amount for i in ex.account.income)
    assert 'CALCULATED' in [e['o']['x'] for e in events if e['e'] == 'ORDER_TRADE_UPDATE'] and not ex.open
    assert any(i.info == 'liquidation fee' for i in ex.account.income)


def test_liquidation_stops_when_the_rest_is_carried():
    "A large loser goes, a small position stays"
    eos = scripted((1.0, .92, .925), symbol='EOSUSDT', px=1.0)
    eth = frame('ETHUSDT', flat(px=2_500.0, hours=49))
    ex = venue(pd.concat([eos, eth]), equity=400)
    order(ex, 'BUY', '4500', symbol='EOSUSDT'); order(ex, 'BUY', '0.100', symbol='ETHUSDT')
    ex.advance(START + HOUR)
    assert [p.symbol for p in ex.account.held()] == ['ETHUSDT']
    m = ex.margins(); assert m.equity > m.maintenance


def test_margins_of_the_account_endpoint_agree_with_its_positions():
    ex = venue(pd.concat([walk('BTCUSDT', 100_000.0), walk('ETHUSDT', 2_500.0)]))
    order(ex, 'BUY', '0.100'); order(ex, 'SELL', '2', symbol='ETHUSDT')
    ex.place(Params(symbol='ETHUSDT', side='SELL', type='LIMIT', timeInForce='GTC', quantity='1', price='2600'))
    ex.advance(START + 37*MINUTE)
    a, risk = ex.call('GET', '/fapi/v2/account'), ex.call('GET', '/fapi/v3/positionRisk')
    near = lambda x, y: abs(D(x) - y) < D('1e-6')
    assert near(a['totalUnrealizedProfit'], sum(D(p['unRealizedProfit']) for p in risk)) and near(a['totalMaintMargin'], sum(D(p['maintMargin']) for p in risk))
    assert near(a['totalInitialMargin'], sum(D(p['initialMargin']) for p in risk)) and near(a['totalOpenOrderInitialMargin'], sum(D(p['openOrderInitialMargin']) for p in risk))
    assert near(a['totalMarginBalance'], D(a['totalWalletBalance']) + D(a['totalUnrealizedProfit'])) and near(a['availableBalance'], D(a['totalMarginBalance']) - D(a['totalInitialMargin']))
    assert {p['symbol']: D(p['positionAmt']) for p in a['positions']} == {'BTCUSDT': D('0.100'), 'ETHUSDT': D(-2)}


def test_income_pages_by_time():
    ex = venue(walk('BTCUSDT', 100_000.0))
    order(ex, 'BUY', '0.010'); ex.advance(START + 60*HOUR)
    rows = ex.call('GET', '/fapi/v1/income', incomeType='FUNDING_FEE')
    assert [iso(r['time'])[11:16] for r in rows[:3]] == ['08:00', '16:00', '00:00'] and len(rows) == 7
    assert ex.call('GET', '/fapi/v1/income', incomeType='FUNDING_FEE', startTime=str(rows[2]['time']), limit='2') == rows[2:4]
    assert ex.call('GET', '/fapi/v1/income', incomeType='FUNDING_FEE', endTime=str(rows[2]['time'])) == rows[:3]
