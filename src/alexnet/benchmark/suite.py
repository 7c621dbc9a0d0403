"""How many images of its test split a trained network has right in each precision: what speed costs.

The whole bench: which contenders meet in which group, and what came of it as numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alexnet.benchmark import data, peers, runner, steps
from alexnet.benchmark.runner import Candidate, Skipped, Timing, compete
from alexnet.benchmark.steps import Subject
from alexnet.bundle import Bundle
from alexnet.data.store import Store
from alexnet.errors import ModelError, RecipeError
from alexnet.evaluation.evaluate import log_probabilities
from alexnet.export.classifier import Classifier
from alexnet.export.export_run import right
from alexnet.kernels import native_kernels
from alexnet.models import list_models
from alexnet.system import temporary_folder
from alexnet.training.evaluation_data import store_of
from alexnet.training.provenance import note_test


@dataclass(frozen=True)
class Accuracy:
    """``right`` of ``count`` images, by the likeliest class; or the reason why nothing was counted."""

    name: str
    right: int = 0
    count: int = 0
    skipped: str = ""


def accuracies(subject: Subject, say: Callable[[str], None]) -> list[Accuracy]:
    """Of the contenders that answer with the run's weights, in this process."""
    native_kernels.build()
    split, result = subject.test(), []
    with temporary_folder() as folder:
        for name, make in _contenders(subject, folder):
            say(f"accuracy: {name}")
            try:
                result.append(Accuracy(name, right(make(), split), len(split)))
            except Skipped as skipped:
                result.append(Accuracy(name, skipped=str(skipped)))
    return result


def _contenders(subject: Subject, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    bundle = subject.bundle()
    yield f"{steps.OURS}, fp32", lambda: Classifier(bundle)
    yield f"{steps.OURS}, bf16", lambda: Classifier(bundle, precision="bf16")
    for suffix, who in ((".xml", steps.OPENVINO), (".onnx", steps.ONNX)):
        yield (
            f"{steps.OURS}, int8 file, by {who}",
            lambda suffix=suffix: steps.exported(subject, folder, suffix),  # type: ignore[misc]
        )
    yield f"{steps.PLAIN}, fp32", lambda: _Plain(peers.plain(bundle.network).eval(), bundle)


class _Plain:
    """A network of ``torch.nn`` modules that answers as a :class:`Classifier` does."""

    def __init__(self, network: nn.Module, bundle: Bundle) -> None:
        self.network, self.bundle = network, bundle

    def probabilities(self, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        own = self.bundle.network
        result: NDArray[np.float32] = (
            log_probabilities(
                self.network,
                torch.from_numpy(np.stack(images)),
                self.bundle.statistics,
                image_size=own.image_size,
                channels=own.in_channels,
            )
            .exp()
            .numpy()
        )
        return result


PARTS = ("training", "inference", "data", "end-to-end", "prepare")
FEWEST_ROUNDS = 2


@dataclass(frozen=True)
class BenchmarkOptions:
    """What is to be measured."""

    model: str = "alexnet"
    parts: tuple[str, ...] = PARTS
    batch: int = 128  # of training
    rounds: int = 5
    quick: bool = False
    folder: Path | None = None  # images: a folder a class; none: painted ones
    run: Path | None = None  # whose weights and test images answers are timed with; none: fresh weights, noise

    def subject(self) -> Subject:
        """Whose answers are timed."""
        return Subject(self.model) if self.run is None else Subject.of(self.run)

    def check(self) -> None:
        """Raise an error of one line for what can not be measured."""
        for part in self.parts:
            if part not in PARTS:
                raise RecipeError(f"--only {part}", ", ".join(PARTS), "separate several by commas")
        if not self.parts:
            raise RecipeError("--only names nothing", ", ".join(PARTS), "or leave it out")
        if self.rounds < FEWEST_ROUNDS:
            raise RecipeError(f"--rounds is {self.rounds}", f"at least {FEWEST_ROUNDS}: one says nothing of the spread")
        if self.batch < 1:
            raise RecipeError(f"--batch-size is {self.batch}", "at least 1")
        if self.model not in list_models():
            raise ModelError(f"--model is {self.model!r}", "one of those that `alexnet models` lists")
        if self.folder is not None:
            data.check(self.folder)
        if self.run is None:
            return
        if set(self.parts) != {"inference"}:
            raise RecipeError("--run with other parts than inference", "--only inference", "time the others without it")
        if self.model != BenchmarkOptions.model:
            raise RecipeError(f"--run with --model {self.model}", "one of them", "a run knows its network")


@dataclass(frozen=True)
class Group:
    """Contenders that were timed in turn, and what they did."""

    part: str
    name: str
    timings: list[Timing]

    @property
    def first(self) -> Timing | None:
        """This project's: the fastest of its contenders, with the kernels on."""
        ours = [t for t in self.timings if t.rates and t.contender.name.startswith(steps.OURS)]
        ours = [t for t in ours if not t.contender.name.endswith((steps.OFF, steps.ALL))]
        return max(ours, key=lambda t: t.median, default=None)

    def ratio(self, timing: Timing) -> float | None:
        """How many times as fast this project is."""
        return None if self.first is None or not timing.rates else self.first.over(timing)


@dataclass(frozen=True)
class Report:
    """All groups, the machine's limits, and the machine."""

    config: BenchmarkOptions
    machine: dict[str, str | int]
    limits: list[Timing]
    groups: list[Group]
    accuracies: list[Accuracy] = field(default_factory=list)  # of the run

    def share(self, timing: Timing) -> float | None:
        """The rate of a contender's operations as a share of the matrix product in its precision.

        Counted as a plain sum of multiplications, whatever is computed instead: fewer multiplications give more than 1.
        """
        limit = next((t for t in self.limits if t.contender.precision == timing.contender.precision and t.rates), None)
        if limit is None or not timing.rates or not timing.contender.flop:
            return None
        return timing.median * timing.contender.flop / limit.median

    def to_dict(self) -> dict[str, Any]:
        """For JSON; rates are images a second, limits operations or bytes a second."""
        config = {"model": self.config.model, "batch": self.config.batch, "rounds": self.config.rounds}
        return {
            "machine": self.machine,
            "config": config
            | {
                "images": str(self.config.folder or "painted"),
                "quick": self.config.quick,
                "run": None if self.config.run is None else str(self.config.run),
            },
            "accuracies": [asdict(accuracy) for accuracy in self.accuracies],
            "limits": {t.contender.name: _numbers(t) for t in self.limits},
            "groups": [
                {
                    "part": group.part,
                    "name": group.name,
                    "contenders": {
                        t.contender.name: {
                            **_numbers(t),
                            "ours_over_it": group.ratio(t),
                            "share_of_limit": self.share(t),
                        }
                        for t in group.timings
                    },
                }
                for group in self.groups
            ],
        }


def _numbers(timing: Timing) -> dict[str, Any]:
    if not timing.rates:
        return {"skipped": timing.skipped}
    return {
        "median": timing.median,
        "spread": timing.spread,
        "rates": list(timing.rates),
        "memory_mib": timing.memory,
        "waited": timing.waited,
    }


def run(config: BenchmarkOptions, say: Callable[[str], None]) -> Report:
    """Measure what is wished for; ``say`` is told what is being done."""
    config.check()
    subject = config.subject()
    about = runner.machine()
    result = _timed("limits of the machine", runner.contenders(), max(config.rounds, 5), say)
    with temporary_folder() as painted:
        folder = config.folder
        if folder is None and set(config.parts) & {"data", "end-to-end", "prepare"}:
            folder = painted
            data.paint(folder, 64 if config.quick else 512)
        groups = [
            Group(part, name, _timed(name, contenders, config.rounds, say))
            for part, name, contenders in _groups(config, subject, folder or painted)
            if part in config.parts
        ]
    scores = []
    if subject.run:
        scores = accuracies(subject, say)
        note_test(subject.run, Store.open(store_of(Path(subject.run))), "test", "bench", say)
    return Report(config, about, result, groups, scores)


def _groups(config: BenchmarkOptions, subject: Subject, folder: Path) -> list[tuple[str, str, list[Candidate]]]:
    model, batch = config.model, 16 if config.quick and config.batch == 128 else config.batch
    predictions = [
        *(("inference", f"answers, batch {n}", steps.inference(subject, n)) for n in steps.batches(config.quick)),
        *(
            ("inference", f"answers, batch {n}, int8", steps.inference(subject, n))
            for n in steps.int8_batches(config.quick)
        ),
    ]
    if subject.run:
        return predictions
    return [
        ("training", f"training step, batch {batch}", steps.training(model, batch)),
        *predictions,
        ("prepare", "JPEG file to 256×256 pixels, one core", data.decoding(folder)),
        ("data", f"training batches, batch {batch}", data.loading(folder, batch)),
        ("end-to-end", f"JPEG files to a trained epoch, batch {batch}", data.end_to_end(folder, batch, model)),
    ]


def _timed(name: str, contenders: Sequence[Candidate], rounds: int, say: Callable[[str], None]) -> list[Timing]:
    return compete(contenders, rounds, lambda who: say(f"{name}: {who}"))
