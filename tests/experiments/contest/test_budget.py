"""Time: how it is said, shared and filled; the arithmetic by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.errors import RecipeError
from alexnet.experiments.contest import plan
from alexnet.experiments.contest.plan import Pace
from alexnet.recipe import get_recipe

MODERN = get_recipe("modern")  # small crops in 59 % of the epochs
COUNTS = (1000, 100, 300)
PACE = Pace(small=0.001, full=0.004, judge=0.002, fixed=5.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("40min", 2400), ("90s", 90), ("1.5h", 5400), ("1h30min", 5400), ("2h 5min 10s", 7510), ("0.5min", 30)],
)
def test_times_are_understood(text, seconds):
    assert plan.seconds(text) == seconds


@pytest.mark.parametrize("text", ["40", "", "min", "40 minutes", "-5min", "1d", "40min!", "nan"])
def test_what_is_no_time(text):
    with pytest.raises(RecipeError) as caught:
        plan.seconds(text)
    assert str(caught.value) == f"--budget is {text!r}; must be a time such as 90s, 40min or 1.5h"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.34, "8.34 s"), (59.9, "59.9 s"), (60, "1 min"), (125, "2 min 5 s"), (5400, "1 h 30 min"), (119.7, "2 min")],
)
def test_times_for_people(seconds, text):
    assert plan.words(seconds) == text


def test_too_little_for_so_many():
    with pytest.raises(RecipeError) as caught:
        plan.check(60, 8)
    assert str(caught.value) == (
        "--budget of 1 min leaves 8 contestants 7.5 s each; must be at least 2 min 50 s for so many; "
        "give more time, or fewer --nets"
    )
    plan.check(20 * 8 / 0.94 + 0.01, 8)


def test_a_training_takes_its_epochs():
    """Five epochs, three of them small: 3·1000·0.001 + 2·1000·0.004; judged: 5·100, then twice 100 and 300."""
    recipe = MODERN.replace(epochs=5)
    assert [recipe.crop_size(epoch, 224) for epoch in range(5)] == [128, 128, 128, 224, 224]
    expected = 5.0 + 3 * 1.0 + 2 * 4.0 + (5 * 100 + 2 * 100 + 2 * 300) * 0.002
    assert plan.needed(recipe, PACE, 224, COUNTS) == pytest.approx(expected)


@given(st.floats(12.0, 600.0))
def test_as_many_epochs_as_fit_and_no_more(time):
    found = plan.fitted(MODERN, PACE, 224, COUNTS, time)
    assert plan.needed(found, PACE, 224, COUNTS) <= time
    more = plan.with_epochs(MODERN, found.epochs + 1)
    assert found.epochs == plan.MOST_EPOCHS or plan.needed(more, PACE, 224, COUNTS) > time
    assert found.warmup_epochs == min(1.0, found.epochs / 10)
    assert found.replace(epochs=1, warmup_epochs=0.0) == MODERN.replace(
        epochs=1, warmup_epochs=0.0
    )  # nothing else changes


def test_no_more_than_ninety_epochs():
    assert plan.fitted(MODERN, PACE, 224, COUNTS, 1e9).epochs == 90


def test_a_share_without_room_for_one_epoch():
    with pytest.raises(RecipeError) as caught:
        plan.fitted(MODERN.replace(model="vgg16"), Pace(1, 4, 1, 5), 224, COUNTS, 100.0)
    assert str(caught.value) == (
        "one epoch of vgg16 takes 1 h 21 min here, and its share of the budget is 1 min 40 s; "
        "give more --budget, smaller crops (--side), fewer --nets, or fewer --images"
    )


def test_shares_are_equal_until_somebody_takes_too_long():
    equal = 940 / 4
    assert plan.share(1000, 0, 4, equal) == equal
    assert plan.share(1000, 100, 3, equal) == equal  # the first was quick: nobody else gains
    assert plan.share(1000, 440, 3, equal) == pytest.approx(500 / 3)
    assert plan.share(1000, 2000, 2, equal) == 0.0


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8), st.floats(100, 1e5))
def test_whoever_keeps_to_a_share_leaves_the_whole_within_the_budget(parts, whole):
    spent, equal = 0.0, whole * (1 - plan.SPARED) / len(parts)
    for number, part in enumerate(parts):
        spent += part * plan.share(whole, spent, len(parts) - number, equal)
    assert spent <= whole * (1 - plan.SPARED) * (1 + 1e-9)
