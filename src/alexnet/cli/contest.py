"""``alexnet contest``: the contest of 2012 on one's own pictures; ``alexnet depth``: the story of skip connections."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from alexnet.cli import arguments, show
from alexnet.cli.arguments import DataArguments
from alexnet.errors import RecipeError

if TYPE_CHECKING:
    from alexnet.history.contest.run import Outcome
    from alexnet.history.skips import Outcome as Story
    from alexnet.history.verdict import Finding


@dataclass(frozen=True)
class ContestArguments:
    """The contest of 2012 on one's own pictures: all contestants on one split, one set of views and one clock.

    The same command again finds contestants that have finished, and goes on where it was interrupted.
    """

    data: Positional[str | None] = None  # digits | a folder of pictures or parquet | a store | cifar10, imagenette, …
    nets: str | None = None  # who takes part: alexnet,fisher,resnet18 … ; by default eight, see docs/contest.md
    budget: str | None = None  # time for all together, equally shared: 40min, 1.5h; by default 15min, photographs 90min
    epochs: int | None = None  # instead: equal epochs of every network, however long they take
    pretrained: bool = False  # networks start from torchvision's published weights, where these are at hand
    seed: int = 0  # of splits, initial weights, order, views and mixtures
    side: int = 0  # of the views of all contestants, pixels; 0: 224 of photographs, 64 of small pictures
    pictures: int = 0  # most training pictures, evenly from each class, and half as many to test; 0: all
    run: Path | None = None  # folder for all contestants; by default runs/contest/DATA-BUDGET
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    workers: int = 1  # threads that make batches; the number never changes a run
    json: bool = False  # print one JSON object; the plan goes to standard error
    source: DataArguments = field(default_factory=DataArguments)


@dataclass(frozen=True)
class DepthArguments:
    """Plain and residual networks of growing depth, trained alike: does a deeper one learn its pictures worse?

    The same command again finds what it has trained already, and goes on where it was interrupted.
    """

    data: Positional[str | None] = None  # digits | cifar10 | a folder of pictures or parquet | a store
    quick: bool = False  # three depths, two seeds, few epochs and pictures: minutes on a processor
    depths: tuple[int, ...] = ()  # of 8, 14, 20, 32, 44, 56 layers; by default all (quick: 8, 20, 44)
    seeds: int | None = None  # trainings of each network; by default 3 (quick: 2)
    epochs: int | None = None  # of every training; by default 40 (quick: 10)
    budget: str | None = None  # instead: time for all together, 40min or 1.5h, from which the epochs follow
    pictures: int | None = None  # most training pictures; 0: all
    run: Path | None = None  # folder for all trainings; by default runs/depth/DATA
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    workers: int = 1  # threads that make batches; the number never changes a run
    json: bool = False  # print one JSON object; the plan goes to standard error
    source: DataArguments = field(default_factory=DataArguments)


def contest(words: list[str]) -> int:
    """AlexNet, its successors and the runner-up of 2012 on one split and one clock"""
    given: ContestArguments = arguments.parse(ContestArguments, words, "contest")
    if given.data is None:
        raise RecipeError("contest needs DATA", "digits, a folder, a store or the name of a set")
    from alexnet.history import material
    from alexnet.history.contest import plan, run

    nets = () if given.nets is None else tuple(name.strip() for name in given.nets.split(",") if name.strip())
    wishes = plan.Wishes(
        nets, given.budget, given.epochs, given.pretrained, given.seed, given.side, given.pictures
    )  # fmt: skip
    options = arguments.data_options(given.source)
    found = material.find(given.data, options)
    made = plan.make(found, material.shown(given.data), wishes)
    print("\n".join(made.lines()), "", sep="\n", file=sys.stderr if given.json else sys.stdout, flush=True)
    folder = Path(given.run or run.folder_for(made))
    _print(run.run(made, found, folder, options, device=given.device, workers=given.workers), as_json=given.json)
    return 0


def _print(outcome: "Outcome", *, as_json: bool) -> None:
    from alexnet.history.contest import budget, result

    if as_json:
        print(json.dumps(outcome.to_dict()))
        return
    counts = outcome.counts
    title = f"{counts['train']} pictures to train, {counts['validation']} to choose, {counts['test']} to test"
    columns, rows = result.cells(outcome.rows)
    show.table(f"{title}, {outcome.classes} classes", columns, rows, right=len(columns))
    for note in outcome.notes:
        print(f"note       {note}")
    print(f"picture    {outcome.picture}")
    print(f"results    {outcome.folder}  (contest.json, contest.csv, contest.md; a folder for each contestant)")
    print(f"time       {budget.words(outcome.seconds)} in all")
    print(f"verdict    {outcome.verdict}")


def depth(words: list[str]) -> int:
    """plain and residual networks of growing depth: why skip connections came after AlexNet"""
    given: DepthArguments = arguments.parse(DepthArguments, words, "depth")
    if given.data is None:
        raise RecipeError("depth needs DATA", "digits, cifar10, a folder, a store or the name of a set")
    from alexnet.history import material, skips

    wishes = skips.Wishes(given.quick, given.depths, given.seeds, given.epochs, given.budget, given.pictures)
    options = arguments.data_options(given.source)
    found = material.find(given.data, options)
    made = skips.make(found, material.shown(given.data), wishes)
    print("\n".join(made.lines()), "", sep="\n", file=sys.stderr if given.json else sys.stdout, flush=True)
    folder = Path(given.run or skips.folder_for(made, quick=given.quick))
    _print_story(
        skips.run(made, found, folder, options, device=given.device, workers=given.workers), folder, given.json
    )
    return 0


def _print_story(story: "Story", folder: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(story.to_dict()))
        return
    counts = story.counts
    title = f"{counts['train']} pictures to train, {counts['test']} to test, {story.plan.base.epochs} epochs"
    rows = [(name.replace("_", " "), _mean(story.training[name]), _mean(story.test[name])) for name in story.training]
    show.table(title, ("network", "training error", "test error"), rows)
    columns = ("measured, in points", "He et al.", "ours", "95 % CI over seeds", "verdict")
    show.table("", columns, [_finding(found) for found in story.findings], right=9)
    for note in dict.fromkeys(f.note for f in story.findings if f.note):
        print(f"note       {note}")
    print(f"training   {story.seconds:.0f} s in all")
    print(f"picture    {story.picture}")
    print(f"runs       {folder}  (depth.json has every number)")
    print(f"verdict    deeper plain networks learn worse, and shortcuts mend it: {story.verdict}")


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f} %"


def _finding(found: "Finding") -> tuple[str, ...]:
    interval = (
        "none from one seed" if found.interval is None else f"{found.interval[0]:+.2f} to {found.interval[1]:+.2f}"
    )
    return found.what, found.paper, "–" if found.mean is None else f"{found.mean:+.2f}", interval, found.verdict
