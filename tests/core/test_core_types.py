"The one enum of reasons: every code is said somewhere, and no code is made up elsewhere"
from pathlib import Path

from quantlib.core.types import Reason

ROOT = Path(__file__).resolve().parents[2]/'quantlib'


def test_every_reason_is_used():
    code = '\n'.join(p.read_text() for p in ROOT.rglob('*.py'))
    assert [r.name for r in Reason if f'Reason.{r.name}' not in code] == []
    assert all(r.text and r.value == r.name.lower() for r in Reason)
