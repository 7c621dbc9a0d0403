"""Inference latency of several networks, measured in turn, so that other load on the machine affects all alike."""

import time
from collections.abc import Sequence

import numpy as np
import torch

from alexnet.models.network import Network

BATCHES = {1: 15, 32: 5}  # batch size -> rounds


@torch.inference_mode()
def interleaved_latency(networks: Sequence[Network], batch: int, rounds: int) -> list[float]:
    """Median milliseconds for ``batch`` images, of each network, from its input to its logits.

    Each round runs every network once; every other round is in reverse order.
    """
    first = networks[0]
    shape = (batch, first.in_channels, first.image_size, first.image_size)
    device = next(first.parameters()).device
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul_(60).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    seconds: list[list[float]] = [[] for _ in networks]
    for number in range(rounds + 1):
        order = list(enumerate(networks))
        for index, network in order if number % 2 else reversed(order):
            started = time.perf_counter()
            network(x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[index].append(time.perf_counter() - started)
    return [1000 * float(np.median(times[1:])) for times in seconds]  # the first round warms up
