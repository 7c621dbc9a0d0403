"""Options that have no effect: what a person sets must change the run, or be refused."""

from alexnet.errors import RecipeError
from alexnet.recipe.fields import Recipe, option
from alexnet.recipe.layers import each_layer
from alexnet.recipe.named import list_recipes, named

# Values that turn a field off: that is no fault where it has no effect anyway.
_OFF = {
    "drops": (), "noise_until": 0, "freeze": "", "freeze_from": 0, "join_from": 0, "layer_lr_milestones": "",
    "small_size": 0, "small_share": 0, "crops_shared": 1,
}  # fmt: skip


def set_by_hand(recipe: Recipe, field: str) -> bool:
    """Does the field differ from the named recipe that ``recipe`` started from, without being turned off?

    False for a recipe of another name.
    """
    value = getattr(recipe, field)
    return recipe.recipe in list_recipes() and value not in (getattr(named(recipe.recipe), field), _OFF.get(field))


def check_effect(recipe: Recipe) -> None:
    """Raise :class:`RecipeError` for a field that was set by hand and has no effect beside the others."""
    for field, idle, reason, todo in _rules(recipe):
        if idle and set_by_hand(recipe, field):
            raise RecipeError(f"{option(field)} has no effect with {reason}", "", f"leave it out, or {todo}")


def _rules(recipe: Recipe) -> list[tuple[str, bool, str, str]]:
    """(field, whether it has no effect, the other option, what would give it one)."""
    epochs = f"--epochs {recipe.epochs}"
    schedule, crop, optimizer = (f"--{name} {getattr(recipe, name)}" for name in ("schedule", "crop", "optimizer"))
    stalls, small = recipe.schedule == "stall", round(recipe.small_share * recipe.epochs)
    milestones = each_layer(recipe.layer_lr_milestones, "--layer-lr-milestones").values()
    return [
        ("drops", recipe.schedule != "steps", schedule, "pass --schedule steps"),
        ("patience", not stalls, schedule, "pass --schedule stall"),
        ("patience", recipe.patience > recipe.epochs - 2, epochs, "pass a lower one"),
        ("most_drops", not stalls, schedule, "pass --schedule stall"),
        ("bias_lowered", recipe.schedule == "constant", schedule, "pass another --schedule"),
        ("smallest_part", recipe.crop != "resized", crop, "pass --crop resized"),
        ("far_edge", recipe.crop == "center", crop, "pass --crop random"),
        ("crops_shared", recipe.crop == "center" and not recipe.mirror, crop, "pass --crop random"),
        ("noise_until", not recipe.color_noise, "--color-noise 0", "pass --color-noise"),
        ("noise_until", recipe.noise_until >= recipe.epochs, epochs, "pass an earlier epoch"),
        ("noise_divide", not recipe.color_noise, "--color-noise 0", "pass --color-noise"),
        ("trust", recipe.optimizer != "lars", optimizer, "pass --optimizer lars"),
        ("bias_decay", not recipe.weight_decay, "--weight-decay 0", "pass --weight-decay"),
        ("freeze_from", not recipe.freeze, "no --freeze", "pass --freeze"),
        ("freeze_from", recipe.freeze_from >= recipe.epochs, epochs, "pass an earlier epoch"),
        ("freeze", recipe.freeze_from >= recipe.epochs, f"--freeze-from {recipe.freeze_from}", "pass an earlier one"),
        ("join_from", not recipe.validation, "--validation 0", "pass --validation"),
        ("join_from", recipe.join_from >= recipe.epochs, epochs, "pass an earlier epoch"),
        ("layer_lr_milestones", any(value >= recipe.epochs for value in milestones), epochs, "pass earlier epochs"),
        ("small_share", not recipe.small_size, "--small-size 0", "pass --small-size"),
        (
            "small_size",
            not min(small, recipe.epochs - 1),
            f"--small-share {recipe.small_share:g} of {epochs}",
            "pass more epochs",
        ),
    ]
