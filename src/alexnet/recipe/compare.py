"""Where two named recipes differ, in their numbers and in the networks that they name, with each value's source."""

import dataclasses
from typing import Any, NamedTuple

from alexnet.recipe.config import Recipe, help_text
from alexnet.recipe.presets import get_recipe, source
from alexnet.recipe.traits import TOPICS, TRAITS


class Difference(NamedTuple):
    """One thing in which two recipes differ: ``what``, its two values, their two sources, what it means."""

    what: str
    values: tuple[Any, Any]
    sources: tuple[str, str]
    meaning: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        return {"values": list(self.values), "sources": list(self.sources), "meaning": self.meaning}


def compare(a: str, b: str) -> tuple[list[Difference], list[Difference]]:
    """The fields in which two named recipes differ, and the traits in which their networks do.

    Networks that are not told about here have no traits: ``alexnet models NAME`` shows them. Raises
    :class:`alexnet.errors.RecipeError` for a name that is none.
    """
    first, second = get_recipe(a), get_recipe(b)
    return _fields(first, second), _traits(first.model, second.model)


def _fields(a: Recipe, b: Recipe) -> list[Difference]:
    meaning = help_text()
    return [
        Difference(name, (one, other), (source(a.recipe, name), source(b.recipe, name)), meaning[name])
        for name in (field.name for field in dataclasses.fields(Recipe) if field.name != "recipe")
        if (one := getattr(a, name)) != (other := getattr(b, name))
    ]


def _traits(a: str, b: str) -> list[Difference]:
    if a not in TRAITS or b not in TRAITS:
        return []
    return [
        Difference(topic, (one.value, other.value), (one.source, other.source), meaning)
        for topic, meaning in TOPICS.items()
        if (one := TRAITS[a][topic]).value != (other := TRAITS[b][topic]).value
    ]
