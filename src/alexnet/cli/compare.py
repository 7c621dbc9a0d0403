"""The command ``compare``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.output import estimate_cells
from alexnet.cli.parser import DataArguments, Flag, data_options, option

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
    html: Annotated[Path | None, option("FILE")] = None
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


def run(argv: list[str]) -> int:
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
