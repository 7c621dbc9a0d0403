"""The commands ``models``, ``layers`` and ``import``: networks by name, of layer files, with weights of others."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.parser import Flag, option

if TYPE_CHECKING:
    from alexnet.bundle import Bundle


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


def models_command(argv: list[str]) -> int:
    """List the networks; with a name, its layers one by one."""
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


@dataclass(frozen=True)
class LayersArguments:
    """Check a cuda-convnet layer file of 2012: the output size of each layer, or the errors of the file."""

    file: Positional[Annotated[Path, option("LAYERS")]]
    """layer file (layers.cfg)"""
    params: Positional[Annotated[Path | None, option("[PARAMS]")]] = None
    """parameter file (layer-params.cfg), checked too"""
    plot: Annotated[Path | None, option("FILE"), parser.PNG] = None
    """PNG file for a plot of the layer graph"""
    image_size: Annotated[int, option("PIXELS")] = 224
    """height and width of the images"""
    in_channels: Annotated[int, option("N")] = 3
    """3 for color, 1 for gray"""
    num_classes: Annotated[int | None, option("N")] = None
    """number of classes (default: the outputs of the file's last layer)"""
    json: Flag = False
    """print one JSON object"""


def layers_command(argv: list[str]) -> int:
    """Check a layer file of 2012, list its layers, draw its graph."""
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


@dataclass(frozen=True)
class ImportArguments:
    """Convert weights of other programs to a bundle. Every shape is checked; code in a file is never executed."""

    kind: Positional[Annotated[Literal["torchvision", "caffe", "cuda-convnet"], option("KIND")]]
    """torchvision, caffe or cuda-convnet"""
    file: Positional[Annotated[str, option("FILE")]]
    """.pth (or DEFAULT: torchvision downloads its own), .caffemodel, or a cuda-convnet checkpoint or its folder"""
    bundle: Positional[Annotated[Path, option("BUNDLE")]]
    """new directory for the bundle"""
    model: Annotated[str | None, option("MODEL")] = None
    """network (default: alexnet_owt, alexnet_caffe or alexnet_2012)"""
    mean: Annotated[str | None, option("FILE")] = None
    """mean image (.binaryproto, or .npy as [3, S, S] BGR or [S, S, 3] RGB), or the gray levels R,G,B"""
    classes: Annotated[Path | None, option("FILE")] = None
    """text file with one class per line (default: those in the file, or 0, 1, 2, ...)"""
    batches_meta: Annotated[Path | None, option("FILE")] = None
    """cuda-convnet: file batches.meta with the mean image and the classes"""
    json: Flag = False
    """print one JSON object"""


def import_command(argv: list[str]) -> int:
    """Convert weights of torchvision, Caffe or cuda-convnet to a bundle."""
    args: ImportArguments = parser.parse(ImportArguments, argv, "import")
    from alexnet.errors import BundleError
    from alexnet.weights.import_weights import ImportOptions, import_weights

    if args.bundle.exists():
        raise BundleError(f"{args.bundle} exists already", "a new folder", "choose another name")
    extras = ImportOptions(args.model, args.mean, args.classes, args.batches_meta, output.log)
    made = import_weights(args.kind, args.file, extras)
    path = made.save(args.bundle)
    _print(made, path, as_json=args.json)
    return 0


def _print(bundle: "Bundle", path: Path, *, as_json: bool) -> None:
    """Print the result of ``alexnet import``."""
    network = bundle.network
    parameters = sum(p.numel() for p in network.parameters())
    if as_json:
        about: dict[str, Any] = {
            "bundle": str(path),
            "model": network.name,
            "classes": len(bundle.classes),
            "parameters": parameters,
        }
        print(json.dumps({**about, **bundle.data}))
        return
    print(f"{network.name}, {len(bundle.classes)} classes, {parameters:,} parameters -> {path}")
    print(f"try it: alexnet predict {path} IMAGE")
