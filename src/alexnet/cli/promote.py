"""The command ``promote``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction

from alexnet.cli import output, parser
from alexnet.cli.parser import DataArguments, Flag, data_options, option
from alexnet.errors import RecipeError


@dataclass(frozen=True)
class PromoteArguments:
    """Replace the served bundle by a new one if it is verified, not worse, and no class falls below its floor.

    A server with --reload-interval, or after SIGHUP, loads the new bundle without losing a request.
    Exit status: 0 promoted; 1 a check failed, nothing was changed.
    """

    paths: Positional[Annotated[tuple[Path, ...], option("NEW SERVED")]]
    """a run directory or a bundle, and the folder of the served bundle; with --back: SERVED alone"""
    back: Flag = False
    """return to the bundle that the last promotion replaced"""
    margin: Annotated[float, option("POINTS")] = 1.0
    """largest loss of top-1 accuracy that does not matter; NEW must be shown not to lose as much (p < 0.05)"""
    min_recall: Annotated[UseAppendAction[tuple[str, ...]], option("FRACTION|CLASS=FRACTION")] = ()
    """least recall of each class, or of one class; may be repeated"""
    data: Annotated[str | None, option("DATA")] = None
    """images to test on (default: the data of NEW)"""
    split: Literal["test", "validation"] = "test"
    """split to test on"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    json: Flag = False
    """print the certificate as JSON"""
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def run(argv: list[str]) -> int:
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
