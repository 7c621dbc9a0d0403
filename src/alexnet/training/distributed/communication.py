"""The communication of each layout: bytes sent in a step, by a formula, and a model of the time of a step.

Bytes are those of the ring algorithms (Patarasuk and Yuan 2009), which are optimal but for latency: all_reduce
2·(n−1)/n of the tensor, all_gather and reduce_scatter (n−1)/n of the whole. Values are sent as float32.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from alexnet.models import create_model
from alexnet.models.layers import Flatten
from alexnet.models.network import Network, output_size
from alexnet.models.summary import summarize
from alexnet.recipe import Recipe
from alexnet.training.distributed.sharding import Layout
from alexnet.training.distributed.world import World

_FLOAT32 = 4  # bytes


def bytes_per_step(network: Network, layout: Layout, batch: float, processes: int) -> dict[str, float]:
    """Bytes that one of ``processes`` sends in a step of ``batch`` images, where all parameters learn.

    Returns:
        Bytes of activations by the layer that needs them, and of ``gradients``.
    """
    if layout.deterministic:  # an all_gather of each gradient
        values = sum(parameter.numel() for parameter in network.parameters())
        return {"gradients": (processes - 1) * values * _FLOAT32} if processes > 1 else {}
    tp_size = layout.tp_size or processes
    dp_size = processes // tp_size
    images = batch / dp_size
    factor = 2 * (tp_size - 1) / tp_size
    results: dict[str, float] = {}
    if tp_size > 1:
        for name, values in _gathered_values(network, layout).items():
            results[name] = factor * images * values * _FLOAT32  # forward an all_gather, backward a reduce_scatter
        last = [name for name, layer in network.named_children() if isinstance(layer, nn.Linear)][-1]
        results[last] = factor * images * network.num_classes * _FLOAT32  # forward an all_reduce, backward nothing
    gradients = sum(_gradient_bytes(network, name, layout, dp_size, tp_size) for name, _ in network.named_parameters())
    return results | ({"gradients": gradients} if gradients else {})


def traffic_report(world: World, recipe: Recipe, classes: int, layout: Layout) -> list[str]:
    """A line on the bytes that a process sent per step, measured and expected. Empty for one process."""
    if world.size == 1 or not world.steps:
        return []
    with torch.device("meta"):
        channels, size = recipe.in_channels or None, recipe.image_size or None
        network = create_model(recipe.model, num_classes=classes, in_channels=channels, image_size=size)
    expected = bytes_per_step(network, layout, world.images / world.steps, world.size)
    sent = {name: count / world.steps for name, count in world.bytes_sent.items()}
    parts = ", ".join(f"{name} {_megabytes(sent[name])} ({_megabytes(expected.get(name, 0))})" for name in sent)
    total = f"{_megabytes(sum(sent.values()))} (expected {_megabytes(sum(expected.values()))})"
    return [f"each of {world.size} processes ({layout.name}) sent {total} per step: {parts}"]


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.3f} MB"


def _gathered_values(network: Network, layout: Layout) -> dict[str, int]:
    """Layer -> activations per image that are gathered before it."""
    children = list(network.named_children())
    results: dict[str, int] = {}
    linear = [name for name, layer in children if isinstance(layer, nn.Linear)]
    for index, (name, layer) in enumerate(children):
        if isinstance(layer, nn.Linear) and name != linear[-1]:
            results[name] = layer.in_features
        elif layout.name == "towers" and isinstance(layer, nn.Conv2d) and layer.groups == 1 and index:
            results[name] = layer.in_channels * output_size(children[:index], network.image_size) ** 2
    return results


def _gradient_bytes(network: Network, name: str, layout: Layout, dp_size: int, tp_size: int) -> float:
    """Bytes that a process sends for the gradient of one parameter."""
    children = [child for child, _ in network.named_children()]
    flatten = next(index for index, layer in enumerate(network.children()) if isinstance(layer, Flatten))
    convolutional = children.index(name.split(".")[0]) < flatten
    replicated = name == f"{children[-1]}.bias"
    values = network.get_parameter(name).numel()
    if layout.hybrid and convolutional:
        return _all_reduce_bytes(values, dp_size * tp_size)
    return _all_reduce_bytes(values if replicated else values / tp_size, dp_size)


def _all_reduce_bytes(values: float, processes: int) -> float:
    return 2 * (processes - 1) / processes * values * _FLOAT32


@dataclass(frozen=True)
class DeviceModel:
    """The assumptions about each device and its link.

    Attributes:
        macs: Multiply-adds per second in training, forward and backward.
        link: Bytes per second that a device sends while it receives as many.
        latency: Seconds of a collective per doubling of the processes, whatever its size.
        overlap: Fraction of the backward pass during which gradients can be sent.
    """

    macs: float
    link: float
    latency: float
    overlap: float = 0.9


@dataclass(frozen=True)
class StepTime:
    """The predicted time of a step in seconds, and its parts; ``images_per_second`` of all devices.

    ``gradients`` is the time of sending gradients that the backward pass does not hide.
    """

    seconds: float
    compute: float
    activations: float
    gradients: float
    images_per_second: float


def predict_step(network: Network, layout: Layout, batch: int, processes: int, device: DeviceModel) -> StepTime:
    """The time of a step: computation, then communication that is not hidden by it.

    Activations are waited for. Gradients are sent during the backward pass, two thirds of the computation; the rest is
    waited for. A sharded network has its multiply-adds divided evenly, and so has a hybrid, whose processes compute the
    convolutions of fewer images. A collective of n processes costs log2(n) latencies.
    """
    tp_size = layout.tp_size or processes
    sent = bytes_per_step(network, layout, batch, processes)
    macs = 3 * batch / processes * sum(row.multiply_adds for row in summarize(network).rows)
    compute = macs / device.macs
    activations = sum(size for name, size in sent.items() if name != "gradients") / device.link
    if tp_size > 1:
        activations += max(0, 2 * (len(sent) - 1)) * device.latency * math.log2(max(tp_size, 2))
    sending = sent.get("gradients", 0.0) / device.link + device.latency * math.log2(max(processes // tp_size, 1))
    gradients = max(0.0, sending - device.overlap * compute * 2 / 3)
    seconds = compute + activations + gradients
    return StepTime(seconds, compute, activations, gradients, batch / seconds)
