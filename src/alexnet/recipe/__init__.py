"""Every number of a run, with its unit and source; the recipes that have a name; where two differ."""

from alexnet.recipe.cadence import Cadence, cadence
from alexnet.recipe.compare import Difference, compare
from alexnet.recipe.effect import check_effect, set_by_hand
from alexnet.recipe.fields import Recipe, differences, from_dict, from_toml, help_text, nearest, option
from alexnet.recipe.layers import each_layer, layer_names
from alexnet.recipe.named import OF_LAYER_FILES, default_for, describe, list_recipes, named, source

__all__ = [
    "OF_LAYER_FILES", "Cadence", "Difference", "Recipe", "cadence", "check_effect", "compare", "default_for",
    "describe", "differences", "each_layer", "from_dict", "from_toml", "help_text", "layer_names", "list_recipes",
    "named", "nearest", "option", "set_by_hand", "source",
]  # fmt: skip
