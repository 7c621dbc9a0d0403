"""One contestant from its start to its answers; a finished one is found again and stays as it is."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from alexnet.api.provenance import note_test
from alexnet.batches.loader import choose_device
from alexnet.bundle import Bundle
from alexnet.data.store import Store
from alexnet.data.writing import json_bytes, write_file
from alexnet.evaluation.responses import collect
from alexnet.history.claims import Arm
from alexnet.history.contest.answers import Answers
from alexnet.history.contest.entrants import Entrant
from alexnet.history.contest.start import weights_for
from alexnet.history.fisher import learning
from alexnet.history.fisher.classifier import Settings
from alexnet.history.fisher.descriptors import count
from alexnet.history.members import Member, obtain
from alexnet.history.plan import Job, read_file
from alexnet.models.network import Aside
from alexnet.models.summary import FOREIGN, summarize
from alexnet.recipe import Recipe
from alexnet.training import machine


@dataclass(frozen=True)
class Entry:
    """What a contestant took and reached, beside its answers. Seconds are of this machine's clock.

    ``diverged``: why there are no answers; empty where there are. ``multiply_adds`` of one picture; of Fisher vectors
    those of its matrix products, without SIFT. ``bytes`` on disk, of what answers need.
    """

    name: str
    diverged: str = ""
    epochs: int = 0
    seconds: float = 0.0  # all of it: weights, training, validation, checkpoints, test
    training_seconds: float = 0.0  # of these, learning
    parameters: int = 0
    multiply_adds: int = 0
    bytes: int = 0
    validation_error: float | None = None
    about: str = ""  # what was chosen on validation

    def save(self, folder: Path) -> None:
        """Beside the contestant's own folder."""
        write_file(folder / f"{self.name}.json", json_bytes(asdict(self)))


def finished(name: str, folder: Path) -> Entry | None:
    """The entry of a contestant that has answered already."""
    path = folder / f"{name}.json"
    return read_file(path, Entry) if path.is_file() else None


class Clock:
    """Seconds of each contestant over all sittings, in ``clock.json``; of a killed one nothing is known."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "clock.json"
        self.seconds = read_file(self.path, dict[str, float]) if self.path.is_file() else {}

    @property
    def spent(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    def of(self, name: str) -> float:
        """Seconds of one contestant."""
        return self.seconds.get(name, 0.0)

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Count what happens inside for ``name``, however it ends."""
        started, before = time.perf_counter(), self.of(name)
        try:
            yield
        finally:
            self.seconds[name] = before + time.perf_counter() - started
            write_file(self.path, json_bytes(self.seconds))


def network(
    entrant: Entrant, recipe: Recipe, store: Store, folder: Path, clock: Clock, *, device: str, workers: int,
    pretrained: bool = False, say: learning.Say = lambda text: None,
) -> Entry:  # fmt: skip
    """Train a network (or go on), let it answer the test split, and write both down."""
    home = folder / entrant.name
    with clock.running(entrant.name):
        start = weights_for(entrant.model, recipe, store) if pretrained else None
        job = Job(Arm(entrant.title, "", entrant.model), recipe.learning_rate, recipe.seed)
        member = obtain(job, recipe, store, home, device=device, workers=workers, start=start)
        if not member.diverged:
            _answer(home, store, folder / f"{entrant.name}.npz", choose_device(device))
            note_test(home, store, "test", "contest", say)
    entry = _entry(entrant.name, member, clock.of(entrant.name))
    entry.save(folder)
    shutil.rmtree(home / "checkpoints", ignore_errors=True)  # gigabytes that nobody needs any more
    return entry


def _answer(home: Path, store: Store, path: Path, device: torch.device) -> None:
    bundle = Bundle.load(home / "bundle")
    with machine.tuned():
        found = collect(
            bundle.network.to(device), store.split("test"), bundle.statistics, side=bundle.image_size,
            channels=bundle.network.in_channels, device=device,
        )  # fmt: skip
    Answers(found.log_probabilities, found.labels).save(path)


def _entry(name: str, member: Member, seconds: float) -> Entry:
    if member.diverged:
        return Entry(name, member.diverged, seconds=seconds)
    bundle = Bundle.load(member.folder / "bundle")
    rows = summarize(bundle.network).rows
    return Entry(
        name, "", len(member.rows), seconds, member.seconds,
        sum(row.parameters for row in rows if row.kind != FOREIGN[Aside]), sum(row.multiply_adds for row in rows),
        (member.folder / "bundle" / "model.safetensors").stat().st_size, member.validation_error,
        str(bundle.data.get("kept", "")),
    )  # fmt: skip


def fisher(
    name: str, settings: Settings, store: Store, folder: Path, clock: Clock, *, seed: int, say: learning.Say
) -> Entry:
    """The runner-up: learned, chosen on validation, tested once, written down."""
    home = folder / name
    with clock.running(name), machine.tuned():  # without it, half of the time goes to memory given back and taken again
        home.mkdir(parents=True, exist_ok=True)
        learned = learning.train(store, settings, home, seed, say)
        file = learned.classifier.save(home)
        test = store.split("test")
        Answers(learning.answers(learned.classifier, test), test.labels).save(folder / f"{name}.npz")
    write_file(home / "tried.json", json_bytes({"validation_error": learned.tried, "seconds": learned.seconds}))
    side = min(settings.side or store.size, store.size)
    classifier = learned.classifier
    chosen = min(learned.tried, key=lambda key: learned.tried[key])
    entry = Entry(
        name, "", 1, clock.of(name), sum(learned.seconds.values()), classifier.parameters,
        classifier.multiply_adds * count(side, settings.grid) + classifier.weights.size, file.stat().st_size,
        learned.validation_error, f"{chosen}; {settings.words} Gaussians, a patch every {settings.grid.step} pixels",
    )  # fmt: skip
    entry.save(folder)
    return entry
