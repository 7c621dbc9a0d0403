"""The recipe of a training before any option is set."""

import pytest
import torch

from alexnet.errors import ModelError, RecipeError
from alexnet.models import create_model, list_models, list_torchvision_models
from alexnet.recipe import get_recipe
from alexnet.training.finetune import default_recipe
from alexnet.training.task import check_network


@pytest.mark.parametrize("name", [*list_models(), *list_torchvision_models()])
@pytest.mark.parametrize("recipe", ["", "paper"])
def test_the_recipe_has_an_initialization_of_the_network(name, recipe):
    chosen = default_recipe("images", recipe, name).initialization
    with torch.device("meta"):
        create_model(name, initialization=None if chosen == "own" else chosen)
    assert default_recipe("images", recipe, name).model == name


def test_the_inputs_are_scaled_as_the_network_expects_unless_a_recipe_is_named():
    for name, divide, divide_std in (("resnet18", 1, True), ("figure1_tanh_wide", 64, False), ("caffenet", 1, False)):
        recipe = default_recipe("images", model=name)
        assert (recipe.divide, recipe.divide_std) == (divide, divide_std), name
        assert default_recipe("images", "paper", name).divide_std is False


def test_images_are_stored_in_a_size_that_fits_the_input_of_the_network():
    sizes = {"alexnet": 256, "alexnet_single": 256, "alexnet_small": 27, "residual_20": 37, "inception_v3": 342}
    assert {name: default_recipe("images", model=name).stored_size for name in sizes} == sizes
    assert default_recipe("images", "paper", "alexnet_small").stored_size == 256, "a named recipe says it itself"


def test_a_network_with_a_recipe_of_its_own_has_that_one():
    assert default_recipe("images", model="cifar_13pct") == get_recipe("cifar_13pct")
    assert default_recipe("digits", model="alexnet_single") == get_recipe("digits").replace(model="alexnet_single")


def test_a_store_decides_the_size_of_its_images(digits):
    recipe = default_recipe(str(digits.path), "paper")
    assert recipe == get_recipe("paper").replace(stored_size=32)
    with pytest.raises(ModelError, match="unknown model 'alexnett'"):
        default_recipe(str(digits.path), model="alexnett")


def test_an_initialization_that_a_network_has_not_is_refused_by_its_option():
    with pytest.raises(RecipeError, match=r"--initialization is '2012'; must be 'own': alexnet_small has no other"):
        check_network(get_recipe("modern").replace(model="alexnet_small"))
