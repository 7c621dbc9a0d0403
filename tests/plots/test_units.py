"""The plots of units: drawn for a small classifier from the user's images."""

import numpy as np
import pytest
import torch

from alexnet import api
from alexnet.bundle import Bundle
from alexnet.errors import ModelError, RunError
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model
from alexnet.plots import explanations


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    network = create_model("lenet5").initialize(torch.Generator().manual_seed(0))
    ones = torch.ones(3)
    normalization = Normalization(100 * ones, ones, torch.eye(3), torch.tensor(80.0))
    folder = tmp_path_factory.mktemp("units") / "bundle"
    return Bundle(network, tuple("abcdefghij"), normalization, 32, "crop").save(folder)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("patches", {"images": 3}),
        ("deconvnet", {"images": 3, "layer": "c1", "count": 2}),
        ("maximization", {"count": 2}),
    ],
)
def test_each_kind_is_drawn(bundle, tmp_path, kind, options):
    draw = np.random.default_rng(0)
    if "images" in options:
        options = options | {"images": [draw.integers(0, 255, (40, 40, 3), np.uint8) for _ in range(3)]}
    path = api.plot(kind, bundle, tmp_path / "plot.png", device="cpu", **options)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_what_is_not_drawn(bundle, tmp_path):
    with pytest.raises(ModelError, match=r"unknown class 'k'"):
        api.plot("maximization", bundle, tmp_path / "plot.png", target_class="k", device="cpu")
    with pytest.raises(RunError, match="--target-class and --layer both say what is maximized"):
        api.plot("maximization", bundle, tmp_path / "plot.png", target_class="a", layer="c1", device="cpu")
    assert not (tmp_path / "plot.png").exists()


def test_units_are_evenly_spaced_and_views_are_around_gray():
    assert explanations.spread_units(4, 10) == [0, 3, 6, 9]
    assert explanations.spread_units(12, 3) == [0, 1, 2]
    view = np.array([[[-2.0, 0.0, 4.0]]], np.float32)
    assert explanations.view_shades(view)[0, :, 0].tolist() == [64, 128, 255]
