"""The plan of a contest: contestants, time, crops, recipes; and refused settings."""

import re
import sys

import pytest

from alexnet.api import DataOptions
from alexnet.errors import AlexNetError, RecipeError
from alexnet.experiments.contest.plan import (
    CONTESTANTS,
    DEFAULT_CONTESTANTS,
    PRETRAINED,
    ContestConfig,
    get_contestants,
    make_plan,
)
from alexnet.experiments.runner import open_dataset
from alexnet.models import list_models, list_torchvision_models

pytest.importorskip("torchvision.models")


@pytest.fixture(scope="module")
def digits_dataset():
    return open_dataset("digits", DataOptions())


def plan_for(dataset, **config):
    pytest.importorskip("cv2")
    return make_plan(dataset, "digits", ContestConfig(**config))


def test_default_contest_on_small_images(digits_dataset):
    plan = plan_for(digits_dataset)
    assert [contestant.name for contestant in plan.contestants] == list(DEFAULT_CONTESTANTS)
    assert (plan.budget, plan.epochs, plan.image_size, plan.stored_size) == (900.0, 0, 64, 72)
    recipes = {contestant.name: plan.recipe(contestant) for contestant in plan.contestants if contestant.model}
    assert all(r.image_size == 64 and not r.hflip and r.stored_size == 72 for r in recipes.values())
    augmentation = {
        (r.crop, r.pca_noise_std, r.color_jitter, r.mixup_prob, r.batch_size, r.progressive_size)
        for r in recipes.values()
    }
    assert len(augmentation) == 1  # the same crops in the same batches
    assert plan.equal_share == pytest.approx(900 * 0.94 / 8)
    assert sum("equal time: 15 min in all" in line for line in plan.describe()) == 1


def test_photographs_use_the_papers_crops(digits_dataset):
    plan = plan_for(digits_dataset._replace(scale="paper", hflip=True), nets=("alexnet", "resnet18"))
    assert (plan.budget, plan.image_size, plan.stored_size) == (5400.0, 224, 256)
    assert plan.recipe(plan.contestants[1]).progressive_size == 128 and plan.base.hflip


def test_recipes_differ_in_input_scale_initialization_and_learning_rate_only(digits_dataset):
    plan = plan_for(digits_dataset, nets=tuple(name for name in CONTESTANTS if name != "inception_v3"), epochs=3)
    base = plan.recipe(CONTESTANTS["alexnet"]).to_dict()
    allowed = {"model", "initialization", "divide", "divide_std", "in_channels", "lr", "dropout"}
    for contestant in plan.contestants:
        if contestant.model:
            recipe = plan.recipe(contestant).to_dict()
            assert {name for name in recipe if recipe[name] != base[name]} <= allowed
            assert recipe["epochs"] == 3
            assert contestant.model in [*list_models(), *list_torchvision_models()]


def test_registry_is_complete():
    assert set(DEFAULT_CONTESTANTS) <= set(CONTESTANTS) and set(PRETRAINED) <= set(CONTESTANTS)
    assert [contestant.name for contestant in get_contestants(("fisher", "alexnet"))] == ["fisher", "alexnet"]
    assert set(list_torchvision_models()) <= set(CONTESTANTS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"nets": ("alexnet", "resnet19")}, "--nets: unknown network 'resnet19'. Did you mean 'resnet18'?"),
        ({"nets": ("alexnet", "alexnet")}, "--nets names 'alexnet' twice; must be each contestant once"),
        ({"budget": "1min", "epochs": 3}, "--budget and --epochs exclude each other; leave one out"),
        ({"budget": "soon"}, "--budget is 'soon'; must be a time such as 90s, 40min or 1.5h"),
        (
            {"budget": "1min"},
            "--budget is 1 min, which is 7.5 s for each of 8 contestants; must be at least 2 min 50 s for these; "
            "pass a longer --budget, or fewer --nets",
        ),
        ({"epochs": 0}, "--epochs is 0; must be from 1 to 1000"),
        ({"image_size": -1}, "--image-size is -1; must be at least 0"),
        ({"images": -5}, "--images is -5; must be at least 0"),
        ({"image_size": 40}, "image_size 40 is too small for alexnet; must be at least 52 pixels"),
        ({"nets": ("inception_v3",)}, "image_size 64 is too small for inception_v3; must be at least 107 pixels"),
        (
            {"nets": ("alexnet", "fisher"), "pretrained": True},
            f"--pretrained: torchvision has no weights of alexnet; must be --nets of {', '.join(PRETRAINED)}, fisher",
        ),
    ],
)
def test_invalid_config(digits_dataset, config, message):
    with pytest.raises(AlexNetError) as caught:
        plan_for(digits_dataset, **config)
    assert str(caught.value) == message


def test_missing_library_is_reported_first(digits_dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(AlexNetError, match=r"Fisher vectors need OpenCV, .* pip install 'alexnet\[contest\]'"):
        make_plan(digits_dataset, "digits", ContestConfig())
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(AlexNetError, match="vgg11_bn needs torchvision, which cannot be imported"):
        make_plan(digits_dataset, "digits", ContestConfig(nets=("alexnet", "vgg11_bn")))
    make_plan(digits_dataset, "digits", ContestConfig(nets=("alexnet",)))  # which needs neither


def test_networks_of_timm(digits_dataset, monkeypatch):
    pytest.importorskip("timm")
    nets = ("timm/resnet10t", "timm/vit_tiny_patch16_224", "alexnet")
    plan = plan_for(digits_dataset, nets=nets, epochs=1)
    assert [contestant.name for contestant in plan.contestants] == [
        "timm-resnet10t",
        "timm-vit_tiny_patch16_224",
        "alexnet",
    ]
    resnet, vit, _ = (plan.recipe(contestant) for contestant in plan.contestants)
    assert (resnet.model, resnet.lr, resnet.divide_std) == ("timm/resnet10t", 0.001, True)
    assert vit.lr == plan.base.lr  # no batch norm
    for names, message in {
        ("timm/resnet19",): "timm has no network 'resnet19'. Did you mean",
        ("timm/resnet10t", "timm/resnet10t"): "--nets names 'timm/resnet10t' twice",
    }.items():
        with pytest.raises(AlexNetError, match=re.escape(message)):
            plan_for(digits_dataset, nets=names)
    with pytest.raises(AlexNetError, match="--pretrained: timm has no weights of timm/resnetblur18"):
        plan_for(digits_dataset, nets=("timm/resnetblur18",), pretrained=True)


def test_timm_is_missing(digits_dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        AlexNetError, match=r"timm/no_such needs timm, which is not installed; pip install 'alexnet\[timm\]'"
    ):
        plan_for(digits_dataset, nets=("timm/no_such",))


def test_unknown_contestant(digits_dataset):
    with pytest.raises(RecipeError):
        plan_for(digits_dataset, nets=("nobody",))


def test_budget_that_just_suffices(digits_dataset):
    assert plan_for(digits_dataset, budget=f"{20 * 8 / 0.94 + 0.01}s").budget > 170
