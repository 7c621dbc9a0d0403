"""Pools and the norm across pixels, compiled: beside PyTorch's operations, and beside sums written out in float64."""

import itertools

import numpy as np
import pytest
import torch

from alexnet import kernels
from alexnet.kernels import pool_norm
from alexnet.models.layers import AveragePool, LocalResponseNorm, MaxPool, SpatialNorm

pytestmark = pytest.mark.usefixtures("native")
POOLS = [MaxPool(3, 2), MaxPool(3, 2, ceil=False), MaxPool(2, 2), MaxPool(5, 3), AveragePool(3, 2), AveragePool(5, 3)]
NORMS = [SpatialNorm(3, 0.05), SpatialNorm(4, 0.3, k=2.0), SpatialNorm(9, 1.0)]
SHAPES = [(2, 32, 16, 16), (3, 48, 7, 9), (1, 16, 5, 5)]


def random(shape, seed=0, dtype=torch.float32):
    """Quarters, so that many numbers of a window are equal."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return ((numbers * 4).round() / 4).to(dtype).contiguous(memory_format=torch.channels_last)


def both(layer, input, **how):
    """(output, gradient) of the kernel, and of PyTorch's operations."""
    results = []
    for wanted in (True, False):
        kernels.use("auto" if wanted else "off")
        x = input.clone().requires_grad_()
        y = layer(x * 1, **how)
        grad = random(y.shape, seed=1, dtype=y.dtype)
        results.append((y.detach(), torch.autograd.grad(y, x, grad)[0]))
    kernels.use("auto")
    return results


def taken(layer, input):
    fits = pool_norm.fits_spatial_norm(input, layer.beta) if isinstance(layer, SpatialNorm) else None
    return pool_norm.fits_pool(input, layer.window.kernel, layer.window.stride) if fits is None else fits


@pytest.mark.parametrize(("layer", "shape", "relu"), list(itertools.product(POOLS, SHAPES, (False, True))))
def test_pools_give_the_bits_of_pytorch(layer, shape, relu):
    """Sums run in the same order, and of equal numbers the first of a window gets the gradient."""
    input = random(shape)
    assert taken(layer, input)
    (output, gradient), (right, right_gradient) = both(layer, input, relu=relu)
    assert torch.equal(output, right) and torch.equal(gradient, right_gradient)


def test_ties_and_what_is_no_number_go_where_pytorch_sends_them():
    input = torch.zeros(1, 16, 5, 5)
    input[0, 1] = -1.0
    input[0, 2, 1, 1] = float("nan")
    input[0, 3] = float("-inf")
    for relu in (False, True):
        got, right = both(MaxPool(3, 2), input.contiguous(memory_format=torch.channels_last), relu=relu)
        assert all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in zip(got, right, strict=True))


@pytest.mark.parametrize(("layer", "shape"), list(itertools.product(NORMS, SHAPES)))
def test_the_norm_agrees_with_pytorch_to_rounding(layer, shape):
    input = random(shape)
    assert taken(layer, input)
    for got, right in zip(*both(layer, input), strict=True):  # a power of −3/4 by roots and by pow: a few units each
        assert torch.allclose(got, right, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("layer", [*POOLS, *NORMS], ids=str)
def test_bfloat16_is_rounded_once(layer):
    """PyTorch adds gradients of overlapping windows in bfloat16: so it is compared with float32, not with that."""
    input = random((2, 32, 9, 9), dtype=torch.bfloat16)
    output, gradient = both(layer, input)[0]
    right = both(layer, input.float())[0]
    assert output.dtype == gradient.dtype == torch.bfloat16
    assert torch.allclose(output.float(), right[0], rtol=2**-8, atol=1e-6)  # half a unit of the eighth bit
    assert torch.allclose(gradient.float(), right[1], rtol=2**-7, atol=2**-7)  # of a gradient rounded before, too


def test_the_norm_written_out():
    """The formula of the 2012 file in float64, pixel by pixel, and its gradient by differences."""
    numbers = np.random.default_rng(0).normal(size=(16, 4, 5))
    grad = np.random.default_rng(1).normal(size=(16, 4, 5))

    def norm(x):
        out = np.empty_like(x)
        for c, i, j in np.ndindex(x.shape):
            window = x[c, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            out[c, i, j] = x[c, i, j] * (2 + 0.4 / 9 * (window**2).sum()) ** -0.75
        return out

    input = torch.tensor(numbers, dtype=torch.float32)[None].requires_grad_()
    output = SpatialNorm(3, 0.4, k=2.0)(input)
    gradient = torch.autograd.grad(output, input, torch.tensor(grad, dtype=torch.float32)[None])[0][0]
    assert np.allclose(output.detach()[0], norm(numbers), atol=1e-6)
    for place in [(0, 0, 0), (3, 2, 2), (15, 3, 4), (7, 0, 3)]:
        step = np.zeros_like(numbers)
        step[place] = 1e-5
        difference = ((norm(numbers + step) - norm(numbers - step)) * grad).sum() / 2e-5
        assert gradient[place].item() == pytest.approx(difference, abs=1e-5)


def test_the_number_of_threads_changes_no_bit():
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append([both(layer, random((5, 32, 9, 9)))[0] for layer in (*POOLS, *NORMS)])
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_what_it_can_not_compute_goes_the_other_way():
    assert pool_norm.fits(torch.ones(1, 16, 4, 4))
    for input in (
        torch.ones(1, 12, 4, 4),
        torch.ones(1, 16, 4, 4, dtype=torch.float64),
        torch.ones(1, 16, 4, 4, device="meta"),
        torch.ones(0, 16, 4, 4),
        torch.ones(16, 4, 4),
    ):
        assert not pool_norm.fits(input)
    assert not pool_norm.fits_pool(torch.ones(1, 16, 4, 4), 2, 3), "pixels between the windows"
    assert not pool_norm.fits_pool(torch.ones(1, 16, 40, 40), 16, 2), "more places than a byte tells"
    assert not pool_norm.fits_spatial_norm(torch.ones(1, 16, 65, 64), 0.75)
    assert not pool_norm.fits_spatial_norm(torch.ones(1, 16, 4, 4), 0.5)
    kernels.use("off")
    assert not pool_norm.fits(torch.ones(1, 16, 4, 4))


NORMED = [
    (LocalResponseNorm(2), (3, 96, 13, 11), MaxPool(3, 2)),
    (LocalResponseNorm(1, 4, alpha=0.3, k=1.0), (1, 48, 9, 9), MaxPool(2, 2)),
    (LocalResponseNorm(2, 16, alpha=2.0), (2, 64, 7, 8), MaxPool(3, 2, ceil=False)),
    (LocalResponseNorm(1, 3, alpha=0.1), (1, 16, 12, 6), MaxPool(5, 3)),
]


@pytest.mark.parametrize(("norm", "shape", "pool"), NORMED, ids=str)
def test_a_norm_and_the_pool_behind_it(norm, shape, pool):
    """Beside the formula in float64, by automatic differentiation. Roots cost a few units of the last place."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert pool.fuses_norm(input, norm)
    output = pool(input, norm=norm)
    grad = torch.randn(output.shape, generator=generator)
    exact = input.detach().double().requires_grad_()
    rows = exact.square().view(shape[0], norm.towers, -1, *shape[2:])
    padded = torch.nn.functional.pad(rows, (0, 0, 0, 0, norm.size // 2, (norm.size - 1) // 2))
    sums = padded.unfold(2, norm.size, 1).sum(-1).view(shape)
    right = pool(exact * (norm.k + norm.alpha / norm.size * sums) ** -0.75)
    (got_grad,), (right_grad,) = (
        torch.autograd.grad(output, input, grad),
        torch.autograd.grad(right, exact, grad.double()),
    )
    assert (output - right).abs().max() < 1e-6 * right.abs().max()
    assert (got_grad - right_grad).abs().max() < 2e-6 * right_grad.abs().max()


@pytest.mark.parametrize(("norm", "shape", "pool"), NORMED, ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_a_norm_and_the_pool_behind_it_in_bfloat16(norm, shape, pool, relu):
    """Beside the layers in float64. The normalized values are rounded to bfloat16 before the pool: 2^-9 of a value."""
    input = random(shape).bfloat16()
    input[0, 0, 0, 0] = 0.0
    leaf = input.clone().requires_grad_()
    assert pool.fuses_norm(leaf, norm, relu)
    output = pool(leaf, relu=relu, norm=norm)
    exact = input.double().requires_grad_()
    with kernels.disabled():
        normed = norm.double()(exact.relu() if relu else exact)
        right = pool(normed)
    assert output.dtype == torch.bfloat16
    assert ((output - right).abs() <= 0.0042 * right.abs()).all()
    # The maximum of two values that bfloat16 rounds to the same one is the first of them, so the windows choose anew.
    chosen = pool(normed.bfloat16().double())
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    (got,) = torch.autograd.grad(output, leaf, grad)
    (wanted,) = torch.autograd.grad(chosen, exact, grad.double())
    assert torch.linalg.vector_norm(got - wanted) < 0.01 * torch.linalg.vector_norm(wanted)
    assert not relu or not got[input <= 0].any()


def test_a_norm_in_bfloat16_hands_nan_on():
    input = random((1, 48, 9, 9)).bfloat16()
    input[0, 5, 4, 4] = torch.nan
    output = MaxPool(3, 2)(input, relu=True, norm=LocalResponseNorm(1))
    assert output[0, 5].isnan().any() and not output[0, 20].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_and_its_pool_repeat_whatever_the_threads(dtype):
    norm, pool, before = LocalResponseNorm(2), MaxPool(3, 2), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            input = random((2, 64, 9, 9)).to(dtype).requires_grad_()
            output = pool(input, norm=norm)
            results.append((output.detach(), torch.autograd.grad(output.square().sum(), input)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


def test_which_norms_stay_alone():
    input, pool = random((1, 48, 9, 9)), MaxPool(3, 2)
    assert pool.fuses_norm(input, LocalResponseNorm(1))
    assert not pool.fuses_norm(input, LocalResponseNorm(2)), "24 channels a tower"
    assert not pool.fuses_norm(input, LocalResponseNorm(1, beta=0.5)), "another power"
    assert not pool.fuses_norm(input, LocalResponseNorm(1, 17)), "a window that does not fit the gaps"
    assert not pool.fuses_norm(input.double(), LocalResponseNorm(1))
    assert pool.fuses_norm(input.bfloat16(), LocalResponseNorm(1), relu=True)
    assert not pool.fuses_norm(input, LocalResponseNorm(1), relu=True), "float32 convolutions include their ReLU"
    kernels.use("off")
    assert not pool.fuses_norm(input, LocalResponseNorm(1))
