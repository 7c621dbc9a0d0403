"""Magnitude pruning: which weights become 0, how many of each layer, and how sensitive each layer is to it.

Han, Pool, Tran and Dally 2015: small weights become 0, the others are retrained. The *curve* of a layer is the
validation loss after that layer alone was pruned. The kept shares are those at which one more byte in the file lowers
the loss equally in every layer; the target size sets that price.

The layers before the pruned one are computed once, so that fully connected layers, which hold most of the weights,
cost almost no extra time.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.data.store import Split
from alexnet.evaluation.evaluate import inputs_of
from alexnet.loader.augmentation import Normalization
from alexnet.loader.loader import to_device
from alexnet.models.network import Network

SHARES = (0.7, 0.5, 0.35, 0.25, 0.16, 0.1, 0.06, 0.035, 0.02)  # fractions kept, at which a curve is measured
MAX_RISE = 1.5  # nats above the unpruned loss at which the measurement ends
GRID = tuple(float(SHARES[-1] ** (step / 120)) for step in range(121))  # from 1 down to the least of them


@dataclass(frozen=True)
class Curve:
    """The cost of pruning one layer: fraction of its weights kept, decreasing -> validation loss in nats."""

    count: int  # weights of the layer
    bits: int  # of a code when they are shared
    base: float  # loss before
    losses: Mapping[float, float]

    def rise(self, share: float) -> float:
        """Increase of the loss in nats at ``share``: log-linear between measured shares, infinite below them.

        Noise may lower a loss; the curve is made monotonic.
        """
        last, last_rise = 1.0, 0.0
        for measured, loss in self.losses.items():
            now = max(last_rise, loss - self.base)
            if share >= measured:
                part = math.log(last / share) / math.log(last / measured) if share < last else 0.0
                return last_rise + part * (now - last_rise)
            last, last_rise = measured, now
        return math.inf

    def bytes(self, share: float) -> float:
        """Estimated bytes in the file: positions at their entropy, codes at 1.3 bits below their width."""
        share = min(max(share, 1e-9), 1 - 1e-9)
        where = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
        return self.count * (where + share * max(1.0, self.bits - 1.3)) / 8

    def best(self, price: float) -> float:
        """The share that minimizes loss plus bytes, at ``price`` nats per byte."""
        return min(GRID, key=lambda share: self.rise(share) + price * self.bytes(share))


def allocate(curves: Mapping[str, Curve], budget: float) -> dict[str, float]:
    """Layer -> share kept, at one price per byte for all, so that the layers take about ``budget`` bytes in the file.

    Below the measured shares all layers are pruned by the same factor.
    """
    low, high = 1e-15, 1e3
    for _ in range(80):
        middle = math.sqrt(low * high)
        fits = estimate(curves, {name: curve.best(middle) for name, curve in curves.items()}) <= budget
        low, high = (low, middle) if fits else (middle, high)
    shares = {name: curve.best(high) for name, curve in curves.items()}
    while estimate(curves, shares) > budget and min(shares.values()) > 1e-6:
        shares = {name: 0.97 * share for name, share in shares.items()}
    return shares


def estimate(curves: Mapping[str, Curve], shares: Mapping[str, float]) -> float:
    """Estimated bytes of the layers in the file."""
    return sum(curve.bytes(shares[name]) for name, curve in curves.items())


def threshold(weights: Tensor, share: float) -> float:
    """The magnitude that about ``share`` of the weights reach, at least one; equal magnitudes are treated alike."""
    count = weights.numel()
    stay = min(count, max(1, round(share * count)))
    return float(weights.detach().abs().flatten().kthvalue(count - stay + 1).values)


def gone(weights: Tensor, share: float) -> Tensor:
    """The mask of the weights to prune so that about ``share`` remain: bool, as ``weights``; zeros are pruned."""
    return (weights.detach().abs() < threshold(weights, share)) | (weights == 0)


def gradual(progress: float, first: float, last: float) -> float:
    """The share kept at ``progress`` (0 to 1), from ``first`` to ``last``: the cubic schedule of Zhu and Gupta 2017."""
    return last + (first - last) * (1 - min(max(progress, 0.0), 1.0)) ** 3


MAX_IMAGES = 240  # their first feature maps take 280 MB; losses are compared on the same images
CHUNK = 48


@torch.inference_mode()
def curves(
    network: Network,
    split: Split,
    normalization: Normalization,
    bits: Mapping[str, int],
    *,
    device: torch.device,
    log: Callable[[str], None] = lambda text: None,
) -> dict[str, Curve]:
    """Measure the curve of each layer on images spread over ``split``.

    Weights and mode of the network are restored.

    Args:
        network: The trained network.
        split: The validation split.
        normalization: The normalization of the inputs.
        bits: Parameter name (``fc6.weight``) -> bits of a code.
        device: The device of the network.
        log: Receives a line for each layer.
    """
    indices = np.linspace(0, len(split) - 1, min(MAX_IMAGES, len(split))).astype(np.int64)
    labels = torch.from_numpy(split.labels[indices]).to(device)
    x = inputs_of(network, split.gather(indices), to_device(normalization, device))  # [N, C, s, s]
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
            log(f"{name}: loss {base:.3f}; {', '.join(f'{s:g} kept {loss:.3f}' for s, loss in losses.items())}")
        x = torch.cat([module(part.clone()) for part in torch.split(x, CHUNK)])
    network.train(was_training)
    return result


def _losses(weight: Tensor, loss: Callable[[], float], base: float) -> dict[float, float]:
    """Fraction kept -> loss, until it rises by more than MAX_RISE."""
    before, result = weight.clone(), {}
    try:
        for share in SHARES:
            weight.masked_fill_(gone(before, share), 0.0)
            result[share] = loss()
            if result[share] > base + MAX_RISE:
                break
    finally:
        weight.copy_(before)
    return result


def _loss(layers: list[torch.nn.Module], x: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy after the last layer, for inputs ``x`` of the first."""
    total = 0.0
    for part, truth in zip(torch.split(x, CHUNK), torch.split(labels, CHUNK), strict=True):
        y = part.clone()  # an in-place ReLU must not change the next share's input
        for layer in layers:
            y = layer(y)
        total += float(F.cross_entropy(y.float(), truth, reduction="sum"))
    return total / len(labels)
