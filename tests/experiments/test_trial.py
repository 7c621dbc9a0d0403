"""Claims put to the test for real, on the first digits: trained, judged, drawn, found again, gone on with."""

import json
import math
import shutil
import signal
import threading
from functools import partial

import pytest

from alexnet import cli
from alexnet.api import DataOptions, evaluate
from alexnet.errors import BundleError, Interrupted, RunError, TrainingError
from alexnet.evaluation.metrics import Scores
from alexnet.experiments import claims, plan, runner
from alexnet.experiments import plan as material
from alexnet.experiments.plan import Config, Job
from alexnet.training import loop


def planned(name, store, **config):
    found = material.find(str(store.path), DataOptions())
    config = {"quick": True, "seeds": 2, "epochs": 1, **config}
    return plan.make(claims.find(name), found, "few digits", Config(**config)), found


def tried(name, store, folder, said=None, **config):
    made, found = planned(name, store, **config)
    options = DataOptions(log=said.append if said is not None else None)
    return runner.run(made, found, folder, options, device="cpu")


@pytest.fixture(scope="module")
def relu(digits, tmp_path_factory):
    """Figure 1 on 160 digits, to 60 % training error, of two rates."""
    folder = tmp_path_factory.mktemp("relu") / "claim"
    said = []
    result = tried("relu-wide", digits, folder, said, epochs=4, rates=(1e-5, 0.01), level=0.6)
    return folder, result, said


def test_the_best_rate_is_chosen_and_its_training_used(relu):
    folder, result, said = relu
    assert result.chosen == {"ReLU": 0.01, "tanh": 0.01}  # at 0.00001 nothing is learned in four epochs
    assert len(result.searches) == 4 and len(result.members) == 4
    runs = {path.name for path in folder.iterdir() if path.is_dir()}
    assert len(runs) == result.plan.trainings == 6
    assert sum("training " in line and " of 6" in line for line in said) == 6
    for member in result.members:
        assert member.rows and len(member.rows) <= 4
        assert member.training_errors[-1] <= 0.6  # it ended there
        assert all(error > 0.6 for error in member.training_errors[:-1])


def test_the_ratio_is_that_of_the_epochs(relu):
    _, result, _ = relu
    (found,) = result.findings
    by_arm = {arm: [m for m in result.members if m.job.arm.name == arm] for arm in ("ReLU", "tanh")}
    for value, fast, slow in zip(found.values, by_arm["ReLU"], by_arm["tanh"], strict=True):
        assert value == pytest.approx(slow.epochs_to(0.6) / fast.epochs_to(0.6))
    assert (found.unit, found.paper, found.primary, found.at_least) == ("ratio", "6", True, False)
    assert result.verdict == found.verdict
    assert result.image.read_bytes().startswith(b"\x89PNG")
    written = json.loads((result.image.parent / "result.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    assert written["counts"] == {"train": 160, "validation": 40, "test": 50}


def test_finished_trainings_are_found_again(relu, digits, monkeypatch):
    folder, result, _ = relu
    monkeypatch.setattr(loop, "train", lambda _: pytest.fail("trained again"))
    again = tried("relu-wide", digits, folder, epochs=4, rates=(1e-5, 0.01), level=0.6)
    assert again.to_dict() == result.to_dict()


def test_a_damaged_file_of_a_claim_is_one_line(relu, digits, tmp_path):
    folder, result, _ = relu
    copy = shutil.copytree(folder, tmp_path / "claim")
    member = copy / result.members[0].folder.name
    again = partial(tried, "relu-wide", digits, copy, epochs=4, rates=(1e-5, 0.01), level=0.6)
    for path in (member / "results.csv", member / "bundle" / "config.json", copy / "plan.json"):
        data = path.read_bytes()
        for damaged in (b"[1]", b'{"recipe": 3}', b"null", data[:-2], data[:9] + b"\xff" + data[10:]):
            path.write_bytes(damaged)
            with pytest.raises((RunError, BundleError)) as caught:
                again()
            assert path.name in str(caught.value) or str(path.parent) in str(caught.value)
            assert str(caught.value).isprintable()
        path.write_bytes(data)
    (member / runner.DIVERGED).write_text("{}")
    with pytest.raises(RunError, match=r"diverged\.json is damaged: .*missing required field `reason`"):
        again()


def test_claims_beside_each_other_share_what_is_the_same(digits, tmp_path, monkeypatch):
    begun, run = [], runner.runs.run
    monkeypatch.setattr(
        runner.runs, "run", lambda *a, **how: (begun.append(a[2].relative_to(tmp_path)), run(*a, **how))[1]
    )
    first = tried("dropout", digits, tmp_path / "dropout")
    assert len(begun) == 4
    second = tried("color-noise", digits, tmp_path / "color-noise")
    assert sorted(path.name[:14] for path in begun[4:]) == ["no-color-noise", "no-color-noise"]
    for mine, other in zip(second.members[:2], first.members[:2], strict=True):
        assert mine.folder != other.folder and mine.metrics == other.metrics and mine.rows == other.rows
        name = "bundle/model.safetensors"
        assert (mine.folder / name).read_bytes() == (other.folder / name).read_bytes()
    tried("crops", digits, tmp_path / "crops", epochs=2)  # another recipe: nothing to share
    assert len(begun) == 8


def test_another_plan_or_a_used_folder_is_refused(relu, digits, tmp_path):
    folder, _, _ = relu
    with pytest.raises(RunError, match="holds another plan: its epochs is different; choose another --output-dir"):
        tried("relu-wide", digits, folder, epochs=5, rates=(1e-5, 0.01), level=0.6)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="exists already and holds no claim"):
        tried("relu-wide", digits, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_stopped_claim_goes_on_to_the_same_result(relu, digits, tmp_path, monkeypatch):
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
    with pytest.raises(Interrupted, match="the same command goes on"):
        tried("relu-wide", digits, folder, epochs=4, rates=(1e-5, 0.01), level=0.6)
    monkeypatch.setattr(loop, "train_epoch", whole)
    assert not (folder / "result.json").exists()
    stopped = folder / epochs[-1]
    assert not (stopped / "bundle").exists() and list((stopped / "checkpoints").glob("step-*.pt"))
    again = tried("relu-wide", digits, folder, epochs=4, rates=(1e-5, 0.01), level=0.6)
    assert again.findings == result.findings
    assert [m.training_errors for m in again.members] == [m.training_errors for m in result.members]


def test_a_training_that_left_no_checkpoint_begins_again(relu, digits, tmp_path):
    _, result, _ = relu
    member = result.members[0]
    copy = tmp_path / "member"
    copy.mkdir()
    for name in ("run.json", "recipe.toml", "journal.jsonl"):
        shutil.copy(member.folder / name, copy)
    (copy / "checkpoints").mkdir()
    recipe = result.plan.recipe(member.job)
    again = runner.obtain(member.job, recipe, member.store, copy, device="cpu", workers=1)
    assert again.training_errors == member.training_errors
    with pytest.raises(RunError, match="was trained with seed = 0, not 5"):
        runner.obtain(member.job, recipe.replace(seed=5), member.store, copy, device="cpu", workers=1)


def test_epochs_are_counted_between_their_ends(relu):
    _, result, _ = relu
    rows = tuple({"train_top1": 1 - error, "seconds": 1.0} for error in (0.8, 0.5, 0.1))
    member = runner.Member(
        Job(result.plan.arms[0], 0.1, 0), result.members[0].folder, result.members[0].store, rows, {}
    )
    assert member.epochs_to(0.65) == pytest.approx(1.5)
    assert member.epochs_to(0.5) == 2
    assert member.epochs_to(0.9) == 1
    assert member.epochs_to(0.05) is None


def test_what_never_comes_there_is_a_bound(relu):
    """ReLU at epoch 2, tanh not in 3: at least 1.5. Neither: left out."""
    _, result, _ = relu
    made, store = result.plan, result.members[0].store

    def member(arm, seed, errors):
        rows = tuple({"train_top1": 1 - error, "seconds": 1.0} for error in errors)
        return runner.Member(Job(made.arms[arm], 0.1, seed), result.members[0].folder, store, rows, {})

    some = {
        "ReLU": [member(0, 0, (0.9, 0.6)), member(0, 1, (0.9, 0.8, 0.7))],
        "tanh": [member(1, 0, (0.9, 0.9, 0.9)), member(1, 1, (0.9, 0.8, 0.7))],
    }
    (found,), numbers = runner.findings_of(made, some, "cpu")
    assert found.values == pytest.approx((1.5,)) and found.at_least
    assert found.verdict == "cannot tell"
    assert "seed 0: tanh had not come to 60 %" in found.note and "seed 1: neither" in found.note
    assert numbers == {"ReLU": [2.0, 3.0], "tanh": [3.0, 3.0]}


def test_errors_ten_crops_and_the_mean_of_several(digits, tmp_path):
    """The members of three claims, recounted from their bundles."""
    norm = tried("norm", digits, tmp_path / "norm")
    tests = {m.folder.name: m.metrics["test"] for m in norm.members}
    own = [tests[f"the-network-rate0.005-seed{s}"]["top1_error"] for s in (0, 1)]
    without = [tests[f"no-norm-rate0.005-seed{s}"]["top1_error"] for s in (0, 1)]
    top1, top5 = norm.findings
    assert top1.values == pytest.approx([100 * (b - a) for a, b in zip(own, without, strict=True)])
    assert (top1.paper, top5.paper, top1.primary, top5.primary) == ("1.4", "1.2", True, False)

    crops = tried("crops", digits, tmp_path / "crops")
    bundles = [m.folder / "bundle" for m in crops.members]
    ten = [evaluate(b, digits.path, crops=10, device="cpu").top1 for b in bundles]
    one = [evaluate(b, digits.path, device="cpu").top1 for b in bundles]
    assert crops.findings[0].values == pytest.approx([100 * (a - b) for a, b in zip(ten, one, strict=True)])
    assert "mirrored" in crops.findings[0].note

    several = tried("ensemble", digits, tmp_path / "ensemble")
    together = evaluate([m.folder / "bundle" for m in several.members], digits.path, device="cpu")
    assert isinstance(together, Scores)
    expected = [100 * (m.metrics["test"]["top1_error"] - (1 - together.top1)) for m in several.members]
    assert several.findings[0].values == pytest.approx(expected)


def test_the_gap_and_the_epochs_of_dropout(digits, tmp_path):
    result = tried("dropout", digits, tmp_path / "claim")
    gap, error, longer = result.findings
    gaps = {}
    for member in result.members:
        train = evaluate(member.folder / "bundle", digits.path, split="train", device="cpu").top1
        gaps[member.job.arm.name, member.job.seed] = 100 * (train - member.metrics["test"]["top1"])
    assert gap.values == pytest.approx([gaps["no dropout", s] - gaps["the network", s] for s in (0, 1)])
    assert gap.primary and not error.primary and not longer.primary
    assert (longer.unit, longer.paper) == ("ratio", "2")
    level = max(min(m.training_errors) for m in result.members)
    assert f"{100 * level:.1f} %" in longer.what and len(longer.values) == 2
    assert set(result.numbers) == {f"{a}: {s}" for a in ("the network", "no dropout") for s in ("training", "test")}


def test_a_rate_that_diverges_is_not_chosen(digits, tmp_path, monkeypatch):
    whole = loop.train_step

    def broken(state, batch):  # real steps, but at this rate an image is not a number
        if state.recipe.lr == 0.02:
            batch.images[0, 0, 0, 0] = float("nan")
        return whole(state, batch)

    monkeypatch.setattr(loop, "train_step", broken)
    folder = tmp_path / "claim"
    result = tried("relu-wide", digits, folder, seeds=1, rates=(0.02, 0.01), level=0.85)
    assert result.chosen == {"ReLU": 0.01, "tanh": 0.01}
    assert [member.job.rate for member in result.searches if member.diverged] == [0.02, 0.02]
    monkeypatch.setattr(loop, "train_step", whole)  # what diverged is remembered, not tried again
    again = tried("relu-wide", digits, folder, seeds=1, rates=(0.02, 0.01), level=0.85)
    assert again.to_dict() == result.to_dict()
    monkeypatch.setattr(loop, "train_step", broken)
    with pytest.raises(TrainingError, match="give --rates"):
        tried("relu-wide", digits, tmp_path / "alone", seeds=1, rates=(0.02,), level=0.85)


def test_the_command(digits, tmp_path, capsys):
    words = ["study", "claims", "overlap", "--data", str(digits.path), "--quick", "--seeds", "1", "--epochs", "1"]
    words += ["--output-dir", str(tmp_path / "claim"), "--device", "cpu"]
    assert cli.run(words) == 0
    out = capsys.readouterr().out
    assert out.index("alexnet_small_no_overlap") < out.index("95 % CI over seeds")
    for text in (
        "none from one seed",
        "0.4",
        "cannot tell",
        "verdict    overlap: cannot tell",
        "160 images to train",
    ):
        assert text in out
    assert cli.run([*words, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["verdict"] == "cannot tell"
    assert "alexnet_small_no_overlap" in captured.err


def test_the_list_and_wrong_names(capsys):
    assert cli.run(["study", "claims"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in claims.CLAIMS) and "six times faster" in out
    assert cli.run(["study", "claims", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["norm"]["figures"] == {"top1": "1.4", "top5": "1.2"}
    assert cli.run(["study", "claims", "nrom"]) == 2
    assert "Did you mean 'norm'?" in capsys.readouterr().err


def test_a_rate_that_lags_behind_the_best_is_not_trained_on(digits, tmp_path):
    folder = tmp_path / "claim"
    result = tried("relu-wide", digits, folder, seeds=1, epochs=6, rates=(0.01, 1e-5), level=0.6)
    for best, lagging in (result.searches[:2], result.searches[2:]):
        needed = math.ceil(best.epochs_to(0.6))
        assert len(best.rows) == needed < 6
        assert (lagging.epochs_to(0.6), len(lagging.rows)) == (None, needed)  # at 0.00001 nothing is learned
    assert result.chosen == {"ReLU": 0.01, "tanh": 0.01}
    again = tried("relu-wide", digits, folder, seeds=1, epochs=6, rates=(0.01, 1e-5), level=0.6)
    assert again.to_dict() == result.to_dict()
