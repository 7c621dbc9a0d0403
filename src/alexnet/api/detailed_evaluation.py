"""``evaluate_detailed``, ``compare`` and ``calibrate`` from Python."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.api.evaluation import member
from alexnet.bundle import Bundle, find_bundle
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Split, Store
from alexnet.errors import BundleError, DataError, ImageError
from alexnet.evaluation import calibration as calibrations
from alexnet.evaluation import intervals, per_class
from alexnet.evaluation.calibration import Calibration
from alexnet.evaluation.detailed import DetailedScores, detailed_scores, fitted_thresholds
from alexnet.evaluation.ensemble import same_images
from alexnet.evaluation.intervals import PairedComparison
from alexnet.export.classifier import Classifier
from alexnet.export.prediction import check_threshold, threshold_for
from alexnet.system import choose_device
from alexnet.training.evaluation_data import evaluation_store, refuse_resplit, training_images
from alexnet.training.provenance import Provenance, note_test, of_bundle


@dataclass(frozen=True)
class EvaluationOptions:
    """Optional parts of a detailed evaluation.

    Attributes:
        slice_by: A column of the data; scores are reported for each of its values.
        ood_dir: A folder of out-of-distribution images: images of none of the classes.
        confidence_threshold: Predictions with a lower probability are counted as abstentions.
        target_risk: An error rate; the bundle's threshold for it is used.
    """

    slice_by: str | None = None
    ood_dir: Path | None = None
    confidence_threshold: float | None = None
    target_risk: float | None = None

    def __post_init__(self) -> None:
        check_threshold(self.confidence_threshold, self.target_risk)


@dataclass(frozen=True, kw_only=True)
class EvaluationDetails(DetailedScores):
    """All metrics of a run or bundle on a split, and what was chosen on which split."""

    provenance: Provenance

    def to_dict(self) -> dict[str, Any]:
        """The details as JSON values."""
        return super().to_dict() | self.provenance.to_dict()


def evaluate_detailed(
    run: str | Path,
    data: str | Path | None = None,
    evaluation_options: EvaluationOptions | None = None,
    *,
    split: str = "test",
    crops: int = 1,
    device: str = "auto",
    options: DataOptions | None = None,
) -> EvaluationDetails:
    """Evaluate a run or a bundle on a split: per class, calibration, abstention and slices, with 95 % CIs.

    Args:
        run: A run folder or a bundle.
        data: Images with the same classes; by default the run's own data.
        evaluation_options: Slices, out-of-distribution images and thresholds.
        split: ``test``, ``validation`` or ``train``.
        crops: 1 (center crop) or 10 (ten-crop).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        options: How ``data`` is read.

    Returns:
        All metrics; :meth:`EvaluationDetails.to_dict` gives JSON values.

    Raises:
        BundleError: If the classes differ, or the bundle has no threshold for the target risk.
        DataError: If no image is left, or the folder of out-of-distribution images is empty.

    Example:
        >>> details = alexnet.api.evaluate_detailed("my-run")
        >>> print(details.classes.macro_f1, details.calibrated.ece)
    """
    wanted, options = evaluation_options or EvaluationOptions(), options or DataOptions()
    classifier = Classifier.load(run, choose_device(device))
    store = _store(run, classifier, data, options)
    bundle = classifier.bundle
    thresholds = _thresholds(bundle, wanted, str(run))
    trained = training_images([run], [bundle], [store], options)
    images = trained.select(store, split)
    slice_values = per_class.column(images, wanted.slice_by) if wanted.slice_by else ()
    ood_confidence, ood_labels = _predict_ood(classifier, wanted.ood_dir, crops, options.log_line)
    predictions = classifier.predict_split(images, crops)
    left_out, included = trained.counts(store, split)
    note_test(run, store, split, "evaluate --details", options.log_line)
    scores = dataclasses.replace(
        predictions.scores(), training_images_left_out=left_out, training_images_included=included
    )
    details = detailed_scores(
        predictions,
        bundle.classes,
        bundle.temperature,
        thresholds,
        scores=scores,
        slice_values=slice_values,
        ood_confidence=ood_confidence,
        ood_labels=ood_labels,
    )
    return EvaluationDetails(**vars(details), provenance=of_bundle(bundle, run))


def _store(run: str | Path, classifier: Classifier, data: str | Path | None, options: DataOptions) -> Store:
    store = evaluation_store(run, classifier.bundle, data, options)
    classifier.bundle.same_classes(store.classes, str(data or store.address))
    return store


def _thresholds(bundle: Bundle, wanted: EvaluationOptions, run: str) -> list[tuple[float, float]]:
    """Pairs of target error and threshold: the requested one, or all thresholds of the bundle."""
    if wanted.confidence_threshold is not None:
        return [(0.0, wanted.confidence_threshold)]
    if wanted.target_risk is not None:
        return [(wanted.target_risk, threshold_for(bundle.thresholds, wanted.target_risk, run))]
    return fitted_thresholds(bundle.thresholds)


def _predict_ood(
    classifier: Classifier, folder: Path | None, crops: int, log: Callable[[str], None]
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """The probability [M] and the label [M] of the top-1 prediction for each out-of-distribution image."""
    if folder is None:
        return np.zeros(0, np.float32), ()
    from alexnet.data.sources.folders import image_files

    paths = image_files(folder)
    if not paths:
        raise DataError(f"{folder} holds no images", "a folder with images of none of the classes", "check --ood-dir")
    predictions = []
    for path in paths:
        try:
            predictions += classifier.predict(path, top=1, crops=crops)
        except ImageError as error:
            log(f"left out: {error}")
    return np.array([p.score for p in predictions], np.float32), tuple(p.label for p in predictions)


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images of a split.

    Attributes:
        first: The first run or bundle.
        second: The second run or bundle.
        split: The split.
        crops: Crops of each image, 1 or 10.
        paired: Accuracies, their difference with its 95 % CI, and McNemar's exact test.
        provenances: What was chosen on which split, for both.
        training_images_left_out: Images of the split that one of the two was trained on.
        training_images_included: The same, where they were compared on request.
    """

    first: str
    second: str
    split: str
    crops: int
    paired: PairedComparison
    provenances: tuple[Provenance, Provenance]
    training_images_left_out: int = 0
    training_images_included: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        names = {"runs": [self.first, self.second], "split": self.split, "crops": self.crops}
        counts = {
            "training_images_left_out": self.training_images_left_out,
            "training_images_included": self.training_images_included,
        }
        tested = {"test_evaluations": [one.tested for one in self.provenances]}
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
    """Compare two classifiers on the same images by McNemar's exact test.

    Args:
        first: A run folder or a bundle.
        second: A run folder or a bundle with the same classes.
        data: Images with the same classes; by default the runs' own data, which must be the same.
        split: ``test``, ``validation`` or ``train``.
        crops: 1 (center crop) or 10 (ten-crop).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        options: How ``data`` is read.

    Returns:
        Both accuracies, their difference with its 95 % CI, and the p-value.

    Raises:
        BundleError: If the classes differ.
        DataError: If the two would be evaluated on different images.

    Example:
        >>> comparison = alexnet.api.compare("run-1", "run-2")
        >>> print(comparison.paired.difference, comparison.paired.p_value)
    """
    options, target = options or DataOptions(), choose_device(device)
    runs = (first, second)
    classifiers = [Classifier.load(run, target) for run in runs]
    bundles = [classifier.bundle for classifier in classifiers]
    bundles[0].same_classes(bundles[1].classes, str(second))
    stores = [_store(run, c, data, options) for run, c in zip(runs, classifiers, strict=True)]
    trained = training_images(runs, bundles, stores, options)
    splits: list[Split] = [trained.select(store, split) for store in stores]
    members = [member(str(run), c, images) for run, c, images in zip(runs, classifiers, splits, strict=True)]
    same_images(members, "train both on one prepared store, or give DATA", "the same for both classifiers")
    predictions = [c.predict_split(images, crops) for c, images in zip(classifiers, splits, strict=True)]
    for run, store in zip(runs, stores, strict=True):
        note_test(run, store, split, "compare", options.log_line)
    paired = intervals.compare(predictions[0].correct, predictions[1].correct, predictions[0].groups)
    provenances = of_bundle(bundles[0], first), of_bundle(bundles[1], second)
    return Comparison(str(first), str(second), split, crops, paired, provenances, *trained.counts(stores[0], split))


def calibrate(
    run: str | Path, data: str | Path | None = None, *, device: str = "auto", options: DataOptions | None = None
) -> Calibration:
    """Fit temperature and thresholds on the validation split, and write them into the bundle.

    The bundle is replaced atomically, with new reference predictions and checksums.

    Args:
        run: A run folder or a bundle.
        data: Images with a validation split; by default the run's own data.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        options: How ``data`` is read.

    Returns:
        The temperature, the thresholds, and the calibration error before and after.

    Raises:
        BundleError: If the validation images were trained on, or there are too few.

    Example:
        >>> calibration = alexnet.api.calibrate("my-run")
        >>> print(calibration.temperature, calibration.ece_after)
    """
    options = options or DataOptions()
    classifier = Classifier.load(run, choose_device(device))
    bundle, store = classifier.bundle, _store(run, classifier, data, options)
    if 0 < int(bundle.recipe.get("train_on_val_from_epoch", 0)) < int(bundle.recipe.get("epochs", 0)):
        raise BundleError(f"{run} was trained on its validation images too", "", "no images are left to calibrate with")
    refuse_resplit(bundle, store)
    options = dataclasses.replace(options, include_training_images=False)  # they would make it overconfident
    split = training_images([run], [bundle], [store], options, ("train",)).select(store, "validation")
    predictions = classifier.predict_split(split) if len(split) else None
    calibration = (
        calibrations.calibrate(predictions.log_probabilities, predictions.labels, predictions.groups)
        if predictions
        else None
    )
    if calibration is None:
        raise BundleError(
            f"{store.address} has {len(split)} validation images",
            f"at least {calibrations.MIN_IMAGES} to calibrate with",
        )
    calibrated = Classifier(dataclasses.replace(bundle, calibration=calibration.to_dict()), classifier.device)
    reference = [calibrated.predict_reference(one) for one in bundle.reference_samples]
    dataclasses.replace(calibrated.bundle, reference_samples=reference).save(find_bundle(run))
    return calibration
