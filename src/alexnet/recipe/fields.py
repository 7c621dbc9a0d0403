"""Every number of a run, with its unit and source. A recipe is frozen.

Epochs are counted by how many are done: "from epoch 67" means after 67 whole epochs.The comment behind a field
is its help text on the command line and its comment in ``recipe.toml``.
"""

import dataclasses
import difflib
import functools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alexnet.errors import RecipeError
from alexnet.recipe.cadence import cadence
from alexnet.recipe.layers import each_layer, layer_names


@dataclass(frozen=True)
class Recipe:
    """All numbers of a run; the defaults are those of ``modern``. Raises :class:`RecipeError` for what can not be."""

    recipe: str = "modern"  # named recipe that the numbers started from
    seed: int = 0  # of everything random: initial weights, order, views, dropout, splits

    # The network
    model: str = "alexnet"  # network by name; `alexnet models` lists them
    initialization: Literal["paper", "2012", "own"] = "2012"  # std .01 | .03 in conv3-5 (2012 code) | the network's own
    dropout: float = 0.4  # probability of zeroing an output of fc6 and fc7 (paper, 4.2: 0.5)
    image_size: int = 0  # side of the view that the network sees, pixels; 0 is the network's own (alexnet: 224)
    in_channels: int = 0  # 3 for color, 1 for gray; 0 is the network's own

    # Pictures on disk -> store
    stored_size: int = 256  # side of the stored pictures, pixels (paper, 2)
    fit: Literal["crop", "pad", "squash"] = "crop"  # short side and center cut (paper, 2) | letter box | both sides
    validation: float = 0.1  # fraction of the training pictures cut out to choose with; 0: nothing is chosen
    test: float = 0.2  # fraction of all pictures kept for the test, where the data has no test split of its own

    # Stored pictures -> views
    crop: Literal["random", "resized", "center"] = "resized"  # any offset (paper, 4.1) | any part, resized | the middle
    smallest_part: float = 0.4  # `resized`: least share of the picture's area that a view shows
    far_edge: bool = True  # may a crop reach the far edge? 256 − 224: 33 offsets (2012 code), 32 without (paper, 4.1)
    crops_shared: int = 1  # consecutive pictures of an epoch's order with one offset and mirror (2012 code: 32)
    mirror: bool = True  # left and right swapped in half of the views (paper, 4.1); off for digits and letters
    color_noise: float = 0.1  # std of noise along the color axes × the pixels' std there (2012 code; paper: × variance)
    noise_until: int = 0  # epoch from which there is no color noise any more (net 145: 67); 0: there always is
    noise_divide: bool = False  # is a view with noise divided by 1 + color_noise? (2012 code: yes)
    color_jitter: float = 0.25  # brightness, contrast and saturation each times 1 ± this, uniformly
    erase: float = 0.0  # probability that a rectangle of a view is blanked
    mixup: float = 0.2  # probability that a batch is mixed with itself, weights from Beta(.4, .4)
    mean: Literal["image", "center", "channel"] = "channel"  # mean image (paper, 2) | its center (2012) | color means
    divide: float = 1.0  # what gray levels minus the mean are divided by (paper: 1)
    divide_std: bool = False  # divided, besides, by each channel's standard deviation in training? (torchvision: yes)

    # Training
    epochs: int = 44  # passes over the training split
    batch_size: int = 64  # pictures a step (paper, 5: 128)
    optimizer: Literal["paper", "sgd", "adamw", "lars"] = "adamw"  # the paper's rule (5) | PyTorch's SGD | AdamW | LARS
    learning_rate: float = 0.0003  # at its highest (paper, 5: 0.01)
    rate_per: int = 0  # batch size that learning_rate is for, larger ones have so much more; 0: it is as it stands
    trust: float = 0.001  # `lars`: share of a layer's length that a step at rate 1 changes (You et al. 2017)
    bias_rate: float = 1.0  # learning rate of biases as a multiple (2012 code: 2)
    bias_lowered: bool = True  # does the schedule lower the biases' rate too? (2012 code: no)
    layer_rate: str = ""  # rates as multiples, by layer: "conv1=0.1,fc8=10"; 0 freezes (2012 code: epsW)
    momentum: float = 0.9  # of the paper's rule and SGD; AdamW's first beta (paper, 5)
    weight_decay: float = 1.0  # per step, times the learning rate (paper, 5: 0.0005)
    fc_decay: float = -1.0  # weight decay of fully connected weights; negative: as weight_decay
    layer_decay: str = ""  # weight decays by layer, before the two above: "conv1=0,fc10=1" (2012 code: wc)
    bias_decay: bool = False  # do biases decay? (paper: one rule for all; 2012 code: no)
    clip: float = 5.0  # longest gradient, as a norm over all weights; 0: no limit
    schedule: Literal["cosine", "stall", "steps", "poly", "constant"] = "cosine"  # stall, steps: ÷10 | poly: (1 − t)²
    warmup: float = 1.0  # epochs over which the rate rises from 0
    drops: tuple[int, ...] = ()  # `steps`: epochs at whose start the rate is divided by 10
    layer_lr_milestones: str = ""  # epochs at whose start one layer's rate is divided by 10: "conv1.weight=67"
    patience: int = 5  # `stall`: epochs without a lower validation error before the rate is divided by 10
    most_drops: int = 3  # `stall`: the run ends when the error stalls once more after so many drops (paper, 5: 3)
    freeze: str = ""  # layers that stop learning, without momentum and decay: "conv1", "conv1..conv5,fc6", "fc7.bias"
    freeze_from: int = 0  # epoch from which they do (net 145: 72); 0: from the beginning
    join_from: int = 0  # epoch from which validation pictures train too (13pct: 100); 0: never
    sampling: Literal["natural", "balanced"] = "natural"  # each picture once an epoch | each class equally often
    shuffle_window: int = 0  # shards mixed at a time; 0: all of a store on this disk, 16 of one behind an address
    class_weights: Literal["none", "balanced"] = "none"  # pictures count alike | by 1/frequency of class, 1 on average
    label_smoothing: float = 0.1  # share of the target spread over all classes
    averaging: float = 0.998  # weights' running average, decay a step; 0: none. The average is validated and kept
    small_size: int = 128  # side of the views in the first epochs, pixels: less to compute; 0: full size at once
    small_share: float = 0.59  # share of the epochs, from the first on, that see views of small_size
    stop_error: float = 0.0  # the run ends after an epoch whose training error, a fraction, is at most this; 0: never
    keep: Literal["best", "last"] = "best"  # which weights the bundle gets: best validation error | the last

    # How it is computed
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the processor multiplies it faster
    convolution: Literal["auto", "plain", "winograd"] = "auto"  # auto: fewer products, where compiled and sooner
    compile: bool = False  # let PyTorch compile the network; on a GPU its steps become CUDA graphs, for small batches
    checkpoint_every: str = "1epoch"  # how often a checkpoint is written: 5min, 500steps, 1epoch; at the end always

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if not _is_a(kind, value):
                raise RecipeError(f"{option(field.name)} is {value!r}", _KINDS[kind])
        if self.in_channels == 2:
            raise RecipeError("--in-channels is 2", "3 for color, 1 for gray, or 0 for the network's own")
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise RecipeError(f"{option(name)} is {value}", f"from {least} to {most}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise RecipeError(f"{option(name)} is {getattr(self, name)!r}", " or ".join(choices))
        _check_together(self)

    def replace(self, **changes: Any) -> "Recipe":
        """A copy with ``changes``. An unknown name raises :class:`RecipeError` with the nearest right one."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise RecipeError(f"a recipe has no {name!r}", nearest(name, known))
        return dataclasses.replace(self, **changes)

    @property
    def highest_rate(self) -> float:
        """The learning rate at its highest: ``learning_rate``, scaled by the batch where ``rate_per`` says so."""
        return self.learning_rate * (self.batch_size / self.rate_per if self.rate_per else 1.0)

    def side(self, epoch: int, full: int) -> int:
        """Side of the views in an epoch (from 0), pixels; ``full`` is the network's. The last epoch is always full."""
        small = epoch < min(round(self.small_share * self.epochs), self.epochs - 1)
        return self.small_size if small and 0 < self.small_size < full else full

    def joined(self, epoch: int) -> bool:
        """Are the validation pictures trained on in an epoch (from 0)? Then nothing is validated."""
        return 0 < self.join_from <= epoch

    def to_toml(self) -> str:
        """The recipe as TOML, each number with its meaning behind it; :func:`from_toml` reads it."""
        help_texts = help_text()
        lines = [f"# {self.__class__.__name__} of a run: every number, its unit and source"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            shown = list(value) if isinstance(value, tuple) else value
            lines.append(f"{field.name} = {json.dumps(shown, ensure_ascii=False):<12} # {help_texts[field.name]}")
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values that JSON can hold."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1), "dropout": (0, 0.99), "image_size": (0, 4096), "in_channels": (0, 3),
    "stored_size": (8, 8192), "validation": (0, 0.9), "test": (0, 0.9), "smallest_part": (0.01, 1),
    "divide": (1e-3, 1e6), "crops_shared": (1, 1_000_000), "noise_until": (0, 1_000_000),
    "freeze_from": (0, 1_000_000), "join_from": (0, 1_000_000),
    "color_noise": (0, 10), "color_jitter": (0, 0.99), "erase": (0, 1), "mixup": (0, 1), "epochs": (1, 1_000_000),
    "batch_size": (1, 1_000_000), "learning_rate": (1e-12, 1000), "bias_rate": (0, 1000), "momentum": (0, 0.9999),
    "weight_decay": (0, 100), "fc_decay": (-1, 100), "clip": (0, 1e9), "warmup": (0, 1_000_000),
    "patience": (1, 1_000_000), "most_drops": (0, 20), "label_smoothing": (0, 0.99), "averaging": (0, 0.99999),
    "small_size": (0, 4096), "small_share": (0, 1), "stop_error": (0, 1),
    "shuffle_window": (0, 1_000_000), "rate_per": (0, 1_000_000), "trust": (1e-9, 1),
}  # fmt: skip

_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "whole numbers",
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "initialization": ("paper", "2012", "own"),
    "fit": ("crop", "pad", "squash"),
    "crop": ("random", "resized", "center"),
    "mean": ("image", "center", "channel"),
    "optimizer": ("paper", "sgd", "adamw", "lars"),
    "schedule": ("cosine", "stall", "steps", "poly", "constant"),
    "keep": ("best", "last"),
    "sampling": ("natural", "balanced"),
    "class_weights": ("none", "balanced"),
    "precision": ("auto", "fp32", "bf16"),
    "convolution": ("auto", "plain", "winograd"),
}


def _check_together(recipe: Recipe) -> None:
    """Raise :class:`RecipeError` where one field contradicts another, or where layers are named in another form."""
    if recipe.validation + recipe.test >= 1:
        raise RecipeError(
            f"--validation {recipe.validation} and --test {recipe.test} leave nothing", "under 1 together"
        )
    for who, needs, purpose, otherwise in (
        ("--schedule stall", recipe.schedule == "stall", "watch", ""),
        ("--keep best", recipe.keep == "best", "choose by", ", or --keep last"),
    ):
        if needs and recipe.validation == 0:
            raise RecipeError(f"{who} has no validation split to {purpose}", f"--validation above 0{otherwise}")
        if needs and recipe.join_from:
            since = f"from epoch {recipe.join_from} on, when it trains too"
            raise RecipeError(f"{who} has no validation split to {purpose} {since}", f"--join-from 0{otherwise}")
    if recipe.sampling == "balanced" and recipe.shuffle_window:
        raise RecipeError("--sampling balanced draws from all pictures", "without --shuffle-window", "leave one out")
    if recipe.sampling == recipe.class_weights == "balanced":
        raise RecipeError("--sampling balanced and --class-weights balanced correct twice", "one of them")
    _check_schedule(recipe)
    cadence(recipe.checkpoint_every, "--checkpoint-every")
    layer_names(recipe.freeze, "--freeze")
    each_layer(recipe.layer_rate, "--layer-rate")
    each_layer(recipe.layer_decay, "--layer-decay")
    each_layer(recipe.layer_lr_milestones, "--layer-lr-milestones")


def _check_schedule(recipe: Recipe) -> None:
    """Raise :class:`RecipeError` for epochs of the schedule that are not epochs of the run."""
    if recipe.schedule == "steps" and not recipe.drops:
        raise RecipeError("--schedule steps has no --drops", "", "pass the epochs to divide at, or --schedule constant")
    last = recipe.epochs - 1 if recipe.schedule == "steps" else 1_000_000
    if recipe.drops != tuple(sorted(set(recipe.drops))) or any(not 1 <= drop <= last for drop in recipe.drops):
        must = f"ascending and different, from 1 to {last}" if last else "before the last epoch"
        within = f" (--epochs is {recipe.epochs})" if recipe.schedule == "steps" else ""
        todo = "pass others, or --schedule constant"
        raise RecipeError(f"--drops is {' '.join(map(str, recipe.drops))}", must + within, todo)
    # `--epochs 1` alone is allowed: most recipes warm up for 1 epoch
    if recipe.warmup > recipe.epochs or recipe.warmup == recipe.epochs > 1:
        todo = f"pass --warmup 0 to {recipe.epochs - 1}, or more --epochs" if recipe.epochs > 1 else "pass --warmup 0"
        raise RecipeError(f"--warmup is {recipe.warmup:g}", f"below --epochs, {recipe.epochs}", todo)


def _is_a(kind: type, value: Any) -> bool:
    """Is ``value`` of that kind? A whole number is a number, true and false are none."""
    if kind is tuple:
        return isinstance(value, tuple) and all(_is_a(int, item) for item in value)
    allowed = (int, float) if kind is float else kind
    return isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """The recipe with these values, as :meth:`Recipe.to_dict` gives them; raises :class:`RecipeError`."""
    found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    if "checkpoint_minutes" in found:  # what runs begun before November 2026 wrote; 0 was each epoch
        minutes = float(found.pop("checkpoint_minutes"))
        found.setdefault("checkpoint_every", f"{minutes:.6f}min" if minutes else "1epoch")
    if "precision" in found:  # they had no other convolutions either
        found.setdefault("convolution", "plain")
    return Recipe().replace(**found)


def from_toml(text: str, name: str = "recipe.toml") -> Recipe:
    """The recipe that :meth:`Recipe.to_toml` wrote; raises :class:`RecipeError` naming the file."""
    try:
        return from_dict(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise RecipeError(f"{name} is not a recipe: {error}", "a recipe.toml that a run wrote") from error
    except RecipeError as error:
        raise RecipeError(f"{name}: {error.what}", error.must, error.todo) from error


def differences(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Fields in which two recipes (or two of another dataclass) differ, with both values."""
    pairs = {f.name: (getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def option(field: str) -> str:
    """A field's name as it is typed: ``learning_rate`` -> ``--learning-rate``."""
    return "--" + field.replace("_", "-")


def nearest(word: str, known: list[str]) -> str:
    """For error messages: the nearest of ``known``, or all of them where none is near."""
    close = difflib.get_close_matches(word, known, 1)
    return f"{close[0]!r} perhaps" if close else "one of " + ", ".join(known)


@functools.cache
def help_text() -> dict[str, str]:
    """Field name -> the comment behind the field in this file."""
    import inspect

    found = {}
    for line in inspect.getsource(Recipe).splitlines():
        code, separator, comment = line.partition("  # ")
        field = code.split(":")[0].strip()
        if separator and field in Recipe.__dataclass_fields__:
            found[field] = comment.strip()
    return found
