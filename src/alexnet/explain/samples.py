"""Images to explain, with their names and true classes: given by the user, drawn at random, or mistakes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode
from alexnet.data.store import Split, Store, recorded_store
from alexnet.doctor.duplicates import near_duplicates
from alexnet.doctor.images import THUMBNAIL_SIZE
from alexnet.errors import RunError
from alexnet.evaluation.calibration import probabilities
from alexnet.evaluation.evaluate import SplitPredictions
from alexnet.export.classifier import Classifier
from alexnet.export.prediction import ImageInput, named
from alexnet.training.run_folder import read_start

DUPLICATE_CANDIDATES = 20  # mistakes that are searched for near-duplicates, for each one that is shown


class Samples:
    """N images with names and true classes.

    Attributes:
        images: uint8 [N, S, S, 3], in the stored form.
        names: File names, or origins in the data.
        labels: Indices of the true classes; None where unknown.
    """

    def __init__(self, images: NDArray[np.uint8], names: Sequence[str], labels: Sequence[int | None]) -> None:
        self.images, self.names, self.labels = images, list(names), list(labels)

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of_inputs(cls, classifier: Classifier, inputs: ImageInput | Sequence[ImageInput]) -> "Samples":
        """Images that the user gave. Raises :class:`alexnet.errors.ImageError`."""
        pairs = named(inputs)
        images = np.stack([classifier.prepare(image, name) for name, image in pairs])
        return cls(images, [Path(name).name for name, _ in pairs], [None] * len(pairs))

    @classmethod
    def of_split(cls, split: Split, indices: NDArray[np.int64]) -> "Samples":
        """The images of a split at ``indices``."""
        origins = split.origins()
        return cls(split.gather(indices), [str(origins[i]["origin"]) for i in indices], split.labels[indices].tolist())


def test_split(run: Path) -> Split:
    """The test images of a run. Raises :class:`RunError` if there are none."""
    split = Store.open(recorded_store(run, read_start(run)[1])).split("test")
    if not len(split):
        raise RunError(f"{run} has no test images", "at least one", "name images, or train with a test split")
    return split


def test_samples(run: Path, count: int) -> Samples:
    """``count`` random test images, the same ones in each call. Raises :class:`RunError` if there are none."""
    split = test_split(run)
    return Samples.of_split(split, np.random.default_rng(0).permutation(len(split))[:count].astype(np.int64))


def most_confident_mistakes(
    split: Split, predictions: SplitPredictions, temperature: float, count: int
) -> tuple[Samples, list[int]]:
    """The wrong predictions with the highest probability, highest first, without near-duplicates.

    Args:
        split: The split that was predicted.
        predictions: The predictions for it.
        temperature: The divisor of the logits.
        count: The maximal number of images.

    Returns:
        The images, and for each one how many near-duplicates of it are mistakes too.
    """
    wrong = np.flatnonzero(~predictions.correct)
    confidence = probabilities(predictions.log_probabilities[wrong], temperature).max(1) if len(wrong) else np.zeros(0)
    order = np.asarray(wrong[np.argsort(-confidence, kind="stable")], np.int64)[: DUPLICATE_CANDIDATES * count]
    images = split.gather(order)
    thumbnails = [decode.fit(image, THUMBNAIL_SIZE, "squash") for image in images]
    is_small = np.full(len(order), min(images.shape[1:3]) < THUMBNAIL_SIZE)
    first = np.arange(len(order))  # the most confident mistake that each image is a near-duplicate of
    for a, b in near_duplicates(np.stack(thumbnails), is_small) if thumbnails else ():
        low, high = sorted((first[a], first[b]))
        first[first == high] = low
    kept, times = np.unique(first, return_counts=True)
    return Samples.of_split(split, order[kept[:count]]), (times[:count] - 1).tolist()
