"""Rearranged first convolutions against PyTorch's own, in float64."""

import pytest
import torch
import torch.nn.functional as F

from alexnet import kernels
from alexnet.kernels import backend, first_conv, native_kernels
from alexnet.models import create_model
from alexnet.models.layers import Convolution

CASES = {  # channels, kernels, side, stride, padding, ceil; height, width of the images
    "2012: a window sticks out": (3, 6, 11, 4, 0, True, 64, 64),
    "Caffe: 227 pixels": (3, 4, 11, 4, 0, False, 67, 67),
    "torchvision: pixels that no window reaches": (3, 4, 11, 4, 2, False, 64, 65),
    "ResNet": (3, 4, 7, 2, 3, False, 32, 40),
    "gray, a filter of the stride's size": (1, 4, 3, 3, 0, True, 20, 21),
    "a stride wider than the filter": (2, 4, 2, 3, 1, False, 20, 21),
}


@pytest.fixture(autouse=True)
def rearranged():
    kernels.use("always", "space_to_depth")
    yield
    kernels.use("auto", "space_to_depth")


def layer(channels: int, kernels: int, side: int, stride: int, padding: int, ceil: bool) -> Convolution:
    torch.manual_seed(0)
    return Convolution(channels, kernels, side, stride, padding, ceil=ceil)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients_are_the_convolutions(case, memory, monkeypatch):
    *shape, height, width = case
    ours = layer(*shape).double()
    x = torch.randn(2, shape[0], height, width).double().contiguous(memory_format=memory)
    shapes = []
    original = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, *rest: shapes.append(x.shape) or original(x, *rest))
    found = ours(x)
    assert [shape[1] for shape in shapes] == [shape[3] ** 2 * shape[0]]  # once, on blocks
    kernels.use("off", "space_to_depth")
    right = ours(x)
    assert found.shape == right.shape and torch.allclose(found, right, atol=1e-12)
    g = torch.randn_like(right)
    for one, other in zip(
        *(torch.autograd.grad((out * g).sum(), list(ours.parameters())) for out in (found, right)), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-10)  # sums of some hundred multiplications of order 1


def test_a_hundred_steps_end_where_plain_ones_do():
    """Float32, whose sums differ in their last digit; the rate is small, so that nothing is amplified."""
    losses = []
    for wanted in (True, False):
        kernels.use("always" if wanted else "off", "space_to_depth")
        torch.manual_seed(1)
        network = torch.nn.Sequential(layer(3, 8, 11, 4, 0, True), torch.nn.Flatten(), torch.nn.Linear(8 * 64, 4))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        x, y = torch.randn(16, 3, 36, 36), torch.randint(4, (16,))
        for _ in range(100):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_autocast_rounds_once():
    ours, x = layer(3, 8, 11, 4, 0, True), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(x)
        kernels.use("off", "space_to_depth")
        right = ours(x)
    assert found.dtype == right.dtype == torch.bfloat16
    assert (found.float() - right.float()).norm() < 2**-7 * right.float().norm()


def test_the_whole_network_gives_close_predictions():
    network, x = create_model("alexnet", num_classes=7).eval(), 50 * torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found = network(x)
        kernels.use("off", "space_to_depth")
        assert torch.allclose(found, network(x), rtol=1e-4, atol=1e-6)


def test_where_it_is_left_to_pytorch(monkeypatch):
    ours, x = layer(3, 8, 11, 4, 0, True), torch.randn(1, 3, 64, 64)
    asked = []
    blocks = first_conv.blocks
    monkeypatch.setattr(first_conv, "blocks", lambda *a: asked.append(1) or blocks(*a))
    ours(x.clone().requires_grad_())  # a gradient for the image is wanted
    layer(8, 8, 3, 2, 0, True)(torch.randn(1, 8, 9, 9))  # many channels
    layer(3, 8, 3, 1, 0, True)(x)  # no stride
    kernels.use("auto", "space_to_depth")
    ours(x)  # a processor
    assert not asked
    kernels.use("always", "space_to_depth")
    ours(x)
    assert asked


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_for_amx_equal_pytorchs(case, dtype, monkeypatch):
    if not native_kernels.build():
        pytest.skip("needs a C compiler")
    kernels.use("auto", "space_to_depth")
    monkeypatch.setattr(backend, "has_amx", lambda: True)
    *shape, height, width = case
    ours, x = layer(*shape), torch.randn(2, shape[0], height, width).to(dtype)
    geometry = ours._geometry(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert first_conv.fits_space_to_depth(x, ours.weight, geometry, 1)
        blocks = -(-ours.window.kernel // geometry.stride)
        size = geometry.out_height - 1 + blocks, geometry.out_width - 1 + blocks
        got = first_conv._blocks(x, geometry, *size)
        with kernels.disabled("first_conv"):
            right = first_conv._blocks(x, geometry, *size)
    assert got.dtype == torch.bfloat16 and torch.equal(got, right)
    assert not first_conv.fits_space_to_depth(x.float(), ours.weight, geometry, 1), "float32 is left to first_conv.c"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_the_way_unless_kernels_are_off():
    kernels.use("auto", "space_to_depth")
    ours, x = layer(3, 8, 11, 4, 0, True).cuda(), torch.randn(1, 3, 64, 64, device="cuda")
    filters = ours._geometry(x)
    assert first_conv.fits_space_to_depth(x, ours.weight, filters, 1)
    found = ours(x)
    kernels.use("off")
    assert not first_conv.fits_space_to_depth(x, ours.weight, filters, 1)
    right = ours(x)
    kernels.use("auto")
    assert torch.allclose(found, right, atol=1e-2)  # TF32
