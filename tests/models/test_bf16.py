"""Answers in bfloat16: near those in float32, from weights of half the bytes."""

import pytest
import torch
from torch import nn

from alexnet import kernels
from alexnet.kernels import linear
from alexnet.models import create_model, fusion


def network(name="alexnet", **how):
    return create_model(name, num_classes=7, generator=torch.Generator().manual_seed(0), **how).eval()


def images(of, count=3):
    shape = (count, of.in_channels, of.image_size, of.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 60


NETWORKS = [
    ("alexnet", {"image_size": 95}),
    ("cifar_18pct", {}),
    ("cifar_11pct", {}),
    ("lenet5", {}),
    ("alexnet_owt", {}),
]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("name", "how"), NETWORKS)
def test_predictions_are_near(name, how, whole):
    exact = network(name, **how)
    half, x = fusion.BF16Network(exact, whole), images(exact)
    with torch.inference_mode():
        right, found = exact(x), half(x)
    assert found.dtype == torch.float32 and found.shape == (3, 7)
    apart = float((found - right).abs().max() / right.abs().max())
    assert 0 < apart < 0.03, apart
    assert all(weight.dtype == torch.float32 for weight in exact.parameters()), "the original was changed"


def test_weights_have_half_the_bytes():
    def size(module):
        return sum(weight.numel() * weight.element_size() for weight in module.parameters())

    exact = network("alexnet_small")
    assert size(fusion.BF16Network(exact, True)) * 2 == size(exact)
    linear = sum(size(layer) for layer in exact.modules() if type(layer) is nn.Linear)
    assert size(fusion.BF16Network(exact, False)) == size(exact) - linear // 2 < size(exact)


@pytest.mark.usefixtures("native")
def test_weights_are_packed_once_and_answered_with_without_the_kernel_too():
    """Packed or not, they are the same weights: what the kernel saves is the rounding of its inputs."""
    exact = network("alexnet", image_size=95)
    half, twin, x = fusion.BF16Network(exact, False), fusion.BF16Network(exact, False), images(exact)
    with torch.inference_mode():
        kernels.use("off")
        right = twin(x)
        kernels.use("auto")
        found = half(x)
        if half.network.fc6.packed is None:
            pytest.skip("no AVX2 here, so PyTorch's product is taken")
        packed = half.network.fc6.packed
        assert packed.dim() == 3 and torch.equal(half(x), found) and half.network.fc6.packed is packed
        assert half.network.fc6.weight is None
        assert torch.equal(linear.unpacked(packed, 4096), twin.network.fc6.weight)
        kernels.use("off")
        assert torch.equal(half(x), right)
    assert not torch.equal(found, right) and torch.allclose(found, right, atol=0.02 * float(right.abs().max()))


@pytest.mark.usefixtures("native")
def test_one_row_uses_packed_weights_and_more_rows_the_others():
    """Where bfloat16 is multiplied faster, all layers are in it: oneDNN is faster from two rows on."""
    exact = network("alexnet", image_size=95)
    whole, x = fusion.BF16Network(exact, True), images(exact, 5)
    with torch.inference_mode():
        kernels.use("off")
        right = whole(x[:1])
        kernels.use("auto")
        if not linear.fits(torch.ones(1, 4096), whole.network.fc7.weight):
            pytest.skip("no AVX2 here, so PyTorch's product is taken")
        whole(x)
        assert whole.network.fc6.packed is None
        few = whole(x[:1])
        assert torch.equal(linear.unpacked(whole.network.fc6.packed, 4096), whole.network.fc6.weight)
        packed = whole.network.fc6.packed
        assert torch.equal(whole(x[:1]), few) and whole.network.fc6.packed is packed
    assert torch.allclose(few, right, atol=0.02 * float(right.abs().max()))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_go_the_other_way(dtype):
    half = fusion.BF16Network(nn.Sequential(nn.Linear(40, 20)), False).network[0]
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        near, found = half(x), half(x.to(dtype))
    assert found.dtype == dtype and torch.allclose(found.float(), near, atol=0.02)


def test_no_moment_has_the_network_twice(monkeypatch):
    """What is halved is not copied in float32 first."""
    exact, copied = network("alexnet_small"), []
    plain = nn.Parameter.__deepcopy__
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda p, memo: copied.append(p.numel()) or plain(p, memo))
    fusion.BF16Network(exact, True)
    assert not copied
    fusion.BF16Network(exact, False)
    linear = sum(p.numel() for layer in exact.modules() if type(layer) is nn.Linear for p in layer.parameters())
    assert sum(copied) == sum(p.numel() for p in exact.parameters()) - linear
