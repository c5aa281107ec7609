"Every notebook runs top to bottom"
import os, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize('folder', ['nbs', 'scheduled'])
def test_notebooks_run(folder):
    env = {k: v for k, v in os.environ.items() if k not in ('QUANTLIB_RUN', 'QUANTLIB_RESULT')} | {'OMP_WAIT_POLICY': 'PASSIVE', 'OMP_NUM_THREADS': '1'}
    r = subprocess.run([Path(sys.executable).with_name('nbdev-test'), folder, '--n-workers', '2', '--timing'], cwd=ROOT, env=env, capture_output=True, text=True)
    assert r.returncode == 0, (r.stdout + r.stderr)[-6000:]
