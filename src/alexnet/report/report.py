"""The report of a run: all sections of ``report.html``, gathered from the run, its bundle and its images."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet import pages
from alexnet.bundle import Bundle
from alexnet.data.atomic_io import write_file, written
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Split
from alexnet.doctor.findings import Report as Diagnosis
from alexnet.doctor.images import Phases
from alexnet.errors import RunError
from alexnet.evaluation.calibration import probabilities
from alexnet.evaluation.conformal import sets_of
from alexnet.evaluation.detailed import DetailedScores, detailed_scores, fitted_thresholds
from alexnet.evaluation.evaluate import SplitPredictions
from alexnet.evaluation.intervals import Estimate, proportion_ci
from alexnet.explain.embedding import Samples, most_confident_mistakes
from alexnet.explain.neighbors import FILE as INDEX_FILE
from alexnet.explain.neighbors import SampledImages, SearchedImages
from alexnet.explain.opened_run import OpenedRun
from alexnet.export.classifier import Classifier
from alexnet.plots import explanations
from alexnet.plots import explanations as saliency_plot
from alexnet.plots.canvas import decimals, short_names
from alexnet.plots.embedding import NeighborRow
from alexnet.report import facts
from alexnet.system import temporary_folder
from alexnet.terminal import interval, percent, probability, short_percent
from alexnet.training.run_folder import note_test, of_bundle, read_start

HIGH_CONFIDENCE = 0.9  # probability from which on a top-1 prediction counts as confident
ECE_TOLERANCE = 0.02  # calibration error beyond chance up to which probabilities count as calibrated
NAME_COLUMNS = 200  # of a class name
FEW_IMAGES = 20  # images of a class below which its metrics are uncertain


def summary(
    details: DetailedScores, classes: Sequence[str], diagnosis: Diagnosis | None, undiagnosed: str
) -> list[str]:
    """The sentences of the summary. If the doctor found errors in the data, the first sentence says so.

    Args:
        details: The metrics on the reported split.
        classes: The class names.
        diagnosis: The doctor's report on the training data.
        undiagnosed: The reason why there is none.
    """
    sentences = [
        _data_errors(diagnosis),
        _accuracy(details, classes),
        _weakest_class(details),
        _confidence(details),
        _small_classes(details),
        "All of this holds for similar images only: of the same kinds of objects, taken in the same way.",
        "" if diagnosis else f"The data was not examined: {undiagnosed}.",
    ]
    return [sentence for sentence in sentences if sentence]


def status(details: DetailedScores, diagnosis: Diagnosis | None) -> str:
    """``bad`` for faulty data, ``good`` for examined data and an accuracy above chance, else ``plain``."""
    if diagnosis is not None and not diagnosis.honest:
        return "bad"
    return "good" if diagnosis is not None and beats_majority(details) else "plain"


def beats_majority(details: DetailedScores) -> bool:
    """Is the whole 95 % CI of the accuracy above that of always predicting the most frequent class?"""
    return details.classes.top1.low > details.majority


def _data_errors(diagnosis: Diagnosis | None) -> str:
    if diagnosis is None or diagnosis.honest:
        return ""
    errors = sum(finding.severity == "error" for finding in diagnosis.findings)
    count = "an error" if errors == 1 else f"{errors} errors"
    return f"Do not rely on the numbers below: the data has {count} that make any result wrong or too good."


def _accuracy(details: DetailedScores, classes: Sequence[str]) -> str:
    top1, scores = details.classes.top1, details.scores
    accuracy = f"{short_percent(top1.value)} (95 % CI {interval(top1.low, top1.high)})"
    images = f"{scores.count:,} {scores.split} images"
    sentence = f"The classifier predicts the correct one of {len(classes)} classes for {accuracy} of {images}, "
    if scores.split == "test":
        sentence += "which were not used in training"
    else:
        sentence += "by which it was also chosen, since there are no test images"
    sentence += f". Always predicting the most frequent class gives {short_percent(details.majority)}."
    return sentence if beats_majority(details) else f"{sentence} The difference may be chance: learning is not shown."


def _weakest_class(details: DetailedScores) -> str:
    present = sorted((one for one in details.classes.classes if one.images), key=lambda one: one.recall.value)
    if len(present) < 2 or present[0].recall.value == 1:
        return ""
    low = present[0]
    sentence = (
        f"The weakest class is {low.name}: {short_percent(low.recall.value)} of {low.images} images are recognized"
    )
    if confusions := details.confusions(1):
        true, predicted, images = confusions[0]
        names = details.classes.classes
        times = "once" if images == 1 else f"{images} times"
        sentence += (
            f". The most frequent confusion, {times}, is {names[true].name} predicted as {names[predicted].name}"
        )
    return sentence + "."


def _confidence(details: DetailedScores) -> str:
    result = details.calibrated
    confident = details.confidence >= HIGH_CONFIDENCE
    sentences = ""
    if confident.any():
        accuracy = proportion_ci(details.correct[confident])
        images = f"({short_percent(float(confident.mean()))} of the images)"
        sentences = f"Predictions with a probability of {short_percent(HIGH_CONFIDENCE)} or more {images} "
        sentences += f"are correct for {short_percent(accuracy.value)}. "
    if result.ece <= result.ece_by_chance + ECE_TOLERANCE:
        return sentences + "The probabilities are well calibrated: they agree with the accuracy."
    kind = "overconfident" if result.confidence > result.accuracy else "underconfident"
    sentences += f"The classifier is {kind}: its mean probability is {short_percent(result.confidence)}, "
    return sentences + f"its accuracy {short_percent(result.accuracy)}."


def _small_classes(details: DetailedScores) -> str:
    small = [one.name for one in details.classes.classes if 0 < one.images < FEW_IMAGES]
    if not small:
        return ""
    names = ", ".join(small[:3]) + (" …" if len(small) > 3 else "")
    classes = "1 class has" if len(small) == 1 else f"{len(small)} classes have"
    return f"{classes} fewer than {FEW_IMAGES} of these images ({names}): their metrics are uncertain."


IMAGES, MISTAKES, SALIENCY_ROWS, NEIGHBOR_ROWS, CLASSES = 10, 10, 4, 5, 100  # maximal numbers on the page
IMAGE_SIZE, NEIGHBOR_SIZE = 200, 112  # pixels of the longer side of an image
QUICK_SALIENCY_ROWS = 2  # of a quick report
QUICK_DOCTOR_IMAGES = 3000  # a quick report runs the doctor only on at most so many images

SECTIONS = (  # id and title in the table of contents
    ("training", "Training"),
    ("data", "Data"),
    ("metrics", "Metrics"),
    ("rates", "Sensitivity and specificity"),
    ("calibration", "Calibration"),
    ("images", "Predictions"),
    ("mistakes", "Mistakes"),
    ("saliency", "Saliency maps"),
    ("neighbors", "Nearest images"),
    ("filters", "Filters and curves"),
    ("cost", "Cost"),
    ("reproduction", "Reproduction"),
)


def write_report(
    run: OpenedRun,
    path: Path | None = None,
    *,
    doctor: bool = True,
    quick: bool = False,
    options: DataOptions | None = None,
    progress: Phases | None = None,
    diagnosis: tuple[Diagnosis | None, str] | None = None,
) -> Path:
    """Write the report of a run and return its path; :func:`alexnet.api.write_report` describes the arguments."""
    options, folder = options or DataOptions(), run.folder
    recipe, metadata = read_start(folder)
    epochs = facts.epochs_of(folder)
    classifier = run.classifier
    bundle = classifier.bundle
    if max(map(len, bundle.classes)) > NAME_COLUMNS:  # a name of 10,000 characters would fill pages
        classifier.classes = tuple(short_names(bundle.classes, NAME_COLUMNS))
        bundle = classifier.bundle = dataclasses.replace(bundle, classes=classifier.classes)
    store = run.store
    split = next((s for s in (store.split("test"), store.split("validation")) if len(s)), None)
    if split is None:
        raise RunError(f"{store.address} has neither test nor validation images", "at least one", "train with some")
    predictions = run.predictions(split)
    details = detailed_scores(predictions, bundle.classes, bundle.temperature, fitted_thresholds(bundle.thresholds))
    if not quick:  # the report at the end of training repeats the evaluation of that training
        note_test(folder, store, split.name, "report", options.log_line)
    doctor_report, undiagnosed = diagnosis or (None, "it was left out on request")
    if diagnosis is None and doctor:
        doctor_report, undiagnosed = diagnose(run, quick=quick, options=options, progress=progress)
    values: dict[str, Any] = {
        "title": f"{classifier.network.name} on {bundle.data.get('name', folder.name)}",
        "subtitle": f"Report of {folder.resolve().name}: training, data, accuracy, calibration, explanations, cost.",
        "summary": summary(details, classifier.classes, doctor_report, undiagnosed),
        "status": status(details, doctor_report),
        "training": facts.training_facts(metadata, bundle, recipe, store),
        "choices": facts.choices(of_bundle(bundle, folder)),
        "diagnosis": doctor_report,
        "undiagnosed": undiagnosed,
        "cost": facts.cost(folder, facts.events_of(folder), epochs, bundle),
        "reproduction": facts.reproduction(folder, metadata, bundle, recipe, store),
        "plots": _plots(run, details, epochs, by_loss=recipe.select_weights == "best-loss"),
        "color": explanations.color_note(explanations.color_specialization(classifier.network)),
    }
    values |= _metrics(details, classifier.classes) | _calibration(details)
    values |= _prediction_sets(bundle, predictions)
    values |= _images(run, split, predictions, quick, options.log_line, progress)
    path = path or folder / "report.html"
    with written(path):
        write_file(path, pages.render("report.html", sections=SECTIONS, **values).encode("utf-8", "replace"))
    return path


def diagnose(
    run: OpenedRun,
    *,
    quick: bool = False,
    options: DataOptions | None = None,
    progress: Phases | None = None,
) -> tuple[Diagnosis | None, str]:
    """The doctor's report on the training data of a run; :func:`alexnet.api.diagnose` describes the arguments."""
    metadata, store = read_start(run.folder)[1], run.store
    if quick and sum(map(len, store.splits.values())) > QUICK_DOCTOR_IMAGES:
        return None, f"alexnet report {run.folder} examines it"
    grouping = run.classifier.bundle.data.get("grouping", "")
    return facts.diagnose(metadata, store, grouping, options or DataOptions(), progress)


def _metrics(details: DetailedScores, classes: Sequence[str]) -> dict[str, Any]:
    """The tables of all metrics, of each class, and of the most frequent confusions."""
    result, scores = details.classes, details.scores
    rows = [
        ("top-1 accuracy", result.top1),
        ("top-5 accuracy", result.top5),
        ("balanced accuracy: mean recall of the classes", result.balanced_accuracy),
        ("macro F1", result.macro_f1),
        ("macro precision", result.macro_precision),
        ("macro AUROC", result.macro_auroc),
    ]
    method = "Wilson intervals for shares of images; bootstrap over images (2,000 resamples) for the others"
    if details.groups:
        method = f"bootstrap over {details.groups:,} groups of images, each resampled as a whole (2,000 resamples)"
    unit = "groups" if details.groups else "images"
    by_f1 = sorted((one for one in result.classes if one.images), key=lambda one: (one.f1.value, one.name))
    table = [
        (
            one.name,
            f"{one.images:,}",
            percent(one.recall.value),
            interval(one.recall.low, one.recall.high),
            percent(one.precision.value) if one.predicted else "never predicted",
            interval(one.precision.low, one.precision.high) if one.predicted else "",
            percent(one.f1.value),
            percent(one.auroc.value),
        )
        for one in by_f1[:CLASSES]
    ]
    rates = [
        (one.name, *(text for e in (one.recall, one.specificity, one.precision, one.npv) for text in _cells(e)))
        for one in by_f1[:CLASSES]
    ]
    curves = details.curves
    areas = [
        f"{one.name}: AUROC {' ('.join(_cells(one.roc.area))}), average precision "
        f"{' ('.join(_cells(one.precision_recall.area))})"
        for one in curves
    ]
    return {
        "rates": rates,
        "areas": "; ".join(areas),
        "lowest": len(curves) < len(classes) and len(classes) > 2,
        "split": f"{scores.count:,} {scores.split} images",
        "metrics": [(name, percent(one.value), interval(one.low, one.high)) for name, one in rows if one is not None],
        "metrics_note": f"Mean loss {scores.loss:.4f} nats. Center crop of each image. "
        f"95 % CI: {method}; Wilson intervals where {unit} are few.",
        "classes": table,
        "more_classes": max(0, len(by_f1) - CLASSES),
        "confusions": [(classes[true], classes[predicted], str(n)) for true, predicted, n in details.confusions()],
    }


def _cells(one: Estimate) -> tuple[str, str]:
    """A number and its interval in percent; a dash where there is none."""
    return ("–", "") if np.isnan(one.value) else (percent(one.value, 1), interval(one.low, one.high))


def _calibration(details: DetailedScores) -> dict[str, Any]:
    """Reliability in a sentence, the table of risk and coverage, and the effect of the thresholds."""
    result = details.calibrated
    text = (
        f"Mean probability of the top-1 prediction: {short_percent(result.confidence)}. "
        f"Accuracy: {short_percent(result.accuracy)}. "
        f"Expected calibration error (ECE): {100 * result.ece:.1f} points; perfectly calibrated probabilities would "
        f"show {100 * result.ece_by_chance:.1f} on this many images. Brier score: {result.brier:.3f}."
    )
    text += f" {details.temperature_warning}" if details.temperature_warning else ""
    rows = []
    for coverage in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3):
        threshold, risk = details.curve.at(coverage)
        rows.append((f"{100 * coverage:.0f} %", probability(threshold), percent(risk)))
    lines = []
    for one in details.thresholds:
        metrics = one.metrics
        if metrics.answered:
            error = f"{short_percent(metrics.error)} (95 % CI {interval(metrics.low, metrics.high)})"
            lines.append(
                f"Threshold {metrics.threshold:.3f}, fitted on the validation images for an error of "
                f"{100 * one.target:g} %: coverage {short_percent(metrics.coverage)}, error {error}."
            )
    missing = "The bundle has no thresholds. Do not choose one from this table: it shows the reported images."
    return {"reliability": text, "coverage": rows, "thresholds": lines or [missing]}


def _images(
    run: OpenedRun,
    split: Split,
    predictions: SplitPredictions,
    quick: bool,
    log: Callable[[str], None],
    progress: Phases | None,
) -> dict[str, Any]:
    """The sections with images: random predictions, mistakes, saliency maps, nearest neighbors."""
    classifier = run.classifier
    order = np.random.default_rng(0).permutation(len(split)).astype(np.int64)
    explained = Samples.of_split(split, order[: QUICK_SALIENCY_ROWS if quick else SALIENCY_ROWS])
    mistakes, duplicates = most_confident_mistakes(split, predictions, classifier.bundle.temperature, MISTAKES)
    saliency = [
        {
            "title": row.title,
            "panels": [
                (pages.image_url(image, IMAGE_SIZE), name + (f" ({remark})" if remark else ""))
                for image, name, remark in zip(
                    saliency_plot.panels(row), saliency_plot.COLUMNS, saliency_plot.remarks(row), strict=True
                )
            ],
        }
        for row in explanations.saliency_rows(classifier, explained)
    ]
    index, searched = _index(run, quick, log, progress)
    index.classes = classifier.classes
    rows = explanations.neighbor_rows(classifier, Samples.of_split(split, order[:NEIGHBOR_ROWS]), index)
    return {
        "images": _cards(classifier, Samples.of_split(split, order[:IMAGES])),
        "mistakes": _cards(classifier, mistakes, duplicates) if len(mistakes) else [],
        "saliency": saliency,
        "saliency_note": saliency_plot.NOTE.replace("\n", " "),
        "searched": searched,
        "neighbors": [_neighbor_cells(row) for row in rows],
    }


def _index(
    run: OpenedRun, quick: bool, log: Callable[[str], None], progress: Phases | None
) -> tuple[SearchedImages, str]:
    """The training images that are searched: the run's index, or a sample; and a sentence where they are a sample."""
    if quick and not (run.folder / INDEX_FILE).is_file():
        sample, count = run.training_sample, len(run.store.split("train"))
        few = f"Only {len(sample.indices):,} of the {count:,} training images, drawn at random, were searched; "
        few += f"alexnet report {run.folder} searches all."
        return SampledImages(sample, run.store), few if len(sample.indices) < count else ""
    return explanations.open_index(run, log, progress("indexing") if progress else None), ""


def _cards(classifier: Classifier, samples: Samples, duplicates: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Each image with its true class and its top-3 predictions."""
    cards, predictions = [], classifier.predict(list(samples.images), top=3)
    for image, name, label, prediction, copies in zip(
        samples.images, samples.names, samples.labels, predictions, duplicates or [0] * len(samples), strict=True
    ):
        true_class = "" if label is None else classifier.classes[label]
        top_3 = ", ".join(f"{name} ({probability(p)})" for name, p in prediction.top_k)
        cards.append(
            {
                "image": pages.image_url(image, IMAGE_SIZE),
                "alt": f"{true_class}: {name}",
                "true_class": true_class,
                "text": f"predicted: {top_3}" + (f"; +{copies} near-duplicates" if copies else ""),
                "correct": prediction.label == true_class,
            }
        )
    return cards


def _neighbor_cells(row: NeighborRow) -> list[dict[str, str]]:
    """The cells of a row: the image, then its nearest training images."""
    first = {
        "image": pages.image_url(row.image, NEIGHBOR_SIZE),
        "alt": f"image of {row.true_class}",
        "text": row.heading.replace("\n", ", "),
    }
    number = decimals([one.distance for one in row.neighbors])
    return [first] + [
        {
            "image": pages.image_url(one.image, NEIGHBOR_SIZE),
            "alt": f"training image of {one.label}",
            "text": f"{number(one.distance)} · {one.label}",
        }
        for one in row.neighbors
    ]


def _prediction_sets(bundle: Bundle, predictions: SplitPredictions) -> dict[str, Any]:
    """The coverage of the bundle's smallest prediction sets, in a sentence and for each class; nothing without any."""
    if not bundle.conformal:
        return {"sets": "", "set_rows": []}
    level = min(bundle.conformal, key=float)
    sets = sets_of(
        probabilities(predictions.log_probabilities, bundle.temperature),
        predictions.labels,
        bundle.classes,
        float(level),
        np.array(bundle.conformal[level]),
        bundle.calibration.get("count", 0),
        predictions.groups,
    )
    value, around = _cells(sets.coverage)
    text = (
        f"Prediction sets for a coverage of {100 * sets.level:g} % (alexnet predict --conformal {level}): the true "
        f"class is in the set of {value} of these images (95 % CI {around}); a set has {sets.mean_size:.1f} classes on "
        "average. Their thresholds were fitted on the validation images."
    )
    if sets.without_threshold:
        text += f" In every set, for lack of validation images: {', '.join(sets.without_threshold[:5])}."
    lowest = sorted((one for one in sets.classes if one[1]), key=lambda one: (one[2].value, one[0]))
    return {"sets": text, "set_rows": [(name, f"{n:,}", *_cells(one)) for name, n, one in lowest[:CLASSES]]}


def _plots(run: OpenedRun, details: DetailedScores, epochs: list[dict[str, float]], *, by_loss: bool) -> dict[str, str]:
    """The plots as data URLs; empty where there is nothing to plot. Those that training has just drawn are reused."""
    from alexnet.plots import curves, evaluation, filters

    classifier = run.classifier
    table = details.scores.confusion.numpy()
    thresholds = [one.metrics for one in details.thresholds]
    draw: dict[str, Callable[[Path], Path]] = {
        "confusion": lambda to: evaluation.draw_confusion(table, list(classifier.classes), to),
        "reliability": lambda to: evaluation.draw_reliability(details.calibrated.bins, to),
        "risk": lambda to: evaluation.draw_risk_coverage(details.curve, thresholds, to),
    }
    if first := explanations.first_filters(classifier.network):
        draw["filters"] = lambda to: filters.draw_filters(*first, to)
    if details.curves:
        draw["roc"] = lambda to: evaluation.draw_roc(details.curves, to, len(classifier.classes))
    if epochs:
        draw["curves"] = lambda to: curves.draw(epochs, to, by_loss=by_loss)
    shared = ("filters", "curves", "confusion") if details.scores.split == "test" else ("filters", "curves")
    drawn = {name: path for name, path in run.drawn.items() if name in shared}
    with temporary_folder() as folder:
        files = {name: drawn.get(name) or plot(folder / f"{name}.png") for name, plot in draw.items()}
        urls = {name: pages.png_url(file.read_bytes()) for name, file in files.items()}
    return {"curves": "", "filters": "", "roc": "", **urls}
