"""Where two recipes differ, against a list made by hand from what is known of 2012 and its followers."""

import itertools

import pytest

from alexnet import recipe as recipes
from alexnet.recipe import compare, get_recipe, list_recipes, source

# Everything in which the paper's text and the 2012 code are known to differ: (paper, code).
PAPER_AND_CODE = {
    "model": ("alexnet", "alexnet_2012"),
    "initialization": ("paper", "own"),
    "validation": (0.1, 0.0),  # a fixed schedule needs none
    "far_edge": (False, True),  # 2048 crops, 2178 crops
    "crop_group_size": (1, 32),
    "pca_noise_until_epoch": (0, 67),
    "pca_noise_rescale": (False, True),  # ÷ 1.1
    "mean": ("image", "center"),
    "epochs": (90, 91),
    "bias_lr_mult": (1.0, 2.0),
    "schedule_bias_lr": (True, False),
    "bias_weight_decay": (True, False),
    "schedule": ("plateau", "multistep"),
    "lr_milestones": ((), (25, 51, 79)),
    "layer_lr_milestones": ("", "conv1.weight=67"),
    "freeze": ("", "conv1"),
    "freeze_from_epoch": (0, 72),
}


def test_paper_and_code():
    differences = compare("paper", "code2012")
    assert {d.field: d.values for d in differences} == PAPER_AND_CODE
    for difference in differences:
        assert difference.sources[0].startswith("paper")
        assert difference.sources[1].startswith("2012 code") or difference.field == "validation"


# The hyperparameters of the five AlexNets: field -> its value in paper, 2012 code, Caffe, CaffeNet, torchvision.
FIVE = ("paper", "code2012", "caffe", "caffenet", "owt")
ROWS = {
    "bias_lr_mult": [1, 2, 2, 2, 1],
    "schedule_bias_lr": [True, False, True, True, True],
    "bias_weight_decay": [True, False, False, False, True],
    "batch_size": [128, 128, 256, 256, 256],
    "lr": [0.01] * 5,
    "lr_milestones": [(), (25, 51, 79), (20, 40, 60, 80), (20, 40, 60, 80), (30, 60)],
    "epochs": [90, 91, 90, 90, 90],
    "weight_decay": [0.0005] * 4 + [0.0001],
    "fit": ["crop", "crop", "squash", "squash", "crop"],
    "crop": ["random"] * 4 + ["resized"],
    "mean": ["image", "center", "image", "image", "channel"],
    "divide_std": [False] * 4 + [True],
    "pca_noise_std": [0.1, 0.1, 0, 0, 0],
    "pca_noise_until_epoch": [0, 67, 0, 0, 0],
}


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(range(5), 2)))
def test_every_row_of_the_table_of_five_is_answered(a, b):
    found = {d.field: d.values for d in compare(FIVE[a], FIVE[b])}
    for row, values in ROWS.items():
        expected = None if values[a] == values[b] else (values[a], values[b])
        assert found.get(row) == expected, row


@pytest.mark.parametrize("a", list_recipes())
def test_any_two_are_compared(a):
    for b in list_recipes():
        check_comparison(a, b)


def check_comparison(a: str, b: str) -> None:
    fields = compare(a, b)
    changed = recipes.differences(get_recipe(a), get_recipe(b))
    assert {d.field for d in fields} | {"recipe"} == set(changed) | {"recipe"}
    for difference in fields:
        assert difference.values == changed[difference.field]
        assert difference.sources == (source(a, difference.field), source(b, difference.field))
        assert difference.help == recipes.help_text()[difference.field]
