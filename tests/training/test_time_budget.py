"""Durations and epochs that fit into a time budget, against arithmetic by hand."""

import hashlib
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alexnet import api
from alexnet.cli.train import train_command
from alexnet.data.sources.options import DataOptions
from alexnet.errors import RecipeError
from alexnet.recipe import get_recipe
from alexnet.training import time_budget
from alexnet.training.time_budget import (
    TrainingSpeed,
    fit_epochs,
    training_seconds,
    with_epochs,
)

MODERN = get_recipe("modern")  # small crops in 59 % of the epochs
COUNTS = (1000, 100, 300)
SPEED = TrainingSpeed(train_small=0.001, train_full=0.004, evaluate=0.002, overhead=5.0)


def test_training_seconds():
    """Five epochs, three of them small: 3·1000·0.001 + 2·1000·0.004; evaluated: 5·100, twice 100 and 300, and 500."""
    recipe = MODERN.replace(epochs=5)
    assert [recipe.crop_size(epoch, 224) for epoch in range(5)] == [128, 128, 128, 224, 224]
    expected = 5.0 + 3 * 1.0 + 2 * 4.0 + (5 * 100 + 2 * 100 + 2 * 300 + 500) * 0.002
    assert training_seconds(recipe, SPEED, 224, COUNTS) == pytest.approx(expected)


@given(st.floats(12.0, 600.0))
def test_as_many_epochs_as_fit_into_the_time(time):
    fitted = fit_epochs(MODERN, SPEED, 224, COUNTS, time)
    assert training_seconds(fitted, SPEED, 224, COUNTS) <= time
    more = with_epochs(MODERN, fitted.epochs + 1)
    assert fitted.epochs == time_budget.MAX_EPOCHS or training_seconds(more, SPEED, 224, COUNTS) > time
    assert fitted.warmup_epochs == min(1.0, fitted.epochs / 10)
    assert fitted.replace(epochs=1, warmup_epochs=0.0) == MODERN.replace(
        epochs=1, warmup_epochs=0.0
    )  # nothing else changes


def test_at_most_90_epochs():
    assert fit_epochs(MODERN, SPEED, 224, COUNTS, 1e9).epochs == 90


def test_share_without_time_for_one_epoch():
    with pytest.raises(RecipeError) as caught:
        fit_epochs(MODERN.replace(model="vgg16"), TrainingSpeed(1, 4, 1, 5), 224, COUNTS, 100.0)
    assert str(caught.value) == (
        "one epoch of vgg16 takes 1 h 30 min on this machine, and its share of the budget is 1 min 40 s; "
        "pass a longer --budget, smaller crops (--image-size), fewer --nets, or fewer --images"
    )


def test_measured_speed_is_plausible(digits):
    """A deeper network takes longer; all values are positive and finite."""
    recipe = get_recipe("digits").replace(initialization="own", stored_size=32, divide_std=True, precision="fp32")
    deep, shallow = (
        time_budget.measure_training(
            recipe.replace(model=f"residual_{depth}", image_size=32), digits, torch.device("cpu")
        )
        for depth in (56, 8)
    )
    for speed in (deep, shallow):
        assert all(0 < value < 60 for value in speed.to_dict().values()) and speed.train_small == speed.train_full
    assert deep.train_full > shallow.train_full and deep.evaluate > shallow.evaluate


def test_a_training_of_a_given_time_is_the_training_of_the_planned_epochs(digits, tmp_path, monkeypatch):
    """The planned number is in recipe.toml, and measuring before has changed no random number."""
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())
    # LeNet-5 on 160, 40 and 50 images: 160·0.1 + 40·0.05 seconds an epoch, (2·40 + 2·50 + 160)·0.05 + 1 once.
    monkeypatch.setattr(time_budget.time, "perf_counter", lambda: 100.0)
    monkeypatch.setattr(api, "perf_counter", lambda: 100.0)
    monkeypatch.setattr(time_budget, "measure_training", lambda *_: TrainingSpeed(0.1, 0.1, 0.05, 1.0))
    lines = []
    options = DataOptions(log=lines.append)
    timed = api.train(digits.path, "lenet5", tmp_path / "timed", device="cpu", time="84s", options=options)
    assert timed.recipe.epochs == 3  # 0.9 · 84 = 75.6: three epochs take 72 s, four 90 s
    assert [line for line in lines if line.startswith("time: ")] == [
        "time: 3 epochs of 160 images are planned to take 1 min 12 s, at 10 images/s"
    ]
    plain = api.train(digits.path, timed.recipe, tmp_path / "plain", device="cpu")
    first, second = (
        hashlib.sha256((run.bundle / "model.safetensors").read_bytes()).hexdigest() for run in (timed, plain)
    )
    assert first == second
    assert re.search(r"^epochs = 3 ", (timed.folder / "recipe.toml").read_text(), re.M)


@pytest.mark.parametrize(("seconds", "epochs"), [(88, 3), (178, 11)])
def test_few_epochs_of_fine_tuning_have_large_crops_and_the_fit_of_the_last_layer_is_in_the_plan(
    seconds, epochs, digits, monkeypatch
):
    """An epoch takes 10 s with small crops and 18 with large ones, the fit 9.6, the rest 18."""
    monkeypatch.setattr(time_budget.time, "perf_counter", lambda: 100.0)
    monkeypatch.setattr(time_budget, "measure_training", lambda *_: TrainingSpeed(0.05, 0.1, 0.05, 1.0))
    start = SimpleNamespace(fresh=lambda classes: "fc8" * (classes == digits.classes))
    recipe = get_recipe("finetune").replace(progressive_size=128, progressive_fraction=0.59)
    planned = time_budget.plan_epochs(
        recipe,
        digits,
        torch.device("cpu"),
        100 + seconds / time_budget.SAFETY_FACTOR,
        few_epochs={"progressive_size": 0},
        start=start,
        log=lambda line: None,
    )
    # 60 s: 4 epochs, two of them small, take 56, so three large ones are planned; 150 s: 6 small and 5 large
    assert (planned.epochs, planned.progressive_size) == (epochs, 128 if epochs > 9 else 0)


def test_the_time_of_the_command_includes_its_imports(digits, monkeypatch):
    times = []

    def stop(*_, time, **__):
        times.append(float(time.removesuffix("s")))
        raise RecipeError("stopped")

    monkeypatch.setattr(api, "train", stop)
    with pytest.raises(RecipeError, match="stopped"):
        train_command([str(digits.path), "--model", "lenet5", "--time", "2h"])
    assert 0 < times[0] < 7200


@pytest.mark.parametrize(("report", "epochs"), [(False, 4), (True, 2)])
def test_the_plots_and_the_report_are_in_the_plan(report, epochs, digits, tmp_path, monkeypatch):
    """A plot takes 1 s: the plots 8 s, with the report (12 + 250 / 400) s and 400 evaluated images of 0.05 s."""
    clock, planned = iter(range(1000)), []
    monkeypatch.setattr(api, "perf_counter", lambda: next(clock) * 1.0)
    monkeypatch.setattr(time_budget.time, "perf_counter", lambda: 0.0)
    monkeypatch.setattr(time_budget, "measure_training", lambda *_: TrainingSpeed(0.1, 0.1, 0.05, 1.0))
    monkeypatch.setattr(api, "_run", lambda recipe, *_, **__: planned.append(recipe.epochs) or pytest.skip("planned"))
    with pytest.raises(pytest.skip.Exception):
        api.train(digits.path, "lenet5", tmp_path / "run", device="cpu", time="112s", report=report)
    # 0.9 · 112 = 100.8 seconds; 18 for an epoch and 18 once: 4 epochs leave 8 s for plots, 2 leave 32.6 s for both
    assert planned == [epochs]


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("lenet5", {"time": "soon"}, "--time is 'soon'; must be a time such as 90s, 40min or 1.5h"),
        ("lenet5", {"time": "1h", "epochs": 3}, "--time and --epochs exclude each other; leave one out"),
        ("cifar_18pct", {"time": "1h", "model": "lenet5"}, "--time chooses the number of epochs, and the epochs of"),
        ("lenet5", {"time": "10s"}, "one epoch of lenet5 takes 36 s on this machine, and --time leaves 9 s; pass a"),
        ("lenet5", {"time": "1h", "go_on": True}, "--time measures one process; pass --epochs with torchrun"),
    ],
)
def test_times_that_cannot_be_planned(recipe, options, message, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(time_budget, "measure_training", lambda *_: TrainingSpeed(0.1, 0.1, 0.05, 1.0))
    monkeypatch.setattr(time_budget.time, "perf_counter", lambda: 100.0)
    monkeypatch.setattr(api, "perf_counter", lambda: 100.0)
    with pytest.raises(RecipeError) as caught:
        api.train(digits.path, recipe, tmp_path / "run", device="cpu", **options)
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()
