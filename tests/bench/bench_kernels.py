"""Prints how long one notebook takes on a warm kernel, on a cold one, and through papermill's command line.

    python tests/bench/bench_kernels.py [repeats]
"""
import shutil, subprocess, sys, tempfile, time
from pathlib import Path
from statistics import median
import nbformat
from quantlib.schedule.kernels import WARM, warm_kernels
from quantlib.schedule.runner import execute

CLOSE = "from quantlib.schedule.runner import write_record; write_record({'slot': slot})"
NOTEBOOKS = {
    'almost empty': (),
    'imports and a plot': ('import numpy, pandas, sqlalchemy, deltalake, talib, xgboost, lightgbm, torch, vectorbt, binance.client',
        'import matplotlib.pyplot as plt; plt.plot([1, 2]);'),
}

def timed(action):
    started = time.perf_counter()
    action()
    return time.perf_counter() - started

def main(repeats=5):
    home = Path(tempfile.mkdtemp(prefix='ql-bench-'))
    with warm_kernels(home) as z:
        print(f'zygote ready after {timed(lambda: z.ready(120)):.1f} s, {z.facts()["rss_mb"]} MB')
        for name, cells in NOTEBOOKS.items():
            nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in ("slot:str='x'", *cells, CLOSE)],
                metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
            nb.cells[0].metadata['tags'] = ['parameters']
            path = home/f'{name}.ipynb'
            nbformat.write(nb, path)
            def run(kernel):
                r = execute(path, {'slot': 'y'}, {'slot': str}, home/'runs'/path.name, 120, kernel=kernel)
                assert r.state == 'done' and r.warm is (kernel == WARM), r
            cli = [sys.executable, '-m', 'papermill', '-k', 'python3', '-r', 'slot', 'y', '--no-progress-bar', path, home/'cli.ipynb']
            warm = median(timed(lambda: run(WARM)) for _ in range(repeats))
            cold = median(timed(lambda: run('python3')) for _ in range(repeats))
            bare = median(timed(lambda: subprocess.run(cli, check=True, capture_output=True)) for _ in range(max(repeats//2, 1)))
            print(f'{name:20} warm {warm:.2f} s   cold {cold:.2f} s ({cold/warm:.1f}x)   papermill command {bare:.2f} s ({bare/warm:.1f}x)')
    shutil.rmtree(home)

if __name__ == '__main__': main(*map(int, sys.argv[1:]))
