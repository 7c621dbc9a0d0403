"""Scores of a trained classifier, or of several as an ensemble, on a split of their own data or of other data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet import recipe as recipes
from alexnet.api.data import cached, options_of_run, refuse_on_store
from alexnet.api.provenance import note_test
from alexnet.bundle import Bundle, is_trained
from alexnet.data.remote import local_path
from alexnet.data.sources import is_store
from alexnet.data.sources.listing import regrouped
from alexnet.data.sources.options import DataOptions
from alexnet.data.splits import whole
from alexnet.data.store import Split, Store, Subset, recorded
from alexnet.errors import BundleError, DataError, RecipeError
from alexnet.evaluation import ensemble
from alexnet.evaluation import evaluate as evaluation
from alexnet.evaluation.metrics import Scores
from alexnet.export.classifier import Classifier
from alexnet.loader.loader import choose_device
from alexnet.training import run as runs

Run = str | Path | Classifier


def evaluate(
    run: Run | Sequence[Run],
    data: str | Path | None = None,
    *,
    split: str = "test",
    crops: int = 1,
    device: str = "auto",
    options: DataOptions | None = None,
    fit_weights: str | None = None,
) -> Scores:
    """Scores of a run or bundle on a split: of the run's own data, or of ``data`` with the same classes.

    Several runs are an ensemble: the mean of their probabilities, as
    :class:`alexnet.evaluation.ensemble.EnsembleScores`; ``fit_weights`` names the split, never ``split`` itself nor the
    test split, on which the weights of that mean are found. A folder without splits that is not the run's own is
    evaluated whole. Of data that is not the run's own, images that a run was trained on (in its train and validation
    split, by SHA-256) are left out and counted, unless ``options.include_training_images``.
    Raises :class:`BundleError` where the classes differ or the split does not exist, :class:`DataError` where the
    members of an ensemble would see other images, or where none is left.
    """
    many = [run] if isinstance(run, str | Path | Classifier) else list(run)
    _check_choice(len(many), split, fit_weights)
    options, chosen = options or DataOptions(), choose_device(device)
    classifiers = [each if isinstance(each, Classifier) else Classifier.load(each, chosen) for each in many]
    names = [f"#{i}" if isinstance(each, Classifier) else str(each) for i, each in enumerate(many, 1)]
    for name, classifier in zip(names, classifiers, strict=True):
        classifiers[0].bundle.same_classes(classifier.classes, name)
    stores = [store_for(*pair, data, options) for pair in zip(many, classifiers, strict=True)]
    for classifier, store in zip(classifiers, stores, strict=True):
        classifier.bundle.same_classes(store.classes, str(data or store.address))
    if crops == 10 and any(classifier.bundle.recipe.get("hflip") == 0 for classifier in classifiers):
        options.tell("trained without mirrors: half of the ten crops are mirrored images, which it has never seen")
    trained = training_images(many, classifiers, stores, options)
    if len(many) == 1:
        scores = _alone(classifiers[0], trained.part(stores[0], split), crops)
    else:
        scores = _together(names, classifiers, stores, split, crops, fit_weights, trained, values=data is not None)
    left_out, included = trained.counts(stores[0], split)
    scores = replace(scores, training_images_left_out=left_out, training_images_included=included)
    for each, store in zip(many, stores, strict=True):
        note_test(each, store, split, "evaluate", options.tell)
    return scores


def members_and_data(words: Sequence[str]) -> tuple[list[str], str | None]:
    """What ``RUN RUN … [DATA]`` means: the last path is DATA where it is neither a run nor a bundle.

    The first is always a RUN. Raises :class:`RecipeError` for one in between that is none.
    """
    runs, last = list(words), None
    if len(runs) > 1 and not is_trained(Path(runs[-1])):
        last = runs.pop()
    for word in runs[1:]:
        if not is_trained(local_path(word)):
            raise RecipeError(
                f"{word!r} is neither a run nor a bundle",
                "one, unless it is the last path: that may be DATA",
                "check the path",
            )
    return runs, last


def _check_choice(members: int, split: str, fit_weights: str | None) -> None:
    if not members:
        raise RecipeError("there is no run to evaluate", "one or more")
    if fit_weights is None:
        return
    if members == 1:
        raise RecipeError("--fit-weights with one run", "two runs or more", "leave it out")
    if fit_weights == split:
        must = "another split: what chooses is never what is reported"
        raise RecipeError(f"--fit-weights {fit_weights} is the split that is reported", must)
    if fit_weights == "test":
        raise RecipeError("--fit-weights test: the test split chooses nothing", "validation")


def _alone(classifier: Classifier, split: Split, crops: int) -> Scores:
    bundle = classifier.bundle
    return evaluation.evaluate(
        bundle.network,
        split,
        bundle.statistics,
        classes=len(bundle.classes),
        side=bundle.image_size,
        channels=bundle.network.in_channels,
        crops=crops,
        device=classifier.device,
    )


def _together(
    names: list[str],
    classifiers: list[Classifier],
    stores: list[Store],
    split: str,
    crops: int,
    fit: str | None,
    trained: "TrainingImages",
    *,
    values: bool,
) -> Scores:
    device, classes = classifiers[0].device, len(classifiers[0].classes)
    todo = "train all on one prepared store, or give DATA"
    if values:
        todo = "give images that none of them was trained on, or a prepared store"

    def members(of: str) -> list[ensemble.Member]:
        results = [
            _member(name, classifier, trained.part(store, of))
            for name, classifier, store in zip(names, classifiers, stores, strict=True)
        ]
        ensemble.same_images(results, todo)
        return results

    if fit is None:
        return ensemble.evaluate(members(split), classes=classes, crops=crops, device=device)
    reported = members(split)  # refused, if it must be, before anything is computed
    chosen = ensemble.of_the_truth(members(fit), crops=crops, device=device)
    weights = ensemble.fit_weights(chosen)
    scores = ensemble.evaluate(reported, weights, classes=classes, crops=crops, device=device)
    return ensemble.EnsembleScores(**vars(scores) | {"fitted_on": fit, "fitted_count": chosen.shape[1]})


def _member(name: str, classifier: Classifier, split: Split) -> ensemble.Member:
    bundle = classifier.bundle
    return ensemble.Member(
        name, bundle.network, split, bundle.statistics, bundle.image_size, bundle.network.in_channels
    )


def store_for(run: Any, classifier: Classifier, data: str | Path | None, options: DataOptions) -> Store:
    """The images to evaluate a run on: its own, or ``data`` in the form that it was trained on."""
    bundle = classifier.bundle
    if data is None or is_store(data):
        refuse_on_store(options)
    if data is None:
        about = Path("" if isinstance(run, Classifier) else run) / "run.json"
        if not about.is_file():
            raise BundleError("a bundle alone knows no data", "a run folder, or data to evaluate on", "give DATA too")
        return Store.open(store_of(about.parent))
    folder = _folder_of(run)
    if folder is not None and not is_store(data):
        options = options_of_run(runs.read_start(folder)[1], options, data)
    store = Store.open(data) if is_store(data) else _prepared_alike(data, bundle, options)
    if (store.size, store.fit) != (bundle.stored_size, bundle.fit):
        raise DataError(
            f"store {store.address} holds images of {store.size} pixels ({store.fit})",
            f"{bundle.stored_size} ({bundle.fit}), as the classifier was trained on",
            "evaluate on the images themselves",
        )
    return store


def _prepared_alike(data: str | Path, bundle: Bundle, options: DataOptions) -> Store:
    """Images in the bundle's stored form. Its own training images are split as they were for training, so that
    none of them is tested on; others without a test split are a test split as a whole."""
    recipe = recipes.from_dict(bundle.recipe).replace(stored_size=bundle.stored_size, fit=bundle.fit)
    source = options.open(data)
    bundle.same_classes(source.classes, str(data))  # before thousands of images are prepared
    own = source.fingerprint == bundle.data.get("source")
    if own and not source.grouping:
        source = regrouped(source, bundle.data.get("grouping", ""))
    if not own and "test" not in source.splits:
        options.tell(f"{data} has no splits and is not the data set of the run: all images are the test split")
        source = whole(source)
    return cached(source, recipe, options)


@dataclass(frozen=True)
class TrainingImages:
    """Images that were trained on, by the SHA-256 of their files, and whether they are evaluated all the same."""

    sha256: frozenset[str]
    include: bool = False

    def part(self, store: Store, split: str) -> Split:
        """The images of a split to evaluate. Raises :class:`DataError` where none is left."""
        whole = store.split(split)
        known = self._known(whole)
        if self.include or not known.any():
            return whole
        if known.all():
            what = f"{store.address}: all {len(whole)} images of {split} are training images of the classifier"
            raise DataError(what, "", "evaluate on other images, or pass --include-training-images")
        return Subset(whole, np.flatnonzero(~known))

    def counts(self, store: Store, split: str) -> tuple[int, int]:
        """How many images of a split are training images: left out, and included."""
        count = int(self._known(store.split(split)).sum())
        return (0, count) if self.include else (count, 0)

    def _known(self, split: Split) -> NDArray[np.bool_]:
        """Which images of a split were trained on: [n]."""
        if not self.sha256:
            return np.zeros(len(split), bool)
        return np.array([row["sha256"] in self.sha256 for row in split.origins()], bool)


def training_images(
    many: Sequence[Run],
    classifiers: Sequence[Classifier],
    stores: Sequence[Store],
    options: DataOptions,
    splits: Sequence[str] = ("train", "validation"),
) -> TrainingImages:
    """The images that any of the classifiers was trained on or chosen by: those of ``splits`` of its own store.

    A classifier that is evaluated on its own store adds none: there the splits keep training images apart.
    """
    known: set[str] = set()
    for run, classifier, store in zip(many, classifiers, stores, strict=True):
        fingerprint = classifier.bundle.data.get("fingerprint")
        if fingerprint == store.fingerprint:
            continue
        own = _own_store(run)
        if own is None or own.fingerprint != fingerprint:
            options.tell(f"{run}: its own data set is not here, so training images in {store.address} are not left out")
            continue
        known |= {row["sha256"] for name in splits for row in own.split(name).origins()}
    return TrainingImages(frozenset(known), options.include_training_images)


def _own_store(run: Run) -> Store | None:
    """The data set of a run, or of the run that a bundle lies in; None where it is not known or not there."""
    folder = _folder_of(run)
    if folder is not None:
        try:
            return Store.open(store_of(folder))
        except DataError:
            return None
    return None


def _folder_of(run: Run) -> Path | None:
    """The run folder of a run, or of a bundle that lies in one."""
    if isinstance(run, Classifier):
        return None
    return next((f for f in (Path(run), Path(run).resolve().parent) if (f / "run.json").is_file()), None)


def store_of(run: Path) -> str:
    """Where the prepared images of a run lie: a path or an address. Raises DataError if they are gone."""
    return recorded(run, runs.read_start(run)[1])
