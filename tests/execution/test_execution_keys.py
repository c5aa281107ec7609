"The key comes from one private place, may do one thing, leaves no trace, and trades for real only when a human said so"
import json, logging, os, re, subprocess, sys, traceback

import pytest

from quantlib.core.clock import DAY, HOUR
from quantlib.core.settings import Home, parse
from quantlib.execution.client import ClientRefused, ask, classify, connect
from quantlib.execution.gateway import Gateway
from quantlib.execution.keys import KeyPair, account_of, arm, armed, credentials, disarm, judged, permissions, phrase, private
from quantlib.execution.rehearsal import Stage
from quantlib.journal.store import Journal

NOW = 1_746_835_200_000
KEY, SECRET = 'CanaryKeyCanaryKey0123456789', 'CanarySecretCanarySecret0123456789'
def made(mode='live', **kw): return parse({'suite': {'mode': mode}, 'universe': {'symbols': 'BTCUSDT'}, 'execution': {'account': 'SgsR'}} | kw)


@pytest.fixture
def keyfile(tmp_path):
    p = tmp_path/'key'; p.write_text(f'{KEY}\n{SECRET}\n'); p.chmod(0o600)
    return p


def test_a_private_file_gives_the_pair_and_the_environment_is_wiped(keyfile, monkeypatch):
    for k, v in (('QUANTLIB_KEYFILE', str(keyfile)), ('QUANTLIB_KEY', 'other'), ('QUANTLIB_SECRET', 'other')): monkeypatch.setenv(k, v)
    assert credentials(made()) == (KEY, SECRET)
    assert not {k for k in os.environ if k.startswith('QUANTLIB_K') or k.startswith('QUANTLIB_S')} - {'QUANTLIB_SETTINGS'}
    monkeypatch.setenv('QUANTLIB_KEY', KEY); monkeypatch.setenv('QUANTLIB_SECRET', SECRET)
    assert credentials(made('demo')) == (KEY, SECRET)
    child = subprocess.run([sys.executable, '-c', 'import os; print(sorted(os.environ.values()))'], capture_output=True, text=True).stdout
    assert KEY not in child and SECRET not in child


@pytest.mark.parametrize('mode', (0o640, 0o604, 0o660, 0o644, 0o601, 0o620))
def test_a_file_that_others_reach_is_refused(keyfile, mode):
    keyfile.chmod(mode)
    with pytest.raises(ClientRefused, match=f'mode {mode:o}') as e: credentials(made(), {'QUANTLIB_KEYFILE': str(keyfile)})
    assert KEY not in str(e.value)


def test_links_folders_pipes_and_strangers_are_refused(keyfile, tmp_path, monkeypatch):
    (tmp_path/'link').symlink_to(keyfile); os.mkfifo(tmp_path/'pipe', 0o600)
    for name in ('link', 'pipe', 'nothing', '.'):
        with pytest.raises(ClientRefused): private(tmp_path/name)
    monkeypatch.setattr(os, 'geteuid', lambda: os.getuid() + 1)
    with pytest.raises(ClientRefused, match='belongs to user'): private(keyfile)


@pytest.mark.parametrize('text', ('', KEY, f'{KEY} {SECRET} more', 'short short', f'{KEY}\n{SECRET[:5]}', 'ключключключ секретсекрет', 'x'*5000 + ' ' + 'y'*9))
def test_half_a_pair_is_no_pair(keyfile, text):
    keyfile.write_text(text)
    with pytest.raises(ClientRefused) as e: credentials(made(), {'QUANTLIB_KEYFILE': str(keyfile)})
    assert not any(t in str(e.value) for t in text.split() if len(t) > 4)


def test_there_is_no_other_place(monkeypatch):
    for env in ({}, {'QUANTLIB_KEY': KEY}, {'QUANTLIB_SECRET': SECRET}, {'QUANTLIB_KEY': '', 'QUANTLIB_SECRET': SECRET}):
        with pytest.raises(ClientRefused) as e: credentials(made(), dict(env))
        assert KEY not in str(e.value) and SECRET not in str(e.value)
    with pytest.raises(ValueError): parse({'universe': {'symbols': 'BTCUSDT'}, 'execution': {'key': KEY}})
    assert repr(KeyPair(KEY, SECRET)) == str(KeyPair(KEY, SECRET)) == f'{KeyPair(KEY, SECRET)}' == 'KeyPair(Can…)'


class Venue:
    "What the exchange says about a key"
    def __init__(self, row, can=True): self.row, self.can = row, can
    def futures_account_config(self): return dict(canTrade=self.can)
    def get_account_api_permissions(self):
        if isinstance(self.row, Exception): raise self.row
        return self.row

GOOD = dict(ipRestrict=True, enableFutures=True, enableReading=True, enableWithdrawals=False, enableInternalTransfer=False, permitsUniversalTransfer=False, enableMargin=False, enableSpotAndMarginTrading=False,
    enableVanillaOptions=False, enablePortfolioMarginTrading=False)


@pytest.mark.parametrize('field', [k for k in GOOD if k != 'enableReading'])
@pytest.mark.parametrize('value', ('flip', None, 'true', 1, 0))
def test_each_right_too_many_stops_live_trading(field, value):
    row = GOOD | {field: (not GOOD[field]) if value == 'flip' else value}
    with pytest.raises(ClientRefused): permissions(Venue(row), made())
    with pytest.raises(ClientRefused): permissions(Venue({k: v for k, v in row.items() if k != field}), made())
    if field != 'ipRestrict' or value is not None: assert permissions(Venue(row), made('demo')).excess


def test_an_exchange_that_says_nothing_stops_live_trading_only():
    e = Exception('no'); e.status_code = 403
    with pytest.raises(ClientRefused, match='does not say'): permissions(Venue(e), made())
    assert permissions(Venue(e, False), made('demo')).source == 'accountConfig' and not permissions(Venue(e, False), made('demo')).trade
    with pytest.raises(ValueError): permissions(Venue(ValueError('x')), made('demo'))
    with pytest.raises(ValueError): permissions(Venue(GOOD, 'true'), made())


def test_the_end_of_an_authority_is_seen():
    p = permissions(Venue(GOOD | dict(tradingAuthorityExpirationTime=NOW + 8*DAY)), made())
    assert not p.ends_soon(NOW) and p.ends_soon(NOW + 2*DAY) and not judged(GOOD, True).ends_soon(NOW) and not judged(GOOD, False).trade


def test_the_sandbox_answers_both_questions():
    s = Stage(direct=True)
    p = permissions(s.client, s.settings)
    assert p.trade and not p.excess and account_of(s.client) == 'sandbox'
    s.close()


@pytest.fixture
def home(tmp_path): return Home(tmp_path/'fund')


def test_arming_needs_a_human_and_ends(home):
    s = made()
    for typed in ('', 'yes', 'trade live', phrase(s).upper(), phrase(s) + '!'):
        with pytest.raises(ClientRefused): arm(home, s, typed, NOW)
    for hours in (0, -1, 25, float('nan'), float('inf')):
        with pytest.raises(ClientRefused): arm(home, s, phrase(s), NOW, hours)
    for other in (made('paper'), made('demo'), made(execution={})):
        with pytest.raises(ClientRefused): arm(home, other, phrase(other), NOW)
    assert not (home.path/'ARMED').exists()
    p = arm(home, s, phrase(s), NOW, 2, 'ada')
    assert p.stat().st_mode & 0o777 == 0o600 and armed(home, s, 'SgsR', NOW + HOUR) == NOW + 2*HOUR
    for now in (NOW + 2*HOUR, NOW + 9*DAY, NOW - 2*HOUR):
        with pytest.raises(ClientRefused, match='holds from'): armed(home, s, 'SgsR', now)
    assert disarm(home) and not disarm(home)
    with pytest.raises(ClientRefused, match='not armed'): armed(home, s, 'SgsR', NOW)


@pytest.mark.parametrize('spoil', (dict(account='oQxy'), dict(settings='0'*16), dict(until=NOW + 99*DAY), dict(at=NOW - 9*DAY), dict(until='never'), dict(account=None)))
def test_an_arming_for_something_else_does_not_count(home, spoil):
    p = arm(home, made(), phrase(made()), NOW)
    p.write_text(json.dumps(json.loads(p.read_text()) | spoil))
    with pytest.raises(ClientRefused): armed(home, made(), 'SgsR', NOW + HOUR)


def test_an_arming_must_be_private_and_whole(home, tmp_path):
    p = arm(home, made(), phrase(made()), NOW)
    p.chmod(0o644)
    with pytest.raises(ClientRefused, match='644'): armed(home, made(), 'SgsR', NOW)
    p.chmod(0o600)
    for text in ('', '[]', '{}', 'null', '{"account": "SgsR"', '\xff'):
        p.write_text(text)
        with pytest.raises(ClientRefused): armed(home, made(), 'SgsR', NOW)
    p.unlink(); p.symlink_to(tmp_path/'elsewhere')
    with pytest.raises(ClientRefused): armed(home, made(), 'SgsR', NOW)
    assert disarm(home)


def test_live_needs_all_three(home):
    s = made()
    arm(home, s, phrase(s), NOW)
    for account in ('', 'oQxy', 'sgsr', None):
        with pytest.raises(ClientRefused): armed(home, s, account, NOW)
    with pytest.raises(ClientRefused, match='sandbox'): armed(home, made(execution={'account': 'SgsR', 'url': 'http://127.0.0.1:8900'}), 'SgsR', NOW)
    with pytest.raises(ClientRefused, match='armed were'): armed(home, made(risk={'max_leverage': 9}), 'SgsR', NOW)
    assert armed(home, made('paper'), 'anybody', NOW) is None


def test_live_is_never_a_sandbox():
    for url in ('http://127.0.0.1:8900', 'http://localhost', 'http://10.0.0.1', 'https://fapi.binance.com'):
        with pytest.raises(ClientRefused): connect(made(execution={'account': 'SgsR', 'url': url}), KEY, SECRET)
        with pytest.raises(ClientRefused): connect(made(), KEY, SECRET, url)
    assert 'fapi.binance.com' in repr(connect(made(), KEY, SECRET)) and not connect(made(), KEY, SECRET).simulated


def test_a_canary_secret_is_found_nowhere(tmp_path, caplog, capfd):
    "A run in which everything fails, with the key and the signature in every message that the transport writes"
    caplog.set_level(logging.DEBUG)
    s = Stage(sandbox={'key': KEY, 'secret': SECRET})
    s.client = s.connect(); s.client.verbose = True
    seen, real = [], s.venue.request
    def spoiled(method, path, query='', body='', key=None):
        a = real(method, path, query, body, key)
        n = len(seen); seen.append(n)
        leak = f'{path}?{query}{body} X-MBX-APIKEY: {key} secret {SECRET}'
        if n > 25 and n % 3 == 0: raise RuntimeError(leak)
        if n > 25 and n % 3 == 1: return type(a)(400, dict(code=-2015, msg=leak), {})
        return a
    s.venue.request = spoiled
    g = Gateway(s.settings, s.home, s.journal, s.client); g.start()
    s.wish('ETHUSDT', 'BUY')
    texts = []
    for _ in range(25):
        s.venue.advance(s.venue.now + 5000)
        try: g.step()
        except Exception: texts.append(traceback.format_exc())
        try: ask(s.client, 'futures_account')
        except Exception as e: texts += [traceback.format_exc(), repr(e), repr(vars(e)), classify(e).text, repr(e.__context__)]
    texts += [repr(x) for x in (s.client, g, g.desk, g.ledger, s.settings.execution, s.journal)] + [caplog.text, *capfd.readouterr()]
    s.journal.close()
    files = [p.read_bytes() for p in s.home.path.rglob('*') if p.is_file()]
    assert len(seen) > 60 and files and any(b'unknown_outcome' in f for f in files)
    for secret in (KEY, SECRET): assert not [t[:300] for t in texts if secret in t] and not any(secret.encode() in f for f in files)
    assert not any(re.search(r'signature=[0-9a-f]{8}', t) for t in texts) and not any(re.search(rb'signature=[0-9a-f]{8}', f) for f in files)
    s.close()
