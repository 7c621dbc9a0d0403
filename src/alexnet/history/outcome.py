"""Members -> findings: what the trainings of a claim say about it, a value a seed, and the numbers behind it."""

from collections.abc import Mapping, Sequence
from typing import Any

from alexnet.api.evaluating import evaluate
from alexnet.history.members import Member
from alexnet.history.plan import Plan
from alexnet.history.verdict import Finding

Members = Mapping[str, Sequence[Member]]  # by the arm's name; a member a seed, in order


def findings(plan: Plan, members: Members, device: str) -> tuple[list[Finding], dict[str, list[float]]]:
    """What was found, and the numbers for the picture: name -> percentages or epochs, one a seed."""
    kinds = {"error": _errors, "gap": _gaps, "speed": _speed, "views": _views, "ensemble": _ensemble}
    return kinds[plan.claim.kind](plan, members, device)


def _percent(found: Mapping[str, Any], top: str = "top1") -> float:
    return 100.0 * float(found[f"{top}_error"])


def _tests(members: Sequence[Member], device: str, views: int = 1) -> list[dict[str, Any]]:
    return [member.scores("test", views, device) for member in members]


def _tops(members: Sequence[Member]) -> tuple[str, ...]:
    """With five classes or fewer, the five best are always right."""
    return ("top1", "top5") if len(members[0].store.classes) > 5 else ("top1",)


def _minus(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _errors(plan: Plan, members: Members, device: str) -> tuple[list[Finding], dict[str, list[float]]]:
    base, *others = plan.arms
    found, tests = [], {arm.name: _tests(members[arm.name], device) for arm in plan.arms}
    for arm in others:
        for top in _tops(members[base.name]):
            without, own = ([_percent(t, top) for t in tests[a.name]] for a in (arm, base))
            first = arm is others[0] or plan.claim.name == "depth"  # the paper's own comparison
            paper = plan.claim.figures.get(top, "") if first else ""
            what = f"{top.replace('top', 'top-')} test error: {arm.name} − {base.name}"
            found.append(Finding(what, paper, _minus(without, own), primary=top == "top1" and first))
    return found, {name: [_percent(t) for t in rows] for name, rows in tests.items()}


def _gaps(plan: Plan, members: Members, device: str) -> tuple[list[Finding], dict[str, list[float]]]:
    base, other = plan.arms
    numbers: dict[str, list[float]] = {}
    gaps, errors = {}, {}
    for arm in plan.arms:
        train = [_percent(member.scores("train", 1, device)) for member in members[arm.name]]
        errors[arm.name] = test = [_percent(found) for found in _tests(members[arm.name], device)]
        numbers |= {f"{arm.name}: training": train, f"{arm.name}: test": test}
        gaps[arm.name] = _minus(test, train)
    paper = plan.claim.figures
    found = [
        Finding(f"test − training error: {other.name} − {base.name}", paper.get("gap", ""),
                _minus(gaps[other.name], gaps[base.name]), primary=True,
                note="both errors of the kept weights, center view, nothing dropped or changed"),
        Finding(f"top-1 test error: {other.name} − {base.name}", paper.get("top1", ""),
                _minus(errors[other.name], errors[base.name])),
    ]  # fmt: skip
    return found + ([_longer(plan, members)] if "ratio" in paper else []), numbers


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
    found = Finding(what, plan.claim.figures["ratio"], tuple(values), "ratio", True, bounded, "; ".join(notes))
    numbers = {
        arm.name: [m.epochs_to(plan.level) or float(len(m.rows)) for m in members[arm.name]] for arm in plan.arms
    }
    return [found], numbers


def _views(plan: Plan, members: Members, device: str) -> tuple[list[Finding], dict[str, list[float]]]:
    found, numbers, (arm,) = [], {}, plan.arms
    note = "" if plan.mirror else "half of the ten views are mirrored, which these pictures were never trained on"
    for top in _tops(members[arm.name]):
        one, ten = ([_percent(t, top) for t in _tests(members[arm.name], device, views)] for views in (1, 10))
        what, paper = f"{top.replace('top', 'top-')} test error: center view − ten views", plan.claim.figures[top]
        found.append(Finding(what, paper, _minus(one, ten), primary=top == "top1", note=note))
        if top == "top1":
            numbers = {"center view": one, "ten views": ten}
    return found, numbers


def _ensemble(plan: Plan, members: Members, device: str) -> tuple[list[Finding], dict[str, list[float]]]:
    many = members[plan.arms[0].name]
    together = evaluate([m.folder / "bundle" for m in many], many[0].store.absolute, device=device).to_dict()
    found, numbers = [], {}
    for top in _tops(many):
        alone = [_percent(t, top) for t in _tests(many, device)]
        what = f"{top.replace('top', 'top-')} test error: one network − the mean of {len(many)}"
        paper = plan.claim.figures.get(top, "")
        values = tuple(error - _percent(together, top) for error in alone)
        note = "the interval is over the networks; the ensemble is one and the same"
        found.append(Finding(what, paper, values, primary=top == "top1", note=note))
        if top == "top1":
            numbers = {"one network": alone, f"mean of {len(many)}": [_percent(together)]}
    return found, numbers
