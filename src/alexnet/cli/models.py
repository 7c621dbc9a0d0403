"""The command ``models``."""

import json
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.parser import Flag, option


@dataclass(frozen=True)
class ModelsArguments:
    """List the networks, or show one: output size, parameters and multiply-adds of each layer."""

    name: Positional[Annotated[str | None, option("[MODEL]")]] = None
    """network to show"""
    num_classes: Annotated[int | None, option("N")] = None
    """number of classes (default: the network's own)"""
    in_channels: Annotated[int | None, option("N")] = None
    """3 for color, 1 for gray"""
    image_size: Annotated[int | None, option("PIXELS")] = None
    """height and width of the input"""
    json: Flag = False
    """print one JSON object"""


def run(argv: list[str]) -> int:
    """list the networks; with a name, its layers one by one"""
    args: ModelsArguments = parser.parse(ModelsArguments, argv, "models")
    import torch

    from alexnet.models import create_model
    from alexnet.models.registry import MODELS, TORCHVISION_MODELS
    from alexnet.models.summary import summarize

    if args.name is None:
        models = MODELS | TORCHVISION_MODELS
        if args.json:
            fields = ("description", "source", "image_size")
            print(json.dumps({name: {f: getattr(m, f) for f in fields} for name, m in models.items()}, indent=1))
        else:
            rows = [(name, str(model.image_size), model.description, model.source) for name, model in models.items()]
            output.table("", ("network", "input", "description", "source"), rows)
        return 0
    with torch.device("meta"):  # shapes alone: no weights are drawn
        network = create_model(
            args.name,
            num_classes=args.num_classes,
            in_channels=args.in_channels,
            image_size=args.image_size,
        )
    summary = summarize(network)
    if args.json:
        print(json.dumps(summary.as_dict(), indent=1))
    else:
        table = summary.render()
        output.table(table.title, table.columns, [*table.rows, table.totals], right=6)
    return 0
