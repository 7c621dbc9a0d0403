"""How often something happens, as a person writes it: ``5min``, ``500steps``, ``1epoch``.

Layers by name, as a recipe says them: ``conv1..conv5,fc6`` and ``conv1=0,fc10=1``.

Names are held against a network when one is there; here only the form is. A name means the layer, or one parameter of
it (``fc7.bias``), or all layers inside it (``features`` has ``features.0`` …).


Every number of a run, with its unit and source. A recipe is frozen.

Epochs are counted by how many are done: "from epoch 67" means after 67 whole epochs.The comment behind a field
is its help text on the command line and its comment in ``recipe.toml``.
"""

import dataclasses
import functools
import itertools
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from alexnet.errors import RecipeError, did_you_mean

_WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*(min|minutes?|steps?|epochs?)")


class Interval(NamedTuple):
    """``amount`` of ``unit``: whole steps or epochs, at least one, or minutes, a fraction or 0 (after each step)."""

    amount: float
    unit: Literal["min", "step", "epoch"]


def parse_interval(text: str, option: str) -> Interval:
    """Read what was given as ``option``; raises :class:`RecipeError`."""
    match = _WRITTEN.fullmatch(text.strip())
    must = "a number and min, steps or epochs, such as 5min, 500steps or 1epoch"
    if match is None:
        raise RecipeError(f"{option} is {text!r}", must)
    amount = float(match[1])
    if match[2].startswith("min"):
        return Interval(amount, "min")
    if amount < 1 or amount != int(amount):
        raise RecipeError(f"{option} is {text!r}", f"{must}; steps and epochs are whole and at least 1")
    return Interval(amount, "step" if match[2].startswith("step") else "epoch")


def parse_layer_ranges(text: str, option: str) -> tuple[tuple[str, str], ...]:
    """``conv1..conv5,fc6`` -> (("conv1", "conv5"), ("fc6", "fc6")): the first and the last of each range.

    Raises :class:`RecipeError` for what has another form.
    """
    results = []
    for part in _parts(text):
        first, dots, last = (word.strip() for word in part.partition(".."))
        if not first or (dots and not last) or ".." in last or "=" in part:
            raise RecipeError(f"{option} is {text!r}", "layers and ranges of them: conv1,conv3..conv5")
        results.append((first, last or first))
    return tuple(results)


def parse_layer_values(text: str, option: str) -> dict[str, float]:
    """``conv1=0,fc10=1`` -> {"conv1": 0.0, "fc10": 1.0}; raises :class:`RecipeError` for what has another form."""
    results: dict[str, float] = {}
    for part in _parts(text):
        name, equals, number = (word.strip() for word in part.partition("="))
        value = _number(number)
        if not name or not equals or value is None or name in results:
            raise RecipeError(f"{option} is {text!r}", "a number from 0 to 1000 for each layer, once: conv1=0,fc10=1")
        results[name] = value
    return results


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text.strip() else []


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= 1000 else None


@dataclass(frozen=True)
class Recipe:
    """All numbers of a run; the defaults are those of ``modern``. Raises :class:`RecipeError` for what can not be."""

    recipe: str = "modern"
    """named recipe that the numbers started from"""
    seed: int = 0
    """of everything random: initial weights, order, crops, dropout, splits"""

    # The network
    model: str = "alexnet"
    """network by name; `alexnet models` lists them"""
    initialization: Literal["paper", "2012", "own"] = "2012"
    """std .01 | .03 in conv3-5 (2012 code) | the network's own"""
    dropout: float = 0.4
    """probability of zeroing an output of fc6 and fc7 (paper, 4.2: 0.5)"""
    image_size: int = 0
    """side of the view that the network sees, pixels; 0 is the network's own (alexnet: 224)"""
    in_channels: int = 0
    """3 for color, 1 for gray; 0 is the network's own"""

    # Images on disk -> store
    stored_size: int = 256
    """side of the stored images, pixels (paper, 2)"""
    fit: Literal["crop", "pad", "squash"] = "crop"
    """short side and center cut (paper, 2) | letter box | both sides"""
    validation: float = 0.1
    """fraction of the training images cut out to choose with; 0: nothing is chosen"""
    test: float = 0.2
    """fraction of all images kept for the test, where the data has no test split of its own"""

    # Stored images -> crops
    crop: Literal["random", "resized", "center"] = "resized"
    """any offset (paper, 4.1) | any part, resized | the middle"""
    min_crop_scale: float = 0.4
    """`resized`: least share of the image's area that a view shows"""
    far_edge: bool = True
    """may a crop reach the far edge? 256 − 224: 33 offsets (2012 code), 32 without (paper, 4.1)"""
    crop_group_size: int = 1
    """consecutive images of an epoch's order with one offset and mirror (2012 code: 32)"""
    hflip: float = 0.5
    """probability that a crop is flipped left to right (paper, 4.1: 0.5); 0 for digits and letters"""
    pca_noise_std: float = 0.1
    """std of noise along the color axes × the pixels' std there (2012 code; paper: × variance)"""
    pca_noise_until_epoch: int = 0
    """epoch from which there is no color noise any more (net 145: 67); 0: there always is"""
    pca_noise_rescale: bool = False
    """is a view with noise divided by 1 + pca_noise_std? (2012 code: yes)"""
    color_jitter: float = 0.25
    """brightness, contrast and saturation each times 1 ± this, uniformly"""
    random_erase_prob: float = 0.0
    """probability that a rectangle of a view is blanked"""
    mixup_prob: float = 0.2
    """probability that a batch is mixed with itself in another order (Zhang et al. 2017)"""
    mixup_alpha: float = 0.4
    """the weights of a mixed batch are drawn from Beta(alpha, alpha)"""
    mean: Literal["image", "center", "channel"] = "channel"
    """mean image (paper, 2) | its center (2012) | color means"""
    divide: float = 1.0
    """what gray levels minus the mean are divided by (paper: 1)"""
    divide_std: bool = False
    """divided, besides, by each channel's standard deviation in training? (torchvision: yes)"""

    # Training
    epochs: int = 44
    """passes over the training split"""
    batch_size: int = 64
    """images a step (paper, 5: 128)"""
    optimizer: Literal["paper", "sgd", "adamw", "lars"] = "adamw"
    """the paper's rule (5) | PyTorch's SGD | AdamW | LARS"""
    lr: float = 0.0003
    """at its highest (paper, 5: 0.01)"""
    lr_base_size: int = 0
    """batch size that lr is for, larger ones have so much more; 0: it is as it stands"""
    trust_coefficient: float = 0.001
    """`lars`: share of a layer's length that a step at rate 1 changes (You et al. 2017)"""
    bias_lr_mult: float = 1.0
    """learning rate of biases as a multiple (2012 code: 2)"""
    schedule_bias_lr: bool = True
    """does the schedule lower the biases' rate too? (2012 code: no)"""
    layer_lr_mult: str = ""
    """rates as multiples, by layer: "conv1=0.1,fc8=10"; 0 freezes (2012 code: epsW)"""
    momentum: float = 0.9
    """of the paper's rule and SGD; AdamW's first beta (paper, 5)"""
    weight_decay: float = 1.0
    """per step, times the learning rate (paper, 5: 0.0005)"""
    fc_weight_decay: float = -1.0
    """weight decay of fully connected weights; negative: as weight_decay"""
    layer_weight_decay: str = ""
    """weight decays by layer, before the two above: "conv1=0,fc10=1" (2012 code: wc)"""
    bias_weight_decay: bool = False
    """do biases decay? (paper: one rule for all; 2012 code: no)"""
    clip_grad_norm: float = 5.0
    """longest gradient, as a norm over all weights; 0: no limit"""
    schedule: Literal["cosine", "plateau", "multistep", "poly", "constant"] = "cosine"
    """stall, steps: ÷10 | poly: (1 − t)²"""
    warmup_epochs: float = 1.0
    """epochs over which the rate rises from 0"""
    lr_milestones: tuple[int, ...] = ()
    """`multistep`: epochs at whose start the rate is divided by 10"""
    layer_lr_milestones: str = ""
    """epochs at whose start one layer's rate is divided by 10: "conv1.weight=67"."""
    lr_patience: int = 5
    """`plateau`: epochs without a lower validation error before the rate is divided by 10"""
    max_lr_drops: int = 3
    """`plateau`: the run ends when the error stalls once more after so many drops (paper, 5: 3)"""
    freeze: str = ""
    """layers that stop learning, without momentum and decay: "conv1", "conv1..conv5,fc6", "fc7.bias"."""
    freeze_from_epoch: int = 0
    """epoch from which they do (net 145: 72); 0: from the beginning"""
    train_on_val_from_epoch: int = 0
    """epoch from which validation images train too (13pct: 100); 0: never"""
    sampling: Literal["natural", "balanced"] = "natural"
    """each image once an epoch | each class equally often"""
    shuffle_window: int = 0
    """shards mixed at a time; 0: all of a store on this disk, 16 of one behind an address"""
    class_weights: Literal["none", "balanced"] = "none"
    """images count alike | by 1/frequency of class, 1 on average"""
    label_smoothing: float = 0.1
    """share of the target spread over all classes"""
    ema_decay: float = 0.998
    """weights' running average, decay a step; 0: none. The average is validated and kept"""
    progressive_size: int = 128
    """side of the crops in the first epochs, pixels: less to compute; 0: full size at once"""
    progressive_fraction: float = 0.59
    """share of the epochs, from the first on, that see crops of progressive_size"""
    stop_train_error: float = 0.0
    """the run ends after an epoch whose training error, a fraction, is at most this; 0: never"""
    select_weights: Literal["best", "last"] = "best"
    """which weights the bundle gets: best validation error | the last"""

    # How it is computed
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the processor multiplies it faster"""
    convolution: Literal["auto", "plain", "winograd"] = "auto"
    """auto: fewer multiplications, where compiled and faster"""
    compile: bool = False
    """let PyTorch compile the network; on a GPU its steps become CUDA graphs, for small batches"""
    checkpoint_every: str = "1epoch"
    """how often a checkpoint is written: 5min, 500steps, 1epoch; at the end always"""

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
                hint = did_you_mean(name, known, synonyms={"learning_rate": "lr"})
                raise RecipeError(f"unknown hyperparameter {name!r}. {hint}")
        return dataclasses.replace(self, **changes)

    @property
    def peak_lr(self) -> float:
        """The learning rate at its highest: ``lr``, scaled by the batch where ``lr_base_size`` says so."""
        return self.lr * (self.batch_size / self.lr_base_size if self.lr_base_size else 1.0)

    def crop_size(self, epoch: int, full: int) -> int:
        """Side of the crops in an epoch (from 0), pixels; ``full`` is the network's. The last epoch is always full."""
        small = epoch < min(round(self.progressive_fraction * self.epochs), self.epochs - 1)
        return self.progressive_size if small and 0 < self.progressive_size < full else full

    def trains_on_val(self, epoch: int) -> bool:
        """Are the validation images trained on in an epoch (from 0)? Then nothing is validated."""
        return 0 < self.train_on_val_from_epoch <= epoch

    def to_toml(self) -> str:
        """The recipe as TOML, each number with its meaning behind it; :func:`from_toml` reads it."""
        help_texts = help_text()
        lines = [f"# {self.__class__.__name__} of a run: every number, its unit and source"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            text = list(value) if isinstance(value, tuple) else value
            lines.append(f"{field.name} = {json.dumps(text, ensure_ascii=False):<12} # {help_texts[field.name]}")
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values that JSON can hold."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "dropout": (0, 0.99),
    "image_size": (0, 4096),
    "in_channels": (0, 3),
    "stored_size": (8, 8192),
    "validation": (0, 0.9),
    "test": (0, 0.9),
    "min_crop_scale": (0.01, 1),
    "divide": (1e-3, 1e6),
    "crop_group_size": (1, 1_000_000),
    "pca_noise_until_epoch": (0, 1_000_000),
    "freeze_from_epoch": (0, 1_000_000),
    "train_on_val_from_epoch": (0, 1_000_000),
    "pca_noise_std": (0, 10),
    "color_jitter": (0, 0.99),
    "random_erase_prob": (0, 1),
    "hflip": (0, 1),
    "mixup_prob": (0, 1),
    "mixup_alpha": (1e-3, 1000),
    "epochs": (1, 1_000_000),
    "batch_size": (1, 1_000_000),
    "lr": (1e-12, 1000),
    "bias_lr_mult": (0, 1000),
    "momentum": (0, 0.9999),
    "weight_decay": (0, 100),
    "fc_weight_decay": (-1, 100),
    "clip_grad_norm": (0, 1e9),
    "warmup_epochs": (0, 1_000_000),
    "lr_patience": (1, 1_000_000),
    "max_lr_drops": (0, 20),
    "label_smoothing": (0, 0.99),
    "ema_decay": (0, 0.99999),
    "progressive_size": (0, 4096),
    "progressive_fraction": (0, 1),
    "stop_train_error": (0, 1),
    "shuffle_window": (0, 1_000_000),
    "lr_base_size": (0, 1_000_000),
    "trust_coefficient": (1e-9, 1),
}

_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    tuple: "integers",
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "initialization": ("paper", "2012", "own"),
    "fit": ("crop", "pad", "squash"),
    "crop": ("random", "resized", "center"),
    "mean": ("image", "center", "channel"),
    "optimizer": ("paper", "sgd", "adamw", "lars"),
    "schedule": ("cosine", "plateau", "multistep", "poly", "constant"),
    "select_weights": ("best", "last"),
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
        ("--schedule plateau", recipe.schedule == "plateau", "watch", ""),
        ("--select-weights best", recipe.select_weights == "best", "choose by", ", or --select-weights last"),
    ):
        if needs and recipe.validation == 0:
            raise RecipeError(f"{who} has no validation split to {purpose}", f"--validation above 0{otherwise}")
        if needs and recipe.train_on_val_from_epoch:
            since = f"from epoch {recipe.train_on_val_from_epoch} on, when it trains too"
            raise RecipeError(
                f"{who} has no validation split to {purpose} {since}", f"--train-on-val-from-epoch 0{otherwise}"
            )
    if recipe.sampling == "balanced" and recipe.shuffle_window:
        raise RecipeError("--sampling balanced draws from all images", "without --shuffle-window", "leave one out")
    if recipe.sampling == recipe.class_weights == "balanced":
        raise RecipeError("--sampling balanced and --class-weights balanced correct twice", "one of them")
    _check_schedule(recipe)
    parse_interval(recipe.checkpoint_every, "--checkpoint-every")
    parse_layer_ranges(recipe.freeze, "--freeze")
    parse_layer_values(recipe.layer_lr_mult, "--layer-lr-mult")
    parse_layer_values(recipe.layer_weight_decay, "--layer-weight-decay")
    parse_layer_values(recipe.layer_lr_milestones, "--layer-lr-milestones")


def _check_schedule(recipe: Recipe) -> None:
    """Raise :class:`RecipeError` for epochs of the schedule that are not epochs of the run."""
    if recipe.schedule == "multistep" and not recipe.lr_milestones:
        raise RecipeError(
            "--schedule multistep has no --lr-milestones", "", "pass the epochs to divide at, or --schedule constant"
        )
    last = recipe.epochs - 1 if recipe.schedule == "multistep" else 1_000_000
    if recipe.lr_milestones != tuple(sorted(set(recipe.lr_milestones))) or any(
        not 1 <= drop <= last for drop in recipe.lr_milestones
    ):
        must = f"ascending and different, from 1 to {last}" if last else "before the last epoch"
        within = f" (--epochs is {recipe.epochs})" if recipe.schedule == "multistep" else ""
        todo = "pass others, or --schedule constant"
        raise RecipeError(f"--lr-milestones is {' '.join(map(str, recipe.lr_milestones))}", must + within, todo)
    # `--epochs 1` alone is allowed: most recipes warm up for 1 epoch
    if recipe.warmup_epochs > recipe.epochs or recipe.warmup_epochs == recipe.epochs > 1:
        todo = (
            f"pass --warmup-epochs 0 to {recipe.epochs - 1}, or more --epochs"
            if recipe.epochs > 1
            else "pass --warmup-epochs 0"
        )
        raise RecipeError(f"--warmup-epochs is {recipe.warmup_epochs:g}", f"below --epochs, {recipe.epochs}", todo)


def _is_a(kind: type, value: Any) -> bool:
    """Is ``value`` of that kind? An integer is a number, true and false are none."""
    if kind is tuple:
        return isinstance(value, tuple) and all(_is_a(int, item) for item in value)
    allowed = (int, float) if kind is float else kind
    return isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """The recipe with these values, as :meth:`Recipe.to_dict` gives them; raises :class:`RecipeError`."""
    results: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Recipe().replace(**results)


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
    """A field's name as it is typed: ``lr`` -> ``--lr``."""
    return "--" + field.replace("_", "-")


@functools.cache
def help_text() -> dict[str, str]:
    """Field name -> the docstring of the field in this file."""
    import ast
    import inspect

    recipe = ast.parse(inspect.getsource(Recipe)).body[0]
    assert isinstance(recipe, ast.ClassDef)
    return {
        ast.unparse(field.target): " ".join(ast.literal_eval(text.value).split())
        for field, text in itertools.pairwise(recipe.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
