import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet import recipe as recipes
from alexnet.errors import RecipeError
from alexnet.recipe import GROUPS, Recipe, config, get_recipe, help_text, option

FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}
BARE = Recipe(recipe="bare", validation=0.1, select_weights="last", schedule="cosine")


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_help_text(name):
    assert len(help_text()[name]) > 10
    assert set(help_text()) == set(FIELDS)


def test_a_recipe_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().seed = 3
    assert len({Recipe(), Recipe(), get_recipe("paper")}) == 2


RANGES = {name: rule.range for name, rule in config.rules().items() if rule.range is not None}
CHOICES = {name: rule.choices for name, rule in config.rules().items() if rule.choices}


@pytest.mark.parametrize("name", RANGES)
def test_a_number_out_of_range_is_refused_by_its_option(name):
    least, most = RANGES[name]
    whole = isinstance(FIELDS[name].default, int)
    for wrong in (least - 1, most + 1, *(() if whole else (math.nan, math.inf, -math.inf))):
        with pytest.raises(RecipeError) as caught:
            BARE.replace(**{name: wrong})
        assert str(caught.value) == f"{option(name)} is {wrong}; must be from {least} to {most}"
    for right in (least, min(most, BARE.epochs - 1) if name == "warmup_epochs" else most):
        if name not in ("validation", "test"):
            assert getattr(BARE.replace(**{name: right}), name) == right


def test_every_number_has_a_range():
    assert set(RANGES) == {name for name, field in FIELDS.items() if type(field.default) in (int, float)}


def test_every_field_is_in_one_group():
    grouped = [field.name for group in GROUPS.values() for field in dataclasses.fields(group)]
    assert [*grouped, "recipe"] == list(FIELDS)


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_that_is_none_is_refused(name):
    with pytest.raises(RecipeError) as caught:
        Recipe().replace(**{name: "other"})
    assert str(caught.value) == f"{option(name)} is 'other'; must be {' or '.join(CHOICES[name])}"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": "5"}, "--epochs is '5'; must be an integer"),
        ({"epochs": 2.5}, "--epochs is 2.5; must be an integer"),
        ({"batch_size": True}, "--batch-size is True; must be an integer"),
        ({"lr": "fast"}, "--lr is 'fast'; must be a number"),
        ({"divide_std": "no"}, "--divide-std is 'no'; must be true or false"),
        ({"divide_std": 1}, "--divide-std is 1; must be true or false"),
        ({"model": 3}, "--model is 3; must be text"),
        ({"lr_milestones": [3]}, "--lr-milestones is [3]; must be integers"),
        ({"lr_milestones": (3.5,)}, "--lr-milestones is (3.5,); must be integers"),
        ({"in_channels": 2}, "--in-channels is 2; must be 3 for color, 1 for gray, or 0 for the network's own"),
        (
            {"validation": 0.5, "test": 0.5},
            "--validation 0.5 and --test 0.5 leave no training images; must be under 1 together",
        ),
        (
            {"schedule": "plateau", "validation": 0.0},
            "--schedule plateau needs a validation split; pass --validation above 0",
        ),
        (
            {"select_weights": "best", "validation": 0.0},
            "--select-weights best needs a validation split; pass --validation above 0, or --select-weights last",
        ),
        (
            {"select_weights": "best", "train_on_val_from_epoch": 3},
            "--select-weights best needs a validation split in all epochs; pass "
            "--train-on-val-from-epoch 0, or --select-weights last",
        ),
        (
            {"schedule": "plateau", "select_weights": "last", "train_on_val_from_epoch": 3},
            "--schedule plateau needs a validation split in all epochs; pass --train-on-val-from-epoch 0",
        ),
        (
            {"sampling": "balanced", "class_weights": "balanced"},
            "--sampling balanced and --class-weights balanced both correct class frequencies; leave one out",
        ),
        (
            {"schedule": "multistep"},
            "--schedule multistep needs --lr-milestones; pass epochs, or --schedule constant",
        ),
        (
            {"schedule": "multistep", "lr_milestones": (3, 9), "epochs": 9},
            "--lr-milestones is 3 9; must be ascending and different, from 1 to 8 (--epochs is 9); pass others, or "
            "--schedule constant",
        ),
        (
            {"warmup_epochs": 2.5, "epochs": 2},
            "--warmup-epochs is 2.5; must be below --epochs, 2; pass --warmup-epochs 0 to 1, or more --epochs",
        ),
        (
            {"warmup_epochs": 3, "epochs": 3},
            "--warmup-epochs is 3; must be below --epochs, 3; pass --warmup-epochs 0 to 2, or more --epochs",
        ),
        (
            {"warmup_epochs": 1.5, "epochs": 1},
            "--warmup-epochs is 1.5; must be below --epochs, 1; pass --warmup-epochs 0",
        ),
        ({"freeze": "conv1.."}, "--freeze is 'conv1..'; must be layers and ranges of them: conv1,conv3..conv5"),
        (
            {"layer_lr_mult": "conv1=fast"},
            "--layer-lr-mult is 'conv1=fast'; must be a number from 0 to 1000 for each layer, once: conv1=0,fc10=1",
        ),
        (
            {"layer_weight_decay": "fc10"},
            "--layer-weight-decay is 'fc10'; must be a number from 0 to 1000 for each layer, once: conv1=0,fc10=1",
        ),
        (
            {"layer_lr_milestones": "conv1=67,conv1=72"},
            "--layer-lr-milestones is 'conv1=67,conv1=72'; must be a number from 0 to 1000 for each layer, once: "
            "conv1=0,fc10=1",
        ),
    ],
)
def test_what_can_not_be_is_refused(changes, text):
    with pytest.raises(RecipeError) as caught:
        Recipe().replace(**changes)
    assert str(caught.value) == text


@pytest.mark.parametrize("drops", [(-5,), (0,), (5, 3), (3, 3), (3, 44)])
def test_drops_that_are_no_epochs_in_their_order_are_refused(drops):
    with pytest.raises(RecipeError, match=r"--lr-milestones is .*; must be ascending and different, from 1 to 43"):
        Recipe(schedule="multistep", lr_milestones=drops)
    if drops != (3, 44):  # the named recipes' own stay where another schedule is chosen
        with pytest.raises(RecipeError, match="--lr-milestones is"):
            Recipe(lr_milestones=drops)


def test_a_run_of_one_epoch_may_warm_up_throughout():
    assert Recipe(epochs=1).warmup_epochs == 1


def test_a_whole_number_will_do_for_a_fraction():
    assert Recipe(lr=1, warmup_epochs=2).lr == 1


def test_wrong_names_get_the_nearest_right_one():
    with pytest.raises(RecipeError, match=r"unknown hyperparameter 'learnin_rate'\. Did you mean 'lr'"):
        Recipe().replace(learnin_rate=0.1)


def test_differences():
    changed = get_recipe("paper").replace(seed=5, lr_milestones=(1,))
    assert recipes.differences(get_recipe("paper"), changed) == {"seed": (0, 5), "lr_milestones": ((), (1,))}
    assert recipes.differences(changed, changed) == {}


def test_validation_joins_from_its_epoch_on():
    assert [Recipe(select_weights="last", train_on_val_from_epoch=2).trains_on_val(epoch) for epoch in range(4)] == [
        False,
        False,
        True,
        True,
    ]
    assert not any(Recipe(select_weights="last").trains_on_val(epoch) for epoch in range(4))


@given(st.integers(1, 200), st.floats(0, 1), st.integers(0, 300), st.integers(1, 300))
def test_small_crops_come_first_and_never_last(epochs, share, small, full):
    recipe = BARE.replace(epochs=epochs, progressive_fraction=share, progressive_size=small)
    sides = [recipe.crop_size(epoch, full) for epoch in range(epochs)]
    assert sides == sorted(sides)
    assert sides[-1] == full
    expected = small if 0 < small < full else full
    assert sides.count(expected) == epochs or sides[0] in (expected, full)
    if 0 < small < full:
        assert sides.count(small) == min(round(share * epochs), epochs - 1)
