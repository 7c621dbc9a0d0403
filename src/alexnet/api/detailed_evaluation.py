"""All that can be said honestly of a classifier on a split: by class, calibrated, abstaining, by slices, compared.

Nothing here is chosen by the images that are reported: temperature and thresholds come from the bundle, where the
validation split put them.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.api.evaluation import store_for, training_images
from alexnet.api.provenance import Provenance, note_test, of_bundle
from alexnet.bundle import Bundle, ReferenceSample, find_bundle
from alexnet.data.decode import decode
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Split, Store
from alexnet.errors import BundleError, DataError, ImageError
from alexnet.evaluation import calibration as calibrations
from alexnet.evaluation import intervals, per_class
from alexnet.evaluation import per_class as slicing
from alexnet.evaluation.calibration import (
    Calibration,
    Reliability,
    RiskCoverage,
    SelectiveMetrics,
    at_threshold,
    reliability,
    risk_coverage,
)
from alexnet.evaluation.ensemble import Member, same_images
from alexnet.evaluation.evaluate import SplitPredictions, predict_split
from alexnet.evaluation.intervals import Estimate, PairedComparison, proportion_ci
from alexnet.evaluation.metrics import Scores
from alexnet.evaluation.per_class import PerClass, Slice
from alexnet.export.classifier import Classifier
from alexnet.export.prediction import check_threshold, threshold_for
from alexnet.loader.loader import choose_device


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it does on the split: ``target`` is the error it was chosen for, 0 where a person gave it.

    ``unknown``: the share of the images of no known class that it calls unknown, where there are such.
    """

    target: float
    answered: SelectiveMetrics
    unknown: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        result = {"target": self.target or None} | self.answered.to_dict()
        return result | ({"unknown_called_unknown": self.unknown.to_dict()} if self.unknown else {})


@dataclass(frozen=True)
class Details:
    """Everything about one classifier on one split. ``before`` is the network's own reliability, ``after`` that of
    the calibrated probabilities that it answers with; ``groups`` is 0 where each image stands for itself."""

    scores: Scores
    classes: PerClass
    before: Reliability
    after: Reliability
    curve: RiskCoverage
    thresholds: tuple[Threshold, ...]
    provenance: Provenance
    groups: int
    slices: tuple[Slice, ...] = ()
    ood: tuple[str, ...] = ()  # what images of no known class were taken for, one an image

    def to_dict(self) -> dict[str, Any]:
        """As plain values: the scores' keys, and a key for each part."""
        steps = [step / 10 for step in range(1, 11)]
        curve = [dict(zip(("threshold", "risk"), self.curve.at(c), strict=True)) | {"coverage": c} for c in steps]
        parts = {
            "groups": self.groups,
            "numbers": self.classes.to_dict(),
            "confusion": self.scores.confusion.tolist(),
            "calibration": {"before": self.before.to_dict(), "after": self.after.to_dict()},
            "abstention": {
                "area": self.curve.area,
                "curve": curve,
                "thresholds": [one.to_dict() for one in self.thresholds],
            },
        }
        parts |= {"slices": [one.to_dict() for one in self.slices]} if self.slices else {}
        parts |= {"unknown": {"images": len(self.ood)}} if self.ood else {}
        return self.scores.to_dict() | self.provenance.to_dict() | parts


@dataclass(frozen=True)
class EvaluationOptions:
    """What a person wants to know besides: ``below`` is a threshold, ``target`` an error to find one for."""

    column: str | None = None  # slices by this column
    ood: Path | None = None  # images of no known class
    below: float | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        check_threshold(self.below, self.target)


def evaluate_detailed(
    run: str | Path,
    data: str | Path | None = None,
    asked: EvaluationOptions | None = None,
    *,
    split: str = "test",
    crops: int = 1,
    device: str = "auto",
    options: DataOptions | None = None,
) -> Details:
    """All numbers of a run or bundle on a split, with intervals; see :class:`Details`. Errors as ``evaluate``."""
    asked, options = asked or EvaluationOptions(), options or DataOptions()
    classifier = Classifier.load(run, choose_device(device))
    store = _store(run, classifier, data, options)
    bundle = classifier.bundle
    wanted = _thresholds(bundle, asked, str(run))
    trained = training_images([run], [classifier], [store], options)
    part = trained.part(store, split)
    values = slicing.column(part, asked.column) if asked.column else ()
    strange, predictioned = _ood(classifier, asked.ood, crops, options.tell)
    predictions = responses_of(classifier, part, crops)
    left_out, included = trained.counts(store, split)
    note_test(run, store, split, "evaluate --details", options.tell)
    before, after = (calibrations.probabilities(predictions.log_probabilities, t) for t in (1.0, bundle.temperature))
    sure, right = after.max(1).astype(np.float32), predictions.correct
    return Details(
        scores=dataclasses.replace(
            predictions.scores(), training_images_left_out=left_out, training_images_included=included
        ),
        classes=per_class.per_class(predictions, bundle.classes, temperature=bundle.temperature),
        before=reliability(before, predictions.labels, groups=predictions.groups),
        after=reliability(after, predictions.labels, groups=predictions.groups),
        curve=risk_coverage(sure, right),
        thresholds=tuple(
            Threshold(
                target,
                at_threshold(sure, right, p, predictions.groups),
                proportion_ci(strange < p) if len(strange) else None,
            )
            for target, p in wanted
        ),
        provenance=of_bundle(bundle, run),
        groups=len(set(predictions.groups)),
        slices=slicing.slices(predictions, values) if values else (),
        ood=predictioned,
    )


def _store(run: Any, classifier: Classifier, data: str | Path | None, options: DataOptions) -> Store:
    store = store_for(run, classifier, data, options)
    classifier.bundle.same_classes(store.classes, str(data or store.address))
    return store


def responses_of(classifier: Classifier, split: Split, crops: int = 1) -> SplitPredictions:
    """What the network answers to every image of a split."""
    network = classifier.network
    return predict_split(
        network,
        split,
        classifier.bundle.statistics,
        side=network.image_size,
        channels=network.in_channels,
        crops=crops,
        device=classifier.device,
    )


def _thresholds(bundle: Bundle, asked: EvaluationOptions, where: str) -> list[tuple[float, float]]:
    """(target error, threshold): the person's, or all that the bundle carries."""
    if asked.below is not None:
        return [(0.0, asked.below)]
    if asked.target is not None:
        return [(asked.target, threshold_for(bundle.thresholds, asked.target, where))]
    return sorted((float(target), p) for target, p in bundle.thresholds.items())


def _ood(
    classifier: Classifier, folder: Path | None, crops: int, tell: Callable[[str], None]
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Images of no known class: the probability of each first prediction [n], and what was guessed."""
    if folder is None:
        return np.zeros(0, np.float32), ()
    from alexnet.data.sources.folders import image_files

    paths = image_files(folder)
    if not paths:
        raise DataError(f"{folder} holds no images", "a folder with images of no known class", "check --ood-dir")
    results = []
    for path in paths:
        try:
            results += classifier.predict(path, top=1, crops=crops)
        except ImageError as error:
            tell(f"left out: {error}")
    return np.array([p.score for p in results], np.float32), tuple(p.label for p in results)


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images of a split."""

    first: str
    second: str
    split: str
    crops: int
    paired: PairedComparison
    provenances: tuple[Provenance, Provenance]
    training_images_left_out: int = 0  # images of the split that one of the two was trained on
    training_images_included: int = 0  # the same, compared on request

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        names = {"runs": [self.first, self.second], "split": self.split, "crops": self.crops}
        tested = {"test_evaluations": [one.tested for one in self.provenances]}
        counts = {
            "training_images_left_out": self.training_images_left_out,
            "training_images_included": self.training_images_included,
        }
        return names | self.paired.to_dict() | counts | tested


def compare(
    first: str | Path,
    second: str | Path,
    data: str | Path | None = None,
    *,
    split: str = "test",
    crops: int = 1,
    device: str = "auto",
    options: DataOptions | None = None,
) -> Comparison:
    """Is one of two classifiers better on the same images, or was it luck? McNemar's exact test.

    Raises :class:`DataError` where the two would see other images, :class:`BundleError` where classes differ.
    """
    options, chosen = options or DataOptions(), choose_device(device)
    classifiers = [Classifier.load(run, chosen) for run in (first, second)]
    classifiers[0].bundle.same_classes(classifiers[1].classes, str(second))
    stores = [_store(run, c, data, options) for run, c in zip((first, second), classifiers, strict=True)]
    trained = training_images((first, second), classifiers, stores, options)
    parts = [trained.part(store, split) for store in stores]
    members = [
        Member(str(run), c.network, part, c.statistics, c.bundle.image_size, c.network.in_channels)
        for run, c, part in zip((first, second), classifiers, parts, strict=True)
    ]
    todo = "train both on one prepared store, or give DATA"
    same_images(members, todo, "the same for both, or nothing is compared")
    predictions = [responses_of(c, part, crops) for c, part in zip(classifiers, parts, strict=True)]
    for run, store in zip((first, second), stores, strict=True):
        note_test(run, store, split, "compare", options.tell)
    result = intervals.compare(predictions[0].correct, predictions[1].correct, predictions[0].groups)
    provenances = of_bundle(classifiers[0].bundle, first), of_bundle(classifiers[1].bundle, second)
    counts = trained.counts(stores[0], split)
    return Comparison(str(first), str(second), split, crops, result, provenances, *counts)


def calibrate(
    run: str | Path, data: str | Path | None = None, *, device: str = "auto", options: DataOptions | None = None
) -> Calibration:
    """Fit temperature and thresholds of an existing bundle on the validation split, and write them into it.

    The bundle is replaced whole or not at all, with reference probabilities and SHA-256 as it answers from now on.
    Raises
    :class:`BundleError` where validation images were trained on or are too few.
    """
    options = options or DataOptions()
    classifier = Classifier.load(run, choose_device(device))
    bundle, store = classifier.bundle, _store(run, classifier, data, options)
    if 0 < int(bundle.recipe.get("train_on_val_from_epoch", 0)) < int(bundle.recipe.get("epochs", 0)):
        raise BundleError(f"{run} was trained on its validation images too", "", "nothing honest can be fitted")
    refuse_mixed(bundle, store)
    options = dataclasses.replace(options, include_training_images=False)  # they would make it too confident
    split = training_images([run], [classifier], [store], options, ("train",)).part(store, "validation")
    predictions = responses_of(classifier, split) if len(split) else None
    made = (
        calibrations.calibrate(predictions.log_probabilities, predictions.labels, predictions.groups)
        if predictions
        else None
    )
    if made is None:
        raise BundleError(
            f"{store.address} has {len(split)} validation images", f"at least {calibrations.FEWEST} to calibrate by"
        )
    mended = Classifier(dataclasses.replace(bundle, calibration=made.to_dict()), classifier.device)
    reference = [replayed(mended, one) for one in bundle.reference_samples]
    dataclasses.replace(mended.bundle, reference_samples=reference).save(find_bundle(run))
    return made


def refuse_mixed(bundle: Bundle, store: Store) -> None:
    """The same images split otherwise: some of the store's validation images were trained on."""
    own = store.about.get("source_fingerprint") == bundle.data.get("source")
    if own and store.fingerprint != bundle.data.get("fingerprint"):
        raise BundleError(
            f"{store.address} splits the training images otherwise than the classifier was trained on them",
            "",
            "give the store that it was trained on",
        )


def replayed(classifier: Classifier, reference: ReferenceSample) -> ReferenceSample:
    row = classifier.probabilities(decode(reference.png, reference.name))[0]
    return dataclasses.replace(reference, probabilities=row.tolist())
