"""The command ``study claims``."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.options import DataArguments, data_options
from alexnet.cli.parser import Flag, option
from alexnet.errors import DataError

if TYPE_CHECKING:
    from alexnet.api import DataOptions
    from alexnet.experiments.plan import Material
    from alexnet.experiments.runner import Finding, Outcome


@dataclass(frozen=True)
class ClaimsArguments:
    """Test a claim of the paper: plan, trainings, verdict. Without a name, list the claims.

    The same command reuses finished trainings and resumes an interrupted one.
    """

    name: Positional[Annotated[str | None, option("[CLAIM]")]] = None
    """relu, norm, overlap, dropout, augmentation, color-noise, towers, depth, ..."""
    data: Annotated[str | None, option("DATA")] = None
    """digits, cifar10 (the default), mnist, a folder, parquet files or a store"""
    quick: Flag = False
    """small networks, few images: minutes on a CPU"""
    seeds: Annotated[int | None, option("N")] = None
    """trainings per network (default: 5, quick: 3)"""
    epochs: Annotated[int | None, option("N")] = None
    """maximum epochs of a training"""
    rates: Annotated[tuple[float, ...], option("LR [LR ...]")] = ()
    """learning rates to select from, per network"""
    images: Annotated[int | None, option("N")] = None
    """maximum number of training images; 0: all"""
    level: Annotated[float | None, option("FRACTION")] = None
    """training error at which epochs are counted (relu: 0.25)"""
    output_dir: Annotated[Path | None, option("DIR")] = None
    """directory for all runs (default: runs/claims/CLAIM-DATA)"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    num_workers: Annotated[int, option("N")] = 1
    """data-loading threads (does not affect results)"""
    json: Flag = False
    """print one JSON object; the plan goes to standard error"""
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def run(argv: list[str]) -> int:
    """the paper's claims; with a name, one put to the test: a plan, the trainings, a verdict"""
    args: ClaimsArguments = parser.parse(ClaimsArguments, argv, "study claims")
    from alexnet.experiments import claims as catalogue

    if args.name is None:
        return _list(as_json=args.json)
    claim = catalogue.find(args.name)
    from alexnet.experiments import plan, runner

    config = plan.Config(args.quick, args.seeds, args.epochs, args.rates, args.images, args.level)
    options = data_options(args.source)
    result = _find(args.data, options)
    made = plan.make(claim, result, result.name if args.data is None else plan.shown(args.data), config)
    print("\n".join(made.lines()), "", sep="\n", file=sys.stderr if args.json else sys.stdout, flush=True)
    folder = args.output_dir or plan.folder_for(made, made.data)
    outcome = runner.run(made, result, Path(folder), options, device=args.device, workers=args.num_workers)
    _print(outcome, Path(folder), as_json=args.json)
    return 0


def _find(data: str | None, options: "DataOptions") -> "Material":
    from alexnet.experiments import plan

    if data is not None:
        return plan.find(data, options)
    try:
        return plan.find("cifar10", options)
    except DataError as error:
        raise DataError(
            error.what, error.must, f"{error.todo}; or try --data digits, which needs no download"
        ) from error


def _list(*, as_json: bool) -> int:
    from alexnet.experiments.claims import CLAIMS

    if as_json:
        fields = ("section", "words", "kind", "figures", "measured")
        print(json.dumps({n: {f: _plain(getattr(c, f)) for f in fields} for n, c in CLAIMS.items()}, indent=1))
        return 0
    for name, claim in CLAIMS.items():
        print(f"{name:<13} {claim.words} (section {claim.section})")
        nets = " against ".join(f"{arm.name} ({arm.small})" for arm in claim.arms)
        print(f"{'':<13} run: {nets}{_HOW[claim.kind]}")
        if claim.measured:
            print(f"{'':<13} took: {claim.measured}")
    print("\nalexnet study claims NAME --quick takes minutes on a processor; without --quick it is a plan for a GPU")
    return 0


_HOW = {
    "error": ", test errors",
    "gap": ", training and test errors",
    "speed": ", epochs to 25 % training error, each at its best rate",
    "crops": ", its center view and ten crops",
    "ensemble": ", several seeds, alone and averaged",
}


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, dict) else value


def _print(outcome: "Outcome", folder: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(outcome.to_dict()))
        return
    counts = outcome.counts
    title = f"{counts['train']} images to train, {counts['validation']} to choose, {counts['test']} to test"
    rows = [(f.what, f.paper or "–", _ours(f), _interval(f), f.verdict) for f in outcome.findings]
    output.table(title, ("measured", "paper", "ours", "95 % CI over seeds", "verdict"), rows, right=9)
    for name, rate in outcome.chosen.items() if outcome.searches else ():
        print(f"rate       {rate:g} for {name}, chosen on seed 0; the test split chose nothing")
    for note in dict.fromkeys(f.note for f in outcome.findings if f.note):
        print(f"note       {note}")
    print(f"training   {outcome.seconds:.0f} s in all")
    print(f"image    {outcome.image}")
    print(f"runs       {folder}  (result.json has every number)")
    print(f"verdict    {outcome.plan.claim.name}: {outcome.verdict}")


def _ours(finding: "Finding") -> str:
    if finding.mean is None:
        return "–"
    value = f"{finding.mean:.2f}" if finding.unit == "ratio" else f"{finding.mean:+.2f}"
    return f"{'at least ' if finding.at_least else ''}{value}{' times' if finding.unit == 'ratio' else ' points'}"


def _interval(finding: "Finding") -> str:
    if finding.interval is None:
        return "none from one seed" if len(finding.values) == 1 else "none"
    low, high = finding.interval
    return f"{low:.2f} to {high:.2f}" if finding.unit == "ratio" else f"{low:+.2f} to {high:+.2f}"
