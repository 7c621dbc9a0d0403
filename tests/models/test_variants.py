"""The table of the AlexNets in docs/models.md against the networks themselves, and against a table made by hand."""

from pathlib import Path

import pytest
import torch
from torch import nn

from alexnet.models import create_model, list_models
from alexnet.models.layers import Dropout, LocalResponseNorm, SpatialNorm
from alexnet.models.network import Network
from alexnet.recipe import get_recipe

LABELS = {  # the rows of the table under shorter names
    "input, pixels": "input",
    "kernels of conv1 to conv5": "kernels",
    "std of initial weights": "weight std",
    "biases of conv2, 4, 5, fc6, fc7": "hidden bias",
    "parameters, 1000 classes": "parameters",
    "published top-1 / top-5 error": "published",
}


def documented() -> dict[str, dict[str, str]]:
    """Network -> row -> text, from the table in docs/models.md."""
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    section = text[text.index("## The five versions compared") :]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    lines = lines[: next(i for i, line in enumerate(lines[1:], 1) if len(line) != len(lines[1]))]
    models = [cell.strip("`") for cell in lines[0]]
    return {
        model: {LABELS.get(row, row): cells[column] for row, *cells in lines[1:]} for column, model in enumerate(models)
    }


TRAITS = documented()
HIDDEN = ("conv2", "conv4", "conv5", "fc6", "fc7")
NAMES = ("paper", "code2012", "caffe", "caffenet", "owt", "one-tower")
RECIPES = {get_recipe(name).model: get_recipe(name) for name in NAMES}


def kind(layer: nn.Module, name: str) -> str:
    if isinstance(layer, LocalResponseNorm):
        return "norm"
    return next((word for word in ("conv", "relu", "pool") if name.startswith(word)), "")


def order(network: Network, number: int) -> str:
    """The kinds of the layers of one number, in order: ``conv relu norm pool``. Spatial norm is told apart."""
    layers = [(name, layer) for name, layer in network.named_children() if name.endswith(str(number))]
    return " ".join(filter(None, (kind(layer, name) for name, layer in layers)))


def dropout(network: Network) -> str:
    names = [name for name, _ in network.named_children()]
    drops = [names.index(name) for name, layer in network.named_children() if isinstance(layer, Dropout)]
    assert len(drops) == 2
    if all(names[at + 1] == fc for at, fc in zip(drops, ("fc6", "fc7"), strict=True)):
        return "inputs of fc6 and fc7"
    assert [names[at - 2] for at in drops] == ["fc6", "fc7"]  # a ReLU in between
    return "outputs of fc6 and fc7"


def padding(network: Network) -> str:
    window = network.conv1.window
    if window.padding:
        return f"{window.padding} on every side"
    over = window.overhang(network.image_size)
    return f"right and bottom {over}, so that 224 gives 55" if over else "none"


def norms(network: Network) -> dict[str, str]:
    found = [layer for layer in network.children() if isinstance(layer, LocalResponseNorm)]
    if not found:
        return dict.fromkeys(["norm constants", "norm α ÷ n", "norm scope"], "no norm")
    constants = {f"{n.size} channels, k {n.k:g}, α {n.alpha:g}, β {n.beta:g}" for n in found}
    scope = {"all channels" if n.towers == 1 else "each tower by itself" for n in found}
    x = torch.full((1, 8 * found[0].towers, 1, 1), 30.0)  # all alike: the sum in the middle is 5 · 900
    middle = float(found[0](x)[0, 4])
    divided = 30 * (found[0].k + found[0].alpha / 5 * 5 * 900) ** -0.75
    assert middle == pytest.approx(divided, rel=1e-5)
    return {"norm constants": constants.pop(), "norm α ÷ n": "yes", "norm scope": scope.pop()}


def spatial(network: Network) -> str:
    names = [name for name, _ in network.named_children()]
    found = [(name, layer) for name, layer in network.named_children() if isinstance(layer, SpatialNorm)]
    if not found:
        return "none"
    (name, layer), *more = found
    assert not more
    assert isinstance(network.get_submodule(names[names.index(name) - 1]), LocalResponseNorm)
    x = torch.full((1, 4, 9, 9), 50.0)  # all alike: the sum in the middle is 25 · 2500
    assert float(layer(x)[0, 0, 4, 4]) == pytest.approx(50 * (1 + 0.001 / 25 * 25 * 2500) ** -0.75, rel=1e-5)
    return "layer 2, after norm: 5×5 pixels, k 1, scale 0.001 ÷ 25"


def seen(network: Network) -> dict[str, str]:
    """The traits of a network, by looking at it."""
    convolutions = [network.get_submodule(f"conv{i}") for i in range(1, 6)]
    groups = [layer.groups for layer in convolutions]
    assert groups in ([1, 1, 1, 1, 1], [1, 2, 1, 2, 2])
    pools = {(network.get_submodule(f"pool{i}").window[:2]) for i in (1, 2, 5)}
    assert pools == {(3, 2)}
    return {
        "input": str(network.image_size),
        "kernels": "-".join(str(layer.out_channels) for layer in convolutions),
        "towers": str(max(groups)),
        "conv1 padding": padding(network),
        "norm in layer 1": order(network, 1),
        "norm in layer 2": order(network, 2),
        "spatial norm": spatial(network),
        "dropout": dropout(network),
        "pooling": "3×3, stride 2",
        "parameters": f"{sum(p.numel() for p in network.parameters()):,}",
        **norms(network),
    }


# Made by hand from the sources: row -> the texts for paper, 2012 code, Caffe, CaffeNet, torchvision.
FIVE = ("alexnet", "alexnet_2012", "alexnet_caffe", "caffenet", "alexnet_owt")
ROWS = {
    "kernels": ["96-256-384-384-256"] * 4 + ["64-192-384-256-256"],
    "input": ["224", "224", "227", "227", "224"],
    "conv1 padding": ["right and bottom 3, so that 224 gives 55"] * 2 + ["none"] * 2 + ["2 on every side"],
    "norm in layer 1": [
        "conv relu norm pool",
        "conv norm pool relu",
        "conv relu norm pool",
        "conv relu pool norm",
        "conv relu pool",
    ],
    "norm constants": [
        *["5 channels, k 2, α 0.0001, β 0.75"] * 2,
        *["5 channels, k 1, α 0.0001, β 0.75"] * 2,
        "no norm",
    ],
    "norm scope": ["each tower by itself"] * 2 + ["all channels"] * 2 + ["no norm"],
    "weight std": [
        "0.01",
        "0.01, conv3 to conv5 0.03",
        *["0.01, fc6 and fc7 0.005"] * 2,
        "uniform in ±1/√fan-in (Kaiming, a = √5)",
    ],
    "hidden bias": ["1", "1", "0.1", "1", "uniform in ±1/√fan-in"],
    "dropout": ["outputs of fc6 and fc7"] * 4 + ["inputs of fc6 and fc7"],
    "published": [
        "40.7 / 18.2 %, ten crops",
        "40.66 / 18.21 %, ten crops",
        "42.9 / 19.8 %, center crop",
        "42.6 / 19.6 %, center crop",
        "43.48 / 20.93 %, center crop",
    ],
}


@pytest.mark.parametrize("row", ROWS)
def test_the_table_has_the_values_of_the_sources(row):
    assert [TRAITS[model][row] for model in FIVE] == ROWS[row]


@pytest.mark.parametrize(
    "model", ("alexnet", "alexnet_2012", "alexnet_half", "alexnet_caffe", "caffenet", "alexnet_owt")
)
def test_the_table_has_every_cell_of_every_network(model):
    assert len(TRAITS) == 6 and all(TRAITS[model].values()) and model in RECIPES


@pytest.mark.parametrize("model", TRAITS)
def test_the_network_is_as_told(model):
    if model not in list_models():
        pytest.skip(f"{model} is not there yet")
    with torch.device("meta"):
        network = create_model(model)
    found = seen(network)
    told = {topic: TRAITS[model][topic] for topic in found}
    if model in ("alexnet", "alexnet_half"):  # the one place where the paper's text and this network part: it is said
        assert "divided" in told.pop("norm α ÷ n")
        assert found.pop("norm α ÷ n") == "yes"
    assert found == told


@pytest.mark.parametrize("model", TRAITS)
def test_the_first_weights_are_as_told(model):
    """Drawn as the recipe of that network says, and measured."""
    if model not in list_models():
        pytest.skip(f"{model} is not there yet")
    wanted, told = RECIPES[model].initialization, TRAITS[model]
    with torch.device("meta"):
        network = create_model(model, initialization=None if wanted == "own" else wanted)
    generator = torch.Generator().manual_seed(0)
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        layer = nn.Linear(400, 300)  # any size will do: the start is drawn as for the layer of that name
        with torch.no_grad():
            network.initial[name].draw(layer, generator)
        weight, bias = layer.weight.detach(), layer.bias.detach()
        if "fan-in" in told["weight std"]:
            assert float(weight.abs().max()) == pytest.approx(0.05, rel=0.01)  # 1 / √400
            assert float(weight.std()) == pytest.approx(0.05 / 3**0.5, rel=0.02)
            assert 0.8 * 0.05 < float(bias.abs().max()) <= 0.05
            continue
        std = std_told(told["weight std"], name)
        assert float(weight.std()) == pytest.approx(std, rel=0.02)  # of 120,000 numbers: 0.2 % is one sigma
        assert bias.unique().tolist() == pytest.approx([float(told["hidden bias"]) if name in HIDDEN else 0])


def std_told(text: str, layer: str) -> float:
    """``0.01, conv3 to conv5 0.03`` and ``0.01, fc6 and fc7 0.005``."""
    most, _, exception = text.partition(", ")
    if (layer in ("conv3", "conv4", "conv5") and "conv3 to conv5" in exception) or (
        layer in ("fc6", "fc7") and "fc6 and fc7" in exception
    ):
        return float(exception.split()[-1])
    return float(most)
