"""The steps that the web page shows: they compute what the network computes, whatever is inside of its layers."""

import layer_examples
import pytest
import torch
from torch import nn

from alexnet.export.web_layers import describe, steps_of
from alexnet.models import create_model
from alexnet.models.layers import Dropout
from alexnet.models.network import AuxiliaryHead
from alexnet.models.summary import receptive_fields, summarize


def run(network, images):
    """The output of every step by its name."""
    values, found = [images], {}
    for step in steps_of(network):
        values.append(step.layer(*(values[index + 1] for index in step.inputs)))
        found[step.name] = values[-1]
    return found


def network_of(name, size):
    network = create_model(name, num_classes=4, image_size=size, generator=torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(generator=generator)
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
    return network


@pytest.mark.parametrize(
    ("name", "size", "inside"),
    [
        ("residual_8", 16, {"sum", "batch", "convolution", "relu"}),
        ("plain_8", 16, {"batch", "convolution", "relu"}),
        ("resnet50", 40, {"sum", "batch", "max"}),
        ("googlenet", 64, {"concat", "max"}),
        ("alexnet_small", 24, {"norm", "linear"}),
    ],
)
def test_the_steps_compute_what_the_network_computes(name, size, inside):
    pytest.importorskip("torchvision.models")
    network = network_of(name, size)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found, expected = run(network, images), network.outputs(images)
    last = {step: value for step, value in found.items() if step.partition(".")[0] in expected}
    for step, value in last.items():  # the last step of each layer is the layer's output
        layer = step.partition(".")[0]
        if [other for other in last if other.partition(".")[0] == layer][-1] == step:
            torch.testing.assert_close(value, expected[layer], atol=1e-5, rtol=1e-5)
    skipped = [n for n, layer in network.named_children() if isinstance(layer, AuxiliaryHead | Dropout)]
    layers = describe(network, [step for step in found if step not in skipped])
    operations = {layer["op"] for layer in layers}
    assert operations >= inside and "block" not in operations
    parameters = sum(p.numel() for n, p in network.named_parameters() if n.partition(".")[0] not in skipped)
    assert sum(layer["parameters"] for layer in layers) == parameters
    for layer in layers:
        assert tuple(layer["output"]) == tuple(found[layer["name"]].shape[1:]), layer["name"]
        assert all(source < layers.index(layer) for source in layer["inputs"])


@pytest.mark.parametrize("name", layer_examples.EXAMPLES)
def test_the_steps_of_a_layer_file(name):
    network = layer_examples.network(name).eval()
    images = torch.randn(2, 3, *[network.image_size] * 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found, expected = run(network, images), network.outputs(images)
        scores = network(images)
    assert torch.equal([*found.values()][-1], scores)
    for step, value in found.items():
        assert step == "scores" or torch.equal(value, expected[step])
    layers = describe(network, [*found])
    assert [layer["name"] for layer in layers] == [*found]
    assert [tuple(layer["output"]) for layer in layers] == [tuple(value.shape[1:]) for value in found.values()]
    assert sum(layer["parameters"] for layer in layers) == network.definition.parameters
    assert all(source < index for index, layer in enumerate(layers) for source in layer["inputs"])
    shown = {layer["kind"].split()[0] for layer in layers if layer["op"] == "block"}
    no_arithmetic = {"images": {"blur", "nailbed", "href"}, "sparse": {"pool"}, "spatial": {"cnorm"}}
    assert shown == no_arithmetic.get(name, set())


@pytest.mark.parametrize("layer", ["c1", "n1", "c2", "p2"])
def test_receptive_fields_in_a_layer_file(layer):
    network = layer_examples.network("spatial").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_().add_(0.01)
    images = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(3)).requires_grad_()
    value = network.outputs(images)[layer]
    middle = value.shape[-1] // 2
    value[0, :, middle, middle].sum().backward()
    rows = images.grad[0].abs().sum((0, 2)).nonzero().flatten()
    described = {entry["name"]: entry for entry in describe(network, [step.name for step in steps_of(network)])}
    size, stride, start = described[layer]["field"]
    center = start + middle * stride
    limits = max(0, center - size / 2), min(24, center + size / 2)
    if layer in ("c1", "c2"):
        assert (rows.min(), rows.max() + 1) == limits
    else:  # a maximum depends on one pixel of its window; a norm hardly on the outermost
        assert rows.min() >= limits[0] and rows.max() + 1 <= limits[1]


def test_plain_layers_are_described_as_before():
    network = create_model("alexnet", num_classes=5)
    layers = describe(network, [name for name, _ in network.named_children()])
    fields = receptive_fields(network)
    assert [layer["inputs"] for layer in layers] == [[i - 1] for i in range(len(layers))]
    for layer, row in zip(layers, summarize(network).rows, strict=True):
        assert (layer["name"], layer["kind"], layer["kernel"]) == (row.layer, row.kind, row.kernel)
        assert layer["field"] == list(fields[row.layer]) and tuple(layer["output"]) == row.output


@pytest.mark.parametrize("step", ["stem.2", "block1_1.bn1", "block1_1.relu2", "block2_1.sum"])
def test_receptive_fields_inside_of_blocks(step):
    """The pixels that a unit depends on, by its gradient. The unit lies in the middle of large images."""
    network = network_of("residual_8", 64)
    for parameter in network.parameters():
        parameter.data.abs_()  # nothing cancels, and no ReLU is closed
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)).add_(9).requires_grad_()
    values = run(network, images)[step]
    middle = values.shape[-1] // 2
    values[0, :, middle, middle].sum().backward()
    rows = images.grad[0].abs().sum((0, 2)).nonzero().flatten()
    described = {layer["name"]: layer for layer in describe(network, [step.name for step in steps_of(network)])}
    size, stride, start = described[step]["field"]
    center = start + middle * stride
    assert (rows.min(), rows.max() + 1) == (center - size / 2, center + size / 2)
