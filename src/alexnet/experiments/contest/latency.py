"""Latency of the contestants: one image at a time, interleaved, so that a disturbance affects all of them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.bundle import Bundle
from alexnet.data.store import Split
from alexnet.evaluation.evaluate import log_probabilities
from alexnet.experiments.contest.plan import FISHER
from alexnet.experiments.fisher.classifier import FisherClassifier
from alexnet.loader.loader import to_device
from alexnet.training import runtime

MAX_ROUNDS = 30  # measured images
WARMUP_ROUNDS = 2

Predictor = Callable[[NDArray[np.uint8]], Any]  # stored image [S, S, 3] -> scores, computed when it returns


@dataclass(frozen=True)
class Latency:
    """Milliseconds per image at batch size 1: median and quartiles over the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"median": self.median, "quartiles": [self.low, self.high], "rounds": self.rounds}


def load_predictor(name: str, folder: Path, device: torch.device) -> Predictor:
    """Load a finished contestant from its folder."""
    if name == FISHER:
        return FisherClassifier.load(folder).scores
    bundle = Bundle.load(folder / "bundle")
    network, normalization = bundle.network.to(device).eval(), to_device(bundle.normalization, device)
    network = network.to(memory_format=torch.channels_last)

    def predict(image: NDArray[np.uint8]) -> list[float]:
        images = torch.from_numpy(image[None]).to(device)
        scores = log_probabilities(
            network, images, normalization, image_size=bundle.image_size, channels=network.in_channels
        )
        return scores[0].tolist()

    return predict


def measure_latency(
    predictors: Mapping[str, Predictor], split: Split, max_seconds: float, rounds: int = MAX_ROUNDS
) -> dict[str, Latency]:
    """Measure all predictors in turn on one image after another.

    Args:
        predictors: Predictors by name.
        split: Images.
        max_seconds: No round starts after this time; at least three rounds are measured.
        rounds: Maximum number of rounds.
    """
    milliseconds: dict[str, list[float]] = {name: [] for name in predictors}
    begin = time.perf_counter()
    with runtime.cpu_settings():
        for number in range(WARMUP_ROUNDS + rounds):
            image = split.gather(np.array([number % len(split)]))[0]
            for name, predict in predictors.items():
                started = time.perf_counter()
                predict(image)
                if number >= WARMUP_ROUNDS:
                    milliseconds[name].append(1000 * (time.perf_counter() - started))
            if number >= WARMUP_ROUNDS + 2 and time.perf_counter() - begin > max_seconds:
                break
    return {name: _summarize(values) for name, values in milliseconds.items()}


def _summarize(values: list[float]) -> Latency:
    low, median, high = (float(x) for x in np.percentile(values, [25, 50, 75]))
    return Latency(median, low, high, len(values))
