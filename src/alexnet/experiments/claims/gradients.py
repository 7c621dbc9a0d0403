"""Gradients and slopes by layer, before and after training: why saturating units learn slowly.

A weight's gradient is a product of the slopes of all units behind it. ReLU has the slope 1 or 0; tanh has at most 1 and
the logistic sigmoid at most 1/4, and both have nearly 0 where they saturate.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.bundle import Bundle
from alexnet.evaluation.evaluate import inputs_of
from alexnet.experiments.runner import TrainedModel
from alexnet.models.network import Network
from alexnet.training.task import build_network

IMAGES = 256  # training images, drawn with seed 0, whose mean loss has the gradients


class LayerGradient(NamedTuple):
    """One learned layer on a batch of training images."""

    layer: str
    gradient: float  # norm of the gradient of the weights, divided by the norm of the weights
    slope: float | None  # mean slope of the units of its nonlinearity; None for the last layer


@dataclass(frozen=True)
class Gradients:
    """A variant's layers at the initial weights and at the trained ones, with the same images."""

    variant: str
    initial: tuple[LayerGradient, ...]
    trained: tuple[LayerGradient, ...]


def measure_gradients(model: TrainedModel) -> Gradients:
    """The gradients of a training's network at its first weights and at those of its bundle."""
    bundle = Bundle.load(model.folder / "bundle")
    split = model.store.split("train")
    drawn = np.random.default_rng(0).permutation(len(split))[:IMAGES]
    inputs = inputs_of(bundle.network, split.gather(np.sort(drawn)), bundle.normalization)
    labels = torch.from_numpy(split.labels[np.sort(drawn)])
    first = build_network(model.job.recipe, len(bundle.classes))
    return Gradients(
        model.job.variant, *(tuple(layer_gradients(n.eval(), inputs, labels)) for n in (first, bundle.network))
    )


def layer_gradients(network: Network, inputs: Tensor, labels: Tensor) -> list[LayerGradient]:
    """Gradients of the mean cross-entropy of inputs [N, C, s, s] with labels [N], without dropout."""
    outputs = network.outputs(inputs)
    learned = {name: layer for name, layer in network.named_children() if isinstance(layer, nn.Conv2d | nn.Linear)}
    weights = [layer.weight for layer in learned.values()]
    loss = F.cross_entropy(list(outputs.values())[-1].float(), labels)
    gradients = torch.autograd.grad(loss, weights)
    slopes: dict[str, float] = {}
    layer_name = ""
    for name, layer in network.named_children():
        layer_name = name if name in learned else layer_name
        if (slope := _slope(layer, outputs[name].detach())) is not None:
            slopes[layer_name] = slope
    return [
        LayerGradient(name, float(gradient.norm() / layer.weight.detach().norm()), slopes.get(name))
        for (name, layer), gradient in zip(learned.items(), gradients, strict=True)
    ]


def _slope(layer: nn.Module, output: Tensor) -> float | None:
    """Mean derivative of a nonlinearity, from its outputs; None for other layers."""
    match layer:
        case nn.ReLU():
            return float((output > 0).float().mean())
        case nn.Tanh():
            return float((1 - output**2).mean())
        case nn.Sigmoid():
            return float((output * (1 - output)).mean())
    return None
