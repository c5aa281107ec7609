"Account modes, liquidation, deleveraging, delisting, and what the world does to an account"
from decimal import Decimal

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

import quantlib.sandbox.private  # noqa: F401
from quantlib.core.clock import HOUR, MINUTE
from quantlib.sandbox.book import Params, Refused
from quantlib.sandbox.exchange import Exchange
from quantlib.sandbox.market import STEP, Market
from sandbox_kit import START, flat, frame, scripted, walk

D, SYMS = Decimal, ('BTCUSDT', 'ETHUSDT')


def venue(df=None, **kw): return Exchange(Market(scripted() if df is None else df), START, **kw)
def order(ex, side, qty, symbol='BTCUSDT', **p): return ex.place(Params(dict(symbol=symbol, side=side, type='MARKET', quantity=qty) | p))
def refused(code, f, *a, **k):
    with pytest.raises(Refused) as e: f(*a, **k)
    assert e.value.code == code, e.value


def checked(ex, events):
    "Every ledger agrees with every other"
    a = ex.account
    assert a.wallet == sum(i.amount for i in a.income)
    for key, p in a.positions.items():
        fills = [t for t in ex.trades if (t['symbol'], t['positionSide']) == key]
        assert p.qty == sum(D(t['qty'])*(1 if t['buyer'] else -1) for t in fills)
        assert p.side != 'LONG' or p.qty >= 0
        assert p.side != 'SHORT' or p.qty <= 0
        assert bool(p.margin) == bool(p.qty and p.symbol in a.isolated) or p.margin >= 0
    for s in SYMS:
        for kind, name, k in (('COMMISSION', 'commission', -1), ('REALIZED_PNL', 'realizedPnl', 1)):
            assert sum((i.amount for i in a.income if (i.symbol, i.kind) == (s, kind)), D(0)) == sum((D(t[name]) for t in ex.trades if t['symbol'] == s), D(0))*k
    for o in ex.orders.values():
        mine = [t for t in ex.trades if t['orderId'] == o.id]
        assert o.executed == sum((D(t['qty']) for t in mine), D(0)) <= o.qty and o.quote == sum((D(t['price'])*D(t['qty']) for t in mine), D(0))
        assert (o.status == 'FILLED') == (o.executed == o.qty) or o.status == 'CANCELED'
    open_ids = [o.client for b in ex.open.values() for o in b.values()]
    assert len(open_ids) == len(set(open_ids)) and len({t['id'] for t in ex.trades}) == len(ex.trades) and not set(ex.orders) & set(ex.algos)
    told = [e['a']['B'][0]['wb'] for e in events if e['e'] == 'ACCOUNT_UPDATE']
    assert not told or D(told[-1]) == a.wallet
    m = ex.margins()
    assert m.aside == sum((p.margin for p in a.held()), D(0)) and m.cross + m.aside == a.wallet


KINDS = ['OPEN', 'CLOSE', 'LIMIT', 'REDUCE', 'STOP', 'TRAIL', 'WAIT', 'CANCEL', 'AMEND', 'ADL', 'CRASH', 'FUND']
steps = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(SYMS), st.sampled_from(['LONG', 'SHORT']), st.integers(1, 60)), min_size=5, max_size=30)


@settings(max_examples=60, deadline=None)
@given(steps, st.integers(0, 30), st.sampled_from([900, 14_000]), st.booleans(), st.booleans(), st.sampled_from([None, 3_000]))
def test_money_adds_up_in_every_mode(todo, seed, equity, hedge, isolated, depth):
    ex, events = venue(pd.concat([walk('BTCUSDT', 100_000.0, seed=seed, vol=.01), walk('ETHUSDT', 2_500.0, seed=seed, vol=.012)]), equity=equity), []
    ex.listeners.append(events.append)
    ex.world(hedge=hedge, margin_type={'BTCUSDT': 'ISOLATED'} if isolated else {}, depth=dict.fromkeys(SYMS, depth) if depth else {})
    for what, s, hold, n in todo:
        c, px, (into, out) = ex.contracts[s], ex.last(s), ('BUY', 'SELL') if hold == 'LONG' else ('SELL', 'BUY')
        p = dict(symbol=s, quantity=str(c.step*n*(1 if s == 'BTCUSDT' else 20))) | (dict(positionSide=hold) if hedge else {})
        reduce = {} if hedge else dict(reduceOnly='true')
        side = hold if hedge else 'BOTH'
        at = lambda k: str(D(str(px))*D(str(k))//c.tick*c.tick)
        size = abs(ex.account.position(s, side).qty)
        try:
            if what == 'OPEN': ex.place(Params(p | dict(side=into, type='MARKET')))
            if what == 'CLOSE': ex.place(Params(p | reduce | dict(side=out, type='MARKET')))
            if what == 'LIMIT': ex.place(Params(p | dict(side=into, type='LIMIT', timeInForce='GTC', price=at(.999 if into == 'BUY' else 1.001))))
            if what == 'REDUCE': ex.place(Params(p | reduce | dict(side=out, type='LIMIT', timeInForce='GTC', price=at(1.002 if out == 'SELL' else .998))))
            if what == 'STOP': ex.place_algo(Params(p | reduce | dict(algoType='CONDITIONAL', side=out, type='STOP_MARKET', triggerPrice=at(.995 if out == 'SELL' else 1.005), workingType='MARK_PRICE')))
            if what == 'TRAIL': ex.place_algo(Params(p | reduce | dict(algoType='CONDITIONAL', side=out, type='TRAILING_STOP_MARKET', callbackRate='0.4')))
            if what == 'AMEND' and ex.open.get(s):
                o = next(iter(ex.open[s].values()))
                ex.amend(Params(symbol=s, orderId=o.id, side=o.side, quantity=str(o.qty + c.step), price=at(.9995 if o.buy else 1.0005)))
            if what == 'CANCEL': ex.call('DELETE', '/fapi/v1/allOpenOrders', symbol=s)
            if what == 'WAIT': ex.advance(min(ex.now + n*10*MINUTE, START + 70*HOUR))
            if what == 'ADL' and ex.account.held(): ex.world(adl=dict(symbol=s, fraction=n/60))
            if what == 'CRASH': ex.world(price={s: 1 - n/400 if n % 2 else 1 + n/400})
            if what == 'FUND': ex.world(funding={s: n/10_000})
        except Refused as e: assert e.code in (-2019, -2022, -2021, -4164, -2027, -4118, -4131, -5027, -4016, -4024), e
        if what in ('CLOSE', 'REDUCE', 'ADL'): assert abs(ex.account.position(s, side).qty) <= size, 'a reducing order enlarged or turned a position'
        checked(ex, events)
        m = ex.margins()
        assert m.spare > 0 or all(x.alone for x in m.stakes) and m.cross >= 0, 'cross positions that the account cannot carry'


def test_hedge_mode_refusals():
    ex = venue()
    refused(-4061, order, ex, 'BUY', '0.010', positionSide='LONG')
    ex.call('POST', '/fapi/v1/positionSide/dual', dualSidePosition='true')
    refused(-4059, ex.call, 'POST', '/fapi/v1/positionSide/dual', dualSidePosition='true')
    refused(-4061, order, ex, 'BUY', '0.010'); refused(-1106, order, ex, 'SELL', '0.010', positionSide='LONG', reduceOnly='true')
    refused(-2022, order, ex, 'SELL', '0.010', positionSide='LONG')
    order(ex, 'BUY', '0.010', positionSide='LONG'); order(ex, 'SELL', '0.020', positionSide='SHORT')
    refused(-4068, ex.call, 'POST', '/fapi/v1/positionSide/dual', dualSidePosition='false')
    assert [(r['positionSide'], r['positionAmt']) for r in ex.call('GET', '/fapi/v3/positionRisk')] == [('LONG', '0.010'), ('SHORT', '-0.020')]
    assert len(ex.call('GET', '/fapi/v2/positionRisk', symbol='BTCUSDT')) == 3
    ask = dict(algoType='CONDITIONAL', symbol='BTCUSDT', type='STOP_MARKET', triggerPrice='99000', closePosition='true')
    refused(-4136, ex.place_algo, Params(ask | dict(side='BUY', positionSide='LONG', triggerPrice='101000')))
    ex.place_algo(Params(ask | dict(side='SELL', positionSide='LONG')))
    ex.world(price={'BTCUSDT': .98}); ex.advance(START + MINUTE)
    assert [(p.side, p.qty) for p in ex.account.held()] == [('SHORT', D('-0.020'))]


def test_isolated_margin_is_all_that_is_lost():
    ex = venue(equity=10_000)
    ex.set_margin_type('BTCUSDT', 'ISOLATED'); ex.set_leverage('BTCUSDT', 20)
    order(ex, 'BUY', '0.200')
    p, before = ex.account.position('BTCUSDT'), ex.account.wallet
    assert p.margin == D('1000.10000000')
    refused(-4161, ex.set_leverage, 'BTCUSDT', 10); refused(-4048, ex.set_margin_type, 'BTCUSDT', 'CROSSED')
    refused(-4051, ex.call, 'POST', '/fapi/v1/positionMargin', symbol='BTCUSDT', amount='20000', type='1')
    got = ex.call('POST', '/fapi/v1/positionMargin', symbol='BTCUSDT', amount='100', type='1')
    assert got == dict(amount=100.0, code=200, msg='Successfully modify position margin.', type=1) and p.margin == D('1100.1')
    assert ex.call('GET', '/fapi/v1/positionMargin/history', symbol='BTCUSDT')[0]['amount'] == '100.00000000'
    lp = D(ex.call('GET', '/fapi/v3/positionRisk')[0]['liquidationPrice'])
    ex.world(price={'BTCUSDT': float(lp)/100_000*1.0005}); assert ex.account.held()
    ex.world(price={'BTCUSDT': .80}); assert not ex.account.held()
    assert before - ex.account.wallet == D('1100.1') and p.margin == 0
    assert any(i.info == 'insurance fund' for i in ex.account.income)


@pytest.mark.parametrize('hedge', [False, True])
def test_the_shown_liquidation_price_is_where_it_happens(hedge):
    ex = venue(pd.concat([scripted(), frame('ETHUSDT', flat(px=2_500.0, hours=49))]), equity=2_000)
    ex.world(hedge=hedge)
    side = lambda s: dict(positionSide=s) if hedge else {}
    order(ex, 'BUY', '0.200', **side('LONG')); order(ex, 'SELL', '4', 'ETHUSDT', **side('SHORT'))
    if hedge: order(ex, 'SELL', '0.050', **side('SHORT'))
    lp = D(ex.call('GET', '/fapi/v3/positionRisk', symbol='BTCUSDT')[0]['liquidationPrice'])
    assert 85_000 < lp < 100_000
    ex.world(price={'BTCUSDT': float(lp)/100_000*1.0001}); assert len(ex.account.held()) == 2 + hedge
    ex.world(price={'BTCUSDT': .9998}); assert len(ex.account.held()) < 2 + hedge


def test_forced_closes_carry_their_marks():
    ex, events = venue(), []
    ex.listeners.append(events.append)
    order(ex, 'BUY', '0.100'); events.clear()
    ex.world(adl=dict(symbol='BTCUSDT', fraction=.3)); ex.world(liquidate='BTCUSDT')
    new = [e['o'] for e in events if e['e'] == 'ORDER_TRADE_UPDATE' and e['o']['x'] == 'CALCULATED']
    assert [(o['c'][:9], o['l'], o['n']) for o in new][0] == ('adl_autoc', '0.030', '0.00000000') and new[1]['c'].startswith('autoclose-') and new[1]['l'] == '0.070'
    rows = lambda **p: [r['clientOrderId'] for r in ex.call('GET', '/fapi/v1/forceOrders', **p)]
    assert len(rows()) == 2 and rows(autoCloseType='ADL') == ['adl_autoclose'] and rows(autoCloseType='LIQUIDATION')[0].startswith('autoclose-') and rows(symbol='BTCUSDT') == rows()
    assert [f['o']['S'] for f in ex.forced] == ['SELL', 'SELL'] and ex.account.wallet == sum(i.amount for i in ex.account.income)


def test_delisting_settles_what_is_left():
    ex = venue()
    order(ex, 'BUY', '0.100')
    rest = ex.place(Params(symbol='BTCUSDT', side='SELL', type='LIMIT', timeInForce='GTC', quantity='0.010', price='104000'))
    stop = ex.place_algo(Params(algoType='CONDITIONAL', symbol='BTCUSDT', side='SELL', type='STOP_MARKET', triggerPrice='90000', closePosition='true'))
    ex.world(delist=dict(symbol='BTCUSDT', at=START + 2*HOUR))
    assert ex.contracts['BTCUSDT'].row()['deliveryDate'] == START + 2*HOUR and ex.contracts['BTCUSDT'].status == 'TRADING'
    ex.advance(START + 100*MINUTE)
    refused(-4140, order, ex, 'BUY', '0.010'); order(ex, 'SELL', '0.040', reduceOnly='true')
    ex.advance(START + 2*HOUR)
    end = list(ex.orders.values())[-1]
    assert end.client.startswith('settlement_autoclose-') and end.executed == D('0.060') and (rest.status, stop.status) == ('EXPIRED', 'EXPIRED') and not ex.account.held()
    refused(-4141, order, ex, 'BUY', '0.010')


def test_a_halt_stops_everything_but_time():
    ex = venue(scripted((100_500, 97_000, 97_500)))
    order(ex, 'BUY', '0.010')
    stop = ex.place_algo(Params(algoType='CONDITIONAL', symbol='BTCUSDT', side='SELL', type='STOP_MARKET', triggerPrice='99000', closePosition='true'))
    ex.world(status={'BTCUSDT': 'BREAK'})
    refused(-4140, order, ex, 'BUY', '0.010'); refused(-1122, order, ex, 'SELL', '0.010', reduceOnly='true')
    ex.advance(START + HOUR); assert stop.status == 'NEW' and ex.mark('BTCUSDT') < 99_000
    ex.world(status={'BTCUSDT': 'TRADING'}); ex.advance(ex.now + STEP); assert stop.status == 'FINISHED'


def test_a_bent_market_is_this_exchange_s_own():
    m = Market(pd.concat([walk('BTCUSDT', 100_000.0)]))
    a, b = Exchange(m, START), Exchange(m, START)
    a.advance(START + 7*MINUTE); b.advance(START + 7*MINUTE)
    was = b.last('BTCUSDT')
    a.world(price={'BTCUSDT': .9}); assert b.last('BTCUSDT') == was == m.price('BTCUSDT', b.now) and abs(a.last('BTCUSDT')/was - .9) < 1e-5
    for ex in (a, b): ex.advance(START + 3*HOUR)
    ka, kb = (x.call('GET', '/fapi/v1/klines', symbol='BTCUSDT', interval='1h', limit='5') for x in (a, b))
    assert ka[0] == kb[0] and [abs(float(x[4])/float(y[4]) - .9) < 1e-4 for x, y in zip(ka, kb)] == [False, True, True, True, True][:len(ka)] or ka[-1] != kb[-1]
    mixed = next(k for k in ka if k[0] == START)
    assert float(mixed[2]) > 97_000*was/100_000 and abs(float(mixed[3])/min(float(k[3]) for k in kb if k[0] == START) - .9) < .02


def test_world_refuses_what_it_does_not_know():
    ex = venue()
    for change in (dict(weather=1), dict(price={'NOPE': 1}), dict(price={'BTCUSDT': 0}), dict(status={'BTCUSDT': 'ASLEEP'}), dict(limits=dict(coffee=1)), dict(cancel=dict(client='x')), dict(filters={'BTCUSDT': dict(colour=1)})):
        with pytest.raises(ValueError): ex.world(**change)
    order(ex, 'BUY', '0.010')
    refused(-4068, ex.world, hedge=True)


def test_world_changes_the_rules():
    ex = venue()
    ex.world(filters={'BTCUSDT': dict(tick='1', step='0.010', min_notional='2000')}, brackets={'BTCUSDT': .001}, limits=dict(algos=1), leverage={'BTCUSDT': 100})
    refused(-4164, order, ex, 'BUY', '0.010'); refused(-1111, order, ex, 'BUY', '0.011'); refused(-2027, order, ex, 'BUY', '0.100')
    ask = dict(algoType='CONDITIONAL', symbol='BTCUSDT', side='SELL', type='STOP_MARKET', triggerPrice='90000', quantity='0.050')
    ex.place_algo(Params(ask)); refused(-4045, ex.place_algo, Params(ask))
    row = ex.contracts['BTCUSDT'].row()
    assert (row['filters'][0]['tickSize'], row['quantityPrecision'], row['pricePrecision']) == ('1', 2, 0)
    ex.world(filters={'BTCUSDT': dict(control='BUY')}, leverage={'BTCUSDT': 20}); refused(-4106, order, ex, 'BUY', '0.030')
    ex.world(can_trade=False); refused(-4087, order, ex, 'SELL', '0.030'); assert ex.call('GET', '/fapi/v1/accountConfig')['canTrade'] is False
    assert ex.world()['can_trade'] is False and ex.world()['limits']['algos'] == 1
