"""Durations and epochs that fit into a time budget, against arithmetic by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alexnet.errors import RecipeError
from alexnet.experiments import time_budget
from alexnet.experiments.time_budget import (
    TrainingSpeed,
    fit_epochs,
    training_seconds,
    with_epochs,
)
from alexnet.recipe import get_recipe

MODERN = get_recipe("modern")  # small crops in 59 % of the epochs
COUNTS = (1000, 100, 300)
SPEED = TrainingSpeed(train_small=0.001, train_full=0.004, evaluate=0.002, overhead=5.0)


def test_training_seconds():
    """Five epochs, three of them small: 3·1000·0.001 + 2·1000·0.004; evaluated: 5·100, then twice 100 and 300."""
    recipe = MODERN.replace(epochs=5)
    assert [recipe.crop_size(epoch, 224) for epoch in range(5)] == [128, 128, 128, 224, 224]
    expected = 5.0 + 3 * 1.0 + 2 * 4.0 + (5 * 100 + 2 * 100 + 2 * 300) * 0.002
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
        "one epoch of vgg16 takes 1 h 21 min on this machine, and its share of the budget is 1 min 40 s; "
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
