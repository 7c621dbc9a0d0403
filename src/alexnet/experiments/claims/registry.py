"""The claims of the AlexNet paper, and two controls. ``CLAIMS`` maps a name to a :class:`Claim`.

A claim is defined, planned, run and decided in this package:

1. **Defined** here: the statement, its section in the paper, the published figures, the variants to compare (a network
   and what its recipe changes), and the name of a criterion. ``variants[0]`` is the paper's configuration.
2. **Planned** by ``plan.py``: ``make_plan(claim, dataset, ...)`` chooses the base recipe, learning rates, seeds and
   epochs. Each training is a ``Job`` with a complete recipe.
3. **Run** by ``run.py``: ``run_claim(plan, ...)`` trains each variant with each seed. ``experiments/runner.py`` reuses
   finished trainings and resumes interrupted ones. The test split selects nothing.
4. **Measured** by the criterion, a function of ``CRITERIA`` in ``plan.py``: one value per seed, the paper's
   configuration against the other. ``ten_crop`` and ``ensemble`` have one configuration and compare two ways to test
   it; ``epochs_to_error`` leaves out a seed where neither network reaches the error.
5. **Decided** by ``judge`` and ``overall_verdict`` with Student's 95 % confidence interval over seeds: "holds" if it
   lies on the claim's side of no difference, "does not hold" if on the other side, otherwise "inconclusive"
   (``experiments/runner.py``).

To add a claim, add an entry to ``CLAIMS``. A new kind of measurement is a new function in
``CRITERIA`` of ``plan.py``, a name in ``CriterionName`` here, and a line in ``_CRITERIA`` of ``cli/studies.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from alexnet.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from alexnet.experiments.runner import Scale  # imports PyTorch, which a list of claims does not need

CriterionName = Literal["test_error", "generalization_gap", "epochs_to_error", "ten_crop", "ensemble"]


@dataclass(frozen=True)
class Variant:
    """One side of a comparison: a network at each scale, and the recipe fields that differ from the base recipe."""

    name: str
    small: str  # model for 32-pixel images
    medium: str  # model for 64-pixel images; empty: none
    paper: str  # model for 224-pixel crops; empty: none
    changes: Mapping[str, Any] = field(default_factory=dict)

    def model(self, scale: "Scale") -> str:
        """Network at that scale; empty: none."""
        return {"small": self.small, "medium": self.medium, "paper": self.paper}[scale]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper and how it is tested. ``variants[0]`` is the paper's configuration."""

    name: str
    section: str
    """Where the paper makes the statement."""
    statement: str
    criterion: CriterionName
    """Key of :data:`alexnet.experiments.claims.plan.CRITERIA`."""
    variants: tuple[Variant, ...]
    published: Mapping[str, str] = field(default_factory=dict)
    """The paper's figures by measured quantity: ``top1`` and ``top5`` in points, ``ratio``, ``gap``."""
    learning_rates: tuple[float, ...] = ()
    """Candidates with 32-pixel images; empty: those of the plan."""


_BASELINE = Variant("baseline", "alexnet_small", "alexnet_medium", "alexnet")
_UNREGULARIZED = {"dropout": 0.0, "crop": "center", "hflip": 0.0, "pca_noise_std": 0.0, "weight_decay": 0.0}
_UNREGULARIZED_SCALED = _UNREGULARIZED | {"divide": 64.0}  # inputs of about 1, as this initialization expects

CLAIMS = {
    claim.name: claim
    for claim in (
        Claim(
            name="relu",
            section="3.1, Figure 1",
            statement=(
                "a four-layer convolutional net with ReLUs reaches 25 % training error on CIFAR-10 six times faster "
                "than the same net with tanh; each with its own learning rate, no regularization"
            ),
            criterion="epochs_to_error",
            variants=(
                Variant("ReLU", "figure1_relu", "alexnet_medium", "alexnet", _UNREGULARIZED),
                Variant("tanh", "figure1_tanh", "alexnet_medium_tanh", "alexnet_tanh", _UNREGULARIZED),
            ),
            published={"ratio": "6"},
            learning_rates=(0.001, 0.003, 0.01),
        ),
        Claim(
            name="relu-wide",
            section="3.1, Figure 1",
            statement=(
                "a control, not a claim of the paper: the same net and the same 25 %, with initial weights from "
                "N(0, 1/fan-in), which suits tanh (LeCun et al. 1998); shows how much of Figure 1 is due to the "
                "initialization of 2012"
            ),
            criterion="epochs_to_error",
            variants=(
                Variant("ReLU", "figure1_relu_wide", "", "", _UNREGULARIZED_SCALED),
                Variant("tanh", "figure1_tanh_wide", "", "", _UNREGULARIZED_SCALED),
            ),
            published={"ratio": "6"},
            learning_rates=(0.001, 0.003, 0.01),
        ),
        Claim(
            name="relu-sigmoid",
            section="3.1",
            statement=(
                "a control, not a claim of the paper: the same net and the same training error, with the logistic "
                "sigmoid in place of tanh, which saturates too and has a slope of at most 1/4"
            ),
            criterion="epochs_to_error",
            variants=(
                Variant("ReLU", "figure1_relu", "alexnet_medium", "", _UNREGULARIZED),
                Variant("sigmoid", "figure1_sigmoid", "alexnet_medium_sigmoid", "", _UNREGULARIZED),
            ),
            learning_rates=(0.001, 0.003, 0.01, 0.03, 0.1),
        ),
        Claim(
            name="norm",
            section="3.3",
            statement=(
                "response normalization reduces top-1 and top-5 error by 1.4 and 1.2 points (CIFAR-10, four layers: "
                "13 % without, 11 % with)"
            ),
            criterion="test_error",
            variants=(
                _BASELINE,
                Variant("no norm", "alexnet_small_no_norm", "alexnet_medium_no_norm", "alexnet_no_norm"),
            ),
            published={"top1": "1.4", "top5": "1.2"},
        ),
        Claim(
            name="overlap",
            section="3.4",
            statement=(
                "pooling windows of 3 at stride 2 reduce top-1 and top-5 error by 0.4 and 0.3 points "
                "against windows of 2"
            ),
            criterion="test_error",
            variants=(
                _BASELINE,
                Variant("no overlap", "alexnet_small_no_overlap", "alexnet_medium_no_overlap", "alexnet_no_overlap"),
            ),
            published={"top1": "0.4", "top5": "0.3"},
        ),
        Claim(
            name="dropout",
            section="4.2",
            statement=(
                "without dropout the network overfits substantially; dropout roughly doubles the iterations to converge"
            ),
            criterion="generalization_gap",
            variants=(_BASELINE, Variant("no dropout", "alexnet_small", "alexnet_medium", "alexnet", {"dropout": 0.0})),
            published={"gap": "substantial", "ratio": "2"},
        ),
        Claim(
            name="augmentation",
            section="4.1",
            statement="without random crops, horizontal flips and PCA color noise the network overfits substantially",
            criterion="generalization_gap",
            variants=(
                _BASELINE,
                Variant(
                    "no augmentation",
                    "alexnet_small",
                    "alexnet_medium",
                    "alexnet",
                    {"crop": "center", "hflip": 0.0, "pca_noise_std": 0.0},
                ),
            ),
            published={"gap": "substantial"},
        ),
        Claim(
            name="color-noise",
            section="4.1",
            statement="PCA color noise reduces top-1 error by over 1 point",
            criterion="test_error",
            variants=(
                _BASELINE,
                Variant("no color noise", "alexnet_small", "alexnet_medium", "alexnet", {"pca_noise_std": 0.0}),
            ),
            published={"top1": "over 1"},
        ),
        Claim(
            name="towers",
            section="3.2",
            statement=(
                "two towers reduce top-1 and top-5 error by 1.7 and 1.2 points against one with half of the kernels "
                "(ILSVRC-2010)"
            ),
            criterion="test_error",
            variants=(
                _BASELINE,
                Variant("half of the kernels", "alexnet_small_half", "alexnet_medium_half", "alexnet_half"),
                Variant("one tower of equal cost", "alexnet_small_single", "alexnet_medium_single", ""),
            ),
            published={"top1": "1.7", "top5": "1.2"},
        ),
        Claim(
            name="depth",
            section="7",
            statement="removing any middle layer costs about 2 points of top-1 error",
            criterion="test_error",
            variants=(
                _BASELINE,
                *(
                    Variant(
                        f"no conv{n}", f"alexnet_small_no_conv{n}", f"alexnet_medium_no_conv{n}", f"alexnet_no_conv{n}"
                    )
                    for n in (3, 4, 5)
                ),
            ),
            published={"top1": "2"},
        ),
        Claim(
            name="crops",
            section="4.1 and table 1",
            statement=(
                "the mean of ten crops has 37.5 / 17.0 % error (top-1 / top-5, ILSVRC-2010), "
                "the center crop 39.0 / 18.3 %"
            ),
            criterion="ten_crop",
            variants=(_BASELINE,),
            published={"top1": "1.5", "top5": "1.3"},
        ),
        Claim(
            name="ensemble",
            section="6 and table 2",
            statement="the mean of five similar networks has 16.4 % top-5 error (ILSVRC-2012), one of them 18.2 %",
            criterion="ensemble",
            variants=(_BASELINE,),
            published={"top5": "1.8"},
        ),
    )
}


def get_claim(name: str) -> Claim:
    """Return the claim called ``name``.

    Raises:
        RecipeError: Unknown name; the message suggests the closest one.
    """
    if name not in CLAIMS:
        raise RecipeError(f"unknown claim {name!r}. {did_you_mean(name, CLAIMS)}")
    return CLAIMS[name]
