"""Who takes part: nine years of networks and the runner-up of 2012, each with what its own inputs need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alexnet import recipe as recipes
from alexnet.errors import RecipeError

FISHER = "fisher"
JUDGE = "alexnet"  # whom all others are compared with

# Networks made for inputs of about one rather than for gray levels; drawn as their own papers or libraries draw them.
_SCALED = {"initialization": "own", "divide_std": True}
_NORMED = _SCALED | {"learning_rate": 0.001}  # with batch norm, a higher rate than AlexNet's learns sooner


@dataclass(frozen=True)
class Entrant:
    """A contestant. ``changes``: what its recipe has different, all of it about its inputs, its start and its rate."""

    name: str  # as it is typed
    title: str  # for people
    year: int
    model: str  # of :func:`alexnet.models.create_model`; empty: Fisher vectors
    changes: Mapping[str, Any] = field(default_factory=dict)
    published: str = ""  # top-5 test error of its kind at ILSVRC, on ImageNet


_ALEXNET = "15.3 % (2012, first)"
_VGG = "7.3 % (2014, second)"
ENTRANTS = {
    entrant.name: entrant
    for entrant in (
        Entrant("alexnet", "AlexNet, two towers", 2012, "alexnet", {}, _ALEXNET),
        Entrant("alexnet_single", "AlexNet, one tower", 2012, "alexnet_single", {}),
        Entrant("alexnet_owt", "AlexNet, one weird trick", 2014, "alexnet_owt", _SCALED),
        Entrant(
            "lenet5", "LeNet-5", 1998, "lenet5_shrunk",
            {"initialization": "own", "divide": 80.0, "dropout": 0.0, "learning_rate": 0.001},
        ),
        Entrant("vgg11", "VGG-11", 2014, "vgg11", _SCALED | {"learning_rate": 0.0001}, _VGG),
        Entrant("vgg11_bn", "VGG-11, batch norm", 2014, "vgg11_bn", _SCALED, _VGG),
        Entrant("vgg16", "VGG-16", 2014, "vgg16", _SCALED | {"learning_rate": 0.0001}, _VGG),
        Entrant("vgg16_bn", "VGG-16, batch norm", 2014, "vgg16_bn", _SCALED, _VGG),
        Entrant("googlenet", "GoogLeNet (Inception)", 2014, "googlenet", _NORMED, "6.7 % (2014, first)"),
        Entrant("inception_v3", "Inception v3", 2015, "inception_v3", _NORMED),
        Entrant("resnet18", "ResNet-18", 2015, "resnet18", _NORMED, "3.6 % (2015, first)"),
        Entrant("resnet50", "ResNet-50", 2015, "resnet50", _NORMED, "3.6 % (2015, first)"),
        Entrant(FISHER, "SIFT + Fisher vectors", 2012, "", {}, "26.2 % (2012, second)"),
    )
}  # fmt: skip
USUAL = ("alexnet", "alexnet_single", "alexnet_owt", "lenet5", "vgg11_bn", "googlenet", "resnet18", FISHER)
# The networks whose published weights torchvision has.
PUBLISHED = (
    "alexnet_owt",
    "vgg11",
    "vgg11_bn",
    "vgg16",
    "vgg16_bn",
    "googlenet",
    "inception_v3",
    "resnet18",
    "resnet50",
)


def chosen(names: Sequence[str]) -> tuple[Entrant, ...]:
    """The contestants called so, in that order; none named: the usual ones. Raises :class:`RecipeError`."""
    for place, name in enumerate(names):
        if name not in ENTRANTS:
            raise RecipeError(f"--nets names {name!r}", recipes.nearest(name, list(ENTRANTS)))
        if name in names[:place]:
            raise RecipeError(f"--nets names {name!r} twice", "each contestant once")
    return tuple(ENTRANTS[name] for name in names or USUAL)
