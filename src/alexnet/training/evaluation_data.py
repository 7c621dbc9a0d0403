"""The images that a trained classifier is evaluated on, without the images that it was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexnet import recipe as recipes
from alexnet.bundle import Bundle
from alexnet.data.sources import is_store
from alexnet.data.sources.options import DataOptions
from alexnet.data.sources.selection import regroup_images
from alexnet.data.splits import all_as_test
from alexnet.data.store import Split, Store, Subset, recorded_store
from alexnet.errors import BundleError, DataError
from alexnet.training.run_data import cached, options_of_run, refuse_on_store
from alexnet.training.run_folder import read_start

Run = str | Path | None  # a run folder or a bundle; None for a classifier in memory


def evaluation_store(run: Run, bundle: Bundle, data: str | Path | None, options: DataOptions) -> Store:
    """The store to evaluate ``bundle`` on: the run's own, or ``data`` prepared in the form of the training images.

    Raises:
        BundleError: If ``data`` is None and ``run`` is not a run folder.
        DataError: If ``data`` is a store of images of another size or fit.
    """
    if data is None or is_store(data):
        refuse_on_store(options)
    if data is None:
        if run is None or not (Path(run) / "run.json").is_file():
            raise BundleError(
                "a bundle has no data of its own", "a run folder, or data to evaluate on", "give DATA too"
            )
        return Store.open(store_of(Path(run)))
    folder = run_folder(run)
    if folder is not None and not is_store(data):
        options = options_of_run(read_start(folder)[1], options, data)
    store = Store.open(data) if is_store(data) else _prepared_alike(data, bundle, options)
    if (store.size, store.fit) != (bundle.stored_size, bundle.fit):
        raise DataError(
            f"store {store.address} holds images of {store.size} pixels ({store.fit})",
            f"{bundle.stored_size} ({bundle.fit}), as the classifier was trained on",
            "evaluate on the images themselves",
        )
    return store


def _prepared_alike(data: str | Path, bundle: Bundle, options: DataOptions) -> Store:
    """``data`` in the bundle's stored form.

    The bundle's own training images are split as they were for training, so that none of them is tested on. Other
    data without a test split becomes a test split as a whole.
    """
    recipe = recipes.from_dict(bundle.recipe).replace(stored_size=bundle.stored_size, fit=bundle.fit)
    source = options.open(data)
    bundle.same_classes(source.classes, str(data))  # before thousands of images are prepared
    is_own = source.fingerprint == bundle.data.get("source")
    if is_own and not source.grouping:
        source = regroup_images(source, bundle.data.get("grouping", ""))
    if not is_own and "test" not in source.splits:
        options.log_line(f"{data} has no splits and is not the run's own data set: all images are the test split")
        source = all_as_test(source)
    return cached(source, recipe, options)


@dataclass(frozen=True)
class TrainingImages:
    """The training images of one or more classifiers.

    Attributes:
        sha256: SHA-256 of the image files.
        include: Evaluate these images too, instead of leaving them out.
    """

    sha256: frozenset[str]
    include: bool = False

    def select(self, store: Store, split: str) -> Split:
        """The images of a split to evaluate. Raises :class:`DataError` if none is left."""
        images = store.split(split)
        known = self._known(images)
        if self.include or not known.any():
            return images
        if known.all():
            problem = f"{store.address}: all {len(images)} images of {split} are training images of the classifier"
            raise DataError(problem, "", "evaluate on other images, or pass --include-training-images")
        return Subset(images, np.flatnonzero(~known))

    def counts(self, store: Store, split: str) -> tuple[int, int]:
        """The numbers of training images in a split: left out, and included."""
        count = int(self._known(store.split(split)).sum())
        return (0, count) if self.include else (count, 0)

    def _known(self, split: Split) -> NDArray[np.bool_]:
        """Whether each image of a split is a training image: [N]."""
        if not self.sha256:
            return np.zeros(len(split), bool)
        return np.array([row["sha256"] in self.sha256 for row in split.origins()], bool)


def training_images(
    runs: Sequence[Run],
    bundles: Sequence[Bundle],
    stores: Sequence[Store],
    options: DataOptions,
    splits: Sequence[str] = ("train", "validation"),
) -> TrainingImages:
    """The images by which any of the classifiers was trained or chosen: ``splits`` of the run's own store.

    A classifier that is evaluated on its own store adds none, since there the splits are disjoint.

    Args:
        runs: The runs or bundles.
        bundles: Their opened bundles.
        stores: The store that each one is evaluated on.
        options: Its ``include_training_images`` is used, and its log.
        splits: The splits of the run's own store that count as training images.
    """
    sha256: set[str] = set()
    for run, bundle, store in zip(runs, bundles, stores, strict=True):
        fingerprint = bundle.data.get("fingerprint")
        if fingerprint == store.fingerprint:
            continue
        own = _own_store(run)
        if own is None or own.fingerprint != fingerprint:
            name = "the classifier" if run is None else run
            options.log_line(
                f"{name}: its training data is not available, so training images in {store.address} are kept"
            )
            continue
        sha256 |= {row["sha256"] for name in splits for row in own.split(name).origins()}
    return TrainingImages(frozenset(sha256), options.include_training_images)


def _own_store(run: Run) -> Store | None:
    """The store of a run, or of the run that a bundle is in; None if it is unknown or missing."""
    folder = run_folder(run)
    if folder is None:
        return None
    try:
        return Store.open(store_of(folder))
    except DataError:
        return None


def run_folder(run: Run) -> Path | None:
    """The run folder of a run, or of a bundle that is in one; None for a bundle alone."""
    if run is None:
        return None
    return next((f for f in (Path(run), Path(run).resolve().parent) if (f / "run.json").is_file()), None)


def store_of(run: Path) -> str:
    """The path or address of a run's prepared images. Raises :class:`DataError` if they are missing."""
    return recorded_store(run, read_start(run)[1])


def refuse_resplit(bundle: Bundle, store: Store) -> None:
    """Raise :class:`BundleError` if ``store`` holds the bundle's own images in another split.

    Some of its validation images would be training images of the bundle.
    """
    is_own = store.metadata.get("source_fingerprint") == bundle.data.get("source")
    if is_own and store.fingerprint != bundle.data.get("fingerprint"):
        raise BundleError(
            f"{store.address} splits the training images differently than the classifier's own store",
            "",
            "give the store that it was trained on",
        )
