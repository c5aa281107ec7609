"N-HiTS: no weight is learnt for nothing, its parts add up, and it keeps to the level of the window"
import pytest, torch
import torch.nn.functional as F
from quantlib.models.fit import level, seeded
from quantlib.models.nhits import Block, NHiTS, curve

SHAPES = [dict(length=96, horizon=24), dict(length=50, horizon=7, pools=[3], coarse=[5]), dict(length=64, horizon=4, channels=3, outputs=5, how='last'),
          dict(length=40, horizon=1, pools=[4, 1], coarse=[100, 1], how='none'), dict(length=33, horizon=12, pools=[8, 4, 1], coarse=[6, 3, 2], layers=1)]


def made(kw):
    with seeded(1): return NHiTS(width=24, dropout=.3, **kw)


@pytest.mark.parametrize('kw', SHAPES, ids=str)
def test_shapes_and_every_weight_learns(kw):
    net = made(kw).train(); c, o = kw.get('channels', 1), kw.get('outputs', 1)
    x = torch.randn(9, c, kw['length']) if c > 1 else torch.randn(9, kw['length'])
    y = net(x); assert y.shape == ((9, kw['horizon'], o) if o > 1 else (9, kw['horizon']))
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_level_and_spread_of_the_window_pass_through():
    net, x = made(SHAPES[0]).eval(), torch.randn(5, 96)
    assert torch.allclose(net(100 + 20*x), 100 + 20*net(x), atol=2e-3)
    flat = net(torch.full((2, 96), 7.))
    assert torch.isfinite(flat).all() and (flat - 7).abs().max() < .1, 'a window that never moves is no reason to invent a move'


def test_the_parts_add_up_and_the_first_channel_is_forecast():
    net, x = made(SHAPES[2]).eval(), torch.randn(5, 3, 64)
    u, mean, scale = level(x, 'last')
    assert torch.allclose(net(x), (sum(net.parts(u)) + mean[:, :1]).transpose(1, 2), atol=1e-5)


def test_a_coarse_block_cannot_draw_a_day():
    knots = curve(torch.randn(1, 1, 4), 96)[0, 0]
    assert (knots.diff().diff().abs() > 1e-5).sum() <= 8, 'straight lines between four knots'
    assert curve(torch.ones(1, 1, 5), 5).shape == (1, 1, 5)


@pytest.mark.parametrize('n,steps', [(1, 9), (2, 3), (4, 96), (14, 336), (50, 7)])
def test_a_curve_is_what_torch_interpolates(n, steps):
    "Also when it is first asked for without gradients and learnt through afterwards"
    for dtype, eps in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        knots = torch.randn(5, 2, n, dtype=dtype, requires_grad=True); want = F.interpolate(knots, steps, mode='linear')
        with torch.inference_mode(): curve(knots, steps)
        y = curve(knots, steps); pull = torch.randn_like(y)
        assert y.dtype == dtype and torch.allclose(y, want, atol=eps)
        assert torch.allclose(*(torch.autograd.grad(v, knots, pull)[0] for v in (y, want)), atol=20*eps)


def test_blocks_see_what_is_left():
    net = made(SHAPES[0]).eval()
    with torch.no_grad(): net.blocks[0].net[-1].weight.zero_(); net.blocks[0].net[-1].bias.zero_()
    rest = NHiTS(96, 24, pools=(4, 1), coarse=(12, 1), width=24); rest.blocks = net.blocks[1:]
    x = torch.randn(4, 96); assert torch.allclose(net(x), rest.eval()(x), atol=1e-6)
    assert isinstance(net.blocks[-1], Block) and net.blocks[-1].cut == 0
