"""``alexnet import``: other people's weights become a bundle that predicts at once."""

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


def run(argv: list[str]) -> int:
    """make a bundle of other people's weights: torchvision, Caffe, cuda-convnet"""
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
    """What came of ``alexnet import``."""
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
