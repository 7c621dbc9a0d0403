"""Training in bfloat16 by multiplications of float32: what autocast means, and finer than PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from alexnet import kernels
from alexnet.kernels import backend, first_conv, winograd
from alexnet.models import create_model
from alexnet.models.layers import Convolution, LocalResponseNorm, MaxPool

CPU = torch.device("cpu")
SLOW, FAST = {"avx512_bf16": True, "cpu_name": "Intel Xeon"}, {"amx_bf16": True, "cpu_name": "Intel Xeon"}


@pytest.fixture(autouse=True)
def slow_in_halves(monkeypatch, native):
    """Whatever this processor is, its multiplications in bfloat16 are to count as slow."""
    if not winograd.fits(torch.ones(32, 16, 16, 16), torch.ones(16, 16, 3, 3), 1, 1, 1):
        pytest.skip("no AVX2 here, so PyTorch's convolution is taken")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: SLOW)


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [(FAST, True), ({"avx512_bf16": True, "cpu_name": "AMD EPYC 9R14"}, True), (SLOW, False), ({}, False)],
)
def test_where_it_is_faster_goes_by_what_the_processor_is(monkeypatch, cpu, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert backend.bf16_is_faster(CPU) == expected and not backend.bf16_is_faster(torch.device("mps"))


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def halved(tensor):
    return tensor.detach().to(torch.bfloat16).double()


def error(got, right):
    return ((got - right).double().pow(2).mean().sqrt() / right.double().pow(2).mean().sqrt()).item()


def behind_images():
    """A first convolution, with what alexnet has behind it, and the same in float64."""
    layer, norm, pool = Convolution(3, 32, 11, stride=4), LocalResponseNorm(2), MaxPool(3, 2)

    def right(input, weight, bias):
        maps = F.conv2d(F.pad(input, (0, 3, 0, 3)), weight, bias, stride=4).relu().unflatten(1, (2, 16))
        windows = F.pad(maps.square(), (0, 0, 0, 0, 2, 2)).unfold(2, 5, 1).sum(-1)
        return F.max_pool2d((maps * (2 + 1e-4 / 5 * windows) ** -0.75).flatten(1, 2), 3, 2, ceil_mode=True)

    return layer, lambda x: layer(x, relu=True, norm=norm, pool=pool), drawn(4, 3, 96, 96) * 50, right


def inside(side):
    """A convolution of towers, and the same in float64."""
    layer = Convolution(32, 64, side, padding=side // 2, groups=2)

    def right(input, weight, bias):
        return F.conv2d(input, weight, bias, padding=side // 2, groups=2).relu()

    return layer, lambda x: layer(x, relu=True), drawn(9, 32, 13, 13).relu(), right


@pytest.mark.parametrize("problem", [behind_images, lambda: inside(3), lambda: inside(5)], ids=["first", "3", "5"])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
def test_a_convolution_of_rounded_numbers(problem, given):
    """Against the multiplications of the rounded numbers in float64: what is left is the rounding of what comes out.

    That is 2⁻⁹ of each number at most, and as much of each gradient: 1.6e-3 of their size, measured.
    """
    layer, compute, input, formula = problem()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(drawn(*parameter.shape, seed=2) * 0.1)
    input = input.to(given).requires_grad_(layer.in_channels > 3)
    with torch.autocast("cpu", torch.bfloat16):
        output = compute(input)
    grad = drawn(*output.shape, seed=1).to(torch.bfloat16)
    parts = [part for part in (input, layer.weight, layer.bias) if part.requires_grad]
    got = [output.detach(), *torch.autograd.grad(output, parts, grad)]
    halves64 = [halved(part).requires_grad_(part.requires_grad) for part in (input, layer.weight, layer.bias)]
    exact = formula(*halves64)
    right = [exact.detach(), *torch.autograd.grad(exact, [p for p in halves64 if p.requires_grad], grad.double())]
    assert [tensor.dtype for tensor in got] == [torch.bfloat16, *(part.dtype for part in parts)]
    assert max(map(error, got, right)) < 2e-3
    assert min(map(error, got, right)) > 1e-4, "nothing was rounded"


def test_it_is_the_kernels_that_compute(monkeypatch):
    called = []
    for module in (first_conv, winograd):
        plain = module.convolve
        monkeypatch.setattr(module, "convolve", lambda *p, plain=plain, **how: called.append(plain) or plain(*p, **how))
    network = create_model("alexnet", image_size=95, num_classes=7).train()

    def count(dtype=torch.bfloat16):
        called.clear()
        with torch.autocast("cpu", dtype):
            network(drawn(64, 3, 95, 95))
        return len(called)

    assert count() == 5
    assert not count(torch.float16)
    kernels.use("off", "winograd")
    assert count() == 1
    kernels.use("off")
    assert not count()
    kernels.use("auto")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: FAST)
    assert not count()


@pytest.mark.slow
def test_a_hundred_steps_of_training_stay_together(trained):
    """Beside PyTorch's own multiplications in bfloat16: what differs is where each rounds. Losses part by 4e-3."""
    (losses, _), (right, _) = trained(True, "bf16"), trained(False, "bf16")
    assert right[-1] < 0.6 * right[0], "nothing was learned, so nothing was compared"
    assert not torch.equal(losses, right), "both went the same way"
    assert torch.allclose(losses, right, rtol=0.02), (losses / right - 1).abs().max()
