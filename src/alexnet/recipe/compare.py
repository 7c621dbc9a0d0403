"""The hyperparameters in which two named recipes differ, with the source of each value."""

import dataclasses
from typing import Any, NamedTuple

from alexnet.recipe.config import Recipe, help_text
from alexnet.recipe.presets import get_recipe, source


class Difference(NamedTuple):
    """A field in which two recipes differ: its two values, the sources of both, and the help text of the field."""

    field: str
    values: tuple[Any, Any]
    sources: tuple[str, str]
    help: str

    def to_dict(self) -> dict[str, Any]:
        """As values that JSON can hold, without the field's name."""
        return {"values": list(self.values), "sources": list(self.sources), "help": self.help}


def compare(a: str, b: str) -> list[Difference]:
    """The fields in which two named recipes differ. Raises :class:`RecipeError` for an unknown name."""
    first, second = get_recipe(a), get_recipe(b)
    return [
        Difference(name, (one, other), (source(a, name), source(b, name)), help_text()[name])
        for name in (field.name for field in dataclasses.fields(Recipe) if field.name != "recipe")
        if (one := getattr(first, name)) != (other := getattr(second, name))
    ]
