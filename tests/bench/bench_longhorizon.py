"""CPU seconds of what the forecasters do often, beside the obvious way of doing it; run: python tests/bench/bench_longhorizon.py"""
from time import process_time
import numpy as np, torch
import torch.nn.functional as F
from torch import nn
from quantlib.models.fit import Dropout, Windows, _batches, _step, judge, level, seeded, threads_of
from quantlib.models.nhits import NHiTS, curve
from quantlib.models.patchtst import PatchTST
from quantlib.models.ridge import Ridge, sliding


def cost(f, times=5):
    "The least CPU milliseconds of some runs"
    took = []
    for _ in range(times): start = process_time(); f(); took.append(process_time() - start)
    return 1000 * min(took)


def pair(name, lean, plain, times=5):
    "One line: both costs and their ratio, taken in turns"
    lean(), plain()
    a, b = zip(*[(cost(lean, 1), cost(plain, 1)) for _ in range(times)])
    print(f'{name:<62}{min(a):9.1f} ms {min(b):9.1f} ms {min(b)/min(a):7.1f} ×')


def steps(net, data, n, batch):
    "`n` learning steps"
    opt = torch.optim.AdamW(net.parameters(), fused=True); net.train()
    for rows in _batches(len(data), batch, n, torch.Generator().manual_seed(1)): _step(net, data, rows, 'squared', opt, 1.)


class WrittenOut(torch.utils.data.Dataset):
    "All windows written out, one row each, as a loader wants them"
    def __init__(self, w): self.rows = torch.cat([w[slice(None)][0], w[slice(None)][1]], 1); self.length = w.length
    def __len__(self): return len(self.rows)
    def __getitem__(self, i): return self.rows[i, :self.length], self.rows[i, self.length:]


def plain_dropout(net):
    "`net` with torch's own dropout"
    for m in net.modules():
        for k, child in m.named_children():
            if isinstance(child, Dropout): setattr(m, k, nn.Dropout(child.share))
    return net


def main():
    t = np.arange(8640); rng = np.random.default_rng(0)
    z = np.stack([np.sin(2*np.pi*t/24 + k) for k in range(7)]) + .3*rng.standard_normal((7, 8640))
    x = torch.randn(7168, 128)
    print(f'{"":<62}{"lean":>12}{"plain":>13}{"ratio":>9}')
    pair('dropout of 917,504 numbers: bytes | nn.Dropout', lambda: Dropout(.2)(x), lambda: nn.Dropout(.2)(x))
    w = Windows(z, 512, 96); rows = torch.randint(0, len(w), (32,))
    loader = iter(torch.utils.data.DataLoader(WrittenOut(w), 224, shuffle=True))
    pair('a batch of 224 windows: gather | DataLoader over rows', lambda: w[rows], lambda: next(loader))
    for name, cls, n, batch in (('PatchTST', PatchTST, 512, 32), ('NHiTS', NHiTS, 336, 64)):
        data = Windows(z, n, 96)
        with seeded(1): nets = cls(n, 96), plain_dropout(cls(n, 96))
        pair(f'5 learning steps of {name}: byte dropout | nn.Dropout', lambda: steps(nets[0], data, 5, batch), lambda: steps(nets[1], data, 5, batch))
    knots, pull = torch.randn(448, 1, 14, requires_grad=True), torch.randn(448, 1, 336)
    pair('448 curves through 14 knots, and back: product | interpolate', lambda: curve(knots, 336).backward(pull), lambda: F.interpolate(knots, 336, mode='linear').backward(pull), 20)
    far = torch.randn(448, 432)[:, :336]
    def welford(): var, mean = torch.var_mean(far, -1, keepdim=True, correction=0); return (far - mean) / (var + 1e-5).sqrt()
    pair('level of 448 windows: two passes | var_mean', lambda: level(far), welford, 20)
    with seeded(1): net = PatchTST(432, 96, width=32, inner=32)
    some = Windows(z[:, :2000], 432, 96)
    pair('a check of PatchTST: rows of a batch | 256 origins at a time', lambda: judge(net, some, chunk=32), lambda: judge(net, some, chunk=256), 3)
    with seeded(1): wide = NHiTS(336, 96, coarse=(1, 1, 1))
    data = Windows(z, 336, 96)
    pair('5 learning steps of NHiTS: knots | full curves', lambda: steps(nets[0], data, 5, 64), lambda: steps(wide, data, 5, 64))
    def written(): v = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(z, 608, axis=1)).reshape(-1, 608); v = torch.from_numpy(v - v[:, [511]]); return v.T @ v
    pair('products of 56,000 windows of 608: recursion | written out', lambda: sliding(z, 608), written, 3)
    print(f'{"ridge, 5 lengths × 7 penalties, chosen on validation":<62}{cost(lambda: Ridge.fit(z, 6048, 7344, 96), 3):9.1f} ms')


if __name__ == '__main__':
    with threads_of(1): main()
