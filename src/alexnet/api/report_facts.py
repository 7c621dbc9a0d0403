"""What a report says about a run: facts gathered from its folder, its bundle, its images and the machine.

The first paragraph of a report: what a classifier is worth, in words that need no training to be read.
"""

import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alexnet import recipe as recipes
from alexnet.api.data import data_of_run, options_of_run
from alexnet.api.provenance import Provenance
from alexnet.bundle import Bundle, find_bundle, weights_sha256
from alexnet.bundle.integrity import read_config
from alexnet.data.sources import is_store
from alexnet.data.sources.listing import regrouped
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store
from alexnet.doctor.findings import Report as Diagnosis
from alexnet.doctor.images import Phases
from alexnet.errors import AlexNetError, DataError
from alexnet.evaluation.calibration import (
    Reliability,
    RiskCoverage,
    SelectiveMetrics,
    at_threshold,
    probabilities,
    reliability,
    risk_coverage,
)
from alexnet.evaluation.evaluate import SplitPredictions
from alexnet.evaluation.intervals import Estimate, proportion_ci
from alexnet.evaluation.per_class import PerClass, per_class
from alexnet.recipe import Recipe
from alexnet.training.logger import read_events, read_rows

SURE = 0.9  # a first prediction from here on is called sure


@dataclass(frozen=True)
class Numbers:
    """All that is counted on one split. ``sure`` is the probability of each first prediction, calibrated: [N]."""

    responses: SplitPredictions
    classes: PerClass
    reliability: Reliability
    curve: RiskCoverage
    marked: tuple[SelectiveMetrics, ...]  # what the bundle's own thresholds do here
    sure: Any
    commonest: float  # share of the most frequent class: what guessing it always would reach

    @property
    def confused(self) -> list[tuple[int, int, int]]:
        """(true class, guessed class, images), the most frequent confusions first."""
        table = self.responses.scores().confusion.numpy().copy()
        np.fill_diagonal(table, 0)
        order = np.argsort(-table, axis=None, kind="stable")
        pairs = [(int(i // len(table)), int(i % len(table))) for i in order[:8]]
        return [
            (true, prediction, int(table[true, prediction])) for true, prediction in pairs if table[true, prediction]
        ]


def count(bundle: Bundle, responses: SplitPredictions) -> Numbers:
    """Everything that is counted, by the evaluation's own functions."""
    temperature = bundle.temperature
    calibrated = probabilities(responses.log_probabilities, temperature)
    sure, right = calibrated.max(1), responses.correct
    thresholds = sorted(bundle.thresholds.values())
    marked = tuple(at_threshold(sure, right, threshold, responses.groups) for threshold in thresholds)
    return Numbers(
        responses,
        per_class(responses, bundle.classes, temperature=temperature),
        reliability(calibrated, responses.labels, groups=responses.groups),
        risk_coverage(sure, right),
        marked,
        sure,
        float(np.bincount(responses.labels).max() / len(responses)),
    )


def diagnose(
    about: Mapping[str, Any], store: Store, bundle: Bundle, options: DataOptions, progress: Phases | None = None
) -> tuple[Diagnosis | None, str]:
    """The doctor's report on what a run was trained on (``about``: its run.json), or None and why there is none.

    Judged are the images and the splits of the run's store, read with the options of its training. The images must
    still be there by their names; their dates may have changed.
    """
    from alexnet.doctor.examine import examine

    data = data_of_run(about)
    if is_store(data):
        return None, f"the run was trained from a prepared store, {data}; the doctor looks at the images themselves"
    faults: list[DataError] = []
    # the store has no image that was excluded: the list itself may be gone
    options = replace(options_of_run(about, options), exclude=options.exclude, bad="exclude")
    try:
        source = regrouped(options.open(data, faults), bundle.data.get("grouping", ""))
    except (AlexNetError, OSError) as error:
        return None, f"the images are not at hand ({error})"
    known = {image.origin: image for part in source.splits.values() for image in part}
    used = {name: [str(row["origin"]) for row in part.origins()] for name, part in store.splits.items()}
    total = sum(map(len, used.values()))
    gone = sum(origin not in known for origins in used.values() for origin in origins)
    if gone:
        return None, f"{gone:,} of the {total:,} images that the run used are no longer in {data}"
    for row in store.left_out():
        if str(row["origin"]) in known:
            used[str(row["split"])].append(str(row["origin"]))
    splits = {
        name: tuple(known[origin] for origin in origins if origin not in source.excluded)
        for name, origins in used.items()
    }
    allowed = options.allow_truncated
    return examine(source, faults, splits=splits, allow_truncated=allowed, progress=progress), ""


def copies_across_splits(store: Store) -> int:
    """How many images of validation and test have the bytes of a training image, by the SHA-256 of their files."""
    train = {row["sha256"] for row in store.split("train").origins()}
    return sum(row["sha256"] in train for name in ("validation", "test") for row in store.split(name).origins())


def made_of(about: dict[str, Any], bundle: Bundle, recipe: Recipe, store: Store) -> list[tuple[str, str]]:
    """What was trained on what, as (name, value)."""
    network, data = bundle.network, bundle.data
    parameters, names = sum(p.numel() for p in network.parameters()), ", ".join(bundle.classes[:30])
    side = network.image_size
    counts = [f"{n:,} {'to train' if k == 'train' else f'for the {k}'}" for k, n in data.get("counts", {}).items()]
    started = data.get("from")
    start = f"{started['name']} (SHA-256 {started['sha256']})" if started else "random weights"
    return [
        ("images", f"{data.get('name', 'unknown')}, from {about.get('data', 'unknown')}"),
        ("split", ", ".join(counts)),
        ("kept together", str(data["grouping"]) if data.get("grouping") else "nothing: each image stands for itself"),
        ("left out", f"{store.skipped:,} images that could not be used or were excluded"),
        ("classes", f"{len(bundle.classes)}: {names}{' …' if len(bundle.classes) > 30 else ''}"),
        ("network", f"{network.name}, {parameters:,} parameters, sees {side}×{side} pixels"),
        ("started from", start),
        ("recipe", f"{recipe.recipe}, {recipe.epochs} epochs, batches of {recipe.batch_size}, seed {recipe.seed}"),
    ]


def chosen(made: Provenance) -> list[str]:
    """What chose what: the lines that stand under every number."""
    lines = [f"The weights are those of {made.epoch}."]
    if made.temperature_by:
        targets = ", ".join(f"{100 * float(target):g} %" for target in made.thresholds)
        result = f"the thresholds for an error of {targets}" if targets else "no thresholds: there were too few"
        number = f"The temperature {made.temperature:.3f}"
        lines.append(f"{number} was found on {made.count:,} {made.temperature_by} images, as were {result}.")
    else:
        lines.append("The probabilities are the network's own: no temperature was fitted, and there are no thresholds.")
    lines.append("Nothing was chosen by the test images.")
    if made.tested:
        times = "once more" if made.tested == 1 else f"{made.tested} times"
        lines.append(f"They were evaluated {times} since training: what is changed because of that is chosen by them.")
    return lines


def cost(
    run: Path, events: list[dict[str, Any]], rows: list[dict[str, float]], bundle: Bundle
) -> list[tuple[str, str]]:
    """Time and speed, as (name, value)."""
    seconds = sum(row.get("seconds", 0.0) for row in rows)
    seen = sum(row.get("seconds", 0.0) * row.get("images_per_second", 0.0) for row in rows)
    started = next((e for e in events if e["event"] == "started"), {})
    scores = bundle.metrics.get("test", {})
    return [
        ("training", f"{duration(seconds)} for {len(rows)} epochs" if rows else "no record"),
        ("training speed", f"{seen / seconds:,.0f} images a second" if seconds else "no record"),
        (
            "answering speed",
            f"{scores['images_per_second']:,.0f} images a second, in batches"
            if scores.get("images_per_second")
            else "no record",
        ),
        ("device", str(started.get("device", "no record"))),
        ("size on disk", f"{_size(find_bundle(run)) / 1e6:,.0f} MB"),
    ]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def duration(seconds: float) -> str:
    """4000 -> 1 h 6 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def again(run: Path, about: dict[str, Any], bundle: Bundle, recipe: Recipe, store: Store) -> dict[str, Any]:
    """How to make the run again: commands, versions, seeds, fingerprints."""
    from importlib.metadata import version

    config = read_config(find_bundle(run))[0]
    made_with, here = config.get("versions", {}), f"python {platform.python_version()}, {platform.machine()}"
    return {
        "commands": [command(about, recipe), f"alexnet evaluate {run}", f"alexnet report {run}"],
        "facts": [
            ("trained with", ", ".join(f"{name} {number}" for name, number in made_with.items()) or "unknown"),
            ("reported with", f"alexnet {version('alexnet')}, {here}"),
            ("seed", str(recipe.seed)),
            ("weights, SHA-256", weights_sha256(run)),
            ("images as prepared, SHA-256", store.fingerprint),
            ("images as found, SHA-256", str(bundle.data.get("source", "unknown"))),
        ],
    }


def command(about: dict[str, Any], recipe: Recipe) -> str:
    """What one would type to train the run again: every number that is not its named recipe's own,
    and what was said about which images count (unknown in runs of before that was kept)."""
    words = ["alexnet", "train", str(about.get("data", "DATA")), "--recipe", recipe.recipe]
    base = recipes.get_recipe(recipe.recipe)
    for name in recipes.differences(base, recipe):
        value = getattr(recipe, name)
        if isinstance(value, bool):
            words.append(recipes.option(name) if value else recipes.option(name).replace("--", "--no-", 1))
        else:
            words += [recipes.option(name), *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    words += about.get("options", [])
    if "from" in about:
        words += ["--init-from", str(about["from"].get("name", "RUN"))]
    if "layers" in about:
        words += ["--layers", "layers.cfg", "--layer-params", "layer-params.cfg"]
    return shlex.join(words)


def events_of(run: Path) -> list[dict[str, Any]]:
    """The lines of the run's journal that can be read."""
    try:
        return read_events(run)[0]
    except OSError:
        return []


def epochs_of(run: Path) -> list[dict[str, float]]:
    """The rows of results.csv; none where there is no such file. Raises :class:`RunError` for a damaged one."""
    try:
        return read_rows(run)
    except OSError:
        return []


HONEST = 0.02  # of calibration error beyond chance, from which probabilities are called wrong


def verdict(numbers: Numbers, classes: Sequence[str], diagnosis: Diagnosis | None, why: str) -> list[str]:
    """Sentences; the first is that the data is at fault, where the doctor found it so."""
    return [
        sentence
        for sentence in (
            _faults(diagnosis),
            _right(numbers, classes),
            _weakest(numbers),
            _sure(numbers),
            _few(numbers),
            "All of this holds for images like these: taken by the same means, of the same kinds of things.",
            "" if diagnosis else f"Whether the data is sound was not examined: {why}.",
        )
        if sentence
    ]


def percent(part: float) -> str:
    """0.765 -> 76.5 %; whole ones without a decimal."""
    return f"{100 * part:.1f} %".replace(".0 %", " %")


def interval(estimate: Estimate) -> str:
    """73.8 to 79.0 %."""
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f} %"


def _faults(diagnosis: Diagnosis | None) -> str:
    if diagnosis is not None and not diagnosis.honest:
        errors = sum(finding.severity == "error" for finding in diagnosis.findings)
        fault = "a fault" if errors == 1 else f"{errors} faults"
        return (
            f"Do not rely on the numbers below: the data has {fault} that would make any result look wrong or too good."
        )
    return ""


def _right(numbers: Numbers, classes: Sequence[str]) -> str:
    top1, count = numbers.classes.top1, len(numbers.responses)
    words = f"Of {count:,} {numbers.responses.split} images, which it had never seen, "
    if numbers.responses.split != "test":
        words = f"There were no test images. Of {count:,} {numbers.responses.split} images, by which it was chosen, "
    words += f"it named the right one of {len(classes)} classes for {percent(top1.value)} (95 % CI {interval(top1)}"
    words += f"); always saying the most frequent class would be right for {percent(numbers.commonest)}."
    return words if learned(numbers) else f"{words} That it learned anything is not shown: this may be luck."


def learned(numbers: Numbers) -> bool:
    """Is all of the interval above what always saying the most frequent class would reach?"""
    return numbers.classes.top1.low > numbers.commonest


def _weakest(numbers: Numbers) -> str:
    seen = sorted((one for one in numbers.classes.classes if one.images), key=lambda one: one.recall.value)
    if len(seen) < 2 or seen[0].recall.value == 1:
        return ""
    low = seen[0]
    words = f"It is weakest at {low.name}, of which it recognized {percent(low.recall.value)} of {low.images}"
    if numbers.confused:
        true, prediction, images = numbers.confused[0]
        names = numbers.classes.classes
        times = "once" if images == 1 else f"{images} times"
        words += f"; most often, {times}, it took {names[true].name} for {names[prediction].name}"
    return words + "."


def _sure(numbers: Numbers) -> str:
    result = numbers.reliability
    certain = numbers.sure >= SURE
    words = ""
    if certain.any():
        right = proportion_ci(numbers.responses.correct[certain])
        words = (
            f"Where it was at least {percent(SURE)} sure ({percent(certain.mean())} of the images) it was right for "
        )
        words += f"{percent(right.value)}. "
    gap = result.confidence - result.accuracy
    if result.ece <= result.ece_by_chance + HONEST:
        return words + "How sure it says it is agrees with how often it is right."
    kind = "surer" if gap > 0 else "less sure"
    words += f"It is {kind} than it should be: {percent(result.confidence)} sure on average, "
    return words + f"and right for {percent(result.accuracy)}."


def _few(numbers: Numbers) -> str:
    few = [one.name for one in numbers.classes.classes if 0 < one.images < 20]
    if not few:
        return ""
    names = ", ".join(few[:3]) + (" …" if len(few) > 3 else "")
    return f"Of {len(few)} classes there were fewer than 20 such images ({names}): little can be said of those."
