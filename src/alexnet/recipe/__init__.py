"""The hyperparameters of a run, the named recipes (presets), and the differences between two recipes."""

from alexnet.recipe.config import Recipe, differences, from_dict, group_of, help_text, option
from alexnet.recipe.effect import check_effect, is_overridden
from alexnet.recipe.fields import (
    GROUPS,
    OPTIMIZERS,
    SCHEDULES,
    Interval,
    lookup,
    parse_interval,
    parse_layer_ranges,
    parse_layer_values,
)
from alexnet.recipe.presets import (
    LAYER_FILE_FIELDS,
    Difference,
    compare,
    describe,
    from_toml,
    get_recipe,
    list_recipes,
    load_recipe,
    recipe_for,
    source,
    to_toml,
)

__all__ = [
    "GROUPS",
    "LAYER_FILE_FIELDS",
    "OPTIMIZERS",
    "SCHEDULES",
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
    "group_of",
    "help_text",
    "is_overridden",
    "list_recipes",
    "load_recipe",
    "lookup",
    "option",
    "parse_interval",
    "parse_layer_ranges",
    "parse_layer_values",
    "recipe_for",
    "source",
    "to_toml",
]
