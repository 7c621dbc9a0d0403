"""Top patches, the deconvnet view and activation maximization, each against a slow or literal computation."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alexnet.errors import ModelError
from alexnet.explain import units
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model
from alexnet.models.layers import Convolution, Flatten, MaxPool
from alexnet.models.network import Network, NormalInit
from alexnet.models.summary import receptive_fields, summarize


def small(in_channels: int = 3) -> Network:
    """Two convolutions with a pool between them, and one fully connected layer; 16 pixels."""
    layers = [
        ("conv1", Convolution(in_channels, 6, 3, stride=2)),  # 16 -> 8, the last window reads zeros
        ("relu1", nn.ReLU(inplace=True)),
        ("pool1", MaxPool(2, 2)),  # 8 -> 4
        ("conv2", Convolution(6, 4, 3, padding=1)),
        ("relu2", nn.ReLU(inplace=True)),
        ("flatten", Flatten(4)),
        ("fc3", nn.Linear(64, 5)),
    ]
    initial = dict.fromkeys(("conv1", "conv2", "fc3"), NormalInit(0.3, 0.1))
    kwargs = {"num_classes": 5, "in_channels": in_channels, "image_size": 16, "features": "relu2", "initial": initial}
    return Network("small", layers, **kwargs).initialize(torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    return torch.randn((7, 3, 16, 16), generator=torch.Generator().manual_seed(1))


def test_receptive_fields_of_alexnet_are_those_of_the_literature():
    with torch.device("meta"):
        network = create_model("alexnet")
    fields = receptive_fields(network)
    known = {"conv1": 11, "pool1": 19, "conv2": 51, "pool2": 67, "conv3": 99, "conv4": 131, "conv5": 163, "pool5": 195}
    assert {name: fields[name].size for name in known} == known
    assert [fields[name].stride for name in ("conv1", "pool1", "conv2", "pool2", "conv5", "pool5")] == [
        4,
        8,
        8,
        16,
        16,
        32,
    ]
    rows = {row.layer: row for row in summarize(network).rows}
    assert (rows["relu5"].receptive_field, rows["fc6"].receptive_field, rows["fc8"].receptive_field) == (163, 224, 224)
    table = summarize(network).render()
    assert table.rows[0][table.columns.index("receptive field")] == "11×11"


@pytest.mark.parametrize("layer", ["conv1", "pool1", "conv2"])
def test_a_receptive_field_holds_the_pixels_with_a_gradient_and_no_others(layer):
    network, field, position = small(), receptive_fields(small())[layer], (2, 1)
    image = torch.rand((1, 3, 16, 16), requires_grad=True)
    network.forward_to(image, layer)[0, :, position[0], position[1]].sum().backward()
    touched = image.grad[0].abs().sum(0).nonzero()
    top, left, bottom, right = units.patch_box(field, position, 16)
    assert (touched.min(0).values >= torch.tensor([top, left])).all()
    assert (touched.max(0).values < torch.tensor([bottom, right])).all()
    if layer == "conv1":  # no maximum hides a pixel
        assert touched.min(0).values.tolist() == [top, left]
        assert (touched.max(0).values + 1).tolist() == [bottom, right]


def test_the_strongest_images_of_each_unit(inputs):
    network = small()
    best = units.strongest(network, [inputs[:4], inputs[4:]], "relu2", 3)
    outputs = network.forward_to(inputs.clone(), "relu2").detach()  # [7, 4, 4, 4]
    for unit, found in enumerate(best):
        order = sorted(range(7), key=lambda i: -float(outputs[i, unit].max()))[:3]
        assert [one.image for one in found] == order
        for one in found:
            assert one.value == pytest.approx(float(outputs[one.image, unit].max()), rel=1e-5)
            assert float(outputs[one.image, unit][one.position]) == pytest.approx(one.value, rel=1e-5)


def test_the_deconvnet_view_is_that_of_the_paper(inputs):
    """Transposed convolutions, maximum unpooling by switches, ReLUs on the way back: written out."""
    network, image = small(), inputs[0]
    conv1, conv2 = network.conv1, network.conv2
    first = F.conv2d(F.pad(image[None], (0, 1, 0, 1)), conv1.weight, conv1.bias, stride=2).relu()
    pooled, switches = F.max_pool2d(first, 2, 2, return_indices=True)
    second = F.conv2d(pooled, conv2.weight, conv2.bias, padding=1).relu()
    unit, position = 1, divmod(int(second[0, 1].argmax()), 4)
    assert second[0, 1][position] > 0
    back = torch.zeros_like(second)
    back[0, unit][position] = second[0, unit][position]
    back = F.conv_transpose2d(back.relu(), conv2.weight, padding=1)
    back = F.max_unpool2d(back, switches, 2, 2).relu()
    expected = F.conv_transpose2d(back, conv1.weight, stride=2)[0, :, :16, :16].detach()
    view = units.deconvnet(network, image, "relu2", unit, position)
    assert torch.allclose(view, expected, atol=1e-5)
    assert float(expected.abs().max()) > 0


@pytest.mark.parametrize("channels", [3, 1])
def test_a_maximizing_image_raises_its_unit_most(channels):
    network, ones = small(channels), torch.ones(3)
    normalization = Normalization(100 * ones, ones, torch.eye(3), torch.tensor(50.0))
    images = units.maximize(network, normalization, "fc3", [0, 3], steps=40)
    assert (images.shape, images.dtype) == ((2, 16, 16, 3), np.uint8)
    assert np.array_equal(images, units.maximize(network, normalization, "fc3", [0, 3], steps=40))
    start = units.maximize(network, normalization, "fc3", [0, 3], steps=0)

    def responses(batch: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(batch).float().permute(0, 3, 1, 2)
        if channels == 1:
            pixels = (pixels * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
        return network((pixels - 100) / 50).detach()

    before, after = responses(start), responses(images)
    assert after[0, 0] > before[0, 0] + 1
    assert after[1, 3] > before[1, 3] + 1
    assert after[0, 0] > after[1, 0]


def test_what_has_no_receptive_field():
    with pytest.raises(ModelError, match=r"receptive field of 'nothing' in small is not known; must be one of conv1, "):
        units.field_of(small(), "nothing")
