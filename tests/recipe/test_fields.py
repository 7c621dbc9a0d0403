import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet import recipe as recipes
from alexnet.errors import RecipeError
from alexnet.recipe import Recipe, config, from_toml, get_recipe, help_text, option

FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}
BARE = Recipe(recipe="bare", validation=0.1, select_weights="last", schedule="cosine")


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_help_text(name):
    assert len(help_text()[name]) > 10
    assert set(help_text()) == set(FIELDS)


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


@given(
    recipe=TEXT,
    lr=st.floats(1e-12, 1000),
    weight_decay=st.floats(0, 100),
    seed=st.integers(0, 2**63 - 1),
    lr_milestones=st.sets(st.integers(1, 1000), max_size=4).map(sorted).map(tuple),
    hflip=st.floats(0, 1),
    divide_std=st.booleans(),
    freeze=st.sampled_from(["", "conv1", "conv1..conv5,fc6", "features.0..features.10"]),
    layer_lr_mult=st.dictionaries(st.sampled_from(["a", "b.c", "d"]), st.floats(0, 1000)).map(
        lambda rates: ",".join(f"{name}={rate!r}" for name, rate in rates.items())
    ),
)
def test_any_recipe_survives_its_file(**values):
    recipe = BARE.replace(**values)
    assert from_toml(recipe.to_toml()) == recipe


def test_a_recipe_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().seed = 3
    assert len({Recipe(), Recipe(), get_recipe("paper")}) == 2


@pytest.mark.parametrize("name", config._RANGES)
def test_a_number_out_of_range_is_refused_by_its_option(name):
    least, most = config._RANGES[name]
    whole = isinstance(FIELDS[name].default, int)
    for wrong in (least - 1, most + 1, *(() if whole else (math.nan, math.inf, -math.inf))):
        with pytest.raises(RecipeError) as caught:
            BARE.replace(**{name: wrong})
        assert str(caught.value) == f"{option(name)} is {wrong}; must be from {least} to {most}"
    for right in (least, min(most, BARE.epochs - 1) if name == "warmup_epochs" else most):
        if name not in ("validation", "test"):
            assert getattr(BARE.replace(**{name: right}), name) == right


def test_every_number_has_a_range_and_every_choice_its_list():
    numbers = {name for name, field in FIELDS.items() if type(field.default) in (int, float)}
    assert numbers == set(config._RANGES)
    for name, field in FIELDS.items():
        choices = getattr(field.type, "__args__", None) if name != "lr_milestones" else None
        if choices is not None:
            assert config._CHOICES[name] == choices
    literals = {name for name, field in FIELDS.items() if hasattr(field.type, "__args__") and name != "lr_milestones"}
    assert literals == set(config._CHOICES)


@pytest.mark.parametrize("name", config._CHOICES)
def test_a_choice_that_is_none_is_refused(name):
    with pytest.raises(RecipeError) as caught:
        Recipe().replace(**{name: "other"})
    assert str(caught.value) == f"{option(name)} is 'other'; must be {' or '.join(config._CHOICES[name])}"


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
        ({"validation": 0.5, "test": 0.5}, "--validation 0.5 and --test 0.5 leave nothing; must be under 1 together"),
        (
            {"schedule": "plateau", "validation": 0.0},
            "--schedule plateau has no validation split to watch; must be --validation above 0",
        ),
        (
            {"select_weights": "best", "validation": 0.0},
            "--select-weights best has no validation split to choose by; must be --validation above 0, or "
            "--select-weights last",
        ),
        (
            {"select_weights": "best", "train_on_val_from_epoch": 3},
            "--select-weights best has no validation split to choose by from epoch 3 on, when it trains too; must be "
            "--train-on-val-from-epoch 0, or --select-weights last",
        ),
        (
            {"schedule": "plateau", "select_weights": "last", "train_on_val_from_epoch": 3},
            "--schedule plateau has no validation split to watch from epoch 3 on, when it trains too; must be "
            "--train-on-val-from-epoch 0",
        ),
        (
            {"sampling": "balanced", "class_weights": "balanced"},
            "--sampling balanced and --class-weights balanced correct twice; must be one of them",
        ),
        (
            {"schedule": "multistep"},
            "--schedule multistep has no --lr-milestones; pass the epochs to divide at, or --schedule constant",
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
    with pytest.raises(RecipeError, match=r"unknown hyperparameter 'learnin_rate'. Did you mean 'lr'"):
        Recipe().replace(learnin_rate=0.1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("epochs = ", "is not a recipe"),
        ("epochs = '5'", "--epochs is '5'"),
        ("epoch = 5", "unknown hyperparameter 'epoch'. Did you mean 'epochs'?"),
        ("epochs = 0", "--epochs is 0"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(text, reason):
    with pytest.raises(RecipeError) as caught:
        from_toml(text, "runs/a/recipe.toml")
    assert str(caught.value).startswith("runs/a/recipe.toml")
    assert reason in str(caught.value)


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
