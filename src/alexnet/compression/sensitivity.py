"""Pruning sensitivity of each layer: the validation loss after that layer alone was pruned.

The layers before the pruned one are computed once, so that fully connected layers, which hold most of the weights,
cost almost no extra time.
"""

import functools
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.compression.pruning import MAX_RISE, SHARES, Curve, gone
from alexnet.data.store import Split
from alexnet.evaluation.features import inputs_of
from alexnet.loader.augmentation import Normalization
from alexnet.loader.loader import to_device
from alexnet.models.network import Network

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
