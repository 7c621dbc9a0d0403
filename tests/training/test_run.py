"""Whole runs on a few real digits: repeatable, resumable, honest about what goes wrong."""

import csv
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet import api
from alexnet.bundle import Bundle
from alexnet.cli import run as run_command
from alexnet.cuda_convnet import Files
from alexnet.data import splits
from alexnet.data.prepare import prepare
from alexnet.data.run_file import write_run_file
from alexnet.data.sources import Source, open_source
from alexnet.data.store import Store
from alexnet.errors import AlexNetError, CheckpointError, DataError, RecipeError, RunError, TrainingError
from alexnet.recipe import Recipe, get_recipe
from alexnet.training import checkpoint, loop, run_folder
from alexnet.training.distributed.sharding import Layout
from alexnet.training.logger import read_events, read_rows
from alexnet.training.run import normalization_for

# A whole AlexNet on 67-pixel crops, one map of 1×1 after pool5: every kind of layer, in a second.
ALEXNET = Recipe(
    model="alexnet",
    image_size=67,
    stored_size=72,
    epochs=3,
    batch_size=16,
    progressive_size=63,
    progressive_fraction=0.5,
    hflip=0.0,
    warmup_epochs=1,
    checkpoint_every="1epoch",
    precision="fp32",
)
SMALL = get_recipe("cifar_18pct").replace(
    epochs=2, batch_size=16, validation=0.2, schedule="constant", checkpoint_every="1epoch"
)


@pytest.fixture(autouse=True)
def no_images(monkeypatch):
    """Drawing takes longer than these runs. ``whole``, of the session's scope, is made before and has its images."""
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())


def few(count: int) -> Source:
    source = open_source("digits")
    images = source.splits["all"]
    return dataclasses.replace(source, splits={"all": images[:count]}, fingerprint=f"first {count}")


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Store]:
    folder = tmp_path_factory.mktemp("stores")
    return {
        size: prepare(few(count), folder / str(size), size=size, validation=0.2, test=0.2)
        for size, count in ((72, 60), (32, 100))
    }


def run(store: Store, recipe: Recipe, folder: Path, **how) -> api.Result:
    return api.train(store.path, recipe, folder, device="cpu", **how)


def weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(Bundle.load(folder / "bundle").network.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second", "crc32")}
            for row in csv.DictReader(file)
        ]


def events(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == kind]


@pytest.fixture(scope="session")
def whole(stores, tmp_path_factory) -> Path:
    """A run of the whole AlexNet that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(stores[72], ALEXNET, folder)
    return folder


def test_the_folder_holds_everything(whole):
    for name in ("recipe.toml", "run.json", "journal.jsonl", "results.csv", "bundle/model.safetensors"):
        assert (whole / name).stat().st_size > 0, name
    assert len(rows(whole)) == 3
    assert len(list((whole / "checkpoints").glob("step-*.pt"))) == 2
    assert list((whole / "tensorboard").glob("events.*"))
    for name in ("filters", "curves", "confusion", "predictions"):
        assert (whole / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not list(whole.rglob("*.partial"))


def test_one_seed_one_result_whatever_the_workers(whole, stores, tmp_path):
    run(stores[72], ALEXNET, tmp_path / "run", workers=3)
    assert weights(tmp_path / "run") == weights(whole)
    assert rows(tmp_path / "run") == rows(whole)


def test_resumed_at_an_epochs_end_equals_never_stopped(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    earlier = sorted((folder / "checkpoints").glob("step-*.pt"))[0]  # after two epochs of three
    shutil.rmtree(folder / "bundle")
    api.resume(earlier, device="cpu")
    assert weights(folder) == weights(whole)
    assert rows(folder) == rows(whole)
    assert [e["epoch"] for e in events(folder, "epoch")] == [1, 2, 3]  # none doubled, none missing


CODE2012 = get_recipe("cifar_18pct").replace(
    epochs=4,
    batch_size=16,
    image_size=24,
    validation=0.2,
    select_weights="last",
    crop="random",
    hflip=0.5,
    crop_group_size=32,
    pca_noise_std=0.1,
    pca_noise_until_epoch=2,
    pca_noise_rescale=True,
    mean="center",
    lr_milestones=(3,),
    freeze="conv1",
    freeze_from_epoch=2,
    layer_lr_milestones="conv2.weight=1",
    train_on_val_from_epoch=2,
    layer_lr_mult="fc10=0.5",
    layer_weight_decay="conv1=0",
    checkpoint_every="1epoch",
)


def test_as_in_2012_resumed_equals_never_stopped(stores, tmp_path):
    """Shared crops, noise that ends, a layer that is frozen, validation images that join: all by the epoch alone."""
    run(stores[32], CODE2012, tmp_path / "whole", workers=2)
    whole = rows(tmp_path / "whole")
    assert [int(row["steps"]) for row in whole] == [4, 8, 13, 18]  # of 64 images, then of 80
    assert [bool(row["validation_top1"]) for row in whole] == [True, True, False, False]
    assert [float(row["lr"]) for row in whole] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4])
    bundle = Bundle.load(tmp_path / "whole" / "bundle")
    assert list(bundle.metrics) == ["test"]  # its validation images have been trained on
    assert (bundle.normalization.mean_follows_crop, bundle.normalization.mean.shape) == (False, (24, 24, 3))
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "bundle")
    api.resume(sorted((tmp_path / "again" / "checkpoints").glob("step-*.pt"))[0], device="cpu")  # after three epochs
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
    assert rows(tmp_path / "again") == whole
    scores = [api.evaluate(tmp_path / "whole", crops=crops, device="cpu") for crops in (1, 9, 10)]
    assert [(s.crops, s.count) for s in scores] == [(crops, 20) for crops in (1, 9, 10)]
    run(stores[32], CODE2012.replace(train_on_val_from_epoch=0), tmp_path / "apart")
    assert weights(tmp_path / "apart") != weights(tmp_path / "whole")


def test_layers_that_are_not_there_are_refused_before_a_step(stores, tmp_path):
    with pytest.raises(RecipeError, match=r"--freeze: no layer 'conv6' with parameters\. Did you mean 'conv3'"):
        run(stores[32], SMALL.replace(freeze="conv6"), tmp_path / "run")


def test_a_channel_s_deviation_is_that_of_the_training_images(stores):
    store = stores[72]
    pixels = store.split("train").gather(np.arange(len(store.split("train")))).reshape(-1, 3).astype(np.float64)
    found = normalization_for(store, ALEXNET.replace(divide_std=True, divide=2.0), 67).divide
    assert found.numpy() == pytest.approx(2 * pixels.std(0), rel=1e-5)
    plain = normalization_for(store, ALEXNET, 67).divide
    assert (plain.dim(), float(plain)) == (0, 1.0)


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "alexnet", *map(str, words)]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_stopped_in_the_middle_of_an_epoch_and_resumed(number, status, whole, stores, tmp_path):
    folder = tmp_path / "run"
    options = [f"--{k.replace('_', '-')}={v}" for k, v in _changed(ALEXNET).items()]
    words = command("train", stores[72].path, "--output-dir", folder, "--recipe", "modern", "--no-report", *options)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and (not (folder / "journal.jsonl").exists() or not events(folder, "started")):
        time.sleep(0.01)
    time.sleep(0.3)  # somewhere in the first or second epoch
    process.send_signal(number)
    _, said = process.communicate(timeout=600)
    assert process.returncode == status, said
    assert f"alexnet train --resume {folder}" in said
    assert not (folder / "bundle").exists()
    subprocess.run(command("train", "--resume", folder, "--quiet", "--no-report"), check=True, capture_output=True)
    assert weights(folder) == weights(whole)
    assert rows(folder) == rows(whole)


def _changed(recipe: Recipe) -> dict:
    base = Recipe()
    names = (f.name for f in dataclasses.fields(recipe) if getattr(recipe, f.name) != getattr(base, f.name))
    return {name: getattr(recipe, name) for name in names}


# Every number of a recipe has an effect: for each field a value that must change the run it is in.
FLIPS = {
    "seed": 1,
    "dropout": 0.9,
    "image_size": 63,
    "in_channels": 1,
    "initialization": "paper",
    "validation": 0.4,
    "test": 0.4,
    "crop": "random",
    "min_crop_scale": 0.9,
    "hflip": 0.5,
    "pca_noise_std": 0.9,
    "color_jitter": 0.0,
    "random_erase_prob": 1.0,
    "mixup_prob": 1.0,
    "mixup_alpha": 4.0,
    "cutmix_prob": 1.0,
    "randaugment_ops": 2,
    "mean": "image",
    "divide": 2.0,
    "epochs": 3,
    "batch_size": 8,
    "optimizer": "paper",
    "lr": 0.001,
    "bias_lr_mult": 3.0,
    "momentum": 0.5,
    "weight_decay": 10.0,
    "fc_weight_decay": 10.0,
    "bias_weight_decay": True,
    "clip_grad_norm": 0.01,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "label_smoothing": 0.5,
    "ema_decay": 0.0,
    "progressive_size": 0,
    "progressive_fraction": 0.0,
    "precision": "bf16",
    "crop_group_size": 8,
    "pca_noise_until_epoch": 1,
    "far_edge": False,
    "pca_noise_rescale": True,
    "divide_std": True,
    "schedule_bias_lr": False,
    "layer_lr_mult": "conv1=0.1",
    "layer_lr_milestones": "conv2=1",
    "layer_weight_decay": "fc8=50",
    "freeze": "conv1",
    "stop_train_error": 1.0,
    "first_layer_lr_mult": 0.1,
    "sampling": "balanced",
    "class_weights": "balanced",
}
ELSEWHERE = {  # shown by other tests
    "recipe": "names the numbers",
    "model": "test_models",
    "stored_size": "test_a_store_of_another_size_is_refused",
    "fit": "test_a_store_of_another_size_is_refused",
    "lr_milestones": "test_steps_and_stall_have_their_numbers",
    "lr_patience": "test_steps_and_stall_have_their_numbers",
    "max_lr_drops": "test_steps_and_stall_have_their_numbers",
    "cutmix_alpha": "test_mixup",
    "randaugment_magnitude": "test_randaugment",
    "patience": "test_patience_ends_a_run_and_a_resumed_run_at_the_same_epoch",
    "early_stop_fraction": "test_a_run_ends_without_a_better_epoch",
    "select_weights": "test_the_best_epoch_by_validation_is_kept",
    "checkpoint_every": "test_checkpoints_come_as_often_as_asked",
    "freeze_from_epoch": "test_frozen_from_its_epoch_on",
    "train_on_val_from_epoch": "test_as_in_2012_resumed_equals_never_stopped",
    "shuffle_window": "test_windowed",
    "fit_last_layer": "test_last_layer",
    "convolution": "test_runtime",
    "compile": "test_compiled",
    "lr_base_size": "test_schedule",
    "trust_coefficient": "test_lars",
}


def test_every_field_is_flipped_somewhere():
    assert set(FLIPS) | set(ELSEWHERE) == {f.name for f in dataclasses.fields(Recipe)}


TINY = ALEXNET.replace(epochs=2, mixup_prob=0.5, batch_size=24, weight_decay=0.05, warmup_epochs=0.5)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("tiny")
    source = few(40)
    result = api.train(_prepared(source, TINY, folder), TINY, folder / "run", device="cpu")
    return {"folder": folder, "source": source, "trace": _trace(result.folder)}


def _prepared(source: Source, recipe: Recipe, folder: Path) -> Path:
    path = folder / f"store-{recipe.validation}-{recipe.test}-{recipe.seed}"
    return api.prepare(source, path, recipe).path


def _trace(folder: Path) -> tuple:
    return weights(folder), [row["train_loss"] for row in rows(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("field", FLIPS)
def test_every_field_has_an_effect(field, tiny, tmp_path):
    recipe = TINY.replace(**{field: FLIPS[field]})
    result = api.train(_prepared(tiny["source"], recipe, tiny["folder"]), recipe, tmp_path / "run", device="cpu")
    assert _trace(result.folder) != tiny["trace"]


def test_steps_and_stall_have_their_numbers(stores, tmp_path):
    steps = SMALL.replace(epochs=3, schedule="multistep", lr_milestones=(1, 2), select_weights="last")
    run(stores[32], steps, tmp_path / "steps")
    rates = [float(row["lr"]) for row in rows(tmp_path / "steps")]
    assert rates == pytest.approx([1e-3, 1e-4, 1e-5])
    # So small a rate that the error never falls: one drop is allowed, the next stall ends the run.
    stall = SMALL.replace(epochs=50, schedule="plateau", lr=1e-9, lr_patience=2, max_lr_drops=1)
    run(stores[32], stall, tmp_path / "plateau")
    rates = [float(row["lr"]) for row in rows(tmp_path / "plateau")]
    assert rates == pytest.approx([1e-9] * 3 + [1e-10] * 2)


def test_a_run_ends_without_a_better_epoch(stores, tmp_path):
    """Two of ten epochs without a lower validation error, or the same error with a lower loss."""
    recipe = SMALL.replace(epochs=10, early_stop_fraction=0.2, schedule="constant", lr=0.05)  # too large to get better
    stopped = run(stores[32], recipe, tmp_path / "run")
    results = [(1 - float(row["validation_top1"]), float(row["validation_loss"])) for row in rows(stopped.folder)]
    best = min(range(len(results)), key=results.__getitem__)
    assert len(results) == best + 3 < 10


def test_early_stopping_waits_for_crops_of_full_size(stores, tmp_path):
    """Epochs with small crops do not count: six of ten here, so that a fifth of ten epochs is over after eight."""
    recipe = SMALL.replace(epochs=10, early_stop_fraction=0.2, schedule="constant", lr=0.05, image_size=28)
    stopped = run(stores[32], recipe.replace(progressive_size=20, progressive_fraction=0.6), tmp_path / "run")
    results = [(1 - float(row["validation_top1"]), float(row["validation_loss"])) for row in rows(stopped.folder)]
    best = min(range(len(results)), key=results.__getitem__)
    assert best < 6 and len(results) == 8


def test_patience_ends_a_run_and_a_resumed_run_at_the_same_epoch(stores, tmp_path, capsys):
    """It counts from the first epoch with the lowest validation error, also over the epochs before a resume."""
    recipe = SMALL.replace(epochs=10, patience=2, schedule="constant", lr=0.05)  # too large to get better
    whole = run(stores[32], recipe, tmp_path / "whole", quiet=False)
    reason = f"the run ends after epoch {len(rows(whole.folder))}: no lower validation error for 2 epochs"
    assert capsys.readouterr().err.count(reason) == 1
    accuracies = [float(row["validation_top1"]) for row in rows(whole.folder)]
    assert len(accuracies) == accuracies.index(max(accuracies)) + 3 < 10
    again = tmp_path / "again"
    shutil.copytree(whole.folder, again)
    shutil.rmtree(again / "bundle")
    api.resume(sorted((again / "checkpoints").glob("step-*.pt"))[0], device="cpu")  # one epoch before the end
    assert weights(again) == weights(whole.folder)
    assert [float(row["validation_top1"]) for row in rows(again)] == accuracies


def test_a_run_ends_when_it_has_learned_enough(stores, tmp_path):
    recipe = SMALL.replace(epochs=6, lr=0.002)
    whole = run(stores[32], recipe, tmp_path / "whole")
    errors = [1 - float(row["train_top1"]) for row in rows(whole.folder)]
    wanted = sorted(errors)[3]
    end = next(i for i, error in enumerate(errors) if error <= wanted)
    assert end < 5
    stopped = run(stores[32], recipe.replace(stop_train_error=wanted), tmp_path / "run")
    assert [1 - float(row["train_top1"]) for row in rows(stopped.folder)] == errors[: end + 1]
    api.resume(stopped.folder, device="cpu")  # it is over, and stays so
    assert len(rows(stopped.folder)) == end + 1


def test_checkpoints_come_as_often_as_asked(stores, tmp_path):
    """Three epochs of four steps. The last checkpoint always comes, and none stands for two moments."""
    for every, saved in {
        "1000min": [12],
        "0min": list(range(1, 13)),
        "1epoch": [4, 8, 12],
        "2epochs": [8, 12],
        "3steps": [3, 6, 9, 12],
        "5 steps": [5, 10, 12],
        "100steps": [12],
    }.items():
        folder = tmp_path / every
        run(stores[32], SMALL.replace(epochs=3, checkpoint_every=every), folder)
        files = [event["file"] for event in events(folder, "checkpoint")]
        assert files == [f"step-{step:08d}.pt" for step in saved], every
        assert weights(folder) == weights(tmp_path / "1000min")


def test_the_best_epoch_by_validation_is_kept(stores, tmp_path):
    result = run(stores[32], SMALL.replace(epochs=6, select_weights="best", lr=0.01), tmp_path / "run")
    best = max(rows(tmp_path / "run"), key=lambda r: (float(r["validation_top1"]), -float(r["validation_loss"])))
    assert result.scores["validation"].top1 == pytest.approx(float(best["validation_top1"]))
    assert result.scores["validation"].loss == pytest.approx(float(best["validation_loss"]), rel=1e-5)
    assert f"epoch {best['epoch']}," in Bundle.load(result.bundle).data["kept"]


@pytest.mark.parametrize(
    ("select", "kept"),
    [
        ("best", "epoch 2, the lowest validation error of 3 epochs"),
        ("best-loss", "epoch 3, the lowest validation loss of 3 epochs"),
        ("last", "the last of 3 epochs"),
    ],
)
def test_weights_are_selected_by_error_or_by_loss(stores, tmp_path, monkeypatch, select, kept):
    measured, validate = iter([(2.0, 3), (1.5, 5), (1.0, 4)]), loop.validate

    def scripted(training):
        loss, correct = next(measured)
        return dataclasses.replace(validate(training), loss=loss, correct1=correct)

    monkeypatch.setattr(loop, "validate", scripted)
    result = run(stores[32], SMALL.replace(epochs=3, select_weights=select), tmp_path / "run")
    assert Bundle.load(result.bundle).data["kept"] == kept


def test_fewer_images_than_a_batch(stores, tmp_path):
    result = run(stores[32], SMALL.replace(batch_size=1000), tmp_path / "run")
    assert [float(row["steps"]) for row in rows(tmp_path / "run")] == [1, 2]
    assert result.scores["test"].count == len(stores[32].split("test"))


def poisoned(patch, steps):
    """Real steps, but the images of ``steps`` (from 1) have a pixel that is not a number."""
    from alexnet.training import loop

    inner = loop.train_step

    def broken(state, batch):
        if state.position.step + 1 in steps:
            batch.images[0, 0, 0, 0] = float("nan")
        return inner(state, batch)

    patch.setattr(loop, "train_step", broken)


def test_three_losses_in_a_row_that_are_no_numbers_stop_the_run_and_keep_the_good_checkpoint(stores, tmp_path):
    recipe = SMALL.replace(epochs=40, lr=1e-3, warmup_epochs=0.0)
    folder = tmp_path / "run"
    said = r"the loss is nan at step 8 \(epoch 2\), as at the 2 steps before.*lower --lr.*last good"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingError, match=said):
        poisoned(patch, {6, 7, 8})
        patch.setattr(checkpoint, "save", lambda *a, inner=checkpoint.save: (time.sleep(1), inner(*a)))  # a slow disk
        run(stores[32], recipe, folder)
    kept = sorted((folder / "checkpoints").glob("step-*.pt"))
    assert [p.name for p in kept] == ["step-00000004.pt"]
    found = events(folder, "nonfinite loss")
    assert [e["step"] for e in found] == [5, 6, 7] and all(len(e["indices"]) == 16 for e in found)
    content = torch.load(kept[-1], weights_only=True)
    assert all(torch.isfinite(t).all() for t in content["network"].values())
    assert api.resume(folder, device="cpu").scores["test"].count == 20


def test_one_loss_that_is_no_number_changes_nothing_and_the_run_goes_on(stores, tmp_path, capsys):
    """Neither weights nor average nor what batch norm has seen; two times two in a row are not three."""
    recipe = SMALL.replace(model="resnet18", image_size=33, epochs=2, warmup_epochs=0.0)
    with pytest.MonkeyPatch.context() as patch:
        poisoned(patch, {1, 2, 4, 5})
        result = run(stores[32], recipe, tmp_path / "run", quiet=False)
    assert [e["step"] for e in events(tmp_path / "run", "nonfinite loss")] == [0, 1, 3, 4]
    assert "the batch was skipped and no weight changed" in capsys.readouterr().err
    last = sorted((tmp_path / "run" / "checkpoints").glob("step-*.pt"))[-1]
    content = torch.load(last, weights_only=True)
    for kind in ("network", "ema"):
        for name, tensor in (content[kind] or {}).items():
            assert torch.isfinite(tensor).all(), name
    assert any("running_mean" in name and tensor.any() for name, tensor in content["network"].items())
    assert all(np.isfinite(float(row["train_loss"])) for row in rows(tmp_path / "run")) and result.scores["test"].count


def test_an_epoch_in_which_nothing_was_learned_ends_the_run(stores, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingError, match="the loss is nan at step 1 "):
        poisoned(patch, {1})
        run(stores[32], SMALL.replace(batch_size=1000), tmp_path / "run")


def test_no_memory_says_what_to_change_and_the_run_goes_on_so(stores, tmp_path):
    """The real thing: from the first step on the process may have 64 MiB more, and a gradient of fc7 takes 67 MB."""
    code = """
import resource, sys
from alexnet.cli import run
from alexnet.training import loop

step = loop.train_step

def crowded(state, batch):
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 2**26, resource.RLIM_INFINITY))
    return step(state, batch)

loop.train_step = crowded
sys.exit(run(sys.argv[1:]))
"""
    folder, words = tmp_path / "run", ["--image-size", "67", "--stored-size", "72", "--progressive-fraction", "0"]
    words += ["--precision", "fp32", "--model", "alexnet", "--epochs", "1", "--batch-size", "16", "--no-report"]
    words = [sys.executable, "-c", code, "train", str(stores[72].path), "--output-dir", str(folder), *words]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert " MB of memory could not be allocated at step 1, for a batch of 16 images of 67 pixels" in done.stderr
    assert "--grad-accum-steps 2 (less memory, the same result; with --resume too)" in done.stderr
    assert api.resume(folder, device="cpu", layout=Layout(grad_accum_steps=2)).scores["test"].count == 12


def test_a_rate_that_explodes_leaves_finite_weights(stores, tmp_path):
    recipe = SMALL.replace(lr=500.0, epochs=30, clip_grad_norm=0.0)
    with pytest.raises(TrainingError, match="lower --lr"):
        run(stores[32], recipe, tmp_path / "run")


def test_a_used_folder_is_refused_and_untouched(whole, stores):
    before = sorted(p.name for p in whole.iterdir())
    with pytest.raises(RunError, match=r"exists already; must be a new folder; or resume it: --resume"):
        run(stores[72], ALEXNET, whole)
    assert sorted(p.name for p in whole.iterdir()) == before


def test_a_locked_folder_is_refused(stores, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="in use by another process"):
            run(stores[32], SMALL, folder)


def test_a_second_training_in_a_run_folder_is_refused_and_harms_nothing(stores, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())
    alone, folder = tmp_path / "alone", tmp_path / "run"
    options = ["--recipe", "lenet5", "--epochs", "20", "--quiet", "--no-report", "--device", "cpu"]
    words = ["train", str(stores[32].path), *options]
    assert run_command([*words, "--output-dir", str(alone)]) == 0
    without_plots = "import sys; from alexnet import api, cli; api.TRAINING_PLOTS = (); sys.exit(cli.run(sys.argv[1:]))"
    first = subprocess.Popen(
        [sys.executable, "-c", without_plots, *words, "--output-dir", folder], stderr=subprocess.PIPE
    )
    try:
        while first.poll() is None and not list((folder / "checkpoints").glob("*.pt")):
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(first.pid, os.WUNTRACED)[1])  # in the middle of training
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        capsys.readouterr()
        for second, reason in (
            (["train", "--resume"], "is in use by another process"),
            ([*words, "--output-dir"], "exists already"),
        ):
            assert run_command([*second, str(folder)]) == 1
            said = capsys.readouterr().err
            assert said.startswith(f"alexnet: run folder {folder} {reason}; ") and said.count("\n") == 1
            assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    finally:
        first.send_signal(signal.SIGCONT)
        first.communicate()
    assert first.returncode == 0
    assert weights(alone) == weights(folder)


def test_a_folder_that_can_not_be_made_is_refused(stores, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        run(stores[32], SMALL, tmp_path / "file" / "run")


def test_a_store_of_another_size_is_refused(stores, tmp_path):
    with pytest.raises(RecipeError, match=r"images of 32 pixels \(crop\); must be 72 \(crop\)"):
        run(stores[32], ALEXNET, tmp_path / "a")
    with pytest.raises(RecipeError, match=r"must be 32 \(pad\)"):
        run(stores[32], SMALL.replace(fit="pad"), tmp_path / "b")


def test_a_store_without_training_or_validation_images_is_refused(stores, tmp_path):
    empty = prepare(splits.all_as_test(few(20)), tmp_path / "empty", size=32)
    with pytest.raises(DataError, match="has no training images"):
        run(empty, SMALL, tmp_path / "a")
    unchosen = prepare(few(60), tmp_path / "unchosen", size=32, validation=0.0)
    with pytest.raises(DataError, match="no validation split, which --select-weights best needs"):
        run(unchosen, SMALL.replace(select_weights="best"), tmp_path / "b")


def test_resume_with_other_data_is_refused(stores, tmp_path):
    folder = tmp_path / "run"
    run(stores[32], SMALL, folder)
    other = prepare(few(120), tmp_path / "other", size=32, validation=0.2, test=0.2)
    with pytest.raises(CheckpointError, match="made with other data"):
        api.resume(folder, store=other.path)


def test_a_damaged_checkpoint_is_refused_and_the_good_one_offered(stores, tmp_path):
    folder = tmp_path / "run"
    run(stores[32], SMALL, folder)
    previous, newest = sorted((folder / "checkpoints").glob("step-*.pt"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"is damaged.*a good one is left: --resume {previous}"):
        api.resume(folder)
    api.resume(previous)
    assert len(rows(folder)) == 2


FULL_DISK = """
import resource, sys
from pathlib import Path
from alexnet import api, recipe
from alexnet.errors import AlexNetError
from alexnet.training import checkpoint

limits = [10_000_000, 10_000_000, {limit}]  # bytes that a file may have when a checkpoint is written
save = checkpoint.save
def with_less_room(path, content):
    room = limits.pop(0) if path.name.startswith("step") else 10_000_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        return save(path, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpoint.save = with_less_room
limits[1] = {periodic}
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
r = recipe.get_recipe("cifar_18pct").replace(epochs=3, batch_size=16, validation=0.2, schedule="constant")
r = r.replace(checkpoint_every="1epoch")
try:
    api.train({store!r}, r, {run!r}, device="cpu", quiet=False)
except AlexNetError as error:
    print(error)
    sys.exit(1)
"""


@pytest.mark.parametrize("last", [False, True])
def test_a_full_disk(last, stores, tmp_path):
    """A periodic save that fails does not end training; the last one does. The previous checkpoint stays whole."""
    folder = tmp_path / "run"
    big, none = 100_000_000, 100_000
    code = FULL_DISK.format(
        limit=none if last else big, periodic=big if last else none, store=str(stores[32].path), run=str(folder)
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    message = done.stdout if last else done.stderr
    assert done.returncode == (1 if last else 0), done.stderr
    assert "could not be written" in message
    assert "MiB are free" in message
    kept = [p.name for p in sorted((folder / "checkpoints").glob("step-*.pt"))]
    assert kept == (["step-00000004.pt", "step-00000008.pt"] if last else ["step-00000004.pt", "step-00000012.pt"])
    assert not list(folder.rglob("*.partial"))
    if last:
        assert api.resume(folder).scores["test"].count == 20


def test_no_validation_split_means_nothing_is_chosen(tmp_path):
    recipe = SMALL.replace(validation=0.0, select_weights="last")
    store = api.prepare(few(60), tmp_path / "store", recipe)
    result = api.train(store.path, recipe, tmp_path / "run", device="cpu")
    assert list(result.scores) == ["test"]
    assert len(store.split("train")) + len(store.split("test")) == 60


def test_reference_images_are_answered_alike(whole):
    bundle = Bundle.load(whole / "bundle")
    classifier = api.load(whole, device="cpu")
    for reference in bundle.reference_samples:
        assert np.allclose(classifier.probabilities(reference.png)[0], reference.probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "Expected `object`, got `array`"),
        ('{"data": "digits", "store": "s"}', "missing required field `sha256`"),
        ("{}", "missing required field `data`"),
        ('{"data": "digits"}', "missing required field `store`"),
        ('{"data": "digits", "store": 3}', "Expected `str`, got `int` - at `$.store`"),
        ('{"data": "digits", "store": "s", "options": "x"}', "at `$.options`"),
        ("[" * 100_000, "nested"),
        ('{"data": "digits", "store": "s"', "delimiter"),
    ],
)
def test_a_damaged_run_json_is_one_line(tmp_path, text, message):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    run_folder.write_start(folder, get_recipe("lenet5"), {"data": "digits", "store": "s"})
    assert run_folder.read_start(folder)[1]["store"] == "s"
    (folder / "run.json").write_text(text)
    with pytest.raises(RunError) as caught:
        run_folder.read_start(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["run.json", "recipe.toml", "results.csv", "layer-params.cfg", "journal.jsonl"])
def test_a_device_or_pipe_in_a_run_is_refused(name, whole, tmp_path):
    """The run of a stranger: reading /dev/zero, or a pipe, would never end."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    metadata = {key: value for key, value in run_folder.read_start(run)[1].items() if key not in ("sha256", "checksum")}
    for path in (run / "layers.cfg", run / "layer-params.cfg"):
        path.write_text("[data]\n")
    (run / name).unlink()
    (run / name).symlink_to("/dev/null")
    if name != "run.json":
        write_run_file(run, metadata | ({"layers": "layers.cfg"} if name == "layer-params.cfg" else {}))
    read = {"layer-params.cfg": run_folder.layer_files, "journal.jsonl": read_events, "results.csv": read_rows}
    for call in (read.get(name, run_folder.read_start), *[api.write_report] * (name in ("recipe.toml", "results.csv"))):
        with pytest.raises((AlexNetError, OSError), match=r"not a regular file|not inside|link out"):
            call(run)


@pytest.mark.parametrize("name", ["run.json", "recipe.toml", "layers.cfg"])
def test_every_changed_byte_in_what_a_run_begins_with_is_refused(tmp_path, name):
    (tmp_path / "run").mkdir()
    files = Files("lenet", "[data]\ntype=data\n", "[data]\n")
    run_folder.write_start(tmp_path / "run", get_recipe("lenet5"), {"data": "digits", "store": "s"}, files)
    path = tmp_path / "run" / name
    data = path.read_bytes()
    for place in range(0, len(data), 1 + len(data) // 300):
        for bit in (1, 32):
            path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
            with pytest.raises(RunError) as caught:
                run_folder.read_start(tmp_path / "run")
            assert name in str(caught.value) or "run.json" in str(caught.value) or "run folder" in str(caught.value)
            assert str(caught.value).isprintable()


def test_a_run_in_bf16_has_the_scores_of_evaluate(digits, tmp_path):
    result = api.train(digits.path, SMALL.replace(precision="bf16"), tmp_path / "run", device="cpu")
    for split, scores in result.scores.items():
        again = api.evaluate(result.folder, split=split, device="cpu")
        assert again.correct1 == scores.correct1
        assert again.loss == pytest.approx(scores.loss, abs=1e-5)
        assert again.to_dict()["precision"] == "fp32"
    assert "in float32" in (result.bundle / "README.md").read_text()
