"""Which parameter learns how: rate, decay, and whether at all; by layer, as the recipe says.

A layer is named as in the network (``conv1``, torchvision's ``features.0``); a name also means what is inside
(``features``) or a single parameter (``fc7.bias``).
"""

import math
from typing import Any, NamedTuple

from torch import Tensor, nn

from alexnet.errors import RecipeError
from alexnet.recipe import Recipe, each_layer, layer_names, nearest


class Kind(NamedTuple):
    """How a parameter learns: ``scale`` its rate as a multiple of the schedule's, ``decay``, ``lowered`` by drops.

    From epoch ``milestone`` on the rate is divided by 10.
    """

    scale: float
    decay: float
    lowered: bool
    milestone: float


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, every parameter of ``network`` in one; raises :class:`RecipeError`.

    A rate of 0 is for :func:`freeze`, not for the groups: velocity and decay would still move the weights.
    """
    kinds: dict[Kind, list[Tensor]] = {}
    for name, kind in _kinds(network, recipe).items():
        kinds.setdefault(kind, []).append(network.get_parameter(name))
    return [
        {
            "params": found,
            "scale": kind.scale,
            "weight_decay": kind.decay,
            "lowered": kind.lowered,
            "milestone": kind.milestone,
        }
        for kind, found in kinds.items()
    ]


def _kinds(network: nn.Module, recipe: Recipe) -> dict[str, Kind]:
    rates = _by_parameter(network, each_layer(recipe.layer_rate, "--layer-rate"), "--layer-rate")
    decays = _by_parameter(network, each_layer(recipe.layer_decay, "--layer-decay"), "--layer-decay")
    milestones = _by_parameter(
        network, each_layer(recipe.layer_lr_milestones, "--layer-lr-milestones"), "--layer-lr-milestones"
    )
    fc_decay = recipe.weight_decay if recipe.fc_decay < 0 else recipe.fc_decay
    found = {}
    for name, _ in network.named_parameters():
        layer = network.get_submodule(name.rpartition(".")[0])
        rate, milestone = rates.get(name, 1.0), milestones.get(name, math.inf)
        if name.endswith("bias"):
            decay = recipe.weight_decay if recipe.bias_decay else 0.0
            found[name] = Kind(rate * recipe.bias_rate, decay, recipe.bias_lowered, milestone)
        else:
            decay = fc_decay if isinstance(layer, nn.Linear) else recipe.weight_decay
            found[name] = Kind(rate, decays.get(name, decay), True, milestone)
    return found


def freeze(network: nn.Module, recipe: Recipe, epoch: int) -> None:
    """Let learn in this epoch (from 0) what the recipe lets learn. The rest gets no gradient, so the optimizer leaves
    it alone, momentum and decay too.

    That is how a base rate of 0 works in the 2012 code. A function of the epoch alone, so that a resumed run needs
    nothing else. Raises :class:`RecipeError` for unknown layers, and where nothing is left to learn.
    """
    frozen = _frozen(network, recipe, epoch)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
        if name in frozen:
            parameter.grad = None


def check(network: nn.Module, recipe: Recipe) -> None:
    """Raise :class:`RecipeError` if the recipe names layers that ``network`` has not, or lets nothing learn."""
    _kinds(network, recipe)
    _frozen(network, recipe, recipe.freeze_from)


def _frozen(network: nn.Module, recipe: Recipe, epoch: int) -> set[str]:
    names = [name for name, _ in network.named_parameters()]
    rates = _by_parameter(network, each_layer(recipe.layer_rate, "--layer-rate"), "--layer-rate")
    found = {name for name, rate in rates.items() if rate == 0}
    if epoch >= recipe.freeze_from:
        for first, last in layer_names(recipe.freeze, "--freeze"):
            begin, end = _inside(network, first, "--freeze"), _inside(network, last, "--freeze")
            if names.index(begin[0]) > names.index(end[-1]):
                raise RecipeError(f"--freeze names {first}..{last}, which is backwards", f"{last}..{first}")
            found.update(names[names.index(begin[0]) : names.index(end[-1]) + 1])
    if len(found) == len(names):
        raise RecipeError("--freeze and --layer-rate leave nothing to learn", "at least one layer that learns")
    return found


def _by_parameter(network: nn.Module, layers: dict[str, float], option: str) -> dict[str, float]:
    """Layer -> number becomes parameter -> number; the longer name wins (fc7.bias over fc7)."""
    found: dict[str, float] = {}
    for layer in sorted(layers, key=lambda name: len(name.split("."))):
        found |= dict.fromkeys(_inside(network, layer, option), layers[layer])
    return found


def _inside(network: nn.Module, layer: str, option: str) -> list[str]:
    """Names of the parameters that ``layer`` means, in the network's order."""
    names = [name for name, _ in network.named_parameters()]
    found = [name for name in names if f"{name}.".startswith(f"{layer}.")]
    if not found:
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
        what = f"{option} names {layer!r}, which is no layer that learns in this network"
        raise RecipeError(what, nearest(layer, layers))
    return found
