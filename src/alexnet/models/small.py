"""The paper's networks for small images: eight layers scaled to CIFAR-10, and the four-layer net of its Figure 1.

``alexnet_small`` is the plan of section 3 with a quarter of the maps and an eighth of the hidden units, for 24-pixel
crops of 32-pixel images (Krizhevsky's CIFAR-10 nets cut the same). Its variants differ in one thing each, which is
what a claim of the paper is about. At 24 pixels every pooling meets an even map, so that windows of 2 and of 3 pixels
leave maps of the same side, as section 3.4 has it.

Weights are drawn from N(0, std²) with std = s·√(the paper's fan-in / this fan-in), s the 0.01 of section 5, and 0.03 in
conv3 to conv5 as in the 2012 code: sums start as wide as in the big network. With 0.01 itself they would vanish.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from alexnet.models.layers import Convolution, Dropout, Flatten, LocalResponseNorm, MaxPool
from alexnet.models.network import Network, NormalInit, usable_side

WIDTHS = (24, 64, 96, 96, 64)  # maps of conv1 to conv5: the paper's 96, 256, 384, 384, 256 by four
HALF = (12, 32, 48, 48, 64)  # half of the kernels in each but the last, as in the paper's one-GPU net (3.2)
EVEN = (20, 44, 72, 72, 64)  # one tower that multiplies and adds as often as the two do, within 1 %
HIDDEN = 512  # units of fc6 and fc7: the paper's 4096 by eight
FAN_INS = {  # of the paper's network, and the standard deviation that goes with it
    "conv1": (363, 0.01),
    "conv2": (1200, 0.01),
    "conv3": (2304, 0.03),
    "conv4": (1728, 0.03),
    "conv5": (1728, 0.03),
    "fc6": (9216, 0.01),
    "fc7": (4096, 0.01),
    "fc8": (4096, 0.01),
}
FIGURE1 = {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc4": 0.01}  # standard deviations of layers-18pct.cfg
POSITIVE = {"conv2", "conv4", "conv5", "fc6", "fc7"}  # whose biases are 1, to give ReLUs something to begin with (5)


def alexnet_small(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 24,
    *,
    name: str = "alexnet_small",
    widths: tuple[int, int, int, int, int] = WIDTHS,
    towers: int = 2,
    norm: bool = True,
    overlap: bool = True,
    tanh: bool = False,
) -> Network:
    """Eight learned layers for small images; each keyword leaves out one idea of the paper.

    ``towers`` 1 joins everything; without ``norm`` there is no response normalization; without ``overlap`` pooling
    windows are 2×2 at stride 2; ``tanh`` replaces the ReLUs, and the biases of 1 that serve them by 0.
    """
    word, act = _nonlinearity(tanh)
    pool = partial(MaxPool, 3 if overlap else 2, 2)
    one, two, *rest = widths
    layers: list[tuple[str, nn.Module]] = []
    for number, (maps, seen, groups) in enumerate([(one, in_channels, 1), (two, one, towers)], 1):
        layers += [(f"conv{number}", Convolution(seen, maps, 5, padding=2, groups=groups)), (f"{word}{number}", act())]
        layers += [(f"norm{number}", LocalResponseNorm(towers))] if norm else []
        layers += [(f"pool{number}", pool())]
    seen, groups = two, 1  # conv3 sees both towers, conv4 and conv5 their own
    for number, maps in enumerate(rest, 3):
        layers += [(f"conv{number}", Convolution(seen, maps, 3, padding=1, groups=groups)), (f"{word}{number}", act())]
        seen, groups = maps, towers
    layers.append(("pool5", pool()))
    side = usable_side(name, layers, image_size)  # 3 for 24 pixels
    layers += [
        ("flatten", Flatten(side)),
        ("fc6", nn.Linear(seen * side * side, HIDDEN)),
        (f"{word}6", act()),
        ("drop6", Dropout(0.5)),
        ("fc7", nn.Linear(HIDDEN, HIDDEN)),
        (f"{word}7", act()),
        ("drop7", Dropout(0.5)),
        ("fc8", nn.Linear(HIDDEN, num_classes)),
    ]
    return Network(
        name,
        layers,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features=f"{word}7",
        initial=_initial(layers, tanh),
        towers=towers,
    )


def _nonlinearity(tanh: bool) -> tuple[str, Callable[[], nn.Module]]:
    return ("tanh", nn.Tanh) if tanh else ("relu", partial(nn.ReLU, inplace=True))


def _initial(layers: list[tuple[str, nn.Module]], tanh: bool) -> dict[str, NormalInit]:
    results = {}
    for name, layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in, std = FAN_INS[name]
            scaled = std * (fan_in / layer.weight[0].numel()) ** 0.5
            results[name] = NormalInit(scaled, float(name in POSITIVE and not tanh))
    return results


def figure1(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    *,
    name: str = "figure1_relu",
    tanh: bool = False,
    wide: bool = False,
) -> Network:
    """A four-layer convolutional net for CIFAR-10, with ReLUs or tanh and nothing else different.

    Figure 1 of the paper gives neither sizes nor initial weights. These are of Krizhevsky's own four-layer CIFAR-10 net
    (``layers-18pct.cfg``), without its norms, with max pooling throughout: its averages would be another
    nonlinearity's business. Expects gray levels minus the mean. ``wide`` draws the weights from N(0, 1/fan-in), which
    LeCun et al. (1998) found best *for tanh*, and expects inputs divided by 64 (recipe: ``divide``).
    """
    word, act = _nonlinearity(tanh)
    layers: list[tuple[str, nn.Module]] = []
    seen = in_channels
    for number, maps in enumerate((32, 32, 64), 1):
        layers += [(f"conv{number}", Convolution(seen, maps, 5, padding=2))]
        layers += [(f"{word}{number}", act()), (f"pool{number}", MaxPool(3, 2))]
        seen = maps
    side = usable_side(name, layers, image_size)  # 4 for 32 pixels
    layers += [("flatten", Flatten(side)), ("fc4", nn.Linear(seen * side * side, num_classes))]
    learned = [(name, layer) for name, layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
    spread = {name: layer.weight[0].numel() ** -0.5 if wide else FIGURE1[name] for name, layer in learned}
    return Network(
        name,
        layers,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features="flatten",
        initial={name: NormalInit(std) for name, std in spread.items()},
    )


def _small(name: str, **change: object) -> Callable[..., Network]:
    return partial(alexnet_small, name=name, **change)  # type: ignore[arg-type]


_ABOUT = "alexnet_small"
MODELS: dict[str, tuple[Callable[..., Network], str]] = {
    "alexnet_small": (
        alexnet_small,
        "the paper's eight layers and two towers scaled to 32-pixel images, for `alexnet study claims`",
    ),
    "alexnet_small_half": (
        _small("alexnet_small_half", widths=HALF, towers=1),
        f"{_ABOUT} as one tower with half of the kernels, as the paper's one-GPU net (section 3.2)",
    ),
    "alexnet_small_no_norm": (
        _small("alexnet_small_no_norm", norm=False),
        f"{_ABOUT} without response normalization (section 3.3)",
    ),
    "alexnet_small_no_overlap": (
        _small("alexnet_small_no_overlap", overlap=False),
        f"{_ABOUT} with pooling that does not overlap (section 3.4)",
    ),
    "alexnet_small_single": (
        _small("alexnet_small_single", widths=EVEN, towers=1),
        f"{_ABOUT} as one tower of the same cost",
    ),
    "alexnet_small_tanh": (_small("alexnet_small_tanh", tanh=True), f"{_ABOUT} with tanh in place of ReLU (3.1)"),
    "figure1_relu": (figure1, "a four-layer net for CIFAR-10 as in the paper's Figure 1, with ReLUs"),
    "figure1_tanh": (
        partial(figure1, name="figure1_tanh", tanh=True),
        "the same four-layer net with tanh, for the paper's Figure 1",
    ),
    "figure1_relu_wide": (
        partial(figure1, name="figure1_relu_wide", wide=True),
        "figure1_relu started from N(0, 1/fan-in)",
    ),
    "figure1_tanh_wide": (
        partial(figure1, name="figure1_tanh_wide", tanh=True, wide=True),
        "figure1_tanh started from N(0, 1/fan-in)",
    ),
}
