"""Options without an effect: a value that is set must change the run, or it is refused."""

from alexnet.errors import RecipeError
from alexnet.recipe.config import Recipe, option
from alexnet.recipe.fields import parse_layer_values
from alexnet.recipe.presets import get_recipe, list_recipes

# Values that turn a field off. They are allowed where the field has no effect.
_OFF = {
    "lr_milestones": (),
    "pca_noise_until_epoch": 0,
    "freeze": "",
    "freeze_from_epoch": 0,
    "train_on_val_from_epoch": 0,
    "layer_lr_milestones": "",
    "progressive_size": 0,
    "progressive_fraction": 0,
    "crop_group_size": 1,
    "patience": 0,
}


def is_overridden(recipe: Recipe, field: str, base: Recipe | None = None) -> bool:
    """True if ``field`` differs from ``base`` and is not turned off.

    ``base`` is the recipe that options were applied to, by default the named recipe that ``recipe`` started from.
    False where there is no named recipe of that name.
    """
    if base is None and recipe.recipe in list_recipes():
        base = get_recipe(recipe.recipe)
    return base is not None and getattr(recipe, field) not in (getattr(base, field), _OFF.get(field))


def check_effect(recipe: Recipe, base: Recipe | None = None) -> None:
    """Raise :class:`RecipeError` for a field that differs from ``base`` and has no effect beside the other fields."""
    for field, idle, reason, hint in _rules(recipe):
        if idle and is_overridden(recipe, field, base):
            raise RecipeError(f"{option(field)} has no effect with {reason}", "", f"leave it out, or {hint}")


def _rules(recipe: Recipe) -> list[tuple[str, bool, str, str]]:
    """(field, True if it has no effect, the option that is the reason, what to pass so that it has one)."""
    epochs, total = f"--epochs {recipe.epochs}", recipe.epochs or 1_000_000  # 0: not known before the data
    schedule, crop, optimizer = (f"--{name} {getattr(recipe, name)}" for name in ("schedule", "crop", "optimizer"))
    plateau = recipe.schedule == "plateau"
    progressive_epochs = min(round(recipe.progressive_fraction * total), total - 1)
    milestones = parse_layer_values(recipe.layer_lr_milestones, "--layer-lr-milestones").values()
    return [
        ("lr_milestones", recipe.schedule != "multistep", schedule, "pass --schedule multistep"),
        ("lr_patience", not plateau, schedule, "pass --schedule plateau"),
        ("lr_patience", recipe.lr_patience > total - 2, epochs, "pass a lower one"),
        ("max_lr_drops", not plateau, schedule, "pass --schedule plateau"),
        ("patience", recipe.patience > total - 2, epochs, "pass a lower one"),
        ("schedule_bias_lr", recipe.schedule == "constant", schedule, "pass another --schedule"),
        ("min_crop_scale", recipe.crop != "resized", crop, "pass --crop resized"),
        ("far_edge", recipe.crop == "center", crop, "pass --crop random"),
        ("crop_group_size", recipe.crop == "center" and not recipe.hflip, crop, "pass --crop random"),
        ("pca_noise_until_epoch", not recipe.pca_noise_std, "--pca-noise-std 0", "pass --pca-noise-std"),
        ("pca_noise_until_epoch", recipe.pca_noise_until_epoch >= total, epochs, "pass an earlier epoch"),
        ("pca_noise_rescale", not recipe.pca_noise_std, "--pca-noise-std 0", "pass --pca-noise-std"),
        ("mixup_alpha", not recipe.mixup_prob, "--mixup-prob 0", "pass --mixup-prob"),
        ("cutmix_alpha", not recipe.cutmix_prob, "--cutmix-prob 0", "pass --cutmix-prob"),
        ("randaugment_magnitude", not recipe.randaugment_ops, "--randaugment-ops 0", "pass --randaugment-ops"),
        ("trust_coefficient", recipe.optimizer != "lars", optimizer, "pass --optimizer lars"),
        ("bias_weight_decay", not recipe.weight_decay, "--weight-decay 0", "pass --weight-decay"),
        ("freeze_from_epoch", not recipe.freeze, "no --freeze", "pass --freeze"),
        ("freeze_from_epoch", recipe.freeze_from_epoch >= total, epochs, "pass an earlier epoch"),
        (
            "freeze",
            recipe.freeze_from_epoch >= total,
            f"--freeze-from-epoch {recipe.freeze_from_epoch}",
            "pass an earlier one",
        ),
        ("train_on_val_from_epoch", not recipe.validation, "--validation 0", "pass --validation"),
        ("train_on_val_from_epoch", recipe.train_on_val_from_epoch >= total, epochs, "pass an earlier epoch"),
        ("layer_lr_milestones", any(value >= total for value in milestones), epochs, "pass earlier epochs"),
        ("progressive_fraction", not recipe.progressive_size, "--progressive-size 0", "pass --progressive-size"),
        (
            "progressive_size",
            not progressive_epochs,
            f"--progressive-fraction {recipe.progressive_fraction:g} of {epochs}",
            "pass more epochs",
        ),
    ]
