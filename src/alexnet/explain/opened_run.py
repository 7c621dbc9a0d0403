"""A run folder as its plots and its report share it: what takes long is read and computed once."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from alexnet.data.store import Split, Store
from alexnet.evaluation.evaluate import SplitPredictions
from alexnet.evaluation.ood import FeatureSample, sample_training_images
from alexnet.export.classifier import Classifier
from alexnet.system import choose_device
from alexnet.training.logger import damage
from alexnet.training.run_folder import own_store


class OpenedRun:
    """A run whose classifier is loaded, and whose images are predicted, when they are first needed.

    Args:
        folder: The run folder.
        store: Its prepared images, or where they are now if they were moved.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        log: Receives a line for each damaged file of the run.
        predictions: Predictions of its bundle by split, in float32, if they are known: those of a training.
        sample: Features of its training images by its bundle, if they are known.

    Attributes:
        drawn: The plots of this run that were drawn with this object, by kind.
    """

    def __init__(
        self,
        folder: Path,
        *,
        store: Store | str | Path | None = None,
        device: torch.device | str = "auto",
        log: Callable[[str], None] = lambda _line: None,
        predictions: Mapping[str, SplitPredictions] | None = None,
        sample: FeatureSample | None = None,
    ) -> None:
        self.folder, self.device = folder, device
        self.drawn: dict[str, Path] = {}
        self._moved, self._log = store, log
        self._predictions, self._sample = dict(predictions or {}), sample

    @functools.cached_property
    def classifier(self) -> Classifier:
        """The classifier of the run's bundle, every byte of which is checked. Raises :class:`BundleError`."""
        for problem in damage(self.folder):
            self._log(problem)
        return Classifier.load(self.folder, choose_device(self.device))

    @functools.cached_property
    def store(self) -> Store:
        """The images that the run was trained on. Raises :class:`DataError` if they are missing or other ones."""
        return own_store(self.folder, self._moved)

    def predictions(self, split: Split) -> SplitPredictions:
        """The predictions for a split of :attr:`store`, in float32."""
        if split.name not in self._predictions:
            self._predictions[split.name] = self.classifier.predict_split(split)
        return self._predictions[split.name]

    @property
    def training_sample(self) -> FeatureSample:
        """Features of at most 500 training images, or of 5 per class."""
        if self._sample is None:
            classifier = self.classifier
            self._sample = sample_training_images(classifier.network, self.store, classifier.normalization)
        return self._sample
