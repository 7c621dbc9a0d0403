"""What a network sees of stored images, and what its last hidden layer says of them: as in training, center crops.

How much of each layer a network can spare: the validation loss after one layer alone was pruned.

Layers before the pruned one are computed once, so that fully connected layers, which hold most of the weights, cost
next to nothing.


How colored each tower's first-layer filters are: the paper's specialization (section 6.1) as a number.

"The kernels on GPU 1 are largely color-agnostic, while the kernels on GPU 2 are largely color-specific": the color of a
filter is the share of its energy (the sum of its squared weights) that a gray image can not meet. At each place the
three weights are split into their mean, which answers gray, and the rest, which answers color alone.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from alexnet.compression.pruning import HOPELESS, SHARES, Curve, gone
from alexnet.data.store import Split
from alexnet.loader.augmentation import Normalization, center_crops, color
from alexnet.loader.loader import to_device
from alexnet.models.network import Network


def inputs_of(network: Network, images: NDArray[np.uint8], statistics: Normalization) -> Tensor:
    """Stored images uint8 [N, S, S, 3] -> float32 [N, C, s, s] on the device of ``statistics``, as a network's input.

    The center view, gray where the network is, minus the mean, divided as the classifier divides.
    """
    crops = center_crops(torch.from_numpy(images).to(statistics.mean.device), network.image_size)
    return color(crops, None, None, statistics, network.in_channels)


@torch.inference_mode()
def features_of(network: Network, images: NDArray[np.uint8], statistics: Normalization) -> NDArray[np.float32]:
    """What the layer ``network.features`` says of each image: float32 [N, D] (AlexNet: fc7 behind its ReLU, 4096)."""
    inputs = inputs_of(network, images, statistics)
    result: NDArray[np.float32] = network.forward_to(inputs, network.features).flatten(1).float().cpu().numpy()
    return result


MOST = 240  # images: their first maps take 280 MB; the loss is compared on the same ones, so few will do
CHUNK = 48


@torch.inference_mode()
def curves(
    network: Network,
    split: Split,
    statistics: Normalization,
    bits: Mapping[str, int],
    *,
    device: torch.device,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Curve]:
    """Layer -> its curve, on images spread over ``split``. ``bits``: layer (as ``fc6.weight``) -> bits of a code.

    Every weight is as it was afterwards; the network is left in the mode in which it came.
    """
    indices = np.linspace(0, len(split) - 1, min(MOST, len(split))).astype(np.int64)
    labels = torch.from_numpy(split.labels[indices]).to(device)
    x = inputs_of(network, split.gather(indices), to_device(statistics, device))  # [N, C, s, s]
    was_training, result = network.training, {}
    network.eval()
    layers = list(network.named_children())
    base = _loss([module for _, module in layers], x.clone(), labels)
    for place, (layer, module) in enumerate(layers):
        name = f"{layer}.weight"
        if name in bits:
            rest = [later for _, later in layers[place:]]
            losses = _losses(network.get_parameter(name), functools.partial(_loss, rest, x, labels), base)
            result[name] = Curve(network.get_parameter(name).numel(), bits[name], base, losses)
            tell(f"{name}: loss {base:.3f}; {', '.join(f'{s:g} kept {loss:.3f}' for s, loss in losses.items())}")
        x = torch.cat([module(part.clone()) for part in torch.split(x, CHUNK)])
    network.train(was_training)
    return result


def _losses(weight: Tensor, loss: Callable[[], float], base: float) -> dict[float, float]:
    """Share kept -> loss, until it is beyond hope."""
    before, result = weight.clone(), {}
    try:
        for share in SHARES:
            weight.masked_fill_(gone(before, share), 0.0)
            result[share] = loss()
            if result[share] > base + HOPELESS:
                break
    finally:
        weight.copy_(before)
    return result


def _loss(layers: list[torch.nn.Module], x: Tensor, labels: Tensor) -> float:
    """Mean −ln p(true class) behind the last layer, for what comes in before the first."""
    total = 0.0
    for part, truth in zip(torch.split(x, CHUNK), torch.split(labels, CHUNK), strict=True):
        y = part.clone()  # a ReLU in place must not change what the next share needs
        for layer in layers:
            y = layer(y)
        total += float(F.cross_entropy(y.float(), truth, reduction="sum"))
    return total / len(labels)


UNTRAINED = 2 / 3  # of three independent weights of equal spread, two of the three directions are color
SHUFFLES = 2000


@dataclass(frozen=True)
class Specialization:
    """The color of a first layer. 0: it answers gray alone; 1: colors alone; untrained weights: 2/3.

    ``filters`` is each filter's color [K]; ``towers`` each tower's, all its energy together, so that filters which
    learned nothing weigh little; ``colored`` how many filters of a tower are colored by more than half. ``difference``
    is the largest between two towers, and ``by_chance`` the share of random divisions of the same filters into towers
    whose difference is as large: specialization is when that is small.
    """

    filters: tuple[float, ...]
    towers: tuple[float, ...]
    colored: tuple[int, ...]
    difference: float
    by_chance: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values, with what untrained weights give."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()} | {
            "untrained": UNTRAINED
        }


def specialization(weights: NDArray[np.floating[Any]], towers: int, seed: int = 0) -> Specialization | None:
    """The color of filters [K, C, H, W] in ``towers`` equal parts of dimension 0; None where there are not 3 channels.

    Also None for filters that are 0 or not finite.
    """
    if weights.ndim != 4 or weights.shape[1] != 3 or towers < 1 or len(weights) % towers:
        return None
    w = weights.astype(np.float64)
    energy = np.square(w).sum((1, 2, 3))  # [K]
    color = np.square(w - w.mean(1, keepdims=True)).sum((1, 2, 3))  # [K]
    if not np.isfinite(energy).all() or not energy.all():
        return None
    shares, each = color / energy, _by_tower(np.arange(len(w))[None], energy, color, towers)[0]
    difference = float(np.ptp(each))
    generator = np.random.Generator(np.random.Philox(key=seed))
    shuffled = generator.permuted(np.tile(np.arange(len(w)), (SHUFFLES, 1)), axis=1)
    drawn = np.ptp(_by_tower(shuffled, energy, color, towers), axis=1)  # [SHUFFLES]
    chance = (1 + int((drawn >= difference - 1e-12).sum())) / (1 + SHUFFLES)
    colored = (shares > 0.5).reshape(towers, -1).sum(1)
    return Specialization(tuple(shares.tolist()), tuple(each.tolist()), tuple(colored.tolist()), difference, chance)


def _by_tower(
    order: NDArray[np.int64], energy: NDArray[np.float64], color: NDArray[np.float64], towers: int
) -> NDArray[np.float64]:
    """The color of each tower for each order [b, K] of the filters: [b, towers]."""
    sums = [part[order].reshape(len(order), towers, -1).sum(2) for part in (color, energy)]
    return np.asarray(sums[0] / sums[1])
