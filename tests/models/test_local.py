"""Locally connected layers against loops in NumPy, float64: forward, and every gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alexnet.models.layers import LocallyConnected

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
