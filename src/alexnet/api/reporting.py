"""``report.html``: everything about a run on one page that a manager, a doctor and an engineer can each read."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.api import plotting, report_facts
from alexnet.api.detailed_evaluation import responses_of
from alexnet.api.plotting import Shown
from alexnet.api.provenance import note_test, of_bundle
from alexnet.api.report_facts import Numbers, interval, learned, percent, verdict
from alexnet.bundle import Bundle, find_bundle
from alexnet.data.remote import local_path
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Split, Store, recorded
from alexnet.doctor.findings import Report as Diagnosis
from alexnet.doctor.images import Phases
from alexnet.errors import RunError, counted
from alexnet.explain.neighbors import FILE as INDEX
from alexnet.export.classifier import Classifier
from alexnet.loader.loader import choose_device
from alexnet.plots import saliency as looks
from alexnet.plots.canvas import decimals
from alexnet.plots.neighbors import Row
from alexnet.plots.predictions import percent as likely
from alexnet.report import page as pages
from alexnet.system import temporary_folder
from alexnet.training import run as runs

IMAGES, MISTAKES, LOOKED, ROWS, CLASSES = 10, 10, 4, 5, 100  # of each at most on the page
SECONDS = 20.0  # that a report at the end of a training may spend on an index
FEW = 3000  # images that the doctor looks at even then


def report(
    run: str | Path,
    path: str | Path | None = None,
    *,
    store: str | Path | None = None,
    doctor: bool = True,
    quick: bool = False,
    device: str = "auto",
    options: DataOptions | None = None,
    progress: Phases | None = None,
    diagnosis: tuple[Diagnosis | None, str] | None = None,
) -> Path:
    """Write the report of a run and return its path: ``report.html`` in the run's folder, or ``path``.

    ``store`` is where its prepared images lie now, if they were moved. ``doctor``: examine the images themselves,
    if they are at hand. ``quick`` leaves out what would take long: the doctor on many images, an index of neighbors
    that is not there yet. ``progress`` makes the progress bar of each phase, from its name. ``diagnosis`` is what
    :func:`diagnose` returned, where it was called already. Raises :class:`RunError`, :class:`BundleError`,
    :class:`DataError`.
    """
    run, options = local_path(run), options or DataOptions()
    target = local_path(path) if path else run / "report.html"
    recipe, about = runs.read_start(run)
    epochs = report_facts.epochs_of(run)
    classifier = Classifier.load(run, choose_device(device))
    opened = Store.open(store or recorded(run, about))
    classifier.bundle.same_classes(opened.classes, opened.address)
    split = next((s for s in (opened.split("test"), opened.split("validation")) if len(s)), None)
    if split is None:
        raise RunError(f"{opened.address} has neither test nor validation images", "one at least", "train with some")
    numbers = report_facts.count(classifier.bundle, responses_of(classifier, split))
    if not quick:  # at the end of a training it is the look that training took itself
        note_test(run, opened, split.name, "report", options.tell)
    result, why = diagnosis or (None, "it was left out on purpose")
    if diagnosis is None and doctor:
        result, why = diagnose(run, store=store, quick=quick, options=options, progress=progress)
    values = {
        "title": f"{classifier.network.name} on {classifier.bundle.data.get('name', run.name)}",
        "subtitle": f"Report of {run.resolve().name}: what was trained, how good it is, and why one may believe it.",
        "verdict": verdict(numbers, classifier.classes, result, why),
        "kind": _kind(result, numbers),
        "made": report_facts.made_of(about, classifier.bundle, recipe, opened),
        "chosen": report_facts.chosen(of_bundle(classifier.bundle, run)),
        "diagnosis": result,
        "undiagnosed": why,
        "cost": report_facts.cost(run, report_facts.events_of(run), epochs, classifier.bundle),
        "again": report_facts.again(run, about, classifier.bundle, recipe, opened),
    }
    values |= _tables(numbers, classifier.classes) | _sureness(numbers)
    values |= _images(run, classifier, split, numbers, opened, quick, options.tell, progress)
    values |= {
        "charts": _charts(run, classifier, numbers),
        "color": plotting.color_note(plotting.color_of(classifier)),
    }
    return pages.write(values, target)


def diagnose(
    run: str | Path,
    *,
    store: str | Path | None = None,
    quick: bool = False,
    options: DataOptions | None = None,
    progress: Phases | None = None,
) -> tuple[Diagnosis | None, str]:
    """The doctor's report on the images that a run was trained on, or None and why there is none.

    ``quick``: none where there are many images. Raises :class:`RunError`, :class:`BundleError`, :class:`DataError`.
    """
    about = runs.read_start(local_path(run))[1]
    opened = Store.open(store or recorded(local_path(run), about))
    if quick and sum(map(len, opened.splits.values())) > FEW:
        return None, f"alexnet report {run} examines it"
    return report_facts.diagnose(about, opened, Bundle.load(find_bundle(run)), options or DataOptions(), progress)


_DISHONEST = {
    "leak-validation",
    "group-prediction",
    "shortcut",
}  # warnings of the doctor that make a result look too good


def data_warnings(run: str | Path, diagnosis: Diagnosis | None, *, store: str | Path | None = None) -> list[str]:
    """What to know of a run's data before its numbers: what the doctor found, or else what the store alone shows."""
    if diagnosis is None:
        opened = Store.open(store or recorded(local_path(run), runs.read_start(local_path(run))[1]))
        copies = report_facts.copies_across_splits(opened)
        leak = f"leak: {counted(copies, 'image')} of validation and test with the bytes of a training image"
        return [leak] * bool(copies)
    first = [one for one in diagnosis.findings if one.severity == "error" or one.check in _DISHONEST]
    rest = sum(one.severity == "warning" and one not in first for one in diagnosis.findings)
    lines = [f"{one.check}: {one.what}" + (f"; {one.todo}" if one.todo else "") for one in first]
    if rest:
        lines.append(f"{counted(rest, 'other warning')} about the data in the report; alexnet doctor has all")
    return lines


def _kind(diagnosis: Diagnosis | None, numbers: Numbers) -> str:
    """The color of the verdict: good only where the data is sound and more than guessing is shown."""
    if diagnosis is not None and not diagnosis.honest:
        return "bad"
    return "good" if diagnosis is not None and learned(numbers) else "plain"


def _tables(numbers: Numbers, classes: tuple[str, ...]) -> dict[str, Any]:
    result, scores = numbers.classes, numbers.responses.scores()
    rows = [
        ("top-1: the first prediction is right", result.top1),
        ("top-5: one of the first five is", result.top5),
        ("balanced accuracy: mean recall of the classes", result.balanced_accuracy),
        ("mean F1", result.macro_f1),
        ("mean precision", result.macro_precision),
        ("mean area under the curve", result.macro_auroc),
    ]
    groups = len(set(numbers.responses.groups))
    how = "of top-1 and top-5 Wilson's, of the others the bootstrap over images (2,000 resamples)"
    if groups:
        how = f"bootstrap over {groups:,} groups of images, each drawn whole (2,000 resamples)"
    weakest = sorted((one for one in result.classes if one.images), key=lambda one: (one.f1.value, one.name))
    table = [
        (
            one.name,
            f"{one.images:,}",
            percent(one.recall.value),
            interval(one.recall),
            *((percent(one.precision.value), interval(one.precision)) if one.predicted else ("never guessed", "")),
            percent(one.f1.value),
            "" if np.isnan(one.auroc.value) else percent(one.auroc.value),
        )
        for one in weakest[:CLASSES]
    ]
    return {
        "split": f"{len(numbers.responses):,} {numbers.responses.split} images",
        "numbers": [(name, percent(one.value), interval(one)) for name, one in rows if one is not None],
        "numbers_note": f"Errors are what is missing to 100 %. Mean loss {scores.loss:.4f} nats. One view of each. "
        f"95 % CI: {how}; Wilson's where {'groups' if groups else 'images'} are few.",
        "classes": table,
        "more_classes": max(0, len(weakest) - CLASSES),
        "confused": [(classes[true], classes[prediction], str(times)) for true, prediction, times in numbers.confused],
    }


def _sureness(numbers: Numbers) -> dict[str, Any]:
    result = numbers.reliability
    words = (
        f"Mean confidence is {percent(result.confidence)}, accuracy is {percent(result.accuracy)}. "
        f"The expected calibration error is {100 * result.ece:.1f} points; perfectly calibrated probabilities would "
        f"show {100 * result.ece_by_chance:.1f} on so many images. The Brier score is {result.brier:.3f}."
    )
    rows = []
    for coverage in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3):
        threshold, risk = numbers.curve.at(coverage)
        rows.append((percent(coverage), likely(threshold), percent(risk)))
    lines = []
    for one in numbers.marked:
        if one.answered:
            wrong = f"{percent(one.error)} of those wrong (95 % CI {100 * one.low:.1f} to {100 * one.high:.1f} %)"
            lines.append(
                f"Threshold {one.threshold:.3f}, found on the validation images: {percent(one.coverage)} "
                f"of these images are answered, {wrong}."
            )
    none = "The bundle carries no thresholds; the table is of these images, so choose none by it."
    return {"reliability_words": words, "coverage": rows, "thresholds": lines or [none]}


def _images(
    run: Path,
    classifier: Classifier,
    split: Split,
    numbers: Numbers,
    store: Store,
    quick: bool,
    say: Callable[[str], None],
    progress: Phases | None,
) -> dict[str, Any]:
    order = np.random.default_rng(0).permutation(len(split)).astype(np.int64)
    text = Shown.of_split(split, order[:IMAGES])
    wrong, near = plotting.mistakes(split, numbers.responses, classifier.bundle.temperature, MISTAKES)
    some = Shown.of_split(split, order[:LOOKED])
    looked = [
        {
            "title": one.title,
            "panels": [
                (pages.photograph(image), name + (f" ({remark})" if remark else ""))
                for image, name, remark in zip(looks.panels(one), looks.COLUMNS, looks.remarks(one), strict=True)
            ],
        }
        for one in plotting.look(classifier, some)
    ]
    index, why = _index(run, classifier, store, quick, say, progress)
    rows = [] if index is None else plotting.near(classifier, Shown.of_split(split, order[:ROWS]), index)
    return {
        "images": _cards(classifier, text),
        "mistakes": _cards(classifier, wrong, near) if len(wrong) else [],
        "looked": looked,
        "looked_note": looks.NOTE.replace("\n", " "),
        "no_neighbors": why,
        "neighbors": [_row(row) for row in rows],
    }


def _index(
    run: Path, classifier: Classifier, store: Store, quick: bool, say: Callable[[str], None], progress: Phases | None
) -> tuple[Any, str]:
    """The index of neighbors, or None and why there is none."""
    rate = classifier.bundle.metrics.get("test", {}).get("images_per_second") or 1e-9
    count = len(store.split("train"))
    if quick and not (run / INDEX).is_file() and count / rate > SECONDS:
        return None, f"There is no index of the {count:,} training images yet: alexnet report {run} makes it."
    return plotting.index_of(run, classifier, say, progress("indexing") if progress else None, store), ""


def _cards(classifier: Classifier, items: Shown, near: Sequence[int] = ()) -> list[dict[str, Any]]:
    cards, predictions = [], classifier.predict(list(items.images), top=3)
    for image, name, label, answer, copies in zip(
        items.images, items.names, items.labels, predictions, near or [0] * len(items), strict=True
    ):
        truth = "" if label is None else classifier.classes[label]
        words = ", ".join(f"{prediction} ({likely(p)})" for prediction, p in answer.top_k)
        words = f"predicted: {words}" + (f"; +{copies} near-identical" if copies else "")
        cards.append(
            {
                "image": pages.photograph(image),
                "alt": f"{truth}: {name}",
                "truth": truth,
                "words": words,
                "right": answer.label == truth,
            }
        )
    return cards


def _row(row: Row) -> list[dict[str, str]]:
    first = {
        "image": pages.photograph(row.image, 112),
        "alt": f"an image of {row.truth}",
        "words": row.heading.replace("\n", ", "),
    }
    number = decimals([one.distance for one in row.near])
    return [first] + [
        {
            "image": pages.photograph(one.image, 112),
            "alt": f"training image of {one.label}",
            "words": f"{number(one.distance)} · {one.label}",
        }
        for one in row.near
    ]


def _charts(run: Path, classifier: Classifier, numbers: Numbers) -> dict[str, str]:
    """The drawings as data: addresses; an empty one where there is nothing to draw."""
    from alexnet.plots import confusion, curves, filters, reliability, risk_coverage

    rows, table = report_facts.epochs_of(run), numbers.responses.scores().confusion.numpy()
    draw: dict[str, Callable[[Path], Path]] = {
        "confusion": lambda to: confusion.draw(table, list(classifier.classes), to),
        "reliability": lambda to: reliability.draw(numbers.reliability.bins, to),
        "risk": lambda to: risk_coverage.draw(numbers.curve, numbers.marked, to),
        "filters": lambda to: filters.draw(*plotting.first_filters(classifier), to),
    }
    if rows:
        draw["curves"] = lambda to: curves.draw(rows, to)
    with temporary_folder() as folder:
        made = {name: pages.png(one(folder / f"{name}.png").read_bytes()) for name, one in draw.items()}
    return {"curves": "", **made}
