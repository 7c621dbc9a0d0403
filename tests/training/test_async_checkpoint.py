"""Interrupted anywhere, by signals and by kill -9, and gone on with: the run is what it would have been."""

import csv
import hashlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alexnet import api
from alexnet.bundle import Bundle
from alexnet.data.run_file import write_run_file
from alexnet.errors import CheckpointError, Interrupted, RunError
from alexnet.recipe import get_recipe, to_toml
from alexnet.training import async_checkpoint, checkpoint, loop
from alexnet.training import run as training_run

# Dropout would be drawn anew if its masks were not a function of the step; momentum, averages and noise likewise.
RECIPE = get_recipe("cifar_18pct").replace(
    epochs=3,
    batch_size=24,
    validation=0.2,
    schedule="constant",
    ema_decay=0.99,
    pca_noise_std=0.1,
    mixup_prob=0.5,
    random_erase_prob=0.2,
    checkpoint_every="1epoch",
)  # 160 images: 7 steps an epoch, the last of 16


def weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(Bundle.load(folder / "bundle").network.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        times = ("seconds", "images_per_second", "crc32")
        return [{name: text for name, text in row.items() if name not in times} for row in csv.DictReader(file)]


def events(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == kind]


@pytest.fixture(autouse=True)
def no_images(monkeypatch):
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "TRAINING_PLOTS", ())
        api.train(digits.path, RECIPE, folder, device="cpu")
    return folder


def same(folder: Path, whole: Path) -> None:
    assert weights(folder) == weights(whole)
    assert rows(folder) == rows(whole)
    assert [event["epoch"] for event in events(folder, "epoch")] == [1, 2, 3]
    assert len(events(folder, "started")) == 1
    assert not list(folder.rglob("*.partial"))


class At:
    """A signal after the steps named, counted over all of them."""

    def __init__(self, monkeypatch, number: int, *steps: int) -> None:
        self.number, self.steps, self.step, self.inner = number, steps, 0, loop.train_step
        monkeypatch.setattr(loop, "train_step", self)

    def __call__(self, *given):
        self.step += 1
        found = self.inner(*given)
        if self.step in self.steps:
            signal.raise_signal(self.number)
        return found


@pytest.mark.parametrize("steps", [(1,), (3, 5), (7,), (8,), (7, 14, 20), tuple(range(1, 21))], ids=str)
def test_stopped_at_every_kind_of_step_and_gone_on_with(steps, whole, digits, tmp_path, monkeypatch):
    """The first, two in one epoch, the last of an epoch, the first of another, and all of them; other workers each."""
    At(monkeypatch, signal.SIGTERM, *steps)
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        api.train(digits.path, RECIPE, folder, device="cpu")
    for again in range(len(steps) - 1):
        with pytest.raises(Interrupted, match=rf"alexnet train --resume {folder}"):
            api.resume(folder, device="cpu", workers=1 + again % 3)
    api.resume(folder, device="cpu", workers=2)
    same(folder, whole)


def test_checkpoints_that_a_kill_before_their_deletion_left_are_deleted(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "bundle")
    kept = checkpoint.list_all(folder / "checkpoints")
    for suffix in ("", ".sha256"):
        shutil.copy(f"{kept[0]}{suffix}", folder / "checkpoints" / f"step-00000001.pt{suffix}")
    api.resume(folder, device="cpu")
    assert checkpoint.list_all(folder / "checkpoints") == kept and len(kept) == 2
    same(folder, whole)


@pytest.mark.parametrize("where", ["validation", "a save", "the last save"])
def test_a_signal_at_a_bad_moment(where, whole, digits, tmp_path, monkeypatch):
    """While it validates, or while a checkpoint is written: the run stops after that, saved once, and can go on."""
    folder, evaluate, write, step = tmp_path / "run", loop.evaluate, checkpoint.save, loop.train_step
    raised, steps = threading.Event(), itertools.count(1)

    def validating(*given, **named):
        if where == "validation":
            signal.raise_signal(signal.SIGINT)
        return evaluate(*given, **named)

    def writing(path, content):
        if path.name == {"a save": checkpoint.name_of(14), "the last save": checkpoint.name_of(21)}.get(where):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            raised.set()
        write(path, content)

    def stepping(*given, **named):
        if next(steps) == 16 and where == "a save":  # that save may be late, but not after the end of the run
            assert raised.wait(600)
        return step(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", validating)
        patch.setattr(checkpoint, "save", writing)
        patch.setattr(loop, "train_step", stepping)
        if where == "the last save":  # the run is over: nothing is left to stop
            api.train(digits.path, RECIPE, folder, device="cpu")
        else:
            with pytest.raises(Interrupted):
                api.train(digits.path, RECIPE, folder, device="cpu")
            assert not (folder / "bundle").exists()
    if where != "the last save":
        api.resume(folder, device="cpu")
    same(folder, whole)


def test_a_changed_recipe_is_refused(whole, tmp_path):
    """Resume with another batch or crop: the difference is shown."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    text = (folder / "recipe.toml").read_text(encoding="utf-8")
    (folder / "recipe.toml").write_text(text.replace("batch_size = 24", "batch_size = 25"), encoding="utf-8")
    with pytest.raises(RunError, match=r"recipe\.toml has changed since the run began"):
        api.resume(folder, device="cpu")
    write_run_file(folder, json.loads((folder / "run.json").read_text()))
    with pytest.raises(CheckpointError, match=r"was made with batch_size = 24, not 25; resume with the run's recipe"):
        api.resume(folder, device="cpu")


def test_a_loader_that_fails_ends_the_run_at_once(digits, tmp_path, monkeypatch):
    """An image that cannot be read any more: the error surfaces, no thread is left behind."""
    from alexnet.data.store import Split
    from alexnet.errors import DataError

    gather, calls = Split.gather, []

    def failing(self, indices):
        calls.append(1)
        if len(calls) == 5:
            raise DataError("shard images-00000.npy is gone")
        return gather(self, indices)

    monkeypatch.setattr(Split, "gather", failing)
    with pytest.raises(DataError, match="is gone"):
        api.train(digits.path, RECIPE, tmp_path / "run", device="cpu", workers=3)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("batches", "checkpoint"))]


def test_sigusr1_saves_and_goes_on(whole, digits, tmp_path, monkeypatch):
    At(monkeypatch, signal.SIGUSR1, 2, 5, 7, 16)
    folder = tmp_path / "run"
    api.train(digits.path, RECIPE.replace(checkpoint_every="1000min"), folder, device="cpu")
    assert weights(folder) == weights(whole)
    saved = [event["file"] for event in events(folder, "checkpoint")]
    assert saved == [checkpoint.name_of(step) for step in (2, 5, 7, 16, 21)]


def test_one_writer_at_a_time_and_the_end_waits_for_it(whole, digits, tmp_path, monkeypatch):
    """A slow disk: a file is begun when the one before is whole, training goes on meanwhile, nothing is lost."""
    busy, most, steps, write = [], [], [], checkpoint.save

    def slowly(path, content):
        busy.append(path)
        most.append(len(busy))
        if threading.current_thread().name == "checkpoint" and path.name == checkpoint.name_of(7):
            assert moved.wait(60)  # until the loop makes its ninth step, while the state after the seventh is written
        write(path, content)
        busy.pop()

    moved, step = threading.Event(), loop.train_step

    def counted(*given):
        steps.append(1)
        if len(steps) == 9:
            moved.set()
        return step(*given)

    monkeypatch.setattr(loop, "train_step", counted)
    monkeypatch.setattr(checkpoint, "save", slowly)
    folder = tmp_path / "run"
    api.train(digits.path, RECIPE, folder, device="cpu")
    assert max(most) == 1
    assert busy == []
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    same(folder, whole)


def test_a_checkpoint_is_of_its_step_whatever_the_loop_did_meanwhile(whole, digits, tmp_path, monkeypatch):
    """A copy that were only a view would hold later weights: resumed from it, the run would end elsewhere."""
    folder, write, later = tmp_path / "run", checkpoint.save, threading.Event()
    step, steps = loop.train_step, []

    def late(path, content):
        if threading.current_thread().name == "checkpoint" and path.name == checkpoint.name_of(5):
            assert later.wait(60)
        write(path, content)

    def counted(*given):
        steps.append(1)
        if len(steps) == 8:
            later.set()
        if len(steps) == 9:
            signal.raise_signal(signal.SIGINT)
        return step(*given)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", late)
        patch.setattr(loop, "train_step", counted)
        with pytest.raises(Interrupted):
            api.train(digits.path, RECIPE.replace(checkpoint_every="5steps"), folder, device="cpu")
    assert checkpoint.load(folder / "checkpoints" / checkpoint.name_of(5))["position"]["step"] == 5
    api.resume(folder / "checkpoints" / checkpoint.name_of(5), device="cpu")
    assert weights(folder) == weights(whole)


def test_a_save_that_fails_beside_the_training_is_said(whole, digits, tmp_path, monkeypatch):
    folder, write = tmp_path / "run", checkpoint.save

    def refusing(path, content):
        if path.name == checkpoint.name_of(7):
            raise CheckpointError("the disk is full")
        write(path, content)

    monkeypatch.setattr(async_checkpoint.checkpoint, "save", refusing)
    api.train(digits.path, RECIPE, folder, device="cpu")
    assert [event["reason"] for event in events(folder, "checkpoint failed")] == ["the disk is full"]
    assert [event["file"] for event in events(folder, "checkpoint")] == [checkpoint.name_of(step) for step in (14, 21)]
    assert weights(folder) == weights(whole)


def test_the_last_checkpoint_is_of_the_last_step_while_other_weights_are_scored(whole, digits, tmp_path, monkeypatch):
    """It is written beside the scoring, and the bundle waits for it. The best weights are those of epoch 2."""
    folder, write, predict, scored = tmp_path / "run", checkpoint.save, training_run.predict_split, threading.Event()
    validate, correct = loop.validate, iter([3, 5, 4])

    def late(path, content):
        if path.name == checkpoint.name_of(21):
            assert scored.wait(60) and not (folder / "bundle").exists()
        write(path, content)

    def predicting(network, split, *given, **named):
        predictions = predict(network, split, *given, **named)
        if split.name == "test":
            scored.set()
        return predictions

    monkeypatch.setattr(checkpoint, "save", late)
    monkeypatch.setattr(training_run, "predict_split", predicting)
    monkeypatch.setattr(loop, "validate", lambda training: replace(validate(training), correct1=next(correct)))
    api.train(digits.path, RECIPE.replace(select_weights="best"), folder, device="cpu")
    name = f"checkpoints/{checkpoint.name_of(21)}"
    last, expected = checkpoint.load(folder / name), checkpoint.load(whole / name)
    assert last["best"]["epoch"] == 1
    for part in ("network", "ema"):
        assert all(torch.equal(tensor, expected[part][key]) for key, tensor in last[part].items())


def test_a_last_checkpoint_that_fails_ends_the_run_without_a_bundle(digits, tmp_path, monkeypatch):
    folder, write = tmp_path / "run", checkpoint.save

    def refusing(path, content):
        if path.name == checkpoint.name_of(21):
            raise CheckpointError("the disk is full")
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(async_checkpoint.checkpoint, "save", refusing)
        with pytest.raises(CheckpointError, match="the disk is full"):
            api.train(digits.path, RECIPE, folder, device="cpu")
    assert not (folder / "bundle").exists()
    api.resume(folder, device="cpu")
    assert (folder / "bundle").exists()


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, [21]), (70.0, [7, 14, 21])], ids=["at once", "a minute each"])
def test_by_default_checkpoints_are_a_minute_apart(digits, tmp_path, monkeypatch, seconds, steps):
    """``seconds``: how long an epoch takes."""
    folder, validate, now = tmp_path / "run", loop.validate, [0.0]

    def slowly(training):
        now[0] += seconds
        return validate(training)

    monkeypatch.setattr(loop, "validate", slowly)
    monkeypatch.setattr(async_checkpoint, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    api.train(digits.path, RECIPE.replace(checkpoint_every="auto"), folder, device="cpu")
    assert [event["file"] for event in events(folder, "checkpoint")] == [checkpoint.name_of(step) for step in steps]


def test_stopped_before_the_first_checkpoint_it_begins_again(whole, digits, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def dies(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            api.train(digits.path, RECIPE, folder, device="cpu")
    assert not checkpoint.list_all(folder / "checkpoints")
    api.resume(folder, device="cpu")
    assert weights(folder) == weights(whole)
    assert rows(folder) == rows(whole)
    assert len(events(folder, "resumed")) == 1
    assert not events(folder, "started")


def test_killed_before_it_was_told_what_it_is(digits, tmp_path):
    """Of write_start only the first files: not a run yet, so the same command begins it."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.toml").write_text("")
    (folder / "run.json.tmp").write_text("{")
    api.train(digits.path, RECIPE.replace(epochs=1), folder, device="cpu")
    assert len(rows(folder)) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="exists already"):
        api.train(digits.path, RECIPE, tmp_path / "mine", device="cpu")


# One process that has imported everything forks the victims: a kill then costs a second instead of five.
KILLER = """
import os, random, signal, sys, time, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
from alexnet import api, recipe
from alexnet.training import checkpoint
store, folder, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
api.TRAINING_PLOTS = ()
fields = recipe.from_toml(Path(sys.argv[4]).read_text())
moments = random.Random(kills)

def attempt():
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        if (folder / "run.json").exists():
            api.resume(folder, device="cpu")
        else:
            api.train(store, fields, folder, device="cpu")
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)

started = time.monotonic()
child = attempt()
while not (folder / "bundle").exists():
    time.sleep(0.01)
assert os.waitpid(child, 0)[1] == 0
typical = time.monotonic() - started
import shutil
shutil.rmtree(folder)
done = 0
while done < kills:
    child = attempt()
    time.sleep(typical * moments.uniform(0.05, 1.0) * (0.5 if kills < 20 else 0.3))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    done += status == signal.SIGKILL
    if status == 0:  # it was over before: from the beginning
        print("finished early", flush=True)
        if done < kills:
            shutil.rmtree(folder)
child = attempt()
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_same_weights(kills, digits, tmp_path):
    """kill -9, again and again: during a step, a save, the validation, the end; each time gone on with.

    The child of a fork computes in one thread, and so does the run that it is compared with.
    """
    folder, whole, recipe = tmp_path / "run", tmp_path / "whole", tmp_path / "recipe.toml"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        api.train(digits.path, RECIPE, whole, device="cpu")
    finally:
        torch.set_num_threads(threads)
    recipe.write_text(to_toml(RECIPE.replace(checkpoint_every="2steps")), encoding="utf-8")
    words = [sys.executable, "-c", KILLER, str(digits.path), str(folder), str(kills), str(recipe)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=3000)
    assert done.returncode == 0, done.stderr
    assert weights(folder) == weights(whole)
    assert rows(folder) == rows(whole)
    assert [event["epoch"] for event in events(folder, "epoch")] == [1, 2, 3]
    assert len(checkpoint.list_all(folder / "checkpoints")) == 2
    assert not list(folder.rglob("*.partial"))


def test_a_copy_shares_no_memory(digits):
    from alexnet.training.state import State

    state = State(RECIPE, digits, torch.device("cpu"))
    content = state.snapshot(0, copied=True)
    before = {name: tensor.clone() for name, tensor in content["network"].items()}
    with torch.no_grad():
        for parameter in state.network.parameters():
            parameter.add_(1)
    assert all(torch.equal(content["network"][name], tensor) for name, tensor in before.items())
