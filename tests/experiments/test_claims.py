"""The catalogue: every claim has its words, its figures, and networks that exist."""

import pytest

from alexnet.errors import RecipeError
from alexnet.experiments.claims import CLAIMS, find
from alexnet.models import list_models

NAMES = [
    "relu",
    "relu-wide",
    "norm",
    "overlap",
    "dropout",
    "augmentation",
    "color-noise",
    "towers",
    "depth",
    "crops",
    "ensemble",
]


def test_the_ten_claims_and_a_control():
    assert list(CLAIMS) == NAMES
    for name, claim in CLAIMS.items():
        assert claim.name == name and claim.words and claim.section and claim.figures
        assert all(arm.small in list_models() for arm in claim.arms)
        assert len({arm.key for arm in claim.arms}) == len(claim.arms)


def test_the_papers_figures():
    assert [CLAIMS[name].figures["top1"] for name in ("norm", "overlap", "towers", "crops")] == [
        "1.4",
        "0.4",
        "1.7",
        "1.5",
    ]
    assert [CLAIMS[name].figures["top5"] for name in ("norm", "overlap", "towers", "crops")] == [
        "1.2",
        "0.3",
        "1.2",
        "1.3",
    ]
    assert CLAIMS["relu"].figures == {"ratio": "6"} and CLAIMS["ensemble"].figures == {"top5": "1.8"}


def test_a_wrong_name_gets_the_right_one():
    assert find("norm") is CLAIMS["norm"]
    with pytest.raises(RecipeError, match=r"unknown claim 'drop-out'\. Did you mean 'dropout'"):
        find("drop-out")
