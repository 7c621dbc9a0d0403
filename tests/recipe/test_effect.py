"""Options without an effect are refused where they were set by hand, and nowhere else."""

import pytest

from alexnet.errors import RecipeError
from alexnet.recipe import check_effect, list_recipes, named


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("modern", {"drops": (3, 5)}, "--drops has no effect with --schedule cosine; leave it out, or pass --schedule"),
        ("modern", {"patience": 3}, "--patience has no effect with --schedule cosine"),
        ("modern", {"most_drops": 0}, "--most-drops has no effect with --schedule cosine"),
        ("paper", {"patience": 9, "epochs": 10}, "--patience has no effect with --epochs 10"),
        ("code2012", {"schedule": "constant", "bias_lowered": True}, "--bias-lowered has no effect with --schedule"),
        ("paper", {"smallest_part": 0.5}, "--smallest-part has no effect with --crop random"),
        ("lenet5", {"far_edge": False}, "--far-edge has no effect with --crop center"),
        ("lenet5", {"crops_shared": 8}, "--crops-shared has no effect with --crop center"),
        ("digits", {"noise_until": 2}, "--noise-until has no effect with --color-noise 0"),
        ("modern", {"noise_until": 44}, "--noise-until has no effect with --epochs 44"),
        ("digits", {"noise_divide": True}, "--noise-divide has no effect with --color-noise 0"),
        ("modern", {"trust": 0.1}, "--trust has no effect with --optimizer adamw"),
        ("lenet5", {"bias_decay": True}, "--bias-decay has no effect with --weight-decay 0"),
        ("modern", {"freeze_from": 3}, "--freeze-from has no effect with no --freeze"),
        ("modern", {"freeze": "conv1", "freeze_from": 44}, "--freeze-from has no effect with --epochs 44"),
        ("code2012", {"epochs": 60, "drops": (9,), "freeze": "fc8"}, "--freeze has no effect with --freeze-from 72"),
        ("owt", {"join_from": 3}, "--join-from has no effect with --validation 0"),
        ("cifar_13pct", {"join_from": 160}, "--join-from has no effect with --epochs 160"),
        ("modern", {"layer_lr_milestones": "conv1=3,conv2=50"}, "--layer-lr-milestones has no effect with --epochs"),
        ("digits", {"small_share": 0.3}, "--small-share has no effect with --small-size 0"),
        ("modern", {"small_size": 96, "epochs": 1}, "--small-size has no effect with --small-share 0.59 of --epochs 1"),
    ],
)
def test_without_effect(recipe, changes, message):
    with pytest.raises(RecipeError) as caught:
        check_effect(named(recipe).replace(**changes))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", list_recipes())
def test_what_a_named_recipe_says_is_never_refused(name):
    check_effect(named(name))
    check_effect(named(name).replace(epochs=1, schedule="constant", warmup=0.0))


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("modern", {"schedule": "steps", "drops": (3, 5)}),
        ("modern", {"schedule": "stall", "patience": 3, "most_drops": 0}),
        ("modern", {"small_size": 0, "epochs": 1}),  # turned off
        ("code2012", {"color_noise": 0.0, "noise_until": 0, "freeze": "", "freeze_from": 0}),
        ("modern", {"recipe": "mine", "drops": (3, 5)}),  # no named recipe to compare with
    ],
)
def test_what_has_an_effect_or_is_turned_off_is_allowed(recipe, changes):
    check_effect(named(recipe).replace(**changes))
