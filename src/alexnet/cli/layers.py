"""The command ``layers``."""

import json
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from alexnet.cli import output, parser


@dataclass(frozen=True)
class LayersArguments:
    """Read a layer file of 2012: a row a layer with the output size worked out, or the errors of the file."""

    file: Positional[Path]  # layers.cfg
    params: Positional[Path | None] = None  # layer-params.cfg: checked too, and its rates are shown
    plot: Path | None = None  # PNG file for a plot of the graph, towers side by side
    image_size: int = 224  # side of the images, pixels
    in_channels: int = 3  # 3 for color, 1 for gray
    num_classes: int | None = None  # classes of the data; by default what the file's last layer tells apart
    json: bool = False  # print JSON


def run(argv: list[str]) -> int:
    """check a layer file of 2012, list its layers, draw its graph"""
    args: LayersArguments = parser.parse(LayersArguments, argv, "layers")
    from alexnet.cuda_convnet import Data, define, parameters, table
    from alexnet.training.layer_files import read

    data = Data(args.image_size, args.in_channels, args.num_classes)
    definition = define(read(args.file), data, args.file.name)
    result = parameters.read(read(args.params), definition, args.params.name) if args.params else None
    if args.json:
        print(json.dumps(table.as_dict(definition, result), indent=1))
    else:
        text = table.render(definition, result)
        output.table(text.title, text.columns, [*text.rows, text.totals], right=4)
    for note in (*definition.notes, *(result.notes if result else ())):
        output.say(f"note: {note}")
    if args.plot:
        from alexnet.plots import layer_graph

        output.say(str(layer_graph.draw(definition, args.plot)))
    return 0
