"""The first paragraph of a report: what a classifier is worth, in words that need no training to be read."""

from collections.abc import Sequence

from alexnet.api.facts import SURE, Numbers
from alexnet.data.doctor.findings import Report as Diagnosis
from alexnet.evaluation.intervals import Estimate, share

HONEST = 0.02  # of calibration error beyond chance, from which probabilities are called wrong


def verdict(numbers: Numbers, classes: Sequence[str], diagnosis: Diagnosis | None, why: str) -> list[str]:
    """Sentences; the first is that the data is at fault, where the doctor found it so."""
    return [sentence for sentence in (
        _faults(diagnosis), _right(numbers, classes), _weakest(numbers), _sure(numbers), _few(numbers),
        "All of this holds for pictures like these: taken by the same means, of the same kinds of things.",
        "" if diagnosis else f"Whether the data is sound was not examined: {why}.",
    ) if sentence]  # fmt: skip


def percent(part: float) -> str:
    """0.765 -> 76.5 %; whole ones without a decimal."""
    return f"{100 * part:.1f} %".replace(".0 %", " %")


def interval(estimate: Estimate) -> str:
    """73.8 to 79.0 %."""
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f} %"


def _faults(diagnosis: Diagnosis | None) -> str:
    if diagnosis is not None and not diagnosis.honest:
        errors = sum(finding.severity == "error" for finding in diagnosis.findings)
        fault = "a fault" if errors == 1 else f"{errors} faults"
        return (
            f"Do not rely on the numbers below: the data has {fault} that would make any result look wrong or too good."
        )
    return ""


def _right(numbers: Numbers, classes: Sequence[str]) -> str:
    top1, count = numbers.classes.top1, len(numbers.responses)
    words = f"Of {count:,} {numbers.responses.split} pictures, which it had never seen, "
    if numbers.responses.split != "test":
        words = (
            f"There were no test pictures. Of {count:,} {numbers.responses.split} pictures, by which it was chosen, "
        )
    words += f"it named the right one of {len(classes)} classes for {percent(top1.value)} (95 % CI {interval(top1)}"
    words += f"); always saying the most frequent class would be right for {percent(numbers.commonest)}."
    return words if learned(numbers) else f"{words} That it learned anything is not shown: this may be luck."


def learned(numbers: Numbers) -> bool:
    """Is all of the interval above what always saying the most frequent class would reach?"""
    return numbers.classes.top1.low > numbers.commonest


def _weakest(numbers: Numbers) -> str:
    seen = sorted((one for one in numbers.classes.classes if one.pictures), key=lambda one: one.recall.value)
    if len(seen) < 2 or seen[0].recall.value == 1:
        return ""
    low = seen[0]
    words = f"It is weakest at {low.name}, of which it recognized {percent(low.recall.value)} of {low.pictures}"
    if numbers.confused:
        true, guess, pictures = numbers.confused[0]
        names = numbers.classes.classes
        times = "once" if pictures == 1 else f"{pictures} times"
        words += f"; most often, {times}, it took {names[true].name} for {names[guess].name}"
    return words + "."


def _sure(numbers: Numbers) -> str:
    found = numbers.reliability
    certain = numbers.sure >= SURE
    words = ""
    if certain.any():
        right = share(numbers.responses.correct[certain])
        words = (
            f"Where it was at least {percent(SURE)} sure ({percent(certain.mean())} of the pictures) it was right for "
        )
        words += f"{percent(right.value)}. "
    gap = found.confidence - found.accuracy
    if found.ece <= found.ece_by_chance + HONEST:
        return words + "How sure it says it is agrees with how often it is right."
    kind = "surer" if gap > 0 else "less sure"
    words += f"It is {kind} than it should be: {percent(found.confidence)} sure on average, "
    return words + f"and right for {percent(found.accuracy)}."


def _few(numbers: Numbers) -> str:
    few = [one.name for one in numbers.classes.classes if 0 < one.pictures < 20]
    if not few:
        return ""
    names = ", ".join(few[:3]) + (" …" if len(few) > 3 else "")
    return f"Of {len(few)} classes there were fewer than 20 such pictures ({names}): little can be said of those."
