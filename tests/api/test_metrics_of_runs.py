"""Honest numbers of real little runs, from Python and from the command line; and the bundle that carries them."""

import csv
import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
import torch
from scipy.special import softmax

import alexnet
from alexnet import api, cli
from alexnet.bundle import Bundle, find_bundle
from alexnet.data.decode import encode_png
from alexnet.errors import BundleError, DataError
from alexnet.evaluation import calibration as calibrations
from alexnet.evaluation.calibration import Calibration
from alexnet.export.classifier import Classifier
from alexnet.export.export_module import ExportModule


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained / "run-0", tmp_path / "run")
    return tmp_path / "run"


def own_logs(run, store, split):
    """The network's own log probabilities, and the labels: without any temperature."""
    classifier = Classifier(dataclasses.replace(Bundle.load(find_bundle(run)), calibration={}))
    part = store.split(split)
    return np.log(classifier.probabilities(list(part.gather(np.arange(len(part)))))), part.labels


def events(run):
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]


def test_training_ends_with_a_temperature_fitted_on_validation(run, digits):
    block = json.loads((run / "bundle" / "config.json").read_text())["calibration"]
    assert (block["fitted_on"], block["count"]) == ("validation", 40)
    assert set(block) == {"temperature", "fitted_on", "count", "ece_before", "ece_after", "thresholds", "conformal"}
    assert block["conformal"] == {}  # four images of a class
    logs, labels = own_logs(run, digits, "validation")

    def loss(t):  # and of half a mistake, where there is none
        logged = np.log(softmax(logs.astype(np.float64) / t, 1))
        half = 0.0 if (logs.argmax(1) != labels).any() else 0.5 * np.sort(logged, 1)[:, -2].mean()
        return -logged[range(40), labels].sum() - half

    assert loss(block["temperature"]) <= min(loss(t) for t in np.geomspace(0.05, 20, 500)) + 1e-4
    assert block["temperature"] != 1


def test_calibrated_probabilities_leave_everywhere_alike(run, digits):
    bundle = Bundle.load(run / "bundle")
    logs, _ = own_logs(run, digits, "test")
    expected = softmax(logs.astype(np.float64) / bundle.temperature, 1)
    images = list(digits.split("test").gather(np.arange(50)))
    assert Classifier(bundle).probabilities(images) == pytest.approx(expected, abs=1e-5)
    whole = ExportModule(bundle, "decoded")(torch.from_numpy(np.stack(images))).detach().numpy()
    assert whole == pytest.approx(expected, abs=1e-5)
    assert alexnet.verify(run).max_abs_diff < 1e-6  # reference images too
    # ten crops: averaged first, so that no class changes its place
    ten = Classifier(bundle).probabilities(images, crops=10)
    plain = Classifier(dataclasses.replace(bundle, calibration={})).probabilities(images, crops=10)
    assert np.array_equal(ten.argmax(1), plain.argmax(1))
    assert ten == pytest.approx(softmax(np.log(plain.astype(np.float64)) / bundle.temperature, 1), abs=1e-5)


def test_a_temperature_that_hurts_or_that_is_not_applied_is_reported(run, capsys, monkeypatch):
    """In ``evaluate --details``, in the report's texts, and by ``--calibrate``."""
    from alexnet.report import facts
    from alexnet.report.report import _calibration

    bundle = Bundle.load(run / "bundle")
    samples = [dataclasses.replace(s, probabilities=[0.1] * 10) for s in bundle.reference_samples]
    calibration = dict(bundle.calibration) | {"temperature": 900.0}  # all classes become equally likely
    dataclasses.replace(bundle, calibration=calibration, reference_samples=samples).save(run / "bundle")
    warning = "The temperature 900.000 improved calibration on the validation split, but makes it worse on these images"
    assert cli.run(["evaluate", str(run), "--details", "--device", "cpu"]) == 0
    assert warning in capsys.readouterr().out
    details = api.evaluate_detailed(run, device="cpu")
    assert warning in _calibration(details)["reliability"]
    assert any("The temperature 900.000 was fitted on 40" in line for line in facts.choices(details.provenance))

    unscaled = Calibration(1.0, "validation", 40, 0.05, 0.05)
    monkeypatch.setattr(api, "calibrate", lambda *args, **kwargs: unscaled)
    assert cli.run(["evaluate", str(run), "--calibrate", "--device", "cpu"]) == 0
    assert "No temperature improved calibration on the validation split: none is applied." in capsys.readouterr().err
    provenance = dataclasses.replace(details.provenance, temperature=1.0)
    assert "no temperature improved calibration" in provenance.lines()[0]
    assert any("No temperature improved calibration" in line for line in facts.choices(provenance))


def test_the_report_has_the_coverage_of_the_bundles_prediction_sets(run, digits):
    from alexnet.report.report import _prediction_sets

    bundle = Bundle.load(run / "bundle")
    predictions = Classifier(bundle).predict_split(digits.split("test"))
    assert _prediction_sets(bundle, predictions) == {"sets": "", "set_rows": []}
    limits = [0.0, *[0.3] * 9]
    calibration = dict(bundle.calibration) | {"conformal": {"0.9": limits, "0.95": [0.0] * 10}}
    dataclasses.replace(bundle, calibration=calibration).save(run / "bundle")
    values = _prediction_sets(Bundle.load(run / "bundle"), predictions)
    rows = softmax(predictions.log_probabilities.astype(np.float64) / bundle.temperature, 1)
    inside = (rows >= limits)[range(50), predictions.labels]
    assert f"is in the set of {100 * inside.mean():.1f} % of these images (95 % CI" in values["sets"]
    assert "In every set, for lack of validation images: 0." in values["sets"]
    assert {row[0]: row[2] for row in values["set_rows"]} == {
        str(k): f"{100 * inside[predictions.labels == k].mean():.1f} %" for k in range(10)
    }


def test_an_old_bundle_gets_its_features_when_it_is_calibrated(run):
    bundle = Bundle.load(run / "bundle")
    assert bundle.feature_reference is not None
    old = dict(bundle.calibration)
    del old["conformal"]
    dataclasses.replace(bundle, feature_reference=None, calibration=old).save(run / "bundle")
    assert not (run / "bundle" / "features.safetensors").exists() and Bundle.load(run / "bundle").conformal == {}
    alexnet.api.calibrate(run, device="cpu")
    again = Bundle.load(run / "bundle").feature_reference
    assert again.quantiles == pytest.approx(bundle.feature_reference.quantiles, rel=1e-3, abs=1e-3)


def test_loss_and_ranks_of_evaluate_stay_the_networks(run, digits):
    logs, labels = own_logs(run, digits, "test")
    scores = alexnet.evaluate(run, device="cpu")
    assert scores.loss == pytest.approx(-logs[range(50), labels].mean(), rel=1e-4)
    assert scores.correct1 == int((logs.argmax(1) == labels).sum())


def test_an_old_bundle_gives_what_it_gave_until_it_is_calibrated(run, digits, tmp_path):
    new = Bundle.load(run / "bundle")
    images = list(digits.split("test").gather(np.arange(5)))
    bare = Classifier(dataclasses.replace(new, calibration={}))
    reference = [
        dataclasses.replace(g, probabilities=bare.probabilities(g.png)[0].tolist()) for g in new.reference_samples
    ]
    dataclasses.replace(new, calibration={}, reference_samples=reference).save(run / "bundle")
    assert "calibration" not in json.loads((run / "bundle" / "config.json").read_text())
    old = Bundle.load(run / "bundle")
    assert (old.temperature, old.thresholds) == (1.0, {})
    assert np.array_equal(Classifier(old).probabilities(images), bare.probabilities(images))
    before = alexnet.evaluate(run, device="cpu")
    made = api.calibrate(run, device="cpu")
    assert made.to_dict() == new.calibration
    again = Bundle.load(run / "bundle")  # every SHA-256 is right
    assert again.calibration == new.calibration and again.metrics == new.metrics
    assert np.array_equal(Classifier(again).probabilities(images), Classifier(new).probabilities(images))
    assert alexnet.verify(run).max_abs_diff < 1e-6
    after = alexnet.evaluate(run, device="cpu")
    assert (after.loss, after.correct1, after.correct5) == (before.loss, before.correct1, before.correct5)


def test_a_bundle_that_was_replaced_while_it_was_calibrated_stays(run, monkeypatch):
    """Of two calibrations at once the second would silently undo what the first, or a training, has written."""
    fit = calibrations.calibrate

    def meanwhile(*args, **kwargs):
        dataclasses.replace(Bundle.load(run / "bundle"), initialization="of another process").save(run / "bundle")
        return fit(*args, **kwargs)

    monkeypatch.setattr(calibrations, "calibrate", meanwhile)
    with pytest.raises(BundleError, match="bundle was replaced by another process meanwhile; repeat the command"):
        api.calibrate(run, device="cpu")
    assert Bundle.load(run / "bundle").initialization == "of another process"
    monkeypatch.setattr(calibrations, "calibrate", fit)
    api.calibrate(run, device="cpu")


@pytest.mark.parametrize(
    "block",
    [
        {"temperature": 0},
        {"temperature": "1"},
        {"temperature": float("nan")},
        {"thresholds": {"0.1": 2}},
        [1],
        {"thresholds": {"x": 0.5}},
        {"thresholds": 3},
    ],
)
def test_a_calibration_that_is_none_is_refused(run, block):
    from alexnet.schema import checksum_of

    config = json.loads((run / "bundle" / "config.json").read_text())
    config["calibration"] = block
    config["sha256"]["config.json"] = checksum_of(config, "sha256")
    (run / "bundle" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="is damaged"):
        Bundle.load(run / "bundle")


def test_what_can_not_be_calibrated(trained, tmp_path, digits, reseal):
    with pytest.raises(BundleError, match="at least 30 to calibrate with"):
        shutil.copytree(trained / "other", tmp_path / "other")
        about = json.loads((tmp_path / "other" / "run.json").read_text())
        few = tmp_path / "store"
        shutil.copytree(about["store"], few)
        said = json.loads((few / "dataset.json").read_text())
        said["splits"]["validation"] = {
            "count": 0,
            "shards": [],
            "labels": "validation/labels.npy",
            "per_class": [0] * 10,
            "counts": [],
        }
        np.save(few / "validation" / "labels.npy", np.zeros(0, np.int64))
        (few / "validation" / "origins.jsonl").write_text("")
        reseal(few, splits=said["splits"], source_fingerprint="of other images")
        api.calibrate(tmp_path / "other", few, device="cpu")
    bundle = Bundle.load(trained / "run-0" / "bundle")
    data = dict(bundle.data) | {"fingerprint": "another"}
    dataclasses.replace(bundle, data=data).save(tmp_path / "mixed")
    with pytest.raises(BundleError, match="splits the training images differently"):
        api.calibrate(tmp_path / "mixed", digits.path, device="cpu")
    recipe = dict(bundle.recipe) | {"train_on_val_from_epoch": 2}
    dataclasses.replace(bundle, recipe=recipe).save(tmp_path / "joined")
    with pytest.raises(BundleError, match="was trained on its validation images too"):
        api.calibrate(tmp_path / "joined", digits.path, device="cpu")


def test_details_are_the_counts_of_the_same_predictions(run, digits, tmp_path):
    (tmp_path / "noise").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    for i, image in enumerate(noise):
        (tmp_path / "noise" / f"{i}.png").write_bytes(encode_png(image))
    (tmp_path / "noise" / "broken.png").write_bytes(b"no image")
    asked = api.EvaluationOptions(ood_dir=tmp_path / "noise", confidence_threshold=0.7)
    told = []
    found = api.evaluate_detailed(run, evaluation_options=asked, device="cpu", options=api.DataOptions(log=told.append))
    logs, labels = own_logs(run, digits, "test")
    rows = softmax(logs.astype(np.float64) / Bundle.load(run / "bundle").temperature, 1)
    given = rows.max(1) >= 0.7
    (one,) = found.thresholds
    assert (one.metrics.answered, one.metrics.errors) == (
        given.sum(),
        (rows.argmax(1) != labels)[given].sum(),
    )
    sure = Classifier.load(run).probabilities(list(noise)).max(1)
    assert one.ood_rejected.value == pytest.approx((sure < 0.7).mean())
    assert len(found.ood) == 6 and any("broken.png" in line for line in told)
    assert found.scores.correct1 == alexnet.evaluate(run, device="cpu").correct1
    assert found.uncalibrated.nll == pytest.approx(found.scores.loss, rel=1e-5)
    assert found.calibrated.accuracy == found.uncalibrated.accuracy == found.scores.top1
    assert found.groups == 0
    softmax_score, distance = found.ood_scores
    assert (softmax_score.name, distance.name) == ("softmax probability", "feature distance")
    assert softmax_score.auroc.value == pytest.approx((sure[:, None] < rows.max(1)).mean(), abs=1e-3)
    assert found.to_dict()["ood_scores"][1]["caught"]["count"] == 6
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert {"top1", "top5", "loss", "count", "per_class", "confusion", "calibration", "selective"} <= set(plain)
    assert plain["chosen_by"]["temperature_fitted_on"] == {"split": "validation", "count": 40}


def test_every_look_at_the_test_split_is_counted(run):
    assert api.provenance(run).tested == 0
    alexnet.evaluate(run, device="cpu")
    alexnet.evaluate(run, split="validation", device="cpu")
    alexnet.evaluate(run / "bundle", json.loads((run / "run.json").read_text())["store"], device="cpu")
    api.evaluate_detailed(run, device="cpu")
    assert [e["by"] for e in events(run) if e["event"] == "evaluated"] == ["evaluate", "evaluate --details"]
    found = api.provenance(run)
    assert found.tested == 2
    assert any("evaluated 2 times since training" in line for line in found.lines())
    assert "lowest validation error" in found.lines()[0] and "40 validation images" in found.lines()[0]
    assert api.provenance(run / "bundle").tested is None


def test_going_back_unsees_no_test_split(run):
    alexnet.evaluate(run, device="cpu")
    earlier = sorted((run / "checkpoints").glob("step-*.pt"))[0]
    api.resume(earlier, device="cpu")
    found = events(run)
    assert sum(e["event"] == "evaluated" for e in found) == 1
    assert [e["epoch"] for e in found if e["event"] == "epoch"] == list(range(1, 13))


def test_two_runs_compared(trained, digits, tmp_path):
    for seed in (0, 1):
        shutil.copytree(trained / f"run-{seed}", tmp_path / f"run-{seed}")
    found = api.compare(tmp_path / "run-0", tmp_path / "run-1", device="cpu")
    right = [
        (logs.argmax(1) == labels)
        for logs, labels in (own_logs(tmp_path / f"run-{seed}", digits, "test") for seed in (0, 1))
    ]
    pair = found.paired
    assert (pair.only_new, pair.only_old) == ((right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum())
    assert (pair.new.value, pair.old.value) == (right[0].mean(), right[1].mean())
    assert pair.difference.value == pytest.approx(right[0].mean() - right[1].mean())
    assert [one.tested for one in found.provenances] == [1, 1]
    with pytest.raises(DataError, match=r"are not the same.*train both on one prepared store"):
        api.compare(tmp_path / "run-0", trained / "other", device="cpu")


def test_one_class_against_the_rest_and_prediction_sets(run, digits, capsys):
    """The threshold and the sets come from the validation split, the numbers from the test split."""
    from alexnet.evaluation.conformal import thresholds
    from alexnet.evaluation.one_vs_rest import threshold_by_cost

    wanted = api.EvaluationOptions(positive="3", cost=api.Cost(1, 20), conformal=0.8)
    found = api.evaluate_detailed(run, evaluation_options=wanted, device="cpu")
    temperature = Bundle.load(run / "bundle").temperature
    known, own = own_logs(run, digits, "validation")
    known = softmax(known.astype(np.float64) / temperature, 1)
    rows, labels = own_logs(run, digits, "test")
    rows = softmax(rows.astype(np.float64) / temperature, 1)
    threshold = threshold_by_cost(known[:, 3], own == 3, api.Cost(1, 20))
    by_cost = found.one_vs_rest.by_cost
    assert by_cost.threshold == pytest.approx(threshold, rel=1e-4) and by_cost.chosen_on == ("validation", 40)
    called = rows[:, 3] >= threshold
    assert by_cost.expected.value == pytest.approx(((called & (labels != 3)) + 20.0 * (~called & (labels == 3))).mean())
    assert found.one_vs_rest.top1.counts[0] == ((rows.argmax(1) == 3) & (labels == 3)).sum()
    limits = thresholds(known, own, 0.8)
    assert found.sets.thresholds == pytest.approx(limits, rel=1e-4)
    assert found.sets.coverage.value == pytest.approx((rows >= limits)[range(50), labels].mean())
    one = found.classes.classes[3]
    predicted = rows.argmax(1) == 3
    assert one.specificity.value == pytest.approx((~predicted)[labels != 3].mean())
    assert one.npv.value == pytest.approx((labels != 3)[~predicted].mean())
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert {"one_vs_rest", "prediction_sets", "curves"} <= set(plain)

    words = ["evaluate", str(run), "--device", "cpu"]
    assert cli.run([*words, "--positive", "3", "--cost", "FP=1,FN=20", "--conformal", "0.8"]) == 0
    out = capsys.readouterr().out
    for text in ("3 against the rest", "Sensitivity", "AUROC", "Expected cost", "chosen by 40 validation", "mean size"):
        assert text in out
    for options, said in (
        (["--cost", "FP=1,FN=20"], "--cost with 10 classes; must be a positive class"),
        (["--positive", "33"], "--positive is '33', which is no class. Did you mean '3'?"),
        (["--positive", "3", "--cost", "1,20"], "--cost is '1,20'; must be the cost of a false positive and a false"),
        (["--conformal", "90"], "--conformal is 90.0; must be the fraction of images"),
        (["--conformal", "0.9", "--split", "validation"], "which choose thresholds on it; pass --split test"),
    ):
        assert cli.run([*words, *options]) == 2
        assert said in capsys.readouterr().err


def test_the_commands(run, trained, digits, tmp_path, capsys):
    assert cli.run(["evaluate", str(run), "--details", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for words in ("Class by class", "balanced accuracy", "Calibration", "Error by coverage", "chosen     epoch"):
        assert words in out
    assert "its test split was evaluated once since training" in out
    assert cli.run(["evaluate", str(run), "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["test_evaluations"] == 2 and found["count"] == 50
    assert cli.run(["evaluate", str(run), "--slices", "camera", "--device", "cpu"]) == 1
    assert "no column 'camera'" in capsys.readouterr().err
    assert cli.run(["evaluate", str(run), str(trained / "run-1"), "--details"]) == 2
    assert "alexnet compare RUN RUN" in capsys.readouterr().err
    assert cli.run(["evaluate", str(run), "--calibrate", "--json", "--device", "cpu"]) == 0
    both = capsys.readouterr()
    assert "calibrated: temperature" in both.err and "selective" in json.loads(both.out)
    assert cli.run(["compare", str(run), str(trained / "run-1" / "bundle"), "--data", str(digits.path), "--json"]) == 0
    assert {"p_value", "only_new", "only_old", "new", "difference", "flips"} <= set(json.loads(capsys.readouterr().out))
    assert cli.run(["compare", str(run), str(run), "--device", "cpu"]) == 0
    assert "p = 1" in capsys.readouterr().out


def test_predict_says_unknown_only_where_a_threshold_is_asked_for(run, digit_file, capsys):
    words = ["predict", str(run), str(digit_file), "--device", "cpu", "--format"]
    assert cli.run([*words, "json"]) == 0
    assert "unknown" not in capsys.readouterr().out
    predictions = {}
    for below in ("0", "1"):
        assert cli.run([*words, "json", "--confidence-threshold", below]) == 0
        (predictions[below],) = json.loads(capsys.readouterr().out)
    assert predictions["0"]["abstained"] is False
    assert predictions["1"]["abstained"] is (predictions["1"]["top_k"][0]["score"] < 1)
    assert cli.run([*words, "csv", "--confidence-threshold", "0.9999", "--top", "1"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["abstained"] == str(float(row["score"]) < 0.9999).lower()
    assert cli.run([*words, "table", "--confidence-threshold", "1"]) == 0
    out = capsys.readouterr().out
    assert "label" in out and "1 of 1 unknown: the first prediction has a probability below 1" in out


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--confidence-threshold", "0.5", "--target-risk", "0.1"], 2, "both give a threshold; must be one of them"),
        (["--confidence-threshold", "60"], 2, "--confidence-threshold is 60.0; must be a probability from 0 to 1"),
        (["--target-risk", "0"], 2, "--target-risk is 0.0; must be a fraction of wrong predictions"),
        (["--target-risk", "0.001"], 1, "has no threshold for a target error of 0.001; must be at least 0.05"),
    ],
)
def test_thresholds_that_can_not_be(run, digit_file, capsys, options, status, said):
    bundle = Bundle.load(run / "bundle")
    calibration = dict(bundle.calibration) | {"thresholds": {"0.05": 0.9, "0.1": 0.4}}
    dataclasses.replace(bundle, calibration=calibration).save(run / "bundle")
    assert cli.run(["predict", str(run), str(digit_file), "--device", "cpu", *options]) == status
    assert said in capsys.readouterr().err


def test_a_target_error_takes_the_stored_threshold(run, digit_file, capsys):
    bundle = Bundle.load(run / "bundle")
    calibration = dict(bundle.calibration) | {"thresholds": {"0.05": 0.9, "0.1": 0.4}}
    dataclasses.replace(bundle, calibration=calibration).save(run / "bundle")
    for target, threshold in (("0.05", "0.9000"), ("0.07", "0.9000"), ("0.1", "0.4000"), ("0.5", "0.4000")):
        assert cli.run(["predict", str(run), str(digit_file), "--device", "cpu", "--target-risk", target]) == 0
        assert f"unknown below {threshold}" in capsys.readouterr().err
