"""Claims run on the first digits: trained, judged, plotted, reused and resumed."""

import json
import math
import shutil
import signal
import threading
import types
from functools import partial

import numpy as np
import pytest
import torch

from alexnet import cli
from alexnet.api import DataOptions, evaluate
from alexnet.bundle import Bundle
from alexnet.errors import BundleError, Interrupted, RunError, TrainingError
from alexnet.evaluation.evaluate import inputs_of
from alexnet.evaluation.metrics import Scores
from alexnet.experiments import runner
from alexnet.experiments.claims.gradients import layer_gradients
from alexnet.experiments.claims.plan import ClaimConfig, epochs_to_error, make_plan
from alexnet.experiments.claims.registry import CLAIMS, get_claim
from alexnet.experiments.claims.run import run_claim
from alexnet.experiments.runner import Job, TrainedModel, get_or_train, open_dataset
from alexnet.recipe import Recipe
from alexnet.training import loop


def run(name, store, folder, log=None, **config):
    dataset = open_dataset(str(store.path), DataOptions())
    config = {"quick": True, "seeds": 2, "epochs": 1, **config}
    plan = make_plan(get_claim(name), dataset, "few digits", ClaimConfig(**config))
    options = DataOptions(log=log.append if log is not None else None)
    return run_claim(plan, dataset, folder, options, device="cpu")


@pytest.fixture(scope="module")
def relu(digits, tmp_path_factory):
    """Figure 1 on 160 digits, to 60 % training error, of two rates."""
    folder = tmp_path_factory.mktemp("relu") / "claim"
    log = []
    result = run("relu-wide", digits, folder, log, epochs=4, learning_rates=(1e-5, 0.01), train_error=0.6)
    return folder, result, log


def test_best_learning_rate_is_selected_and_its_training_reused(relu):
    folder, result, log = relu
    assert result.learning_rates == {"ReLU": 0.01, "tanh": 0.01}  # at 0.00001 nothing is learned in four epochs
    assert len(result.searches) == 4 and len(result.models) == 4
    runs = {path.name for path in folder.iterdir() if path.is_dir()}
    assert len(runs) == result.plan.num_trainings == 6
    assert sum("training " in line and " of 6" in line for line in log) == 6
    for model in result.models:
        assert model.epochs and len(model.epochs) <= 4
        assert model.train_errors[-1] <= 0.6  # it ended there
        assert all(error > 0.6 for error in model.train_errors[:-1])


def test_ratio_is_that_of_the_epochs(relu):
    _, result, _ = relu
    (measurement,) = result.measurements
    by_variant = {name: [m for m in result.models if m.job.variant == name] for name in ("ReLU", "tanh")}
    for value, fast, slow in zip(measurement.values, by_variant["ReLU"], by_variant["tanh"], strict=True):
        assert value == pytest.approx(slow.epochs_to(0.6) / fast.epochs_to(0.6))
    assert (measurement.unit, measurement.published, measurement.primary, measurement.lower_bound) == (
        "ratio",
        "6",
        True,
        False,
    )
    assert result.verdict == measurement.verdict
    assert result.image.read_bytes().startswith(b"\x89PNG")
    written = json.loads((result.image.parent / "result.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    assert written["counts"] == {"train": 160, "validation": 40, "test": 50}


def test_gradients_are_of_the_initial_and_the_trained_weights(relu):
    _, result, _ = relu
    assert [one.variant for one in result.gradients] == ["ReLU", "tanh"]
    for one in result.gradients:
        model = next(m for m in result.models if (m.job.variant, m.job.recipe.seed) == (one.variant, 0))
        bundle = Bundle.load(model.folder / "bundle")
        split = model.store.split("train")  # all 160 images: fewer than a batch
        inputs = inputs_of(bundle.network, split.gather(np.arange(160)), bundle.normalization)
        labels = torch.from_numpy(split.labels)
        assert one.trained == tuple(layer_gradients(bundle.network, inputs, labels))
        assert [row.layer for row in one.initial] == ["conv1", "conv2", "conv3", "fc4"]
        assert one.initial != one.trained
    assert result.gradients_image.name == "relu-wide-gradients.png"
    assert result.gradients_image.read_bytes().startswith(b"\x89PNG")


def test_finished_trainings_are_reused(relu, digits, monkeypatch):
    folder, result, _ = relu
    monkeypatch.setattr(loop, "train", lambda _: pytest.fail("trained again"))
    again = run("relu-wide", digits, folder, epochs=4, learning_rates=(1e-5, 0.01), train_error=0.6)
    assert again.to_dict() == result.to_dict()


def test_damaged_file_is_a_one_line_error(relu, digits, tmp_path):
    folder, result, _ = relu
    copy = shutil.copytree(folder, tmp_path / "claim")
    model = copy / result.models[0].folder.name
    again = partial(run, "relu-wide", digits, copy, epochs=4, learning_rates=(1e-5, 0.01), train_error=0.6)
    for path in (model / "results.csv", model / "bundle" / "config.json", copy / "plan.json"):
        data = path.read_bytes()
        for damaged in (b"[1]", b'{"recipe": 3}', b"null", data[:-2], data[:9] + b"\xff" + data[10:]):
            path.write_bytes(damaged)
            with pytest.raises((RunError, BundleError)) as caught:
                again()
            assert path.name in str(caught.value) or str(path.parent) in str(caught.value)
            assert str(caught.value).isprintable()
        path.write_bytes(data)
    runner.write_result(model / runner.DIVERGED, {})
    with pytest.raises(RunError, match=r"diverged\.json is damaged: .*missing required field `reason`"):
        again()


def test_neighboring_claims_share_equal_trainings(digits, tmp_path, monkeypatch):
    started, train = [], runner.train_run
    monkeypatch.setattr(
        runner, "train_run", lambda *a, **kwargs: (started.append(a[2].relative_to(tmp_path)), train(*a, **kwargs))[1]
    )
    first = run("dropout", digits, tmp_path / "dropout")
    assert len(started) == 4
    second = run("color-noise", digits, tmp_path / "color-noise")
    assert sorted(path.name[:14] for path in started[4:]) == ["no-color-noise", "no-color-noise"]
    for mine, other in zip(second.models[:2], first.models[:2], strict=True):
        assert mine.folder != other.folder and mine.metrics == other.metrics and mine.epochs == other.epochs
        name = "bundle/model.safetensors"
        assert (mine.folder / name).read_bytes() == (other.folder / name).read_bytes()
    run("crops", digits, tmp_path / "crops", epochs=2)  # another recipe: nothing to share
    assert len(started) == 8


def test_other_plan_or_used_folder_is_refused(relu, digits, tmp_path):
    folder, _, _ = relu
    with pytest.raises(RunError, match="holds another plan: epochs differs; choose another --output-dir"):
        run("relu-wide", digits, folder, epochs=5, learning_rates=(1e-5, 0.01), train_error=0.6)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="exists already and holds no claim"):
        run("relu-wide", digits, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_interrupted_claim_continues_to_the_same_result(relu, digits, tmp_path, monkeypatch):
    """SIGTERM in the second epoch of the third training; then the same call again."""
    _, result, _ = relu
    whole, epochs = loop.train_epoch, []

    def stopping(training):
        epochs.append(training.folder.name)
        if len(epochs) == 6:
            signal.raise_signal(signal.SIGTERM)
        whole(training)

    assert threading.current_thread() is threading.main_thread()
    folder = tmp_path / "claim"
    monkeypatch.setattr(loop, "train_epoch", stopping)
    with pytest.raises(Interrupted, match="the same command continues"):
        run("relu-wide", digits, folder, epochs=4, learning_rates=(1e-5, 0.01), train_error=0.6)
    monkeypatch.setattr(loop, "train_epoch", whole)
    assert not (folder / "result.json").exists()
    stopped = folder / epochs[-1]
    assert not (stopped / "bundle").exists() and list((stopped / "checkpoints").glob("step-*.pt"))
    again = run("relu-wide", digits, folder, epochs=4, learning_rates=(1e-5, 0.01), train_error=0.6)
    assert again.measurements == result.measurements
    assert [m.train_errors for m in again.models] == [m.train_errors for m in result.models]


def test_training_without_checkpoint_starts_again(relu, digits, tmp_path):
    _, result, _ = relu
    model = result.models[0]
    copy = tmp_path / "model"
    copy.mkdir()
    for name in ("run.json", "recipe.toml", "journal.jsonl"):
        shutil.copy(model.folder / name, copy)
    (copy / "checkpoints").mkdir()
    again = get_or_train(model.job, model.store, copy, device="cpu", num_workers=1)
    assert again.train_errors == model.train_errors
    other = model.job._replace(recipe=model.job.recipe.replace(seed=5))
    with pytest.raises(RunError, match="was trained with seed = 0, not 5"):
        get_or_train(other, model.store, copy, device="cpu", num_workers=1)


def trained(result, variant, seed, errors):
    """A model with made-up training errors."""
    epochs = tuple({"train_top1": 1 - error, "seconds": 1.0} for error in errors)
    return TrainedModel(Job(variant, Recipe(seed=seed)), result.models[0].folder, result.models[0].store, epochs, {})


def test_epochs_to_an_error_are_interpolated(relu):
    model = trained(relu[1], "ReLU", 0, (0.8, 0.5, 0.1))
    assert model.epochs_to(0.65) == pytest.approx(1.5)
    assert model.epochs_to(0.5) == 2
    assert model.epochs_to(0.9) == 1
    assert model.epochs_to(0.05) is None


def test_an_error_that_is_not_reached_gives_a_lower_bound(relu):
    """ReLU after 2 epochs, tanh not within 3: at least 1.5. Neither: the seed is excluded."""
    _, result, _ = relu
    models = {
        "ReLU": [trained(result, "ReLU", 0, (0.9, 0.6)), trained(result, "ReLU", 1, (0.9, 0.8, 0.7))],
        "tanh": [trained(result, "tanh", 0, (0.9, 0.9, 0.9)), trained(result, "tanh", 1, (0.9, 0.8, 0.7))],
    }
    (measurement,), numbers = epochs_to_error(result.plan, models, "cpu")
    assert measurement.values == pytest.approx((1.5,)) and measurement.lower_bound
    assert measurement.verdict == "inconclusive"
    assert "seed 0: tanh did not reach 60 %" in measurement.note and "seed 1: neither" in measurement.note
    assert numbers == {"ReLU": [2.0, 3.0], "tanh": [3.0, 3.0]}


def test_errors_ten_crops_and_ensemble_match_the_bundles(digits, tmp_path):
    """The members of three claims, recounted from their bundles."""
    norm = run("norm", digits, tmp_path / "norm")
    tests = {m.folder.name: m.metrics["test"] for m in norm.models}
    own = [tests[f"baseline-lr0.005-seed{s}"]["top1_error"] for s in (0, 1)]
    without = [tests[f"no-norm-lr0.005-seed{s}"]["top1_error"] for s in (0, 1)]
    top1, top5 = norm.measurements
    assert top1.values == pytest.approx([100 * (b - a) for a, b in zip(own, without, strict=True)])
    assert (top1.published, top5.published, top1.primary, top5.primary) == ("1.4", "1.2", True, False)

    crops = run("crops", digits, tmp_path / "crops")
    bundles = [m.folder / "bundle" for m in crops.models]
    ten = [evaluate(b, digits.path, crops=10, device="cpu").top1 for b in bundles]
    one = [evaluate(b, digits.path, device="cpu").top1 for b in bundles]
    assert crops.measurements[0].values == pytest.approx([100 * (a - b) for a, b in zip(ten, one, strict=True)])
    assert "no flips" in crops.measurements[0].note

    ensembles = run("ensemble", digits, tmp_path / "ensemble")
    ensemble = evaluate([m.folder / "bundle" for m in ensembles.models], digits.path, device="cpu")
    assert isinstance(ensemble, Scores)
    expected = [100 * (m.metrics["test"]["top1_error"] - (1 - ensemble.top1)) for m in ensembles.models]
    assert ensembles.measurements[0].values == pytest.approx(expected)


def test_gap_and_epochs_of_dropout(digits, tmp_path):
    result = run("dropout", digits, tmp_path / "claim")
    gap, error, ratio = result.measurements
    gaps = {}
    for model in result.models:
        train = evaluate(model.folder / "bundle", digits.path, split="train", device="cpu").top1
        gaps[model.job.variant, model.job.recipe.seed] = 100 * (train - model.metrics["test"]["top1"])
    assert gap.values == pytest.approx([gaps["no dropout", s] - gaps["baseline", s] for s in (0, 1)])
    assert gap.primary and not error.primary and not ratio.primary
    assert (ratio.unit, ratio.published) == ("ratio", "2")
    level = max(min(m.train_errors) for m in result.models)
    assert f"{100 * level:.1f} %" in ratio.quantity and len(ratio.values) == 2
    assert set(result.numbers) == {f"{a}: {s}" for a in ("baseline", "no dropout") for s in ("training", "test")}


def test_diverging_learning_rate_is_not_selected(digits, tmp_path, monkeypatch):
    whole = loop.train_step

    def broken(state, batch):  # real steps, but at this rate an image is not a number
        if state.recipe.lr == 0.02:
            batch.images[0, 0, 0, 0] = float("nan")
        return whole(state, batch)

    monkeypatch.setattr(loop, "train_step", broken)
    folder = tmp_path / "claim"
    result = run("relu-wide", digits, folder, seeds=1, learning_rates=(0.02, 0.01), train_error=0.85)
    assert result.learning_rates == {"ReLU": 0.01, "tanh": 0.01}
    assert [model.job.recipe.lr for model in result.searches if model.diverged] == [0.02, 0.02]
    monkeypatch.setattr(loop, "train_step", whole)  # what diverged is remembered, not tried again
    again = run("relu-wide", digits, folder, seeds=1, learning_rates=(0.02, 0.01), train_error=0.85)
    assert again.to_dict() == result.to_dict()
    monkeypatch.setattr(loop, "train_step", broken)
    with pytest.raises(TrainingError, match="pass lower --lrs"):
        run("relu-wide", digits, tmp_path / "alone", seeds=1, learning_rates=(0.02,), train_error=0.85)


def test_command(digits, tmp_path, capsys):
    argv = ["study", "claims", "overlap", "--data", str(digits.path), "--quick", "--seeds", "1", "--epochs", "1"]
    argv += ["--output-dir", str(tmp_path / "claim"), "--device", "cpu"]
    assert cli.run(argv) == 0
    out = capsys.readouterr().out
    assert out.index("alexnet_small_no_overlap") < out.index("95 % CI over seeds")
    for text in (
        "none from one seed",
        "0.4",
        "inconclusive",
        "verdict    overlap: inconclusive",
        "160 training",
    ):
        assert text in out
    assert cli.run([*argv, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["verdict"] == "inconclusive"
    assert "alexnet_small_no_overlap" in captured.err


def test_list_and_unknown_name(capsys):
    assert cli.run(["study", "claims"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in CLAIMS) and "six times faster" in out
    assert cli.run(["study", "claims", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["norm"]["published"] == {"top1": "1.4", "top5": "1.2"}
    assert cli.run(["study", "claims", "nrom"]) == 2
    assert "Did you mean 'norm'?" in capsys.readouterr().err


def test_slower_learning_rate_gets_no_more_epochs_than_the_best(digits, tmp_path):
    folder = tmp_path / "claim"
    result = run("relu-wide", digits, folder, seeds=1, epochs=6, learning_rates=(0.01, 1e-5), train_error=0.6)
    for best, lagging in (result.searches[:2], result.searches[2:]):
        needed = math.ceil(best.epochs_to(0.6))
        assert len(best.epochs) == needed < 6
        assert (lagging.epochs_to(0.6), len(lagging.epochs)) == (None, needed)  # at 0.00001 nothing is learned
    assert result.learning_rates == {"ReLU": 0.01, "tanh": 0.01}
    again = run("relu-wide", digits, folder, seeds=1, epochs=6, learning_rates=(0.01, 1e-5), train_error=0.6)
    assert again.to_dict() == result.to_dict()


def test_scores_of_other_weights_are_computed_again(tmp_path, monkeypatch):
    """A file of another training in its place was taken as the scores of this one."""
    weights, found = "a", {"top1": 0.75, "top1_error": 0.25, "count": 4}
    monkeypatch.setattr(runner, "weights_sha256", lambda _: weights)
    monkeypatch.setattr(runner, "evaluate", lambda *_, **__: types.SimpleNamespace(to_dict=lambda: dict(found)))
    store = types.SimpleNamespace(absolute=tmp_path)
    model = TrainedModel(None, tmp_path, store, (), {})
    assert model.scores("train", 1, "cpu")["top1"] == 0.75
    found["top1"] = 0.5
    assert model.scores("train", 1, "cpu")["top1"] == 0.75
    weights = "b"  # the lambda sees it
    assert model.scores("train", 1, "cpu")["top1"] == 0.5
