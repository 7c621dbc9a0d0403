"""The named recipes: each number beside the place where it is told, so that neither can change without the other.

What a recipe does not tell is the default of :class:`Recipe`, which is ``modern``'s.
"""

from typing import Any, NamedTuple

from alexnet.errors import RecipeError, did_you_mean
from alexnet.recipe.config import Recipe

Told = dict[str, tuple[Any, str]]  # field -> its value, and the source of that


class _Named(NamedTuple):
    about: str
    told: Told


def _all(source: str, **values: Any) -> Told:
    """Values that are told in one place."""
    return {field: (value, source) for field, value in values.items()}


_LATER = "not in use in 2012"
_BEFORE_MODERN = _all(
    _LATER,
    color_jitter=0.0,
    random_erase_prob=0.0,
    mixup_prob=0.0,
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
_FIXED = _all("the schedule is fixed, so nothing is chosen and all images train", validation=0.0, select_weights="last")
_SINGLE = _all("2012: single-precision floats", precision="fp32")

PAPER: Told = (
    _BEFORE_MODERN
    | _SINGLE
    | _all("paper, 3", model="alexnet")
    | _all("paper, 2", stored_size=256, fit="crop", mean="image")
    | _all("paper, 4.1", crop="random", hflip=0.5)
    | _all("paper, 4.1: 0.1; × standard deviations as the 2012 code, not × eigenvalues as printed", pca_noise_std=0.1)
    | _all("paper, 4.1: 2048 crops, 32 × 32 × 2", far_edge=False)
    | _all("paper, 4.1: of each image", crop_group_size=1)
    | _all("paper, 4.1: no end is told", pca_noise_until_epoch=0)
    | _all("paper, 4.1: nothing of the kind is told", pca_noise_rescale=False)
    | _all("paper, 4.2", dropout=0.5)
    | _all("paper, 5", initialization="paper", batch_size=128, optimizer="paper", lr=0.01, momentum=0.9)
    | _all("paper, 5", weight_decay=0.0005, schedule="plateau", lr_milestones=(), max_lr_drops=3)
    | _all("paper, 5: roughly 90 cycles", epochs=90)
    | _all("paper, 5: one rate for all layers", bias_lr_mult=1.0, schedule_bias_lr=True, layer_lr_milestones="")
    | _all("paper, 5: one rule for all", bias_weight_decay=True)
    | _all("paper, 5: every layer learns to the end", freeze="", freeze_from_epoch=0)
    | _all("paper, 5: the validation error is watched", validation=0.1, select_weights="last")
)

_NET, _PARAMS, _PROVIDER = "2012 code, layers-145", "2012 code, layer-params-145", "2012 code, its data provider"
CODE2012: Told = (
    PAPER
    | _FIXED
    | _all(_NET, model="alexnet_2012")
    | _all(f"{_NET}: 0.01, conv3 to conv5 0.03", initialization="own")
    | _all(f"{_PROVIDER}: 2178 crops, 33 × 33 × 2", far_edge=True)
    | _all(_PROVIDER, crop_group_size=32, pca_noise_rescale=True, mean="center")
    | _all(f"{_PROVIDER}: 0.1 × standard deviations", pca_noise_std=0.1)
    | _all(_PARAMS, bias_lr_mult=2.0, bias_weight_decay=False)
    | _all(f"{_PARAMS}: epsB stays", schedule_bias_lr=False)
    | _all(
        "2012 code, net 145 as logged",
        epochs=91,
        schedule="multistep",
        lr_milestones=(25, 51, 79),
        pca_noise_until_epoch=67,
    )
    | _all("2012 code, net 145 as logged: epsW 0.0001 to 0.00001 on conv1", layer_lr_milestones="conv1.weight=67")
    | _all("2012 code, net 145 as logged: a rate of 0", freeze="conv1", freeze_from_epoch=72)
)


def _caffe(folder: str, model: str, start: str) -> Told:
    net, solver = f"Caffe models/{folder}/train_val.prototxt", f"Caffe models/{folder}/solver.prototxt"
    return (
        CODE2012
        | _all(net, model=model, batch_size=256, crop="random", hflip=0.5, bias_lr_mult=2.0, bias_weight_decay=False)
        | _all(
            net,
            dropout=0.5,
            pca_noise_std=0.0,
            pca_noise_until_epoch=0,
            pca_noise_rescale=False,
            freeze="",
            freeze_from_epoch=0,
        )
        | _all(net, layer_lr_milestones="")
        | _all(f"{net}: {start}", initialization="own")
        | _all(f"{net}: a mean file, at the crop's own place", mean="image")
        | _all("Caffe, its data transformer", far_edge=True, crop_group_size=1)
        | _all("Caffe examples/imagenet: RESIZE to 256×256", stored_size=256, fit="squash")
        | _all(solver, lr=0.01, momentum=0.9, weight_decay=0.0005, schedule="multistep")
        | _all(f"{solver}: 450,000 steps, ÷10 every 100,000", epochs=90, lr_milestones=(20, 40, 60, 80))
        | _all("Caffe, its SGD solver: the velocity holds the rate", optimizer="paper", schedule_bias_lr=True)
    )


CAFFE = _caffe("bvlc_alexnet", "alexnet_caffe", "0.01, fc6 and fc7 0.005, biases 0.1")
CAFFENET = _caffe("bvlc_reference_caffenet", "caffenet", "0.01, fc6 and fc7 0.005, biases 1")

_REFERENCES = "torchvision references/classification"
OWT: Told = (
    _BEFORE_MODERN
    | _FIXED
    | _SINGLE
    | _all("torchvision models/alexnet.py", model="alexnet_owt", initialization="own", dropout=0.5)
    | _all(f"{_REFERENCES}, presets: short side 256, center 224", stored_size=256, fit="crop")
    | _all(f"{_REFERENCES}, presets", crop="resized", min_crop_scale=0.08, hflip=0.5, pca_noise_std=0.0, mean="channel")
    | _all(f"{_REFERENCES}, presets (there ImageNet's constants)", divide_std=True)
    | _all(_REFERENCES, epochs=90, batch_size=256, optimizer="sgd", lr=0.01, momentum=0.9)
    | _all(_REFERENCES, weight_decay=0.0001, bias_weight_decay=True, bias_lr_mult=1.0, schedule_bias_lr=True)
    | _all(f"{_REFERENCES}: every 30 epochs", schedule="multistep", lr_milestones=(30, 60))
    | _all(
        _REFERENCES, freeze="", freeze_from_epoch=0, pca_noise_until_epoch=0, pca_noise_rescale=False, crop_group_size=1
    )
)


def _cifar(name: str, model: str = "", **more: Any) -> Told:
    params, method = f"layer-params-{name}.cfg", "cuda-convnet, Methodology"
    return (
        _BEFORE_MODERN
        | _FIXED
        | _SINGLE
        | _all(f"layers-{name}.cfg", model=model, initialization="own", dropout=0.0)
        | _all("cuda-convnet, its CIFAR data provider", stored_size=32, crop="center", hflip=0.0, pca_noise_std=0.0)
        | _all("cuda-convnet, its CIFAR data provider", mean="center", fit="crop")
        | _all(params, optimizer="paper", batch_size=128, lr=0.001, momentum=0.9, weight_decay=0.004)
        | _all(params, bias_lr_mult=2.0, bias_weight_decay=False)
        | _all(f"{method}: the epsW parameters are reduced", schedule_bias_lr=False, schedule="multistep")
        | _all(f"{method}: ÷10 for 10 epochs, twice", epochs=140, lr_milestones=(120, 130))
        | _all(params, **more)
    )


_CROPPED = _all(
    "cuda-convnet, its cropped CIFAR provider: border 4",
    image_size=24,
    crop="random",
    hflip=0.5,
    far_edge=True,
    crop_group_size=1,
)
_JOINING = "cuda-convnet, Methodology: four training batches, then all five"
_LOCAL = _CROPPED | _all(_JOINING, validation=0.2)
CIFAR: dict[str, _Named] = {
    "cifar_80sec": _Named(
        "The 2012 CIFAR-10 net of 80 seconds, 26 % error.",
        _cifar("80sec", "cifar_80sec", fc_weight_decay=0.03)
        | _all("none is published; 8 + 2 as in Caffe's cifar10_quick", epochs=10, lr_milestones=(8,)),
    ),
    "cifar_18pct": _Named(
        "The 2012 CIFAR-10 net layers-18pct, 18 % error: 120, 10 and 10 epochs on all images, none of them changed.",
        _cifar("18pct", "cifar_18pct", fc_weight_decay=1.0),
    ),
    "cifar_19pct": _Named(
        "The 2012 CIFAR-10 net layers-19pct, 19 % error: 18pct without its norm.",
        _cifar("19pct", "cifar_19pct", fc_weight_decay=3.0),
    ),
    "cifar_19pct_translated": _Named(
        "The 2012 CIFAR-10 net layers-19pct on 24-pixel crops and mirrors, without decay, 14.2 % error.",
        _cifar("19pct", "cifar_19pct")
        | _CROPPED
        | _all("cuda-convnet: no decay", weight_decay=0.0, fc_weight_decay=-1.0),
    ),
    "cifar_13pct": _Named(
        "The 2012 CIFAR-10 net layers-conv-local-13pct, 13 % error: 24-pixel crops and mirrors, test with 9 crops.",
        _cifar("conv-local-13pct", "cifar_13pct", layer_weight_decay="conv1=0,conv2=0")
        | _LOCAL
        | _all(f"{_JOINING}: 100, 40, 10, 10", epochs=160, train_on_val_from_epoch=100, lr_milestones=(140, 150)),
    ),
    "cifar_11pct": _Named(
        "The CIFAR-10 net layers-conv-local-11pct, 11 % error: 13pct with norm across channels, test with 9 crops.",
        _cifar("conv-local-11pct", "cifar_11pct", layer_weight_decay="conv1=0,conv2=0", fc_weight_decay=0.01)
        | _LOCAL
        | _all(f"{_JOINING}: 350, 150, 10, 10", epochs=520, train_on_val_from_epoch=350, lr_milestones=(500, 510)),
    ),
}

_LARS = "You, Gitman, Ginsburg 2017, there with batch norm"
LARGE_BATCH: Told = PAPER | _all(
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

_OURS = "this project, docs/log.md"
DIGITS = _all(
    _OURS,
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
LENET5 = _all(
    _OURS,
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
) | _all("LeCun et al. 1998", model="lenet5", initialization="own", stored_size=32)

_THEIRS = "the layer file's own parameter file says it"
LAYER_FILE: Told = (
    CODE2012
    | _all(
        "2012 code, its data provider", validation=0.1, crop_group_size=1, pca_noise_std=0.0, pca_noise_until_epoch=0
    )
    | _all("a layer file's image size varies", pca_noise_rescale=False, epochs=90)
    | _all(_THEIRS, model="layers", initialization="own", dropout=0.0, lr=1.0, bias_lr_mult=1.0, momentum=0.0)
    | _all(
        _THEIRS,
        weight_decay=0.0,
        schedule_bias_lr=True,
        schedule="constant",
        lr_milestones=(),
        freeze="",
        freeze_from_epoch=0,
    )
    | _all(_THEIRS, layer_lr_milestones="")
)
# What the files of ``layer_file`` say themselves, so that a recipe's number could have no effect.
LAYER_FILE_FIELDS = (
    "model",
    "initialization",
    "dropout",
    "mixup_prob",
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

_NAMED: dict[str, _Named] = {
    "modern": _Named("What makes an AlexNet learn best from a few thousand images of one's own (docs/log.md).", {}),
    "paper": _Named(
        "The training of the 2012 paper, section by section; where its text and its code differ, its text.", PAPER
    ),
    "code2012": _Named("The training of the 2012 code's net 145, which gave the paper's results.", CODE2012),
    "caffe": _Named("Caffe's bvlc_alexnet of 2014.", CAFFE),
    "caffenet": _Named("Caffe's bvlc_reference_caffenet of 2014: pooling before norm.", CAFFENET),
    "owt": _Named("torchvision's alexnet, the \"one weird trick\" network of 2014, by torchvision's recipe.", OWT),
    "one-tower": _Named(
        "The paper's comparison with one tower, net 145-half, by the training of net 145.",
        CODE2012 | _all("2012 code, layers-145-half", model="alexnet_half", initialization="2012"),
    ),
    "large_batch": _Named(
        "The paper's network and crops in batches of a thousand: LARS, warm-up, (1 − t)².", LARGE_BATCH
    ),
    "no_dropout": _Named("The paper's training without dropout.", PAPER | _all("paper, 4.2, undone", dropout=0.0)),
    "no_augmentation": _Named(
        "The paper's training on center crops: no crops, no mirrors, no color noise.",
        PAPER | _all("paper, 4.1, undone", crop="center", hflip=0.0, pca_noise_std=0.0),
    ),
    "no_noise": _Named(
        "The paper's training without color noise.", PAPER | _all("paper, 4.1, undone", pca_noise_std=0.0)
    ),
    "layer_file": _Named(
        "For layer files of 2012, which bring their own rates, momenta, decay, schedules, dropout and cost.", LAYER_FILE
    ),
    **CIFAR,
    "digits": _Named(
        "modern for handwritten digits in minutes: four epochs at full size, never mirrored, no color noise.", DIGITS
    ),
    "lenet5": _Named("LeNet-5 on handwritten digits: the whole image, gray, at 32 pixels (LeCun et al. 1998).", LENET5),
}


def list_recipes() -> list[str]:
    """Names of all recipes."""
    return list(_NAMED)


def describe(name: str) -> str:
    """One line on what a recipe is."""
    return _find(name).about


def get_recipe(name: str) -> Recipe:
    """The recipe of that name. An unknown name raises :class:`RecipeError` with the nearest right one."""
    return Recipe(recipe=name).replace(**{field: value for field, (value, _) in _find(name).told.items()})


def source(name: str, field: str) -> str:
    """Where a named recipe's value of a field is told. Raises :class:`RecipeError` for a name that is none."""
    reported = _find(name).told
    return reported[field][1] if field in reported else _OURS


def recipe_for(data: str, model: str = "") -> Recipe:
    """The recipe for people who name none: by the network where it has a recipe of its own, else by the data."""
    if model == "lenet5" or model in CIFAR:
        return get_recipe(model)
    return get_recipe("digits" if data == "digits" else "modern")


def _find(name: str) -> _Named:
    if name not in _NAMED:
        raise RecipeError(f"unknown recipe {name!r}. {did_you_mean(name, _NAMED)}")
    return _NAMED[name]
