"""What is printed of honest numbers: ``evaluate --details`` and what goes with it, and the command ``compare``."""

import json
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from alexnet.cli import arguments, output
from alexnet.errors import RecipeError

if TYPE_CHECKING:
    from alexnet.api.detailed_evaluation import Details
    from alexnet.evaluation.calibration import Reliability, RiskCoverage
    from alexnet.evaluation.intervals import Estimate


def asked(args: arguments.EvaluateArguments) -> bool:
    """Does the command want more than top-1 and top-5?"""
    values = (args.slices, args.ood_dir, args.confidence_threshold, args.target_risk)
    return args.details or args.calibrate or any(value is not None for value in values)


def details(args: arguments.EvaluateArguments, runs: list[str], data: str | None) -> int:
    """One run in full; what was not asked for is not printed."""
    if len(runs) > 1 or args.fit_weights:
        raise RecipeError(f"--details of {len(runs)} runs", "one", "compare two with: alexnet compare RUN RUN")
    from alexnet import api

    options = arguments.data_options(args.source)
    options = replace(options, include_training_images=args.include_training_images)
    asked = api.EvaluationOptions(args.slices, args.ood_dir, args.confidence_threshold, args.target_risk)
    if args.calibrate:
        made = api.calibrate(runs[0], data, device=args.device, options=options)
        output.say(
            f"calibrated: temperature {made.temperature:.3f} by {made.count} validation images, "
            f"ECE {_percent(made.ece_before)} -> {_percent(made.ece_after)}; written into the bundle"
        )
    result = api.evaluate_detailed(
        runs[0], data, asked, split=args.split, crops=args.crops, device=args.device, options=options
    )
    if args.json:
        print(json.dumps(result.to_dict(), allow_nan=False))
        return 0
    output.scores(result.scores, as_json=False)
    if args.details:
        _numbers(result)
        _calibration(result)
        _curve(result.curve)
    if result.slices:
        rows = [(one.value, str(one.images), *_cells(one.top1)) for one in result.slices]
        output.table(f"By {args.slices}", (args.slices or "", "images", "top-1", "95 % CI"), rows)
    _thresholds(result)
    _grouped(result.groups)
    for line in result.provenance.lines():
        print(line)
    return 0


def _percent(share: float) -> str:
    return "" if share != share else f"{100 * share:.1f} %"


def _cells(one: "Estimate") -> tuple[str, str]:
    """A number and its interval; empty where there is none."""
    return _percent(one.value), f"{100 * one.low:.1f} to {100 * one.high:.1f}" if one.value == one.value else ""


def _numbers(results: "Details") -> None:
    numbers = results.classes
    rows = [
        (name, *_cells(one))
        for name, one in (
            ("top-1", numbers.top1),
            ("top-5", numbers.top5),
            ("balanced accuracy", numbers.balanced_accuracy),
            ("mean precision", numbers.macro_precision),
            ("mean F1", numbers.macro_f1),
            ("mean area under the curve", numbers.macro_auroc),
        )
        if one is not None
    ]
    output.table("All classes", ("", "", "95 % CI"), rows)
    by_class = [
        (one.name, str(one.images), *_cells(one.recall), *_cells(one.precision), *_cells(one.f1), *_cells(one.auroc))
        for one in numbers.classes
    ]
    parts = [column for name in ("recall", "precision", "F1", "AUROC") for column in (name, "95 % CI")]
    output.table("Class by class", ("class", "images", *parts), by_class)


def _calibration(results: "Details") -> None:
    before, after = results.before, results.after
    fitted = bool(results.provenance.temperature_by)
    columns = ("", "ECE", "by chance", "sure", "right", "NLL", "Brier")
    rows = [_reliability("the network's own", before)]
    if fitted:
        rows.append(_reliability(f"as answered (temperature {results.provenance.temperature:.3f})", after))
    output.table("Calibration: how sure is how often right?", columns, rows)
    bins = [
        (
            f"{100 * one.low:.0f} to {100 * one.high:.0f} %",
            str(one.count),
            _percent(one.confidence),
            _percent(one.accuracy),
            f"{100 * one.accuracy_low:.1f} to {100 * one.accuracy_high:.1f}",
        )
        for one in after.bins
        if one.count
    ]
    output.table(
        "Answers by the probability of their first prediction", ("bin", "images", "sure", "right", "95 % CI"), bins
    )


def _reliability(name: str, one: "Reliability") -> tuple[str, ...]:
    shares = (one.ece, one.ece_by_chance, one.confidence, one.accuracy)
    return name, *map(_percent, shares), f"{one.nll:.4f}", f"{one.brier:.4f}"


def _curve(curve: "RiskCoverage") -> None:
    rows = []
    for step in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
        threshold, risk = curve.at(step)
        rows.append((f"{100 * step:.0f} %", _percent(risk), f"{threshold:.4f}"))
    output.table("Risk against coverage: the surest answers alone", ("answered", "error", "threshold"), rows)
    print(f"mean error over all coverages: {_percent(curve.area)}\n")


def _thresholds(results: "Details") -> None:
    if not results.thresholds:
        if results.ood:
            print("no threshold is known: give --confidence-threshold, or fit some with --calibrate\n")
        return
    strange = any(one.unknown for one in results.thresholds)
    columns = ["target error", "threshold", "answered", "error", "95 % CI"] + ["unknown called so"] * strange
    rows = []
    for one in results.thresholds:
        did = one.answered
        error = (_percent(did.error), f"{100 * did.low:.1f} to {100 * did.high:.1f}") if did.answered else ("", "")
        row = [f"{100 * one.target:g} %" if one.target else "as given", f"{did.threshold:.4f}"]
        row += [f"{_percent(did.coverage)} ({did.answered})", *error]
        rows.append(row + ([" ".join(_cells(one.unknown)).replace("% ", "%, ", 1)] if one.unknown else []))
    title = f'Thresholds on {results.scores.split}: below them the answer is "unknown"'
    output.table(title, columns, rows, right=len(columns))
    if results.ood:
        often = ", ".join(f"{name} {times}" for name, times in Counter(results.ood).most_common(5))
        print(f"{len(results.ood)} images of no known class; first predictions: {often}\n")


def _grouped(groups: int) -> None:
    from alexnet.evaluation.intervals import FEW_GROUPS

    if groups:
        few = "; so few that no interval can be trusted" if groups < FEW_GROUPS else ""
        print(f"intervals  {groups} groups were resampled whole{few}")


def compare(argv: list[str]) -> int:
    """two trained classifiers on the same images: McNemar's exact test"""
    args: arguments.CompareArguments = arguments.parse(arguments.CompareArguments, argv, "compare")
    from alexnet import api

    result = api.compare(
        args.first,
        args.second,
        args.data,
        split=args.split,
        crops=args.crops,
        device=args.device,
        options=replace(arguments.data_options(args.source), include_training_images=args.include_training_images),
    )
    if args.json:
        print(json.dumps(result.to_dict()))
        return 0
    output.training_images(result.training_images_left_out, result.training_images_included)
    pair = result.paired
    rows = [(name, *_cells(one)) for name, one in ((result.first, pair.first), (result.second, pair.second))]
    output.table(f"{result.split}: {pair.count} images", ("run", "top-1", "95 % CI"), rows)
    print(f"both right {pair.both}, both wrong {pair.neither}; right alone: the first {pair.only_first}, ", end="")
    print(f"the second {pair.only_second}")
    difference = pair.difference
    low, high = 100 * difference.low, 100 * difference.high
    print(f"difference {100 * difference.value:+.1f} points (95 % CI {low:+.1f} to {high:+.1f})")
    print(f"McNemar    p = {pair.p_value:.2g}: {_verdict(pair.p_value)}")
    _grouped(pair.groups)
    if pair.groups:
        print("           the test takes images for independent; with groups the interval is what counts")
    for name, one in zip((result.first, result.second), result.provenances, strict=True):
        for line in one.lines():
            print(f"{line}  [{name}]")
    return 0


def _verdict(p: float) -> str:
    if p < 0.05:
        return "so unequal a split is rare where two classifiers are equally good"
    return "two equally good classifiers differ so much by luck often enough"
