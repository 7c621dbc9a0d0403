"""Whose answers are timed: a network with fresh weights on noise, or a trained one on pictures of its own test split.

What is 0 behind a ReLU, and what is nearly so, is what training made it: only a trained network tells how long answers
take to whom it matters, and how many of them are right.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.api.evaluating import store_of
from alexnet.batches.transforms import Statistics
from alexnet.bench import peers
from alexnet.bundle import Bundle, find
from alexnet.data.store import Split, Store
from alexnet.deploy.export_run import calibration
from alexnet.errors import BundleError
from alexnet.evaluation.seen import inputs_of
from alexnet.models.network import Network

CALIBRATION = 32  # painted pictures; ranges of real ones cost the same time
_POOL = 64  # pictures of the test split that batches are made of, as far as they go


@dataclass(frozen=True)
class Subject:
    """A model's name, and the run that trained one of it; "": nobody did."""

    model: str
    run: str = ""

    @classmethod
    def of(cls, run: Path) -> "Subject":
        """Raises :class:`BundleError` for what is no run, or one without pictures to test it on."""
        if not (run / "run.json").is_file():
            raise BundleError(f"--run {run}: no run", "the folder that `alexnet train --run` wrote")
        subject = cls(Bundle.load(find(run)).network.name, str(run))
        if not len(subject.test()):
            raise BundleError(f"--run {run} has no test pictures", "at least one", "leave --run out")
        return subject

    def bundle(self) -> Bundle:
        """The run's, or one of fresh weights with a gray mean."""
        if self.run:
            return _loaded(self.run)
        network = peers.built(self.model).eval()
        gray = Statistics(torch.full((3,), 128.0), torch.zeros(3), torch.eye(3), torch.tensor(1.0))
        classes = tuple(f"class {number}" for number in range(network.num_classes))
        stored = network.image_size if network.image_size < 200 else 256
        return Bundle(network=network, classes=classes, statistics=gray, stored_size=stored, fit="crop")

    def network(self) -> Network:
        """In channels-first memory, as it comes."""
        return self.bundle().network if self.run else peers.built(self.model)

    def shapes(self) -> Network:
        """For what is counted from its shapes."""
        return self.network() if self.run else peers.shapes(self.model)

    def test(self) -> Split:
        """The run's test split."""
        return Store.open(store_of(Path(self.run))).split("test")

    def calibration(self) -> NDArray[np.uint8]:
        """Pictures that ranges of int8 are measured on: of the training split, or painted ones."""
        if self.run:
            return calibration(Store.open(store_of(Path(self.run))))
        return self.stored(CALIBRATION)

    def stored(self, count: int) -> NDArray[np.uint8]:
        """Pictures as they are stored, uint8 [n, S, S, 3]: spread over the test split, some again if it is small."""
        if self.run:
            split = self.test()
            return split.gather(np.linspace(0, len(split) - 1, count).astype(np.int64))
        size = self.bundle().stored_size
        return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)

    def batches(self, batch: int, layout: torch.memory_format) -> list[Tensor]:
        """Different inputs [N, C, s, s] of a network, to be answered in turn; one batch of noise without a run."""
        if not self.run:
            network = self.shapes()
            return [noise(network, batch, layout)]
        bundle, many = self.bundle(), max(1, _POOL // batch)
        inputs = inputs_of(bundle.network, self.stored(many * batch), bundle.statistics)
        return [part.contiguous(memory_format=layout) for part in inputs.chunk(many)]


@functools.cache
def _loaded(run: str) -> Bundle:
    return Bundle.load(find(run))


def noise(network: Network, batch: int, layout: torch.memory_format) -> Tensor:
    """[N, C, s, s], as wide as pictures around their mean."""
    side, generator = network.image_size, torch.Generator().manual_seed(1)
    images = torch.randn(batch, network.in_channels, side, side, generator=generator) * 60
    return images.contiguous(memory_format=layout)
