"""``alexnet import``: other people's weights become a bundle that predicts at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from alexnet.cli import arguments, show


@dataclass(frozen=True)
class ImportArguments:
    """Make a bundle of other people's weights. Every layer's size is checked; nothing in a file is ever run."""

    kind: Positional[Literal["torchvision", "caffe", "caffe-npy", "cuda-convnet"]]  # where the weights come from
    file: Positional[str]  # .pth (or DEFAULT: torchvision fetches its own) | .caffemodel | .npy | checkpoint or folder
    bundle: Positional[Path]  # new folder for the bundle
    model: str | None = None  # network by name; by default alexnet_owt, alexnet_caffe, alexnet_caffe, alexnet_2012
    mean: str | None = None  # mean image (.binaryproto, or .npy as [3,S,S] BGR or [S,S,3] RGB), or gray levels R,G,B
    classes: Path | None = None  # text file, a class a line; by default those in the file, or 0, 1, 2 …
    batches_meta: Path | None = None  # cuda-convnet: the file batches.meta of its pictures, with mean image and classes
    json: bool = False  # print one JSON object


def run(words: list[str]) -> int:
    """make a bundle of other people's weights: torchvision, Caffe, cuda-convnet"""
    given: ImportArguments = arguments.parse(ImportArguments, words, "import")
    from alexnet.errors import BundleError
    from alexnet.weights.importing import Extras, import_weights

    if given.bundle.exists():
        raise BundleError(f"{given.bundle} exists already", "a new folder", "choose another name")
    extras = Extras(given.model, given.mean, given.classes, given.batches_meta, show.say)
    made = import_weights(given.kind, given.file, extras)
    path = made.save(given.bundle)
    show.imported(made, path, as_json=given.json)
    return 0
