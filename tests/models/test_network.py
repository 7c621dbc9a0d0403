import pytest
import torch
from torch import nn

from alexnet.errors import ModelError
from alexnet.models import create_model, describe, fusion, list_models, list_torchvision_models
from alexnet.models.layers import Convolution, Dropout, Flatten, MaxPool, set_generator
from alexnet.models.network import (
    FanInInit,
    Network,
    NormalInit,
    RootFanInInit,
    checked_output_size,
    nonfinite,
    output_size,
)


def chain() -> list[tuple[str, nn.Module]]:
    return [
        ("conv1", Convolution(3, 4, 3, stride=2)),
        ("relu1", nn.ReLU(inplace=True)),
        ("pool1", MaxPool(3, 2)),
        ("flatten", Flatten(2)),
        ("fc2", nn.Linear(16, 5)),
    ]


def small(**initial) -> Network:
    network = Network(
        "small",
        chain(),
        num_classes=5,
        in_channels=3,
        image_size=9,
        features="flatten",
        initial={"conv1": NormalInit(0.5, 2), "fc2": NormalInit(0.1)} | initial,
    )
    return network.initialize(torch.Generator().manual_seed(0))


def test_outputs_are_those_of_every_layer():
    network, x = small(), torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    found = network.outputs(x)
    assert list(found) == ["conv1", "relu1", "pool1", "flatten", "fc2"]
    assert torch.equal(found["fc2"], network(x))
    # The ReLU works in place; the output before it is still the one before it.
    assert (found["conv1"] < 0).any()
    assert torch.equal(found["relu1"], found["conv1"].clamp(min=0))


def test_until_stops_there():
    network, x = small(), torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    found = network.outputs(x)
    for name, output in found.items():
        assert torch.equal(network.forward_to(x, name), output)
    network.fc2.weight.data = torch.zeros(0)  # nothing beyond is computed
    assert network.forward_to(x, "flatten").shape == (2, 16)


@pytest.mark.usefixtures("native")
def test_layers_up_to_one_are_fused_as_in_the_whole_network(monkeypatch):
    network = create_model("alexnet", num_classes=3, image_size=95, generator=torch.Generator().manual_seed(0)).eval()
    x = 50 * torch.randn(2, 3, 95, 95, generator=torch.Generator().manual_seed(1))
    counts, fused = [], fusion.forward_fused
    with torch.inference_mode():
        expected = network.outputs(x.clone())
        for name in ("conv1", "relu1", "norm1", "pool1", "conv2", "relu2", "pool2", "relu5", "relu7", "fc8"):
            assert torch.allclose(network.forward_to(x, name), expected[name], rtol=1e-4, atol=1e-4), name
        monkeypatch.setattr(fusion, "forward_fused", lambda *a: counts.append(fused(*a)) or counts[-1])
        network.forward_to(x, "relu7")
    assert max(count for count, _ in counts) > 1 and sum(count for count, _ in counts) == 21


def test_until_an_unknown_layer():
    with pytest.raises(ModelError) as caught:
        small().forward_to(torch.zeros(1, 3, 9, 9), "conv9")
    assert str(caught.value) == ("layer 'conv9' is not in small; must be one of conv1, relu1, pool1, flatten, fc2")


def test_initialization_repeats():
    first, second = small(), small()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert second.initialize(torch.Generator().manual_seed(1)) is second
    assert not torch.equal(first.conv1.weight, second.conv1.weight)
    assert first.conv1.bias.tolist() == [2.0] * 4 and first.fc2.bias.tolist() == [0.0] * 5


def test_fan_in_initialization_stays_inside_its_limit():
    network = small(conv1=FanInInit(2.4))
    limit = 2.4 / 27
    assert network.conv1.weight.abs().max() <= limit
    assert network.conv1.weight.max() > 0.9 * limit and network.conv1.weight.min() < -0.9 * limit
    assert network.conv1.bias.abs().max() == 0


def test_root_fan_in_initialization_fills_its_limits():
    network = small(conv1=RootFanInInit())
    limit = 27**-0.5
    for parameter in (network.conv1.weight, network.conv1.bias):
        assert parameter.abs().max() <= limit and parameter.abs().max() > 0.5 * limit
    assert network.conv1.weight.max() > 0.9 * limit and network.conv1.weight.min() < -0.9 * limit


def test_a_learned_layer_without_a_start_is_refused():
    network = small()
    del network.initial["fc2"]
    with pytest.raises(KeyError, match="fc2"):
        network.initialize()


def test_map_side():
    assert output_size(chain(), 9) == 2 and output_size(chain(), 2) == 0
    assert output_size([], 7) == 7
    with pytest.raises(ModelError) as caught:
        checked_output_size("small", chain(), 3)
    assert str(caught.value) == "image_size 3 is too small for small; must be at least 6 pixels"


# --- create_model ---------------------------------------------------------------------------------------------------


# Every model, and the side of the smallest images that it sees, pixels.
RESIDUAL = [name for name in list_models() if name.startswith(("plain_", "residual_"))]
SMALLEST = (
    {
        "alexnet": 52,
        "alexnet_2012": 52,
        "alexnet_caffe": 55,
        "alexnet_half": 52,
        "alexnet_no_norm": 52,
        "alexnet_no_overlap": 72,
        "alexnet_owt": 63,
        "alexnet_separate": 52,
        "alexnet_single": 52,
        "alexnet_tanh": 52,
        "caffenet": 55,
        "cifar_11pct": 6,
        "cifar_13pct": 6,
        "cifar_18pct": 12,
        "cifar_19pct": 12,
        "cifar_80sec": 12,
        "lenet5": 29,
        "lenet5_shrunk": 32,
    }
    | {name: 12 for name in list_models() if name.startswith(("alexnet_small", "figure1"))}
    | {name: 26 for name in list_models() if name.startswith("alexnet_medium")}
    | {f"alexnet_no_conv{number}": 52 for number in (3, 4, 5)}
)
SMALLEST["alexnet_medium_no_overlap"] = 20
SMALLEST |= dict.fromkeys(["alexnet_small_no_overlap", *RESIDUAL], 5)
NAMES = [*list_models(), *list_torchvision_models()]


def test_the_models():
    assert list_models() == sorted(SMALLEST)
    texts = [describe(name) for name in list_models()]
    assert len(set(texts)) == len(SMALLEST) and all(text and "\n" not in text for text in texts)


@pytest.mark.parametrize(("name", "side"), SMALLEST.items())
def test_any_classes_and_channels_at_the_smallest_size(name, side):
    network = create_model(
        name, num_classes=6, in_channels=2, image_size=side, generator=torch.Generator().manual_seed(0)
    )
    assert (network.name, network.num_classes, network.in_channels) == (name, 6, 2)
    assert network.image_size == side
    x = torch.randn(2, 2, side, side, generator=torch.Generator().manual_seed(1))
    out = network(x)
    assert out.shape == (2, 6) and out.isfinite().all()
    assert network.eval().forward_to(x, network.features).dim() == 2
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    with pytest.raises(ModelError) as caught:
        create_model(name, image_size=side - 1)
    built = name.partition("_no_conv")[0]  # a network without a layer is the whole one, cut
    assert str(caught.value) == f"image_size {side - 1} is too small for {built}; must be at least {side} pixels"


@pytest.mark.parametrize("name", ["alexnet", "alexnet_owt", "cifar_13pct", "cifar_18pct", "lenet5"])
def test_the_same_seed_gives_the_same_weights(name):
    state = torch.get_rng_state()

    def make(seed: int) -> Network:
        return create_model(name, image_size=SMALLEST[name], generator=torch.Generator().manual_seed(seed))

    first, again, other = make(3), make(3), make(4)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
        assert "bias" in key or not torch.equal(value, other.state_dict()[key])
    assert torch.equal(state, torch.get_rng_state())  # nothing draws from the global generator


def test_without_a_generator_the_default_one_decides():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = create_model("lenet5")
    second = create_model("lenet5", generator=torch.Generator().manual_seed(5))
    assert torch.equal(first.c1.weight, second.c1.weight)


ERRORS = [
    ({"name": "alexnett"}, "unknown model 'alexnett'. Did you mean 'alexnet'?"),
    ({"name": "zzz"}, f"unknown model 'zzz'. Choose from {', '.join(NAMES[:24])} and {len(NAMES) - 24} others"),
    ({"name": "lenet5", "num_classes": 1}, "num_classes 1; must be an integer of at least 2"),
    ({"name": "lenet5", "num_classes": 2.5}, "num_classes 2.5; must be an integer of at least 2"),
    ({"name": "lenet5", "num_classes": True}, "num_classes True; must be an integer of at least 2"),
    ({"name": "lenet5", "in_channels": 0}, "in_channels 0; must be an integer of at least 1"),
    ({"name": "lenet5", "image_size": -3}, "image_size -3; must be an integer of at least 1"),
    (
        {"name": "lenet5", "initialization": "2012"},
        "initialization '2012' of lenet5; must be None; lenet5 has one initialization; a recipe calls it 'own'",
    ),
    (
        {"name": "caffenet", "initialization": "paper"},
        "initialization 'paper' of caffenet; must be None; caffenet has one initialization; a recipe calls it 'own'",
    ),
    (
        {"name": "alexnet", "initialization": "best"},
        "initialization 'best' of alexnet; must be 'paper' or '2012' or None",
    ),
]


@pytest.mark.parametrize(("arguments", "text"), ERRORS)
def test_what_can_not_be_built_is_said(arguments, text):
    with pytest.raises(ModelError) as caught:
        create_model(**arguments)
    assert str(caught.value) == text


def test_describe_an_unknown_model():
    with pytest.raises(ModelError, match="Did you mean 'lenet5'"):
        describe("lenet-5")


def test_smaller_images_than_built_for():
    network = create_model("alexnet", num_classes=3, image_size=131, generator=torch.Generator().manual_seed(0)).eval()
    assert network(torch.zeros(1, 3, 99, 99)).shape == (1, 3)


def test_dropout_of_a_network_repeats():
    network = create_model("alexnet", num_classes=3, image_size=67, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 3, 67, 67, generator=torch.Generator().manual_seed(1))
    drops = [module for module in network.modules() if isinstance(module, Dropout)]
    assert len(drops) == 2
    results = []
    for _ in range(2):
        set_generator(network, torch.Generator().manual_seed(2))
        results.append(network(x))
    assert torch.equal(*results)
    assert not torch.equal(results[0], network(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_one_value_that_is_no_number_is_noticed(value, dtype):
    tensor = torch.full((3, 1000), torch.finfo(dtype).max / 4 if dtype != torch.float64 else 1e38, dtype=dtype)
    tensors = {"empty": torch.zeros(0, dtype=dtype), "whole": torch.ones(3, dtype=torch.int64), "w": tensor}
    assert nonfinite(tensors) == ""  # the largest sums that there are
    tensor[2, 517] = value
    assert nonfinite(tensors) == "w"


def test_what_is_too_large_for_float32_is_noticed():
    assert nonfinite({"w": torch.tensor([1.0, 1e39], dtype=torch.float64)}) == "w"
