"""A trained classifier that answers: pictures as people have them in, classes with probabilities out."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alexnet.batches.loader import choose_device, to_device
from alexnet.bundle import Bundle, find
from alexnet.data import pixels, resize
from alexnet.deploy.answers import Picture, Prediction, as_pixels, best, named
from alexnet.errors import BundleError
from alexnet.evaluation.evaluate import calibrated, log_probabilities
from alexnet.evaluation.seen import features_of, inputs_of
from alexnet.models import bfloat16, halves, kernel, layers, thin
from alexnet.models.summary import work

__all__ = ["Classifier", "Picture", "Precision", "Prediction"]

Precision = Literal["fp32", "bf16"]
_FEW = 64  # views for which compiling pays with no network, and loading what is compiled does


class Classifier:
    """A bundle made ready on a device. Pictures go through exactly the preprocessing that training used.

    ``classes`` are the class names in the order of the probabilities, ``answering`` computes their logits from what
    :meth:`inputs` gives, of the same weights as ``bundle.network``. ``precision`` bf16 answers sooner and about as
    well: see :mod:`alexnet.models.bfloat16`; what is embedded and explained stays in float32.
    """

    def __init__(self, bundle: Bundle, device: torch.device | str = "cpu", precision: Precision = "fp32") -> None:
        if precision not in get_args(Precision):
            raise BundleError(f"precision {precision!r}", "fp32 or bf16", "alexnet export has int8")
        self.bundle = bundle
        self.device = choose_device(device)
        self.network = bundle.network.to(self.device).to(memory_format=torch.channels_last).eval()
        self.precision = precision
        if precision == "bf16":
            self.answering: nn.Module = bfloat16.Halved(self.network, halves.faster(self.device))
        else:
            self.answering = layers.answering(self.network)
        self.statistics = to_device(bundle.statistics, self.device)
        self.classes = bundle.classes
        self._asked = 0  # views so far

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu", precision: Precision = "fp32") -> "Classifier":
        """From a run folder or a bundle; raises :class:`alexnet.errors.BundleError` if it is damaged."""
        return cls(Bundle.load(find(path)), device, precision)

    def hasten(self) -> None:
        """Do now what makes later answers sooner: compile what computes them, lay the weights as it reads them.

        It takes some seconds, once. The weights of ``network`` stay what they are, but large ones move in memory: not
        while another thread uses it. Answers differ by float32's rounding.
        """
        self._build()
        if self.precision == "fp32":
            thin.lay(self.network)

    def expect(self, views: int) -> None:
        """So many views of pictures are to be answered: :meth:`hasten` where that pays, from 700 on for ``alexnet``.

        Without it a classifier compiles, and moves nothing, once it was asked for so many. Kernels that are compiled
        already, by any process of this machine, are used from 64 views on.
        """
        if self._pays(views):
            self.hasten()
        else:
            self._load(views)

    def predict(
        self,
        pictures: Picture | Sequence[Picture],
        top: int = 5,
        views: int = 1,
        batch_size: int = 32,
        abstain_below: float | None = None,
    ) -> list[Prediction]:
        """The ``top`` guesses for each picture. Raises :class:`PictureError` for one that can not be read.

        Where the first guess has a lower probability than ``abstain_below``, the picture is said to be unknown.
        """
        found = []
        for names, stored in self._batches(pictures, batch_size, views):
            for name, row in zip(names, self._probabilities(stored, views), strict=True):
                found.append(best(name, row, self.classes, top, abstain_below))
        return found

    def probabilities(
        self, pictures: Picture | Sequence[Picture], views: int = 1, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Class probabilities of each picture, calibrated where the bundle is: float32 [N, K]."""
        rows = [self._probabilities(stored, views) for _, stored in self._batches(pictures, batch_size, views)]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.classes)), np.float32)

    def embed(self, pictures: Picture | Sequence[Picture], batch_size: int = 32) -> NDArray[np.float32]:
        """What the last hidden layer says of each picture's center view: float32 [N, D] (AlexNet: fc7, 4096)."""
        rows = [self._embed(stored) for _, stored in self._batches(pictures, batch_size)]
        size = self.bundle.stored_size
        return np.concatenate(rows) if rows else self._embed(np.zeros((0, size, size, 3), np.uint8))

    def _embed(self, stored: NDArray[np.uint8]) -> NDArray[np.float32]:
        return features_of(self.network, stored, self.statistics)

    def inputs(self, pictures: Picture | Sequence[Picture]) -> torch.Tensor:
        """What the network sees of each picture's center view: float32 [N, C, s, s] on the classifier's device."""
        stored = np.stack([self.prepare(picture, name) for name, picture in named(pictures)])
        return inputs_of(self.network, stored, self.statistics)

    def prepare(self, picture: Picture, name: str = "picture") -> NDArray[np.uint8]:
        """A picture in its stored form: RGB uint8 [S, S, 3]. Raises :class:`PictureError`; ``name`` is for it."""
        name = str(picture) if isinstance(picture, str | Path) else name
        return pixels.fit(as_pixels(picture, name), self.bundle.stored_size, self.bundle.fit)

    def _probabilities(self, stored: NDArray[np.uint8], views: int) -> NDArray[np.float32]:
        result = log_probabilities(
            self.answering, torch.from_numpy(stored).to(self.device), self.statistics,
            side=self.network.image_size, channels=self.network.in_channels, views=views,
        )  # fmt: skip
        probabilities: NDArray[np.float32] = calibrated(result, self.bundle.temperature).exp().cpu().numpy()
        if not np.isfinite(probabilities).all():  # finite weights can still be too large for float32
            raise BundleError(f"{self.network.name} computes probabilities that are NaN", "", "use another copy")
        return probabilities

    def _batches(
        self, pictures: Picture | Sequence[Picture], size: int, views: int = 1
    ) -> Iterable[tuple[list[str], NDArray[np.uint8]]]:
        many = named(pictures)
        resize.expect(len(many))
        self._asked += len(many) * views
        if self._pays(self._asked):
            self._build()
        else:
            self._load(self._asked)
        for start in range(0, len(many), size):
            part = many[start : start + size]
            yield [name for name, _ in part], np.stack([self.prepare(picture, name) for name, picture in part])

    @functools.cached_property
    def _work(self) -> int:
        return work(self.network)

    def _pays(self, views: int) -> bool:
        return views >= _FEW and kernel.pays(views * self._work)

    def _load(self, views: int) -> None:
        if views >= _FEW and self.device.type == "cpu":
            kernel.load()

    def _build(self) -> None:
        if self.device.type == "cpu":
            kernel.build()

    def save_pretrained(self, folder: Path | str) -> Path:
        """Write the bundle to ``folder``; :func:`alexnet.from_pretrained` reads it."""
        return self.bundle.save(Path(folder))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish the bundle on the Hugging Face hub; see :func:`alexnet.deploy.hub.push_to_hub`."""
        from alexnet.deploy.hub import push_to_hub

        return push_to_hub(self.bundle, repo_id, **options)
