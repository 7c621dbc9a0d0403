"""The registry of networks: name -> builder, description, source and input size.

:func:`~alexnet.models.create_model`, ``alexnet models``, ``--model`` and docs/models.md take their names from here. To
add a network, write a function that builds it and add an entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from alexnet.errors import ModelError, did_you_mean
from alexnet.models import alexnet, alexnet_variants, cifar, comparisons, lenet, small, timm_models, torchvision_models
from alexnet.models.network import Network, NormalInit

Initializations = Mapping[str, Mapping[str, NormalInit]]


@dataclass(frozen=True)
class Model:
    """One network."""

    build: Callable[..., Network]
    """builds it with ``num_classes``, ``in_channels`` and ``image_size``, which have defaults"""
    description: str
    source: str
    """the paper, code or file that defines it"""
    image_size: int
    """default size of its square input, pixels"""
    initializations: Initializations = field(default_factory=dict)
    """initializations to choose from: name -> layer -> distribution; empty: only the network's own"""
    recipe: Mapping[str, str | float | bool] = field(default_factory=dict)
    """recipe fields that follow from the network, such as the scale of its input"""


_PAPER = "Krizhevsky, Sutskever, Hinton, NIPS 2012"
_CIFAR = "cuda-convnet"
_LECUN = "LeCun, Bottou, Bengio, Haffner, Proc. IEEE 1998"
_PAPER_OR_2012: Initializations = {"paper": alexnet.PAPER, "2012": alexnet.CODE_2012}
_TANH: Initializations = {"paper": comparisons.TANH_PAPER, "2012": comparisons.TANH_2012}
_UNIT_VARIANCE = {"divide_std": True}  # the network expects pixels divided by their standard deviation


def _scaled(name: str, scale: small.Scale, stored_size: int, image_size: int, num_classes: int) -> dict[str, Model]:
    """The paper's network scaled to images of ``stored_size`` pixels, and its variants for the claims."""
    variants: dict[str, tuple[dict[str, Any], str, str]] = {
        "": (
            {},
            f"the paper's eight layers and two towers for {stored_size}-pixel images",
            "for `alexnet study claims`",
        ),
        "_half": (
            {"widths": scale.half_widths, "towers": 1},
            f"{name} as one tower with half of the kernels",
            "paper, section 3.2",
        ),
        "_single": (
            {"widths": scale.single_widths, "towers": 1},
            f"{name} as one tower with the same number of multiply-adds",
            "paper, section 3.5",
        ),
        "_no_norm": ({"norm": False}, f"{name} without LRN", "paper, section 3.3"),
        "_no_overlap": ({"overlap": False}, f"{name} with non-overlapping 2×2 pooling", "paper, section 3.4"),
        "_tanh": ({"nonlinearity": "tanh"}, f"{name} with tanh in place of ReLU, all biases 0", "paper, section 3.1"),
        "_sigmoid": (
            {"nonlinearity": "sigmoid"},
            f"{name} with the logistic sigmoid in place of ReLU, all biases 0",
            "for `alexnet study claims`",
        ),
    }
    defaults: dict[str, Any] = {"scale": scale, "num_classes": num_classes, "image_size": image_size}
    models = {
        name + suffix: Model(
            partial(small.scaled_alexnet, name + suffix, **defaults, **changes), description, source, image_size
        )
        for suffix, (changes, description, source) in variants.items()
    }
    return models | {
        f"{name}_no_conv{number}": Model(
            partial(comparisons.without_convolution, models[name].build, number, f"{name}_no_conv{number}"),
            f"{name} without conv{number}",
            "paper, section 7",
            image_size,
        )
        for number in (3, 4, 5)
    }


MODELS: dict[str, Model] = {
    "alexnet": Model(
        alexnet.alexnet,
        "the paper's AlexNet: two towers, 96-256-384-384-256 feature maps",
        _PAPER,
        224,
        _PAPER_OR_2012,
    ),
    "alexnet_2012": Model(
        alexnet.alexnet_2012,
        "the AlexNet of the 2012 code: LRN before the first ReLU, spatial norm in layer 2",
        "net 145 of the 2012 code",
        224,
        _PAPER_OR_2012,
    ),
    "alexnet_single": Model(
        alexnet.alexnet_single,
        "the AlexNet of textbooks: the paper's widths in one tower, no groups",
        _PAPER,
        227,
        _PAPER_OR_2012,
    ),
    "alexnet_owt": Model(
        alexnet_variants.alexnet_owt,
        "torchvision's alexnet: one tower, 64-192-384-256-256 feature maps, no LRN",
        "One weird trick, Krizhevsky 2014",
        224,
    ),
    "alexnet_caffe": Model(
        alexnet_variants.alexnet_caffe,
        "Caffe's AlexNet: groups, LRN over all channels, k = 1",
        "bvlc_alexnet, BVLC 2014",
        227,
    ),
    "caffenet": Model(
        alexnet_variants.caffenet,
        "Caffe's AlexNet with pooling before LRN",
        "bvlc_reference_caffenet, BVLC 2013",
        227,
    ),
    "alexnet_half": Model(
        comparisons.alexnet_half,
        "the paper's one-GPU comparison: one tower, 48-128-192-192-256 feature maps",
        "paper, section 3.2; net 145-half of the 2012 code",
        224,
        _PAPER_OR_2012,
    ),
    "alexnet_no_norm": Model(
        comparisons.alexnet_no_norm,
        "alexnet without LRN",
        "paper, section 3.3; net 148 of the 2012 code",
        224,
        _PAPER_OR_2012,
    ),
    "alexnet_no_overlap": Model(
        comparisons.alexnet_no_overlap,
        "alexnet with non-overlapping 2×2 pooling",
        "paper, section 3.4; net 147 of the 2012 code",
        224,
        _PAPER_OR_2012,
    ),
    "alexnet_separate": Model(
        comparisons.alexnet_separate,
        "alexnet with towers that are connected in fc8 only",
        "net 150 of the 2012 code",
        224,
        _PAPER_OR_2012,
    ),
    "alexnet_tanh": Model(
        comparisons.alexnet_tanh,
        "alexnet with tanh in place of ReLU, all biases 0",
        "paper, section 3.1",
        224,
        _TANH,
    ),
    **{
        f"alexnet_no_conv{number}": Model(
            partial(comparisons.without_convolution, alexnet.alexnet, number, f"alexnet_no_conv{number}"),
            f"alexnet without conv{number}",
            "paper, section 7",
            224,
            comparisons.NO_CONV_INITIALIZATIONS[number],
        )
        for number in (3, 4, 5)
    },
    **_scaled("alexnet_small", small.SMALL, 32, 24, 10),
    **_scaled("alexnet_medium", small.MEDIUM, 64, 56, 200),
    "figure1_relu": Model(small.figure1, "a four-layer network for CIFAR-10 with ReLU", "paper, Figure 1", 32),
    "figure1_tanh": Model(
        partial(small.figure1, nonlinearity="tanh"),
        "figure1_relu with tanh in place of ReLU",
        "paper, Figure 1",
        32,
    ),
    "figure1_sigmoid": Model(
        partial(small.figure1, nonlinearity="sigmoid"),
        "figure1_relu with the logistic sigmoid in place of ReLU",
        "for `alexnet study claims`",
        32,
    ),
    "figure1_relu_wide": Model(
        partial(small.figure1, wide=True),
        "figure1_relu with initial weights from N(0, 1/fan-in)",
        "paper, Figure 1; LeCun et al. 1998",
        32,
        recipe={"divide": 64.0},
    ),
    "figure1_tanh_wide": Model(
        partial(small.figure1, nonlinearity="tanh", wide=True),
        "figure1_tanh with initial weights from N(0, 1/fan-in)",
        "paper, Figure 1; LeCun et al. 1998",
        32,
        recipe={"divide": 64.0},
    ),
    "cifar_80sec": Model(
        cifar.cifar_80sec, "CIFAR-10, 26 % test error after 80 seconds", f"layers-80sec.cfg of {_CIFAR}", 32
    ),
    "cifar_19pct": Model(
        cifar.cifar_19pct, "CIFAR-10, 19 % test error: cifar_18pct without norms", f"layers-19pct.cfg of {_CIFAR}", 32
    ),
    "cifar_18pct": Model(cifar.cifar_18pct, "CIFAR-10, 18 % test error", f"layers-18pct.cfg of {_CIFAR}", 32),
    "cifar_13pct": Model(
        cifar.cifar_13pct,
        "CIFAR-10, 13 % test error: locally connected layers",
        f"layers-conv-local-13pct.cfg of {_CIFAR}",
        24,
    ),
    "cifar_11pct": Model(
        cifar.cifar_11pct,
        "CIFAR-10, 11 % test error: locally connected layers and LRN",
        "conv-local-11pct of cuda-convnet2",
        24,
    ),
    "lenet5": Model(lenet.lenet5, "LeNet-5 for gray digits, with a linear output layer", _LECUN, 32),
    "lenet5_shrunk": Model(
        lenet.lenet5_shrunk, "LeNet-5 on images averaged to 32 pixels", _LECUN, 224, recipe=_UNIT_VARIANCE
    ),
    **{
        comparisons.model_name(depth, shortcut): Model(
            partial(comparisons.residual_network, depth, shortcut, comparisons.model_name(depth, shortcut)),
            f"{depth} layers for small images, with{'' if shortcut else 'out'} shortcuts",
            "He et al. 2015, section 4.2",
            32,
            recipe=_UNIT_VARIANCE,
        )
        for shortcut in (False, True)
        for depth in comparisons.DEPTHS
    },
}
"""This project's networks by name."""

TORCHVISION_MODELS: dict[str, Model] = {
    name: Model(
        partial(torchvision_models.build, name), spec.description, spec.source, spec.image_size, recipe=_UNIT_VARIANCE
    )
    for name, spec in torchvision_models.SPECS.items()
}
"""torchvision's networks by name, for comparisons; torchvision is imported when one of them is built."""


def find(name: str) -> Model:
    """The entry of the network ``name``, also ``timm/NAME``. Raises :class:`ModelError` for an unknown name."""
    if name.startswith(timm_models.PREFIX):
        size = timm_models.image_size(name)
        build = partial(timm_models.build, name, image_size=size)
        return Model(build, "a backbone of timm with a fully connected layer", "timm", size, recipe=_UNIT_VARIANCE)
    models = MODELS | TORCHVISION_MODELS
    if name not in models:
        names = [*sorted(MODELS), *sorted(TORCHVISION_MODELS)]
        raise ModelError(f"unknown model {name!r}. {did_you_mean(name, names, 0.4)}")
    return models[name]
