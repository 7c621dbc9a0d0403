"""Plans of claims: recipes, counts, defaults and refused settings, without training."""

import json

import numpy as np
import pytest

from alexnet.data.sources.source import Row, Sample, make_source
from alexnet.errors import ModelError, RecipeError, RunError
from alexnet.experiments.claims import plan as plan_module
from alexnet.experiments.claims.plan import ClaimConfig, make_plan
from alexnet.experiments.claims.registry import CLAIMS, get_claim
from alexnet.experiments.runner import Dataset, check_same_plan, detectable_difference

ROWS = [
    Row("all", Sample(i % 10, f"{i}", lambda: np.zeros((8, 8, 3), np.uint8)), "x") for i in range(100)
]  # 20 for the test
SOURCE = make_source("set", [f"class {k}" for k in range(10)], ROWS)
SMALL = Dataset("cifar10", SOURCE, None, "small", hflip=True)
MEDIUM = Dataset("tiny-imagenet", SOURCE, None, "medium", hflip=True)
PHOTOS = Dataset("photos", SOURCE, None, "paper", hflip=True)
DIGITS = Dataset("digits", SOURCE, None, "small", hflip=False)


def plan_for(name, dataset=SMALL, **config):
    return make_plan(get_claim(name), dataset, dataset.name, ClaimConfig(**config))


def test_figure_1_has_no_regularization_and_searches_learning_rates():
    plan = plan_for("relu", quick=True)
    relu, tanh = plan.variants
    assert [variant.model(plan.scale) for variant in plan.variants] == ["figure1_relu", "figure1_tanh"]
    for variant in plan.variants:
        recipe = plan.job(variant, 0.03, 2).recipe
        assert (recipe.dropout, recipe.crop, recipe.hflip, recipe.pca_noise_std, recipe.weight_decay) == (
            0,
            "center",
            0,
            0,
            0,
        )
        assert (recipe.lr, recipe.seed, recipe.stop_train_error) == (0.03, 2, 0.25)
        assert (
            recipe.schedule,
            recipe.lr_milestones,
            recipe.warmup_epochs,
            recipe.mixup_prob,
            recipe.label_smoothing,
        ) == (
            "constant",
            (),
            0,
            0,
            0,
        )
    jobs = {job.folder_name for job in [*plan.search_jobs(), *plan.jobs({relu.name: 0.01, tanh.name: 0.003})]}
    assert len(jobs) == plan.num_trainings == 3 * 2 + 2 * 2
    assert "ReLU-lr0.01-seed0" in jobs and "tanh-lr0.003-seed2" in jobs


@pytest.mark.parametrize(
    ("name", "field", "without"),
    [("dropout", "dropout", 0), ("color-noise", "pca_noise_std", 0), ("augmentation", "crop", "center")],
)
def test_variants_differ_in_one_thing(name, field, without):
    plan = plan_for(name)
    own, other = (plan.job(variant, plan.learning_rates[0], 0).recipe.to_dict() for variant in plan.variants)
    assert own[field] != other[field] == without
    changed = {k for k in own if own[k] != other[k]}
    assert changed == ({"crop", "hflip", "pca_noise_std"} if name == "augmentation" else {field})


def test_a_claim_about_small_images_is_refused_for_photographs():
    for dataset, crops in ((PHOTOS, "224-pixel crops"), (MEDIUM, "56-pixel crops")):
        with pytest.raises(ModelError, match=f"'relu-wide' has no networks for {crops}; add --quick to use small"):
            plan_for("relu-wide", dataset)
        assert plan_for("relu-wide", dataset, quick=True).to_dict()["models"]["tanh"] == "figure1_tanh_wide"


def test_digits_are_never_flipped():
    for name in CLAIMS:
        plan = plan_for(name, DIGITS)
        assert not any(plan.job(variant, 0.01, 0).recipe.hflip for variant in plan.variants)


def test_photographs_use_the_papers_network_unless_quick():
    plan = plan_for("dropout", PHOTOS)
    recipe = plan.job(plan.variants[0], 0.01, 0).recipe
    assert (recipe.model, recipe.stored_size, recipe.initialization, recipe.batch_size) == ("alexnet", 256, "2012", 128)
    quick = plan_for("dropout", PHOTOS, quick=True)
    assert (quick.scale, quick.base.stored_size) == ("small", 32)


def test_images_of_64_pixels_use_the_medium_networks():
    for name in CLAIMS.keys() - {"relu-wide"}:
        plan = plan_for(name, MEDIUM)
        models = plan.to_dict()["models"]
        assert list(models) == [variant.name for variant in get_claim(name).variants]
        assert all(model.startswith("alexnet_medium") for model in models.values())
        recipe = plan.job(plan.variants[0], 0.01, 0).recipe
        assert (recipe.stored_size, recipe.epochs, recipe.initialization, plan.seeds) == (64, 45, "own", 3)
        assert recipe.schedule == ("constant" if plan.claim.criterion == "epochs_to_error" else "cosine")
    assert plan_for("relu", MEDIUM).learning_rates == (0.003, 0.01, 0.03, 0.1)  # each network searches its own
    text = "\n".join(plan_for("norm", MEDIUM).describe())
    assert "alexnet_medium: 3,017,480 parameters, 38.5 M multiply-adds" in text


def test_a_plan_says_what_difference_it_can_decide():
    few = plan_for("norm", MEDIUM).describe()[-1]
    expected = [detectable_difference(seeds, 20) for seeds in (3, 6)]
    assert few == (
        f"  detectable difference    {expected[0]:.1f} points by 3 seeds on 20 test images, {expected[1]:.1f} points "
        "by 6 seeds (80 % power, in the worst case)"
    )
    for lines in (plan_for("norm", MEDIUM, seeds=1).describe(), plan_for("relu", MEDIUM).describe()):
        assert "detectable" not in "\n".join(lines)


def test_missing_network_is_named(monkeypatch):
    monkeypatch.setattr(plan_module, "list_models", lambda: ["alexnet"])
    with pytest.raises(ModelError) as caught:
        plan_for("norm", PHOTOS)
    assert str(caught.value) == (
        "this claim needs the network 'alexnet_no_norm', which does not exist; "
        "must be one that `alexnet models` lists; add --quick to use small networks"
    )


def test_every_plan_can_be_described():
    for name in CLAIMS:
        for quick in (False, True):
            lines = plan_for(name, quick=quick).describe()
            assert name in lines[0] and any("trainings" in line for line in lines)
    text = "\n".join(plan_for("towers", quick=True, seeds=1).describe())
    assert "708,970 parameters, 8.8 M multiply-adds" in text
    assert "one seed gives no interval" in text
    assert "at most 4000 training images" in text
    assert "--pca-noise-std 0.0" in "\n".join(plan_for("augmentation").describe())


def test_config_is_used_and_checked():
    plan = plan_for("relu", epochs=7, learning_rates=(0.5,), seeds=2, train_error=0.4, images=100)
    assert (plan.base.epochs, plan.learning_rates, plan.seeds, plan.base.stop_train_error) == (7, (0.5,), 2, 0.4)
    assert plan.images == 100 and plan.search_jobs() == [] and plan.num_trainings == 4
    for wrong, message in (
        ({"seeds": 0}, "--seeds is 0; must be at least 1"),
        ({"epochs": 0}, "--epochs is 0; must be at least 1"),
        ({"images": -1}, "--images is -1; must be at least 0"),
        ({"train_error": 25.0}, "--train-error is 25.0; must be a fraction between 0 and 1"),
    ):
        with pytest.raises(RecipeError) as caught:
            plan_for("relu", **wrong)
        assert str(caught.value) == message
    with pytest.raises(RecipeError, match="--seeds is 1: an ensemble needs several networks"):
        plan_for("ensemble", seeds=1)


def test_more_seeds_are_the_same_plan_and_other_epochs_are_not(tmp_path):
    def check(plan, recorded):
        check_same_plan(plan.to_dict(), recorded, tmp_path, "plan", ignore=("seeds", "trainings"))

    recorded = json.loads(json.dumps(plan_for("norm").to_dict()))
    check(plan_for("norm", seeds=9), recorded)
    check(plan_for("norm"), {})
    with pytest.raises(RunError, match="holds another plan: epochs differs"):
        check(plan_for("norm", epochs=3), recorded)
    with pytest.raises(RunError, match="holds another plan: learning_rates differs"):
        check(plan_for("norm", learning_rates=(0.1, 0.2)), recorded)
