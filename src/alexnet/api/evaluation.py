"""``evaluate``, ``evaluate_detailed`` and ``calibrate`` from Python: one classifier or an ensemble."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.bundle import STARTER_FOLDER, Bundle, config_sha256, find_bundle
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Split, Store
from alexnet.errors import BundleError, DataError, ImageError, RecipeError, did_you_mean
from alexnet.evaluation import calibration as calibrations
from alexnet.evaluation import detailed, ensemble
from alexnet.evaluation import evaluate as evaluation
from alexnet.evaluation.calibration import Calibration
from alexnet.evaluation.conformal import PredictionSets, check_level, prediction_sets
from alexnet.evaluation.corruptions import CORRUPTIONS, CorruptionErrors, corruption_errors
from alexnet.evaluation.detailed import DetailedScores, detailed_scores, fitted_thresholds
from alexnet.evaluation.evaluate import SplitPredictions
from alexnet.evaluation.metrics import Scores
from alexnet.evaluation.one_vs_rest import Cost, OneVsRest, one_vs_rest
from alexnet.evaluation.ood import FeatureDistance, OodScore, fit_reference, ood_score
from alexnet.export.classifier import Classifier
from alexnet.export.prediction import check_threshold, threshold_for
from alexnet.system import choose_device
from alexnet.training.run_data import TrainingImages, evaluation_store, refuse_resplit, run_folder, training_images
from alexnet.training.run_folder import Provenance, note_test, of_bundle, own_store

Run = str | Path | Classifier
OOD_TRAINING_IMAGES = 2000  # training images, at most, to which the feature distance is fitted


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
    """Evaluate a run, a bundle or a classifier on a split; several are evaluated as an ensemble.

    An ensemble predicts the mean of its members' probabilities. Data without splits that is not the run's own is
    evaluated as a whole. In such data the training and validation images of a run (by SHA-256) are left out and
    counted, unless ``options.include_training_images`` is set.

    Args:
        run: A run folder, a bundle or a classifier, or a sequence of them.
        data: Images with the same classes; by default the run's own data.
        split: ``test``, ``validation`` or ``train``.
        crops: 1 (center crop), 9 (3×3 crops without flips) or 10 (corners, center, and their mirror images).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        options: How ``data`` is read.
        fit_weights: The split on which the weights of the ensemble's mean are fitted; by default they are equal.

    Returns:
        Top-1 and top-5 accuracy, loss in nats and the confusion matrix; of several runs an
        :class:`alexnet.evaluation.ensemble.EnsembleScores`.

    Raises:
        BundleError: If the classes differ, or the split does not exist.
        DataError: If the members of an ensemble would be evaluated on different images, or no image is left.
        RecipeError: If ``fit_weights`` is ``split`` or the test split.

    Example:
        >>> scores = alexnet.evaluate("my-run")
        >>> print(f"{100 * scores.top1:.1f} % of {scores.count} images")
    """
    runs = [run] if isinstance(run, str | Path | Classifier) else list(run)
    _check_choice(len(runs), split, fit_weights)
    options, target = (options or DataOptions()).log_once(), choose_device(device)
    classifiers = [each if isinstance(each, Classifier) else Classifier.load(each, target) for each in runs]
    paths = [None if isinstance(each, Classifier) else each for each in runs]
    names = [f"#{i}" if path is None else str(path) for i, path in enumerate(paths, 1)]
    for name, classifier in zip(names, classifiers, strict=True):
        classifiers[0].bundle.same_classes(classifier.classes, name)
    bundles = [classifier.bundle for classifier in classifiers]
    stores = [evaluation_store(path, bundle, data, options) for path, bundle in zip(paths, bundles, strict=True)]
    for bundle, store in zip(bundles, stores, strict=True):
        bundle.same_classes(store.classes, str(data or store.address))
    if crops == 10 and any(bundle.recipe.get("hflip") == 0 for bundle in bundles):
        options.log_line(
            "trained without horizontal flips: half of the ten crops are mirror images, which it was not trained on"
        )
    trained = training_images(paths, bundles, stores, options)
    if len(runs) == 1:
        scores = _evaluate_one(classifiers[0], trained.select(stores[0], split), crops)
    else:
        scores = _evaluate_ensemble(
            names, classifiers, stores, split, crops, fit_weights, trained, has_data=data is not None
        )
    left_out, included = trained.counts(stores[0], split)
    scores = replace(scores, training_images_left_out=left_out, training_images_included=included)
    for path, store in zip(paths, stores, strict=True):
        note_test(path, store, split, "evaluate", options.log_line)
    return scores


def _check_choice(members: int, split: str, fit_weights: str | None) -> None:
    if not members:
        raise RecipeError("evaluate has no run", "", "pass a run directory or a bundle")
    if fit_weights is None:
        return
    if members == 1:
        raise RecipeError("--fit-weights with one run", "two runs or more", "leave it out")
    if fit_weights == split:
        raise RecipeError(f"--fit-weights {fit_weights} is the split that is reported", "another split", "pass --split")
    if fit_weights == "test":
        raise RecipeError("--fit-weights test: nothing may be chosen by the test split", "validation")


def _evaluate_one(classifier: Classifier, split: Split, crops: int) -> Scores:
    bundle = classifier.bundle
    scores = evaluation.evaluate(
        bundle.network,
        split,
        bundle.normalization,
        num_classes=len(bundle.classes),
        image_size=bundle.image_size,
        channels=bundle.network.in_channels,
        crops=crops,
        device=classifier.device,
    )
    evaluation.refuse_nonfinite(scores.loss, bundle.network.name)
    return scores


def _evaluate_ensemble(
    names: list[str],
    classifiers: list[Classifier],
    stores: list[Store],
    split: str,
    crops: int,
    fit_weights: str | None,
    trained: TrainingImages,
    *,
    has_data: bool,
) -> Scores:
    device, classes = classifiers[0].device, len(classifiers[0].classes)
    hint = "train all on one prepared store, or give DATA"
    if has_data:
        hint = "give images that none of them was trained on, or a prepared store"

    def members(name: str) -> list[ensemble.Member]:
        """The members on the split called ``name``."""
        results = [
            member(run, classifier, trained.select(store, name))
            for run, classifier, store in zip(names, classifiers, stores, strict=True)
        ]
        ensemble.same_images(results, hint)
        return results

    if fit_weights is None:
        return ensemble.evaluate(members(split), num_classes=classes, crops=crops, device=device)
    reported = members(split)  # refused before anything is computed
    probabilities = ensemble.true_class_log_probabilities(members(fit_weights), crops=crops, device=device)
    weights = ensemble.fit_weights(probabilities)
    scores = ensemble.evaluate(reported, weights, num_classes=classes, crops=crops, device=device)
    fitted = {"fitted_on": fit_weights, "fitted_count": probabilities.shape[1]}
    return ensemble.EnsembleScores(**vars(scores) | fitted)


def member(name: str, classifier: Classifier, split: Split) -> ensemble.Member:
    """``classifier`` on ``split``, as a member of an ensemble or of a comparison."""
    bundle = classifier.bundle
    return ensemble.Member(
        name, bundle.network, split, bundle.normalization, bundle.image_size, bundle.network.in_channels
    )


@dataclass(frozen=True)
class EvaluationOptions:
    """Optional parts of a detailed evaluation.

    Attributes:
        slice_by: A column of the data; scores are reported for each of its values.
        ood_dir: A folder of out-of-distribution images: images of none of the classes.
        confidence_threshold: Predictions with a lower probability are counted as abstentions.
        target_risk: An error rate; the bundle's threshold for it is used.
        positive: A class whose sensitivity, specificity, PPV, NPV and curves are reported; of two classes the second
            one if ``cost`` is given.
        cost: The costs of a false positive and a false negative: the validation split chooses a threshold for
            ``positive``.
        conformal: A coverage, such as 0.9: the validation split gives the thresholds of prediction sets.
    """

    slice_by: str | None = None
    ood_dir: Path | None = None
    confidence_threshold: float | None = None
    target_risk: float | None = None
    positive: str | None = None
    cost: Cost | None = None
    conformal: float | None = None

    def __post_init__(self) -> None:
        check_threshold(self.confidence_threshold, self.target_risk)
        check_level(self.conformal)

    @property
    def needs_validation(self) -> bool:
        """Does the validation split choose something?"""
        return self.cost is not None or self.conformal is not None

    def positive_class(self, classes: Sequence[str]) -> int | None:
        """The index of the positive class; None where none is wanted. Raises :class:`RecipeError`."""
        if self.positive is None:
            if self.cost is None:
                return None
            if len(classes) != 2:
                raise RecipeError(f"--cost with {len(classes)} classes", "a positive class", "pass --positive CLASS")
            return 1
        if self.positive not in classes:
            raise RecipeError(
                f"--positive is {self.positive!r}, which is no class. {did_you_mean(self.positive, classes)}"
            )
        return list(classes).index(self.positive)


@dataclass(frozen=True, kw_only=True)
class EvaluationDetails(DetailedScores):
    """All metrics of a run or bundle on a split, and what was chosen on which split.

    Attributes:
        provenance: Which split chose the epoch, the temperature and the thresholds.
        one_vs_rest: The positive class against the rest, if one was requested.
        sets: Conformal prediction sets, if their coverage was requested.
        ood_scores: How well scores tell out-of-distribution images from the split; the feature distance needs a run.
    """

    provenance: Provenance
    one_vs_rest: OneVsRest | None = None
    sets: PredictionSets | None = None
    ood_scores: tuple[OodScore, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The details as JSON values."""
        parts: dict[str, Any] = {"one_vs_rest": self.one_vs_rest.to_dict()} if self.one_vs_rest else {}
        parts |= {"ood_scores": [one.to_dict() for one in self.ood_scores]} if self.ood_scores else {}
        parts |= {"prediction_sets": self.sets.to_dict()} if self.sets else {}
        return super().to_dict() | parts | self.provenance.to_dict()


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
        crops: 1 (center crop), 9 or 10; as in :func:`evaluate`.
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
    store = store_for(run, classifier, data, options)
    bundle = classifier.bundle
    thresholds, positive = _thresholds(bundle, wanted, str(run)), wanted.positive_class(bundle.classes)
    known = _validation_predictions(run, classifier, data, split, crops, options) if wanted.needs_validation else None
    trained = training_images([run], [bundle], [store], options)
    images = trained.select(store, split)
    slice_values = detailed.column(images, wanted.slice_by) if wanted.slice_by else ()
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
    return EvaluationDetails(
        **vars(details),
        provenance=of_bundle(bundle, run),
        one_vs_rest=None if positive is None else _one_vs_rest(bundle, positive, predictions, known, wanted.cost),
        ood_scores=_ood_scores(run, classifier, images, wanted.ood_dir, details.confidence, ood_confidence),
        sets=None if wanted.conformal is None else _prediction_sets(bundle, wanted.conformal, predictions, known),
    )


@dataclass(frozen=True)
class CorruptionResult:
    """The errors of a classifier and of its baseline (None: there is none) on the same corrupted images.

    ``plot``: The plot, None where no file was named and the classifier is no run.
    """

    errors: CorruptionErrors
    baseline: CorruptionErrors | None
    plot: Path | None

    def to_dict(self) -> dict[str, Any]:
        """The errors as JSON values; with a baseline also ``mce`` and ``ratios`` by corruption."""
        result = self.errors.to_dict()
        if self.baseline is not None:
            ratios, mce = self.errors.mce(self.baseline)
            ratios_by_name = {n: None if np.isnan(r) else float(r) for n, r in zip(CORRUPTIONS, ratios, strict=True)}
            result |= {"baseline": self.baseline.to_dict(), "mce": mce.to_dict(), "ratios": ratios_by_name}
        return result | {"plot": str(self.plot) if self.plot else None}


def evaluate_corruptions(
    run: str | Path,
    data: str | Path | None = None,
    *,
    baseline: str | Path | None = None,
    count: int = 500,
    split: str = "test",
    device: str = "auto",
    plot: Path | None = None,
    options: DataOptions | None = None,
) -> CorruptionResult:
    """Evaluate a run or a bundle under 15 corruptions at 5 severities (ImageNet-C), on center crops.

    Args:
        run: A run folder or a bundle.
        data: Images with the same classes; by default the run's own data.
        baseline: A run or a bundle with the same classes, by whose errors the errors are divided (mCE).
        count: Number of images, drawn from the split; each is predicted 76 times.
        split: ``test``, ``validation`` or ``train``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        plot: PNG file; by default ``plots/corruptions.png`` in the run.
        options: How ``data`` is read, and the receiver of progress.

    Raises:
        BundleError: If the classes differ.
        DataError: If no image is left.
        RecipeError: If ``count`` is below 1.

    Example:
        >>> result = alexnet.api.evaluate_corruptions("my-run", baseline="alexnet-run")
        >>> print(result.errors.mean_error().value)
    """
    if count < 1:
        raise RecipeError(f"--corruption-images is {count}", "at least 1")
    options = options or DataOptions()
    classifiers = [Classifier.load(each, choose_device(device)) for each in (run, baseline) if each is not None]
    store = store_for(run, classifiers[0], data, options)
    for classifier in classifiers[1:]:
        classifiers[0].bundle.same_classes(classifier.classes, str(baseline))
    images = training_images([run], [classifiers[0].bundle], [store], options).select(store, split)
    results = []
    for name, classifier in zip((run, baseline), classifiers, strict=False):
        options.log_line(f"{name}: {min(count, len(images))} images, clean and with 75 corruptions")
        bundle = classifier.bundle
        results.append(
            corruption_errors(
                bundle.network,
                images,
                bundle.normalization,
                count=count,
                device=classifier.device,
                progress=options.progress,
            )
        )
    note_test(run, store, split, "evaluate --corruptions", options.log_line)
    errors, reference = results[0], results[1] if len(results) > 1 else None
    folder = run_folder(run)
    if plot is None and folder is not None:
        plot = folder / "plots" / "corruptions.png"
    if plot is not None:
        from alexnet.plots.evaluation import draw_corruptions

        names = (str(run), str(baseline)) if baseline else (str(run),)
        plot = draw_corruptions(dict(zip(names, results, strict=True)), plot)
    return CorruptionResult(errors, reference, plot)


def _ood_scores(
    run: str | Path,
    classifier: Classifier,
    images: Split,
    folder: Path | None,
    confidence: NDArray[np.float32],
    ood_confidence: NDArray[np.float32],
) -> tuple[OodScore, ...]:
    """The softmax probability and, for a run with its training images, the feature distance as scores."""
    if folder is None or not len(ood_confidence):
        return ()
    scores = [ood_score("softmax probability", -confidence, -ood_confidence)]
    if (owner := run_folder(run)) is not None:
        train = own_store(owner).split("train")
        chosen = np.sort(np.random.default_rng(0).permutation(len(train))[:OOD_TRAINING_IMAGES])
        distance = FeatureDistance.fit(_embed(classifier, train, chosen), train.labels[chosen])
        known = distance(_embed(classifier, images, np.arange(len(images))))
        unknown = distance(np.concatenate([classifier.embed(path) for path in _readable(classifier, folder)]))
        scores.append(ood_score("feature distance", known, unknown))
    return tuple(scores)


def _embed(classifier: Classifier, split: Split, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    parts = [indices[start : start + 256] for start in range(0, len(indices), 256)]
    return np.concatenate([classifier.embed(list(split.gather(part))) for part in parts])


def _readable(classifier: Classifier, folder: Path) -> Iterator[NDArray[np.uint8]]:
    from alexnet.data.sources.folders import image_files

    for path in image_files(folder):
        with contextlib.suppress(ImageError):  # logged when they were predicted
            yield classifier.prepare(path)


def _validation_predictions(
    run: str | Path, classifier: Classifier, data: str | Path | None, split: str, crops: int, options: DataOptions
) -> SplitPredictions:
    """The predictions for the validation split, which chooses thresholds. Raises :class:`RecipeError`."""
    if split == "validation":
        raise RecipeError(
            "--split validation with --cost or --conformal, which choose thresholds on it", "", "pass --split test"
        )
    if run_folder(run) is not None:  # its own data has the validation split; ``options`` are how ``data`` is read
        data, options = None, DataOptions(log=options.log)
    validation = _validation_split(run_folder(run) or run, classifier, data, options)
    if not len(validation):
        raise BundleError(
            f"{run} has no validation images", "some, to choose thresholds", "train with --validation 0.1"
        )
    return classifier.predict_split(validation, crops)


def _calibrated(bundle: Bundle, predictions: SplitPredictions) -> NDArray[np.float64]:
    return calibrations.probabilities(predictions.log_probabilities, bundle.temperature)


def _one_vs_rest(
    bundle: Bundle, positive: int, predictions: SplitPredictions, known: SplitPredictions | None, cost: Cost | None
) -> OneVsRest:
    return one_vs_rest(
        bundle.classes[positive],
        positive,
        _calibrated(bundle, predictions),
        predictions.labels,
        predictions.groups,
        cost=cost,
        validation=None if known is None else (_calibrated(bundle, known), known.labels),
    )


def _prediction_sets(
    bundle: Bundle, level: float, predictions: SplitPredictions, known: SplitPredictions | None
) -> PredictionSets:
    assert known is not None, "a level needs the validation split"
    return prediction_sets(
        _calibrated(bundle, predictions),
        predictions.labels,
        bundle.classes,
        level,
        (_calibrated(bundle, known), known.labels, known.groups),
        predictions.groups,
    )


def store_for(run: str | Path, classifier: Classifier, data: str | Path | None, options: DataOptions) -> Store:
    """The store to evaluate a classifier on, which must have its classes. Raises :class:`BundleError`."""
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
        BundleError: If the validation images were trained on, or there are too few, or for the package's starter, or if
            another process replaced the bundle meanwhile.

    Example:
        >>> calibration = alexnet.api.calibrate("my-run")
        >>> print(calibration.temperature, calibration.ece_after)
    """
    options = options or DataOptions()
    path = find_bundle(run)
    if path == STARTER_FOLDER:
        raise BundleError(f"{run} belongs to the package", "a run or bundle of your own", "fine-tune it first")
    before = config_sha256(path)
    classifier = Classifier.load(run, choose_device(device))
    bundle, split = classifier.bundle, _validation_split(run, classifier, data, options)
    predictions = classifier.predict_split(split) if len(split) else None
    calibration = (
        calibrations.calibrate(predictions.log_probabilities, predictions.labels, predictions.groups)
        if predictions
        else None
    )
    if calibration is None:
        raise BundleError(
            f"{data or run} has {len(split)} validation images",
            f"at least {calibrations.MIN_IMAGES} to calibrate with",
        )
    calibrated = Classifier(dataclasses.replace(bundle, calibration=calibration.to_dict()), classifier.device)
    reference = [calibrated.predict_reference(one) for one in bundle.reference_samples]
    features = bundle.feature_reference
    if features is None and (owner := run_folder(run)) is not None:  # a bundle of an earlier version
        features = fit_reference(calibrated.network, own_store(owner), calibrated.normalization)
    changed = dataclasses.replace(calibrated.bundle, reference_samples=reference, feature_reference=features)
    changed.save(path, replaces=before)
    return calibration


def _validation_split(run: str | Path, classifier: Classifier, data: str | Path | None, options: DataOptions) -> Split:
    """The validation images of a classifier, none of them trained on.

    Raises:
        BundleError: If the validation images were trained on, or ``data`` splits the training images differently.
    """
    bundle, store = classifier.bundle, store_for(run, classifier, data, options)
    if 0 < int(bundle.recipe.get("train_on_val_from_epoch", 0)) < int(bundle.recipe.get("epochs", 0)):
        raise BundleError(f"{run} was trained on its validation images too", "", "no images are left to calibrate with")
    refuse_resplit(bundle, store)
    options = dataclasses.replace(options, include_training_images=False)  # they would make it overconfident
    return training_images([run], [bundle], [store], options, ("train",)).select(store, "validation")
