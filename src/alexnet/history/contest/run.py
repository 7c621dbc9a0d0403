"""A contest from the plan to the chart. The same call again finds finished contestants and goes on with the others."""

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from alexnet.batches.loader import choose_device
from alexnet.data.options import DataOptions
from alexnet.data.store import Store
from alexnet.data.writing import json_bytes, write_file
from alexnet.errors import RunError
from alexnet.evaluation.intervals import groups_of
from alexnet.history import material as materials
from alexnet.history.contest import answers as kept
from alexnet.history.contest import budget, entry, fitting, result, speed
from alexnet.history.contest.entrants import FISHER, Entrant
from alexnet.history.contest.entry import Clock, Entry
from alexnet.history.contest.fitting import Fitted
from alexnet.history.contest.plan import Plan, same
from alexnet.history.contest.result import Row
from alexnet.history.fisher.classifier import Settings
from alexnet.history.fisher.pace import settings_within
from alexnet.history.material import Material
from alexnet.history.plan import read_file
from alexnet.recipe import Recipe
from alexnet.training import run as runs


@dataclass(frozen=True)
class Outcome:
    """What became of a contest. ``seconds``: of all its sittings. ``notes``: what to keep in mind about the numbers."""

    plan: Plan
    counts: dict[str, int]  # pictures of each split
    classes: int
    rows: tuple[Row, ...]
    verdict: str
    notes: tuple[str, ...]
    folder: Path
    seconds: float
    left_out: dict[str, str]  # contestant -> why there was no time for it

    @property
    def picture(self) -> Path:
        return self.folder / "contest.png"

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "plan": self.plan.to_dict(),
            "counts": self.counts,
            "classes": self.classes,
            "contestants": [row.to_dict() for row in self.rows],
            "verdict": self.verdict,
            "in_2012": result.IN_2012,
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
    store = materials.prepare(material, recipe, plan.pictures, options)
    write_file(folder / "plan.json", json_bytes(plan.to_dict()))
    write_file(folder / "store.json", json_bytes(_same_store(store, folder)))
    clock = Clock(folder)
    common = time.perf_counter() - begun
    chosen = choose_device(device)
    fitted = fitting.fit(plan, store, folder, clock, chosen, options, common)
    plan, recipes = fitted.plan, fitted.recipes
    for number, entrant in enumerate(_order(plan), 1):
        if (found := entry.finished(entrant.name, folder)) is None:
            options.tell(f"{number} of {len(plan.entrants)}: {entrant.title}{_how(recipes.get(entrant.name))}")
            found = _enter(plan, entrant, recipes, store, folder, clock, device, workers, options, common)
        options.tell(f"  {_said(found)}")
    return _finish(fitted, store, folder, clock, chosen, options, common)


def _order(plan: Plan) -> list[Entrant]:
    """The runner-up first: what it takes can not be planned to the second, so what it leaves is for the others."""
    return sorted(plan.entrants, key=lambda entrant: entrant.name != FISHER)


def _same_store(store: Store, folder: Path) -> dict[str, Any]:
    path = folder / "store.json"
    if path.is_file() and read_file(path, _StoreFile).fingerprint != store.fingerprint:
        raise RunError(f"{folder} holds a contest on other pictures", "", "choose another --run")
    return asdict(_StoreFile(store.absolute, store.fingerprint))


def _enter(
    plan: Plan, entrant: Entrant, recipes: Mapping[str, Recipe], store: Store, folder: Path, clock: Clock, device: str,
    workers: int, options: DataOptions, common: float,
) -> Entry:  # fmt: skip
    if entrant.model:
        recipe = fitting.refitted(plan, entrant, recipes[entrant.name], store, folder, common + clock.spent)
        return entry.network(
            entrant, recipe, store, folder, clock, device=device, workers=workers,
            pretrained=plan.pretrained, say=options.tell,
        )  # fmt: skip
    settings = Settings(side=plan.side)
    if plan.budget:
        share = budget.share(plan.budget, common + clock.spent, len(plan.entrants), plan.share)
        settings = settings_within(settings, store, budget.CAREFUL * share)
    else:
        settings = settings_within(settings, store, float("inf"))
    return entry.fisher(entrant.name, settings, store, folder, clock, seed=plan.seed, say=options.tell)


def _how(recipe: Recipe | None) -> str:
    return "" if recipe is None else f", {recipe.epochs} epoch{'s' * (recipe.epochs > 1)}"


def _said(found: Entry) -> str:
    if found.diverged:
        return f"diverged: {found.diverged}"
    error = "" if found.validation_error is None else f"{100 * found.validation_error:.1f} % validation error, "
    return f"{error}{budget.words(found.seconds)}"


def _finish(
    fitted: Fitted, store: Store, folder: Path, clock: Clock, device: torch.device, options: DataOptions, common: float
) -> Outcome:
    plan = fitted.plan
    entries = {e.name: found for e in plan.entrants if (found := entry.finished(e.name, folder)) is not None}
    answers = {name: kept.load(folder / f"{name}.npz") for name, found in entries.items() if not found.diverged}
    speeds = _speeds(plan, list(answers), store, folder, clock, device, options)
    groups = groups_of(store.split("test"))
    rows = result.rows(entries, answers, speeds, groups)
    counts = {name: len(split) for name, split in store.splits.items()}
    outcome = Outcome(
        plan, counts, len(store.classes), tuple(rows), result.verdict(rows),
        (*fitted.lines, *_notes(plan, store, rows, groups)), folder, common + clock.spent, fitted.left_out,
    )  # fmt: skip
    _write(outcome)
    return outcome


def _speeds(
    plan: Plan, names: list[str], store: Store, folder: Path, clock: Clock, device: torch.device, options: DataOptions
) -> dict[str, speed.Speed]:
    """Milliseconds a picture, together and in turns; kept, unless contestants have come since."""
    path = folder / "milliseconds.json"
    if path.is_file():
        there = read_file(path, dict[str, speed.Speed])
        if set(there) == set(names):
            return there
    options.tell("measuring milliseconds a picture, in turns")
    most = 60.0 if not plan.budget else plan.budget * budget.SPARED / 2
    with clock.running(fitting.MEASURED):
        answerers = {name: speed.answerer(name, folder / name, device) for name in names}
        found = speed.measure(answerers, store.split("test"), most)
    write_file(path, json_bytes({name: vars(each) for name, each in found.items()}))
    return found


def _notes(plan: Plan, store: Store, rows: list[Row], groups: tuple[str, ...]) -> tuple[str, ...]:
    """What to keep in mind about these numbers."""
    notes = [
        f"one seed ({plan.seed}): intervals and p are over the {len(store.split('test'))} test pictures"
        f"{' in groups' if groups else ''}, not over trainings",
        "the recipe was found for AlexNet on a few thousand pictures (docs/log.md); the others have it with their own "
        "inputs, starts and rates",
        result.IN_2012,
    ]
    if plan.budget:
        notes.append("with equal time a deeper network sees fewer pictures: on a faster machine the order may change")
    if any(row.entrant.name in ("googlenet", "inception_v3") and not row.entry.diverged for row in rows):
        notes.append("Inception's parameters are those that answer; its file holds its auxiliary classifiers too")
    if any(row.entrant.name == FISHER for row in rows):
        notes.append("Fisher vectors: multiply-adds of their matrix products, SIFT itself not counted")
    return tuple(notes)


def _write(found: Outcome) -> None:
    from alexnet.visualize import contest as drawing

    title = f"Contest on {found.plan.data}"
    pictures = f"{found.counts['train']} pictures to train, {found.counts['test']} to test, {found.classes} classes"
    bars = [
        drawing.Bar(row.entrant.title, 100 * row.top1.value, 100 * row.top1.low, 100 * row.top1.high,
                    row.speed.median if row.speed else 0.0, row.entry.training_seconds, row.entrant.name == FISHER)
        for row in found.rows if row.top1 is not None
    ]  # fmt: skip
    if bars:
        drawing.draw(title, f"{pictures}. {found.verdict}", bars, found.picture)
    write_file(found.folder / "contest.json", json_bytes(found.to_dict()))
    write_file(found.folder / "contest.csv", result.csv_text(found.rows).encode())
    text = result.markdown(f"{title}: {pictures}", found.rows, (found.verdict, *found.notes))
    write_file(found.folder / "contest.md", text.encode())


def folder_for(plan: Plan) -> Path:
    """Where a contest goes if nobody says: the same command finds it again."""
    how = f"{plan.epochs}epochs" if plan.epochs else f"{plan.budget:g}s"
    return Path("runs") / "contest" / f"{plan.data}-{how}{'-pretrained' if plan.pretrained else ''}"
