"""Milliseconds a picture: every contestant answers one picture at a time, in turns, so that a busy moment hits all."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.batches.loader import to_device
from alexnet.bundle import Bundle
from alexnet.data.store import Split
from alexnet.evaluation.evaluate import log_probabilities
from alexnet.history.contest.entrants import FISHER
from alexnet.history.fisher.classifier import FisherClassifier
from alexnet.training import machine

ROUNDS = 30  # pictures that each answers at most
WARM = 2  # rounds before those, which do not count

Answerer = Callable[[NDArray[np.uint8]], Any]  # a stored picture [S, S, 3] -> an answer that is there when it returns


@dataclass(frozen=True)
class Speed:
    """Milliseconds a picture, batch 1: the median over the rounds, and the middle half of them."""

    median: float
    low: float
    high: float
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"median": self.median, "middle_half": [self.low, self.high], "rounds": self.rounds}


def answerer(name: str, home: Path, device: torch.device) -> Answerer:
    """What answers for a finished contestant, from its files."""
    if name == FISHER:
        return FisherClassifier.load(home).scores
    bundle = Bundle.load(home / "bundle")
    network, statistics = bundle.network.to(device).eval(), to_device(bundle.statistics, device)
    network = network.to(memory_format=torch.channels_last)

    def answer(picture: NDArray[np.uint8]) -> list[float]:
        images = torch.from_numpy(picture[None]).to(device)
        found = log_probabilities(
            network, images, statistics, side=bundle.image_size, channels=network.in_channels
        )  # fmt: skip
        return found[0].tolist()

    return answer


def measure(answerers: Mapping[str, Answerer], split: Split, most: float, rounds: int = ROUNDS) -> dict[str, Speed]:
    """Let all answer one picture after another, in turns, for ``most`` seconds; three rounds count at least."""
    taken: dict[str, list[float]] = {name: [] for name in answerers}
    begun = time.perf_counter()
    with machine.tuned():
        for number in range(WARM + rounds):
            picture = split.gather(np.array([number % len(split)]))[0]
            for name, answer in answerers.items():
                started = time.perf_counter()
                answer(picture)
                if number >= WARM:
                    taken[name].append(1000 * (time.perf_counter() - started))
            if number >= WARM + 2 and time.perf_counter() - begun > most:
                break
    return {name: _speed(values) for name, values in taken.items()}


def _speed(values: list[float]) -> Speed:
    low, median, high = (float(x) for x in np.percentile(values, [25, 50, 75]))
    return Speed(median, low, high, len(values))
