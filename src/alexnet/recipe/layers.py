"""Layers by name, as a recipe says them: ``conv1..conv5,fc6`` and ``conv1=0,fc10=1``.

Names are held against a network when one is there; here only the form is. A name means the layer, or one parameter of
it (``fc7.bias``), or all layers inside it (``features`` has ``features.0`` …).
"""

import math

from alexnet.errors import RecipeError


def layer_names(text: str, option: str) -> tuple[tuple[str, str], ...]:
    """``conv1..conv5,fc6`` -> (("conv1", "conv5"), ("fc6", "fc6")): the first and the last of each range.

    Raises :class:`RecipeError` for what has another form.
    """
    found = []
    for part in _parts(text):
        first, dots, last = (word.strip() for word in part.partition(".."))
        if not first or (dots and not last) or ".." in last or "=" in part:
            raise RecipeError(f"{option} is {text!r}", "layers and ranges of them: conv1,conv3..conv5")
        found.append((first, last or first))
    return tuple(found)


def each_layer(text: str, option: str) -> dict[str, float]:
    """``conv1=0,fc10=1`` -> {"conv1": 0.0, "fc10": 1.0}; raises :class:`RecipeError` for what has another form."""
    found: dict[str, float] = {}
    for part in _parts(text):
        name, equals, number = (word.strip() for word in part.partition("="))
        value = _number(number)
        if not name or not equals or value is None or name in found:
            raise RecipeError(f"{option} is {text!r}", "a number from 0 to 1000 for each layer, once: conv1=0,fc10=1")
        found[name] = value
    return found


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text.strip() else []


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= 1000 else None
