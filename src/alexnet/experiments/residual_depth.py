"""The story of skip connections: plain and residual networks of growing depth, trained alike (He et al. 2015, 4.2).

A plain network that is made deeper learns its own training images worse from some depth on, so overfitting is not the
reason; with shortcuts it does not. The measure is the error of the last weights on the training images as they are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet import recipe as recipes
from alexnet.data.atomic_io import json_bytes, write_file
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store
from alexnet.errors import RecipeError, RunError
from alexnet.experiments import plan as materials
from alexnet.experiments import runner
from alexnet.experiments.claims import Arm
from alexnet.experiments.contest import plan as budgets
from alexnet.experiments.contest import run as pace
from alexnet.experiments.plan import Job, Material, read_file, written
from alexnet.experiments.runner import Finding, Member, Verdict, obtain
from alexnet.loader.loader import choose_device
from alexnet.models.residual import DEPTHS, model_name
from alexnet.recipe import Recipe
from alexnet.training import runtime

QUICK = {"depths": (8, 20, 44), "seeds": 2, "epochs": 10, "images": 2000}
FULL = {"depths": DEPTHS, "seeds": 3, "epochs": 40, "images": 0}
SIDE, STORED = 32, 36  # pixels: crops of images with a border of two
KINDS = (False, True)  # plain, residual


@dataclass(frozen=True)
class Config:
    """What a person asked for; None: the plan's own."""

    quick: bool = False
    depths: tuple[int, ...] = ()
    seeds: int | None = None
    epochs: int | None = None
    budget: str | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("seeds", self.seeds, 1),
            ("epochs", self.epochs, 1),
            ("images", self.images, 0),
        ):
            if value is not None and value < least:
                raise RecipeError(f"--{name} is {value}", f"at least {least}")
        for depth in self.depths:
            if depth not in DEPTHS:
                raise RecipeError(f"--depths names {depth}", f"one of {', '.join(map(str, DEPTHS))} (6n + 2 layers)")
        if self.depths and len(set(self.depths)) < 2:
            raise RecipeError(f"--depths is {self.depths[0]} alone", "at least two, to be compared")
        if self.budget is not None and self.epochs is not None:
            raise RecipeError("--budget and --epochs both say how long", "one of them")


@dataclass(frozen=True)
class Plan:
    """Plain and residual networks of each depth, ``seeds`` of each. ``budget`` seconds, or 0."""

    data: str
    depths: tuple[int, ...]
    seeds: int
    images: int
    budget: float
    base: Recipe

    def recipe(self, job: Job) -> Recipe:
        """Every number of one training."""
        return self.base.replace(model=job.arm.small, seed=job.seed)

    def jobs(self) -> list[Job]:
        """All trainings, one seed after the other, so that an early end leaves whole comparisons."""
        arms = [arm_of(depth, shortcut) for depth in self.depths for shortcut in KINDS]
        return [Job(arm, self.base.lr, seed) for seed in range(self.seeds) for arm in arms]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        plain = {"data": self.data, "depths": list(self.depths), "seeds": self.seeds, "images": self.images}
        return plain | {"budget": self.budget, "trainings": len(self.jobs()), "recipe": self.base.to_dict()}

    def lines(self) -> list[str]:
        """The plan for people."""
        some = f"at most {self.images} training images" if self.images else "all images"
        time = f"as many as fit into {budgets.words(self.budget)}" if self.budget else str(self.base.epochs)
        return [
            "depth: a plain network made deeper learns its training images worse; a residual one does not "
            "(He et al. 2015, section 4.2)",
            f"  networks   plain and residual, of {', '.join(map(str, self.depths))} layers",
            f"  data       {self.data}, {some}, crops of {SIDE} pixels",
            f"  epochs     {time}, the same for all; a cosine from rate {self.base.lr:g} to 0; last weights",
            f"  trainings  {len(self.jobs())}: {self.seeds} seed{'s' * (self.seeds > 1)} of each network",
            *(["  one seed gives no interval: nothing can be concluded"] if self.seeds < 2 else []),
        ]


def arm_of(depth: int, shortcut: bool) -> Arm:
    """A network of the story."""
    return Arm(model_name(depth, shortcut).replace("_", " "), model_name(depth, shortcut), "")


def make(material: Material, data: str, config: Config) -> Plan:
    """The plan for these images. Raises :class:`RecipeError`."""
    usual: dict[str, Any] = QUICK if config.quick else FULL
    time = 0.0 if config.budget is None else budgets.seconds(config.budget)
    stored = STORED if material.store is None else material.store.size
    base = recipes.get_recipe("owt").replace(
        recipe="depth",
        model=model_name(8, True),
        dropout=0.0,
        image_size=SIDE,
        stored_size=stored,
        crop="random",
        hflip=0.5 if material.mirror else 0.0,
        validation=0.1,
        select_weights="last",
        lr=0.1,
        batch_size=64,
        schedule="cosine",
        lr_milestones=(),
        warmup_epochs=1.0,
        precision="auto",
        epochs=config.epochs or usual["epochs"],
        checkpoint_every="10min",
        **({} if material.store is None else {"fit": material.store.fit}),
    )
    depths = tuple(sorted(set(config.depths))) or tuple(usual["depths"])
    images = usual["images"] if config.images is None else config.images
    return Plan(data, depths, config.seeds or usual["seeds"], images, time, base)


@dataclass(frozen=True)
class Outcome:
    """What became of a plan: ``training`` and ``test`` errors in percent, by network, a value a seed."""

    plan: Plan
    counts: dict[str, int]
    members: tuple[Member, ...]
    training: dict[str, list[float]]
    test: dict[str, list[float]]
    findings: tuple[Finding, ...]
    verdict: Verdict
    image: Path

    @property
    def seconds(self) -> float:
        """Of all trainings, whenever they were made."""
        return sum(member.seconds for member in self.members)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "plan": self.plan.to_dict(),
            "counts": self.counts,
            "training_error": self.training,
            "test_error": self.test,
            "findings": [finding.to_dict() for finding in self.findings],
            "verdict": self.verdict,
            "diverged": {m.job.words: m.diverged for m in self.members if m.diverged},
            "image": str(self.image),
            "seconds": round(self.seconds, 1),
        }


def run(
    plan: Plan, material: Material, folder: Path, options: DataOptions, *, device: str = "auto", workers: int = 1
) -> Outcome:
    """Tell the story in ``folder``; what is there already is found again, an interrupted training goes on.

    Raises :class:`RunError` where the folder holds another plan, :class:`alexnet.errors.Interrupted` after a signal.
    """
    plan = _begun(plan, folder)
    store = materials.prepare(material, plan.base, plan.images, options)
    if plan.budget and not (folder / "plan.json").is_file():
        plan = _fitted(plan, store, options, device)
    write_file(folder / "plan.json", json_bytes(plan.to_dict()))
    members = []
    for number, job in enumerate(plan.jobs(), 1):
        options.log_line(f"training {number} of {len(plan.jobs())}: {job.arm.name}, seed {job.seed}")
        member = obtain(job, plan.recipe(job), store, folder / job.folder, device=device, workers=workers)
        options.log_line(f"  {_said(member)}")
        members.append(member)
    return _told(plan, store, members, folder, device)


@dataclass(frozen=True)
class _Chosen:
    epochs: int
    warmup_epochs: float


@dataclass(frozen=True)
class _PlanFile:
    """What a budget chose, in ``plan.json``."""

    recipe: _Chosen


def _begun(plan: Plan, folder: Path) -> Plan:
    """The plan that is in ``folder`` where it is this one: with its epochs, if a budget chose them."""
    there = written(folder, "story of depth")
    if there and plan.budget:
        chosen = read_file(folder / "plan.json", _PlanFile).recipe
        plan = _with(plan, plan.base.replace(epochs=chosen.epochs, warmup_epochs=chosen.warmup_epochs))
    ours = json.loads(json.dumps(plan.to_dict()))
    flat, other = ours | ours["recipe"], there | there.get("recipe", {})
    for name in (name for name in flat if there and name not in ("recipe", "seeds", "trainings")):
        if flat[name] != other.get(name):
            raise RunError(f"{folder} holds another plan: its {name} is different", "", "choose another --output-dir")
    return plan


def _with(plan: Plan, base: Recipe) -> Plan:
    return Plan(plan.data, plan.depths, plan.seeds, plan.images, plan.budget, base)


def _fitted(plan: Plan, store: Store, options: DataOptions, device: str) -> Plan:
    """As many epochs, the same for all, as fit into the budget by a few measured steps of each network."""
    options.log_line("measuring a few steps of each network")
    chosen = choose_device(device)
    base = runtime.resolve_auto(plan.base, chosen)
    counts = [len(store.split(name)) for name in ("train", "validation", "test")]
    arms = {job.arm.small: runtime.resolve_auto(plan.recipe(job), chosen) for job in plan.jobs()}
    paces = {name: pace.measure_training(recipe, store, chosen) for name, recipe in arms.items()}
    time = plan.budget * budgets.CAREFUL / plan.seeds

    def all_of(epochs: int) -> float:
        result = budgets.with_epochs(base, epochs)
        return sum(budgets.needed(result, each, SIDE, counts) for each in paces.values())

    if all_of(1) > time:
        raise RecipeError(
            f"--budget of {budgets.words(plan.budget)}: one epoch of each of {len(plan.jobs())} trainings takes "
            f"{budgets.words(all_of(1) * plan.seeds)}",
            "",
            "give more, fewer --depths or --seeds, or fewer --images",
        )
    epochs = max(n for n in range(1, budgets.MOST_EPOCHS + 1) if n == 1 or all_of(n) <= time)
    return _with(plan, budgets.with_epochs(plan.base, epochs))


def _said(member: Member) -> str:
    if member.diverged:
        return "diverged"
    return f"{100 * member.training_errors[-1]:.1f} % training error in its last epoch, {member.seconds:.0f} s"


def _told(plan: Plan, store: Store, members: Sequence[Member], folder: Path, device: str) -> Outcome:
    training: dict[str, list[float]] = {member.job.arm.small: [] for member in members}
    test: dict[str, list[float]] = {member.job.arm.small: [] for member in members}
    chance = 100 * (1 - 1 / len(store.classes))
    for member in members:
        for split, errors in (("train", training), ("test", test)):
            error = chance if member.diverged else 100 * float(member.scores(split, 1, device)["top1_error"])
            errors[member.job.arm.small].append(error)
    result_value = findings(plan.depths, training, test)
    counts = {name: len(split) for name, split in store.splits.items()}
    image = folder / "depth.png"
    result = Outcome(
        plan, counts, tuple(members), training, test, tuple(result_value), runner.overall(result_value), image
    )
    _draw(result)
    write_file(folder / "depth.json", json_bytes(result.to_dict()))
    return result


def findings(
    depths: Sequence[int], training: Mapping[str, Sequence[float]], test: Mapping[str, Sequence[float]]
) -> list[Finding]:
    """What the errors say, in points, a value a seed; above 0 is what He et al. saw."""
    few, many = min(depths), max(depths)

    def minus(errors: Mapping[str, Sequence[float]], a: str, b: str) -> tuple[float, ...]:
        return tuple(x - y for x, y in zip(errors[a], errors[b], strict=True))

    plain, residual = ({depth: model_name(depth, kind) for depth in (few, many)} for kind in KINDS)
    note = "of the last weights, center view, nothing changed; a network that diverged counts as guessing"
    return [
        Finding(
            f"training error, plain: {many} − {few} layers",
            "above 0",
            minus(training, plain[many], plain[few]),
            primary=True,
            note=note,
        ),
        Finding(
            f"training error, {many} layers: plain − residual",
            "above 0",
            minus(training, plain[many], residual[many]),
            primary=True,
        ),
        Finding(f"test error, {many} layers: plain − residual", "above 0", minus(test, plain[many], residual[many])),
        Finding(f"test error, residual: {few} − {many} layers", "above 0", minus(test, residual[few], residual[many])),
    ]


def _draw(result: Outcome) -> None:
    from alexnet.plots import depth as drawing

    plan = result.plan
    points = [
        drawing.Point(depth, kind, result.training[name], result.test[name])
        for depth in plan.depths
        for kind in KINDS
        for name in (model_name(depth, kind),)
    ]
    curves = [
        drawing.Curve(
            int(m.job.arm.small.rpartition("_")[2]),
            m.job.arm.small.startswith("residual"),
            [100 * error for error in m.training_errors],
        )
        for m in result.members
        if m.job.seed == 0 and not m.diverged
    ]
    below = f"{plan.data}, {result.counts['train']} training images, {plan.base.epochs} epochs, "
    below += f"{plan.seeds} seed{'s' * (plan.seeds > 1)}; deeper plain networks learn worse: {result.verdict}"
    drawing.draw("Depth, with and without shortcuts", below, points, curves, result.image)


def folder_for(plan: Plan, *, quick: bool) -> Path:
    """Where a story goes if nobody says: the same command finds it again."""
    return Path("runs") / "depth" / f"{plan.data}{'-quick' if quick else ''}"
