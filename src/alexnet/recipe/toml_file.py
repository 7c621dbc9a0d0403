"""``recipe.toml``: a recipe as a file, one table per group, each value with its help text as a comment.

A run writes one. ``alexnet train --recipe FILE.toml`` and ``alexnet.train(recipe="FILE.toml")`` start from one.
"""

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

from alexnet.errors import RecipeError, did_you_mean
from alexnet.recipe.config import Recipe, check_value, group_of, help_text
from alexnet.recipe.fields import GROUPS
from alexnet.recipe.presets import get_recipe, list_recipes


def to_toml(recipe: Recipe) -> str:
    """The text of a recipe file. :func:`from_toml` is the inverse."""
    lines = ["# Hyperparameters of a run. To train with them: alexnet train DATA --recipe FILE.toml", ""]
    lines.append(_line(recipe, "recipe"))
    for group, fields in GROUPS.items():
        lines += ["", f"[{group}]", *(_line(recipe, field.name) for field in dataclasses.fields(fields))]
    return "\n".join(lines) + "\n"


def _line(recipe: Recipe, name: str) -> str:
    value = getattr(recipe, name)
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    return f"{name} = {text:<12} # {help_text()[name]}"


def from_toml(text: str, file: str = "recipe.toml") -> Recipe:
    """The recipe in the text of ``file``.

    Fields that the file does not set have the values of the named recipe that its key ``recipe`` names (by default
    ``modern``). Raises :class:`RecipeError` with the file and the key for an unknown key or a wrong value.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{file} is not valid TOML: {error}", "", "compare it with a recipe.toml of a run") from error
    name = tables.pop("recipe", "modern")
    check_value("recipe", name, f"{file}: recipe")
    base = get_recipe(name) if name in list_recipes() else Recipe(recipe=name)
    values: dict[str, Any] = {}
    for group, table in tables.items():
        if not isinstance(table, dict) or group not in GROUPS:
            raise _unknown_key(file, group)
        for key, value in table.items():
            if group_of().get(key) != group:
                raise _unknown_key(file, f"{group}.{key}")
            values[key] = tuple(value) if isinstance(value, list) else value
            check_value(key, values[key], f"{file}: {group}.{key}")
    try:
        return base.replace(**values)
    except RecipeError as error:
        raise RecipeError(f"{file}: {error.what}", error.must, error.todo) from error


def _unknown_key(file: str, key: str) -> RecipeError:
    name = key.rpartition(".")[2]
    if name in group_of():
        hint = f"Did you mean '{group_of()[name]}.{name}'?"
    elif "." in key:
        known = [f"{group}.{field}" for field, group in group_of().items()]
        hint = did_you_mean(key, known, synonyms={"optimizer.learning_rate": "optimizer.lr"})
    else:
        hint = did_you_mean(key, ["recipe", *GROUPS])
    return RecipeError(f"{file}: unknown key {key!r}. {hint}")


def load_recipe(recipe: str | Path) -> Recipe:
    """The recipe of that name, or the one in a file (a path that ends in ``.toml``). Raises :class:`RecipeError`."""
    if isinstance(recipe, str) and not recipe.endswith(".toml"):
        return get_recipe(recipe)
    try:
        text = Path(recipe).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        message = error.strerror if isinstance(error, OSError) else str(error)
        raise RecipeError(
            f"recipe file {recipe} cannot be read: {message}", "", "pass the recipe.toml of a run"
        ) from error
    return from_toml(text, str(recipe))
