"""Weights in oneDNN's order: the same bits as PyTorch's convolution and fully connected layer."""

import copy
import pickle

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from alexnet import kernels
from alexnet.kernels import backend, onednn
from alexnet.kernels.backend import FilterCache
from alexnet.models import create_model, fusion, layers
from alexnet.models.layers import Convolution

CASES = {  # channels, filters, kernel, stride, padding, groups
    "towers": (32, 64, 5, 1, 2, 2),
    "one tower": (16, 48, 3, 1, 1, 1),
    "pixels": (3, 32, 11, 4, 0, 1),
    "stride": (16, 32, 3, 2, 1, 1),
    "points": (32, 16, 1, 1, 0, 1),
}


@pytest.fixture(autouse=True)
def amx(monkeypatch):
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 on this processor")
    monkeypatch.setattr(backend, "has_amx", lambda: True)


def convolution(case):
    layer = layers.cache_filters(Convolution(*CASES[case]).to(torch.bfloat16))
    return layer.requires_grad_(False).to(memory_format=torch.channels_last)


def images(case, count=3, size=27):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, CASES[case][0], size, size, generator=generator).to(torch.bfloat16)
    return x.contiguous(memory_format=torch.channels_last)


def reference(layer, x, relu=False):
    with kernels.disabled("onednn"):
        return layer(x, relu=relu)


def forms(layer):
    return [form for form in layer.filter_cache._filters if form != "blocks"]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_convolutions_have_pytorchs_bits(case, relu):
    layer = convolution(case)
    for count, size in ((1, 27), (5, 27), (2, 31)):
        x = images(case, count, size)
        before = len(forms(layer))
        expected = reference(layer, x, relu)
        assert len(forms(layer)) == before
        out = layer(x, relu=relu)
        assert torch.equal(out, expected) and out.dtype == torch.bfloat16
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert len(forms(layer)) == before + 1, "one order of weights for each size of input"
        assert torch.equal(layer(x, relu=relu), expected) and len(forms(layer)) == before + 1


def test_images_that_are_not_channels_last():
    layer, x = convolution("towers"), images("towers").contiguous()
    assert torch.equal(layer(x), reference(layer, x))


def test_a_change_of_the_weights_is_noticed():
    layer, x = convolution("pixels"), images("pixels")
    before = layer(x)
    layer.weight.mul_(2)
    assert torch.equal(layer(x), reference(layer, x)) and not torch.equal(layer(x), before)


def test_the_oldest_of_many_forms_are_forgotten():
    cache, weight = FilterCache(), torch.zeros(1)
    for form in range(40):
        assert cache.get(weight, form, lambda _, form=form: form) == form
    assert list(cache._filters) == list(range(24, 40))


def test_fully_connected_layers_have_pytorchs_bits():
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*size, generator=generator).to(torch.bfloat16) for size in ((40, 64), (40,)))
    cache = FilterCache()
    for rows in (1, 7, 33):
        x = torch.randn(rows, 64, generator=generator).to(torch.bfloat16)
        assert onednn.fits(x, weight)
        assert torch.equal(onednn.linear(x, weight, bias, cache), torch.nn.functional.linear(x, weight, bias))
    assert len(cache._filters) == 1


def test_a_whole_network_and_its_copies():
    network = create_model("alexnet", num_classes=5, image_size=95, generator=torch.Generator().manual_seed(0))
    fast, x = fusion.BF16Network(network.eval(), True), 50 * torch.randn(3, 3, 95, 95)
    with torch.inference_mode():
        with kernels.disabled("onednn"):
            expected = fast(x)
        assert torch.equal(fast(x), expected)
        assert forms(fast.network.conv3) and fast.network.fc6.filter_cache._filters
        for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert not forms(twin.network.conv3)
            assert torch.equal(twin(x), expected)


def test_where_it_is_left_to_pytorch():
    layer, x = convolution("towers"), images("towers")
    assert onednn.fits(x, layer.weight)
    assert not onednn.fits(x.float(), layer.weight)
    assert not onednn.fits(x.clone().requires_grad_(), layer.weight)
    assert not onednn.fits(x[:0], layer.weight)
    assert not onednn.fits(x.to("meta"), layer.weight)
    with kernels.disabled("onednn"):
        assert not onednn.fits(x, layer.weight)
    with FlopCounterMode(display=False):
        layer(x)
    assert not forms(layer)
