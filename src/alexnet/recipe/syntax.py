"""Recipe values that are written as text: intervals (``5min``, ``500steps``, ``1epoch``) and layers by name.

A layer name stands for the layer, for one parameter of it (``fc7.bias``) or for all layers inside it (``features`` for
``features.0`` and so on). Only the form is checked here; ``training/optim.py`` checks the names against the network.
"""

import math
import re
from typing import Literal, NamedTuple

from alexnet.errors import RecipeError

_INTERVAL = re.compile(r"(\d+(?:\.\d+)?)\s*(min|minutes?|steps?|epochs?)")


class Interval(NamedTuple):
    """How often something happens: every ``amount`` of ``unit``.

    Steps and epochs are integers of at least 1. Minutes may be a fraction, or 0 for every step.
    """

    amount: float
    unit: Literal["min", "step", "epoch"]


def parse_interval(text: str, option: str) -> Interval:
    """Parse the value of ``option``: ``5min``, ``500steps`` or ``1epoch``. Raises :class:`RecipeError`."""
    match = _INTERVAL.fullmatch(text.strip())
    expected = "a number and min, steps or epochs, such as 5min, 500steps or 1epoch"
    if match is None:
        raise RecipeError(f"{option} is {text!r}", expected)
    amount = float(match[1])
    if match[2].startswith("min"):
        return Interval(amount, "min")
    if amount < 1 or amount != int(amount):
        raise RecipeError(f"{option} is {text!r}", f"{expected}; steps and epochs are integers of at least 1")
    return Interval(amount, "step" if match[2].startswith("step") else "epoch")


def parse_layer_ranges(text: str, option: str) -> tuple[tuple[str, str], ...]:
    """Parse ``conv1..conv5,fc6`` into (("conv1", "conv5"), ("fc6", "fc6")): first and last layer of each range.

    Raises :class:`RecipeError` for text of another form.
    """
    ranges = []
    for part in _parts(text):
        first, dots, last = (name.strip() for name in part.partition(".."))
        if not first or (dots and not last) or ".." in last or "=" in part:
            raise RecipeError(f"{option} is {text!r}", "layers and ranges of them: conv1,conv3..conv5")
        ranges.append((first, last or first))
    return tuple(ranges)


def parse_layer_values(text: str, option: str) -> dict[str, float]:
    """Parse ``conv1=0,fc10=1`` into {"conv1": 0.0, "fc10": 1.0}. Raises :class:`RecipeError`."""
    values: dict[str, float] = {}
    for part in _parts(text):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        value = _number(number)
        if not name or not equals or value is None or name in values:
            raise RecipeError(f"{option} is {text!r}", "a number from 0 to 1000 for each layer, once: conv1=0,fc10=1")
        values[name] = value
    return values


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text.strip() else []


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= 1000 else None
