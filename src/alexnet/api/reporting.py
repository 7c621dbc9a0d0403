"""``report.html``: everything about a run on one page that a manager, a doctor and an engineer can each read."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.api import explaining, facts
from alexnet.api.explaining import Shown
from alexnet.api.facts import Numbers
from alexnet.api.honest import responses_of
from alexnet.api.provenance import note_test, of_bundle
from alexnet.api.verdict import interval, learned, percent, verdict
from alexnet.batches.loader import choose_device
from alexnet.bundle import Bundle, find
from alexnet.data.doctor.findings import Report as Diagnosis
from alexnet.data.doctor.looking import Phases
from alexnet.data.options import DataOptions
from alexnet.data.remote import local_path
from alexnet.data.store import Split, Store, recorded
from alexnet.deploy.classifier import Classifier
from alexnet.errors import RunError, counted
from alexnet.evaluation.neighbors import FILE as INDEX
from alexnet.temporary import temporary_folder
from alexnet.training import run as runs
from alexnet.visualize import report as pages
from alexnet.visualize import saliency as looks
from alexnet.visualize.canvas import decimals
from alexnet.visualize.neighbors import Row
from alexnet.visualize.predictions import percent as likely

PICTURES, MISTAKES, LOOKED, ROWS, CLASSES = 10, 10, 4, 5, 100  # of each at most on the page
SECONDS = 20.0  # that a report at the end of a training may spend on an index
FEW = 3000  # pictures that the doctor looks at even then


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

    ``store`` is where its prepared pictures lie now, if they were moved. ``doctor``: examine the pictures themselves,
    if they are at hand. ``quick`` leaves out what would take long: the doctor on many pictures, an index of neighbors
    that is not there yet. ``progress`` makes the progress bar of each phase, from its name. ``diagnosis`` is what
    :func:`diagnose` returned, where it was called already. Raises :class:`RunError`, :class:`BundleError`,
    :class:`DataError`.
    """
    run, options = local_path(run), options or DataOptions()
    target = local_path(path) if path else run / "report.html"
    recipe, about = runs.read_start(run)
    epochs = facts.epochs_of(run)
    classifier = Classifier.load(run, choose_device(device))
    opened = Store.open(store or recorded(run, about))
    classifier.bundle.same_classes(opened.classes, opened.address)
    split = next((s for s in (opened.split("test"), opened.split("validation")) if len(s)), None)
    if split is None:
        raise RunError(f"{opened.address} has neither test nor validation pictures", "one at least", "train with some")
    numbers = facts.count(classifier.bundle, responses_of(classifier, split))
    if not quick:  # at the end of a training it is the look that training took itself
        note_test(run, opened, split.name, "report", options.tell)
    found, why = diagnosis or (None, "it was left out on purpose")
    if diagnosis is None and doctor:
        found, why = diagnose(run, store=store, quick=quick, options=options, progress=progress)
    values = {
        "title": f"{classifier.network.name} on {classifier.bundle.data.get('name', run.name)}",
        "subtitle": f"Report of {run.resolve().name}: what was trained, how good it is, and why one may believe it.",
        "verdict": verdict(numbers, classifier.classes, found, why),
        "kind": _kind(found, numbers),
        "made": facts.made_of(about, classifier.bundle, recipe, opened),
        "chosen": facts.chosen(of_bundle(classifier.bundle, run)),
        "diagnosis": found,
        "undiagnosed": why,
        "cost": facts.cost(run, facts.events_of(run), epochs, classifier.bundle),
        "again": facts.again(run, about, classifier.bundle, recipe, opened),
    }
    values |= _tables(numbers, classifier.classes) | _sureness(numbers)
    values |= _pictures(run, classifier, split, numbers, opened, quick, options.tell, progress)
    values |= {
        "charts": _charts(run, classifier, numbers),
        "color": explaining.color_note(explaining.color_of(classifier)),
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
    return facts.diagnose(about, opened, Bundle.load(find(run)), options or DataOptions(), progress)


_DISHONEST = {"leak-validation", "group-guess", "shortcut"}  # warnings of the doctor that make a result look too good


def data_warnings(run: str | Path, diagnosis: Diagnosis | None, *, store: str | Path | None = None) -> list[str]:
    """What to know of a run's data before its numbers: what the doctor found, or else what the store alone shows."""
    if diagnosis is None:
        opened = Store.open(store or recorded(local_path(run), runs.read_start(local_path(run))[1]))
        copies = facts.copies_across_splits(opened)
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
    found, scores = numbers.classes, numbers.responses.scores()
    rows = [
        ("top-1: the first guess is right", found.top1), ("top-5: one of the first five is", found.top5),
        ("balanced accuracy: mean recall of the classes", found.balanced_accuracy), ("mean F1", found.macro_f1),
        ("mean precision", found.macro_precision), ("mean area under the curve", found.macro_auroc),
    ]  # fmt: skip
    groups = len(set(numbers.responses.groups))
    how = "of top-1 and top-5 Wilson's, of the others the bootstrap over images (2,000 resamples)"
    if groups:
        how = f"bootstrap over {groups:,} groups of images, each drawn whole (2,000 resamples)"
    weakest = sorted((one for one in found.classes if one.pictures), key=lambda one: (one.f1.value, one.name))
    table = [
        (one.name, f"{one.pictures:,}", percent(one.recall.value), interval(one.recall),
         *((percent(one.precision.value), interval(one.precision)) if one.predicted else ("never guessed", "")),
         percent(one.f1.value), "" if np.isnan(one.auroc.value) else percent(one.auroc.value))
        for one in weakest[:CLASSES]
    ]  # fmt: skip
    return {
        "split": f"{len(numbers.responses):,} {numbers.responses.split} pictures",
        "numbers": [(name, percent(one.value), interval(one)) for name, one in rows if one is not None],
        "numbers_note": f"Errors are what is missing to 100 %. Mean loss {scores.loss:.4f} nats. One view of each. "
        f"95 % CI: {how}; Wilson's where {'groups' if groups else 'images'} are few.",
        "classes": table,
        "more_classes": max(0, len(weakest) - CLASSES),
        "confused": [(classes[true], classes[guess], str(times)) for true, guess, times in numbers.confused],
    }  # fmt: skip


def _sureness(numbers: Numbers) -> dict[str, Any]:
    found = numbers.reliability
    words = (
        f"On average it is {percent(found.confidence)} sure and {percent(found.accuracy)} right. Its calibration error "
    )
    words += (
        f"is {100 * found.ece:.1f} points; perfectly honest probabilities would show {100 * found.ece_by_chance:.1f} "
    )
    words += f"on so many pictures. Brier score {found.brier:.3f}."
    rows = []
    for coverage in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3):
        threshold, risk = numbers.curve.at(coverage)
        rows.append((percent(coverage), likely(threshold), percent(risk)))
    lines = []
    for one in numbers.marked:
        if one.answered:
            wrong = f"{percent(one.error)} of those wrong (95 % CI {100 * one.low:.1f} to {100 * one.high:.1f} %)"
            lines.append(f"Threshold {one.threshold:.3f}, found on the validation pictures: {percent(one.coverage)} "
                         f"of these pictures are answered, {wrong}.")  # fmt: skip
    none = "The bundle carries no thresholds; the table is of these pictures, so choose none by it."
    return {"reliability_words": words, "coverage": rows, "thresholds": lines or [none]}


def _pictures(
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
    shown = Shown.of_split(split, order[:PICTURES])
    wrong, near = explaining.mistakes(split, numbers.responses, classifier.bundle.temperature, MISTAKES)
    some = Shown.of_split(split, order[:LOOKED])
    looked = [
        {"title": one.title, "panels": [(pages.photograph(image), name + (f" ({remark})" if remark else ""))
                                        for image, name, remark in
                                        zip(looks.panels(one), looks.COLUMNS, looks.remarks(one), strict=True)]}
        for one in explaining.look(classifier, some)
    ]  # fmt: skip
    index, why = _index(run, classifier, store, quick, say, progress)
    rows = [] if index is None else explaining.near(classifier, Shown.of_split(split, order[:ROWS]), index)
    return {
        "pictures": _cards(classifier, shown), "mistakes": _cards(classifier, wrong, near) if len(wrong) else [],
        "looked": looked, "looked_note": looks.NOTE.replace("\n", " "), "no_neighbors": why,
        "neighbors": [_row(row) for row in rows],
    }  # fmt: skip


def _index(
    run: Path, classifier: Classifier, store: Store, quick: bool, say: Callable[[str], None], progress: Phases | None
) -> tuple[Any, str]:
    """The index of neighbors, or None and why there is none."""
    rate = classifier.bundle.metrics.get("test", {}).get("images_per_second") or 1e-9
    count = len(store.split("train"))
    if quick and not (run / INDEX).is_file() and count / rate > SECONDS:
        return None, f"There is no index of the {count:,} training pictures yet: alexnet report {run} makes it."
    return explaining.index_of(run, classifier, say, progress("indexing") if progress else None, store), ""


def _cards(classifier: Classifier, shown: Shown, near: Sequence[int] = ()) -> list[dict[str, Any]]:
    cards, answers = [], classifier.predict(list(shown.images), top=3)
    for image, name, label, answer, copies in zip(
        shown.images, shown.names, shown.labels, answers, near or [0] * len(shown), strict=True
    ):
        truth = "" if label is None else classifier.classes[label]
        words = ", ".join(f"{guess} ({likely(p)})" for guess, p in answer.guesses)
        words = f"predicted: {words}" + (f"; +{copies} near-identical" if copies else "")
        cards.append({"image": pages.photograph(image), "alt": f"{truth}: {name}", "truth": truth, "words": words,
                      "right": answer.label == truth})  # fmt: skip
    return cards


def _row(row: Row) -> list[dict[str, str]]:
    first = {
        "image": pages.photograph(row.picture, 112),
        "alt": f"a picture of {row.truth}",
        "words": row.heading.replace("\n", ", "),
    }
    number = decimals([one.distance for one in row.near])
    return [first] + [
        {"image": pages.photograph(one.picture, 112), "alt": f"training picture of {one.label}",
         "words": f"{number(one.distance)} · {one.label}"}
        for one in row.near
    ]  # fmt: skip


def _charts(run: Path, classifier: Classifier, numbers: Numbers) -> dict[str, str]:
    """The drawings as data: addresses; an empty one where there is nothing to draw."""
    from alexnet.visualize import confusion, curves, filters, reliability, risk_coverage

    rows, table = facts.epochs_of(run), numbers.responses.scores().confusion.numpy()
    draw: dict[str, Callable[[Path], Path]] = {
        "confusion": lambda to: confusion.draw(table, list(classifier.classes), to),
        "reliability": lambda to: reliability.draw(numbers.reliability.bins, to),
        "risk": lambda to: risk_coverage.draw(numbers.curve, numbers.marked, to),
        "filters": lambda to: filters.draw(*explaining.first_filters(classifier), to),
    }
    if rows:
        draw["curves"] = lambda to: curves.draw(rows, to)
    with temporary_folder() as folder:
        made = {name: pages.png(one(folder / f"{name}.png").read_bytes()) for name, one in draw.items()}
    return {"curves": "", **made}
