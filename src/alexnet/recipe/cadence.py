"""How often something happens, as a person writes it: ``5min``, ``500steps``, ``1epoch``."""

import re
from typing import Literal, NamedTuple

from alexnet.errors import RecipeError

_WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*(min|minutes?|steps?|epochs?)")


class Cadence(NamedTuple):
    """``amount`` of ``unit``: whole steps or epochs, at least one, or minutes, a fraction or 0 (after each step)."""

    amount: float
    unit: Literal["min", "step", "epoch"]


def cadence(text: str, option: str) -> Cadence:
    """Read what was given as ``option``; raises :class:`RecipeError`."""
    found = _WRITTEN.fullmatch(text.strip())
    must = "a number and min, steps or epochs, such as 5min, 500steps or 1epoch"
    if found is None:
        raise RecipeError(f"{option} is {text!r}", must)
    amount = float(found[1])
    if found[2].startswith("min"):
        return Cadence(amount, "min")
    if amount < 1 or amount != int(amount):
        raise RecipeError(f"{option} is {text!r}", f"{must}; steps and epochs are whole and at least 1")
    return Cadence(amount, "step" if found[2].startswith("step") else "epoch")
