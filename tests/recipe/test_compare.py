"""Where two recipes differ, against a list made by hand from what is known of 2012 and its followers."""

import itertools

import pytest

from alexnet import recipe as recipes
from alexnet.recipe import compare, get_recipe, list_recipes, source
from alexnet.recipe.traits import TOPICS, TRAITS

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
NETWORKS = {
    "norm in layer 1": ("conv relu norm pool", "conv norm pool relu"),
    "norm α ÷ n": ("not as printed; `alexnet` divides, as the code", "yes"),
    "spatial norm": ("none", "layer 2, after norm: 5×5 pixels, k 1, scale 0.001 ÷ 25"),
    "weight std": ("0.01", "0.01, conv3 to conv5 0.03"),
    "published": ("40.7 / 18.2 %, ten crops", "40.66 / 18.21 %, ten crops"),
}


def test_paper_and_code():
    fields, traits = compare("paper", "code2012")
    assert {d.what: d.values for d in fields} == PAPER_AND_CODE
    assert {d.what: d.values for d in traits} == NETWORKS
    for difference in (*fields, *traits):
        assert difference.sources[0].startswith("paper")
        assert difference.sources[1].startswith("2012 code") or difference.what == "validation"


# The table of the five AlexNets: row -> what answers it, and the predictions of paper, code, Caffe, CaffeNet,
# torchvision.
FIVE = ("paper", "code2012", "caffe", "caffenet", "owt")
ROWS = {
    "kernels": ["96-256-384-384-256"] * 4 + ["64-192-384-256-256"],
    "input": ["224", "224", "227", "227", "224"],
    "conv1 padding": ["right and bottom 3, so that 224 gives 55"] * 2 + ["none"] * 2 + ["2 on every side"],
    "norm in layer 1": [
        "conv relu norm pool",
        "conv norm pool relu",
        "conv relu norm pool",
        "conv relu pool norm",
        "conv relu pool",
    ],
    "norm constants": [
        *["5 channels, k 2, α 0.0001, β 0.75"] * 2,
        *["5 channels, k 1, α 0.0001, β 0.75"] * 2,
        "no norm",
    ],
    "norm scope": ["each tower by itself"] * 2 + ["all channels"] * 2 + ["no norm"],
    "weight std": [
        "0.01",
        "0.01, conv3 to conv5 0.03",
        *["0.01, fc6 and fc7 0.005"] * 2,
        "uniform in ±1/√fan-in (Kaiming, a = √5)",
    ],
    "hidden bias": ["1", "1", "0.1", "1", "uniform in ±1/√fan-in"],
    "bias_lr_mult": [1, 2, 2, 2, 1],
    "schedule_bias_lr": [True, False, True, True, True],
    "bias_weight_decay": [True, False, False, False, True],
    "batch_size": [128, 128, 256, 256, 256],
    "lr": [0.01] * 5,
    "lr_milestones": [(), (25, 51, 79), (20, 40, 60, 80), (20, 40, 60, 80), (30, 60)],
    "epochs": [90, 91, 90, 90, 90],
    "weight_decay": [0.0005] * 4 + [0.0001],
    "dropout (place)": ["outputs of fc6 and fc7"] * 4 + ["inputs of fc6 and fc7"],
    "fit": ["crop", "crop", "squash", "squash", "crop"],
    "crop": ["random"] * 4 + ["resized"],
    "mean": ["image", "center", "image", "image", "channel"],
    "divide_std": [False] * 4 + [True],
    "pca_noise_std": [0.1, 0.1, 0, 0, 0],
    "pca_noise_until_epoch": [0, 67, 0, 0, 0],
    "published": [
        "40.7 / 18.2 %, ten crops",
        "40.66 / 18.21 %, ten crops",
        "42.9 / 19.8 %, center view",
        "42.6 / 19.6 %, center view",
        "43.48 / 20.93 %, center view",
    ],
}


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(range(5), 2)))
def test_every_row_of_the_table_of_five_is_answered(a, b):
    fields, traits = compare(FIVE[a], FIVE[b])
    found = {d.what: d.values for d in fields} | {
        "dropout (place)" if d.what == "dropout" else d.what: d.values for d in traits
    }
    for row, predictions in ROWS.items():
        expected = None if predictions[a] == predictions[b] else (predictions[a], predictions[b])
        assert found.get(row) == expected, row


@pytest.mark.parametrize("a", list_recipes())
def test_any_two_are_compared(a):
    for b in list_recipes():
        check_comparison(a, b)


def check_comparison(a: str, b: str) -> None:
    fields, traits = compare(a, b)
    assert {d.what for d in fields} | {"recipe"} == set(recipes.differences(get_recipe(a), get_recipe(b))) | {"recipe"}
    for difference in fields:
        assert difference.values == (getattr(get_recipe(a), difference.what), getattr(get_recipe(b), difference.what))
        assert difference.sources == (source(a, difference.what), source(b, difference.what))
        assert difference.meaning == recipes.help_text()[difference.what]
    models = [get_recipe(name).model for name in (a, b)]
    assert bool(traits) == (models[0] != models[1] and set(models) <= set(TRAITS))
    assert [d.what for d in traits] == [topic for topic in TOPICS if topic in {d.what for d in traits}]
