"The stream against a real sandbox over WebSocket: what is said is heard, what may not have been heard is a gap, and nothing ends the listener but its owner"
import threading, time

import pytest
import requests
from hypothesis import given, strategies as st
from quantlib.core.clock import HOUR
from quantlib.core.settings import parse
from quantlib.data.synthetic import market
from quantlib.execution.client import connect
from quantlib.execution.stream import Inbox, Listener
from quantlib.sandbox.market import Market
from quantlib.sandbox.server import start

T0 = 1_767_225_600_000
CANDLES = market(('BTCUSDT', 'ETHUSDT'), T0 - 30*HOUR, 80, seed=7)


def until(what, seconds=10):
    "Wait for something to become true"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what(): return True
        time.sleep(.01)
    return False


class Play:
    "A running sandbox, a listener and an order"
    def __init__(self, keep_s=1_200, silent_s=60, port=0, **kw):
        self.server = start(Market(CANDLES, seed=7), start_ms=T0, speed=kw.pop('speed', 10), port=port)
        self.settings = parse({'universe': {'symbols': 'BTCUSDT, ETHUSDT'}, 'execution': {'url': self.server.url, 'stream_silent_s': 60, 'recv_window_ms': 10_000}})
        self.inbox, self.n, self.client = Inbox(**kw), 0, connect(self.settings)
        self.listener = Listener(self.settings, 'paper', 'paper', self.inbox, keep_s)
        self.listener.silent_s = silent_s
        self.listener.start()
        assert until(self.connected), self.inbox.why

    def connected(self): return self.inbox.state(0)[0]
    def sockets(self, route): return [s for s in self.server.app.sockets if s.where.route == route]
    def within(self, f): self.server.loop.call_soon_threadsafe(f)

    def trade(self):
        self.n += 1
        return self.client.futures_create_order(symbol='ETHUSDT', side='BUY', type='MARKET', quantity='0.1', newClientOrderId=f'ql-{self.n}')

    def hears(self, seconds=5):
        "Whether a trade that is made now is heard"
        self.trade(); name, got = f'ql-{self.n}', []
        def look(): got.extend(e for e in self.inbox.drain() if isinstance(e, dict)); return any(e['e'] == 'ORDER_TRADE_UPDATE' and e['o']['c'] == name and e['o']['X'] == 'FILLED' for e in got)
        return until(look, seconds)

    def close(self): self.listener.stop(); self.server.stop()


@pytest.fixture
def play(request):
    p = Play(**getattr(request, 'param', {}))
    yield p
    p.close()


def test_what_happens_is_heard_at_once_and_in_order(play):
    gaps = play.inbox.gaps
    assert play.hears() and until(lambda: any(isinstance(x, list) for x in play.inbox.drain()))
    play.trade(); assert until(lambda: any(e['e'] == 'ACCOUNT_UPDATE' for e in play.inbox.events))
    got = [e for e in play.inbox.drain() if isinstance(e, dict)]
    assert [e['e'] for e in got if e['e'] != 'TRADE_LITE'][:3] == ['ORDER_TRADE_UPDATE', 'ORDER_TRADE_UPDATE', 'ACCOUNT_UPDATE'] and [e['E'] for e in got] == sorted(e['E'] for e in got)
    assert play.inbox.gaps == gaps
    connected, silent, _ = play.inbox.state(play.server.exchange.now)
    assert connected and silent < 5_000


@pytest.mark.parametrize('route', ['private', 'market'])
def test_a_dropped_socket_comes_back_and_is_a_gap(play, route):
    for _ in range(2):
        gaps, old = play.inbox.gaps, play.sockets(route)[0]
        play.within(lambda: old.queue.put_nowait(None))
        assert until(lambda: play.inbox.gaps >= gaps + 2 and play.connected() and old not in play.server.app.sockets), play.inbox.why
    assert play.hears(), 'and all is heard again'
    assert len(play.sockets('private')) == len(play.sockets('market')) == 1, 'no socket is left behind'


def test_silence_is_noticed():
    "The exchange stops speaking without closing: the marks grow old at once, and after `stream_silent_s` the connection counts as lost"
    p = Play(silent_s=1, speed=60)
    try:
        gaps = p.inbox.gaps
        p.within(lambda: [s.streams.clear() for s in p.sockets('market')])
        assert until(lambda: p.inbox.state(p.server.exchange.now)[1] > 60_000), 'sixty simulated seconds are one of ours'
        assert until(lambda: p.inbox.gaps >= gaps + 2 and p.connected(), 20) and any('no mark price for 1 s' in w for w in p.inbox.why)
    finally: p.close()


def test_a_wrong_route_never_counts_as_connected(monkeypatch):
    "The exchange accepts any stream name anywhere; what is not of the route stays silent"
    p = Play(silent_s=1)
    try:
        from binance import BinanceSocketManager
        real = BinanceSocketManager.futures_multiplex_socket
        monkeypatch.setattr(BinanceSocketManager, 'futures_multiplex_socket', lambda self, names: real(self, names, category='public'))
        p.within(lambda: [s.queue.put_nowait(None) for s in p.sockets('market')])
        assert until(lambda: p.sockets('public')), 'the handshake succeeds'
        time.sleep(.5); assert not p.connected()
        monkeypatch.undo()
        assert until(p.connected, 20), 'and the watchdog opens it anew'
    finally: p.close()


def test_an_expired_listen_key_is_replaced(play):
    gaps, ex = play.inbox.gaps, play.server.exchange
    def expire():
        event = dict(e='listenKeyExpired', E=ex.now, listenKey=ex.listen_key)
        for f in ex.listeners: f(event)
        ex.listen_key = None
    play.within(expire)
    assert until(lambda: play.inbox.gaps >= gaps + 2 and play.connected()), play.inbox.why
    assert any('expired' in w for w in play.inbox.why) and play.hears()


@pytest.mark.parametrize('play', [dict(keep_s=.3)], indirect=True)
def test_a_listen_key_that_died_without_a_word_is_found(play):
    gaps, ex = play.inbox.gaps, play.server.exchange
    real = requests.delete(f'{play.server.url}/fapi/v1/listenKey', headers={'X-MBX-APIKEY': 'paper'}, timeout=5)
    assert real.status_code == 200
    play.within(lambda: setattr(ex, 'start', ex.start + 1)) # the next key is another one
    assert until(lambda: any('had died' in w for w in play.inbox.why) and play.connected()), play.inbox.why
    assert play.inbox.gaps >= gaps + 2 and play.hears()


def test_doubt_opens_the_user_stream_anew(play):
    old = play.sockets('private')[0]
    play.inbox.doubt()
    assert until(lambda: play.sockets('private') and old not in play.server.app.sockets and play.connected()) and any('did not come' in w for w in play.inbox.why)


@pytest.mark.parametrize('play', [dict(most=1_000)], indirect=True)
def test_a_flood_is_a_gap_and_no_crash(play):
    "5,000 events at once, more than fit; the memory stays bounded and the listener goes on"
    gaps, ex = play.inbox.gaps, play.server.exchange
    def flood():
        for k in range(5_000):
            for f in ex.listeners: f(dict(e='ACCOUNT_UPDATE', E=ex.now, k=k))
    play.within(flood)
    assert until(lambda: play.inbox.gaps > gaps), play.inbox
    assert until(play.connected) and len(play.inbox.events) <= 1_000
    time.sleep(.3); play.inbox.drain()
    assert play.hears()


def test_garbage_on_the_wire_is_a_gap(play):
    for junk in ([], 'x', 7, {'code': -1}, {'e': 'ORDER_TRADE_UPDATE'}, {'e': 'ORDER_TRADE_UPDATE', 'E': 'soon'}, [dict(e='markPriceUpdate')]):
        gaps = play.inbox.gaps
        play.within(lambda: [s.put(junk) for s in play.sockets('private')])
        if junk != []: assert until(lambda: play.inbox.gaps > gaps), junk # python-binance drops an empty message
    assert play.hears()


def test_an_exchange_that_goes_away_and_comes_back():
    p = Play()
    port, gaps = p.server.sock.getsockname()[1], p.inbox.gaps
    p.server.stop()
    assert until(lambda: not p.connected()) and p.inbox.gaps > gaps
    time.sleep(.5)
    p.server = start(Market(CANDLES, seed=7), start_ms=T0 + HOUR, speed=10, port=port)
    try:
        p.client = connect(p.settings)
        assert until(p.connected, 15) and p.hears()
    finally: p.close()


def test_it_ends_when_told_and_leaves_nothing(play):
    play.listener.stop()
    assert not play.listener.thread.is_alive() and until(lambda: not play.server.app.sockets)


def test_no_secret_in_what_it_tells():
    inbox = Inbox()
    s = parse({'universe': {'symbols': 'BTCUSDT'}, 'execution': {'url': 'http://127.0.0.1:9'}})
    l = Listener(s, 'CANARYKEY', 'CANARYSECRET', inbox)
    inbox.links = {'private': True}
    l._down('private', RuntimeError('https://x/?apiKey=CANARYKEY&signature=abc with CANARYSECRET'))
    assert 'CANARY' not in str(inbox.why) and not inbox.links['private'] and 'CANARY' not in repr(l)


events = st.lists(st.one_of(st.sampled_from(['drain', 'gap', 'junk']), st.integers(0, 3), st.tuples(st.integers(0, 10**6), st.sampled_from('AB'))), max_size=60)


@given(events)
def test_the_inbox_loses_nothing_without_a_gap(steps):
    "User events come out once and in order; of marks the newest; each loss, and nothing else, is counted"
    inbox, waiting, newest, gaps, n = Inbox(most=8), [], {}, 0, 0
    for s in [*steps, 'drain']:
        if s == 'drain':
            out = inbox.drain()
            assert [e['n'] for e in out if isinstance(e, dict)] == waiting and {m['s']: m['p'] for m in next((x for x in out if isinstance(x, list)), [])} == newest
            waiting, newest = [], {}
        elif s == 'gap': inbox.gap('test'); gaps += 1
        elif s == 'junk': inbox.push({'e': 'x'}); gaps += 1
        elif isinstance(s, tuple): inbox.push([dict(e='markPriceUpdate', E=T0, s=s[1], p=s[0])]); newest[s[1]] = s[0]
        else:
            for n in range(n, n + s):
                inbox.push(dict(e='ORDER_TRADE_UPDATE', E=T0 + n, n=n)); waiting.append(n)
                if len(waiting) > 8: waiting, gaps = [], gaps + 1
            n += 1
        assert inbox.gaps == gaps and len(inbox.events) <= 8


def test_many_threads_push_and_one_takes():
    inbox, got = Inbox(), []
    def push(k):
        for n in range(500): inbox.push(dict(e='X', E=T0, k=k, n=n))
    threads = [threading.Thread(target=push, args=(k,)) for k in range(4)]
    for t in threads: t.start()
    while any(t.is_alive() for t in threads): got += inbox.drain()
    got += inbox.drain()
    assert len(got) == 2_000 and inbox.gaps == 0 and all([e['n'] for e in got if e['k'] == k] == list(range(500)) for k in range(4))


def test_rows_of_another_market_are_no_marks():
    inbox = Inbox()
    inbox.push([dict(e='markPriceUpdate', E=T0, s='BTCUSD_PERP', p='1', st=2), dict(e='markPriceUpdate', E=T0, s='BTCUSDT', p='2', st=1)])
    assert [[m['s'] for m in x] for x in inbox.drain()] == [['BTCUSDT']]
