import pytest

from alexnet.errors import RecipeError
from alexnet.recipe import Recipe, parse_interval


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("5min", 5, "min"),
        ("0.5 minutes", 0.5, "min"),
        ("0min", 0, "min"),
        ("1minute", 1, "min"),
        ("500steps", 500, "step"),
        ("1step", 1, "step"),
        ("1epoch", 1, "epoch"),
        (" 10 epochs ", 10, "epoch"),
        ("auto", 1, "auto"),
    ],
)
def test_as_a_person_writes_it(text, amount, unit):
    assert parse_interval(text, "--checkpoint-every") == (amount, unit)
    assert Recipe(checkpoint_every=text).checkpoint_every == text


@pytest.mark.parametrize("text", ["", "5", "min", "-1min", "5 hours", "1e3steps", "0steps", "0epochs", "1.5epochs"])
def test_what_is_no_interval_is_refused(text):
    with pytest.raises(RecipeError) as caught:
        Recipe(checkpoint_every=text)
    expected = f"--checkpoint-every is {text!r}; must be auto, or a number and min, steps or epochs"
    assert str(caught.value).startswith(expected)
