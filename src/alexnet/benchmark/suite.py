"""The benchmark suite: the groups of candidates, the report, and the accuracy of candidates with a run's weights."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alexnet.benchmark import data, peers, runner, steps
from alexnet.benchmark.runner import Candidate, Skipped, Timing, time_candidates
from alexnet.benchmark.steps import Target
from alexnet.bundle import Bundle
from alexnet.errors import ModelError, RecipeError
from alexnet.evaluation.evaluate import log_probabilities
from alexnet.export.classifier import Classifier
from alexnet.export.export import count_correct
from alexnet.kernels import native_kernels
from alexnet.models import list_models
from alexnet.system import temporary_folder
from alexnet.training.run_folder import note_test


@dataclass(frozen=True)
class Accuracy:
    """Correct top-1 predictions of a candidate, or the reason why nothing was counted."""

    name: str
    right: int = 0
    count: int = 0
    skipped: str = ""


def accuracies(target: Target, log: Callable[[str], None]) -> list[Accuracy]:
    """Count the correct predictions of all candidates that use the run's weights, in this process."""
    native_kernels.build()
    split, result = target.test(), []
    with temporary_folder() as folder:
        for name, make in _accuracy_candidates(target, folder):
            log(f"accuracy: {name}")
            try:
                result.append(Accuracy(name, count_correct(make(), split), len(split)))
            except Skipped as skipped:
                result.append(Accuracy(name, skipped=str(skipped)))
    return result


def _accuracy_candidates(target: Target, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    bundle = target.bundle()
    yield f"{steps.OURS}, fp32", lambda: Classifier(bundle)
    yield f"{steps.OURS}, bf16", lambda: Classifier(bundle, precision="bf16")
    for suffix, who in ((".xml", steps.OPENVINO), (".onnx", steps.ONNX)):
        yield (
            f"{steps.OURS}, int8 file, by {who}",
            lambda suffix=suffix: steps.export_int8(target, folder, suffix),  # type: ignore[misc]
        )
    yield f"{steps.PLAIN}, fp32", lambda: _Plain(peers.plain(bundle.network).eval(), bundle)


class _Plain:
    """A network of ``torch.nn`` modules with the interface of :class:`Classifier`."""

    def __init__(self, network: nn.Module, bundle: Bundle) -> None:
        self.network, self.bundle = network, bundle

    def probabilities(self, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        own = self.bundle.network
        result: NDArray[np.float32] = (
            log_probabilities(
                self.network,
                torch.from_numpy(np.stack(images)),
                self.bundle.normalization,
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
    """What is measured."""

    model: str = "alexnet"
    parts: tuple[str, ...] = PARTS
    batch: int = 128  # of training
    rounds: int = 5
    quick: bool = False
    folder: Path | None = None  # images, one folder per class; None: synthetic images
    run: Path | None = None  # its weights and test images are used for inference; None: random weights, noise
    store: str | None = None  # where the prepared images of the run are now, if they were moved

    def target(self) -> Target:
        """The network that is timed."""
        return Target(self.model) if self.run is None else Target.of(self.run, self.store)

    def check(self) -> None:
        """Raise an error for invalid options."""
        for part in self.parts:
            if part not in PARTS:
                raise RecipeError(f"--only {part}", ", ".join(PARTS), "separate several by commas")
        if not self.parts:
            raise RecipeError("--only names nothing", ", ".join(PARTS), "or leave it out")
        if self.rounds < FEWEST_ROUNDS:
            raise RecipeError(f"--rounds is {self.rounds}", f"at least {FEWEST_ROUNDS}: one round has no spread")
        if self.batch < 1:
            raise RecipeError(f"--batch-size is {self.batch}", "at least 1")
        if self.model not in list_models():
            raise ModelError(f"--model is {self.model!r}", "one of those that `alexnet models` lists")
        if self.folder is not None:
            data.check(self.folder)
        if self.run is None:
            if self.store is not None:
                raise RecipeError("--store without --run", "", "name the run whose images it holds")
            return
        if set(self.parts) != {"inference"}:
            raise RecipeError("--run with other parts than inference", "--only inference", "time the others without it")
        if self.model != BenchmarkOptions.model:
            raise RecipeError(f"--run with --model {self.model}", "one of them", "a run has its own network")


@dataclass(frozen=True)
class Group:
    """Timings of interleaved candidates."""

    part: str
    name: str
    timings: list[Timing]

    @property
    def first(self) -> Timing | None:
        """The fastest candidate of this project, with kernels on."""
        ours = [t for t in self.timings if t.rates and t.candidate.name.startswith(steps.OURS)]
        ours = [t for t in ours if not t.candidate.name.endswith((steps.OFF, steps.DIRECT))]
        return max(ours, key=lambda t: t.median, default=None)

    def ratio(self, timing: Timing) -> float | None:
        """Speed of this project relative to a candidate; None for a candidate that was not timed."""
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
        """Operations per second relative to the machine's matrix product in the same precision.

        Operations are those of direct convolutions, so Winograd can exceed 1.
        """
        limit = next((t for t in self.limits if t.candidate.precision == timing.candidate.precision and t.rates), None)
        if limit is None or not timing.rates or not timing.candidate.flop:
            return None
        return timing.median * timing.candidate.flop / limit.median

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; rates in images per second, limits in operations or bytes per second."""
        config = {"model": self.config.model, "batch": self.config.batch, "rounds": self.config.rounds}
        return {
            "machine": self.machine,
            "config": config
            | {
                "images": str(self.config.folder or "synthetic"),
                "quick": self.config.quick,
                "run": None if self.config.run is None else str(self.config.run),
            },
            "accuracies": [asdict(accuracy) for accuracy in self.accuracies],
            "limits": {t.candidate.name: _numbers(t) for t in self.limits},
            "groups": [
                {
                    "part": group.part,
                    "name": group.name,
                    "candidates": {
                        t.candidate.name: {
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
        return {"skipped": timing.skipped, "trial": timing.trial}
    return {
        "median": timing.median,
        "spread": timing.spread,
        "rates": list(timing.rates),
        "memory_mib": timing.memory,
        "waited": timing.waited,
    }


def run(config: BenchmarkOptions, log: Callable[[str], None]) -> Report:
    """Run the benchmark.

    Args:
        config: What is measured.
        log: Receives lines of text.
    """
    config.check()
    target = config.target()
    machine = runner.machine()
    result = _timed("limits of the machine", runner.limit_candidates(), max(config.rounds, 5), log)
    with temporary_folder() as synthetic:
        folder = config.folder
        if folder is None and set(config.parts) & {"data", "end-to-end", "prepare"}:
            folder = synthetic
            data.write_synthetic_images(folder, 64 if config.quick else 512)
        groups = [
            Group(part, name, _timed(name, candidates, config.rounds, log))
            for part, name, candidates in _groups(config, target, folder or synthetic)
            if part in config.parts
        ]
    scores = []
    if target.run:
        scores = accuracies(target, log)
        note_test(target.run, target.store(), "test", "bench", log)
    return Report(config, machine, result, groups, scores)


def _groups(config: BenchmarkOptions, target: Target, folder: Path) -> list[tuple[str, str, list[Candidate]]]:
    model, batch = config.model, 16 if config.quick and config.batch == 128 else config.batch
    predictions = [
        *(("inference", f"inference, batch {n}", steps.inference(target, n)) for n in steps.batches(config.quick)),
        *(
            ("inference", f"inference, batch {n}, int8", steps.int8_inference(target, n))
            for n in steps.int8_batches(config.quick)
        ),
    ]
    if target.run:
        return predictions
    return [
        ("training", f"training step, batch {batch}", steps.training(model, batch)),
        *predictions,
        ("prepare", "JPEG file to 256×256 pixels, one core", data.decoding(folder)),
        ("data", f"training batches, batch {batch}", data.loading(folder, batch)),
        ("end-to-end", f"JPEG files to a trained epoch, batch {batch}", data.end_to_end(folder, batch, model)),
    ]


def _timed(name: str, candidates: Sequence[Candidate], rounds: int, log: Callable[[str], None]) -> list[Timing]:
    return time_candidates(candidates, rounds, lambda who: log(f"{name}: {who}"))
