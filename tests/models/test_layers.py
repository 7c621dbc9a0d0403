"""Every layer against a slow formula in float64, written here."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from alexnet import kernels
from alexnet.errors import ModelError
from alexnet.kernels import lrn, native_kernels
from alexnet.models.layers import (
    AveragePool,
    Convolution,
    Dropout,
    Flatten,
    LocallyConnected,
    LocalResponseNorm,
    MaxPool,
    SpatialNorm,
    Window,
    set_generator,
)

# float32 keeps 24 bits; a norm of five squares, a root and two multiplications lose at most four of them.
FLOAT32 = 1e-6


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def distance(ours: Tensor, right: Tensor) -> float:
    """Largest difference, in units of the largest right value."""
    return ((ours.double() - right).abs().max() / right.abs().max()).item()


def slow_norm(x: Tensor, towers: int, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """The formula of section 3.3 with α / size, channel by channel, in float64."""
    per_tower = x.shape[1] // towers
    channels, maps = [], x.unbind(1)
    for i in range(len(maps)):
        first = i // per_tower * per_tower
        window = range(max(first, i - size // 2), min(first + per_tower, i + (size + 1) // 2))
        total = sum(maps[j] ** 2 for j in window)
        channels.append(maps[i] / (k + alpha / size * total) ** beta)
    return torch.stack(channels, 1)


NORMS = {
    "paper, two towers": (96, {"towers": 2}),
    "paper, one tower": (96, {"towers": 1}),
    "odd channels": (13, {"towers": 1}),
    "one channel": (1, {"towers": 1}),
    "window larger than the tower": (6, {"towers": 2, "size": 9}),
    "even window": (8, {"towers": 1, "size": 4}),
    "another beta": (10, {"towers": 1, "beta": 0.5}),
    "CIFAR-10, 11 %": (64, {"towers": 1, "size": 9, "alpha": 1e-3, "k": 1.0}),
}


@pytest.fixture(params=["pytorch", "native", "triton"])
def norm(request, monkeypatch):
    """All ways in which a norm is computed, one after the other; a GPU's by Triton's interpreter."""
    wanted = request.param == "native"
    if request.param == "triton":
        if torch.cuda.is_available():
            pytest.skip("a GPU computes it, below")
        pytest.importorskip("triton", reason="Triton comes with PyTorch for GPUs")
        monkeypatch.setattr(lrn, "fits_triton", lambda rows: True)
    if wanted and not native_kernels.build():
        pytest.skip("no C compiler builds the norm here")
    kernels.use("auto" if wanted else "off")
    yield request.param
    kernels.use("auto")


@pytest.mark.usefixtures("norm")
@pytest.mark.parametrize(("channels", "options"), NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_norm_and_its_gradient_follow_the_formula(channels, options, memory):
    x = random(2, channels, 5, 4, scale=200).contiguous(memory_format=memory)  # 200: sums are as large as k
    x.requires_grad_()
    slow = x.detach().double().requires_grad_()
    weights = random(*x.shape, seed=1)
    full = {"towers": 1, "size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0} | options
    ours, right = LocalResponseNorm(**options)(x), slow_norm(slow, **full)
    (ours * weights).sum().backward()
    (right * weights.double()).sum().backward()
    assert ours.shape == x.shape and ours.dtype == torch.float32
    assert distance(ours, right) < FLOAT32
    assert distance(x.grad, slow.grad) < FLOAT32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("channels", "options"), NORMS.values(), ids=NORMS)
def test_norm_on_a_gpu_follows_the_formula(channels, options):
    x = random(2, channels, 5, 4, scale=200).cuda().requires_grad_()
    slow = x.detach().double().requires_grad_()
    full = {"towers": 1, "size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0} | options
    ours, right = LocalResponseNorm(**options)(x), slow_norm(slow, **full)
    weights = random(*x.shape, seed=1).cuda()
    (ours * weights).sum().backward()
    (right * weights.double()).sum().backward()
    assert lrn.fits_triton(x.permute(0, 2, 3, 1).reshape(-1, channels))
    assert distance(ours, right) < FLOAT32 and distance(x.grad, slow.grad) < FLOAT32


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from alexnet.kernels import lrn_triton as ours
fixed = {"beta": 0.75, "below": 2, "above": 2, "block": ours.BLOCK}
types = {"weight": "fp32", "k": "fp32", "count": "i32", "channels": "i32"} | dict.fromkeys(fixed, "constexpr")
for function, numbers in ((ours._forward, "*bf16"), (ours._backward, "*bf16"), (ours._backward, "*fp32")):
    signature = {name: types.get(name, numbers) for name in function.arg_names}
    made = triton.compile(ASTSource(function, signature, constexprs=fixed), target=GPUTarget("cuda", 90, 32))
    each = ours.BLOCK // (made.metadata.num_warps * 32)
    print(made.asm["cubin"][:4] == b"\x7fELF", made.asm["ptx"].count("ld.global") / each)
"""


@pytest.mark.slow
def test_triton_compiles_the_norm_for_a_gpu_that_is_not_there(tmp_path):
    """Down to the machine code of a Hopper chip: what the interpreter runs could be what no GPU can."""
    pytest.importorskip("triton", reason="Triton comes with PyTorch for GPUs")
    asked = os.environ | {"TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    made = subprocess.run([sys.executable, "-c", COMPILE], env=asked, capture_output=True, text=True)
    # numbers read for each that is written: five of the rows; nine, and five of the gradient: none is read twice
    assert made.stdout.split() == ["True", "5.0", "True", "14.0", "True", "14.0"], made.stderr


@pytest.mark.usefixtures("norm")
def test_norm_gradient_is_the_slope():
    """A central difference of the formula in float64: independent of anybody's autograd."""
    x, direction = random(1, 12, 3, 3, scale=200), random(1, 12, 3, 3, seed=1)
    x.requires_grad_()
    (ours,) = torch.autograd.grad(LocalResponseNorm(2)(x).square().sum(), x)
    step = 1e-3 * direction.double()
    ahead, behind = (
        slow_norm(x.detach().double() + s, 2, 5, 1e-4, 0.75, 2.0).square().sum().item() for s in (step, -step)
    )
    multiplications = ours * direction  # they cancel, so their sizes tell how exact the sum can be
    assert multiplications.sum().item() == pytest.approx(
        (ahead - behind) / 2e-3, abs=FLOAT32 * multiplications.abs().sum().item()
    )


def test_second_derivatives_of_the_norm(norm):
    """As a gradient penalty takes them. They were those of a gradient that does not depend on the input."""
    x = random(1, 12, 3, 3, scale=200).requires_grad_()
    slow, found = x.detach().double().requires_grad_(), []
    for input, function in ((x, LocalResponseNorm(2)), (slow, lambda x: slow_norm(x, 2, 5, 1e-4, 0.75, 2.0))):
        if norm == "triton" and input is x:
            with pytest.raises(ModelError, match="no second derivatives"):
                torch.autograd.grad(function(input).square().sum(), input, create_graph=True)
            return
        (gradient,) = torch.autograd.grad(function(input).square().sum(), input, create_graph=True)
        found += torch.autograd.grad(gradient.square().sum(), input)
    assert distance(*found) < 1e-5


@pytest.mark.usefixtures("norm")
def test_norm_of_one_tower_is_pytorchs():
    x = random(2, 96, 5, 5, scale=200)
    right = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2)(x)
    assert distance(LocalResponseNorm(1)(x), right.double()) < FLOAT32


def test_norm_over_many_pieces(norm):
    """More rows than fit in one piece of work, and not a multiple: 262,144 elements a piece (Triton: 1,024)."""
    side = 30 if norm == "triton" else 300
    x = random(1, 4, side, side, scale=200).requires_grad_()
    slow = x.detach().double().requires_grad_()
    ours, right = LocalResponseNorm(2)(x), slow_norm(slow, 2, 5, 1e-4, 0.75, 2.0)
    ours.square().sum().backward()
    right.square().sum().backward()
    assert distance(ours, right) < FLOAT32 and distance(x.grad, slow.grad) < FLOAT32


def test_norm_in_bfloat16_computes_in_float32(norm):
    x = random(2, 96, 5, 5, scale=200).bfloat16().requires_grad_()
    slow = x.detach().double().requires_grad_()
    ours, right = LocalResponseNorm(2)(x), slow_norm(slow, 2, 5, 1e-4, 0.75, 2.0)
    ours.sum().backward()
    right.sum().backward()
    assert ours.dtype == x.grad.dtype == torch.bfloat16
    # Rounded once, at the end, to 8 bits: at most 2^-9 of the value; Triton's interpreter cuts off instead.
    least = 2**-7 if norm == "triton" else 2**-8
    assert ((ours.double() - right).abs() <= right.abs() * least).all()
    assert distance(x.grad, slow.grad) < least


@pytest.mark.usefixtures("norm")
def test_norm_under_autocast_stays_in_float32():
    x = random(1, 16, 3, 3, scale=200)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LocalResponseNorm(2)(x), LocalResponseNorm(2)(x.clone()))
        assert distance(LocalResponseNorm(2)(x), slow_norm(x.double(), 2, 5, 1e-4, 0.75, 2.0)) < FLOAT32


@pytest.mark.usefixtures("norm")
@pytest.mark.parametrize("size", [3, 4, 5])
def test_towers_do_not_see_each_other(size):
    x = random(1, 96, 4, 4, scale=100)
    changed = x.clone()
    changed[:, 48] += 300
    two, one = LocalResponseNorm(2, size), LocalResponseNorm(1, size)
    assert torch.equal(two(x)[:, 47], two(changed)[:, 47])
    assert not torch.equal(two(x)[:, 49], two(changed)[:, 49])
    reaches_down = size > 2
    assert torch.equal(one(x)[:, 47], one(changed)[:, 47]) != reaches_down


def slow_spatial(x: Tensor, size: int, scale: float, beta: float, k: float) -> Tensor:
    out = torch.empty_like(x)
    for r in range(x.shape[2]):
        for c in range(x.shape[3]):
            rows = slice(max(0, r - size // 2), r + (size + 1) // 2)
            columns = slice(max(0, c - size // 2), c + (size + 1) // 2)
            total = (x[:, :, rows, columns] ** 2).sum((2, 3))
            out[:, :, r, c] = x[:, :, r, c] / (k + scale / size**2 * total) ** beta
    return out


@pytest.mark.parametrize("size", [1, 3, 4, 5])
def test_spatial_norm_follows_the_formula(size):
    x = random(2, 3, 7, 6, scale=100)
    right = slow_spatial(x.double(), size, 5e-4, 0.75, 1.0)
    assert distance(SpatialNorm(size, 5e-4)(x), right) < FLOAT32
    ours = SpatialNorm(size, 5e-4)(x.bfloat16())
    assert ours.dtype == torch.bfloat16 and distance(ours, right) < 2**-6


def count_windows(size: int, kernel: int, stride: int, padding: int, ceil: bool) -> int:
    """Windows, one by one, until one has reached the end (ceil), or while they still fit (not ceil)."""
    count, start = 1, 0
    while start + kernel < size + 2 * padding:
        start += stride
        count += int(ceil or start + kernel <= size + 2 * padding)
    return count


@given(
    size=st.integers(1, 300),
    kernel=st.integers(1, 12),
    stride=st.integers(1, 6),
    padding=st.integers(0, 5),
    ceil=st.booleans(),
)
@settings(deadline=None)
def test_window_size_is_the_count_of_windows(size, kernel, stride, padding, ceil):
    if size + 2 * padding < kernel:
        return
    window = Window(kernel, stride, padding, ceil)
    count = count_windows(size, kernel, stride, padding, ceil)
    assert window.out_size(size) == count
    assert window.overhang(size) == max(0, (count - 1) * stride + kernel - size - 2 * padding)
    assert window.formula(size).endswith(f"+ 1 = {count}")


def test_formulas():
    assert Window(11, 4, 0).formula(224) == "⌈(224 − 11 + 2·0) / 4⌉ + 1 = 55"
    assert Window(11, 4, 0).formula(227) == "(227 − 11 + 2·0) / 4 + 1 = 55"
    assert Window(11, 4, 0, ceil=False).formula(224) == "⌊(224 − 11 + 2·0) / 4⌋ + 1 = 54"
    assert Window(5, 1, 2).formula(27) == "(27 − 5 + 2·2) / 1 + 1 = 27"
    assert Window(11, 4, 0).overhang(224) == 3 and Window(11, 4, 0).overhang(227) == 0


def slow_convolution(x: Tensor, layer: Convolution) -> Tensor:
    """Window by window in float64, over a canvas of zeros that is large enough for all."""
    kernel, stride, padding, _ = layer.window
    height, width = (layer.window.out_size(size) for size in x.shape[2:])
    canvas = torch.zeros(*x.shape[:2], 2 * padding + x.shape[2] + stride, 2 * padding + x.shape[3] + stride).double()
    canvas[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]] = x
    out = torch.empty(len(x), layer.out_channels, height, width, dtype=torch.float64)
    seen, per_group = x.shape[1] // layer.groups, layer.out_channels // layer.groups
    for o in range(layer.out_channels):
        first = o // per_group * seen
        for r in range(height):
            for c in range(width):
                patch = canvas[:, first : first + seen, r * stride : r * stride + kernel, c * stride :][..., :kernel]
                out[:, o, r, c] = (patch * layer.weight[o].double()).sum((1, 2, 3)) + layer.bias[o].double()
    return out.detach()


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "groups"),
    [((14, 17), 11, 4, 0, 1), ((9, 10), 5, 3, 2, 2), ((6, 6), 3, 1, 1, 2), ((8, 7), 2, 3, 0, 1)],
)
def test_convolution_reads_zeros_past_the_edge(size, kernel, stride, padding, groups):
    torch.manual_seed(0)
    layer = Convolution(4, 6, kernel, stride, padding, groups)
    x = random(2, 4, *size)
    assert distance(layer(x), slow_convolution(x, layer)) < 1e-5  # sums of up to 484 float32 multiplications
    assert distance(layer(x.contiguous(memory_format=torch.channels_last)), slow_convolution(x, layer)) < 1e-5


def test_224_pixels_give_55_with_zeros_right_and_bottom():
    layer = Convolution(1, 1, 11, stride=4)
    x = random(1, 1, 224, 224)
    padded = torch.zeros(1, 1, 227, 227)
    padded[:, :, :224, :224] = x
    assert layer(x).shape == (1, 1, 55, 55)
    assert torch.equal(layer(x), nn.functional.conv2d(padded, layer.weight, layer.bias, stride=4))


def test_windows_that_stick_out_are_dropped_by_floor():
    """Caffe's and PyTorch's sizes: (105 − 11) / 4 leaves two pixels that no window sees."""
    x, layer = random(1, 2, 105, 105), Convolution(2, 3, 11, stride=4, ceil=False)
    assert torch.equal(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias, stride=4))
    assert layer(x).shape == (1, 3, 24, 24) and layer.window.out_size(105) == 24 and layer.window.overhang(105) == 0
    assert torch.equal(MaxPool(3, 2, ceil=False)(x[..., :24, :24]), nn.functional.max_pool2d(x[..., :23, :23], 3, 2))
    assert MaxPool(3, 2, ceil=False).window.out_size(24) == 11 and MaxPool(3, 2).window.out_size(24) == 12


def slow_pool(x: Tensor, kernel: int, stride: int, reduce) -> Tensor:
    out = []
    for r in range(1 + max(0, math.ceil((x.shape[2] - kernel) / stride))):
        row = [
            reduce(x[:, :, r * stride : r * stride + kernel, c * stride : c * stride + kernel])
            for c in range(1 + max(0, math.ceil((x.shape[3] - kernel) / stride)))
        ]
        out.append(torch.stack(row, -1))
    return torch.stack(out, -2)


@given(
    height=st.integers(3, 12),
    width=st.integers(3, 12),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
)
@settings(deadline=None, max_examples=50)
def test_pools_see_the_pixels_that_exist(height, width, kernel, stride):
    if stride > kernel:  # PyTorch drops a window that lies outside altogether
        return
    x = random(2, 3, height, width).double() - 5  # all negative: a zero read past the edge would win
    right = slow_pool(x, kernel, stride, lambda patch: patch.amax((2, 3)))
    assert torch.equal(MaxPool(kernel, stride)(x), right)
    assert right.shape[2:] == tuple(MaxPool(kernel, stride).window.out_size(size) for size in (height, width))
    mean = slow_pool(x, kernel, stride, lambda patch: patch.mean((2, 3)))
    assert distance(AveragePool(kernel, stride)(x), mean) < 1e-12


def test_flatten_keeps_channels_outermost():
    x = random(2, 4, 3, 3)
    right = torch.stack([torch.cat([image[c].reshape(-1) for c in range(4)]) for image in x])
    assert torch.equal(Flatten(3)(x), right)
    assert torch.equal(Flatten(3)(x.contiguous(memory_format=torch.channels_last)), right)


def test_flatten_stretches_smaller_maps():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    # Bilinear, pixel centers: rows and columns at 0, 1/4, 3/4, 1 of the way.
    at = torch.tensor([0, 0.25, 0.75, 1])
    assert torch.allclose(Flatten(4)(x), (2 * at[:, None] + at[None, :]).reshape(1, 16))
    assert torch.allclose(Flatten(3)(torch.full((1, 2, 1, 1), 7.0)), torch.full((1, 18), 7.0))


def test_dropout_repeats_scales_and_rests():
    x = torch.full((200, 500), 3.0)
    layer = Dropout(0.25)

    def draw(seed: int) -> Tensor:
        layer.generator = torch.Generator().manual_seed(seed)
        return layer(x)

    first = draw(1)
    assert torch.equal(first, draw(1)) and not torch.equal(first, draw(2))
    assert set(first.unique().tolist()) == {0.0, 4.0}
    assert (first == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)  # 7 standard deviations
    assert layer.eval()(x) is x
    assert Dropout(0)(x) is x


def test_dropout_passes_gradients_where_it_passes_values():
    x = torch.ones(1000, requires_grad=True)
    out = Dropout(0.5)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_dropout_draws_nothing_global():
    layer = Dropout(0.5)
    set_generator(nn.Sequential(nn.ReLU(), layer), torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    layer(torch.ones(10))
    assert torch.equal(state, torch.get_rng_state())


def test_layers_say_what_they_are():
    assert repr(MaxPool(3, 2)) == "MaxPool(3, stride=2)"
    assert repr(MaxPool(3, 2, ceil=False)) == "MaxPool(3, stride=2, ceil=False)"
    assert repr(AveragePool(3, 2)) == "AveragePool(3, stride=2)"
    assert repr(LocalResponseNorm(2)) == "LocalResponseNorm(towers=2, size=5, alpha=0.0001, beta=0.75, k=2.0)"
    assert repr(SpatialNorm(3, 5e-5)) == "SpatialNorm(size=3, scale=5e-05, beta=0.75, k=1.0)"
    assert repr(Flatten(6)) == "Flatten(side=6)" and repr(Dropout(0.5)) == "Dropout(p=0.5)"


# ---- Locally connected layers against loops in NumPy, float64: forward, and every gradient.

CASES = {  # side, kernel, stride, padding, side of the output
    "CIFAR-10": (6, 3, 1, 1, 6),
    "a window sticks out": (8, 3, 2, 0, 4),
    "stride, padding and one sticks out": (6, 4, 3, 1, 3),
    "one pixel": (1, 3, 1, 1, 1),
}


def make(side: int, kernel: int, stride: int, padding: int) -> LocallyConnected:
    layer = LocallyConnected(3, 5, side, kernel, stride, padding)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    return layer


def images(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def slow(x: np.ndarray, w: np.ndarray, b: np.ndarray, g: np.ndarray, stride: int, padding: int):
    """The output, and the gradients of Σ g·output with respect to input, weight and bias."""
    kernel, (height, width) = w.shape[2], w.shape[4:]
    canvas = np.zeros((*x.shape[:2], x.shape[2] + 2 * padding + stride, x.shape[3] + 2 * padding + stride))
    inside = (..., slice(padding, padding + x.shape[2]), slice(padding, padding + x.shape[3]))
    canvas[inside] = x
    out, gw, gcanvas = np.zeros((len(x), len(w), height, width)), np.zeros_like(w), np.zeros_like(canvas)
    for r in range(height):
        for c in range(width):
            at = (..., slice(r * stride, r * stride + kernel), slice(c * stride, c * stride + kernel))
            for n in range(len(x)):
                for k in range(len(w)):
                    out[n, k, r, c] = (canvas[n][at] * w[k, ..., r, c]).sum() + b[k, r, c]
                    gw[k, ..., r, c] += g[n, k, r, c] * canvas[n][at]
                    gcanvas[n][at] += g[n, k, r, c] * w[k, ..., r, c]
    return out, gcanvas[inside], gw, g.sum(0)


@pytest.mark.parametrize(("side", "kernel", "stride", "padding", "out"), CASES.values(), ids=CASES)
def test_forward_and_gradients_follow_the_formula(side, kernel, stride, padding, out):
    layer, x = make(side, kernel, stride, padding), images(side).requires_grad_()
    ours = layer(x)
    assert ours.shape == (2, 5, out, out)
    g = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    found = [ours, *torch.autograd.grad((ours * g).sum(), [x, layer.weight, layer.bias])]
    arrays = (tensor.detach().double().numpy() for tensor in (x, layer.weight, layer.bias, g))
    for tensor, right in zip(found, slow(*arrays, stride, padding), strict=True):
        # float32 sums of at most 48 multiplications of order 1
        assert np.abs(tensor.detach().numpy() - right).max() < 2e-5


def test_the_same_filters_everywhere_are_a_convolution():
    layer = make(6, 3, 1, 1)
    kernel = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        layer.weight[:] = kernel[..., None, None]
        layer.bias.zero_()
    assert torch.allclose(layer(images(6)), F.conv2d(images(6), kernel, padding=1), atol=1e-5)


def test_one_pixel_moves_only_the_windows_that_hold_it():
    layer, x = make(6, 3, 1, 1), images(6)
    changed = x.clone()
    changed[:, :, 2, 4] += 1
    moved = (layer(x) != layer(changed)).any(1)[0]
    assert moved.nonzero().tolist() == [[r, c] for r in (1, 2, 3) for c in (3, 4, 5)]


def test_smaller_maps_are_stretched():
    layer = make(6, 3, 1, 1)
    stretched = F.interpolate(images(4), (6, 6), mode="bilinear", align_corners=False)
    assert torch.equal(layer(images(4)), layer(stretched))


def test_it_says_what_it_is():
    assert repr(make(6, 3, 1, 1)) == "LocallyConnected(3, 5, side=6, 3, stride=1, padding=1)"


@pytest.mark.parametrize(("side", "kernel", "stride", "padding", "out"), CASES.values(), ids=CASES)
def test_exporters_get_the_same_numbers(side, kernel, stride, padding, out):
    layer, x = make(side, kernel, stride, padding), images(side)
    exported = torch.export.export(layer, (x,)).module()
    assert torch.allclose(exported(x), layer(x), atol=2e-5)
    assert any("im2col" in str(node.target) for node in exported.graph.nodes)


def test_bfloat16_and_its_gradients():
    layer, x = make(6, 3, 1, 1), images(6).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x)
    exact = layer(x)
    found = torch.autograd.grad(rounded.float().sum(), [x, layer.weight, layer.bias])
    for tensor, right in zip(found, torch.autograd.grad(exact.sum(), [x, layer.weight, layer.bias]), strict=True):
        assert (tensor - right).norm() < 0.01 * right.norm()  # bfloat16 has 8 digits of 2
    assert (rounded - exact).norm() < 0.01 * exact.norm()
