"Names: injective, short, of a safe alphabet, independent of process and order"
import math, re, subprocess, sys
from decimal import Decimal

import pytest
from hypothesis import given, strategies as st
from quantlib.core.ids import canonical, client_id, cycle_id, digest, intent_id

json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(), x, max_size=4), max_leaves=12)


@given(st.dictionaries(st.text(), json_values, max_size=6))
def test_order_of_keys_does_not_matter(d): assert canonical(d) == canonical(dict(reversed(d.items())))


@given(st.sampled_from([math.nan, math.inf, -math.inf]))
def test_nothing_that_is_not_a_number_has_a_text(x):
    with pytest.raises(ValueError): canonical({'x': [x]})


def test_a_million_intents_have_a_million_names():
    seen = {intent_id(cycle_id('paper', s*3_600_000), f'S{k}USDT', a, t) for s in range(500) for k in range(100) for a in ('open', 'close') for t in (100.0, -100.0, 100.5, 0.0, 2000.0)}
    assert len(seen) == 500*100*2*5


@given(st.text(st.characters(codec='ascii'), min_size=1, max_size=10), st.integers(0, 99))
def test_client_ids_are_sendable_or_refused(role, n):
    try: c = client_id('i' + digest(role), role, n)
    except ValueError: return
    assert re.fullmatch(r'[A-Za-z0-9_-]{1,36}', c) and c.startswith('ql-')


def test_names_do_not_depend_on_the_process():
    code = "from quantlib.core.ids import *; print(intent_id(cycle_id('paper', 0), 'BTCUSDT', 'open', 850.0), digest({'b', 'a'}))"
    runs = {subprocess.run([sys.executable, '-c', code], env={'PYTHONHASHSEED': h}, capture_output=True, text=True).stdout for h in ('0', '1', '77')}
    assert len(runs) == 1 and runs.pop().strip()


@given(st.decimals(allow_nan=False, allow_infinity=False, places=8, min_value=-10**9, max_value=10**9))
def test_equal_amounts_have_equal_digests(x): assert digest(x) == digest(x + Decimal('0E-12'))
