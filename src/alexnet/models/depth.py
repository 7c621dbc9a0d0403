"""Networks with one middle layer left out: section 7 of the paper says that each of them is needed."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from alexnet.models.alexnet import CODE_2012, PAPER, alexnet
from alexnet.models.layers import Convolution, Flatten
from alexnet.models.network import Initial, Network, Start
from alexnet.models.small import alexnet_small


def without(build: Callable[..., Network], number: int, name: str, **given: int) -> Network:
    """``build(**given)`` without convolution ``number`` (3, 4 or 5) and the nonlinearity behind it.

    The next learned layer takes its place: it sees what the lost one saw, both towers in place of conv3. Its weights
    are drawn so that its sums start as wide as before. All other layers are as they were.
    """
    whole = build(**given)
    lost = whole.get_submodule(f"conv{number}")
    assert isinstance(lost, Convolution)
    layers: list[tuple[str, nn.Module]] = []
    changed, side = "", 0
    for key, layer in whole.named_children():
        if key.endswith(str(number)) and not key.startswith("pool"):
            continue
        side = layer.side if isinstance(layer, Flatten) else side
        if isinstance(layer, Convolution | nn.Linear) and not changed and key > f"conv{number}":
            fan_in, changed = layer.weight[0].numel(), key
            layer = _instead(layer, lost, side)
            scale = (fan_in / layer.weight[0].numel()) ** 0.5
        layers.append((key, layer))
    initial: dict[str, Start] = {k: v for k, v in whole.initial.items() if k != f"conv{number}"}
    start = initial[changed]
    assert isinstance(start, Initial)
    return Network(
        name, layers, num_classes=whole.num_classes, in_channels=whole.in_channels, image_size=whole.image_size,
        features=whole.features, initial=initial | {changed: start._replace(std=start.std * scale)},
        towers=whole.towers,
    )  # fmt: skip


def _instead(layer: Convolution | nn.Linear, lost: Convolution, side: int) -> Convolution | nn.Linear:
    """``layer`` with the inputs of ``lost``; of a fully connected one, maps of ``side`` pixels."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(lost.in_channels * side * side, layer.out_features)
    kernel, stride, padding, _ = layer.window
    return Convolution(lost.in_channels, layer.out_channels, kernel, stride, padding, groups=lost.groups)


_WORDS = {3: "third", 4: "fourth", 5: "fifth"}
MODELS: dict[str, tuple[Callable[..., Network], str]] = {
    f"{name}_no_conv{number}": (
        partial(without, build, number, f"{name}_no_conv{number}"),
        f"{name} without its {word} layer (section 7 of the paper)",
    )
    for name, build in (("alexnet", alexnet), ("alexnet_small", alexnet_small))
    for number, word in _WORDS.items()
}


def _starts(number: int, layer: str, fan_in: int, fan_in_before: int) -> dict[str, dict[str, Initial]]:
    """The paper's and the 2012 code's initialization without convolution ``number``, whose inputs ``layer`` has now."""
    scale = (fan_in_before / fan_in) ** 0.5
    starts = {"paper": dict(PAPER), "2012": dict(CODE_2012)}
    for layers in starts.values():
        del layers[f"conv{number}"]
        layers[layer] = layers[layer]._replace(std=layers[layer].std * scale)
    return starts


STARTS: Mapping[str, Mapping[str, Mapping[str, Initial]]] = {  # of 6x6 feature maps before fc6
    "alexnet_no_conv3": _starts(3, "conv4", fan_in=256 * 9, fan_in_before=192 * 9),
    "alexnet_no_conv4": _starts(4, "conv5", fan_in=192 * 9, fan_in_before=192 * 9),
    "alexnet_no_conv5": _starts(5, "fc6", fan_in=384 * 36, fan_in_before=256 * 36),
}
