"""Which parameter learns how, by layer; what is frozen does not move at all."""

import pytest
import torch
from torch import nn

from alexnet.errors import RecipeError
from alexnet.models import create_model
from alexnet.recipe import Recipe, get_recipe
from alexnet.training import optim
from alexnet.training.schedule import LRSchedule

BARE = get_recipe("cifar_18pct")


def network() -> nn.Module:
    return create_model("cifar_18pct", num_classes=3, image_size=12, generator=torch.Generator().manual_seed(0))


def settings(recipe: Recipe) -> dict[str, tuple[float, float]]:
    made = network()
    names = {id(parameter): name for name, parameter in made.named_parameters()}
    found = optim.parameter_groups(made, recipe)
    assert sorted(names[id(p)] for group in found for p in group["params"]) == sorted(names.values())
    return {names[id(p)]: (group["lr_mult"], group["weight_decay"]) for group in found for p in group["params"]}


def test_rates_and_decays_by_layer():
    found = settings(
        BARE.replace(layer_lr_mult="conv1=0.5,fc10=3,conv2.bias=7", layer_weight_decay="conv1=0,fc10=0.25")
    )
    assert found == {
        "conv1.weight": (0.5, 0.0),
        "conv1.bias": (1.0, 0.0),  # biases: twice the rate, no decay
        "conv2.weight": (1.0, 0.004),
        "conv2.bias": (14.0, 0.0),
        "conv3.weight": (1.0, 0.004),
        "conv3.bias": (2.0, 0.0),
        "fc10.weight": (3.0, 0.25),
        "fc10.bias": (6.0, 0.0),
    }


def frozen(recipe: Recipe, epoch: int = 0) -> list[str]:
    made = network()
    optim.freeze(made, recipe, epoch)
    return [name for name, parameter in made.named_parameters() if not parameter.requires_grad]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"freeze": "conv1"}, ["conv1.weight", "conv1.bias"]),
        ({"freeze": "conv1.weight"}, ["conv1.weight"]),
        ({"freeze": "conv1..conv2"}, ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"]),
        ({"freeze": "fc10,conv1.bias"}, ["conv1.bias", "fc10.weight", "fc10.bias"]),
        ({"layer_lr_mult": "conv3=0"}, ["conv3.weight", "conv3.bias"]),
        ({"layer_lr_mult": "conv3=0,conv3.bias=1"}, ["conv3.weight"]),
    ],
)
def test_what_is_frozen(changes, names):
    assert frozen(BARE.replace(**changes)) == names


def test_frozen_from_its_epoch_on():
    recipe = BARE.replace(freeze="conv1", freeze_from_epoch=2)
    assert [bool(frozen(recipe, epoch)) for epoch in range(4)] == [False, False, True, True]


def test_net_145_conv1_at_each_epoch():
    """As logged: epsW 0.01, ÷ 10 at 25 and 51, on conv1 at 67 too, 0 from 72 on; 79 is for the others. epsB stays."""
    recipe = get_recipe("code2012")
    made = create_model("alexnet_2012", num_classes=2, image_size=67)
    built, schedule = optim.create_optimizer(made, recipe), LRSchedule(recipe, 10)
    groups_of = {
        name: next(g for g in built.param_groups if any(p is q for q in g["params"]))
        for name, p in made.named_parameters()
    }
    for epoch, conv1, others in (
        (0, 1e-2, 1e-2),
        (25, 1e-3, 1e-3),
        (51, 1e-4, 1e-4),
        (66, 1e-4, 1e-4),
        (67, 1e-5, 1e-4),
        (79, None, 1e-5),
    ):
        optim.set_lr(built, *(schedule.lr(epoch, 0, scheduled) for scheduled in (True, False)), epoch)
        optim.freeze(made, recipe, epoch)
        assert groups_of["conv2.weight"]["lr"] == pytest.approx(others)
        assert groups_of["conv1.bias"]["lr"] == pytest.approx(0.02)
        assert made.get_parameter("conv1.weight").requires_grad == (conv1 is not None)
        if conv1 is not None:
            assert groups_of["conv1.weight"]["lr"] == pytest.approx(conv1)


def test_a_layer_inside_another_library_s_names():
    made = nn.Sequential()
    made.add_module("features", nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    made.add_module("classifier", nn.Sequential(nn.Linear(4, 2)))
    for text, count in (("features", 4), ("features.0..features.2", 4), ("features.2", 2), ("classifier.0.bias", 1)):
        optim.freeze(made, BARE.replace(freeze=text), 0)
        assert sum(not parameter.requires_grad for parameter in made.parameters()) == count


@pytest.mark.parametrize("kind", ["paper", "sgd", "adamw"])
def test_a_frozen_layer_has_no_momentum_and_no_decay(kind):
    """With a rate of 0 instead, the velocity that it had would still move it."""
    recipe = BARE.replace(optimizer=kind, freeze="conv1", freeze_from_epoch=1, weight_decay=0.5, lr=0.01)
    made = network()
    built = optim.create_optimizer(made, recipe)
    generator = torch.Generator().manual_seed(1)

    def step(epoch: int) -> None:
        optim.freeze(made, recipe, epoch)
        optim.set_lr(built, 0.01, 0.01)
        made(torch.randn(2, 3, 12, 12, generator=generator)).square().sum().backward()
        built.step()
        built.zero_grad()

    for _ in range(3):
        step(0)
    before = {name: parameter.detach().clone() for name, parameter in made.named_parameters()}
    for _ in range(3):
        step(1)
    same = {name for name, parameter in made.named_parameters() if torch.equal(parameter, before[name])}
    assert same == {"conv1.weight", "conv1.bias"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"freeze": "conf1"},
            "--freeze: no layer 'conf1' with parameters. Did you mean 'conv1'?",
        ),
        ({"freeze": "relu1"}, "--freeze: no layer 'relu1' with parameters"),
        ({"freeze": "conv3..conv1"}, "--freeze names conv3..conv1, which is backwards; must be conv1..conv3"),
        (
            {"layer_lr_mult": "fc8=2"},
            "--layer-lr-mult: no layer 'fc8' with parameters",
        ),
        ({"layer_lr_milestones": "conv9=2"}, "--layer-lr-milestones: no layer 'conv9' with parameters"),
        (
            {"layer_weight_decay": "conv9=2"},
            "--layer-weight-decay: no layer 'conv9' with parameters",
        ),
        (
            {"freeze": "conv1..conv3", "freeze_from_epoch": 9, "layer_lr_mult": "fc10=0"},
            "--freeze and --layer-lr-mult freeze all layers; leave at least one layer to train",
        ),
    ],
)
def test_what_can_not_be_is_refused(changes, text):
    with pytest.raises(RecipeError) as caught:
        optim.check_layer_names(network(), BARE.replace(**changes))
    assert str(caught.value).startswith(text)
