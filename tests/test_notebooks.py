"Every notebook runs top to bottom, each in a process of its own"
import os, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p.relative_to(ROOT) for d in ('nbs', 'scheduled') for p in (ROOT/d).rglob('*.ipynb') if not {'runs', '.ipynb_checkpoints', '_proc'} & set(p.parts))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=str)
def test_notebook_runs(path):
    env = {k: v for k, v in os.environ.items() if k not in ('QUANTLIB_RUN', 'QUANTLIB_RESULT')} | {'OMP_WAIT_POLICY': 'PASSIVE', 'OMP_NUM_THREADS': '1'}
    r = subprocess.run([Path(sys.executable).with_name('nbdev-test'), path, '--n-workers', '0'], cwd=ROOT, env=env, capture_output=True, text=True)
    assert r.returncode == 0, (r.stdout + r.stderr)[-4000:]
