"""The command ``evaluate``."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional

from alexnet import kernels
from alexnet.cli import output, parser
from alexnet.cli.output import estimate_cells
from alexnet.cli.parser import DataArguments, Flag, KernelMode, data_options, option
from alexnet.errors import RecipeError

if TYPE_CHECKING:
    from alexnet.api.evaluation import EvaluationDetails
    from alexnet.evaluation.calibration import Reliability, RiskCoverage
    from alexnet.evaluation.conformal import PredictionSets
    from alexnet.evaluation.intervals import Estimate
    from alexnet.evaluation.metrics import Scores
    from alexnet.evaluation.one_vs_rest import OneVsRest
    from alexnet.training.run_folder import Provenance

_percent = partial(output.percent, decimals=1)


@dataclass(frozen=True)
class EvaluateArguments:
    """Evaluate a classifier on a split. Every image counts once.

    Several runs are evaluated as an ensemble: the mean of their probabilities.
    """

    runs: Positional[Annotated[tuple[Path, ...], option("RUN [RUN ...]")]]
    """run directories or bundles"""
    data: Annotated[str | None, option("DATA")] = None
    """other images of the same classes (default: the data of the run)"""
    split: Literal["test", "validation", "train"] = "test"
    """split to evaluate"""
    crops: Literal[1, 9, 10] = 1
    """center crop; 3x3 crops without flips (the CIFAR networks of 2012); corners, center and their flips"""
    fit_weights: Annotated[Literal["validation", "train", "test"] | None, option()] = None
    """ensemble: fit the weights of its members on this split"""
    details: Flag = False
    """per-class metrics with confidence intervals, calibration, risk-coverage curve"""
    slices: Annotated[str | None, option("COLUMN")] = None
    """top-1 by the values of this column of the table that lists the images"""
    ood_dir: Annotated[Path | None, option("DIR")] = None
    """images of no known class: report how many are predicted as unknown"""
    confidence_threshold: Annotated[float | None, option("P")] = None
    """report the effect of abstaining below this probability"""
    target_risk: Annotated[float | None, option("FRACTION")] = None
    """the same with the bundle's threshold for this error rate, such as 0.02"""
    positive: Annotated[str | None, option("CLASS")] = None
    """report sensitivity, specificity, PPV and NPV of this class against the rest"""
    cost: Annotated[str | None, option("FP=X,FN=Y")] = None
    """costs of a false positive and a false negative of --positive: choose a threshold on the validation split"""
    conformal: Annotated[float | None, option("FRACTION")] = None
    """report prediction sets that hold the true class of this fraction of the images, such as 0.9"""
    corruptions: Flag = False
    """top-1 error under 15 corruptions (noise, blur, weather, digital) at 5 severities, with a plot"""
    baseline: Annotated[Path | None, option("RUN")] = None
    """corruptions: run that the errors are divided by; prints the mean corruption error (mCE)"""
    corruption_images: Annotated[int, option("N")] = 500
    """corruptions: number of images, drawn from the split"""
    calibrate: Flag = False
    """fit temperature and thresholds on the validation split, and write them to the bundle"""
    include_training_images: Flag = False
    """keep images of DATA that the classifier was trained on"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    kernels: KernelMode = "auto"
    """off: compute everything by PyTorch and Pillow instead of the fast kernels"""
    json: Flag = False
    """print one JSON object"""
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def evaluate_command(argv: list[str]) -> int:
    """Evaluate a classifier or an ensemble, and print its accuracy."""
    args: EvaluateArguments = parser.parse(EvaluateArguments, argv, "evaluate")
    kernels.use(args.kernels)
    if not args.runs:
        return output.fail("evaluate needs RUN: a run folder or a bundle; several are an ensemble", 2)
    from alexnet import api

    if args.corruptions:
        return _corruptions(args)
    if args.baseline is not None:
        raise RecipeError("--baseline has no effect without --corruptions", "", "pass --corruptions")
    if _is_detailed(args):
        return _detailed(args)
    scores = api.evaluate(
        args.runs,
        args.data,
        split=args.split,
        crops=args.crops,
        device=args.device,
        fit_weights=args.fit_weights,
        options=replace(data_options(args.source), include_training_images=args.include_training_images),
    )
    _print_scores(scores, as_json=args.json, provenance=api.provenance(args.runs[0]) if len(args.runs) == 1 else None)
    return 0


def _corruptions(args: EvaluateArguments) -> int:
    """Print the errors by corruption and severity, and relative to the baseline."""
    if len(args.runs) > 1 or args.fit_weights or _is_detailed(args) or args.crops != 1:
        raise RecipeError("--corruptions evaluates one run on center crops", "", "leave out the other runs and options")
    from alexnet import api
    from alexnet.evaluation.corruptions import CORRUPTIONS

    result = api.evaluate_corruptions(
        args.runs[0],
        args.data,
        baseline=args.baseline,
        count=args.corruption_images,
        split=args.split,
        device=args.device,
        options=replace(data_options(args.source), include_training_images=args.include_training_images),
    )
    if args.json:
        print(json.dumps(result.to_dict(), allow_nan=False))
        return 0
    errors = result.errors
    ratios, mce = errors.mce(result.baseline) if result.baseline else ([float("nan")] * len(CORRUPTIONS), None)
    rows = []
    for (name, corruption), values, ratio in zip(CORRUPTIONS.items(), errors.by_corruption(), ratios, strict=True):
        cells = [_percent(float(value)) for value in (*values, values.mean())]
        rows.append((name, corruption.group, *cells, *([f"{ratio:.2f}"] if mce else [])))
    columns = ("corruption", "group", *(f"severity {n}" for n in range(1, 6)), "mean")
    columns += ("/ baseline",) if mce else ()
    output.table(f"Top-1 error on {len(errors.clean)} images of {args.split}", columns, rows, right=2)
    for label, estimate in (("clean error", errors.error()), ("mean corruption error", errors.mean_error())):
        value, interval = estimate_cells(estimate)
        print(f"{label} {value} (95 % CI {interval})")
    if mce:
        print(f"mCE {100 * mce.value:.1f} % of {args.baseline}'s (95 % CI {100 * mce.low:.1f} to {100 * mce.high:.1f})")
    if result.plot:
        print(f"plot {result.plot}")
    return 0


def _is_detailed(args: EvaluateArguments) -> bool:
    """Does the command want more than top-1 and top-5?"""
    thresholds = (args.confidence_threshold, args.target_risk, args.cost, args.conformal)
    values = (args.slices, args.ood_dir, args.positive, *thresholds)
    return args.details or args.calibrate or any(value is not None for value in values)


def _detailed(args: EvaluateArguments) -> int:
    """Evaluate one run in detail, and print the parts that were requested."""
    if len(args.runs) > 1 or args.fit_weights:
        raise RecipeError(f"--details of {len(args.runs)} runs", "one", "compare two with: alexnet compare RUN RUN")
    from alexnet import api

    options = data_options(args.source)
    options = replace(options, include_training_images=args.include_training_images)
    details = api.EvaluationOptions(
        args.slices,
        args.ood_dir,
        args.confidence_threshold,
        args.target_risk,
        args.positive,
        None if args.cost is None else api.Cost.parse(args.cost),
        args.conformal,
    )
    if args.calibrate:
        from alexnet.evaluation.calibration import NO_TEMPERATURE

        calibration = api.calibrate(args.runs[0], args.data, device=args.device, options=options)
        output.log(
            f"calibrated: temperature {calibration.temperature:.3f} by {calibration.count} validation images, "
            f"ECE {_percent(calibration.ece_before)} -> {_percent(calibration.ece_after)}; written into the bundle"
            + (f". {NO_TEMPERATURE}" if calibration.temperature == 1.0 else "")
        )
    result = api.evaluate_detailed(
        args.runs[0], args.data, details, split=args.split, crops=args.crops, device=args.device, options=options
    )
    if args.json:
        print(json.dumps(result.to_dict(), allow_nan=False))
        return 0
    _print_scores(result.scores, as_json=False)
    if args.details:
        _numbers(result)
        _calibration(result)
        _curve(result.curve)
    elif args.calibrate and result.temperature_warning:
        print(f"WARNING: {result.temperature_warning}")
    if result.slices:
        rows = [(one.value, str(one.images), *estimate_cells(one.top1)) for one in result.slices]
        output.table(f"By {args.slices}", (args.slices or "", "images", "top-1", "95 % CI"), rows)
    if result.one_vs_rest:
        _one_vs_rest(result.one_vs_rest)
    if result.sets:
        _sets(result.sets)
    _thresholds(result)
    if result.ood_scores:
        scores = [(one.name, *estimate_cells(one.auroc), *estimate_cells(one.caught)) for one in result.ood_scores]
        title = f"{len(result.ood)} images of no known class, against those of {result.scores.split}"
        output.table(title, ("score", "AUROC", "95 % CI", "detected, if 95 % are kept", "95 % CI"), scores)
    output.resampled_groups(result.groups)
    for line in result.provenance.lines():
        print(line)
    return 0


def _print_scores(scores: "Scores", *, as_json: bool, provenance: "Provenance | None" = None) -> None:
    """Print the scores; of an ensemble each member's first, of one run also its provenance."""
    if as_json:
        print(json.dumps(scores.to_dict() | (provenance.to_dict() if provenance else {})))
        return
    crops = "center crop" if scores.crops == 1 else f"{scores.crops} crops"
    _members(scores, crops)
    rows = [("top-1", output.percent(scores.top1), output.percent(1 - scores.top1))]
    if scores.has_top5:
        rows.append(("top-5", output.percent(scores.top5), output.percent(1 - scores.top5)))
    output.table(f"{scores.split}: {scores.count} images, {crops}", ("", "accuracy", "error"), rows)
    output.training_images(scores.training_images_left_out, scores.training_images_included)
    low, high = scores.top1_interval
    over = f", over {len(scores.groups)} groups of images" if scores.groups else ""
    print(f"top-1 {output.percent(scores.top1)} (95 % CI {output.percent(low)} to {output.percent(high)}{over})")
    if scores.chance_warning:
        print(f"WARNING: {scores.chance_warning}")
    print(f"loss {scores.loss:.4f}   {scores.count / scores.seconds:.1f} images/s")
    for line in provenance.lines() if provenance else ():
        print(line)


def _members(scores: "Scores", crops: str) -> None:
    from alexnet.evaluation.ensemble import EnsembleScores

    if not isinstance(scores, EnsembleScores):
        return
    rows = [(m.name, f"{m.weight:.4f}", *output.score_cells(m.scores)) for m in scores.members]
    columns = ("member", "weight", *output.score_columns(scores))
    output.table(f"{len(rows)} members alone on {scores.split}, {crops}", columns, rows)
    if scores.fitted_on:
        chosen = f"the {scores.fitted_count} images of {scores.fitted_on}"
        print(f"weights were fitted on {chosen}; other images are reported")
    else:
        print("equal weights: the ensemble predicts the mean of the members' probabilities")
    print()


def _numbers(results: "EvaluationDetails") -> None:
    numbers = results.classes
    rows = [
        (name, *estimate_cells(one))
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
        (
            one.name,
            str(one.images),
            *estimate_cells(one.recall),
            *estimate_cells(one.precision),
            *estimate_cells(one.f1),
            *estimate_cells(one.auroc),
        )
        for one in numbers.classes
    ]
    parts = [column for name in ("recall", "precision", "F1", "AUROC") for column in (name, "95 % CI")]
    output.table("Class by class", ("class", "images", *parts), by_class)
    against = [(one.name, *estimate_cells(one.specificity), *estimate_cells(one.npv)) for one in numbers.classes]
    columns = ("class", "specificity", "95 % CI", "NPV", "95 % CI")
    output.table("Each class against the rest (recall is its sensitivity, precision its PPV)", columns, against)


def _one_vs_rest(results: "OneVsRest") -> None:
    by_cost = results.by_cost
    decisions = [("top-1 prediction", results.top1)]
    if by_cost:
        decisions.append((f"score of {by_cost.threshold:.3g} or more", by_cost.rates))
    columns = ("", *(name for name, _ in decisions))
    rows = [
        (name, *(_with_interval(getattr(rates, name.lower())) for _, rates in decisions))
        for name in ("Sensitivity", "Specificity", "PPV", "NPV")
    ]
    titles = ("true positives", "false positives", "false negatives", "true negatives")
    rows += [(title, *(str(rates.counts[i]) for _, rates in decisions)) for i, title in enumerate(titles)]
    output.table(f"{results.positive} against the rest (95 % CI)", columns, rows)
    if results.curves:
        areas = (("AUROC", results.curves.roc.area), ("average precision", results.curves.precision_recall.area))
        print(", ".join(f"{name} {_with_interval(one)}" for name, one in areas), end="")
        print(f"; {_percent(results.curves.prevalence)} of the images are {results.positive}\n")
    if by_cost:
        split, count = by_cost.chosen_on
        costs = [(f"score of {by_cost.threshold:.3g} or more", by_cost.expected), *by_cost.others]
        cells = [(name, f"{one.value:.4g}", f"{one.low:.4g} to {one.high:.4g}") for name, one in costs]
        title = f"Expected cost of an image: FP {by_cost.cost.false_positive:g}, FN {by_cost.cost.false_negative:g}"
        output.table(title, (f"{results.positive} is predicted for", "cost", "95 % CI"), cells)
        print(f"threshold chosen by {count} {split} images, where its cost is {by_cost.chosen_cost:.4g}\n")


def _with_interval(one: "Estimate") -> str:
    value, interval = estimate_cells(one)
    return f"{value} ({interval})" if value else "none"


def _sets(results: "PredictionSets") -> None:
    rows = [
        (name, str(images), *estimate_cells(one), f"{threshold:.2g}" if threshold else "in every set")
        for (name, images, one), threshold in zip(results.classes, results.thresholds, strict=True)
    ]
    title = f"Conformal prediction sets: coverage of {100 * results.level:g} % requested"
    output.table(title, ("class", "images", "coverage", "95 % CI", "threshold"), rows)
    common = ", ".join(f"{count} of {size}" for size, count in enumerate(results.sizes) if count)
    print(f"all images: coverage {_with_interval(results.coverage)}, mean size {results.mean_size:.2f}")
    print(f"sets by their number of classes: {common}")
    print(f"thresholds by {results.fitted_count} validation images", end="")
    if results.without_threshold:
        from alexnet.evaluation import conformal

        least = conformal.least_images(results.level)
        print(f"; classes with fewer than {least} of them are in every set", end="")
    print("\n")


def _calibration(results: "EvaluationDetails") -> None:
    before, after = results.uncalibrated, results.calibrated
    fitted = bool(results.provenance.temperature_by)
    columns = ("", "ECE", "by chance", "confidence", "accuracy", "NLL", "Brier")
    rows = [_reliability("uncalibrated", before)]
    if fitted:
        rows.append(_reliability(f"calibrated (temperature {results.provenance.temperature:.3f})", after))
    output.table("Calibration: confidence against accuracy", columns, rows)
    if results.temperature_warning:
        print(f"{results.temperature_warning}\n")
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
        "Accuracy by confidence (probability of the first prediction)",
        ("bin", "images", "confidence", "accuracy", "95 % CI"),
        bins,
    )


def _reliability(name: str, one: "Reliability") -> tuple[str, ...]:
    shares = (one.ece, one.ece_by_chance, one.confidence, one.accuracy)
    return name, *map(_percent, shares), f"{one.nll:.4f}", f"{one.brier:.4f}"


def _curve(curve: "RiskCoverage") -> None:
    rows = []
    for step in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
        threshold, risk = curve.at(step)
        rows.append((f"{100 * step:.0f} %", _percent(risk), f"{threshold:.4f}"))
    output.table("Error by coverage, most confident predictions first", ("coverage", "error", "threshold"), rows)
    print(f"mean error over all coverages: {_percent(curve.area)}\n")


def _thresholds(results: "EvaluationDetails") -> None:
    if not results.thresholds:
        if results.ood:
            print("there is no threshold: pass --confidence-threshold, or fit thresholds with --calibrate\n")
        return
    strange = any(one.ood_rejected for one in results.thresholds)
    columns = ["target error", "threshold", "coverage", "error", "95 % CI"] + ["OOD rejected"] * strange
    rows = []
    for one in results.thresholds:
        did = one.metrics
        error = (_percent(did.error), f"{100 * did.low:.1f} to {100 * did.high:.1f}") if did.answered else ("", "")
        row = [f"{100 * one.target:g} %" if one.target else "given", f"{did.threshold:.4f}"]
        row += [f"{_percent(did.coverage)} ({did.answered})", *error]
        rows.append(
            row + ([" ".join(estimate_cells(one.ood_rejected)).replace("% ", "%, ", 1)] if one.ood_rejected else [])
        )
    title = f'Thresholds on {results.scores.split}: below them the prediction is "unknown"'
    output.table(title, columns, rows, right=len(columns))
    if results.ood:
        often = ", ".join(f"{name} {times}" for name, times in Counter(results.ood).most_common(5))
        print(f"{len(results.ood)} images of no known class; first predictions: {often}\n")
