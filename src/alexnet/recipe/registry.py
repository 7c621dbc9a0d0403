"""The registries of optimizers and schedules: names, help texts, and the functions that implement them.

To add one, write its function in ``training/optim.py`` or ``training/schedule.py`` and add one line here. The choices
of ``--optimizer`` and ``--schedule``, their help texts and the checks of a recipe follow from these dicts. The
functions are named as ``module:function``, so that a recipe is read and checked without importing PyTorch.
"""

import pkgutil
from collections.abc import Mapping
from typing import Any, NamedTuple

from alexnet.errors import RecipeError, did_you_mean


class Choice(NamedTuple):
    """An optimizer or schedule: one line of help, and the function that implements it as ``module:function``."""

    help: str
    function: str


# Functions of (parameter groups, recipe) that return a torch.optim.Optimizer.
OPTIMIZERS: dict[str, Choice] = {
    "paper": Choice("SGD with the momentum rule of the paper, section 5", "alexnet.training.optim:paper_sgd"),
    "sgd": Choice("PyTorch's SGD with momentum", "alexnet.training.optim:sgd"),
    "adamw": Choice("AdamW", "alexnet.training.optim:adamw"),
    "lars": Choice("LARS, for batches of thousands (You et al. 2017)", "alexnet.training.optim:lars"),
}

# Functions of (recipe, progress) that return the learning rate as a fraction of its peak.
SCHEDULES: dict[str, Choice] = {
    "cosine": Choice("half a cosine wave from the peak to 0", "alexnet.training.schedule:cosine"),
    "plateau": Choice(
        "divided by 10 when the validation error has stopped falling (paper, section 5)",
        "alexnet.training.schedule:plateau",
    ),
    "multistep": Choice("divided by 10 at the epochs of lr_milestones", "alexnet.training.schedule:multistep"),
    "poly": Choice("(1 − t)², from the peak to 0", "alexnet.training.schedule:poly"),
    "constant": Choice("the peak", "alexnet.training.schedule:constant"),
}


def lookup(registry: Mapping[str, Choice], name: str) -> Any:
    """The function that implements ``name``. Raises :class:`RecipeError` for a name that is not in the registry."""
    if name not in registry:
        raise RecipeError(f"unknown name {name!r}. {did_you_mean(name, registry)}")
    return pkgutil.resolve_name(registry[name].function)


def help_lines(registry: Mapping[str, Choice]) -> str:
    """All choices with their help, on one line: ``cosine: … | plateau: …``."""
    return " | ".join(f"{name}: {choice.help}" for name, choice in registry.items())
