"A slice of the fuzzed replies; the whole is `python tests/attack/fuzz.py --n 100000`"
import random

from fuzz import fuzz, mutate, structural


def test_mutations_are_what_they_say():
    rng = random.Random(0)
    said = {structural(dict(a=[dict(b='1.5', c=2)], d=None), rng)[0] for _ in range(500)} | {mutate(dict(a=1), rng)[0] for _ in range(500)}
    assert said >= {'swap', 'null', 'missing', 'extra', 'literal', 'strange', 'retype', 'negate', 'truncated', 'html', 'error', 'empty', 'deep', 'status'}


def test_five_hundred_mutated_replies():
    b = fuzz(500, seed=11)
    assert b.bad == [] and not b.untyped and b.count == 500
    assert b.grown < 200, f'{b.grown:.0f} MB more'
    assert len(b.where) >= 10 and len(b.kinds) >= 12, 'the slice must reach what it is about'
