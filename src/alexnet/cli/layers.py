"""The command ``layers``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.parser import Flag, option


@dataclass(frozen=True)
class LayersArguments:
    """Check a cuda-convnet layer file of 2012: the output size of each layer, or the errors of the file."""

    file: Positional[Annotated[Path, option("LAYERS")]]
    """layer file (layers.cfg)"""
    params: Positional[Annotated[Path | None, option("[PARAMS]")]] = None
    """parameter file (layer-params.cfg), checked too"""
    plot: Annotated[Path | None, option("FILE")] = None
    """PNG file for a plot of the layer graph"""
    image_size: Annotated[int, option("PIXELS")] = 224
    """height and width of the images"""
    in_channels: Annotated[int, option("N")] = 3
    """3 for color, 1 for gray"""
    num_classes: Annotated[int | None, option("N")] = None
    """number of classes (default: the outputs of the file's last layer)"""
    json: Flag = False
    """print one JSON object"""


def run(argv: list[str]) -> int:
    """check a layer file of 2012, list its layers, draw its graph"""
    args: LayersArguments = parser.parse(LayersArguments, argv, "layers")
    from alexnet.cuda_convnet import Data, define, network, parameters
    from alexnet.training.layer_files import read

    data = Data(args.image_size, args.in_channels, args.num_classes)
    definition = define(read(args.file), data, args.file.name)
    result = parameters.read(read(args.params), definition, args.params.name) if args.params else None
    if args.json:
        print(json.dumps(network.as_dict(definition, result), indent=1))
    else:
        text = network.render(definition, result)
        output.table(text.title, text.columns, [*text.rows, text.totals], right=4)
    for note in (*definition.notes, *(result.notes if result else ())):
        output.log(f"note: {note}")
    if args.plot:
        from alexnet.plots import layer_graph

        output.log(str(layer_graph.draw(definition, args.plot)))
    return 0
