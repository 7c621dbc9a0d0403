"""Several runs as one, from Python and from the command line, with every way in which they do not belong together."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import alexnet
from alexnet import api, cli
from alexnet.bundle import Bundle
from alexnet.errors import BundleError, DataError, RecipeError
from alexnet.evaluation.ensemble import EnsembleScores


@pytest.fixture(scope="module")
def runs(train_three, tmp_path_factory):
    return train_three(tmp_path_factory.mktemp("runs"), epochs=2)


def probabilities(run, store, split):
    import dataclasses

    from alexnet.bundle import find_bundle
    from alexnet.export.classifier import Classifier

    classifier = Classifier(dataclasses.replace(Bundle.load(find_bundle(run)), calibration={}))  # the network's own
    part = store.split(split)
    import numpy as np

    return torch.from_numpy(classifier.probabilities(list(part.gather(np.arange(len(part)))))).double()


def test_an_ensemble_is_the_mean_of_the_members(runs, digits):
    pair = [runs / "run-0", str(runs / "run-1")]
    scores = alexnet.evaluate(pair, device="cpu")
    assert isinstance(scores, EnsembleScores)
    mean = sum(probabilities(run, digits, "test") for run in pair) / 2
    labels = torch.from_numpy(digits.split("test").labels)
    assert scores.correct1 == int((mean.argmax(1) == labels).sum())
    assert scores.loss == pytest.approx(-mean[range(50), labels].log().mean().item(), rel=1e-5)
    assert [m.scores.top1 for m in scores.members] == [alexnet.evaluate(run, device="cpu").top1 for run in pair]
    assert [m.weight for m in scores.members] == [0.5, 0.5]


def test_weights_come_from_validation(runs, digits):
    pair = [runs / "run-0", runs / "run-1"]
    scores = alexnet.evaluate(pair, device="cpu", fit_weights="validation")
    (first, second) = (m.weight for m in scores.members)
    labels = torch.from_numpy(digits.split("validation").labels)
    a, b = (probabilities(run, digits, "validation")[range(40), labels] for run in pair)

    def loss(w):
        return -(w * a + (1 - w) * b).log().mean().item()

    assert first + second == pytest.approx(1)
    assert loss(first) <= min(loss(i / 1000) for i in range(1001)) + 1e-6
    assert (scores.fitted_on, scores.fitted_count, scores.split, scores.count) == ("validation", 40, "test", 50)


def test_one_run_in_a_list_is_one_run(runs):
    assert not isinstance(alexnet.evaluate([runs / "run-0"], device="cpu"), EnsembleScores)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fit_weights": "validation", "split": "validation"}, "is the split that is reported"),
        ({"fit_weights": "test", "split": "validation"}, "nothing may be chosen by the test split"),
    ],
)
def test_what_chooses_is_never_reported(runs, options, said):
    with pytest.raises(RecipeError, match=said):
        alexnet.evaluate([runs / "run-0", runs / "run-1"], device="cpu", **options)


def test_members_of_other_splits_are_refused(runs):
    with pytest.raises(DataError, match="train all on one prepared store, or give DATA"):
        alexnet.evaluate([runs / "run-0", runs / "other"], device="cpu")


def test_members_with_other_classes_are_refused(runs, tmp_path):
    import dataclasses

    from alexnet.bundle import Bundle

    bundle = Bundle.load(runs / "run-1" / "bundle")
    names = tuple(reversed(bundle.classes))
    dataclasses.replace(bundle, classes=names, reference_samples=()).save(tmp_path / "bundle")
    with pytest.raises(BundleError, match="the same classes in another order"):
        alexnet.evaluate([runs / "run-0", tmp_path / "bundle"], runs, device="cpu")


def test_the_command(runs, digits, capsys):
    words = ["evaluate", str(runs / "run-0"), str(runs / "run-1"), "--device", "cpu"]
    assert cli.run(words) == 0
    out = capsys.readouterr().out
    assert "2 members alone on test" in out and "equal weights" in out and "test: 50 images, center crop" in out
    bundles = [str(runs / "run-0" / "bundle"), str(runs / "run-1" / "bundle"), "--data", str(digits.path)]
    assert cli.run(["evaluate", *bundles, "--device", "cpu", "--fit-weights", "validation", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights_fitted_on"] == {"split": "validation", "count": 40}
    assert [m["run"] for m in found["members"]] == bundles[:2]
    assert sum(m["weight"] for m in found["members"]) == pytest.approx(1)
    assert cli.run(["evaluate", *bundles, "--split", "validation", "--fit-weights", "validation"]) == 2
    assert "is the split that is reported" in capsys.readouterr().err
    assert cli.run(["evaluate", bundles[0], *bundles[2:], "--fit-weights", "validation"]) == 2
    assert "--fit-weights with one run; must be two runs or more" in capsys.readouterr().err
    assert cli.run(["evaluate"]) == 2
    assert "evaluate needs RUN" in capsys.readouterr().err


def test_weights_that_overflow_are_refused(runs, tmp_path, digit_file):
    """They are finite, so the bundle opens; the numbers that it computes are none."""
    bundle = Bundle.load(runs / "run-0" / "bundle")
    with torch.no_grad():
        for name, parameter in bundle.network.named_parameters():
            parameter.fill_(3e38 if name.endswith("weight") else 0.0)
    huge = Path(shutil.copytree(runs / "run-0", tmp_path / "huge"))
    bundle.save(huge / "bundle")
    for call in (
        lambda: api.evaluate(huge, device="cpu"),
        lambda: api.evaluate([huge, runs / "run-1"], device="cpu"),
        lambda: api.evaluate_detailed(huge, device="cpu"),
        lambda: api.evaluate_corruptions(huge, count=1, device="cpu"),
        lambda: api.compare(huge, runs / "run-1", device="cpu"),
        lambda: api.load(huge, "cpu").predict(digit_file),
    ):
        with pytest.raises(BundleError, match="computes values that are NaN or Inf; use another copy"):
            call()
