"""What the layouts cost: bytes that a process sends in a step, by theory, and a model of the time of a step.

Bytes are those of the ring algorithms (Patarasuk and Yuan 2009), which no other can beat by more than latency:
all_reduce 2·(n−1)/n of the tensor, all_gather and reduce_scatter (n−1)/n of the whole. Numbers travel as float32.
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

_BYTES = 4  # of a number


def theory(network: Network, layout: Layout, batch: float, processes: int) -> dict[str, float]:
    """Bytes that one of ``processes`` sends in a step of ``batch`` images, by what for. All parameters learn."""
    parts = layout.parts or processes
    rows = processes // parts
    images = batch / rows  # of a row
    twice = 2 * (parts - 1) / parts
    results: dict[str, float] = {}
    if parts > 1:
        for name, numbers in _meetings(network, layout).items():
            results[name] = twice * images * numbers * _BYTES  # forward as an all_gather, backward as a reduce_scatter
        last = [name for name, layer in network.named_children() if isinstance(layer, nn.Linear)][-1]
        results[last] = twice * images * network.num_classes * _BYTES  # an all_reduce forward, nothing backward
    gradients = sum(_gradient(network, name, layout, rows, parts) for name, _ in network.named_parameters())
    return results | ({"gradients": gradients} if gradients else {})


def told(world: World, recipe: Recipe, classes: int, layout: Layout) -> list[str]:
    """For people: what the first process sent a step, counted and by :func:`theory`. Empty for one process."""
    if world.size == 1 or not world.steps:
        return []
    with torch.device("meta"):
        channels, side = recipe.in_channels or None, recipe.image_size or None
        network = create_model(recipe.model, num_classes=classes, in_channels=channels, image_size=side)
    expected = theory(network, layout, world.images / world.steps, world.size)
    counted = {name: count / world.steps for name, count in world.sent.items()}
    parts = ", ".join(f"{name} {_megabytes(counted[name])} ({_megabytes(expected.get(name, 0))})" for name in counted)
    total = f"{_megabytes(sum(counted.values()))} ({_megabytes(sum(expected.values()))} by theory)"
    return [f"each of {world.size} processes ({layout.name}) sent {total} a step: {parts}"]


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.3f} MB"


def _meetings(network: Network, layout: Layout) -> dict[str, int]:
    """Layer -> how many numbers an image has where the processes of a row meet before it."""
    children = list(network.named_children())
    results: dict[str, int] = {}
    linear = [name for name, layer in children if isinstance(layer, nn.Linear)]
    for at, (name, layer) in enumerate(children):
        if isinstance(layer, nn.Linear) and name != linear[-1]:
            results[name] = layer.in_features
        elif layout.name == "towers" and isinstance(layer, nn.Conv2d) and layer.groups == 1 and at:
            results[name] = layer.in_channels * output_size(children[:at], network.image_size) ** 2
    return results


def _gradient(network: Network, name: str, layout: Layout, rows: int, parts: int) -> float:
    """Bytes that a process sends for the gradient of one parameter."""
    children = [child for child, _ in network.named_children()]
    flatten = next(at for at, layer in enumerate(network.children()) if isinstance(layer, Flatten))
    convolutional = children.index(name.split(".")[0]) < flatten
    last = name == f"{children[-1]}.bias"
    numbers = network.get_parameter(name).numel()
    if layout.apart and convolutional:
        return _all_reduce(numbers, rows * parts)
    return _all_reduce(numbers if last else numbers / parts, rows)


def _all_reduce(numbers: float, among: int) -> float:
    return 2 * (among - 1) / among * numbers * _BYTES


@dataclass(frozen=True)
class Machine:
    """What a prediction assumes of each device and its link."""

    macs: float  # multiply-adds a second that training reaches, forward and backward
    link: float  # bytes a second that a device sends while it receives as many
    latency: float  # seconds that a collective takes whatever its size, a hop
    overlap: float = 0.9  # share of the backward pass behind which gradients can travel


@dataclass(frozen=True)
class Step:
    """A predicted step in seconds: in all, computing, activations, gradients that nothing hides; images a second."""

    seconds: float
    compute: float
    activations: float
    gradients: float
    rate: float


def predict(network: Network, layout: Layout, batch: int, processes: int, machine: Machine) -> Step:
    """The time of a step: computing, then what must be waited for.

    Activations are waited for where they are sent. Gradients travel while the backward pass, two thirds of computing,
    goes on; what is left over is waited for. A cut network divides its multiply-adds evenly (a hybrid's are the same
    number, since each process sees fewer images). A collective of n processes costs log2(n) latencies.
    """
    parts = layout.parts or processes
    sent = theory(network, layout, batch, processes)
    work = 3 * batch / processes * sum(row.multiply_adds for row in summarize(network).rows)
    compute = work / machine.macs
    waits = 2 * (len(sent) - 1) * (parts if layout.name == "hybrid-turns" else 1)
    activations = sum(size for name, size in sent.items() if name != "gradients") / machine.link
    activations += max(0, waits) * machine.latency * math.log2(max(parts, 2)) if parts > 1 else 0.0
    travel = sent.get("gradients", 0.0) / machine.link + machine.latency * math.log2(max(processes // parts, 1))
    gradients = max(0.0, travel - machine.overlap * compute * 2 / 3)
    seconds = compute + activations + gradients
    return Step(seconds, compute, activations, gradients, batch / seconds)
