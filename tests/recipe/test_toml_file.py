"""Recipe files: any recipe survives its file; unknown keys and wrong values are refused by file and key."""

import json
import os
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.errors import RecipeError
from alexnet.recipe import GROUPS, Recipe, from_toml, get_recipe, help_text, list_recipes, load_recipe, to_toml

BARE = Recipe(recipe="bare", validation=0.1, select_weights="last", schedule="cosine")


@pytest.mark.parametrize("name", list_recipes())
def test_a_named_recipe_survives_its_file(name):
    text = to_toml(get_recipe(name))
    assert from_toml(text) == get_recipe(name)
    tables = tomllib.loads(text)
    assert list(tables) == ["recipe", *GROUPS]
    for line in text.splitlines():
        if " = " in line:
            assert line.endswith(f"# {help_text()[line.split(' = ')[0]]}")


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
    assert from_toml(to_toml(recipe)) == recipe


def test_a_file_may_set_a_few_fields_of_a_named_recipe(tmp_path):
    text = 'recipe = "paper"\n[optimizer]\nlr = 0.02\n[schedule]\nepochs = 30\n'
    expected = get_recipe("paper").replace(lr=0.02, epochs=30)
    assert from_toml(text) == expected
    (tmp_path / "my.toml").write_text(text)
    assert Recipe.from_file(tmp_path / "my.toml") == Recipe.from_file(str(tmp_path / "my.toml")) == expected
    assert load_recipe(tmp_path / "my.toml") == load_recipe(str(tmp_path / "my.toml")) == expected
    assert load_recipe("paper") == get_recipe("paper")
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "my.toml").read_bytes())
    assert load_recipe(tmp_path / "marked.toml") == expected
    assert from_toml("") == get_recipe("modern")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[schedule]\nepochs = ", " is not valid TOML: "),
        ("recipe = 5", ": recipe is 5; must be text"),
        ("[schedule]\nepochs = '5'", ": schedule.epochs is '5'; must be an integer"),
        ("[schedule]\nepochs = -1", ": schedule.epochs is -1; must be from 0 to 1000000"),
        ("[optimizer]\noptimizer = 'adam'", ": optimizer.optimizer is 'adam'; must be paper or sgd or adamw or lars"),
        ("[schedule]\nepoch = 5", ": unknown key 'schedule.epoch'. Did you mean 'schedule.epochs'?"),
        ("[optimizer]\nlearning_rate = 5", ": unknown key 'optimizer.learning_rate'. Did you mean 'optimizer.lr'?"),
        ("[schedule]\nlr = 5", ": unknown key 'schedule.lr'. Did you mean 'optimizer.lr'?"),
        ("epochs = 5", ": unknown key 'epochs'. Did you mean 'schedule.epochs'?"),
        ("[optimiser]\nlr = 5", ": unknown key 'optimiser'. Did you mean 'optimizer'?"),
        ("optimizer = 'sgd'", ": unknown key 'optimizer'. Did you mean 'optimizer.optimizer'?"),
        ("[schedule]\nschedule = 'multistep'", ": --schedule multistep needs --lr-milestones; pass epochs, or"),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_key(text, reason):
    with pytest.raises(RecipeError) as caught:
        from_toml(text, "runs/a/recipe.toml")
    assert str(caught.value).startswith("runs/a/recipe.toml" + reason)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(
        RecipeError, match=r"recipe file .*no\.toml cannot be read: No such file or directory; pass the"
    ):
        load_recipe(tmp_path / "no.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(RecipeError, match=r"recipe file .*paper cannot be read"):
        Recipe.from_file(tmp_path / "paper")  # a file, not the recipe of that name
    with pytest.raises(RecipeError, match=r"recipe file .*bytes\.toml cannot be read: .*decode"):
        load_recipe(str(tmp_path / "bytes.toml"))


def test_values_survive_json(tmp_path):
    assert json.loads(json.dumps(BARE.to_dict())) == BARE.to_dict()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[optimizer]\nlr = " + "9" * 5000, "Exceeds the limit"),
        ("a = " + "[" * 20_000, "TOML that is nested too deeply"),
        ("#" * 300_000, "the limit is 262,144"),
    ],
)
def test_files_that_are_too_much_are_refused(tmp_path, text, reason):
    """An integer of 5,000 digits was a ValueError, deep nesting a RecursionError."""
    path = tmp_path / "r.toml"
    path.write_text(text)
    for read in (lambda: from_toml(text, "r.toml"), lambda: load_recipe(path)):
        with pytest.raises(RecipeError, match=r"r\.toml is not valid TOML: ") as caught:
            read()
        assert reason in str(caught.value)


@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
def test_a_file_that_never_ends_is_refused(tmp_path, target):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "r.toml").symlink_to(target)
    with pytest.raises(RecipeError, match=r"r\.toml cannot be read: not a regular file"):
        load_recipe(tmp_path / "r.toml")
