"""Plans: what is counted, chosen and refused, without a training."""

import pytest

from alexnet.errors import ModelError, RecipeError
from alexnet.experiments import claims, plan
from alexnet.experiments.plan import Config, Job, Material, compatible, make

SMALL = Material("cifar10", None, None, photos=False, mirror=True)
PHOTOS = Material("photos", None, None, photos=True, mirror=True)
DIGITS = Material("digits", None, None, photos=False, mirror=False)


def planned(name, material=SMALL, **config):
    return make(claims.find(name), material, material.name, Config(**config))


def test_figure_1_has_no_regularization_and_each_net_its_rate():
    made = planned("relu", quick=True)
    relu, tanh = made.arms
    assert [made.model(arm) for arm in made.arms] == ["figure1_relu", "figure1_tanh"]
    for arm in made.arms:
        recipe = made.recipe(Job(arm, 0.03, 2))
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
    jobs = {job.folder for job in [*made.searches(), *made.members({relu.name: 0.01, tanh.name: 0.003})]}
    assert len(jobs) == made.trainings == 3 * 2 + 2 * 2
    assert "ReLU-rate0.01-seed0" in jobs and "tanh-rate0.003-seed2" in jobs


@pytest.mark.parametrize(
    ("name", "field", "without"),
    [("dropout", "dropout", 0), ("color-noise", "pca_noise_std", 0), ("augmentation", "crop", "center")],
)
def test_one_thing_is_different(name, field, without):
    made = planned(name)
    own, other = (made.recipe(Job(arm, made.rates[0], 0)).to_dict() for arm in made.arms)
    assert own[field] != other[field] == without
    changed = {k for k in own if own[k] != other[k]}
    assert changed == ({"crop", "hflip", "pca_noise_std"} if name == "augmentation" else {field})


def test_a_claim_about_small_images_is_refused_for_photographs():
    with pytest.raises(ModelError, match="'relu-wide' is about small images only; add --quick"):
        planned("relu-wide", PHOTOS)
    assert planned("relu-wide", PHOTOS, quick=True).model(claims.find("relu-wide").arms[1]) == "figure1_tanh_wide"


def test_digits_are_never_mirrored():
    for name in claims.CLAIMS:
        made = planned(name, DIGITS)
        assert not any(made.recipe(Job(arm, 0.01, 0)).hflip for arm in made.arms)


def test_photographs_get_the_papers_network_unless_it_must_be_quick():
    made = planned("dropout", PHOTOS)
    recipe = made.recipe(Job(made.arms[0], 0.01, 0))
    assert (recipe.model, recipe.stored_size, recipe.initialization, recipe.batch_size) == ("alexnet", 256, "2012", 128)
    quick = planned("dropout", PHOTOS, quick=True)
    assert (quick.model(quick.arms[0]), quick.base.stored_size) == ("alexnet_small", 32)


def test_a_network_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(plan, "list_models", lambda: ["alexnet"])
    with pytest.raises(ModelError) as caught:
        planned("norm", PHOTOS)
    assert str(caught.value) == (
        "this claim on 224-pixel crops compares with the network 'alexnet_no_norm', which does not exist; "
        "must be one that `alexnet models` lists; add --quick to use small networks"
    )


def test_every_small_plan_can_be_printed():
    for name in claims.CLAIMS:
        for quick in (False, True):
            lines = planned(name, quick=quick).lines()
            assert name in lines[0] and any("trainings" in line for line in lines)
    text = "\n".join(planned("towers", quick=True, seeds=1).lines())
    assert "708,970 parameters, 8.8 M multiply-adds" in text
    assert "one seed gives no interval" in text
    assert "at most 4000 training images" in text
    assert "--pca-noise-std 0.0" in "\n".join(planned("augmentation").lines())


def test_config_are_obeyed_and_checked():
    made = planned("relu", epochs=7, rates=(0.5,), seeds=2, level=0.4, images=100)
    assert (made.base.epochs, made.rates, made.seeds, made.base.stop_train_error) == (7, (0.5,), 2, 0.4)
    assert made.images == 100 and made.searches() == [] and made.trainings == 4
    for wrong, said in (
        ({"seeds": 0}, "--seeds is 0; must be at least 1"),
        ({"epochs": 0}, "--epochs is 0; must be at least 1"),
        ({"images": -1}, "--images is -1; must be at least 0"),
        ({"level": 25.0}, "--level is 25.0; must be a fraction between 0 and 1"),
    ):
        with pytest.raises(RecipeError) as caught:
            planned("relu", **wrong)
        assert str(caught.value) == said
    with pytest.raises(RecipeError, match="--seeds is 1, of which there is no ensemble"):
        planned("ensemble", seeds=1)


def test_more_seeds_are_the_same_plan_and_other_epochs_are_not():
    base = planned("norm").to_dict()
    assert compatible(planned("norm", seeds=9).to_dict(), base) == ""
    assert compatible(planned("norm", epochs=3).to_dict(), base) == "epochs"
    assert compatible(planned("norm", rates=(0.1, 0.2)).to_dict(), base) == "rates"
    assert compatible(base, {}) == ""
