"""The kernels compiled once for all tests of this folder that want them."""

import pytest
import torch
import torch.nn.functional as F

from alexnet.evaluation.evaluate import autocast
from alexnet.kernels import native_kernels
from alexnet.models import create_model


@pytest.fixture
def compiled():
    if not native_kernels.build():
        pytest.skip("no C compiler builds the kernels here")
    native_kernels.use(True)
    native_kernels.set_winograd(True)
    yield
    native_kernels.use(True)
    native_kernels.set_winograd(None)


@pytest.fixture
def plain():
    """PyTorch's operations, also where a test before has compiled the kernels."""
    native_kernels.use(False)
    yield
    native_kernels.use(True)


@pytest.fixture
def trained(compiled):
    """A hundred steps of the real small network, by the kernels or by PyTorch: its losses and its weights."""

    def train(kernels, precision="fp32"):
        native_kernels.use(kernels)
        network = create_model("cifar_18pct").to(memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(0, 0.05, generator=generator)  # large enough to learn at once
        images = torch.randn(16, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
        labels, losses = torch.arange(16) % 4, []
        optimizer = torch.optim.SGD(network.parameters(), lr=5e-4, momentum=0.9)
        for _ in range(100):
            with autocast(images.device, precision):
                loss = F.cross_entropy(network(images).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return torch.tensor(losses), network.state_dict()

    return train
