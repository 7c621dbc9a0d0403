"""The whole bench: which contenders meet in which group, and what came of it as numbers."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alexnet.api.evaluating import store_of
from alexnet.api.provenance import note_test
from alexnet.bench import limits, pictures, steps, whole_numbers
from alexnet.bench.accuracy import Accuracy, accuracies
from alexnet.bench.arena import Contender, Timing, compete
from alexnet.bench.subject import Subject
from alexnet.data.store import Store
from alexnet.errors import ModelError, RecipeError
from alexnet.models import list_models
from alexnet.temporary import temporary_folder

PARTS = ("training", "inference", "data", "end-to-end", "prepare")
FEWEST_ROUNDS = 2


@dataclass(frozen=True)
class Wishes:
    """What is to be measured."""

    model: str = "alexnet"
    parts: tuple[str, ...] = PARTS
    batch: int = 128  # of training
    rounds: int = 5
    quick: bool = False
    folder: Path | None = None  # pictures: a folder a class; none: painted ones
    run: Path | None = None  # whose weights and test pictures answers are timed with; none: fresh weights, noise

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
            pictures.check(self.folder)
        if self.run is None:
            return
        if set(self.parts) != {"inference"}:
            raise RecipeError("--run with other parts than inference", "--only inference", "time the others without it")
        if self.model != Wishes.model:
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

    wishes: Wishes
    machine: dict[str, str | int]
    limits: list[Timing]
    groups: list[Group]
    accuracies: list[Accuracy] = field(default_factory=list)  # of the run

    def share(self, timing: Timing) -> float | None:
        """The rate of a contender's operations as a share of the matrix product in its precision.

        Counted as a plain sum of products, whatever is computed instead: fewer products give more than 1.
        """
        limit = next((t for t in self.limits if t.contender.precision == timing.contender.precision and t.rates), None)
        if limit is None or not timing.rates or not timing.contender.flop:
            return None
        return timing.median * timing.contender.flop / limit.median

    def to_dict(self) -> dict[str, Any]:
        """For JSON; rates are pictures a second, limits operations or bytes a second."""
        wishes = {"model": self.wishes.model, "batch": self.wishes.batch, "rounds": self.wishes.rounds}
        return {
            "machine": self.machine,
            "wishes": wishes | {
                "pictures": str(self.wishes.folder or "painted"), "quick": self.wishes.quick,
                "run": None if self.wishes.run is None else str(self.wishes.run),
            },
            "accuracies": [asdict(accuracy) for accuracy in self.accuracies],
            "limits": {t.contender.name: _numbers(t) for t in self.limits},
            "groups": [
                {
                    "part": group.part, "name": group.name,
                    "contenders": {
                        t.contender.name: {
                            **_numbers(t), "ours_over_it": group.ratio(t), "share_of_limit": self.share(t),
                        }
                        for t in group.timings
                    },
                }
                for group in self.groups
            ],
        }  # fmt: skip


def _numbers(timing: Timing) -> dict[str, Any]:
    if not timing.rates:
        return {"skipped": timing.skipped}
    return {
        "median": timing.median, "spread": timing.spread, "rates": list(timing.rates), "memory_mib": timing.memory,
        "waited": timing.waited,
    }  # fmt: skip


def run(wishes: Wishes, say: Callable[[str], None]) -> Report:
    """Measure what is wished for; ``say`` is told what is being done."""
    wishes.check()
    subject = wishes.subject()
    about = limits.machine()
    found = _timed("limits of the machine", limits.contenders(), max(wishes.rounds, 5), say)
    with temporary_folder() as painted:
        folder = wishes.folder
        if folder is None and set(wishes.parts) & {"data", "end-to-end", "prepare"}:
            folder = painted
            pictures.paint(folder, 64 if wishes.quick else 512)
        groups = [
            Group(part, name, _timed(name, contenders, wishes.rounds, say))
            for part, name, contenders in _groups(wishes, subject, folder or painted)
            if part in wishes.parts
        ]
    scores = []
    if subject.run:
        scores = accuracies(subject, say)
        note_test(subject.run, Store.open(store_of(Path(subject.run))), "test", "bench", say)
    return Report(wishes, about, found, groups, scores)


def _groups(wishes: Wishes, subject: Subject, folder: Path) -> list[tuple[str, str, list[Contender]]]:
    model, batch = wishes.model, 16 if wishes.quick and wishes.batch == 128 else wishes.batch
    answers = [
        *(("inference", f"answers, batch {n}", steps.inference(subject, n)) for n in steps.batches(wishes.quick)),
        *(
            ("inference", f"answers, batch {n}, int8", whole_numbers.answering(subject, n))
            for n in whole_numbers.batches(wishes.quick)
        ),
    ]
    if subject.run:
        return answers
    return [
        ("training", f"training step, batch {batch}", steps.training(model, batch)),
        *answers,
        ("prepare", "JPEG file to 256×256 pixels, one core", pictures.decoding(folder)),
        ("data", f"training batches, batch {batch}", pictures.loading(folder, batch)),
        ("end-to-end", f"JPEG files to a trained epoch, batch {batch}", pictures.end_to_end(folder, batch, model)),
    ]


def _timed(name: str, contenders: Sequence[Contender], rounds: int, say: Callable[[str], None]) -> list[Timing]:
    return compete(contenders, rounds, lambda who: say(f"{name}: {who}"))
