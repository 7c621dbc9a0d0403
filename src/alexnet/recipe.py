"""Every number of a run, with its unit and source. A recipe is frozen; named recipes are functions.

The comment behind a field is its help text on the command line and its comment in ``recipe.toml``.
"""

import dataclasses
import difflib
import functools
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alexnet.errors import RecipeError


@dataclass(frozen=True)
class Recipe:
    """All numbers of a run; the defaults are those of ``modern``. Raises :class:`RecipeError` for what can not be."""

    recipe: str = "modern"  # named recipe that the numbers started from
    seed: int = 0  # of everything random: initial weights, order, views, dropout, splits

    # The network
    model: str = "alexnet"  # network by name; `alexnet models` lists them
    initialization: Literal["paper", "2012", "own"] = "2012"  # std .01 | .03 in conv3-5 (2012 code) | the network's own
    dropout: float = 0.5  # probability of zeroing an output of fc6 and fc7 (paper, 4.2)
    image_size: int = 0  # side of the view that the network sees, pixels; 0 is the network's own (alexnet: 224)
    in_channels: int = 0  # 3 for color, 1 for gray; 0 is the network's own

    # Pictures on disk -> store
    stored_size: int = 256  # side of the stored pictures, pixels (paper, 2)
    fit: Literal["crop", "pad", "squash"] = "crop"  # short side and center cut (paper, 2) | letter box | both sides
    validation: float = 0.1  # fraction of the training pictures cut out to choose with; 0: nothing is chosen
    test: float = 0.2  # fraction of all pictures kept for the test, where the data has no test split of its own

    # Stored pictures -> views
    crop: Literal["random", "resized", "center"] = "resized"  # any offset (paper, 4.1) | any part, resized | the middle
    smallest_part: float = 0.35  # `resized`: least share of the picture's area that a view shows
    mirror: bool = True  # left and right swapped in half of the views (paper, 4.1); off for digits and letters
    color_noise: float = 0.1  # std of the noise along the color axes, in their standard deviations (paper, 4.1)
    color_jitter: float = 0.3  # brightness, contrast and saturation each times 1 ± this, uniformly
    erase: float = 0.0  # probability that a rectangle of a view is blanked
    mixup: float = 0.5  # probability that a batch is mixed with itself, weights from Beta(.4, .4)
    mean: Literal["image", "channel"] = "channel"  # what is subtracted: the mean image (paper, 2) or its channel means
    divide: float = 1.0  # what gray levels minus the mean are divided by (paper: 1)

    # Training
    epochs: int = 55  # passes over the training split
    batch_size: int = 64  # pictures a step (paper, 5: 128)
    optimizer: Literal["paper", "sgd", "adamw"] = "adamw"  # the paper's update rule (5) | PyTorch's SGD | AdamW
    learning_rate: float = 0.0003  # at its highest (paper, 5: 0.01)
    bias_rate: float = 1.0  # learning rate of biases as a multiple (2012 code: 2)
    momentum: float = 0.9  # of the paper's rule and SGD; AdamW's first beta (paper, 5)
    weight_decay: float = 0.05  # per step, times the learning rate (paper, 5: 0.0005)
    fc_decay: float = -1.0  # weight decay of fully connected weights; negative: as weight_decay
    bias_decay: bool = False  # do biases decay? (paper: one rule for all; 2012 code: no)
    clip: float = 5.0  # longest gradient, as a norm over all weights; 0: no limit
    schedule: Literal["cosine", "stall", "steps"] = "cosine"  # to 0 | ÷10 at each stall (paper, 5) | ÷10 at drops
    warmup: float = 1.0  # epochs over which the rate rises from 0
    drops: tuple[int, ...] = ()  # `steps`: epochs at whose start the rate is divided by 10
    patience: int = 5  # `stall`: epochs without a lower validation error before the rate is divided by 10
    most_drops: int = 3  # `stall`: the run ends when the error stalls once more after so many drops (paper, 5: 3)
    label_smoothing: float = 0.1  # share of the target spread over all classes
    averaging: float = 0.998  # weights' running average, decay a step; 0: none. The average is validated and kept
    small_size: int = 128  # side of the views in the first epochs, pixels: less to compute; 0: full size at once
    small_share: float = 0.73  # share of the epochs, from the first on, that see views of small_size
    keep: Literal["best", "last"] = "best"  # which weights the bundle gets: best validation error | the last

    # How it is computed
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the processor multiplies it faster
    checkpoint_minutes: float = 5.0  # a checkpoint at an epoch's end when the last one is older, minutes; 0: each epoch

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
        if self.validation + self.test >= 1:
            raise RecipeError(
                f"--validation {self.validation} and --test {self.test} leave nothing", "under 1 together"
            )
        if self.schedule == "stall" and self.validation == 0:
            raise RecipeError("--schedule stall has no validation split to watch", "--validation above 0")
        if self.keep == "best" and self.validation == 0:
            raise RecipeError(
                "--keep best has no validation split to choose by", "--validation above 0, or --keep last"
            )

    def replace(self, **changes: Any) -> "Recipe":
        """A copy with ``changes``. An unknown name raises :class:`RecipeError` with the nearest right one."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise RecipeError(f"a recipe has no {name!r}", nearest(name, known))
        return dataclasses.replace(self, **changes)

    def side(self, epoch: int, full: int) -> int:
        """Side of the views in an epoch (from 0), pixels; ``full`` is the network's. The last epoch is always full."""
        small = epoch < min(round(self.small_share * self.epochs), self.epochs - 1)
        return self.small_size if small and 0 < self.small_size < full else full

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
    "divide": (1e-3, 1e6),
    "color_noise": (0, 10), "color_jitter": (0, 0.99), "erase": (0, 1), "mixup": (0, 1), "epochs": (1, 1_000_000),
    "batch_size": (1, 1_000_000), "learning_rate": (1e-12, 1000), "bias_rate": (0, 1000), "momentum": (0, 0.9999),
    "weight_decay": (0, 100), "fc_decay": (-1, 100), "clip": (0, 1e9), "warmup": (0, 1_000_000),
    "patience": (1, 1_000_000), "most_drops": (0, 20), "label_smoothing": (0, 0.99), "averaging": (0, 0.99999),
    "small_size": (0, 4096), "small_share": (0, 1), "checkpoint_minutes": (0, 1e6),
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
    "mean": ("image", "channel"),
    "optimizer": ("paper", "sgd", "adamw"),
    "schedule": ("cosine", "stall", "steps"),
    "keep": ("best", "last"),
    "precision": ("auto", "fp32", "bf16"),
}


def _is_a(kind: type, value: Any) -> bool:
    """Is ``value`` of that kind? A whole number is a number, true and false are none."""
    if kind is tuple:
        return isinstance(value, tuple) and all(_is_a(int, item) for item in value)
    allowed = (int, float) if kind is float else kind
    return isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))


def paper() -> Recipe:
    """The training of the 2012 paper, section by section; where its text and its code differ, its text."""
    return Recipe(
        recipe="paper", initialization="paper", crop="random", color_jitter=0.0, color_noise=0.1, mean="image",
        epochs=90, batch_size=128, optimizer="paper", learning_rate=0.01, weight_decay=0.0005, bias_decay=True,
        clip=0.0, schedule="stall", warmup=0.0, label_smoothing=0.0, mixup=0.0, small_size=0, averaging=0.0,
        keep="last", precision="fp32",
    )  # fmt: skip


def modern() -> Recipe:
    """What makes an AlexNet learn best and fastest from a few thousand pictures of one's own (docs/log.md)."""
    return Recipe()


def digits() -> Recipe:
    """``modern`` for handwritten digits in minutes: four epochs at full size, never mirrored, no color noise."""
    return Recipe(
        recipe="digits", epochs=4, mirror=False, crop="random", color_noise=0.0, color_jitter=0.0, mixup=0.0,
        batch_size=32, small_size=0,
    )  # fmt: skip


def lenet5() -> Recipe:
    """LeNet-5 on handwritten digits: the whole picture, gray, at 32 pixels (LeCun et al. 1998)."""
    return Recipe(
        recipe="lenet5", model="lenet5", initialization="own", dropout=0.0, stored_size=32, crop="center", mirror=False,
        color_noise=0.0, color_jitter=0.0, mixup=0.0, divide=80.0, optimizer="paper", epochs=20, batch_size=64,
        learning_rate=0.1, weight_decay=0.0, small_size=0,
        label_smoothing=0.0, averaging=0.0, precision="fp32",
    )  # fmt: skip


def cifar_18pct() -> Recipe:
    """The 2012 CIFAR-10 net ``layers-18pct``: its schedule is fixed, so nothing is chosen and all pictures train."""
    return Recipe(
        recipe="cifar_18pct", model="cifar_18pct", initialization="own", dropout=0.0, stored_size=32, crop="center",
        mirror=False, color_noise=0.0, color_jitter=0.0, mixup=0.0, mean="image", validation=0.0, optimizer="paper",
        epochs=140, batch_size=128, small_size=0,
        learning_rate=0.001, bias_rate=2.0, weight_decay=0.004, fc_decay=1.0, bias_decay=False, clip=0.0,
        schedule="steps", warmup=0.0, drops=(120, 130), label_smoothing=0.0, averaging=0.0, keep="last",
        precision="fp32",
    )  # fmt: skip


def layer_file() -> Recipe:
    """For layer files of 2012, which bring their own rates, momenta, decay, schedules, dropout and cost."""
    return Recipe(
        recipe="layer_file", model="layers", initialization="own", dropout=0.0, crop="random", color_noise=0.0,
        color_jitter=0.0, mixup=0.0, mean="image", epochs=90, batch_size=128, optimizer="paper", learning_rate=1.0,
        momentum=0.0, weight_decay=0.0, clip=0.0, schedule="steps", warmup=0.0, label_smoothing=0.0, averaging=0.0,
        small_size=0, keep="last", precision="fp32",
    )  # fmt: skip


# What the files of ``layer_file`` say themselves, so that a recipe's number could have no effect.
OF_LAYER_FILES = (
    "model", "initialization", "dropout", "mixup", "optimizer", "learning_rate", "bias_rate", "momentum",
    "weight_decay", "fc_decay", "bias_decay", "schedule", "warmup", "drops", "patience", "most_drops",
    "label_smoothing", "small_size", "small_share", "precision",
)  # fmt: skip

_NAMED: dict[str, Callable[[], Recipe]] = {
    "modern": modern,
    "paper": paper,
    "digits": digits,
    "lenet5": lenet5,
    "cifar_18pct": cifar_18pct,
    "layer_file": layer_file,
}


def list_recipes() -> list[str]:
    """Names of all recipes."""
    return list(_NAMED)


def describe(name: str) -> str:
    """One line on what a recipe is."""
    return (_NAMED[name].__doc__ or "").strip().splitlines()[0]


def named(name: str) -> Recipe:
    """The recipe of that name. An unknown name raises :class:`RecipeError` with the nearest right one."""
    if name not in _NAMED:
        raise RecipeError(f"there is no recipe {name!r}", nearest(name, list(_NAMED)), "`alexnet recipes` lists them")
    return _NAMED[name]()


def default_for(data: str, model: str | None = None) -> Recipe:
    """The recipe for people who name none: by the network where it has one of its own, else by the data."""
    if model in _NAMED:
        return _NAMED[model]()
    recipe = digits() if data == "digits" else modern()
    return recipe if model is None else recipe.replace(model=model)


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """The recipe with these values, as :meth:`Recipe.to_dict` gives them; raises :class:`RecipeError`."""
    return Recipe().replace(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def from_toml(text: str, name: str = "recipe.toml") -> Recipe:
    """The recipe that :meth:`Recipe.to_toml` wrote; raises :class:`RecipeError` naming the file."""
    try:
        return from_dict(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise RecipeError(f"{name} is not a recipe: {error}", "a recipe.toml that a run wrote") from error
    except RecipeError as error:
        raise RecipeError(f"{name}: {error.what}", error.must, error.todo) from error


def differences(a: Recipe, b: Recipe) -> dict[str, tuple[Any, Any]]:
    """Fields in which two recipes differ, with both values."""
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
