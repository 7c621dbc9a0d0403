"""The hyperparameters of a run in seven groups, and the registries of optimizers and schedules.

To add an optimizer or a schedule, write its function in ``training/optim.py`` or ``training/schedule.py``, add one
:class:`Choice` here, and a row with its help text to docs/training.md. The choices of ``--optimizer`` and
``--schedule``, their help texts and the checks of a recipe follow from these dicts. The functions are named as
``module:function``, so that a recipe is read and checked without importing PyTorch.

A layer name stands for the layer, for one parameter of it (``fc7.bias``) or for all layers inside it (``features`` for
``features.0`` and so on). Only the form is checked here; ``training/optim.py`` checks the names against the network.

The options of ``alexnet train``, their help texts, the comments of ``recipe.toml`` and the checks of a recipe are made
from these classes: type, range, default and docstring. The defaults are those of the recipe ``modern``.

Epochs are counted by how many are done: "from epoch 67" means after 67 epochs. "paper" is Krizhevsky, Sutskever and
Hinton 2012, with the section; "2012 code" is cuda-convnet as released for it.
"""

import math
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from alexnet.errors import RecipeError, did_you_mean


class Choice(NamedTuple):
    """An optimizer or schedule: one line of help, and the function that implements it as ``module:function``."""

    help: str
    function: str


# Functions of (parameter groups, recipe) that return a torch.optim.Optimizer.
OPTIMIZERS: dict[str, Choice] = {
    "paper": Choice("SGD with the momentum rule of the paper, section 5", "alexnet.training.optim:paper_sgd"),
    "sgd": Choice("PyTorch's SGD with momentum", "alexnet.training.optim:sgd"),
    "adamw": Choice("AdamW", "alexnet.training.optim:adamw"),
    "lars": Choice("LARS, for batches of thousands (You et al. 2017)", "alexnet.training.optim:lars"),
}

# Functions of (recipe, progress) that return the learning rate as a fraction of its peak.
SCHEDULES: dict[str, Choice] = {
    "cosine": Choice("half a cosine wave from the peak to 0", "alexnet.training.schedule:cosine"),
    "plateau": Choice(
        "divided by 10 when the validation error has stopped falling (paper, section 5)",
        "alexnet.training.schedule:plateau",
    ),
    "multistep": Choice("divided by 10 at the epochs of lr_milestones", "alexnet.training.schedule:multistep"),
    "poly": Choice("(1 − t)², from the peak to 0", "alexnet.training.schedule:poly"),
    "constant": Choice("the peak", "alexnet.training.schedule:constant"),
}


def lookup(registry: Mapping[str, Choice], name: str) -> Any:
    """The function that implements ``name``. Raises :class:`RecipeError` for a name that is not in the registry."""
    if name not in registry:
        kind = "optimizer" if registry is OPTIMIZERS else "schedule"
        raise RecipeError(f"unknown {kind} {name!r}. {did_you_mean(name, registry)}")
    return pkgutil.resolve_name(registry[name].function)


def help_lines(registry: Mapping[str, Choice]) -> str:
    """All choices with their help, on one line: ``cosine: … | plateau: …``."""
    return " | ".join(f"{name}: {choice.help}" for name, choice in registry.items())


_INTERVAL = re.compile(r"(\d+(?:\.\d+)?)\s*(min|minutes?|steps?|epochs?)")


class Interval(NamedTuple):
    """How often something happens: every ``amount`` of ``unit``.

    Steps and epochs are integers of at least 1. Minutes may be a fraction, or 0 for every step. The unit ``auto`` is
    the first end of an epoch after ``amount`` minutes.
    """

    amount: float
    unit: Literal["min", "step", "epoch", "auto"]


def parse_interval(text: str, option: str) -> Interval:
    """Parse the value of ``option``: ``auto``, ``5min``, ``500steps`` or ``1epoch``. Raises :class:`RecipeError`."""
    if text.strip() == "auto":
        return Interval(1, "auto")
    match = _INTERVAL.fullmatch(text.strip())
    expected = "auto, or a number and min, steps or epochs, such as 5min, 500steps or 1epoch"
    if match is None:
        raise RecipeError(f"{option} is {text!r}", expected)
    amount = float(match[1])
    if match[2].startswith("min"):
        return Interval(amount, "min")
    if amount < 1 or amount != int(amount):
        raise RecipeError(f"{option} is {text!r}", f"{expected}; steps and epochs are integers of at least 1")
    return Interval(amount, "step" if match[2].startswith("step") else "epoch")


def parse_layer_ranges(text: str, option: str) -> tuple[tuple[str, str], ...]:
    """Parse ``conv1..conv5,fc6`` into (("conv1", "conv5"), ("fc6", "fc6")): first and last layer of each range.

    Raises :class:`RecipeError` for text of another form.
    """
    ranges = []
    for part in _parts(text):
        first, dots, last = (name.strip() for name in part.partition(".."))
        if not first or (dots and not last) or ".." in last or "=" in part:
            raise RecipeError(f"{option} is {text!r}", "layers and ranges of them: conv1,conv3..conv5")
        ranges.append((first, last or first))
    return tuple(ranges)


def parse_layer_values(text: str, option: str) -> dict[str, float]:
    """Parse ``conv1=0,fc10=1`` into {"conv1": 0.0, "fc10": 1.0}. Raises :class:`RecipeError`."""
    values: dict[str, float] = {}
    for part in _parts(text):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        value = _number(number)
        if not name or not equals or value is None or name in values:
            raise RecipeError(f"{option} is {text!r}", "a number from 0 to 1000 for each layer, once: conv1=0,fc10=1")
        values[name] = value
    return values


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text.strip() else []


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= 1000 else None


class Range(NamedTuple):
    """The lowest and the highest value of a number, both allowed."""

    low: float
    high: float


Epoch = Annotated[int, Range(0, 1_000_000)]
Fraction = Annotated[float, Range(0, 1)]
if TYPE_CHECKING:
    OptimizerName = str
    ScheduleName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]
    ScheduleName = Literal[tuple(SCHEDULES)]


@dataclass(frozen=True)
class DataFields:
    """How images are stored, split, sampled and normalized."""

    stored_size: Annotated[int, Range(8, 8192)] = 256
    """height and width of stored images, pixels (paper, 2)"""
    fit: Literal["crop", "pad", "squash"] = "crop"
    """how an image becomes square: resize the short side and crop the center (paper, 2) | pad | resize both sides"""
    validation: Annotated[float, Range(0, 0.9)] = 0.1
    """fraction of the training images that is held out for validation; 0: no validation split"""
    test: Annotated[float, Range(0, 0.9)] = 0.2
    """fraction of all images that is held out for the test, if the data has no test split of its own"""
    train_on_val_from_epoch: Epoch = 0
    """epoch from which validation images are trained on too (13pct: 100); 0: never"""
    sampling: Literal["natural", "balanced"] = "natural"
    """each image once per epoch | each class equally often"""
    shuffle_window: Annotated[int, Range(0, 1_000_000)] = 0
    """number of shards that are shuffled together; 0: all of a local store, 16 of a remote one"""
    mean: Literal["image", "center", "channel"] = "channel"
    """what is subtracted from pixels: mean image (paper, 2) | its center crop (2012 code) | mean of each channel"""
    divide: Annotated[float, Range(1e-3, 1e6)] = 1.0
    """divisor of pixels after the mean is subtracted, gray levels (paper: 1)"""
    divide_std: bool = False
    """divide each channel by its standard deviation over the training images too (torchvision: yes)"""


@dataclass(frozen=True)
class ModelFields:
    """The network, its input and its initial weights."""

    model: str = "alexnet"
    """name of the network; `alexnet models` lists all"""
    initialization: Literal["paper", "2012", "own"] = "2012"
    """initial weights: std 0.01 (paper, 5) | std 0.01, conv3 to conv5 0.03 (2012 code) | the network's own"""
    fit_last_layer: bool = False
    """fine-tuning: fit the new last layer to the features of the training images before the first step"""
    image_size: Annotated[int, Range(0, 4096)] = 0
    """height and width of the network's input, pixels; 0: the network's own (alexnet: 224)"""
    in_channels: Annotated[int, Range(0, 3)] = 0
    """input channels: 3 for color, 1 for gray; 0: the network's own"""


@dataclass(frozen=True)
class AugmentationFields:
    """Random changes of the training images."""

    crop: Literal["random", "resized", "center"] = "resized"
    """training crop: random offset (paper, 4.1) | random area and aspect ratio, resized | center"""
    min_crop_scale: Annotated[float, Range(0.01, 1)] = 0.4
    """`resized` crops: smallest area, as a fraction of the image"""
    far_edge: bool = True
    """crops may touch the right and bottom edge: 33 offsets for 256 − 224 (2012 code) instead of 32 (paper, 4.1)"""
    crop_group_size: Annotated[int, Range(1, 1_000_000)] = 1
    """number of consecutive images that share crop offset and flip (2012 code: 32)"""
    hflip: Fraction = 0.5
    """probability that a crop is flipped left to right (paper, 4.1: 0.5); 0 for digits and letters"""
    pca_noise_std: Annotated[float, Range(0, 10)] = 0.1
    """std of PCA color noise, as a fraction of the pixels' std along each axis (2012 code; paper, 4.1: variance)"""
    pca_noise_until_epoch: Epoch = 0
    """epoch from which there is no PCA color noise (net 145: 67); 0: noise in all epochs"""
    pca_noise_rescale: bool = False
    """divide crops with PCA color noise by 1 + pca_noise_std (2012 code: yes)"""
    color_jitter: Annotated[float, Range(0, 0.99)] = 0.25
    """brightness, contrast and saturation are each multiplied by 1 ± this, uniformly"""
    random_erase_prob: Fraction = 0.0
    """probability that a rectangle of a crop is erased (Zhong et al. 2017)"""
    mixup_prob: Fraction = 0.2
    """probability that a batch without CutMix is mixed with a permutation of itself (Zhang et al. 2017)"""
    mixup_alpha: Annotated[float, Range(1e-3, 1000)] = 0.4
    """mixup weights are drawn from Beta(alpha, alpha)"""
    cutmix_prob: Fraction = 0.0
    """probability that in a batch a box of each image is replaced by that of another (CutMix, Yun et al. 2019)"""
    cutmix_alpha: Annotated[float, Range(1e-3, 1000)] = 1.0
    """CutMix: area of the box, a fraction of at most half, is drawn from Beta(alpha, alpha)"""
    randaugment_ops: Annotated[int, Range(0, 14)] = 0
    """RandAugment: random operations on each crop, one after the other (Cubuk et al. 2020: 2); 0: none"""
    randaugment_magnitude: Annotated[int, Range(0, 30)] = 9
    """RandAugment: strength of each operation, of 30 (Cubuk et al. 2020, ResNet-50 on ImageNet: 9)"""


@dataclass(frozen=True)
class OptimizerFields:
    """The optimizer, its learning rates and its weight decay."""

    optimizer: OptimizerName = "adamw"
    """update rule"""
    batch_size: Annotated[int, Range(1, 1_000_000)] = 64
    """images per step (paper, 5: 128)"""
    lr: Annotated[float, Range(1e-12, 1000)] = 0.0003
    """peak learning rate (paper, 5: 0.01)"""
    lr_base_size: Annotated[int, Range(0, 1_000_000)] = 0
    """batch size that lr is given for: lr is scaled by batch_size / lr_base_size; 0: not scaled"""
    bias_lr_mult: Annotated[float, Range(0, 1000)] = 1.0
    """learning rate of biases, as a multiple of lr (2012 code: 2)"""
    first_layer_lr_mult: Annotated[float, Range(1e-4, 1)] = 1.0
    """fine-tuning: learning rate of the first layer, as a multiple of lr; it rises geometrically to lr at the last"""
    layer_lr_mult: str = ""
    """learning rates of layers, as multiples of lr: "conv1=0.1,fc8=10"; 0 freezes a layer (2012 code: epsW)"""
    momentum: Annotated[float, Range(0, 0.9999)] = 0.9
    """momentum; for AdamW beta1 (paper, 5: 0.9)"""
    trust_coefficient: Annotated[float, Range(1e-9, 1)] = 0.001
    """`lars`: norm of a layer's update at learning rate 1, as a fraction of the norm of its weights"""
    weight_decay: Annotated[float, Range(0, 100)] = 1.0
    """weight decay per step, multiplied by the learning rate (paper, 5: 0.0005)"""
    fc_weight_decay: Annotated[float, Range(-1, 100)] = -1.0
    """weight decay of fully connected layers; negative: weight_decay"""
    layer_weight_decay: str = ""
    """weight decay of single layers: "conv1=0,fc10=1"; overrides the two above (2012 code: wc)"""
    bias_weight_decay: bool = False
    """apply weight decay to biases too (paper: yes; 2012 code: no)"""
    clip_grad_norm: Annotated[float, Range(0, 1e9)] = 5.0
    """maximum norm of the gradient over all weights; 0: no clipping"""


@dataclass(frozen=True)
class ScheduleFields:
    """How long a run takes, and what changes from epoch to epoch."""

    epochs: Annotated[int, Range(0, 1_000_000)] = 44
    """passes over the training split; 0: by the number of training images, fewer where there are more of them"""
    schedule: ScheduleName = "cosine"
    """learning rate after the warm-up"""
    warmup_epochs: Annotated[float, Range(0, 1_000_000)] = 1.0
    """epochs in which the learning rate rises linearly from 0 to its peak"""
    schedule_bias_lr: bool = True
    """the schedule lowers the learning rate of biases too (2012 code: no)"""
    lr_milestones: tuple[int, ...] = ()
    """`multistep`: epochs from which the learning rate is divided by 10"""
    layer_lr_milestones: str = ""
    """epoch from which the learning rate of a layer is divided by 10: "conv1.weight=67"."""
    lr_patience: Annotated[int, Range(1, 1_000_000)] = 5
    """`plateau`: epochs without a lower validation error before the learning rate is divided by 10"""
    max_lr_drops: Annotated[int, Range(0, 20)] = 3
    """`plateau`: number of divisions by 10; the next plateau ends the run (paper, 5: 3)"""
    progressive_size: Annotated[int, Range(0, 4096)] = 128
    """height and width of the crops in the first epochs, pixels: faster; 0: full size in all epochs"""
    progressive_fraction: Fraction = 0.59
    """fraction of the epochs, from the first, with crops of progressive_size"""
    freeze: str = ""
    """layers that are not trained: "conv1", "conv1..conv5,fc6", "fc7.bias"; no momentum and no decay either"""
    freeze_from_epoch: Epoch = 0
    """epoch from which these layers are frozen (net 145: 72); 0: from the start"""
    stop_train_error: Fraction = 0.0
    """training error, a fraction, at or below which the run ends after an epoch; 0: never"""
    early_stop_fraction: Fraction = 0.0
    """the run ends after this fraction of its epochs, at full crop size, without a better validation; 0: never"""
    patience: Epoch = 0
    """epochs without a lower validation error after which the run ends; 0: never"""
    select_weights: Literal["best", "best-loss", "last"] = "best"
    """weights of the bundle: those with the lowest validation error | with the lowest validation loss | the last"""


@dataclass(frozen=True)
class RegularizationFields:
    """Dropout, label smoothing, class weights and averaged weights (EMA)."""

    dropout: Annotated[float, Range(0, 0.99)] = 0.4
    """probability that an output of fc6 or fc7 is set to 0 (paper, 4.2: 0.5)"""
    label_smoothing: Annotated[float, Range(0, 0.99)] = 0.1
    """fraction of the target that is spread over all classes"""
    class_weights: Literal["none", "balanced"] = "none"
    """weight of an image in the loss: equal | by the inverse frequency of its class, 1 on average"""
    ema_decay: Annotated[float, Range(0, 0.99999)] = 0.998
    """decay per step of the exponential moving average of the weights, which is validated and kept; 0: no average"""


@dataclass(frozen=True)
class RuntimeFields:
    """Seed, precision, compilation and checkpoints."""

    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """seed of initial weights, order, crops, dropout and splits"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """number format of matrix products; auto: bf16 if the processor multiplies it faster"""
    convolution: Literal["auto", "plain", "winograd"] = "auto"
    """convolution algorithm; auto: Winograd (fewer multiplications) if the kernel is compiled and faster"""
    compile: bool = False
    """compile the network with torch.compile; on a GPU its steps become CUDA graphs, for small batches"""
    checkpoint_every: str = "auto"
    """interval between checkpoints: 5min, 500steps, 1epoch; auto: after an epoch, if a minute has passed since the last
    one; there is always one at the end"""


GROUPS: dict[str, type] = {
    "data": DataFields,
    "model": ModelFields,
    "augmentation": AugmentationFields,
    "optimizer": OptimizerFields,
    "schedule": ScheduleFields,
    "regularization": RegularizationFields,
    "runtime": RuntimeFields,
}
