"""Layers by name: the form alone."""

import pytest

from alexnet.errors import RecipeError
from alexnet.recipe import parse_layer_ranges, parse_layer_values


def test_layers_and_ranges():
    assert parse_layer_ranges("", "--freeze") == ()
    assert parse_layer_ranges(" ", "--freeze") == ()
    found = parse_layer_ranges("conv1..conv5, fc6,fc7.bias", "--freeze")
    assert found == (("conv1", "conv5"), ("fc6", "fc6"), ("fc7.bias", "fc7.bias"))
    assert parse_layer_ranges("features.0..features.10", "--freeze") == (("features.0", "features.10"),)


@pytest.mark.parametrize("text", ["..", "a..", "..b", "a..b..c", "a,,b", "a=1", ","])
def test_another_form_is_refused(text):
    with pytest.raises(RecipeError) as caught:
        parse_layer_ranges(text, "--freeze")
    assert str(caught.value) == f"--freeze is {text!r}; must be layers and ranges of them: conv1,conv3..conv5"


def test_a_number_for_each_layer():
    assert parse_layer_values("", "--layer-lr-mult") == {}
    assert parse_layer_values("conv1=0, fc10 = 1e-1,features.0=2", "--layer-lr-mult") == {
        "conv1": 0,
        "fc10": 0.1,
        "features.0": 2,
    }


@pytest.mark.parametrize("text", ["conv1", "=1", "conv1=", "conv1=x", "conv1=-1", "conv1=nan", "conv1=1001", "a=1,a=2"])
def test_what_is_no_number_for_each_layer_is_refused(text):
    with pytest.raises(
        RecipeError, match=r"--layer-lr-mult is .*; must be a number from 0 to 1000 for each layer, once"
    ):
        parse_layer_values(text, "--layer-lr-mult")
