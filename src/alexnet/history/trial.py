"""A claim put to the test: pictures prepared, rates chosen, members trained, findings judged, drawn, written down."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet.data.options import DataOptions
from alexnet.data.writing import json_bytes, write_file
from alexnet.errors import RunError, TrainingError
from alexnet.history import material as materials
from alexnet.history import outcome, verdict
from alexnet.history.material import Material
from alexnet.history.members import Member, obtain
from alexnet.history.plan import Job, Plan, compatible, written
from alexnet.history.verdict import Finding, Verdict
from alexnet.recipe import Recipe


@dataclass(frozen=True)
class Outcome:
    """What became of a plan. ``chosen``: learning rate by arm; ``numbers``: what the picture shows, a value a seed."""

    plan: Plan
    counts: dict[str, int]  # pictures of each split
    chosen: dict[str, float]
    searches: tuple[Member, ...]
    members: tuple[Member, ...]
    findings: tuple[Finding, ...]
    numbers: dict[str, list[float]]
    verdict: Verdict
    picture: Path
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
            "picture": str(self.picture),
            "seconds": round(self.seconds, 1),
        }


def run(
    plan: Plan, material: Material, folder: Path, options: DataOptions, *, device: str = "auto", workers: int = 1
) -> Outcome:
    """Put ``plan`` to the test in ``folder``. What is there already is found again; an interrupted training goes on.

    Raises :class:`RunError` where the folder holds another plan, :class:`alexnet.errors.Interrupted` after a signal.
    """
    _same_plan(plan, folder)
    store = materials.prepare(material, plan.recipe(Job(plan.arms[0], plan.rates[0], 0)), plan.pictures, options)
    write_file(folder / "plan.json", json_bytes(plan.to_dict()))
    made = 0

    def get(job: Job, recipe: Recipe) -> Member:
        nonlocal made
        made = min(made + 1, plan.trainings)
        options.tell(f"training {made} of {plan.trainings}: {job.words}")
        member = obtain(job, recipe, store, folder / job.folder, device=device, workers=workers)
        options.tell(f"  {_said(member, plan)}")
        return member

    searches: dict[str, Member] = {}
    for job in plan.searches():
        searches[job.folder] = get(job, _no_longer(plan, job, searches.values()))
    chosen = _choose(plan, list(searches.values()))
    members = [searches.get(job.folder) or get(job, plan.recipe(job)) for job in plan.members(chosen)]
    for member in members:
        if member.diverged:
            raise TrainingError(f"{member.job.words}: {member.diverged}", "", "give --rates with lower ones")
    found, numbers = outcome.findings(plan, _by_arm(plan, members), device)
    result = Outcome(
        plan, {name: len(split) for name, split in store.splits.items()}, chosen, tuple(searches.values()),
        tuple(members), tuple(found), numbers, verdict.overall(found), folder / f"{plan.claim.name}.png",
        sum(m.seconds for m in {m.folder: m for m in (*searches.values(), *members)}.values()),
    )  # fmt: skip
    _draw(result)
    write_file(folder / "result.json", json_bytes(result.to_dict()))
    return result


def _same_plan(plan: Plan, folder: Path) -> None:
    there = written(folder, "claim")
    name = compatible(json.loads(json.dumps(plan.to_dict())), there)
    if name:
        raise RunError(f"{folder} holds another plan: its {name} is different", "", "choose another --run")


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
    from alexnet.visualize import claims as drawing

    plan, speed = result.plan, result.plan.claim.kind == "speed"
    lines = [
        drawing.Line(arm.name, [100 * e for e in member.training_errors], number)
        for number, arm in enumerate(plan.arms)
        for member in _by_arm(plan, result.members)[arm.name]
    ]
    drawing.draw(
        f"{plan.claim.name}: {result.verdict}",
        f"{plan.data}, {result.counts['train']} training pictures, {plan.seeds} seed{'s' * (plan.seeds > 1)}",
        lines, 100 * plan.level, [drawing.Bar(name, values) for name, values in result.numbers.items()],
        f"Epochs to {100 * plan.level:g} % training error" if speed else "Top-1 error in %", result.picture,
    )  # fmt: skip
