"""The named recipes hold together, name real networks, and have the numbers of their sources."""

import dataclasses
import json

import pytest
import torch

from alexnet import recipe as recipes
from alexnet.errors import RecipeError
from alexnet.models import create_model, list_models
from alexnet.recipe import Recipe, from_dict, get_recipe, list_recipes, source
from alexnet.training import optim
from alexnet.training.schedule import LRSchedule
from alexnet.training.task import build_network

FIELDS = [field.name for field in dataclasses.fields(Recipe)]


@pytest.mark.parametrize("name", list_recipes())
def test_a_named_recipe_has_a_name_and_one_line(name):
    assert get_recipe(name).recipe == name
    assert recipes.describe(name).endswith((".", ")."))
    assert "\n" not in recipes.describe(name)


@pytest.mark.parametrize("name", list_recipes())
def test_a_named_recipe_survives_json(name):
    assert from_dict(json.loads(json.dumps(get_recipe(name).to_dict()))) == get_recipe(name)


def test_a_name_that_is_none_gets_the_nearest():
    with pytest.raises(RecipeError, match=r"unknown recipe 'papr'\. Did you mean 'paper'\?"):
        get_recipe("papr")
    with pytest.raises(RecipeError, match=r"Choose from modern, finetune, paper, .*cifar_18pct"):
        get_recipe("xyzzy")


def test_many_names_are_no_long_line():
    """There are 70 hyperparameters, and timm has over 1,000 networks."""
    with pytest.raises(RecipeError, match=r"Choose from stored_size, .* and \d+ others$") as caught:
        Recipe().replace(**{"xyzzy" * 1000: 1})
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", list_recipes())
def test_a_named_recipe_fits_its_network(name):
    """Its layers are there, something learns, and the start that it names exists."""
    recipe = get_recipe(name)
    if recipe.model not in list_models():
        pytest.skip(f"{recipe.model} is not there yet")
    start = None if recipe.initialization == "own" else recipe.initialization
    with torch.device("meta"):  # names and sizes alone
        network = create_model(recipe.model, image_size=recipe.image_size or None, initialization=start)
    optim.check_layer_names(network, recipe)
    assert network.image_size <= recipe.stored_size


@pytest.mark.parametrize("name", list_recipes())
def test_every_value_has_a_source(name):
    assert all(len(source(name, field)) > 4 for field in FIELDS)
    told = [
        field for field in FIELDS if getattr(get_recipe(name), field) != getattr(Recipe(), field) and field != "recipe"
    ]
    if name not in (
        "digits",
        "finetune",
        "lenet5",
    ):  # nobody else's: what differs from this project's defaults is told elsewhere
        assert not [field for field in told if source(name, field).startswith("this project")]


def test_cutmix_and_randaugment_are_used_where_the_page_says():
    """docs/training.md: of the named recipes, `finetune` uses CutMix and none uses RandAugment."""
    assert [name for name in list_recipes() if get_recipe(name).cutmix_prob] == ["finetune"]
    assert not [name for name in list_recipes() if get_recipe(name).randaugment_ops]


def test_the_paper_s_numbers():
    paper = get_recipe("paper")
    assert (paper.lr, paper.momentum, paper.weight_decay, paper.dropout) == (0.01, 0.9, 0.0005, 0.5)
    assert (paper.batch_size, paper.epochs, paper.max_lr_drops, paper.stored_size) == (128, 90, 3, 256)
    assert (paper.crop, paper.hflip, paper.pca_noise_std, paper.mean, paper.divide) == (
        "random",
        0.5,
        0.1,
        "image",
        1,
    )
    assert (paper.optimizer, paper.schedule, paper.initialization, paper.bias_lr_mult) == (
        "paper",
        "plateau",
        "paper",
        1,
    )
    off = (
        "color_jitter",
        "random_erase_prob",
        "mixup_prob",
        "clip_grad_norm",
        "warmup_epochs",
        "label_smoothing",
        "ema_decay",
    )
    assert [getattr(paper, name) for name in off] == [0] * len(off)


def rates(name: str) -> list[tuple[float, float]]:
    """Of weights and of biases, by epoch."""
    recipe = get_recipe(name)
    schedule = LRSchedule(recipe, 10, steps_joined=12)
    return [
        (schedule.lr(epoch, 0), recipe.bias_lr_mult * schedule.lr(epoch, 0, recipe.schedule_bias_lr))
        for epoch in range(recipe.epochs)
    ]


PLANS = {  # epochs at each rate of the weights, and the biases' first and last rate as multiples of the weights' first
    "code2012": ([25, 26, 28, 12], 2, 2),
    "one-tower": ([25, 26, 28, 12], 2, 2),
    "caffe": ([20, 20, 20, 20, 10], 2, 2e-4),
    "caffenet": ([20, 20, 20, 20, 10], 2, 2e-4),
    "owt": ([30, 30, 30], 1, 1e-2),
    "cifar_80sec": ([8, 2], 2, 2),
    "cifar_18pct": ([120, 10, 10], 2, 2),
    "cifar_19pct": ([120, 10, 10], 2, 2),
    "cifar_19pct_translated": ([120, 10, 10], 2, 2),
    "cifar_13pct": ([140, 10, 10], 2, 2),
    "cifar_11pct": ([500, 10, 10], 2, 2),
}


@pytest.mark.parametrize("name", PLANS)
def test_the_plan_of_rates(name):
    lengths, first, last = PLANS[name]
    start = 0.001 if name.startswith("cifar") else 0.01
    found = rates(name)
    expected = [start * 0.1**drop for drop, epochs in enumerate(lengths) for _ in range(epochs)]
    assert [weights for weights, _ in found] == pytest.approx(expected)
    assert (found[0][1] / start, found[-1][1] / start) == pytest.approx((first, last))


def test_color_noise_is_credited_to_text_and_code_apart():
    """The paper prints eigenvalues of the covariance, the code has their roots; both recipes compute the code's."""
    assert "eigenvalues as printed" in source("paper", "pca_noise_std")
    assert source("code2012", "pca_noise_std").startswith("2012 code")
    assert "standard deviations" in source("code2012", "pca_noise_std")


def test_what_the_2012_code_does_besides():
    code = get_recipe("code2012")
    assert (code.pca_noise_until_epoch, code.pca_noise_rescale, code.freeze, code.freeze_from_epoch) == (
        67,
        True,
        "conv1",
        72,
    )
    assert code.layer_lr_milestones == "conv1.weight=67"
    assert (code.crop_group_size, code.far_edge, code.mean, code.bias_weight_decay) == (32, True, "center", False)
    assert (get_recipe("paper").crop_group_size, get_recipe("paper").far_edge) == (1, False)
    assert (get_recipe("cifar_13pct").train_on_val_from_epoch, get_recipe("cifar_11pct").train_on_val_from_epoch) == (
        100,
        350,
    )
    owt = get_recipe("owt")
    assert (owt.crop, owt.min_crop_scale, owt.mean, owt.divide_std) == ("resized", 0.08, "channel", True)
    assert (owt.optimizer, owt.weight_decay, owt.bias_weight_decay, owt.batch_size) == ("sgd", 1e-4, True, 256)
    for name in ("caffe", "caffenet"):
        assert (get_recipe(name).fit, get_recipe(name).mean, get_recipe(name).pca_noise_std) == ("squash", "image", 0)


def test_one_thing_less_is_one_thing_less():
    paper = get_recipe("paper")
    removed = {
        "no_dropout": {"dropout"},
        "no_noise": {"pca_noise_std"},
        "no_augmentation": {"crop", "hflip", "pca_noise_std"},
    }
    for name, fields in removed.items():
        assert set(recipes.differences(paper, get_recipe(name))) == {"recipe"} | fields


DECAYS = {  # of the weights, layer by layer (layer-params files; FC10's of 13pct is .004 like the others)
    "cifar_80sec": {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc64": 0.03, "fc10": 0.03},
    "cifar_18pct": {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc10": 1.0},
    "cifar_19pct": {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc10": 3.0},
    "cifar_19pct_translated": {"conv1": 0.0, "conv2": 0.0, "conv3": 0.0, "fc10": 0.0},
    "cifar_13pct": {"conv1": 0.0, "conv2": 0.0, "local3": 0.004, "local4": 0.004, "fc10": 0.004},
    "cifar_11pct": {"conv1": 0.0, "conv2": 0.0, "local3": 0.004, "local4": 0.004, "fc10": 0.01},
}


@pytest.mark.parametrize("name", DECAYS)
def test_decay_layer_by_layer(name):
    recipe = get_recipe(name)
    if recipe.model not in list_models():
        pytest.skip(f"{recipe.model} is not there yet")
    network = build_network(recipe, 10)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {
        names[id(p)]: group["weight_decay"]
        for group in optim.parameter_groups(network, recipe)
        for p in group["params"]
    }
    assert {name.split(".")[0]: decay for name, decay in found.items() if name.endswith("weight")} == DECAYS[name]
    assert {decay for name, decay in found.items() if name.endswith("bias")} == {0.0}


def test_the_recipe_of_people_who_name_none():
    assert recipes.recipe_for("photos") == get_recipe("modern")
    assert recipes.recipe_for("digits") == get_recipe("digits")
    assert recipes.recipe_for("digits", "lenet5") == get_recipe("lenet5")
    assert recipes.recipe_for("cifar10", "cifar_13pct") == get_recipe("cifar_13pct")
    assert recipes.recipe_for("photos", "alexnet_single") == get_recipe("modern")
