"""The named recipes (presets), the comparison of two, and recipes as TOML files.

A preset is a dict of fields, made of parts by ``|``: a later part overrides an earlier one. Fields that a preset does
not set have the defaults of :class:`Recipe`, which are those of ``modern``. ``_PRESETS`` below lists all by name.

A run writes one. ``alexnet train --recipe FILE.toml`` and ``alexnet.train(recipe="FILE.toml")`` start from one.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from alexnet.errors import RecipeError, did_you_mean
from alexnet.recipe.config import Recipe, check_value, group_of, help_text
from alexnet.recipe.fields import GROUPS
from alexnet.schema import parse_toml, read_toml_text

Values = dict[str, tuple[Any, str]]  # field -> (value, source)


class Preset(NamedTuple):
    """A named recipe: one line of description, and the values that differ from the defaults or have a source."""

    description: str
    values: Values


def _values(source: str, **values: Any) -> Values:
    """Values that have one source."""
    return {field: (value, source) for field, value in values.items()}


_LATER = "not in use in 2012"
_BEFORE_MODERN = _values(
    _LATER,
    color_jitter=0.0,
    random_erase_prob=0.0,
    mixup_prob=0.0,
    cutmix_prob=0.0,
    randaugment_ops=0,
    label_smoothing=0.0,
    ema_decay=0.0,
    progressive_size=0,
    clip_grad_norm=0.0,
    warmup_epochs=0.0,
    lr_base_size=0,
    divide=1.0,
    divide_std=False,
    layer_lr_mult="",
    layer_weight_decay="",
    fc_weight_decay=-1.0,
    train_on_val_from_epoch=0,
    layer_lr_milestones="",
)
_FIXED = _values(
    "the schedule is fixed: no validation split is needed, all images are trained on",
    validation=0.0,
    select_weights="last",
)
_SINGLE = _values("2012: single-precision floats", precision="fp32")

PAPER: Values = (
    _BEFORE_MODERN
    | _SINGLE
    | _values("paper, 3", model="alexnet")
    | _values("paper, 2", stored_size=256, fit="crop", mean="image")
    | _values("paper, 4.1", crop="random", hflip=0.5)
    | _values(
        "paper, 4.1: 0.1; × standard deviations as the 2012 code, not × eigenvalues as printed", pca_noise_std=0.1
    )
    | _values("paper, 4.1: 2048 crops, 32 × 32 × 2", far_edge=False)
    | _values("paper, 4.1: of each image", crop_group_size=1)
    | _values("paper, 4.1: no end is stated", pca_noise_until_epoch=0)
    | _values("paper, 4.1: not stated", pca_noise_rescale=False)
    | _values("paper, 4.2", dropout=0.5)
    | _values("paper, 5", initialization="paper", batch_size=128, optimizer="paper", lr=0.01, momentum=0.9)
    | _values("paper, 5", weight_decay=0.0005, schedule="plateau", lr_milestones=(), max_lr_drops=3)
    | _values("paper, 5: roughly 90 cycles", epochs=90)
    | _values("paper, 5: one rate for all layers", bias_lr_mult=1.0, schedule_bias_lr=True, layer_lr_milestones="")
    | _values("paper, 5: one rule for all", bias_weight_decay=True)
    | _values("paper, 5: every layer is trained to the end", freeze="", freeze_from_epoch=0)
    | _values("paper, 5: the validation error is watched", validation=0.1, select_weights="last")
)

_NET, _PARAMS, _PROVIDER = "2012 code, layers-145", "2012 code, layer-params-145", "2012 code, its data provider"
CODE2012: Values = (
    PAPER
    | _FIXED
    | _values(_NET, model="alexnet_2012")
    | _values(f"{_NET}: 0.01, conv3 to conv5 0.03", initialization="own")
    | _values(f"{_PROVIDER}: 2178 crops, 33 × 33 × 2", far_edge=True)
    | _values(_PROVIDER, crop_group_size=32, pca_noise_rescale=True, mean="center")
    | _values(f"{_PROVIDER}: 0.1 × standard deviations", pca_noise_std=0.1)
    | _values(_PARAMS, bias_lr_mult=2.0, bias_weight_decay=False)
    | _values(f"{_PARAMS}: epsB stays", schedule_bias_lr=False)
    | _values(
        "2012 code, net 145 as logged",
        epochs=91,
        schedule="multistep",
        lr_milestones=(25, 51, 79),
        pca_noise_until_epoch=67,
    )
    | _values("2012 code, net 145 as logged: epsW 0.0001 to 0.00001 on conv1", layer_lr_milestones="conv1.weight=67")
    | _values("2012 code, net 145 as logged: a rate of 0", freeze="conv1", freeze_from_epoch=72)
)


def _caffe(folder: str, model: str, start: str) -> Values:
    net, solver = f"Caffe models/{folder}/train_val.prototxt", f"Caffe models/{folder}/solver.prototxt"
    return (
        CODE2012
        | _values(net, model=model, batch_size=256, crop="random", hflip=0.5, bias_lr_mult=2.0, bias_weight_decay=False)
        | _values(
            net,
            dropout=0.5,
            pca_noise_std=0.0,
            pca_noise_until_epoch=0,
            pca_noise_rescale=False,
            freeze="",
            freeze_from_epoch=0,
        )
        | _values(net, layer_lr_milestones="")
        | _values(f"{net}: {start}", initialization="own")
        | _values(f"{net}: a mean file, at the crop's own place", mean="image")
        | _values("Caffe, its data transformer", far_edge=True, crop_group_size=1)
        | _values("Caffe examples/imagenet: RESIZE to 256×256", stored_size=256, fit="squash")
        | _values(solver, lr=0.01, momentum=0.9, weight_decay=0.0005, schedule="multistep")
        | _values(f"{solver}: 450,000 steps, ÷10 every 100,000", epochs=90, lr_milestones=(20, 40, 60, 80))
        | _values("Caffe, its SGD solver: the velocity holds the rate", optimizer="paper", schedule_bias_lr=True)
    )


CAFFE = _caffe("bvlc_alexnet", "alexnet_caffe", "0.01, fc6 and fc7 0.005, biases 0.1")
CAFFENET = _caffe("bvlc_reference_caffenet", "caffenet", "0.01, fc6 and fc7 0.005, biases 1")

_REFERENCES = "torchvision references/classification"
OWT: Values = (
    _BEFORE_MODERN
    | _FIXED
    | _SINGLE
    | _values("torchvision models/alexnet.py", model="alexnet_owt", initialization="own", dropout=0.5)
    | _values(f"{_REFERENCES}, presets: short side 256, center 224", stored_size=256, fit="crop")
    | _values(
        f"{_REFERENCES}, presets", crop="resized", min_crop_scale=0.08, hflip=0.5, pca_noise_std=0.0, mean="channel"
    )
    | _values(f"{_REFERENCES}, presets (there ImageNet's constants)", divide_std=True)
    | _values(_REFERENCES, epochs=90, batch_size=256, optimizer="sgd", lr=0.01, momentum=0.9)
    | _values(_REFERENCES, weight_decay=0.0001, bias_weight_decay=True, bias_lr_mult=1.0, schedule_bias_lr=True)
    | _values(f"{_REFERENCES}: every 30 epochs", schedule="multistep", lr_milestones=(30, 60))
    | _values(
        _REFERENCES, freeze="", freeze_from_epoch=0, pca_noise_until_epoch=0, pca_noise_rescale=False, crop_group_size=1
    )
)


def _cifar(name: str, model: str = "", **more: Any) -> Values:
    params, method = f"layer-params-{name}.cfg", "cuda-convnet, Methodology"
    return (
        _BEFORE_MODERN
        | _FIXED
        | _SINGLE
        | _values(f"layers-{name}.cfg", model=model, initialization="own", dropout=0.0)
        | _values("cuda-convnet, its CIFAR data provider", stored_size=32, crop="center", hflip=0.0, pca_noise_std=0.0)
        | _values("cuda-convnet, its CIFAR data provider", mean="center", fit="crop")
        | _values(params, optimizer="paper", batch_size=128, lr=0.001, momentum=0.9, weight_decay=0.004)
        | _values(params, bias_lr_mult=2.0, bias_weight_decay=False)
        | _values(f"{method}: the epsW parameters are reduced", schedule_bias_lr=False, schedule="multistep")
        | _values(f"{method}: ÷10 for 10 epochs, twice", epochs=140, lr_milestones=(120, 130))
        | _values(params, **more)
    )


_CROPPED = _values(
    "cuda-convnet, its cropped CIFAR provider: border 4",
    image_size=24,
    crop="random",
    hflip=0.5,
    far_edge=True,
    crop_group_size=1,
)
_JOINING = "cuda-convnet, Methodology: four training batches, then all five"
_LOCAL = _CROPPED | _values(_JOINING, validation=0.2)
CIFAR: dict[str, Preset] = {
    "cifar_80sec": Preset(
        "The 2012 CIFAR-10 net of 80 seconds, 26 % error.",
        _cifar("80sec", "cifar_80sec", fc_weight_decay=0.03)
        | _values("none is published; 8 + 2 as in Caffe's cifar10_quick", epochs=10, lr_milestones=(8,)),
    ),
    "cifar_18pct": Preset(
        "The 2012 CIFAR-10 net layers-18pct, 18 % error: 120, 10 and 10 epochs without augmentation.",
        _cifar("18pct", "cifar_18pct", fc_weight_decay=1.0),
    ),
    "cifar_19pct": Preset(
        "The 2012 CIFAR-10 net layers-19pct, 19 % error: 18pct without normalization.",
        _cifar("19pct", "cifar_19pct", fc_weight_decay=3.0),
    ),
    "cifar_19pct_translated": Preset(
        "The 2012 CIFAR-10 net layers-19pct on 24-pixel crops and flips, without weight decay, 14.2 % error.",
        _cifar("19pct", "cifar_19pct")
        | _CROPPED
        | _values("cuda-convnet: no decay", weight_decay=0.0, fc_weight_decay=-1.0),
    ),
    "cifar_13pct": Preset(
        "The 2012 CIFAR-10 net layers-conv-local-13pct, 13 % error: 24-pixel crops and flips, evaluated with 9 crops.",
        _cifar("conv-local-13pct", "cifar_13pct", layer_weight_decay="conv1=0,conv2=0")
        | _LOCAL
        | _values(f"{_JOINING}: 100, 40, 10, 10", epochs=160, train_on_val_from_epoch=100, lr_milestones=(140, 150)),
    ),
    "cifar_11pct": Preset(
        "The 2012 CIFAR-10 net layers-conv-local-11pct, 11 % error: 13pct with normalization, evaluated with 9 crops.",
        _cifar("conv-local-11pct", "cifar_11pct", layer_weight_decay="conv1=0,conv2=0", fc_weight_decay=0.01)
        | _LOCAL
        | _values(f"{_JOINING}: 350, 150, 10, 10", epochs=520, train_on_val_from_epoch=350, lr_milestones=(500, 510)),
    ),
}

_LARS = "You, Gitman, Ginsburg 2017, there with batch norm"
LARGE_BATCH: Values = PAPER | _values(
    _LARS,
    optimizer="lars",
    batch_size=1024,
    lr=2.0,
    trust_coefficient=0.001,
    warmup_epochs=5.0,
    schedule="poly",
    epochs=100,
    weight_decay=0.0005,
    momentum=0.9,
)

_THIS_PROJECT = "this project, docs/log.md"
FINETUNE = _values(
    _THIS_PROJECT,
    epochs=0,
    fit_last_layer=True,
    first_layer_lr_mult=0.3,
    lr=0.00012,
    min_crop_scale=0.25,
    mixup_prob=0.5,
    cutmix_prob=0.25,
    dropout=0.5,
    early_stop_fraction=0.3,
    select_weights="best-loss",
    checkpoint_every="5min",
)
DIGITS = _values(
    _THIS_PROJECT,
    dropout=0.5,
    weight_decay=0.05,
    epochs=4,
    hflip=0.0,
    crop="random",
    pca_noise_std=0.0,
    color_jitter=0.0,
    mixup_prob=0.0,
    batch_size=32,
    progressive_size=0,
)
LENET5 = _values(
    _THIS_PROJECT,
    crop="center",
    hflip=0.0,
    pca_noise_std=0.0,
    color_jitter=0.0,
    mixup_prob=0.0,
    divide=80.0,
    optimizer="paper",
    epochs=20,
    batch_size=64,
    lr=0.1,
    weight_decay=0.0,
    progressive_size=0,
    label_smoothing=0.0,
    ema_decay=0.0,
    precision="fp32",
    dropout=0.0,
) | _values("LeCun et al. 1998", model="lenet5", initialization="own", stored_size=32)

_PARAMETER_FILE = "set by the parameter file"
LAYER_FILE: Values = (
    CODE2012
    | _values(
        "2012 code, its data provider", validation=0.1, crop_group_size=1, pca_noise_std=0.0, pca_noise_until_epoch=0
    )
    | _values("the image size depends on the layer file", pca_noise_rescale=False, epochs=90)
    | _values(
        _PARAMETER_FILE, model="layers", initialization="own", dropout=0.0, lr=1.0, bias_lr_mult=1.0, momentum=0.0
    )
    | _values(
        _PARAMETER_FILE,
        weight_decay=0.0,
        schedule_bias_lr=True,
        schedule="constant",
        lr_milestones=(),
        freeze="",
        freeze_from_epoch=0,
    )
    | _values(_PARAMETER_FILE, layer_lr_milestones="")
)
# Fields that a layer file and its parameter file replace: a value of the recipe would have no effect.
LAYER_FILE_FIELDS = (
    "model",
    "initialization",
    "dropout",
    "mixup_prob",
    "cutmix_prob",
    "optimizer",
    "lr",
    "bias_lr_mult",
    "schedule_bias_lr",
    "layer_lr_mult",
    "layer_lr_milestones",
    "momentum",
    "weight_decay",
    "fc_weight_decay",
    "layer_weight_decay",
    "bias_weight_decay",
    "schedule",
    "warmup_epochs",
    "lr_milestones",
    "lr_base_size",
    "trust_coefficient",
    "lr_patience",
    "max_lr_drops",
    "class_weights",
    "label_smoothing",
    "progressive_size",
    "progressive_fraction",
    "freeze",
    "freeze_from_epoch",
    "precision",
)

_PRESETS: dict[str, Preset] = {
    "modern": Preset(
        "The best training that was found for a few thousand images (docs/log.md); the default with random weights.", {}
    ),
    "finetune": Preset(
        "modern for fine-tuning pretrained weights: a fitted last layer, lower learning rates, stronger augmentation, "
        "early stopping, a number of epochs by the number of images; the default with pretrained weights.",
        FINETUNE,
    ),
    "paper": Preset("The training of the 2012 paper; where its text and its code differ, as in the text.", PAPER),
    "code2012": Preset("The training of net 145 of the 2012 code, which produced the results of the paper.", CODE2012),
    "caffe": Preset("Caffe's bvlc_alexnet of 2014.", CAFFE),
    "caffenet": Preset("Caffe's bvlc_reference_caffenet of 2013: pooling before normalization.", CAFFENET),
    "owt": Preset("torchvision's alexnet, the \"one weird trick\" network of 2014, by torchvision's recipe.", OWT),
    "one-tower": Preset(
        "The one-tower network that the paper compares with (net 145-half), trained as net 145.",
        CODE2012 | _values("2012 code, layers-145-half", model="alexnet_half", initialization="2012"),
    ),
    "large_batch": Preset(
        "The network and crops of the paper with batches of 1024: LARS, warm-up, poly schedule.", LARGE_BATCH
    ),
    "no_dropout": Preset(
        "The training of the paper without dropout.", PAPER | _values("paper, 4.2, undone", dropout=0.0)
    ),
    "no_augmentation": Preset(
        "The training of the paper on center crops: no random crops, flips or color noise.",
        PAPER | _values("paper, 4.1, undone", crop="center", hflip=0.0, pca_noise_std=0.0),
    ),
    "no_noise": Preset(
        "The training of the paper without color noise.", PAPER | _values("paper, 4.1, undone", pca_noise_std=0.0)
    ),
    "layer_file": Preset(
        "For cuda-convnet layer files, which set learning rates, momentum, decay, schedules, dropout and cost.",
        LAYER_FILE,
    ),
    **CIFAR,
    "digits": Preset(
        "modern for handwritten digits, in minutes: 4 epochs at full size, no flips, no color noise.", DIGITS
    ),
    "lenet5": Preset("LeNet-5 on handwritten digits: whole gray images of 32 pixels (LeCun et al. 1998).", LENET5),
}


def list_recipes() -> list[str]:
    """The names of all named recipes."""
    return list(_PRESETS)


def describe(name: str) -> str:
    """One line about a named recipe. Raises :class:`RecipeError` for an unknown name."""
    return _preset(name).description


def get_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises :class:`RecipeError` for an unknown name."""
    return Recipe(recipe=name).replace(**{field: value for field, (value, _) in _preset(name).values.items()})


def source(name: str, field: str) -> str:
    """The source of a named recipe's value of a field. Raises :class:`RecipeError` for an unknown name."""
    values = _preset(name).values
    return values[field][1] if field in values else _THIS_PROJECT


def recipe_for(data: str, model: str = "", *, finetune: bool = False) -> Recipe:
    """The recipe where none is named: that of the network if it has one, else the one that fits data and weights."""
    if model == "lenet5" or model in CIFAR:
        return get_recipe(model)
    if finetune:
        return get_recipe("finetune")
    return get_recipe("digits" if data == "digits" else "modern")


def _preset(name: str) -> Preset:
    if name not in _PRESETS:
        raise RecipeError(f"unknown recipe {name!r}. {did_you_mean(name, _PRESETS)}")
    return _PRESETS[name]


class Difference(NamedTuple):
    """A field in which two recipes differ: its two values, the sources of both, and the help text of the field."""

    field: str
    values: tuple[Any, Any]
    sources: tuple[str, str]
    help: str

    def to_dict(self) -> dict[str, Any]:
        """As values that JSON can hold, without the field's name."""
        return {"values": list(self.values), "sources": list(self.sources), "help": self.help}


def compare(a: str, b: str) -> list[Difference]:
    """The fields in which two named recipes differ. Raises :class:`RecipeError` for an unknown name."""
    first, second = get_recipe(a), get_recipe(b)
    return [
        Difference(name, (one, other), (source(a, name), source(b, name)), help_text()[name])
        for name in (field.name for field in dataclasses.fields(Recipe) if field.name != "recipe")
        if (one := getattr(first, name)) != (other := getattr(second, name))
    ]


def to_toml(recipe: Recipe) -> str:
    """The text of a recipe file. :func:`from_toml` is the inverse."""
    lines = ["# Hyperparameters of a run. To train with them: alexnet train DATA --recipe FILE.toml", ""]
    lines.append(_line(recipe, "recipe"))
    for group, fields in GROUPS.items():
        lines += ["", f"[{group}]", *(_line(recipe, field.name) for field in dataclasses.fields(fields))]
    return "\n".join(lines) + "\n"


def _line(recipe: Recipe, name: str) -> str:
    value = getattr(recipe, name)
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    return f"{name} = {text:<12} # {help_text()[name]}"


def from_toml(text: str, file: str = "recipe.toml") -> Recipe:
    """The recipe in the text of ``file``.

    Fields that the file does not set have the values of the named recipe that its key ``recipe`` names (by default
    ``modern``). Raises :class:`RecipeError` with the file and the key for an unknown key or a wrong value.
    """
    try:
        tables = parse_toml(text)
    except ValueError as error:
        raise RecipeError(f"{file} is not valid TOML: {error}", "", "compare it with a recipe.toml of a run") from error
    name = tables.pop("recipe", "modern")
    check_value("recipe", name, f"{file}: recipe")
    base = get_recipe(name) if name in list_recipes() else Recipe(recipe=name)
    values: dict[str, Any] = {}
    for group, table in tables.items():
        if not isinstance(table, dict) or group not in GROUPS:
            raise _unknown_key(file, group)
        for key, value in table.items():
            if group_of().get(key) != group:
                raise _unknown_key(file, f"{group}.{key}")
            values[key] = tuple(value) if isinstance(value, list) else value
            check_value(key, values[key], f"{file}: {group}.{key}")
    try:
        return base.replace(**values)
    except RecipeError as error:
        raise RecipeError(f"{file}: {error.what}", error.must, error.todo) from error


def _unknown_key(file: str, key: str) -> RecipeError:
    name = key.rpartition(".")[2]
    if name in group_of():
        hint = f"Did you mean '{group_of()[name]}.{name}'?"
    elif "." in key:
        known = [f"{group}.{field}" for field, group in group_of().items()]
        hint = did_you_mean(key, known, synonyms={"optimizer.learning_rate": "optimizer.lr"})
    else:
        hint = did_you_mean(key, ["recipe", *GROUPS])
    return RecipeError(f"{file}: unknown key {key!r}. {hint}")


def load_recipe(recipe: str | Path) -> Recipe:
    """The recipe of that name, or the one in a file (a path that ends in ``.toml``). Raises :class:`RecipeError`."""
    if isinstance(recipe, str) and not recipe.endswith(".toml"):
        return get_recipe(recipe)
    try:
        text = read_toml_text(Path(recipe))
    except (OSError, ValueError) as error:
        message = error.strerror if isinstance(error, OSError) else str(error)
        raise RecipeError(
            f"recipe file {recipe} cannot be read: {message}", "", "pass the recipe.toml of a run"
        ) from error
    return from_toml(text, str(recipe))
