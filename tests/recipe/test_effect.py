"""Options without an effect are refused where they were set by hand, and nowhere else."""

import pytest

from alexnet.errors import RecipeError
from alexnet.recipe import check_effect, get_recipe, list_recipes


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (
            "modern",
            {"lr_milestones": (3, 5)},
            "--lr-milestones has no effect with --schedule cosine; leave it out, or pass --schedule",
        ),
        ("modern", {"lr_patience": 3}, "--lr-patience has no effect with --schedule cosine"),
        ("digits", {"patience": 3}, "--patience has no effect with --epochs 4; leave it out, or pass a lower one"),
        ("modern", {"max_lr_drops": 0}, "--max-lr-drops has no effect with --schedule cosine"),
        ("paper", {"lr_patience": 9, "epochs": 10}, "--lr-patience has no effect with --epochs 10"),
        (
            "code2012",
            {"schedule": "constant", "schedule_bias_lr": True},
            "--schedule-bias-lr has no effect with --schedule",
        ),
        ("paper", {"min_crop_scale": 0.5}, "--min-crop-scale has no effect with --crop random"),
        ("lenet5", {"far_edge": False}, "--far-edge has no effect with --crop center"),
        ("lenet5", {"crop_group_size": 8}, "--crop-group-size has no effect with --crop center"),
        ("digits", {"pca_noise_until_epoch": 2}, "--pca-noise-until-epoch has no effect with --pca-noise-std 0"),
        ("modern", {"pca_noise_until_epoch": 44}, "--pca-noise-until-epoch has no effect with --epochs 44"),
        ("digits", {"pca_noise_rescale": True}, "--pca-noise-rescale has no effect with --pca-noise-std 0"),
        ("modern", {"cutmix_alpha": 0.5}, "--cutmix-alpha has no effect with --cutmix-prob 0; leave it out, or pass"),
        ("modern", {"randaugment_magnitude": 5}, "--randaugment-magnitude has no effect with --randaugment-ops 0"),
        ("modern", {"trust_coefficient": 0.1}, "--trust-coefficient has no effect with --optimizer adamw"),
        ("lenet5", {"bias_weight_decay": True}, "--bias-weight-decay has no effect with --weight-decay 0"),
        ("modern", {"freeze_from_epoch": 3}, "--freeze-from-epoch has no effect with no --freeze"),
        ("modern", {"freeze": "conv1", "freeze_from_epoch": 44}, "--freeze-from-epoch has no effect with --epochs 44"),
        (
            "code2012",
            {"epochs": 60, "lr_milestones": (9,), "freeze": "fc8"},
            "--freeze has no effect with --freeze-from-epoch 72",
        ),
        ("owt", {"train_on_val_from_epoch": 3}, "--train-on-val-from-epoch has no effect with --validation 0"),
        ("cifar_13pct", {"train_on_val_from_epoch": 160}, "--train-on-val-from-epoch has no effect with --epochs 160"),
        ("modern", {"layer_lr_milestones": "conv1=3,conv2=50"}, "--layer-lr-milestones has no effect with --epochs"),
        ("digits", {"progressive_fraction": 0.3}, "--progressive-fraction has no effect with --progressive-size 0"),
        (
            "modern",
            {"progressive_size": 96, "epochs": 1},
            "--progressive-size has no effect with --progressive-fraction 0.59 of --epochs 1",
        ),
    ],
)
def test_without_effect(recipe, changes, message):
    with pytest.raises(RecipeError) as caught:
        check_effect(get_recipe(recipe).replace(**changes))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", list_recipes())
def test_what_a_named_recipe_says_is_never_refused(name):
    check_effect(get_recipe(name))
    check_effect(get_recipe(name).replace(epochs=1, schedule="constant", warmup_epochs=0.0))


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("modern", {"schedule": "multistep", "lr_milestones": (3, 5)}),
        ("modern", {"schedule": "plateau", "lr_patience": 3, "max_lr_drops": 0}),
        ("modern", {"progressive_size": 0, "epochs": 1}),  # turned off
        ("code2012", {"pca_noise_std": 0.0, "pca_noise_until_epoch": 0, "freeze": "", "freeze_from_epoch": 0}),
        ("modern", {"recipe": "mine", "lr_milestones": (3, 5)}),  # no named recipe to compare with
    ],
)
def test_what_has_an_effect_or_is_turned_off_is_allowed(recipe, changes):
    check_effect(get_recipe(recipe).replace(**changes))
