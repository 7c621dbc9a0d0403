"""The hyperparameters of a run, the named recipes (presets), and the differences between two recipes."""

from alexnet.recipe.compare import Difference, compare
from alexnet.recipe.config import (
    Interval,
    Recipe,
    differences,
    from_dict,
    from_toml,
    help_text,
    option,
    parse_interval,
    parse_layer_ranges,
    parse_layer_values,
)
from alexnet.recipe.effect import check_effect, is_overridden
from alexnet.recipe.presets import LAYER_FILE_FIELDS, describe, get_recipe, list_recipes, recipe_for, source

__all__ = [
    "LAYER_FILE_FIELDS",
    "Difference",
    "Interval",
    "Recipe",
    "check_effect",
    "compare",
    "describe",
    "differences",
    "from_dict",
    "from_toml",
    "get_recipe",
    "help_text",
    "is_overridden",
    "list_recipes",
    "option",
    "parse_interval",
    "parse_layer_ranges",
    "parse_layer_values",
    "recipe_for",
    "source",
]
