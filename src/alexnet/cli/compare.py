"""The commands ``compare`` and ``promote``: is a new classifier better, and may it replace the old one?"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction

from alexnet.cli import output, parser
from alexnet.cli.output import estimate_cells
from alexnet.cli.parser import DataArguments, Flag, data_options, option
from alexnet.errors import RecipeError

if TYPE_CHECKING:
    from alexnet.api.comparison import Comparison, Flip
    from alexnet.evaluation.comparison import Equivalence, SubsetComparison


@dataclass(frozen=True)
class CompareArguments:
    """Compare a new classifier with an old one on the same images: is it better, or at least not worse?"""

    new: Positional[Annotated[Path, option("NEW")]]
    """a run directory or a bundle"""
    old: Positional[Annotated[Path, option("OLD")]]
    """another one with the same classes"""
    data: Annotated[str | None, option("DATA")] = None
    """other images of the same classes (default: the data of the runs)"""
    margin: Annotated[float | None, option("POINTS")] = None
    """test that NEW is not worse than OLD by this many points of accuracy, and that both are equivalent"""
    slices: Annotated[str | None, option("COLUMN")] = None
    """compare by the values of this column of the table that lists the images"""
    html: Annotated[Path | None, option("FILE"), parser.HTML] = None
    """write the comparison with the images that flip to this HTML file"""
    split: Literal["test", "validation", "train"] = "test"
    """split to evaluate"""
    crops: Literal[1, 9, 10] = 1
    """center crop; 3x3 crops without flips (the CIFAR networks of 2012); corners, center and their flips"""
    include_training_images: Flag = False
    """keep images of DATA that a classifier was trained on"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    json: Flag = False
    """print one JSON object"""
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def compare_command(argv: list[str]) -> int:
    """Compare two classifiers, print the tests, and write the page that was asked for."""
    args: CompareArguments = parser.parse(CompareArguments, argv, "compare")
    from alexnet import api

    result = api.compare(
        args.new,
        args.old,
        args.data,
        margin=args.margin,
        slice_by=args.slices,
        split=args.split,
        crops=args.crops,
        device=args.device,
        options=replace(data_options(args.source), include_training_images=args.include_training_images),
    )
    if args.html is not None:
        from alexnet.api.comparison import write_page

        write_page(result, args.html)
    if args.json:
        print(json.dumps(result.to_dict(), allow_nan=False))
        return 0
    output.training_images(result.training_images_left_out, result.training_images_included)
    _print(result)
    if args.html is not None:
        print(f"page       {args.html}")
    return 0


def _print(result: "Comparison") -> None:
    pair = result.paired
    rows = [(f"new: {result.new}", *estimate_cells(pair.new)), (f"old: {result.old}", *estimate_cells(pair.old))]
    output.table(f"{result.split}: {pair.count} images", ("run", "top-1", "95 % CI"), rows)
    print(f"both right {pair.both}, both wrong {pair.neither}; right alone: new {pair.only_new}, old {pair.only_old}")
    difference = pair.difference
    low, high = 100 * difference.low, 100 * difference.high
    print(f"difference {100 * difference.value:+.1f} points, new − old (95 % CI {low:+.1f} to {high:+.1f})")
    print(f"McNemar    p = {pair.p_value:.2g}: {_verdict(pair.p_value)}")
    if result.equivalence is not None:
        _print_equivalence(result.equivalence)
    output.resampled_groups(pair.groups)
    if pair.groups:
        print("           McNemar's test takes images for independent; the other tests are over groups")
    print()
    _subsets("Class by class", "class", result.classes)
    if result.slices:
        _subsets(f"By {result.slice_by}", result.slice_by, result.slices)
    _flips(result.flips)
    for name, one in zip((result.new, result.old), result.provenances, strict=True):
        for line in one.lines():
            print(f"{line}  [{name}]")


def _print_equivalence(tested: "Equivalence") -> None:
    margin, interval = f"{100 * tested.margin:g} points", f"{100 * tested.low:+.1f} to {100 * tested.high:+.1f}"
    verdict = f"new is not worse by {margin}" if tested.noninferior else f"not shown that new is not worse by {margin}"
    print(f"not worse  p = {tested.p_noninferior:.2g}: {verdict} (90 % CI {interval})")
    verdict = (
        f"they differ by less than {margin}"
        if tested.equivalent
        else f"not shown that they differ by less than {margin}"
    )
    print(f"equal      p = {tested.p_equivalent:.2g}: {verdict} (TOST)")


def _subsets(title: str, column: str, subsets: "Sequence[SubsetComparison]") -> None:
    with_margin = any(one.p_noninferior is not None for one in subsets)
    rows = [
        (
            one.name,
            str(one.images),
            *(output.percent(rate.value, 1) for rate in (one.old, one.new)),
            f"{100 * one.difference.value:+.1f}",
            f"{100 * one.difference.low:+.1f} to {100 * one.difference.high:+.1f}",
            f"{one.p_value:.2g}",
            *([f"{one.p_noninferior:.2g}"] if one.p_noninferior is not None else []),
            one.verdict,
        )
        for one in subsets
    ]
    columns = (column, "images", "old", "new", "points", "95 % CI", "p", *["p, not worse"] * with_margin, "shown")
    output.table(f"{title} (p-values adjusted for {len(subsets)} tests by Holm's method)", columns, rows)


def _flips(flips: "Sequence[Flip]", count: int = 10) -> None:
    """The most confident mistakes that only the new classifier makes."""
    broken = [one for one in flips if not one.fixed]
    print(f"{len(flips)} images flip: {len(flips) - len(broken)} are right with new only, {len(broken)} with old only")
    for one in broken[:count]:
        print(f"  {one.origin}: {one.true_class}, predicted as {one.new[0]} ({output.percent(one.new[1], 1)})")
    if len(broken) > count:
        print(f"  and {len(broken) - count} more; --html FILE shows the images, --json lists all")
    print()


def _verdict(p: float) -> str:
    if p < 0.05:
        return "the difference is statistically significant"
    return "no significant difference; that does not show that they are equal (--margin tests that)"


@dataclass(frozen=True)
class PromoteArguments:
    """Replace the served bundle by a new one if it is verified, not worse, and every class has its minimum recall.

    A server with --reload-interval, or after SIGHUP, loads the new bundle without losing a request.
    Exit status: 0 promoted; 1 a check failed, nothing was changed.
    """

    paths: Positional[Annotated[tuple[Path, ...], option("NEW SERVED")]]
    """a run directory or a bundle, and the folder of the served bundle; with --back: SERVED alone"""
    back: Flag = False
    """return to the bundle that the last promotion replaced"""
    margin: Annotated[float, option("POINTS")] = 1.0
    """acceptable loss of top-1 accuracy; the test must show that NEW loses less (p < 0.05)"""
    min_recall: Annotated[UseAppendAction[tuple[str, ...]], option("FRACTION|CLASS=FRACTION")] = ()
    """minimum recall of each class, or of one class; can be repeated"""
    data: Annotated[str | None, option("DATA")] = None
    """images to test on (default: the data of NEW)"""
    split: Literal["test", "validation"] = "test"
    """split to test on"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    json: Flag = False
    """print the certificate as JSON"""
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def promote_command(argv: list[str]) -> int:
    """Check the new bundle and put it in the place of the served one, or go back."""
    args: PromoteArguments = parser.parse(PromoteArguments, argv, "promote")
    from alexnet import api

    if args.back:
        (served,) = _paths(args, 1, "SERVED: the folder of the served bundle")
        bundle = api.promote_back(served)
        date = bundle.certificate.get("date")
        print(
            f"{served} is again the bundle before{f', promoted on {date}' if date else ''}; --back returns to the other"
        )
        return 0
    new, served = _paths(args, 2, "NEW and SERVED: a run or bundle, and the folder of the served bundle")
    result = api.promote(
        new,
        served,
        args.data,
        margin=args.margin,
        min_recall=_floors(args.min_recall),
        split=args.split,
        device=args.device,
        options=data_options(args.source),
    )
    if args.json:
        print(json.dumps(result.certificate | {"promoted": result.promoted}, indent=1, allow_nan=False))
    else:
        rows = [("passed" if check.holds else "FAILED", check.name, check.text) for check in result.checks]
        output.table(f"{new} in place of {served}", ("", "check", ""), rows)
    if not result.promoted:
        failed = ", ".join(check.name for check in result.checks if not check.holds)
        return output.fail(f"not promoted: {failed}. {served} is unchanged", 1)
    output.log(f"promoted: {served} is now {new}; its certificate.json has the tests")
    output.log(f"to return: alexnet promote --back {served}")
    return 0


def _paths(args: PromoteArguments, count: int, must: str) -> tuple[Path, ...]:
    if len(args.paths) != count:
        raise RecipeError(f"promote has {len(args.paths)} paths", must)
    return args.paths


def _floors(texts: tuple[str, ...]) -> dict[str, float] | float:
    """``0.8`` for all classes, ``cat=0.9`` for one."""
    pairs = [text.rpartition("=") for text in texts]
    try:
        values = {name: float(value) for name, _, value in pairs}
    except ValueError:
        values = None
    if values is None or ("" in values and len(texts) > 1):
        raise RecipeError(f"--min-recall is {' '.join(texts)!r}", "one fraction, or CLASS=FRACTION for each class")
    return values.get("", values)
