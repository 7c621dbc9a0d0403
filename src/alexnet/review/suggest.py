"""Suggests the images of a folder to label next, and makes the review in which they are labeled."""

import os
from collections.abc import Callable, Sequence, Set
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data.sources.folders import image_files
from alexnet.data.sources.source import Sample, path_text, read_image
from alexnet.errors import DataError, ImageError, counted
from alexnet.export.classifier import Classifier
from alexnet.export.prediction import best
from alexnet.review.active_learning import Method, candidates, k_center, uncertainty
from alexnet.review.session import Case, Session, Topic
from alexnet.training.run_data import data_of_run, run_folder
from alexnet.training.run_folder import read_start

BATCH = 64  # images that are decoded and predicted at a time
TOP = 5  # predictions that are offered as labels

Progress = Callable[[int, int], None]


class Suggestion(NamedTuple):
    """An image to label."""

    sample: Sample
    path: Path
    uncertainty: float
    top_k: tuple[tuple[str, float], ...]  # the most probable classes and their probabilities


def training_data(run: Path) -> str | None:
    """The data that ``run`` was trained on; None for a bundle alone, which does not name it."""
    home = run_folder(run)
    return None if home is None else data_of_run(read_start(home)[1])


def unlabeled(folder: Path, base: Path, decided: Set[str]) -> list[tuple[Sample, Path]]:
    """The images of ``folder``, named by their path relative to ``base``, without those in ``decided``.

    Raises:
        DataError: there is none.
    """
    if not folder.is_dir():
        raise DataError(f"{path_text(folder)} is not a folder", "a folder of unlabeled images")
    samples = []
    for path in image_files(folder):
        origin = Path(os.path.relpath(path.resolve(), base.resolve())).as_posix()
        if origin not in decided and path_text(origin) == origin:  # the corrections file is UTF-8
            samples.append((Sample(0, origin, partial(read_image, path)), path))
    if not samples:
        problem = f"{path_text(folder)}: no image without a decision"
        raise DataError(problem, "a folder of unlabeled images", f"{counted(len(decided), 'image')} decided before")
    return samples


def suggest(
    classifier: Classifier,
    samples: Sequence[tuple[Sample, Path]],
    count: int,
    method: Method = "uncertain-diverse",
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[list[Suggestion], list[ImageError]]:
    """Choose ``count`` images to label next.

    Args:
        classifier: a trained classifier.
        samples: unlabeled images.
        count: number of images to choose; fewer if there are not so many readable ones.
        method: uncertain and different from each other, the most uncertain, or random.
        seed: of random.
        progress: called with the number of images predicted and in total.

    Returns:
        The suggestions in the order of the choice, and the errors of the images that cannot be read.
    """
    readable: list[tuple[Sample, Path]] = []
    rows: list[NDArray[np.float32]] = []
    failures: list[ImageError] = []
    for start in range(0, len(samples), BATCH):
        stored = []
        for sample, path in samples[start : start + BATCH]:
            try:
                stored.append(classifier.prepare(path, str(path)))
                readable.append((sample, path))
            except ImageError as error:
                failures.append(error)
        rows.append(classifier.probabilities(stored))
        if progress is not None:
            progress(min(start + BATCH, len(samples)), len(samples))
    probabilities = np.concatenate(rows)
    scores = uncertainty(probabilities)
    if method == "random":
        chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(readable))[:count]
    else:
        chosen = candidates(scores, count)
        if method == "uncertain-diverse":
            features = classifier.embed([readable[i][1] for i in chosen])
            chosen = chosen[k_center(features, count)]
        chosen = chosen[:count]
    results = [
        Suggestion(readable[i][0], readable[i][1], float(scores[i]), best("", row, classifier.classes, TOP).top_k)
        for i, row in zip(chosen, probabilities[chosen], strict=True)
    ]
    return results, failures


def session(classes: Sequence[str], suggestions: Sequence[Suggestion], path: Path) -> Session:
    """The review in which the suggested images are labeled. Raises :class:`DataError` for an invalid file ``path``."""
    cases = tuple(
        Case((one.sample.origin,), f"uncertainty {one.uncertainty:.2f}", {}, one.top_k) for one in suggestions
    )
    title = f"{counted(len(cases), 'image')} to label next"
    topic = Topic("label-next", "note", title, "choose the class; skip an image of no class with →", cases)
    samples = {one.sample.origin: one.sample for one in suggestions}
    return Session("images to label next", classes, {}, samples, [topic], path)
