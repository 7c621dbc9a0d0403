"""``alexnet import``: other people's weights become a bundle that predicts at once."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from alexnet.cli import output, parser

if TYPE_CHECKING:
    from alexnet.bundle import Bundle


@dataclass(frozen=True)
class ImportArguments:
    """Make a bundle of other people's weights. Every layer's size is checked; nothing in a file is ever run."""

    kind: Positional[Literal["torchvision", "caffe", "cuda-convnet"]]
    """where the weights come from"""
    file: Positional[str]
    """.pth (or DEFAULT: torchvision fetches its own) | .caffemodel | checkpoint or folder"""
    bundle: Positional[Path]
    """new folder for the bundle"""
    model: str | None = None
    """network by name; by default alexnet_owt, alexnet_caffe or alexnet_2012"""
    mean: str | None = None
    """mean image (.binaryproto, or .npy as [3,S,S] BGR or [S,S,3] RGB), or gray levels R,G,B"""
    classes: Path | None = None
    """text file, a class a line; by default those in the file, or 0, 1, 2 …"""
    batches_meta: Path | None = None
    """cuda-convnet: the file batches.meta of its images, with mean image and classes"""
    json: bool = False
    """print one JSON object"""


def run(argv: list[str]) -> int:
    """make a bundle of other people's weights: torchvision, Caffe, cuda-convnet"""
    args: ImportArguments = parser.parse(ImportArguments, argv, "import")
    from alexnet.errors import BundleError
    from alexnet.weights.import_weights import ImportOptions, import_weights

    if args.bundle.exists():
        raise BundleError(f"{args.bundle} exists already", "a new folder", "choose another name")
    extras = ImportOptions(args.model, args.mean, args.classes, args.batches_meta, output.say)
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
