"""A first convolution and its pool, compiled, beside the same layers one by one."""

import itertools

import pytest
import torch

from alexnet import kernels
from alexnet.models import create_model
from alexnet.models.layers import Convolution, LocalResponseNorm, MaxPool

# channels, kernels, side of a filter, stride, padding, side of an image
CASES = [(3, 32, 5, 1, 2, 32), (1, 48, 3, 2, 1, 33), (3, 96, 11, 4, 0, 63), (4, 16, 3, 1, 0, 12), (3, 64, 5, 1, 2, 24)]
POOLS = [None, MaxPool(3, 2), MaxPool(2, 2)]


@pytest.fixture(autouse=True)
def fast(native):
    if not Convolution(3, 16, 3).fuses_pool(torch.ones(1, 3, 16, 16)):
        pytest.skip("no AVX2 here, so PyTorch's convolution is taken")


def layer_of(case):
    channels, kernels, side, stride, padding, image = case
    layer = Convolution(channels, kernels, side, stride, padding)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return layer, torch.randn(3, channels, image, image, generator=generator)


def predictions(layer, input, relu, pool):
    output = layer(input, relu=relu, pool=pool)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, (layer.weight, layer.bias), grad)]


def error(got, right):
    return ((got - right).double().pow(2).mean().sqrt() / right.double().std()).item()


@pytest.mark.parametrize(("case", "relu", "pool"), list(itertools.product(CASES, (False, True), POOLS)), ids=str)
def test_it_is_the_layers_one_by_one(case, relu, pool):
    """Against float64: sums of a few hundred multiplications and, for gradients, of some thousands, in float32."""
    layer, input = layer_of(case)
    assert layer.fuses_pool(input)
    got = predictions(layer, input, relu, pool)
    right = predictions(layer.double(), input.double(), relu, pool)
    assert [t.shape for t in got] == [t.shape for t in right]
    assert max(map(error, got, right)) < 3e-6


# conv1's kernels, filter, stride and image; the norm of towers, channels, alpha, k; the pool
NORMS = [
    ((3, 96, 11, 4, 0, 63), LocalResponseNorm(2), MaxPool(3, 2)),
    ((3, 96, 11, 4, 0, 63), LocalResponseNorm(1, 5, alpha=0.5), MaxPool(3, 2, ceil=False)),
    ((3, 64, 5, 1, 2, 24), LocalResponseNorm(2, 4, alpha=0.1, k=1.0), MaxPool(2, 2)),
    ((1, 32, 3, 2, 1, 33), LocalResponseNorm(1, 16, alpha=2.0), MaxPool(3, 3)),
]


@pytest.mark.parametrize(("case", "norm", "pool"), NORMS, ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_a_norm_between_them_too(case, norm, pool, relu):
    """Against float64. Roots add a few units of the last place to the sums' rounding."""
    layer, input = layer_of(case)
    assert layer.fuses_pool(input, norm)
    output = layer(input, relu=relu, pool=pool, norm=norm)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    got = [output.detach(), *torch.autograd.grad(output, (layer.weight, layer.bias), grad)]
    layer, between = layer.double(), layer.double()(input.double())
    output = pool(_norm64(norm, torch.relu(between) if relu else between))
    right = [output.detach(), *torch.autograd.grad(output, (layer.weight, layer.bias), grad.double())]
    assert max(map(error, got, right)) < 3e-6


def _norm64(norm, maps):
    """The formula in float64, sum by sum (``LocalResponseNorm`` itself computes in float32)."""
    per = maps.shape[1] // norm.towers
    sums = []
    for channel in range(maps.shape[1]):
        tower, place = divmod(channel, per)
        first, last = max(0, place - norm.size // 2), min(per, place + (norm.size + 1) // 2)
        sums.append(maps[:, tower * per + first : tower * per + last].square().sum(1))
    return maps * (norm.k + norm.alpha / norm.size * torch.stack(sums, 1)) ** -0.75


def test_the_first_four_layers_of_alexnet_go_together():
    """One image in inference is the work of all threads, line by line: the same bits as many images."""
    network = create_model("alexnet", num_classes=10).eval()
    assert network.conv1.fuses_pool(torch.ones(1, 3, 224, 224), network.norm1)
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 50
    with torch.inference_mode():
        seen = network.conv1(images, relu=True, norm=network.norm1, pool=network.pool1)
        alone = [network.conv1(one[None], relu=True, norm=network.norm1, pool=network.pool1) for one in images]
        apart = network.pool1(network.norm1(torch.relu(network.conv1(images))))
    assert torch.equal(torch.cat(alone), seen)
    assert error(seen, apart) < 3e-6
    assert not network.conv1.fuses_pool(images, LocalResponseNorm(1, 5, beta=0.5)), "another power"
    assert not network.conv1.fuses_pool(images, LocalResponseNorm(4)), "24 channels a tower"


def test_it_repeats_bit_for_bit_and_threads_change_no_output():
    layer, input = layer_of(CASES[0])
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append(predictions(layer, input, True, MaxPool(3, 2)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))
    assert max(map(error, results[0], results[1])) < 2e-6


def test_what_it_can_not_compute_goes_the_other_way():
    layer, input = layer_of(CASES[0])
    assert layer.fuses_pool(input)
    assert not layer.fuses_pool(input.clone().requires_grad_()), "it has no gradient for images"
    assert not layer.fuses_pool(torch.ones(1, 3, 300, 300)), "its maps do not fit a core's cache"
    assert not layer.fuses_pool(torch.ones(1, 3, 7, 7)), "lines shorter than eight pixels"
    assert not layer.fuses_pool(input.double()) and not layer.fuses_pool(input.to("meta"))
    assert not Convolution(16, 16, 3).fuses_pool(torch.ones(1, 16, 16, 16))
    with torch.autocast("cpu", torch.float16):
        assert not layer.fuses_pool(input)
    kernels.use("off")
    assert not layer.fuses_pool(input)
