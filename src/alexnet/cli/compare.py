"""The command ``compare``."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.output import estimate_cells
from alexnet.cli.parser import DataArguments, Flag, data_options, option


@dataclass(frozen=True)
class CompareArguments:
    """Compare two classifiers on the same images with McNemar's exact test."""

    first: Positional[Annotated[Path, option("RUN")]]
    """a run directory or a bundle"""
    second: Positional[Annotated[Path, option("RUN")]]
    """another one with the same classes"""
    data: Annotated[str | None, option("DATA")] = None
    """other images of the same classes (default: the data of the runs)"""
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
    """two trained classifiers on the same images: McNemar's exact test"""
    args: CompareArguments = parser.parse(CompareArguments, argv, "compare")
    from alexnet import api

    result = api.compare(
        args.first,
        args.second,
        args.data,
        split=args.split,
        crops=args.crops,
        device=args.device,
        options=replace(data_options(args.source), include_training_images=args.include_training_images),
    )
    if args.json:
        print(json.dumps(result.to_dict()))
        return 0
    output.training_images(result.training_images_left_out, result.training_images_included)
    pair = result.paired
    rows = [(name, *estimate_cells(one)) for name, one in ((result.first, pair.first), (result.second, pair.second))]
    output.table(f"{result.split}: {pair.count} images", ("run", "top-1", "95 % CI"), rows)
    print(f"both right {pair.both}, both wrong {pair.neither}; right alone: the first {pair.only_first}, ", end="")
    print(f"the second {pair.only_second}")
    difference = pair.difference
    low, high = 100 * difference.low, 100 * difference.high
    print(f"difference {100 * difference.value:+.1f} points (95 % CI {low:+.1f} to {high:+.1f})")
    print(f"McNemar    p = {pair.p_value:.2g}: {_verdict(pair.p_value)}")
    output.resampled_groups(pair.groups)
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
