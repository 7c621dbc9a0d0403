"""What a contest is before it begins: who, how long, on which crops; and what can not be, in one line each."""

import sys

import pytest

from alexnet.api import DataOptions
from alexnet.errors import AlexNetError, RecipeError
from alexnet.experiments import plan as material
from alexnet.experiments.contest import plan
from alexnet.experiments.contest.plan import ENTRANTS, PUBLISHED, USUAL, Config, chosen
from alexnet.models import list_models, list_torchvision_models

pytest.importorskip("torchvision.models")


@pytest.fixture(scope="module")
def digits_material():
    return material.find("digits", DataOptions())


def planned(found, **config):
    pytest.importorskip("cv2")
    return plan.make(found, "digits", Config(**config))


def test_the_usual_contest_on_small_images(digits_material):
    made = planned(digits_material)
    assert [contestant.name for contestant in made.contestants] == list(USUAL)
    assert (made.budget, made.epochs, made.side, made.stored) == (900.0, 0, 64, 72)
    recipes = {contestant.name: made.recipe(contestant) for contestant in made.contestants if contestant.model}
    assert all(r.image_size == 64 and not r.hflip and r.stored_size == 72 for r in recipes.values())
    shown = {
        (r.crop, r.pca_noise_std, r.color_jitter, r.mixup_prob, r.batch_size, r.progressive_size)
        for r in recipes.values()
    }
    assert len(shown) == 1  # the same crops in the same batches
    assert made.share == pytest.approx(900 * 0.94 / 8)
    assert sum("equal time: 15 min in all" in line for line in made.lines()) == 1


def test_photographs_have_the_papers_crops(digits_material):
    made = planned(digits_material._replace(photos=True, mirror=True), nets=("alexnet", "resnet18"))
    assert (made.budget, made.side, made.stored) == (5400.0, 224, 256)
    assert made.recipe(made.contestants[1]).progressive_size == 128 and made.base.hflip


def test_contestants_differ_in_inputs_start_and_rate_alone(digits_material):
    made = planned(digits_material, nets=tuple(name for name in ENTRANTS if name != "inception_v3"), epochs=3)
    base = made.recipe(ENTRANTS["alexnet"]).to_dict()
    allowed = {"model", "initialization", "divide", "divide_std", "in_channels", "lr", "dropout"}
    for contestant in made.contestants:
        if contestant.model:
            recipe = made.recipe(contestant).to_dict()
            assert {name for name in recipe if recipe[name] != base[name]} <= allowed
            assert recipe["epochs"] == 3
            assert contestant.model in [*list_models(), *list_torchvision_models()]


def test_everybody_is_known():
    assert set(USUAL) <= set(ENTRANTS) and set(PUBLISHED) <= set(ENTRANTS)
    assert [contestant.name for contestant in chosen(("fisher", "alexnet"))] == ["fisher", "alexnet"]
    assert set(list_torchvision_models()) <= set(ENTRANTS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"nets": ("alexnet", "resnet19")}, "--nets: unknown network 'resnet19'. Did you mean 'resnet18'?"),
        ({"nets": ("alexnet", "alexnet")}, "--nets names 'alexnet' twice; must be each contestant once"),
        ({"budget": "1min", "epochs": 3}, "--budget and --epochs both say how long; must be one of them"),
        ({"budget": "soon"}, "--budget is 'soon'; must be a time such as 90s, 40min or 1.5h"),
        (
            {"budget": "1min"},
            "--budget of 1 min leaves 8 contestants 7.5 s each; must be at least 2 min 50 s for so "
            "many; give more time, or fewer --nets",
        ),
        ({"epochs": 0}, "--epochs is 0; must be from 1 to 1000"),
        ({"side": -1}, "--side is -1; must be at least 0"),
        ({"images": -5}, "--images is -5; must be at least 0"),
        ({"side": 40}, "image_size 40 is too small for alexnet; must be at least 52 pixels"),
        ({"nets": ("inception_v3",)}, "image_size 64 is too small for inception_v3; must be at least 107 pixels"),
        (
            {"nets": ("alexnet", "fisher"), "pretrained": True},
            f"--pretrained: nobody publishes weights of alexnet; must be --nets of {', '.join(PUBLISHED)}, fisher",
        ),
    ],
)
def test_what_can_not_be(digits_material, config, message):
    with pytest.raises(AlexNetError) as caught:
        planned(digits_material, **config)
    assert str(caught.value) == message


def test_a_missing_library_is_told_before_anything_begins(digits_material, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(AlexNetError, match=r"Fisher vectors need OpenCV, .* pip install 'alexnet\[contest\]'"):
        plan.make(digits_material, "digits", Config())
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(AlexNetError, match="vgg11_bn needs torchvision, which cannot be imported"):
        plan.make(digits_material, "digits", Config(nets=("alexnet", "vgg11_bn")))
    plan.make(digits_material, "digits", Config(nets=("alexnet",)))  # which needs neither


def test_wrong_use_has_status_two(digits_material):
    with pytest.raises(RecipeError):
        planned(digits_material, nets=("nobody",))
