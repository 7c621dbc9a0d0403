"""The images of a run: the store of a training, and the images that a trained classifier is evaluated on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet import recipe as recipes
from alexnet.bundle import Bundle
from alexnet.data.atomic_io import read_regular
from alexnet.data.prepare import prepare_dataset
from alexnet.data.remote import is_address
from alexnet.data.sources import Source, is_store
from alexnet.data.sources.options import DataOptions, regroup_images
from alexnet.data.splits import all_as_test
from alexnet.data.store import Split, Store, Subset
from alexnet.errors import BundleError, DataError, RecipeError
from alexnet.recipe import Recipe, is_overridden, option
from alexnet.schema import parse_json
from alexnet.system import cache_folder
from alexnet.training.run import check_store
from alexnet.training.run_folder import own_store, read_start

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
        return own_store(Path(run))
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

    That store is the one of the run, or any of the same content in the cache.

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
        if own is None or own.fingerprint != fingerprint:  # a bundle that was promoted, compressed or copied
            own = _cached_store(str(fingerprint), options.cache or cache_folder())
        if own is None:
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
        return own_store(folder)
    except DataError:
        return None


def _cached_store(fingerprint: str, cache: Path) -> Store | None:
    """The store in ``cache`` whose content has the ``fingerprint``; None if there is none."""
    for path in sorted(cache.glob("*/dataset.json")):
        try:
            description = parse_json(read_regular(path))
            if isinstance(description, dict) and description.get("fingerprint") == fingerprint:
                return Store.open(path.parent)
        except (OSError, ValueError, DataError):  # not a store, or a damaged one
            continue
    return None


def run_folder(run: Run) -> Path | None:
    """The run folder of a run, or of a bundle that is in one; None for a bundle alone."""
    if run is None:
        return None
    return next((f for f in (Path(run), Path(run).resolve().parent) if (f / "run.json").is_file()), None)


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


SHUFFLE_WINDOW = 16  # default shards that are mixed at a time where the store lies behind an address


def open_store(data: str | Path, recipe: Recipe, options: DataOptions) -> Store:
    """The store of ``data``: ``data`` itself if it is a store, else images that are prepared into the cache once.

    Raises:
        AlexNetError: If a run with this recipe cannot use the store, or an option has no effect on ``data``.
    """
    if is_store(data):
        store = Store.open(data)
        check_store(recipe, store)
        refuse_on_store(options)
        for name in ("validation", "test"):
            stored = store.metadata["settings"].get(name)
            if is_overridden(recipe, name) and getattr(recipe, name) != stored:
                _refuse(option(name), f"store {store.address}, which is split already", "prepare another store with it")
        return store
    source = options.open(data)
    for name in ("validation", "test"):
        if name in source.splits and is_overridden(recipe, name):
            _refuse(option(name), f"{data}, which has a {name} split of its own", "give images without splits")
    return cached(source, recipe, options)


def refuse_on_store(options: DataOptions) -> None:
    """Raise :class:`RecipeError` for an option about reading images, which a prepared store ignores."""
    ignored = options.to_args()
    if ignored:
        _refuse(ignored[0], "a prepared store", "give the images themselves as DATA")


def _refuse(name: str, data: str, hint: str) -> None:
    raise RecipeError(f"{name} has no effect on {data}", "", f"leave it out, or {hint}")


def data_of_run(metadata: Mapping[str, Any]) -> str:
    """The data that run.json (``metadata``) names: a path that is valid in any working directory, or a name."""
    path = Path(metadata.get("directory", "")) / metadata["data"]
    return str(path) if path.exists() else str(metadata["data"])


def options_of_run(metadata: Mapping[str, Any], options: DataOptions, data: str | Path | None = None) -> DataOptions:
    """``options``, completed by those that run.json (``metadata``) recorded for reading the training data.

    For the run's own data every recorded option is used. For other data only the options about the layout are, since
    a list of images or a column with groups belongs to one data set.

    Args:
        metadata: The contents of run.json.
        options: The options of this call; they win over recorded ones.
        data: The images to read; by default the run's own.
    """
    is_own = (
        data is None or str(data) == metadata["data"] or Path(data).resolve() == Path(data_of_run(metadata)).resolve()
    )
    recorded = metadata.get("options", ())
    return options.with_recorded(recorded, Path(metadata.get("directory", "")), only_layout=not is_own)


def shuffle_window(data: str | Path, recipe: Recipe) -> int:
    """The recipe's shuffle window, with 0 resolved for this data; the run's recipe records the result."""
    return recipe.shuffle_window or (SHUFFLE_WINDOW if is_address(data) and recipe.sampling == "natural" else 0)


def cached(source: Source, recipe: Recipe, options: DataOptions) -> Store:
    """The store of ``source`` in the cache; prepared first if it is not there."""
    cache = options.cache or cache_folder()
    path = cache / _store_name(source, recipe, options)
    options.log_line(f"{'found prepared in' if is_store(path) else 'preparing into'} {path}")
    return prepare_dataset(source, path, recipe, options)


def _store_name(source: Source, recipe: Recipe, options: DataOptions) -> str:
    settings = (
        source.fingerprint,
        sorted(source.splits),
        recipe.stored_size,
        recipe.fit,
        recipe.validation,
        recipe.test,
        recipe.seed,
        options.bad,
        options.allow_truncated,
        *sorted(source.selection().items()),
    )
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    return f"{source.name}-{recipe.stored_size}-{digest}"
