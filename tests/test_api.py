"""What the package offers to Python programs."""

from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import alexnet
from alexnet.errors import BundleError, RecipeError, RunError


def test_what_is_offered_is_there_and_sorted():
    assert alexnet.__all__ == sorted(alexnet.__all__)
    for name in alexnet.__all__:
        assert getattr(alexnet, name).__doc__, name
    with pytest.raises(AttributeError, match="trian"):
        alexnet.trian  # noqa: B018


def test_the_version_is_that_of_the_distribution():
    assert alexnet.__version__ == metadata.version("alexnet")


def test_no_public_name_is_also_a_module():
    """The import of ``alexnet.x`` sets the attribute ``x`` of the package: a function of that name would be lost."""
    modules = {path.stem for path in Path(alexnet.__file__).parent.iterdir()}
    assert not modules & set(alexnet.__all__)


def test_train_load_predict_evaluate(tmp_path):
    options = alexnet.api.DataOptions(cache=tmp_path / "cache")
    result = alexnet.train(
        "digits", run=tmp_path / "run", model="lenet5", epochs=10, test=0.3, options=options, device="cpu"
    )
    assert result.recipe.epochs == 10
    assert result.scores["test"].top1 > 0.85
    classifier = alexnet.load(tmp_path / "run", device="cpu")
    image = np.zeros((50, 40, 3), np.uint8)
    assert len(classifier.predict(image)[0].top_k) == 5
    assert classifier.embed([image, image]).shape == (2, 84)
    assert alexnet.evaluate(tmp_path / "run", device="cpu").top1 == result.scores["test"].top1
    ten = alexnet.evaluate(tmp_path / "run", crops=10, split="validation", device="cpu")
    assert (ten.crops, ten.split, ten.count) == (10, "validation", result.scores["validation"].count)
    with pytest.raises(BundleError, match="a bundle has no data of its own"):
        alexnet.evaluate(tmp_path / "run" / "bundle", device="cpu")


def test_wrong_names_get_the_right_ones(tmp_path):
    with pytest.raises(RecipeError, match="Did you mean 'lr'"):
        alexnet.train("digits", run=tmp_path / "run", lerning_rate=1)
    with pytest.raises(RunError, match="Did you mean 'filters'"):
        alexnet.plot("filter", tmp_path)
    assert not (tmp_path / "run").exists()
