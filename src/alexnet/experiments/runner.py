"""The trainings of a claim: each is made once, found again when it is there, and gone on with where it stopped.

What so many seeds can say: Student's interval, and whether a claim holds.

Members -> findings: what the trainings of a claim say about it, a value a seed, and the numbers behind it.

A claim put to the test: images prepared, rates chosen, members trained, findings judged, drawn, written down.
"""

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from alexnet.api.evaluation import evaluate
from alexnet.bundle.integrity import read_config
from alexnet.data.atomic_io import json_bytes, write_file
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store
from alexnet.errors import CheckpointError, Interrupted, RunError, TrainingError
from alexnet.experiments import plan as materials
from alexnet.experiments.plan import Job, Material, Plan, compatible, read_file, written
from alexnet.loader.loader import choose_device
from alexnet.recipe import Recipe, differences
from alexnet.training import run as runs
from alexnet.training import runtime
from alexnet.training.finetune import PretrainedWeights
from alexnet.training.logger import read_rows

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

    def scores(self, split: str, crops: int, device: str) -> dict[str, Any]:
        """Scores of a split: from its bundle, or computed once and written down next to it."""
        if crops == 1 and split in self.metrics:
            return dict(self.metrics[split])
        path = self.folder / f"scores-{split}-{crops}.json"
        if path.is_file():
            return read_file(path, dict[str, Any])
        result = evaluate(
            self.folder / "bundle", self.store.absolute, split=split, crops=crops, device=device
        ).to_dict()
        write_file(path, json_bytes(result))
        return result


def obtain(
    job: Job,
    recipe: Recipe,
    store: Store,
    folder: Path,
    *,
    device: str,
    workers: int,
    start: PretrainedWeights | None = None,
) -> Member:
    """The member of ``job`` in ``folder``: found, resumed or trained; from the weights of ``start`` if given.

    Raises :class:`RunError` if another training lies there, and :class:`Interrupted` when a signal stops it: it is
    saved, and the same call goes on.
    """
    chosen = choose_device(device)
    recipe = runtime.resolve_auto(recipe, chosen)
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
        raise RunError(f"{folder} was trained with {name} = {before}, not {now}", "", "choose another --output-dir")
    if about["store_fingerprint"] != store.fingerprint:
        raise RunError(f"{folder} was trained on other images", "", "choose another --output-dir")


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


def _train(
    recipe: Recipe, store: Store, folder: Path, device: torch.device, workers: int, start: PretrainedWeights | None
) -> None:
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
        with runtime.cpu_settings(recipe):
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


Verdict = Literal["holds", "does not hold", "cannot tell"]


@dataclass(frozen=True)
class Finding:
    """One thing that was measured, a value a seed; greater is more in the claim's favor.

    ``points`` are differences of percentages, neutral at 0; a ``ratio`` is neutral at 1 and judged by its logarithm,
    so that three times as fast and a third as fast weigh alike. ``at_least``: some values are lower bounds.
    ``primary`` findings decide the claim.
    """

    what: str
    paper: str  # the paper's figure; empty where it has none
    values: tuple[float, ...]
    unit: Literal["points", "ratio"] = "points"
    primary: bool = False
    at_least: bool = False
    note: str = ""

    @property
    def mean(self) -> float | None:
        """Mean of the values, of a ratio the geometric one; None without values."""
        if not self.values:
            return None
        return self._out(sum(self._in()) / len(self.values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the mean lies with 95 % confidence; None from fewer than two seeds."""
        result = t_interval(self._in())
        return None if result is None else (self._out(result[0]), self._out(result[1]))

    @property
    def verdict(self) -> Verdict:
        """``holds`` or ``does not hold`` where the interval lies on one side of the neutral value."""
        return judge(t_interval(self._in()))

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "what": self.what,
            "paper": self.paper,
            "unit": self.unit,
            "primary": self.primary,
            "values": list(self.values),
            "mean": self.mean,
            "interval": None if self.interval is None else list(self.interval),
            "at_least": self.at_least,
            "verdict": self.verdict,
            "note": self.note,
        }

    def _in(self) -> list[float]:
        return [math.log(v) for v in self.values] if self.unit == "ratio" else list(self.values)

    def _out(self, value: float) -> float:
        return math.exp(value) if self.unit == "ratio" else value


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval for the mean of independent values: mean ± t·s/√n with n − 1 degrees of freedom."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    reach = float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n)
    return mean - reach, mean + reach


def judge(interval: tuple[float, float] | None) -> Verdict:
    """By where an interval lies: above 0, below 0, or about it (or there is none)."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "cannot tell"
    return "holds" if interval[0] > 0 else "does not hold"


def overall(findings: Sequence[Finding]) -> Verdict:
    """Of a claim: it holds if each primary finding does, and does not if one does not."""
    verdicts = {finding.verdict for finding in findings if finding.primary}
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if verdicts == {"holds"} else "cannot tell"


Members = Mapping[str, Sequence[Member]]  # by the arm's name; a member a seed, in order


def findings_of(plan: Plan, members: Members, device: str) -> tuple[list[Finding], dict[str, list[float]]]:
    """What was found, and the numbers for the image: name -> percentages or epochs, one a seed."""
    kinds = {"error": _errors, "gap": _gaps, "speed": _speed, "crops": _views, "ensemble": _ensemble}
    return kinds[plan.claim.kind](plan, members, device)


def _percent(results: Mapping[str, Any], top: str = "top1") -> float:
    return 100.0 * float(results[f"{top}_error"])


def _tests(members: Sequence[Member], device: str, crops: int = 1) -> list[dict[str, Any]]:
    return [member.scores("test", crops, device) for member in members]


def _tops(members: Sequence[Member]) -> tuple[str, ...]:
    """With five classes or fewer, the five best are always right."""
    return ("top1", "top5") if len(members[0].store.classes) > 5 else ("top1",)


def _minus(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _errors(plan: Plan, members: Members, device: str) -> tuple[list[Finding], dict[str, list[float]]]:
    base, *others = plan.arms
    result, tests = [], {arm.name: _tests(members[arm.name], device) for arm in plan.arms}
    for arm in others:
        for top in _tops(members[base.name]):
            without, own = ([_percent(t, top) for t in tests[a.name]] for a in (arm, base))
            first = arm is others[0] or plan.claim.name == "depth"  # the paper's own comparison
            paper = plan.claim.figures.get(top, "") if first else ""
            what = f"{top.replace('top', 'top-')} test error: {arm.name} − {base.name}"
            result.append(Finding(what, paper, _minus(without, own), primary=top == "top1" and first))
    return result, {name: [_percent(t) for t in rows] for name, rows in tests.items()}


def _gaps(plan: Plan, members: Members, device: str) -> tuple[list[Finding], dict[str, list[float]]]:
    base, other = plan.arms
    numbers: dict[str, list[float]] = {}
    gaps, errors = {}, {}
    for arm in plan.arms:
        train = [_percent(member.scores("train", 1, device)) for member in members[arm.name]]
        errors[arm.name] = test = [_percent(results) for results in _tests(members[arm.name], device)]
        numbers |= {f"{arm.name}: training": train, f"{arm.name}: test": test}
        gaps[arm.name] = _minus(test, train)
    paper = plan.claim.figures
    results = [
        Finding(
            f"test − training error: {other.name} − {base.name}",
            paper.get("gap", ""),
            _minus(gaps[other.name], gaps[base.name]),
            primary=True,
            note="both errors of the kept weights, center view, nothing dropped or changed",
        ),
        Finding(
            f"top-1 test error: {other.name} − {base.name}",
            paper.get("top1", ""),
            _minus(errors[other.name], errors[base.name]),
        ),
    ]
    return results + ([_longer(plan, members)] if "ratio" in paper else []), numbers


def _longer(plan: Plan, members: Members) -> Finding:
    """How many times as many epochs the paper's way takes to a training error that all members reach."""
    base, other = plan.arms
    level = plan.level or max(min(m.training_errors) for arm in plan.arms for m in members[arm.name])
    pairs = [
        (a.epochs_to(level), b.epochs_to(level)) for a, b in zip(members[base.name], members[other.name], strict=True)
    ]
    values = tuple(a / b for a, b in pairs if a is not None and b is not None)
    what = f"epochs to {100 * level:.1f} % training error: {base.name} / {other.name}"
    note = "error while training, with what the recipe drops and changes"
    return Finding(what, plan.claim.figures["ratio"], values, "ratio", note=note)


def _speed(plan: Plan, members: Members, device: str) -> tuple[list[Finding], dict[str, list[float]]]:
    base, other = plan.arms
    values, notes, bounded = [], [], False
    for fast, slow in zip(members[base.name], members[other.name], strict=True):
        a, b = fast.epochs_to(plan.level), slow.epochs_to(plan.level)
        if a is None and b is None:
            notes.append(f"seed {fast.job.seed}: neither came to {100 * plan.level:g} %, it is left out")
            continue
        if a is None or b is None:
            bounded = bounded or b is None
            late = base.name if a is None else other.name
            notes.append(f"seed {fast.job.seed}: {late} had not come to {100 * plan.level:g} % when its epochs ended")
        values.append((b or len(slow.rows)) / (a or len(fast.rows)))
    what = f"epochs to {100 * plan.level:g} % training error: {other.name} / {base.name}"
    result = Finding(what, plan.claim.figures["ratio"], tuple(values), "ratio", True, bounded, "; ".join(notes))
    numbers = {
        arm.name: [m.epochs_to(plan.level) or float(len(m.rows)) for m in members[arm.name]] for arm in plan.arms
    }
    return [result], numbers


def _views(plan: Plan, members: Members, device: str) -> tuple[list[Finding], dict[str, list[float]]]:
    result, numbers, (arm,) = [], {}, plan.arms
    note = "" if plan.mirror else "half of the ten crops are mirrored, which these images were never trained on"
    for top in _tops(members[arm.name]):
        one, ten = ([_percent(t, top) for t in _tests(members[arm.name], device, crops)] for crops in (1, 10))
        what, paper = f"{top.replace('top', 'top-')} test error: center view − ten crops", plan.claim.figures[top]
        result.append(Finding(what, paper, _minus(one, ten), primary=top == "top1", note=note))
        if top == "top1":
            numbers = {"center view": one, "ten crops": ten}
    return result, numbers


def _ensemble(plan: Plan, members: Members, device: str) -> tuple[list[Finding], dict[str, list[float]]]:
    many = members[plan.arms[0].name]
    together = evaluate([m.folder / "bundle" for m in many], many[0].store.absolute, device=device).to_dict()
    result, numbers = [], {}
    for top in _tops(many):
        alone = [_percent(t, top) for t in _tests(many, device)]
        what = f"{top.replace('top', 'top-')} test error: one network − the mean of {len(many)}"
        paper = plan.claim.figures.get(top, "")
        values = tuple(error - _percent(together, top) for error in alone)
        note = "the interval is over the networks; the ensemble is one and the same"
        result.append(Finding(what, paper, values, primary=top == "top1", note=note))
        if top == "top1":
            numbers = {"one network": alone, f"mean of {len(many)}": [_percent(together)]}
    return result, numbers


@dataclass(frozen=True)
class Outcome:
    """What became of a plan. ``chosen``: learning rate by arm; ``numbers``: what the image shows, a value a seed."""

    plan: Plan
    counts: dict[str, int]  # images of each split
    chosen: dict[str, float]
    searches: tuple[Member, ...]
    members: tuple[Member, ...]
    findings: tuple[Finding, ...]
    numbers: dict[str, list[float]]
    verdict: Verdict
    image: Path
    seconds: float  # of all trainings, whenever they were made

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "plan": self.plan.to_dict(),
            "counts": self.counts,
            "chosen_rates": self.chosen,
            "search": [_about(member, self.plan) for member in self.searches],
            "members": [_about(member, self.plan) for member in self.members],
            "findings": [finding.to_dict() for finding in self.findings],
            "numbers": self.numbers,
            "verdict": self.verdict,
            "image": str(self.image),
            "seconds": round(self.seconds, 1),
        }


def run(
    plan: Plan, material: Material, folder: Path, options: DataOptions, *, device: str = "auto", workers: int = 1
) -> Outcome:
    """Put ``plan`` to the test in ``folder``. What is there already is found again; an interrupted training goes on.

    Raises :class:`RunError` where the folder holds another plan, :class:`alexnet.errors.Interrupted` after a signal.
    """
    _same_plan(plan, folder)
    store = materials.prepare(material, plan.recipe(Job(plan.arms[0], plan.rates[0], 0)), plan.images, options)
    write_file(folder / "plan.json", json_bytes(plan.to_dict()))
    made = 0

    def get(job: Job, recipe: Recipe) -> Member:
        nonlocal made
        made = min(made + 1, plan.trainings)
        options.log_line(f"training {made} of {plan.trainings}: {job.words}")
        member = obtain(job, recipe, store, folder / job.folder, device=device, workers=workers)
        options.log_line(f"  {_said(member, plan)}")
        return member

    searches: dict[str, Member] = {}
    for job in plan.searches():
        searches[job.folder] = get(job, _no_longer(plan, job, searches.values()))
    chosen = _choose(plan, list(searches.values()))
    members = [searches.get(job.folder) or get(job, plan.recipe(job)) for job in plan.members(chosen)]
    for member in members:
        if member.diverged:
            raise TrainingError(f"{member.job.words}: {member.diverged}", "", "give --rates with lower ones")
    result_value, numbers = findings_of(plan, _by_arm(plan, members), device)
    result = Outcome(
        plan,
        {name: len(split) for name, split in store.splits.items()},
        chosen,
        tuple(searches.values()),
        tuple(members),
        tuple(result_value),
        numbers,
        overall(result_value),
        folder / f"{plan.claim.name}.png",
        sum(m.seconds for m in {m.folder: m for m in (*searches.values(), *members)}.values()),
    )
    _draw(result)
    write_file(folder / "result.json", json_bytes(result.to_dict()))
    return result


def _same_plan(plan: Plan, folder: Path) -> None:
    there = written(folder, "claim")
    name = compatible(json.loads(json.dumps(plan.to_dict())), there)
    if name:
        raise RunError(f"{folder} holds another plan: its {name} is different", "", "choose another --output-dir")


def _no_longer(plan: Plan, job: Job, before: Iterable[Member]) -> Recipe:
    """The recipe of a search: no more epochs than the best rate of its arm took; with more it can not be the best."""
    recipe = plan.recipe(job)
    if plan.claim.kind != "speed":
        return recipe
    taken = [member.epochs_to(plan.level) for member in before if member.job.arm is job.arm]
    return recipe.replace(epochs=min([recipe.epochs, *(math.ceil(epochs) for epochs in taken if epochs)]))


def _choose(plan: Plan, searched: Sequence[Member]) -> dict[str, float]:
    """Each arm's best rate: by epochs to the training error where speed is the matter, else by validation error."""
    if not searched:
        return {arm.name: plan.rates[0] for arm in plan.arms}
    chosen = {}
    for arm in plan.arms:
        mine = [member for member in searched if member.job.arm is arm]
        best = min(mine, key=lambda member: _rank(plan, member))
        if best.diverged:
            raise TrainingError(f"{arm.name}: no learning rate works; {best.diverged}", "", "give --rates lower ones")
        chosen[arm.name] = best.job.rate
    return chosen


def _rank(plan: Plan, member: Member) -> tuple[float, float]:
    if member.diverged:
        return float("inf"), float("inf")
    if plan.claim.kind != "speed":
        return member.validation_error, 0.0
    epochs = member.epochs_to(plan.level)
    return float("inf") if epochs is None else epochs, min(member.training_errors)


def _by_arm(plan: Plan, members: Sequence[Member]) -> dict[str, list[Member]]:
    return {arm.name: [member for member in members if member.job.arm is arm] for arm in plan.arms}


def _said(member: Member, plan: Plan) -> str:
    if member.diverged:
        return "diverged"
    error = f"{100 * member.training_errors[-1]:.1f} % training error after {len(member.rows)} epochs"
    if plan.claim.kind == "speed":
        epochs = member.epochs_to(plan.level)
        when = "not reached" if epochs is None else f"after {epochs:.2f} epochs"
        return f"{100 * plan.level:g} % training error {when}; {error}, {member.seconds:.0f} s"
    return f"{100 * member.validation_error:.1f} % validation error, {error}, {member.seconds:.0f} s"


def _about(member: Member, plan: Plan) -> dict[str, Any]:
    return {
        "arm": member.job.arm.name,
        "network": plan.model(member.job.arm),
        "rate": member.job.rate,
        "seed": member.job.seed,
        "run": str(member.folder),
        "diverged": member.diverged,
        "epochs": len(member.rows),
        "training_error": member.training_errors[-1] if member.rows else None,
        "validation_error": member.validation_error if member.rows else None,
        "epochs_to_level": member.epochs_to(plan.level) if plan.level and member.rows else None,
        "test_top1_error": member.metrics["test"]["top1_error"] if member.metrics else None,
        "seconds": round(member.seconds, 1),
    }


def _draw(result: Outcome) -> None:
    from alexnet.plots import claims as drawing

    plan, speed = result.plan, result.plan.claim.kind == "speed"
    lines = [
        drawing.Line(arm.name, [100 * e for e in member.training_errors], number)
        for number, arm in enumerate(plan.arms)
        for member in _by_arm(plan, result.members)[arm.name]
    ]
    drawing.draw(
        f"{plan.claim.name}: {result.verdict}",
        f"{plan.data}, {result.counts['train']} training images, {plan.seeds} seed{'s' * (plan.seeds > 1)}",
        lines,
        100 * plan.level,
        [drawing.Bar(name, values) for name, values in result.numbers.items()],
        f"Epochs to {100 * plan.level:g} % training error" if speed else "Top-1 error in %",
        result.image,
    )
