"""The trainings of a claim: each is made once, found again when it is there, and gone on with where it stopped."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from alexnet.api.evaluating import evaluate
from alexnet.batches.loader import choose_device
from alexnet.bundle.seal import read_config
from alexnet.data.store import Store
from alexnet.data.writing import json_bytes, write_file
from alexnet.errors import CheckpointError, Interrupted, RunError, TrainingError
from alexnet.history.plan import Job, read_file
from alexnet.recipe import Recipe, differences
from alexnet.training import machine
from alexnet.training import run as runs
from alexnet.training.journal import read_rows
from alexnet.training.start import Start

DIVERGED = "diverged.json"  # in a member's folder: its rate was too high, and why


@dataclass(frozen=True)
class _Diverged:
    """The file of that name."""

    reason: str


@dataclass(frozen=True)
class Member:
    """A finished training. ``rows`` are its epochs as in results.csv; ``diverged`` says why it has none."""

    job: Job
    folder: Path
    store: Store
    rows: tuple[dict[str, float], ...]
    metrics: dict[str, Any]
    diverged: str = ""

    @property
    def seconds(self) -> float:
        """Of training, over all epochs."""
        return sum(row["seconds"] for row in self.rows)

    @property
    def training_errors(self) -> list[float]:
        """Mean over each epoch, while it was trained (with dropout and noise where it has them)."""
        return [1 - row["train_top1"] for row in self.rows]

    @property
    def validation_error(self) -> float:
        """The lowest of all epochs."""
        return min((1 - row["validation_top1"] for row in self.rows), default=float("inf"))

    def epochs_to(self, error: float) -> float | None:
        """Epochs until the training error is at most ``error``, linear between the epochs' ends; None: never."""
        before = None
        for epoch, value in enumerate(self.training_errors, 1):
            if value <= error:
                share = 1.0 if before is None else (before - error) / (before - value)
                return epoch - 1 + share
            before = value
        return None

    def scores(self, split: str, views: int, device: str) -> dict[str, Any]:
        """Scores of a split: from its bundle, or computed once and written down beside it."""
        if views == 1 and split in self.metrics:
            return dict(self.metrics[split])
        path = self.folder / f"scores-{split}-{views}.json"
        if path.is_file():
            return read_file(path, dict[str, Any])
        found = evaluate(self.folder / "bundle", self.store.absolute, split=split, views=views, device=device).to_dict()
        write_file(path, json_bytes(found))
        return found


def obtain(
    job: Job, recipe: Recipe, store: Store, folder: Path, *, device: str, workers: int, start: Start | None = None
) -> Member:
    """The member of ``job`` in ``folder``: found, resumed or trained; from the weights of ``start`` if given.

    Raises :class:`RunError` if another training lies there, and :class:`Interrupted` when a signal stops it: it is
    saved, and the same call goes on.
    """
    chosen = choose_device(device)
    recipe = machine.settled(recipe, chosen)
    with runs.locked(folder):
        _check(folder, recipe, store)
        if not _finished(folder) and not (start is None and _borrow(recipe, store, folder)):
            _train(recipe, store, folder, chosen, workers, start)
    return _open(job, folder, store)


def _check(folder: Path, recipe: Recipe, store: Store) -> None:
    if not (folder / "run.json").is_file():
        return
    there, about = runs.read_start(folder)
    changed = differences(there, recipe)
    if changed:
        name, (before, now) = next(iter(changed.items()))
        raise RunError(f"{folder} was trained with {name} = {before}, not {now}", "", "choose another --run")
    if about["store_fingerprint"] != store.fingerprint:
        raise RunError(f"{folder} was trained on other pictures", "", "choose another --run")


def _finished(folder: Path) -> bool:
    return (folder / "bundle").is_dir() or (folder / DIVERGED).is_file()


def _borrow(recipe: Recipe, store: Store, folder: Path) -> bool:
    """Copy the same training from another claim's folder beside this one's, if it was made there: the claims share
    their network. Returns whether it was."""
    for other in sorted(folder.parent.parent.glob("*/*-rate*-seed*")):
        if other != folder and (other / "bundle").is_dir() and _same(other, recipe, store):
            _empty(folder)
            left_out = shutil.ignore_patterns("bundle", "checkpoints", "tensorboard", ".lock", "*.partial")
            shutil.copytree(other, folder, ignore=left_out, dirs_exist_ok=True)
            shutil.copytree(other / "bundle", folder / "bundle.partial")
            (folder / "bundle.partial").replace(folder / "bundle")  # last: by it a training is known as finished
            return True
    return False


def _same(folder: Path, recipe: Recipe, store: Store) -> bool:
    try:
        _check(folder, recipe, store)
    except (RunError, KeyError):  # another training, or none
        return False
    return (folder / "run.json").is_file()


def _train(recipe: Recipe, store: Store, folder: Path, device: torch.device, workers: int, start: Start | None) -> None:
    resume = any((folder / "checkpoints").glob("step-*.pt"))
    if not resume:
        _empty(folder)
        about: dict[str, Any] = {
            "data": store.name,
            "store": store.absolute,
            "store_fingerprint": store.fingerprint,
        }
        about |= {"from": start.about(store.classes)} if start else {}
        runs.write_start(folder, recipe, about)
    try:
        with machine.tuned(recipe):
            runs.run(recipe, store, folder, device=device, workers=workers, resume=resume, quiet=True, start=start)
    except TrainingError as error:
        write_file(folder / DIVERGED, json_bytes(asdict(_Diverged(str(error)))))
    except CheckpointError as error:
        raise CheckpointError(error.what, error.must, f"delete {folder} and give the same command again") from error
    except Interrupted as error:
        raise Interrupted(error.signal, error.what.split(", saved")[0], "the same command goes on") from error


def _empty(folder: Path) -> None:
    """What a training left that had not come to its first checkpoint."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


def _open(job: Job, folder: Path, store: Store) -> Member:
    if (folder / DIVERGED).is_file():
        reason = read_file(folder / DIVERGED, _Diverged).reason
        return Member(job, folder, store, (), {}, reason)
    try:
        rows = tuple(read_rows(folder))
    except OSError as error:
        raise RunError(
            f"{folder} has no results.csv: {error.strerror}", "", "delete the folder to train again"
        ) from error
    return Member(job, folder, store, rows, read_config(folder / "bundle")[1].metrics)
