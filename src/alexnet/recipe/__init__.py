"""Every number of a run, with its unit and source; the recipes that have a name; where two differ."""

from alexnet.recipe.compare import Difference, compare
from alexnet.recipe.config import (
    Cadence,
    Recipe,
    cadence,
    differences,
    each_layer,
    from_dict,
    from_toml,
    help_text,
    layer_names,
    nearest,
    option,
)
from alexnet.recipe.effect import check_effect, set_by_hand
from alexnet.recipe.presets import OF_LAYER_FILES, default_for, describe, list_recipes, named, source

__all__ = [
    "OF_LAYER_FILES",
    "Cadence",
    "Difference",
    "Recipe",
    "cadence",
    "check_effect",
    "compare",
    "default_for",
    "describe",
    "differences",
    "each_layer",
    "from_dict",
    "from_toml",
    "help_text",
    "layer_names",
    "list_recipes",
    "named",
    "nearest",
    "option",
    "set_by_hand",
    "source",
]
