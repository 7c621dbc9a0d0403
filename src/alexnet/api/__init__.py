"""The verbs, from Python: the command line calls these and prints what they return."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexnet import recipe as recipes
from alexnet.api.drawing import DRAWINGS, draw
from alexnet.api.evaluating import evaluate, members_and_data
from alexnet.api.stores import DataOptions, open_store, prepare
from alexnet.data.store import Store
from alexnet.deploy.classifier import Classifier
from alexnet.evaluation.metrics import Scores
from alexnet.recipe import Recipe
from alexnet.training import machine
from alexnet.training import run as runs

__all__ = [
    "DRAWINGS", "DataOptions", "Result", "draw", "evaluate", "load", "members_and_data", "open_store", "prepare",
    "resume", "torch_device", "train",
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What training made: its folder, the bundle in it, scores by split, and how fast it was."""

    folder: Path
    bundle: Path
    scores: dict[str, Scores]
    images_per_second: float
    seconds: float
    recipe: Recipe
    pictures: tuple[Path, ...]
    notes: tuple[str, ...] = ()  # what to keep in mind about these numbers

    def classifier(self) -> Classifier:
        """The trained classifier, ready to predict."""
        return Classifier.load(self.bundle)


def train(
    data: str | Path,
    recipe: Recipe | str | None = None,
    run: str | Path | None = None,
    *,
    options: DataOptions | None = None,
    device: str = "auto",
    workers: int = 1,
    quiet: bool = True,
    **changes: Any,
) -> Result:
    """Train a classifier on ``data`` (a name, a folder, a store) and return what became of it.

    ``recipe`` is a :class:`Recipe` or the name of one; without it the data and ``model=`` choose. Any number of it can
    be changed by name: ``train("digits", epochs=3)``. ``run`` is a new folder for everything that is made.
    """
    options = options or DataOptions()
    if recipe is None:
        recipe = recipes.default_for(str(data), changes.get("model"))
    elif isinstance(recipe, str):
        recipe = recipes.named(recipe)
    chosen = torch_device(device)
    recipe = recipe.replace(**changes)
    recipe = recipe.replace(precision=machine.choose_precision(recipe.precision, chosen))  # what auto means here
    folder = Path(run) if run is not None else _new_folder(data, recipe)
    runs.refuse_used(folder)
    store = open_store(data, recipe, options)
    with runs.locked(folder):
        runs.refuse_used(folder)
        runs.write_start(folder, recipe, {"data": str(data), "store": str(store.path.resolve())})
        return _run(recipe, store, folder, chosen, workers, quiet)


def resume(
    run: str | Path, *, store: str | Path | None = None, device: str = "auto", workers: int = 1, quiet: bool = True
) -> Result:
    """Go on with a run from its newest checkpoint, or from the checkpoint file that ``run`` names."""
    given = Path(run)
    folder = given.parent.parent if given.suffix == ".pt" else given
    recipe, about = runs.read_start(folder)
    chosen = torch_device(device)
    with runs.locked(folder):
        opened = Store.open(Path(store or about["store"]))
        checkpoint = given if given.suffix == ".pt" else None
        return _run(recipe, opened, folder, chosen, workers, quiet, resume=True, resume_from=checkpoint)


def _run(
    recipe: Recipe, store: Store, folder: Path, device: torch.device, workers: int, quiet: bool, **how: Any
) -> Result:
    started = time.perf_counter()
    with machine.tuned():
        bundle, scores, rate = runs.run(recipe, store, folder, device=device, workers=workers, quiet=quiet, **how)
    pictures = tuple(draw(what, folder) for what in DRAWINGS)
    seconds = time.perf_counter() - started
    return Result(folder, bundle, scores, rate, seconds, recipe, pictures, _notes(store, scores))


FEW = 100  # training pictures a class under which a network that starts from nothing is told to expect little


def _notes(store: Store, scores: dict[str, Scores]) -> tuple[str, ...]:
    """What so many pictures can teach and show, honestly."""
    train, notes = store.split("train"), []
    each = np.bincount(train.labels, minlength=len(store.classes))
    if each.min() < FEW:
        rare = store.classes[int(each.argmin())]
        notes.append(
            f"{len(train)} pictures taught {len(store.classes)} classes, {each.min()} of {rare!r}: few for a network "
            f"that starts from nothing. More pictures, at least {FEW} a class, will help more than any option."
        )
    if "test" in scores:
        low, high = scores["test"].top1_interval
        often = np.bincount(store.split("test").labels).max() / scores["test"].count
        notes.append(
            f"{scores['test'].count} test pictures put the true top-1 between {100 * low:.1f} and {100 * high:.1f} % "
            f"(95 % sure); always guessing the most frequent class would reach {100 * often:.1f} %."
        )
    return tuple(notes)


def torch_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` -> device; raises :class:`alexnet.errors.RecipeError`."""
    return machine.choose_device(name)


def _new_folder(data: str | Path, recipe: Recipe) -> Path:
    stem = f"{Path(data).resolve().name if Path(data).exists() else data}-{recipe.model}"
    number = 1
    while (folder := Path("runs") / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return folder


def load(run: str | Path, device: str = "auto") -> Classifier:
    """The classifier of a run folder or bundle, ready to ``predict`` and ``embed``."""
    return Classifier.load(run, torch_device(device))
