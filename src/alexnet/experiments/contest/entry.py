"""What a contestant answered to every test image, on disk: so that a finished one stays finished.

Published weights as a start: torchvision's networks as they were trained on ImageNet.

One contestant from its start to its predictions; a finished one is found again and stays as it is.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.bundle import Bundle
from alexnet.data.atomic_io import atomic_write, json_bytes, write_file
from alexnet.data.store import Store
from alexnet.errors import RunError
from alexnet.evaluation.evaluate import predict_split
from alexnet.experiments.claims import Arm
from alexnet.experiments.contest.plan import Contestant
from alexnet.experiments.fisher import classifier as learning
from alexnet.experiments.fisher.classifier import Settings
from alexnet.experiments.fisher.features import count
from alexnet.experiments.plan import Job, read_file
from alexnet.experiments.runner import Member, obtain
from alexnet.loader.augmentation import Normalization
from alexnet.loader.loader import choose_device
from alexnet.models import create_model
from alexnet.models.network import AuxiliaryHead
from alexnet.models.summary import FOREIGN, summarize
from alexnet.models.torchvision_models import TorchvisionNetwork
from alexnet.recipe import Recipe
from alexnet.training import runtime
from alexnet.training.finetune import PretrainedWeights
from alexnet.training.provenance import note_test
from alexnet.weights import torchvision_weights


class Answers(NamedTuple):
    """``scores`` [N, K], greater is more likely; ``labels`` int64 [N]. Of equals the first class comes first."""

    scores: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def first(self) -> NDArray[np.bool_]:
        """Is the first prediction right? [N]"""
        return np.asarray(self.scores.argmax(1) == self.labels)

    def among(self, best: int = 5) -> NDArray[np.bool_]:
        """Is the truth among the ``best`` first predictions? [N]"""
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :best]
        return np.asarray((order == self.labels[:, None]).any(1))

    def save(self, path: Path) -> None:
        """As two plain arrays."""
        with atomic_write(path) as file:
            np.savez(file, allow_pickle=False, scores=self.scores, labels=self.labels)


def load(path: Path) -> Answers:
    """What :meth:`Answers.save` wrote. Raises :class:`RunError`."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return Answers(file["scores"], file["labels"])
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise RunError(f"{path} is damaged: {error}", "", f"delete {path.parent} and give the same command") from error


TORCHVISION = {"alexnet_owt": "alexnet"}  # where torchvision's name of a network is another


def weights_for(model: str, recipe: Recipe, store: Store) -> PretrainedWeights:
    """The published weights of ``model`` at the recipe's image size. Raises :class:`alexnet.errors.BundleError`."""
    value = torchvision_weights.of_network(TORCHVISION.get(model, model))
    network = create_model(model, num_classes=len(value.classes), image_size=recipe.image_size or None)
    state = network.from_torchvision(value.state) if isinstance(network, TorchvisionNetwork) else value.state
    network.load_state_dict(state)
    statistics = Normalization(
        torch.tensor(value.mean),
        torch.tensor(store.color_std).float(),
        torch.tensor(store.color_axes).float(),
        torch.tensor(value.divide),
    )
    return PretrainedWeights(
        f"torchvision's weights of {model}",
        value.sha256,
        network.eval(),
        value.classes,
        statistics,
        store.size,
        recipe.fit,
        "own",
    )


@dataclass(frozen=True)
class Entry:
    """What a contestant took and reached, beside its predictions. Seconds are of this machine's clock.

    ``diverged``: why there are no answers; empty where there are. ``multiply_adds`` of one image; of Fisher vectors
    those of its matrix multiplications, without SIFT. ``bytes`` on disk, of what answers need.
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
    contestant: Contestant,
    recipe: Recipe,
    store: Store,
    folder: Path,
    clock: Clock,
    *,
    device: str,
    workers: int,
    pretrained: bool = False,
    say: learning.Say = lambda text: None,
) -> Entry:
    """Train a network (or go on), let it answer the test split, and write both down."""
    home = folder / contestant.name
    with clock.running(contestant.name):
        start = weights_for(contestant.model, recipe, store) if pretrained else None
        job = Job(Arm(contestant.title, "", contestant.model), recipe.lr, recipe.seed)
        member = obtain(job, recipe, store, home, device=device, workers=workers, start=start)
        if not member.diverged:
            _answer(home, store, folder / f"{contestant.name}.npz", choose_device(device))
            note_test(home, store, "test", "contest", say)
    entry = _entry(contestant.name, member, clock.of(contestant.name))
    entry.save(folder)
    shutil.rmtree(home / "checkpoints", ignore_errors=True)  # gigabytes that nobody needs any more
    return entry


def _answer(home: Path, store: Store, path: Path, device: torch.device) -> None:
    bundle = Bundle.load(home / "bundle")
    with runtime.cpu_settings():
        result = predict_split(
            bundle.network.to(device),
            store.split("test"),
            bundle.statistics,
            image_size=bundle.image_size,
            channels=bundle.network.in_channels,
            device=device,
        )
    Answers(result.log_probabilities, result.labels).save(path)


def _entry(name: str, member: Member, seconds: float) -> Entry:
    if member.diverged:
        return Entry(name, member.diverged, seconds=seconds)
    bundle = Bundle.load(member.folder / "bundle")
    rows = summarize(bundle.network).rows
    return Entry(
        name,
        "",
        len(member.rows),
        seconds,
        member.seconds,
        sum(row.parameters for row in rows if row.kind != FOREIGN[AuxiliaryHead]),
        sum(row.multiply_adds for row in rows),
        (member.folder / "bundle" / "model.safetensors").stat().st_size,
        member.validation_error,
        str(bundle.data.get("kept", "")),
    )


def fisher(
    name: str, settings: Settings, store: Store, folder: Path, clock: Clock, *, seed: int, say: learning.Say
) -> Entry:
    """The runner-up: learned, chosen on validation, tested once, written down."""
    home = folder / name
    with (
        clock.running(name),
        runtime.cpu_settings(),
    ):  # without it, half of the time goes to memory given back and taken again
        home.mkdir(parents=True, exist_ok=True)
        learned = learning.train(store, settings, home, seed, say)
        file = learned.classifier.save(home)
        test = store.split("test")
        Answers(learning.predictions(learned.classifier, test), test.labels).save(folder / f"{name}.npz")
    write_file(home / "tried.json", json_bytes({"validation_error": learned.tried, "seconds": learned.seconds}))
    side = min(settings.side or store.size, store.size)
    classifier = learned.classifier
    chosen = min(learned.tried, key=lambda key: learned.tried[key])
    entry = Entry(
        name,
        "",
        1,
        clock.of(name),
        sum(learned.seconds.values()),
        classifier.parameters,
        classifier.multiply_adds * count(side, settings.grid) + classifier.weights.size,
        file.stat().st_size,
        learned.validation_error,
        f"{chosen}; {settings.words} Gaussians, a patch every {settings.grid.step} pixels",
    )
    entry.save(folder)
    return entry
