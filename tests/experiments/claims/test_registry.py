"""The registry of claims: names, published figures, networks and criteria that exist."""

import pytest

from alexnet.errors import RecipeError
from alexnet.experiments.claims.plan import CRITERIA
from alexnet.experiments.claims.registry import CLAIMS, get_claim
from alexnet.models import list_models

NAMES = [
    "relu",
    "relu-wide",
    "relu-sigmoid",
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


def test_registry_has_ten_claims_and_two_controls():
    assert list(CLAIMS) == NAMES
    for name, claim in CLAIMS.items():
        assert claim.name == name and claim.statement and claim.section
        assert bool(claim.published) == (name != "relu-sigmoid")
        assert claim.criterion in CRITERIA
        for scale in ("small", "medium", "paper"):
            assert {variant.model(scale) for variant in claim.variants} <= {"", *list_models()}
        assert all(variant.small for variant in claim.variants)
        assert len({variant.name for variant in claim.variants}) == len(claim.variants)


def test_every_criterion_is_used():
    assert {claim.criterion for claim in CLAIMS.values()} == set(CRITERIA)


def test_published_figures_are_those_of_the_paper():
    published = {name: claim.published for name, claim in CLAIMS.items()}
    names = ("norm", "overlap", "towers", "crops")
    assert [published[name]["top1"] for name in names] == ["1.4", "0.4", "1.7", "1.5"]
    assert [published[name]["top5"] for name in names] == ["1.2", "0.3", "1.2", "1.3"]
    assert published["relu"] == {"ratio": "6"} and published["ensemble"] == {"top5": "1.8"}


def test_unknown_name_suggests_the_closest():
    assert get_claim("norm") is CLAIMS["norm"]
    with pytest.raises(RecipeError, match=r"unknown claim 'drop-out'\. Did you mean 'dropout'"):
        get_claim("drop-out")
