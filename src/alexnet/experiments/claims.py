"""What the paper claims, in its words and figures, and which networks and recipes put each claim to the test."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alexnet.errors import RecipeError, did_you_mean


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a network at both scales, and what its recipe has different."""

    name: str  # for people
    small: str  # model for small images
    paper: str  # model for 224-pixel crops; empty: there is none
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """For folders."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class Claim:
    """A statement of the paper. ``arms[0]`` is the paper's way; each other arm leaves something out of it.

    ``kind``: what is compared: test ``error`` of the arms, ``speed`` (epochs to a training error), ``gap`` (between
    test and training error), ``crops`` (ten against one), ``ensemble`` (several against one).
    ``figures``: of the paper, by what is measured (``top1``, ``top5`` in points, ``ratio``, ``gap``).
    """

    name: str
    section: str
    words: str
    kind: str
    arms: tuple[Arm, ...]
    figures: Mapping[str, str] = field(default_factory=dict)
    rates: tuple[float, ...] = ()  # to choose from with small images; empty: the plan's own
    measured: str = ""  # how long it took, where that was measured


_NET = Arm("the network", "alexnet_small", "alexnet")
_PLAIN = {"dropout": 0.0, "crop": "center", "hflip": 0.0, "pca_noise_std": 0.0, "weight_decay": 0.0}
_WIDE = _PLAIN | {"divide": 64.0}  # inputs of about one, as that start expects

CLAIMS = {
    claim.name: claim
    for claim in (
        Claim(
            "relu",
            "3.1, Figure 1",
            "a four-layer convolutional net with ReLUs reaches 25 % training error on CIFAR-10 six times faster than "
            "the same net with tanh; each with its own learning rate, no regularization",
            "speed",
            (Arm("ReLU", "figure1_relu", "alexnet", _PLAIN), Arm("tanh", "figure1_tanh", "alexnet_tanh", _PLAIN)),
            {"ratio": "6"},
            (0.001, 0.003, 0.01),
        ),
        Claim(
            "relu-wide",
            "3.1, Figure 1",
            "not the paper's: the same net and the same 25 %, but its weights start from N(0, 1/fan-in), which is made "
            "for tanh (LeCun et al. 1998): how much of Figure 1 is the start of 2012",
            "speed",
            (Arm("ReLU", "figure1_relu_wide", "", _WIDE), Arm("tanh", "figure1_tanh_wide", "", _WIDE)),
            {"ratio": "6"},
            (0.001, 0.003, 0.01),
        ),
        Claim(
            "norm",
            "3.3",
            "response normalization reduces top-1 and top-5 error by 1.4 and 1.2 points (CIFAR-10, four layers: 13 % "
            "without, 11 % with)",
            "error",
            (_NET, Arm("no norm", "alexnet_small_no_norm", "alexnet_no_norm")),
            {"top1": "1.4", "top5": "1.2"},
        ),
        Claim(
            "overlap",
            "3.4",
            "pooling windows of 3 at stride 2 reduce top-1 and top-5 error by 0.4 and 0.3 points against windows of 2",
            "error",
            (_NET, Arm("no overlap", "alexnet_small_no_overlap", "alexnet_no_overlap")),
            {"top1": "0.4", "top5": "0.3"},
        ),
        Claim(
            "dropout",
            "4.2",
            "without dropout the network overfits substantially; dropout roughly doubles the iterations to converge",
            "gap",
            (_NET, Arm("no dropout", "alexnet_small", "alexnet", {"dropout": 0.0})),
            {"gap": "substantial", "ratio": "2"},
        ),
        Claim(
            "augmentation",
            "4.1",
            "without crops, mirrors and color noise the network overfits substantially",
            "gap",
            (
                _NET,
                Arm(
                    "no augmentation",
                    "alexnet_small",
                    "alexnet",
                    {"crop": "center", "hflip": 0.0, "pca_noise_std": 0.0},
                ),
            ),
            {"gap": "substantial"},
        ),
        Claim(
            "color-noise",
            "4.1",
            "noise along the color axes reduces top-1 error by over 1 point",
            "error",
            (_NET, Arm("no color noise", "alexnet_small", "alexnet", {"pca_noise_std": 0.0})),
            {"top1": "over 1"},
        ),
        Claim(
            "towers",
            "3.2",
            "two towers reduce top-1 and top-5 error by 1.7 and 1.2 points against one with half of the kernels "
            "(ILSVRC-2010)",
            "error",
            (
                _NET,
                Arm("half of the kernels", "alexnet_small_half", "alexnet_half"),
                Arm("one tower of equal cost", "alexnet_small_single", ""),
            ),
            {"top1": "1.7", "top5": "1.2"},
        ),
        Claim(
            "depth",
            "7",
            "removing any middle layer costs about 2 points of top-1 error",
            "error",
            (_NET, *(Arm(f"no conv{n}", f"alexnet_small_no_conv{n}", f"alexnet_no_conv{n}") for n in (3, 4, 5))),
            {"top1": "2"},
        ),
        Claim(
            "crops",
            "4.1 and table 1",
            "the mean of ten crops has 37.5 / 17.0 % error (top-1 / top-5, ILSVRC-2010), the center view 39.0 / 18.3 %",
            "crops",
            (_NET,),
            {"top1": "1.5", "top5": "1.3"},
        ),
        Claim(
            "ensemble",
            "6 and table 2",
            "the mean of five similar networks has 16.4 % top-5 error (ILSVRC-2012), one of them 18.2 %",
            "ensemble",
            (_NET,),
            {"top5": "1.8"},
        ),
    )
}


def find(name: str) -> Claim:
    """The claim called ``name``; raises :class:`RecipeError` with the nearest right one."""
    if name not in CLAIMS:
        raise RecipeError(f"unknown claim {name!r}. {did_you_mean(name, CLAIMS)}")
    return CLAIMS[name]
