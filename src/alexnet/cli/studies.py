"""The commands ``study claims``, ``contest``, ``data-size``, ``depth``, ``probes`` and ``scaling``."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.output import estimate_cells
from alexnet.cli.parser import (
    DataArguments,
    ExperimentArguments,
    Flag,
    TrainingExperimentArguments,
    data_options,
    option,
)
from alexnet.errors import DataError, RecipeError

if TYPE_CHECKING:
    from alexnet.api import DataOptions
    from alexnet.experiments.claims.run import ClaimResult
    from alexnet.experiments.contest.run import ContestResult
    from alexnet.experiments.residual_depth import DepthResult
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
    """trainings per network (default: 5; 3 with 64-pixel images and with --quick)"""
    epochs: Annotated[int | None, option("N")] = None
    """maximum epochs of a training"""
    lrs: Annotated[tuple[float, ...], option("LR [LR ...]")] = ()
    """learning rates to select from, per network"""
    images: Annotated[int | None, option("N")] = None
    """maximum number of training images; 0: all"""
    train_error: Annotated[float | None, option("FRACTION")] = None
    """training error to which epochs are counted (relu: 0.25)"""
    experiment: TrainingExperimentArguments = field(default_factory=TrainingExperimentArguments)
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def claims_command(argv: list[str]) -> int:
    """List the paper's claims, or test one: a plan, trainings, a verdict."""
    args: ClaimsArguments = parser.parse(ClaimsArguments, argv, "study claims")
    from alexnet.experiments.claims.registry import get_claim

    if args.name is None:
        return _list_claims(as_json=args.experiment.json)
    claim = get_claim(args.name)
    from alexnet.experiments.claims.plan import ClaimConfig, default_folder, make_plan
    from alexnet.experiments.claims.run import run_claim
    from alexnet.experiments.runner import display_name

    config = ClaimConfig(args.quick, args.seeds, args.epochs, args.lrs, args.images, args.train_error)
    options = data_options(args.source)
    dataset = _open_dataset(args.data, options)
    plan = make_plan(claim, dataset, dataset.name if args.data is None else display_name(args.data), config)
    _print_plan(plan.describe(), as_json=args.experiment.json)
    folder = Path(args.experiment.output_dir or default_folder(plan, plan.data))
    result = run_claim(
        plan, dataset, folder, options, device=args.experiment.device, num_workers=args.experiment.num_workers
    )
    _print_claim(result, folder, as_json=args.experiment.json)
    return 0


def _print_plan(lines: list[str], *, as_json: bool) -> None:
    print(*lines, "", sep="\n", file=sys.stderr if as_json else sys.stdout, flush=True)


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


def _list_claims(*, as_json: bool) -> int:
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


def _print_claim(result: "ClaimResult", folder: Path, *, as_json: bool) -> None:
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
    if result.gradients:
        _print_gradients(result)
    print(f"training   {result.seconds:.0f} s in all")
    print(f"image      {result.image}")
    print(f"runs       {folder}  (all numbers in result.json)")
    print(f"verdict    {result.plan.claim.name}: {result.verdict}")


def _print_gradients(result: "ClaimResult") -> None:
    """Relative gradient and mean slope of each layer, of seed 0, before and after training."""
    rows = [
        (
            one.variant,
            first.layer,
            f"{first.gradient:.2g}",
            f"{last.gradient:.2g}",
            *("" if layer.slope is None else f"{layer.slope:.2f}" for layer in (first, last)),
        )
        for one in result.gradients
        for first, last in zip(one.initial, one.trained, strict=True)
    ]
    columns = ("network", "layer", "gradient at first", "trained", "slope at first", "trained")
    output.table("Norm of the gradient / norm of the weights, and mean slope of the units", columns, rows, right=4)
    print(f"gradients  {result.gradients_image}")


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


@dataclass(frozen=True)
class ContestArguments:
    """Compare AlexNet, its successors and Fisher vectors on the same split, crops and time.

    The same command reuses finished contestants and resumes an interrupted one.
    """

    data: Positional[Annotated[str | None, option("[DATA]")]] = None
    """digits, a folder, parquet files, a store, cifar10, imagenette, ..."""
    nets: Annotated[str | None, option("NAMES")] = None
    """contestants, comma-separated: alexnet,fisher,resnet18 (default: eight, see docs/contest.md)"""
    budget: Annotated[str | None, option("TIME")] = None
    """time for all contestants together, equally shared: 40min, 1.5h (default: 15min, photographs 90min)"""
    epochs: Annotated[int | None, option("N")] = None
    """instead of a budget: equal epochs for every network"""
    pretrained: Flag = False
    """start from torchvision's published weights where there are some"""
    seed: Annotated[int, option("N")] = 0
    """random seed of splits, initial weights, order, crops and mixtures"""
    image_size: Annotated[int, option("PIXELS")] = 0
    """crop size of all contestants; 0: 224 for photographs, 64 for small images"""
    images: Annotated[int, option("N")] = 0
    """maximum number of training images, balanced over the classes, and half as many for the test; 0: all"""
    experiment: TrainingExperimentArguments = field(default_factory=TrainingExperimentArguments)
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def contest_command(argv: list[str]) -> int:
    """Compare AlexNet, its successors and Fisher vectors on one dataset in equal time."""
    args: ContestArguments = parser.parse(ContestArguments, argv, "study contest")
    if args.data is None:
        raise parser.no_data("contest")
    from alexnet.experiments.contest.plan import ContestConfig, default_folder, make_plan
    from alexnet.experiments.contest.run import run_contest
    from alexnet.experiments.runner import display_name, open_dataset

    nets = () if args.nets is None else tuple(name.strip() for name in args.nets.split(",") if name.strip())
    config = ContestConfig(nets, args.budget, args.epochs, args.pretrained, args.seed, args.image_size, args.images)
    options = data_options(args.source)
    dataset = open_dataset(args.data, options)
    plan = make_plan(dataset, display_name(args.data), config)
    _print_plan(plan.describe(), as_json=args.experiment.json)
    folder = Path(args.experiment.output_dir or default_folder(plan))
    result = run_contest(
        plan, dataset, folder, options, device=args.experiment.device, num_workers=args.experiment.num_workers
    )
    _print_contest(result, as_json=args.experiment.json)
    return 0


def _print_contest(result: "ContestResult", *, as_json: bool) -> None:
    from alexnet.experiments.contest.results import table
    from alexnet.terminal import format_duration

    if as_json:
        print(json.dumps(result.to_dict()))
        return
    counts = result.counts
    title = f"{counts['train']} training, {counts['validation']} validation, {counts['test']} test images"
    columns, rows = table(result.rows)
    output.table(f"{title}, {result.num_classes} classes", columns, rows, right=len(columns))
    for note in result.notes:
        print(f"note       {note}")
    print(f"image      {result.image}")
    print(f"results    {result.folder}  (contest.json, contest.csv, contest.md; a folder for each contestant)")
    print(f"time       {format_duration(result.seconds)} in all")
    print(f"verdict    {result.verdict}")


@dataclass(frozen=True)
class DataSizeArguments:
    """Train AlexNet and Fisher vectors on growing parts of one dataset: from how many images is the network better?

    The same command reuses finished trainings and resumes an interrupted one.
    """

    data: Positional[Annotated[str | None, option("[DATA]")]] = None
    """a folder, a table, an archive or the name of a dataset"""
    sizes: Annotated[tuple[int, ...], option("N [N ...]")] = ()
    """numbers of training images (default: 250 500 1000 2500 5000 ... 100000, as far as the data goes)"""
    methods: Annotated[tuple[str, ...], option("NAME [NAME ...]")] = ()
    """scratch (AlexNet from random weights), starter (from the package's weights), fisher (default: all)"""
    seeds: Annotated[int, option("N")] = 1
    """trainings for each size and method"""
    epochs: Annotated[int, option("N")] = 0
    """epochs of every training of a network; 0: by the number of images"""
    experiment: TrainingExperimentArguments = field(default_factory=TrainingExperimentArguments)
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def data_size_command(argv: list[str]) -> int:
    """Train on growing parts of a dataset: from how many images a network beats Fisher vectors."""
    args: DataSizeArguments = parser.parse(DataSizeArguments, argv, "study data-size")
    if args.data is None:
        raise parser.no_data("data-size")
    from alexnet.experiments.data_size import METHODS, DataSizeConfig, run_data_size
    from alexnet.experiments.runner import display_name

    default = DataSizeConfig()
    config = DataSizeConfig(args.sizes or default.sizes, args.methods or default.methods, args.seeds, args.epochs)
    folder = args.experiment.output_dir or Path("runs") / "data-size" / display_name(args.data)
    result = run_data_size(
        args.data,
        config,
        folder,
        data_options(args.source),
        device=args.experiment.device,
        num_workers=args.experiment.num_workers,
    )
    if args.experiment.json:
        print(json.dumps(result.to_dict()))
        return 0
    rows = [
        (METHODS[method], f"{size:,}", output.percent(mean, 1), f"{100 * low:.1f} to {100 * high:.1f}")
        for method in config.methods
        for size, mean, low, high in result.curve(method)
    ]
    count = result.points[0].count
    output.table(f"Top-1 accuracy on {count} test images", ("method", "training images", "top-1", "95 % CI"), rows)
    for method, images in result.crossings.items():
        text = "not in this range" if images is None else f"from about {images:,.0f} images"
        print(f"{METHODS[method]} above Fisher vectors: {text}")
    print(f"plot       {result.plot}")
    print(f"runs       {folder}  (all numbers in data-size.json)")
    return 0


@dataclass(frozen=True)
class DepthArguments:
    """Train plain and residual networks of growing depth alike (He et al. 2015): do deeper ones fit worse?

    The same command reuses finished trainings and resumes an interrupted one.
    """

    data: Positional[Annotated[str | None, option("[DATA]")]] = None
    """digits, cifar10, a folder, parquet files or a store"""
    quick: Flag = False
    """three depths, two seeds, few epochs and images: minutes on a CPU"""
    depths: Annotated[tuple[int, ...], option("N [N ...]")] = ()
    """number of layers: 8, 14, 20, 32, 44, 56 (default: all; quick: 8 20 44)"""
    seeds: Annotated[int | None, option("N")] = None
    """trainings per network (default: 3; quick: 2)"""
    epochs: Annotated[int | None, option("N")] = None
    """epochs of every training (default: 40; quick: 10)"""
    budget: Annotated[str | None, option("TIME")] = None
    """instead of epochs: time for all trainings together, such as 40min or 1.5h"""
    images: Annotated[int | None, option("N")] = None
    """maximum number of training images; 0: all"""
    experiment: TrainingExperimentArguments = field(default_factory=TrainingExperimentArguments)
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def depth_command(argv: list[str]) -> int:
    """Train plain and residual networks of growing depth: the effect of skip connections."""
    args: DepthArguments = parser.parse(DepthArguments, argv, "study depth")
    if args.data is None:
        raise parser.no_data("depth")
    from alexnet.experiments.residual_depth import DepthConfig, default_folder, make_plan, run_depth
    from alexnet.experiments.runner import display_name, open_dataset

    config = DepthConfig(args.quick, args.depths, args.seeds, args.epochs, args.budget, args.images)
    options = data_options(args.source)
    dataset = open_dataset(args.data, options)
    plan = make_plan(dataset, display_name(args.data), config)
    _print_plan(plan.describe(), as_json=args.experiment.json)
    folder = Path(args.experiment.output_dir or default_folder(plan, quick=args.quick))
    result = run_depth(
        plan, dataset, folder, options, device=args.experiment.device, num_workers=args.experiment.num_workers
    )
    _print_depth(result, folder, args.experiment.json)
    return 0


def _print_depth(result: "DepthResult", folder: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.to_dict()))
        return
    counts, epochs = result.counts, result.plan.base.epochs
    title = f"{counts['train']} training images, {counts['test']} test images, {epochs} epochs"
    rows = [
        (
            network.replace("_", " "),
            _mean(result.train_errors[network]),
            _mean(result.test_errors[network]),
        )
        for network in result.train_errors
    ]
    output.table(title, ("network", "training error", "test error"), rows)
    columns = ("measured, in points", "He et al.", "here", "95 % CI over seeds", "verdict")
    output.table("", columns, [_depth_row(measurement) for measurement in result.measurements], right=9)
    for note in dict.fromkeys(m.note for m in result.measurements if m.note):
        print(f"note       {note}")
    print(f"training   {result.seconds:.0f} s in all")
    print(f"image      {result.image}")
    print(f"runs       {folder}  (all numbers in depth.json)")
    print(f"verdict    deeper plain networks train worse, shortcuts prevent it: {result.verdict}")


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f} %"


def _depth_row(measurement: "Measurement") -> tuple[str, ...]:
    interval = measurement.interval
    return (
        measurement.quantity,
        measurement.published,
        "–" if measurement.mean is None else f"{measurement.mean:+.2f}",
        "none from one seed" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}",
        measurement.verdict,
    )


@dataclass(frozen=True)
class ProbesArguments:
    """Test how useful the features of each layer are for other images: a linear classifier on each layer."""

    run: Positional[Annotated[str | None, option("[RUN]")]] = None
    """a run directory, a bundle, or starter (the weights of this package)"""
    data: Positional[Annotated[str | None, option("[DATA]")]] = None
    """images of any classes: a folder, a table, a store or the name of a dataset"""
    images: Annotated[int, option("N")] = 3000
    """maximum number of training images; 0: all"""
    experiment: ExperimentArguments = field(default_factory=ExperimentArguments)
    source: Annotated[DataArguments, option(name="data")] = field(default_factory=DataArguments)


def probes_command(argv: list[str]) -> int:
    """Fit a linear classifier on the features of each layer: how transferable they are."""
    args: ProbesArguments = parser.parse(ProbesArguments, argv, "study probes")
    if args.run is None or args.data is None:
        raise RecipeError("probes needs RUN and DATA", "", "such as: alexnet study probes starter DATA")
    from alexnet.experiments.probes import run_probes
    from alexnet.experiments.runner import display_name

    folder = args.experiment.output_dir or Path("runs") / "probes" / display_name(args.data)
    result = run_probes(
        args.run, args.data, folder, data_options(args.source), images=args.images, device=args.experiment.device
    )
    if args.experiment.json:
        print(json.dumps(result.to_dict()))
        return 0
    rows = [
        (p.layer, f"{p.features:,}", f"{p.penalty:g}", *estimate_cells(p.top1), *estimate_cells(p.random_top1))
        for p in result.probes
    ]
    columns = ("layer", "features", "penalty", "test top-1", "95 % CI", "random weights", "95 % CI")
    counts = ", ".join(f"{count} {name}" for name, count in result.counts.items())
    output.table(f"Linear probes of {result.run} on {result.data}: {counts}", columns, rows)
    print(f"plot       {result.plot}")
    return 0


@dataclass(frozen=True)
class ScalingArguments:
    """Predict the time of a training step on 1 to 1,024 devices, by layout: computation, communication, links.

    The defaults are a measured CPU core and an assumed link of 10 Gbit/s (docs/scaling.md).
    """

    network: Positional[Annotated[str, option("[MODEL]")]] = "alexnet"
    """network (alexnet models lists them)"""
    batch: Annotated[int, option("N")] = 128
    """batch size per device; with --fixed of all devices together"""
    fixed: Flag = False
    """keep the global batch size for any number of devices"""
    classes: Annotated[int, option("N")] = 1000
    """number of classes"""
    gmacs: Annotated[float, option("GMACS")] = 45.0
    """10^9 multiply-adds per second of a device in training"""
    link: Annotated[float, option("GBITS")] = 10.0
    """Gbit/s of a device in each direction"""
    latency: Annotated[float, option("MICROSECONDS")] = 50.0
    """latency of a collective per doubling of the processes"""
    split: Annotated[int, option("N")] = 8
    """processes that share the fully connected layers in hybrid layouts"""
    devices: Annotated[tuple[int, ...], option("N [N ...]")] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    """numbers of devices"""
    json: Flag = False
    """print one JSON object"""


def scaling_command(argv: list[str]) -> int:
    """Predict the time of a training step on many devices, by layout."""
    args: ScalingArguments = parser.parse(ScalingArguments, argv, "study scaling")
    rows = scaling_table(args)
    if args.json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
        return 0
    columns = ("devices", "layout", "batch", "MB sent", "ms computing", "ms activations", "ms gradients", "images/s")
    cells = [
        (
            str(row.devices),
            row.layout,
            str(row.batch),
            f"{row.bytes / 1e6:.1f}",
            f"{1000 * row.compute:.1f}",
            f"{1000 * row.activations:.1f}",
            f"{1000 * row.gradients:.1f}",
            f"{row.rate:.0f}",
        )
        for row in rows
    ]
    output.table(f"{args.network}: a step, predicted", columns, cells, right=2)
    return 0


class ScalingRow(NamedTuple):
    """A row of the table: seconds, bytes that a device sends, images a second of all."""

    devices: int
    layout: str
    batch: int
    bytes: float
    compute: float
    activations: float
    gradients: float
    rate: float


def scaling_table(args: ScalingArguments) -> list[ScalingRow]:
    """A row for each number of devices and each layout that fits it."""
    import torch

    from alexnet.models import create_model
    from alexnet.training.distributed.communication import DeviceModel, bytes_per_step, predict_step
    from alexnet.training.distributed.sharding import Layout

    device = DeviceModel(args.gmacs * 1e9, args.link * 1e9 / 8, args.latency * 1e-6)
    with torch.device("meta"):
        network = create_model(args.network, num_classes=args.classes)
    rows: list[ScalingRow] = []
    for devices in args.devices:
        batch = args.batch if args.fixed else args.batch * devices
        for name in ["data", "towers", "hybrid"] if network.towers == 2 else ["data", "hybrid"]:
            layout = Layout(name, min(args.split, devices) if name == "hybrid" else 0)
            if devices % (layout.tp_size or devices) or (devices == 1 and name != "data"):
                continue
            step = predict_step(network, layout, batch, devices, device)
            sent = sum(bytes_per_step(network, layout, batch, devices).values())
            times = (step.compute, step.activations, step.gradients)
            rows.append(ScalingRow(devices, name, batch, sent, *times, step.images_per_second))
    return rows
