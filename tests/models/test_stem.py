"""A first convolution and its pool, compiled, beside the same layers one by one."""

import itertools

import pytest
import torch

from alexnet.models import kernel
from alexnet.models.layers import Convolution, MaxPool

# channels, kernels, side of a filter, stride, padding, side of a picture
CASES = [(3, 32, 5, 1, 2, 32), (1, 48, 3, 2, 1, 33), (3, 96, 11, 4, 0, 63), (4, 16, 3, 1, 0, 12), (3, 64, 5, 1, 2, 24)]
POOLS = [None, MaxPool(3, 2), MaxPool(2, 2)]


@pytest.fixture(autouse=True)
def fast(compiled):
    if not Convolution(3, 16, 3).pools(torch.ones(1, 3, 16, 16)):
        pytest.skip("no AVX-512 here, so PyTorch's convolution is taken")


def layer_of(case):
    channels, kernels, side, stride, padding, picture = case
    layer = Convolution(channels, kernels, side, stride, padding)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return layer, torch.randn(3, channels, picture, picture, generator=generator)


def answers(layer, input, relu, pool):
    output = layer(input, relu=relu, pool=pool)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, (layer.weight, layer.bias), grad)]


def error(got, right):
    return ((got - right).double().pow(2).mean().sqrt() / right.double().std()).item()


@pytest.mark.parametrize(("case", "relu", "pool"), list(itertools.product(CASES, (False, True), POOLS)), ids=str)
def test_it_is_the_layers_one_by_one(case, relu, pool):
    """Against float64: sums of a few hundred products and, for gradients, of some thousands, in float32."""
    layer, input = layer_of(case)
    assert layer.pools(input)
    got = answers(layer, input, relu, pool)
    right = answers(layer.double(), input.double(), relu, pool)
    assert [t.shape for t in got] == [t.shape for t in right]
    assert max(map(error, got, right)) < 3e-6


def test_it_repeats_bit_for_bit_and_threads_change_no_output():
    layer, input = layer_of(CASES[0])
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append(answers(layer, input, True, MaxPool(3, 2)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))
    assert max(map(error, results[0], results[1])) < 2e-6


def test_what_it_can_not_compute_goes_the_other_way():
    layer, input = layer_of(CASES[0])
    assert layer.pools(input)
    assert not layer.pools(input.clone().requires_grad_()), "it has no gradient for pictures"
    assert not layer.pools(torch.ones(1, 3, 300, 300)), "its maps do not fit a core's cache"
    assert not layer.pools(torch.ones(1, 3, 7, 7)), "lines shorter than eight pixels"
    assert not layer.pools(input.double()) and not layer.pools(input.to("meta"))
    assert not Convolution(16, 16, 3).pools(torch.ones(1, 16, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        assert not layer.pools(input)
    kernel.use(False)
    assert not layer.pools(input)
