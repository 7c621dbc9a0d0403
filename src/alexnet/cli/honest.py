"""What is printed of honest numbers: ``evaluate --details`` and what goes with it, and the verb ``compare``."""

import json
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from alexnet.cli import arguments, show
from alexnet.errors import RecipeError

if TYPE_CHECKING:
    from alexnet.api.honest import Details
    from alexnet.evaluation.abstention import RiskCoverage
    from alexnet.evaluation.calibration import Reliability
    from alexnet.evaluation.intervals import Estimate


def asked(given: arguments.EvaluateArguments) -> bool:
    """Does the command want more than top-1 and top-5?"""
    values = (given.slices, given.unknown, given.abstain_below, given.target_error)
    return given.details or given.calibrate or any(value is not None for value in values)


def details(given: arguments.EvaluateArguments, runs: list[str], data: str | None) -> int:
    """One run in full; what was not asked for is not printed."""
    if len(runs) > 1 or given.fit_weights:
        raise RecipeError(f"--details of {len(runs)} runs", "one", "compare two with: alexnet compare RUN RUN")
    from alexnet import api

    options = arguments.data_options(given.source)
    options = replace(options, include_training_images=given.include_training_images)
    asked = api.Asked(given.slices, given.unknown, given.abstain_below, given.target_error)
    if given.calibrate:
        made = api.calibrate(runs[0], data, device=given.device, options=options)
        show.say(
            f"calibrated: temperature {made.temperature:.3f} by {made.count} validation pictures, "
            f"ECE {_percent(made.ece_before)} -> {_percent(made.ece_after)}; written into the bundle"
        )
    found = api.details(
        runs[0], data, asked, split=given.split, views=given.views, device=given.device, options=options
    )
    if given.json:
        print(json.dumps(found.to_dict(), allow_nan=False))
        return 0
    show.scores(found.scores, as_json=False)
    if given.details:
        _numbers(found)
        _calibration(found)
        _curve(found.curve)
    if found.slices:
        rows = [(one.value, str(one.pictures), *_cells(one.top1)) for one in found.slices]
        show.table(f"By {given.slices}", (given.slices or "", "pictures", "top-1", "95 % CI"), rows)
    _thresholds(found)
    _grouped(found.groups)
    for line in found.provenance.lines():
        print(line)
    return 0


def _percent(share: float) -> str:
    return "" if share != share else f"{100 * share:.1f} %"


def _cells(one: "Estimate") -> tuple[str, str]:
    """A number and its interval; empty where there is none."""
    return _percent(one.value), f"{100 * one.low:.1f} to {100 * one.high:.1f}" if one.value == one.value else ""


def _numbers(found: "Details") -> None:
    numbers = found.classes
    rows = [
        (name, *_cells(one))
        for name, one in (
            ("top-1", numbers.top1), ("top-5", numbers.top5), ("balanced accuracy", numbers.balanced_accuracy),
            ("mean precision", numbers.macro_precision), ("mean F1", numbers.macro_f1),
            ("mean area under the curve", numbers.macro_auroc),
        )
        if one is not None
    ]  # fmt: skip
    show.table("All classes", ("", "", "95 % CI"), rows)
    by_class = [
        (one.name, str(one.pictures), *_cells(one.recall), *_cells(one.precision), *_cells(one.f1), *_cells(one.auroc))
        for one in numbers.classes
    ]
    parts = [column for name in ("recall", "precision", "F1", "AUROC") for column in (name, "95 % CI")]
    show.table("Class by class", ("class", "pictures", *parts), by_class)


def _calibration(found: "Details") -> None:
    before, after = found.before, found.after
    fitted = bool(found.provenance.temperature_by)
    columns = ("", "ECE", "by chance", "sure", "right", "NLL", "Brier")
    rows = [_reliability("the network's own", before)]
    if fitted:
        rows.append(_reliability(f"as answered (temperature {found.provenance.temperature:.3f})", after))
    show.table("Calibration: how sure is how often right?", columns, rows)
    bins = [
        (f"{100 * one.low:.0f} to {100 * one.high:.0f} %", str(one.count), _percent(one.confidence),
         _percent(one.accuracy), f"{100 * one.accuracy_low:.1f} to {100 * one.accuracy_high:.1f}")
        for one in after.bins if one.count
    ]  # fmt: skip
    show.table("Answers by the probability of their first guess", ("bin", "pictures", "sure", "right", "95 % CI"), bins)


def _reliability(name: str, one: "Reliability") -> tuple[str, ...]:
    shares = (one.ece, one.ece_by_chance, one.confidence, one.accuracy)
    return name, *map(_percent, shares), f"{one.nll:.4f}", f"{one.brier:.4f}"


def _curve(curve: "RiskCoverage") -> None:
    rows = []
    for step in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
        threshold, risk = curve.at(step)
        rows.append((f"{100 * step:.0f} %", _percent(risk), f"{threshold:.4f}"))
    show.table("Risk against coverage: the surest answers alone", ("answered", "error", "threshold"), rows)
    print(f"mean error over all coverages: {_percent(curve.area)}\n")


def _thresholds(found: "Details") -> None:
    if not found.thresholds:
        if found.strangers:
            print("no threshold is known: give --abstain-below, or fit some with --calibrate\n")
        return
    strange = any(one.unknown for one in found.thresholds)
    columns = ["target error", "threshold", "answered", "error", "95 % CI"] + ["unknown called so"] * strange
    rows = []
    for one in found.thresholds:
        did = one.answered
        error = (_percent(did.error), f"{100 * did.low:.1f} to {100 * did.high:.1f}") if did.answered else ("", "")
        row = [f"{100 * one.target:g} %" if one.target else "as given", f"{did.threshold:.4f}"]
        row += [f"{_percent(did.coverage)} ({did.answered})", *error]
        rows.append(row + ([" ".join(_cells(one.unknown)).replace("% ", "%, ", 1)] if one.unknown else []))
    title = f'Thresholds on {found.scores.split}: below them the answer is "unknown"'
    show.table(title, columns, rows, right=len(columns))
    if found.strangers:
        often = ", ".join(f"{name} {times}" for name, times in Counter(found.strangers).most_common(5))
        print(f"{len(found.strangers)} pictures of no known class; first guesses: {often}\n")


def _grouped(groups: int) -> None:
    from alexnet.evaluation.intervals import FEW_GROUPS

    if groups:
        few = "; so few that no interval can be trusted" if groups < FEW_GROUPS else ""
        print(f"intervals  {groups} groups were resampled whole{few}")


def compare(words: list[str]) -> int:
    """two trained classifiers on the same pictures: McNemar's exact test"""
    given: arguments.CompareArguments = arguments.parse(arguments.CompareArguments, words, "compare")
    from alexnet import api

    found = api.compare(
        given.first, given.second, given.data, split=given.split, views=given.views, device=given.device,
        options=replace(
            arguments.data_options(given.source), include_training_images=given.include_training_images
        ),
    )  # fmt: skip
    if given.json:
        print(json.dumps(found.to_dict()))
        return 0
    show.training_images(found.training_images_left_out, found.training_images_included)
    pair = found.paired
    rows = [(name, *_cells(one)) for name, one in ((found.first, pair.first), (found.second, pair.second))]
    show.table(f"{found.split}: {pair.count} pictures", ("run", "top-1", "95 % CI"), rows)
    print(f"both right {pair.both}, both wrong {pair.neither}; right alone: the first {pair.only_first}, ", end="")
    print(f"the second {pair.only_second}")
    difference = pair.difference
    low, high = 100 * difference.low, 100 * difference.high
    print(f"difference {100 * difference.value:+.1f} points (95 % CI {low:+.1f} to {high:+.1f})")
    print(f"McNemar    p = {pair.p_value:.2g}: {_verdict(pair.p_value)}")
    _grouped(pair.groups)
    if pair.groups:
        print("           the test takes pictures for independent; with groups the interval is what counts")
    for name, one in zip((found.first, found.second), found.provenances, strict=True):
        for line in one.lines():
            print(f"{line}  [{name}]")
    return 0


def _verdict(p: float) -> str:
    if p < 0.05:
        return "so unequal a split is rare where two classifiers are equally good"
    return "two equally good classifiers differ so much by luck often enough"
