"""The command ``study claims``."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.parser import DataArguments, Flag, data_options, option
from alexnet.errors import DataError

if TYPE_CHECKING:
    from alexnet.api import DataOptions
    from alexnet.experiments.claims.run import ClaimResult
    from alexnet.experiments.runner import Dataset, Measurement


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
    lrs: Annotated[tuple[float, ...], option("LR [LR ...]")] = ()
    """learning rates to select from, per network"""
    images: Annotated[int | None, option("N")] = None
    """maximum number of training images; 0: all"""
    train_error: Annotated[float | None, option("FRACTION")] = None
    """training error to which epochs are counted (relu: 0.25)"""
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
    """list the paper's claims, or test one: a plan, trainings, a verdict"""
    args: ClaimsArguments = parser.parse(ClaimsArguments, argv, "study claims")
    from alexnet.experiments.claims.registry import get_claim

    if args.name is None:
        return _list(as_json=args.json)
    claim = get_claim(args.name)
    from alexnet.experiments.claims.plan import ClaimConfig, default_folder, make_plan
    from alexnet.experiments.claims.run import run_claim
    from alexnet.experiments.runner import display_name

    config = ClaimConfig(args.quick, args.seeds, args.epochs, args.lrs, args.images, args.train_error)
    options = data_options(args.source)
    dataset = _open_dataset(args.data, options)
    plan = make_plan(claim, dataset, dataset.name if args.data is None else display_name(args.data), config)
    print("\n".join(plan.describe()), "", sep="\n", file=sys.stderr if args.json else sys.stdout, flush=True)
    folder = Path(args.output_dir or default_folder(plan, plan.data))
    result = run_claim(plan, dataset, folder, options, device=args.device, num_workers=args.num_workers)
    _print(result, folder, as_json=args.json)
    return 0


def _open_dataset(data: str | None, options: "DataOptions") -> "Dataset":
    from alexnet.experiments.runner import open_dataset

    if data is not None:
        return open_dataset(data, options)
    try:
        return open_dataset("cifar10", options)
    except DataError as error:
        raise DataError(
            error.what, error.must, f"{error.todo}; or pass --data digits, which needs no download"
        ) from error


def _list(*, as_json: bool) -> int:
    from alexnet.experiments.claims.registry import CLAIMS

    if as_json:
        fields = ("section", "statement", "criterion", "published")
        print(json.dumps({n: {f: _plain(getattr(c, f)) for f in fields} for n, c in CLAIMS.items()}, indent=1))
        return 0
    for name, claim in CLAIMS.items():
        print(f"{name:<13} {claim.statement} (section {claim.section})")
        variants = " against ".join(f"{variant.name} ({variant.small})" for variant in claim.variants)
        print(f"{'':<13} compares: {variants}{_CRITERIA[claim.criterion]}")
    print("\nalexnet study claims NAME --quick takes minutes on a CPU; without --quick the plan is for a GPU")
    return 0


_CRITERIA = {
    "test_error": ", test error",
    "generalization_gap": ", test error minus training error",
    "epochs_to_error": ", epochs to 25 % training error, each at its best learning rate",
    "ten_crop": ", test error with the center crop and with ten crops",
    "ensemble": ", test error of single networks and of their mean",
}


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, dict) else value


def _print(result: "ClaimResult", folder: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.to_dict()))
        return
    counts = result.counts
    title = f"{counts['train']} training, {counts['validation']} validation, {counts['test']} test images"
    rows = [(m.quantity, m.published or "–", _value(m), _interval(m), m.verdict) for m in result.measurements]
    output.table(title, ("measured", "paper", "here", "95 % CI over seeds", "verdict"), rows, right=9)
    for name, lr in result.learning_rates.items() if result.searches else ():
        print(f"lr         {lr:g} for {name}, selected on seed 0 without the test split")
    for note in dict.fromkeys(m.note for m in result.measurements if m.note):
        print(f"note       {note}")
    print(f"training   {result.seconds:.0f} s in all")
    print(f"image      {result.image}")
    print(f"runs       {folder}  (all numbers in result.json)")
    print(f"verdict    {result.plan.claim.name}: {result.verdict}")


def _value(measurement: "Measurement") -> str:
    mean = measurement.mean
    if mean is None:
        return "–"
    ratio = measurement.unit == "ratio"
    value = f"{mean:.2f} times" if ratio else f"{mean:+.2f} points"
    return f"at least {value}" if measurement.lower_bound else value


def _interval(measurement: "Measurement") -> str:
    if measurement.interval is None:
        return "none from one seed" if len(measurement.values) == 1 else "none"
    low, high = measurement.interval
    return f"{low:.2f} to {high:.2f}" if measurement.unit == "ratio" else f"{low:+.2f} to {high:+.2f}"
