"""How fast a contestant is on this machine: some steps of its own training, measured before any contestant begins.

What fits into the time: each network's pace is measured once, before anybody begins, and its epochs go by it.

Milliseconds an image: every contestant answers one image at a time, in turns, so that a busy moment hits all.

What came of a contest: a row a contestant, each compared with AlexNet; for people, as CSV and as Markdown.

A contest from the plan to the chart. The same call again finds finished contestants and goes on with the others.
"""

import csv
import io
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.bundle import Bundle
from alexnet.data.atomic_io import json_bytes, write_file
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Split, Store
from alexnet.errors import RunError
from alexnet.evaluation.evaluate import log_probabilities
from alexnet.evaluation.intervals import Estimate, PairedComparison, compare, proportion_ci
from alexnet.experiments import plan as materials
from alexnet.experiments.contest import entry
from alexnet.experiments.contest import entry as kept
from alexnet.experiments.contest import plan as budget
from alexnet.experiments.contest.entry import Answers, Clock, Entry
from alexnet.experiments.contest.plan import ENTRANTS, FISHER, JUDGE, Contestant, Pace, Plan, same, words
from alexnet.experiments.fisher.classifier import FisherClassifier, Settings, settings_within
from alexnet.experiments.plan import Material, read_file
from alexnet.loader.loader import Batch, Loader, choose_device, sequential_batches, to_device
from alexnet.recipe import Recipe, from_dict
from alexnet.training import loop, runtime
from alexnet.training import run as runs
from alexnet.training.run import statistics_of
from alexnet.training.state import State

LEAST, MOST, ENOUGH = 3, 60, 2.5  # timed steps; of more than the least, none is begun after so many seconds
WRITTEN = 40  # bytes on disk for each parameter: two checkpoints of four numbers, the best, the bundle
RATE = 150e6  # bytes a second that are hashed, written and flushed, with care


def measure_training(recipe: Recipe, store: Store, device: torch.device) -> Pace:
    """Seconds an image at the recipe's sizes: one step to warm up, then a few that count, batches included."""
    started = time.perf_counter()
    with runtime.cpu_settings(recipe):
        state = State(recipe, store, device)
        network = state.network
        statistics = statistics_of(store, recipe, network.image_size)
        loader = Loader(
            store.split("train"),
            recipe,
            statistics,
            image_size=network.image_size,
            channels=network.in_channels,
            device=device,
        )
        begun = time.perf_counter() - started
        sides = sorted({network.image_size, recipe.progressive_size or network.image_size})
        seconds = [_train(state, loader, side) for side in sides if side <= network.image_size]
        eval_model = _judge(state, store)
    parameters = sum(p.numel() for p in network.parameters())
    return Pace(seconds[0], seconds[-1], eval_model, 2 * begun + parameters * WRITTEN / RATE)


def _train(state: State, loader: Loader, side: int) -> float:
    """Seconds to learn from an image whose view has ``side`` pixels."""
    batches = _endless(loader, side)
    state.network.train()
    loop.train_step(state, next(batches))
    results: list[float] = []
    started = time.perf_counter()
    while len(results) < LEAST or (len(results) < MOST and time.perf_counter() - started < ENOUGH):
        begun = time.perf_counter()
        batch = next(batches)
        loop.train_step(state, batch)
        state.position.step += 1
        state.update_ema()
        results.append((time.perf_counter() - begun) / len(batch.labels))
    return median(results)  # what else happens on the machine disturbs single steps


def _endless(loader: Loader, side: int) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from loader.epoch(epoch, 0, side)
        epoch += 1


def _judge(state: State, store: Store) -> float:
    """Seconds to judge an image at full size."""
    network = state.eval_model.eval()
    statistics = to_device(statistics_of(store, state.recipe, network.image_size), state.device)
    split = store.split("validation")
    images, _ = next(sequential_batches(split, min(64, len(split))))
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        log_probabilities(
            network,
            images.to(state.device),
            statistics,
            image_size=network.image_size,
            channels=network.in_channels,
        ).cpu()
        seconds.append(time.perf_counter() - started)
    return min(seconds) / len(images)


MEASURED = "measuring"  # in the clock: paces and milliseconds, which are nobody's own
FEWEST = 3  # epochs: whom nobody has named and who has no time for so many does not take part


@dataclass
class _File:
    """``recipes.json``."""

    recipes: dict[str, dict[str, Any]]
    left_out: dict[str, str]
    paces: dict[str, Pace]


@dataclass(frozen=True)
class Fitted:
    """A contest that fits: ``plan`` with those who take part, the networks' recipes, and who does not, and why."""

    plan: Plan
    recipes: dict[str, Recipe]
    left_out: dict[str, str]

    @property
    def lines(self) -> tuple[str, ...]:
        """For people."""
        return tuple(f"left out: {ENTRANTS[name].title}: {why}" for name, why in self.left_out.items())


def fit(
    plan: Plan, store: Store, folder: Path, clock: Clock, device: torch.device, options: DataOptions, common: float
) -> Fitted:
    """Measure, and give each network the epochs for which its share is enough; found again in ``recipes.json``.

    Raises :class:`RecipeError` where a network that somebody has named has no time for one epoch.
    """
    path = folder / "recipes.json"
    if path.is_file():
        there = read_file(path, _File)
        results = {name: from_dict(values) for name, values in there.recipes.items()}
        return Fitted(_without(plan, there.left_out), results, there.left_out)
    wanted = {
        contestant.name: runtime.resolve_auto(plan.recipe(contestant), device)
        for contestant in plan.contestants
        if contestant.model
    }
    if not plan.budget:  # contestants with equal epochs are not planned together
        return Fitted(plan, wanted, {})
    options.log_line("measuring a few steps of each network")
    with clock.running(MEASURED):
        paces = {name: measure_training(recipe, store, device) for name, recipe in wanted.items()}
    made = _divided(plan, wanted, paces, _counts(store), common + clock.spent)
    for line in made.lines:
        options.log_line(line)
    recipes = {name: recipe.to_dict() for name, recipe in made.recipes.items()}
    write_file(path, json_bytes(asdict(_File(recipes, made.left_out, paces))))
    return made


def _divided(
    plan: Plan, wanted: Mapping[str, Recipe], paces: Mapping[str, Pace], counts: list[int], spent: float
) -> Fitted:
    """The usual contestants without those who have no time for :data:`FEWEST` epochs: the slowest goes first, and
    what it leaves is everybody's."""
    left_out: dict[str, str] = {}
    while True:
        now = _without(plan, left_out)
        names = [contestant.name for contestant in now.contestants if contestant.model]
        time = budget.CAREFUL * budget.share(plan.budget, spent, len(now.contestants), now.share)
        least = {n: budget.needed(budget.with_epochs(wanted[n], FEWEST), paces[n], plan.side, counts) for n in names}
        slow = [name for name in names if least[name] > time and name != JUDGE]
        if not plan.usual or not slow:
            recipes = {n: budget.fitted(wanted[n], paces[n], plan.side, counts, time) for n in names}
            return Fitted(now, recipes, left_out)
        slowest = max(slow, key=lambda name: least[name])
        left_out[slowest] = (
            f"{FEWEST} epochs take {budget.words(least[slowest])} here, its share is {budget.words(time)}; "
            f"more --budget, smaller crops (--side), or name it in --nets"
        )


def _without(plan: Plan, names: Mapping[str, str]) -> Plan:
    return replace(
        plan, contestants=tuple(contestant for contestant in plan.contestants if contestant.name not in names)
    )


def _counts(store: Store) -> list[int]:
    return [len(store.split(name)) for name in ("train", "validation", "test")]


def refitted(plan: Plan, contestant: Contestant, recipe: Recipe, store: Store, folder: Path, spent: float) -> Recipe:
    """Fewer epochs, one at least, for a network that has not begun while others took longer than they were to."""
    name, path = contestant.name, folder / "recipes.json"
    if not plan.budget or (folder / name / "run.json").is_file():
        return recipe
    written = read_file(path, _File)
    measured = written.paces.get(name)
    if measured is None or name not in written.recipes:
        raise RunError(f"{path} has no measurement of {name}", "", "choose another --output-dir")
    left = sum(entry.finished(each.name, folder) is None for each in plan.contestants)
    time = budget.CAREFUL * budget.share(plan.budget, spent, left, plan.share)
    while recipe.epochs > 1 and budget.needed(recipe, measured, plan.side, _counts(store)) > time:
        recipe = budget.with_epochs(recipe, recipe.epochs - 1)
    written.recipes[name] = recipe.to_dict()
    write_file(path, json_bytes(asdict(written)))
    return recipe


ROUNDS = 30  # images that each answers at most
WARM = 2  # rounds before those, which do not count

Answerer = Callable[[NDArray[np.uint8]], Any]  # a stored image [S, S, 3] -> an answer that is there when it returns


@dataclass(frozen=True)
class Speed:
    """Milliseconds an image, batch 1: the median over the rounds, and the middle half of them."""

    median: float
    low: float
    high: float
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"median": self.median, "middle_half": [self.low, self.high], "rounds": self.rounds}


def answerer(name: str, home: Path, device: torch.device) -> Answerer:
    """What answers for a finished contestant, from its files."""
    if name == FISHER:
        return FisherClassifier.load(home).scores
    bundle = Bundle.load(home / "bundle")
    network, statistics = bundle.network.to(device).eval(), to_device(bundle.statistics, device)
    network = network.to(memory_format=torch.channels_last)

    def answer(image: NDArray[np.uint8]) -> list[float]:
        images = torch.from_numpy(image[None]).to(device)
        result = log_probabilities(
            network, images, statistics, image_size=bundle.image_size, channels=network.in_channels
        )
        return result[0].tolist()

    return answer


def measure_inference(
    answerers: Mapping[str, Answerer], split: Split, most: float, rounds: int = ROUNDS
) -> dict[str, Speed]:
    """Let all answer one image after another, in turns, for ``most`` seconds; three rounds count at least."""
    taken: dict[str, list[float]] = {name: [] for name in answerers}
    begun = time.perf_counter()
    with runtime.cpu_settings():
        for number in range(WARM + rounds):
            image = split.gather(np.array([number % len(split)]))[0]
            for name, answer in answerers.items():
                started = time.perf_counter()
                answer(image)
                if number >= WARM:
                    taken[name].append(1000 * (time.perf_counter() - started))
            if number >= WARM + 2 and time.perf_counter() - begun > most:
                break
    return {name: _speed(values) for name, values in taken.items()}


def _speed(values: list[float]) -> Speed:
    low, median, high = (float(x) for x in np.percentile(values, [25, 50, 75]))
    return Speed(median, low, high, len(values))


IN_2012 = (
    "on ImageNet in 2012, top-5 test error: AlexNet 15.3 % (the mean of seven networks, two of them trained on more "
    "images), the runner-up's Fisher vectors 26.2 %"
)
SURE = 0.05  # a p below it: hardly by chance


@dataclass(frozen=True)
class Row:
    """A contestant's result. Errors are shares of the test images; ``top5`` is None with five classes or fewer.

    ``against``: this contestant (second) and AlexNet (first) on the same images; None for AlexNet, and without it.
    """

    contestant: Contestant
    entry: Entry
    top1: Estimate | None
    top5: Estimate | None
    against: PairedComparison | None
    speed: Speed | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "name": self.contestant.name,
            "title": self.contestant.title,
            "year": self.contestant.year,
            "published": self.contestant.published,
            "top1_error": self.top1.to_dict() if self.top1 else None,
            "top5_error": self.top5.to_dict() if self.top5 else None,
            "against_alexnet": self.against.to_dict() if self.against else None,
            "milliseconds": self.speed.to_dict() if self.speed else None,
            **{name: value for name, value in vars(self.entry).items() if name != "name"},
        }


def result_rows(
    entries: Mapping[str, Entry], predictions: Mapping[str, Answers], speeds: Mapping[str, Speed], groups: Sequence[str]
) -> list[Row]:
    """A row each, the lowest top-1 error first; who diverged comes last. ``groups``: of the test images."""
    results = []
    for name, contestant in entries.items():
        mine, judge = predictions.get(name), predictions.get(JUDGE)
        few = mine is None or mine.scores.shape[1] <= 5
        against = None
        if mine is not None and judge is not None and name != JUDGE:
            against = compare(judge.first, mine.first, groups)
        top1 = None if mine is None else proportion_ci(~mine.first, groups)
        top5 = None if few or mine is None else proportion_ci(~mine.among(5), groups)
        results.append(Row(ENTRANTS[name], contestant, top1, top5, against, speeds.get(name)))
    return sorted(results, key=lambda row: (row.top1 is None, row.top1.value if row.top1 else 0.0))


def cells(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table for people: columns, and a line each."""
    columns = (
        "contestant",
        "top-1 error",
        "top-5 error",
        "against AlexNet",
        "p (McNemar)",
        "parameters",
        "multiply-adds",
        "epochs",
        "learning",
        "all",
        "ms an image",
        "on disk",
        "its kind at ILSVRC, top-5",
    )
    lines = [_cells(row) for row in rows]
    kept = [i for i, _ in enumerate(columns) if i < 2 or any(line[i] != "–" for line in lines)]
    return tuple(columns[i] for i in kept), [tuple(line[i] for i in kept) for line in lines]


def _cells(row: Row) -> tuple[str, ...]:
    entry = row.entry
    if row.top1 is None:
        return (row.contestant.title, f"diverged: {entry.diverged[:60]}", *["–"] * 11)
    return (
        row.contestant.title,
        _percent(row.top1),
        _percent(row.top5),
        _difference(row.against),
        "–" if row.against is None else f"{row.against.p_value:.2g}",
        _count(entry.parameters),
        _count(entry.multiply_adds),
        "–" if entry.name == FISHER else str(entry.epochs),
        words(entry.training_seconds),
        words(entry.seconds),
        "–" if row.speed is None else f"{row.speed.median:.1f}",
        f"{entry.bytes / 1e6:.1f} MB",
        row.contestant.published or "–",
    )


def _percent(results: Estimate | None) -> str:
    if results is None:
        return "–"
    return f"{100 * results.value:.2f} % ({100 * results.low:.1f}–{100 * results.high:.1f})"


def _difference(results: PairedComparison | None) -> str:
    """Of the errors, in points: what the accuracies differ by, turned round."""
    if results is None:
        return "–"
    difference = results.difference
    value, low, high = (0 - 100 * x for x in (difference.value, difference.high, difference.low))  # never -0.00
    return f"{value:+.2f} ({low:+.1f} to {high:+.1f})"


def _count(number: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)


def result_verdict(rows: Sequence[Row]) -> str:
    """What these images say of the contest of 2012: AlexNet against the runner-up."""
    by_name = {row.contestant.name: row for row in rows}
    if JUDGE not in by_name or FISHER not in by_name:
        return "AlexNet and the runner-up did not both take part"
    ours, theirs = by_name[JUDGE], by_name[FISHER]
    if ours.top1 is None or theirs.top1 is None or theirs.against is None:
        return "AlexNet diverged, so there is no comparison"
    top = f"Top-1 test error: AlexNet {100 * ours.top1.value:.1f} %, Fisher vectors {100 * theirs.top1.value:.1f} %"
    low, high, p = theirs.against.difference.low, theirs.against.difference.high, theirs.against.p_value
    if low <= 0 <= high or p >= SURE:  # where they differ on few images, the exact test is the careful one
        return f"{top}: cannot tell which is better (p = {p:.2g})"
    return f"{top}: {'AlexNet' if high < 0 else 'the runner-up'} is better (p = {p:.2g})"


def csv_text(rows: Sequence[Row]) -> str:
    """A line a contestant, numbers as they are."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = (
        "name",
        "year",
        "top1_error",
        "top1_low",
        "top1_high",
        "top5_error",
        "difference_to_alexnet",
        "p_mcnemar",
        "parameters",
        "multiply_adds",
        "epochs",
        "training_seconds",
        "seconds",
        "milliseconds_a_image",
        "bytes",
        "diverged",
    )
    writer.writerow(names)
    for row in rows:
        entry, one = row.entry, row.top1
        writer.writerow(
            [
                entry.name,
                row.contestant.year,
                *((one.value, one.low, one.high) if one else ("", "", "")),
                row.top5.value if row.top5 else "",
                -row.against.difference.value if row.against else "",
                row.against.p_value if row.against else "",
                entry.parameters,
                entry.multiply_adds,
                entry.epochs,
                round(entry.training_seconds, 2),
                round(entry.seconds, 2),
                row.speed.median if row.speed else "",
                entry.bytes,
                entry.diverged,
            ]
        )
    return out.getvalue()


def markdown(title: str, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The table and what is to be kept in mind, for a page."""
    columns, lines = cells(rows)
    table = [columns, tuple("---" for _ in columns), *lines]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table)
    return f"# {title}\n\n{text}\n\n" + "\n".join(f"* {note}" for note in notes) + "\n\n![errors](contest.png)\n"


@dataclass(frozen=True)
class Outcome:
    """What became of a contest. ``seconds``: of all its sittings. ``notes``: what to keep in mind about the numbers."""

    plan: Plan
    counts: dict[str, int]  # images of each split
    classes: int
    rows: tuple[Row, ...]
    verdict: str
    notes: tuple[str, ...]
    folder: Path
    seconds: float
    left_out: dict[str, str]  # contestant -> why there was no time for it

    @property
    def image(self) -> Path:
        return self.folder / "contest.png"

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "plan": self.plan.to_dict(),
            "counts": self.counts,
            "classes": self.classes,
            "contestants": [row.to_dict() for row in self.rows],
            "verdict": self.verdict,
            "in_2012": IN_2012,
            "notes": list(self.notes),
            "left_out": self.left_out,
            "seconds": round(self.seconds, 1),
            "machine": {"cores": os.cpu_count(), "torch": torch.__version__, "processor": platform.machine()},
        }


@dataclass(frozen=True)
class _StoreFile:
    """``store.json``: the images of a contest."""

    path: str
    fingerprint: str


def run(
    plan: Plan, material: Material, folder: Path, options: DataOptions, *, device: str = "auto", workers: int = 1
) -> Outcome:
    """Hold the contest in ``folder``. Raises :class:`RunError` where it holds another one, and
    :class:`alexnet.errors.Interrupted` after a signal: the same call goes on."""
    same(plan, folder)
    with runs.locked(folder):
        return _held(plan, material, folder, options, device, workers)


def _held(plan: Plan, material: Material, folder: Path, options: DataOptions, device: str, workers: int) -> Outcome:
    begun = time.perf_counter()
    recipe = plan.base.replace(stored_size=plan.stored)
    store = materials.prepare(material, recipe, plan.images, options)
    write_file(folder / "plan.json", json_bytes(plan.to_dict()))
    write_file(folder / "store.json", json_bytes(_same_store(store, folder)))
    clock = Clock(folder)
    common = time.perf_counter() - begun
    chosen = choose_device(device)
    fitted = fit(plan, store, folder, clock, chosen, options, common)
    plan, recipes = fitted.plan, fitted.recipes
    for number, contestant in enumerate(_order(plan), 1):
        if (result := entry.finished(contestant.name, folder)) is None:
            options.log_line(
                f"{number} of {len(plan.contestants)}: {contestant.title}{_how(recipes.get(contestant.name))}"
            )
            result = _enter(plan, contestant, recipes, store, folder, clock, device, workers, options, common)
        options.log_line(f"  {_said(result)}")
    return _finish(fitted, store, folder, clock, chosen, options, common)


def _order(plan: Plan) -> list[Contestant]:
    """The runner-up first: what it takes can not be planned to the second, so what it leaves is for the others."""
    return sorted(plan.contestants, key=lambda contestant: contestant.name != FISHER)


def _same_store(store: Store, folder: Path) -> dict[str, Any]:
    path = folder / "store.json"
    if path.is_file() and read_file(path, _StoreFile).fingerprint != store.fingerprint:
        raise RunError(f"{folder} holds a contest on other images", "", "choose another --output-dir")
    return asdict(_StoreFile(store.absolute, store.fingerprint))


def _enter(
    plan: Plan,
    contestant: Contestant,
    recipes: Mapping[str, Recipe],
    store: Store,
    folder: Path,
    clock: Clock,
    device: str,
    workers: int,
    options: DataOptions,
    common: float,
) -> Entry:
    if contestant.model:
        recipe = refitted(plan, contestant, recipes[contestant.name], store, folder, common + clock.spent)
        return entry.network(
            contestant,
            recipe,
            store,
            folder,
            clock,
            device=device,
            workers=workers,
            pretrained=plan.pretrained,
            say=options.log_line,
        )
    settings = Settings(side=plan.side)
    if plan.budget:
        share = budget.share(plan.budget, common + clock.spent, len(plan.contestants), plan.share)
        settings = settings_within(settings, store, budget.CAREFUL * share)
    else:
        settings = settings_within(settings, store, float("inf"))
    return entry.fisher(contestant.name, settings, store, folder, clock, seed=plan.seed, say=options.log_line)


def _how(recipe: Recipe | None) -> str:
    return "" if recipe is None else f", {recipe.epochs} epoch{'s' * (recipe.epochs > 1)}"


def _said(results: Entry) -> str:
    if results.diverged:
        return f"diverged: {results.diverged}"
    error = "" if results.validation_error is None else f"{100 * results.validation_error:.1f} % validation error, "
    return f"{error}{budget.words(results.seconds)}"


def _finish(
    fitted: Fitted, store: Store, folder: Path, clock: Clock, device: torch.device, options: DataOptions, common: float
) -> Outcome:
    plan = fitted.plan
    entries = {e.name: result for e in plan.contestants if (result := entry.finished(e.name, folder)) is not None}
    predictions = {name: kept.load(folder / f"{name}.npz") for name, result in entries.items() if not result.diverged}
    speeds = _speeds(plan, list(predictions), store, folder, clock, device, options)
    groups = store.split("test").groups
    rows = result_rows(entries, predictions, speeds, groups)
    counts = {name: len(split) for name, split in store.splits.items()}
    outcome = Outcome(
        plan,
        counts,
        len(store.classes),
        tuple(rows),
        result_verdict(rows),
        (*fitted.lines, *_notes(plan, store, rows, groups)),
        folder,
        common + clock.spent,
        fitted.left_out,
    )
    _write(outcome)
    return outcome


def _speeds(
    plan: Plan, names: list[str], store: Store, folder: Path, clock: Clock, device: torch.device, options: DataOptions
) -> dict[str, Speed]:
    """Milliseconds an image, together and in turns; kept, unless contestants have come since."""
    path = folder / "milliseconds.json"
    if path.is_file():
        there = read_file(path, dict[str, Speed])
        if set(there) == set(names):
            return there
    options.log_line("measuring milliseconds an image, in turns")
    most = 60.0 if not plan.budget else plan.budget * budget.SPARED / 2
    with clock.running(MEASURED):
        answerers = {name: answerer(name, folder / name, device) for name in names}
        result = measure_inference(answerers, store.split("test"), most)
    write_file(path, json_bytes({name: vars(each) for name, each in result.items()}))
    return result


def _notes(plan: Plan, store: Store, rows: list[Row], groups: tuple[str, ...]) -> tuple[str, ...]:
    """What to keep in mind about these numbers."""
    notes = [
        f"one seed ({plan.seed}): intervals and p are over the {len(store.split('test'))} test images"
        f"{' in groups' if groups else ''}, not over trainings",
        "the recipe was found for AlexNet on a few thousand images (docs/log.md); the others have it with their own "
        "inputs, starts and rates",
        IN_2012,
    ]
    if plan.budget:
        notes.append("with equal time a deeper network sees fewer images: on a faster machine the order may change")
    if any(row.contestant.name in ("googlenet", "inception_v3") and not row.entry.diverged for row in rows):
        notes.append("Inception's parameters are those that answer; its file holds its auxiliary classifiers too")
    if any(row.contestant.name == FISHER for row in rows):
        notes.append("Fisher vectors: multiply-adds of their matrix multiplications, SIFT itself not counted")
    return tuple(notes)


def _write(results: Outcome) -> None:
    from alexnet.plots import contest as drawing

    title = f"Contest on {results.plan.data}"
    images = f"{results.counts['train']} images to train, {results.counts['test']} to test, {results.classes} classes"
    bars = [
        drawing.Bar(
            row.contestant.title,
            100 * row.top1.value,
            100 * row.top1.low,
            100 * row.top1.high,
            row.speed.median if row.speed else 0.0,
            row.entry.training_seconds,
            row.contestant.name == FISHER,
        )
        for row in results.rows
        if row.top1 is not None
    ]
    if bars:
        drawing.draw(title, f"{images}. {results.verdict}", bars, results.image)
    write_file(results.folder / "contest.json", json_bytes(results.to_dict()))
    write_file(results.folder / "contest.csv", csv_text(results.rows).encode())
    text = markdown(f"{title}: {images}", results.rows, (results.verdict, *results.notes))
    write_file(results.folder / "contest.md", text.encode())


def folder_for(plan: Plan) -> Path:
    """Where a contest goes if nobody says: the same command finds it again."""
    how = f"{plan.epochs}epochs" if plan.epochs else f"{plan.budget:g}s"
    return Path("runs") / "contest" / f"{plan.data}-{how}{'-pretrained' if plan.pretrained else ''}"
