"PatchTST against the implementation in transformers, and what its parts promise"
import itertools
import pytest, torch
from transformers import PatchTSTConfig, PatchTSTForPrediction
from quantlib.models.fit import seeded
from quantlib.models.patchtst import Attention, PatchTST, adopt, patches

SHAPES = [dict(length=336, horizon=96, size=16, stride=8, width=16, heads=4, layers=3, inner=128), dict(length=512, horizon=96, size=16, stride=16, width=16, heads=2, layers=2, inner=128),
          dict(length=50, horizon=5, size=12, stride=7, width=24, heads=3, layers=1, inner=20)]


def twin(kw, channels=3):
    "The other implementation, with weights and running statistics drawn at random"
    with seeded(5):
        net = PatchTSTForPrediction(PatchTSTConfig(num_input_channels=channels, context_length=kw['length'], prediction_length=kw['horizon'], patch_length=kw['size'], patch_stride=kw['stride'],
            d_model=kw['width'], num_attention_heads=kw['heads'], num_hidden_layers=kw['layers'], ffn_dim=kw['inner'], pooling_type=None, norm_type='batchnorm', scaling='std', loss='mse', pre_norm=False, attention_dropout=0., ff_dropout=.3))
        for k, v in net.state_dict().items():
            if 'running_var' in k: v.uniform_(.5, 2.)
            elif 'running_mean' in k or 'bias' in k: v.normal_(0, .3)
    return net.eval()


@pytest.mark.parametrize('kw', SHAPES, ids=lambda k: f'{k["length"]}-{k["size"]}-{k["stride"]}')
def test_forecasts_equal_those_of_transformers(kw):
    theirs = twin(kw); ours = adopt(PatchTST(**kw), theirs.state_dict()).eval()
    with seeded(6): x = torch.randn(4, kw['length'], 3).cumsum(1) * .2
    for dtype, eps in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        theirs, ours, x = theirs.to(dtype), ours.to(dtype), x.to(dtype)
        with torch.inference_mode(): a, b = theirs(past_values=x).prediction_outputs, ours(x.transpose(1, 2).flatten(0, 1)).view(4, 3, -1).transpose(1, 2)
        assert (a - b).abs().max() <= eps * max(a.abs().max().item(), 1)


def test_a_step_of_learning_is_the_same_too():
    kw = SHAPES[2]; theirs = twin(kw); ours = adopt(PatchTST(dropout=0., **kw), theirs.state_dict()).train(); theirs.model.train()
    for m in theirs.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    x = torch.randn(4, 50, 3)
    a, b = theirs(past_values=x).prediction_outputs, ours(x.transpose(1, 2).flatten(0, 1)).view(4, 3, -1).transpose(1, 2)
    a.square().mean().backward(); b.square().mean().backward()
    assert torch.allclose(a, b, atol=2e-5) and torch.allclose(theirs.head.projection.weight.grad, ours.head.weight.grad, atol=2e-5)


def test_a_network_of_another_shape_is_refused():
    theirs = twin(SHAPES[2]).state_dict()
    with pytest.raises((RuntimeError, KeyError)): adopt(PatchTST(**SHAPES[0]), theirs)


def test_patch_counts_of_both_conventions():
    x = torch.arange(336.)[None, None]
    assert patches(x, 16, 8).shape == (1, 41, 16) and patches(x, 16, 8, pad=True).shape == (1, 42, 16)
    assert patches(x, 16, 8)[0, -1, -1] == 335 and patches(x, 16, 8, pad=True)[0, -1, -8:].eq(335).all()
    assert patches(torch.arange(50.)[None, None], 12, 7)[0, 0, 0] == 3, 'the oldest steps are left out, not the newest'


@pytest.mark.parametrize('pad,carry,channels,outputs', list(itertools.product((False, True), (False, True), (1, 3), (1, 5))))
def test_shapes_and_every_weight_learns(pad, carry, channels, outputs):
    with seeded(1): net = PatchTST(64, 6, size=8, stride=4, width=8, inner=16, channels=channels, outputs=outputs, pad=pad, carry=carry).train()
    x = torch.randn(7, channels, 64) if channels > 1 else torch.randn(7, 64)
    y = net(x); assert y.shape == ((7, 6, outputs) if outputs > 1 else (7, 6))
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_carried_scores_change_what_is_seen():
    with seeded(1): plain = PatchTST(64, 6, size=8, stride=8, carry=False).eval()
    with seeded(1): carry = PatchTST(64, 6, size=8, stride=8, carry=True).eval()
    x = torch.randn(3, 64); assert not torch.allclose(plain(x), carry(x))


def test_level_passes_through_and_order_matters():
    with seeded(1): net = PatchTST(64, 6).eval()
    x = torch.randn(3, 64)
    assert torch.allclose(net(50 + 4*x), 50 + 4*net(x), atol=1e-3)
    assert not torch.allclose(net(x), net(x.flip(1)))
    with pytest.raises(ValueError, match='heads'): Attention(16, 3)
