"""The compiled norm beside the one of PyTorch's operations, and what happens where nothing can be compiled.

The formula itself is held in test_layers.py, for both.
"""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alexnet import kernels
from alexnet.kernels import lrn, native_kernels
from alexnet.models import create_model
from alexnet.models.layers import Convolution, LocalResponseNorm


@pytest.fixture
def unbuilt(monkeypatch):
    """A process that has not built the kernel yet."""
    monkeypatch.setattr(native_kernels._libraries, "built", {})
    native_kernels._libraries.compiled.cache_clear()
    yield
    native_kernels._libraries.compiled.cache_clear()


def random(*shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def trained(steps, wanted):
    """Losses and weights of a small network with norms after some steps of training."""
    kernels.use("auto" if wanted else "off")
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        Convolution(3, 16, 3, padding=1), nn.ReLU(), LocalResponseNorm(2), nn.Flatten(), nn.Linear(16 * 64, 4)
    ).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.05, generator=generator)
    images = random(32, 3, 8, 8, seed=1, scale=50).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(32) % 4
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses), torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.usefixtures("native")
def test_a_hundred_steps_of_training_stay_together():
    losses, weights = trained(100, wanted=True)
    right_losses, right_weights = trained(100, wanted=False)
    assert right_losses[-1] < right_losses[0] / 2, "nothing was learned, so nothing was compared"
    # Rounding of 1e-7 a step grows with the steps; the weights are of the size 0.05.
    assert torch.allclose(losses, right_losses, rtol=1e-3, atol=1e-4)
    assert torch.allclose(weights, right_weights, atol=1e-3)


@pytest.mark.usefixtures("native")
def test_it_repeats_bit_for_bit():
    x, grad = random(4, 96, 13, 13, scale=100), random(4, 96, 13, 13, seed=1)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    results = []
    for _ in range(3):
        y = LocalResponseNorm(2)(x)
        results.append((y.detach(), torch.autograd.grad(y, x, grad)[0]))
    assert all(torch.equal(a, b) for one in results[1:] for a, b in zip(one, results[0], strict=True))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_any_layout_and_type_arrive(dtype):
    """A gradient that comes expanded, or in another type than the maps, is brought into rows first."""
    x = random(2, 8, 3, 3, scale=100).to(dtype).requires_grad_()
    gradients = []
    for wanted in (True, False):
        kernels.use("auto" if wanted else "off")
        gradients.append(torch.autograd.grad(LocalResponseNorm(2)(x).float().sum(), x)[0])
    assert gradients[0].dtype == dtype
    assert torch.allclose(*(g.float() for g in gradients), rtol=2**-7 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.usefixtures("native")
def test_not_a_number_stays_one():
    x = random(1, 4, 1, 1)
    x[0, 2] = float("nan")
    assert LocalResponseNorm(1)(x).isnan().any() and LocalResponseNorm(1)(x.bfloat16()).isnan().any()


@pytest.mark.usefixtures("native")
def test_what_it_can_not_compute_goes_the_other_way():
    assert lrn.fits(torch.ones(2, 3)) and lrn.fits(torch.ones(2, 3, dtype=torch.bfloat16))
    assert not lrn.fits(torch.ones(2, 3, dtype=torch.float64))
    assert not lrn.fits(torch.ones(2, 3, device="meta"))
    assert not lrn.fits(torch.ones(1, 8193))
    kernels.use("off")
    assert not native_kernels.in_use() and not native_kernels.build() and not lrn.fits(torch.ones(2, 3))


@pytest.mark.usefixtures("unbuilt")
def test_it_is_built_when_asked_for_only():
    assert not native_kernels.in_use()
    LocalResponseNorm(2)(random(1, 8, 2, 2))
    assert not native_kernels.in_use()


@pytest.mark.usefixtures("unbuilt")
@pytest.mark.parametrize("compiler", [None, shutil.which("false"), "/nowhere/cc"])
def test_without_a_working_compiler_the_network_computes_all_the_same(monkeypatch, compiler):
    monkeypatch.setattr(shutil, "which", lambda name: compiler)
    assert not native_kernels.build() and not native_kernels.in_use()
    network = create_model("alexnet", num_classes=2, image_size=63, generator=torch.Generator().manual_seed(0))
    assert network.eval()(random(1, 3, 63, 63, scale=50)).isfinite().all()
