"""The command ``study scaling``."""

import json
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.parser import Flag, option


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


def run(argv: list[str]) -> int:
    """how long a training step would take on many devices, by layout"""
    args: ScalingArguments = parser.parse(ScalingArguments, argv, "study scaling")
    rows = table(args)
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


class Row(NamedTuple):
    """A line of the table: seconds, bytes that a device sends, images a second of all."""

    devices: int
    layout: str
    batch: int
    bytes: float
    compute: float
    activations: float
    gradients: float
    rate: float


def table(args: ScalingArguments) -> list[Row]:
    """A row for each number of devices and each layout that fits it."""
    import torch

    from alexnet.models import create_model
    from alexnet.training.distributed.communication import DeviceModel, bytes_per_step, predict_step
    from alexnet.training.distributed.sharding import Layout

    device = DeviceModel(args.gmacs * 1e9, args.link * 1e9 / 8, args.latency * 1e-6)
    with torch.device("meta"):
        network = create_model(args.network, num_classes=args.classes)
    rows: list[Row] = []
    for devices in args.devices:
        batch = args.batch if args.fixed else args.batch * devices
        for name in ["data", "towers", "hybrid"] if network.towers == 2 else ["data", "hybrid"]:
            layout = Layout(name, min(args.split, devices) if name == "hybrid" else 0)
            if devices % (layout.tp_size or devices) or (devices == 1 and name != "data"):
                continue
            step = predict_step(network, layout, batch, devices, device)
            sent = sum(bytes_per_step(network, layout, batch, devices).values())
            times = (step.compute, step.activations, step.gradients)
            rows.append(Row(devices, name, batch, sent, *times, step.images_per_second))
    return rows
