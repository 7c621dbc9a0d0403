"""Other people's weights and what belongs to them -> a bundle that predicts at once.

With the weights goes the way in which their network was shown images; right weights behind a wrong preprocessing
answer well enough that nobody notices. Each kind has its own:

=============  ===========================  ==================  =====================================================
kind           image -> stored            view                minus, divided by
=============  ===========================  ==================  =====================================================
torchvision    short side 256, center       224                 255 × (.485, .456, .406), 255 × (.229, .224, .225)
caffe          both sides 256 (squash)      227                 mean image where the view lies; its BGR turned to RGB
cuda-convnet   short side, center           the network's own   center of the mean image
=============  ===========================  ==================  =====================================================
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.bundle import Bundle, ReferenceSample
from alexnet.data.atomic_io import sha256_of
from alexnet.data.decode import Fit, encode_png
from alexnet.data.remote import local_path
from alexnet.errors import BundleError
from alexnet.loader.augmentation import Normalization, center_crops, normalize
from alexnet.weights import caffe, convnet, torchvision_weights
from alexnet.weights.files import read_bytes, read_npy
from alexnet.weights.matching import ImportedWeights, load_into_model

Kind = Literal["torchvision", "caffe", "cuda-convnet"]
MODELS: dict[Kind, str] = {
    "torchvision": "alexnet_owt",
    "caffe": "alexnet_caffe",
    "cuda-convnet": "alexnet_2012",
}  # what a file of that kind holds unless it is said

# ImageNet as torchvision normalizes it, gray levels; its published transforms say the same as shares of 255.
_MEAN, _STD = torch.tensor([0.485, 0.456, 0.406]) * 255, torch.tensor([0.229, 0.224, 0.225]) * 255
_CAFFE_MEAN = torch.tensor([122.679, 116.669, 104.007])  # channel means of Caffe's ILSVRC-2012 mean image, RGB
_STORED, _LARGE = {True: 256, False: 32}, 100  # pixels: stored images of ImageNet's nets and of CIFAR-10's
# Colors of ImageNet along their principal axes, gray levels (2012 code); only further training uses them.
_COLOR_STD = torch.tensor([121.78, 37.09, 19.72])
_COLOR_AXES = torch.tensor([[-0.564, -0.713, 0.418], [-0.576, -0.024, -0.817], [-0.592, 0.701, 0.397]])


@dataclass(frozen=True)
class ImportOptions:
    """What a person gives beside the file of weights."""

    model: str | None = None  # network by name; None: the kind's own
    mean: str | None = None  # .binaryproto, .npy, or three numbers R,G,B
    classes: Path | None = None  # names, one a line
    batches_meta: Path | None = None  # cuda-convnet's mean and names
    log: Callable[[str], None] = lambda text: None  # receives one line of progress or warning


def import_weights(kind: Kind, file: str, options: ImportOptions | None = None) -> Bundle:
    """The bundle of a file of weights. Raises :class:`BundleError` naming the file, and the layer that does not fit.

    ``file`` is a path; for torchvision it may be ``DEFAULT``, which torchvision fetches.
    """
    options = options or ImportOptions()
    if kind not in MODELS:
        raise BundleError(f"there are no weights of kind {kind!r}", f"one of {', '.join(MODELS)}")
    model = options.model or MODELS[kind]
    result, names, mean = _read(kind, file, model, options)
    network = load_into_model(model, result, file)
    classes = _classes(options, names or result.classes, network.num_classes, file)
    values = mean_of(options.mean) if options.mean else None if mean is None else torch.from_numpy(mean)
    stored = values.shape[0] if values is not None and values.dim() == 3 else _STORED[network.image_size >= _LARGE]
    if stored < network.image_size:
        raise BundleError(f"the mean image has {stored} pixels", f"at least the view's {network.image_size}")
    normalization, fit = _preprocessing(kind, values, network.image_size, options)
    about = {"imported": {"kind": kind, "file": Path(file).name, "sha256": _sha256(kind, file, result)}}
    bundle = Bundle(network, classes, normalization, stored, fit, initialization="own", data=about)
    return replace(bundle, reference_samples=reference_samples(bundle))


def reference_samples(bundle: Bundle) -> list[ReferenceSample]:
    """Three images of waves, the same for every bundle of one size, and what the network says to them."""
    size, result = bundle.stored_size, []
    y, x = np.mgrid[0:size, 0:size] / size
    for i in range(3):
        waves = [np.sin(2 * np.pi * ((i + 1) * x + (c + 1) * y * (c + i) + 0.2 * c)) for c in range(3)]
        image = np.rint(127.5 + 127.5 * np.stack(waves, -1)).astype(np.uint8)  # [S, S, 3]
        crops = center_crops(torch.from_numpy(image)[None], bundle.image_size)
        with torch.inference_mode():
            inputs = normalize(crops, None, None, bundle.normalization, bundle.network.in_channels)
            probabilities = bundle.network(inputs).softmax(1)[0].tolist()
        result.append(ReferenceSample(f"{i:02d}", encode_png(image), probabilities))
    return result


def _read(
    kind: Kind, file: str, model: str, options: ImportOptions
) -> tuple[ImportedWeights, tuple[str, ...], NDArray[Any] | None]:
    """Weights, the classes' names and the mean image that come with them."""
    if kind == "torchvision":
        return (
            (
                torchvision_weights.fetch()
                if file == torchvision_weights.DEFAULT
                else torchvision_weights.read(local_path(file))
            ),
            (),
            None,
        )
    if kind == "caffe":
        return caffe.read(local_path(file)), (), None
    result = convnet.read(local_path(file), model)
    if options.batches_meta is None:
        return result, (), None
    mean, names = convnet.read_meta(options.batches_meta)
    return result, names, mean


def _preprocessing(
    kind: Kind, values: torch.Tensor | None, side: int, options: ImportOptions
) -> tuple[Normalization, Fit]:
    one = torch.tensor(1.0)
    if kind == "torchvision":
        return Normalization(_MEAN if values is None else values, _COLOR_STD, _COLOR_AXES, _STD), "crop"
    if kind == "cuda-convnet":
        if values is None:
            raise BundleError(
                "a checkpoint of cuda-convnet holds no mean image",
                "",
                "give --batches-meta, the file batches.meta of its images, or --mean",
            )
        center = center_crops(values[None], side)[0] if values.dim() == 3 else values  # [s, s, 3]
        return Normalization(center, _COLOR_STD, _COLOR_AXES, one, mean_follows_crop=False), "crop"
    if values is None:
        options.log("no --mean given: the channel means of ILSVRC-2012 are subtracted in place of its mean image")
    return Normalization(_CAFFE_MEAN if values is None else values, _COLOR_STD, _COLOR_AXES, one), "squash"


def mean_of(text: str) -> torch.Tensor:
    """A mean as a person gives it: three numbers R,G,B, or a file. Returns [3] or [S, S, 3], RGB, gray levels.

    A ``.binaryproto`` and a ``.npy`` [3, S, S] are Caffe's, blue first; a ``.npy`` [S, S, 3] is RGB.
    """
    parts = text.split(",")
    if len(parts) == 3:
        try:
            numbers = [float(part) for part in parts]
        except ValueError:
            numbers = []
        if len(numbers) != 3 or not all(0 <= number <= 255 for number in numbers):
            raise BundleError(f"--mean is {text!r}", "three gray levels from 0 to 255: red,green,blue")
        return torch.tensor(numbers)
    path = local_path(text)
    if path.suffix != ".npy":
        return torch.from_numpy(caffe.read_mean(path))
    array = read_npy(path)
    if array.ndim not in (3, 4):
        raise BundleError(f"{path} is {array.shape}", "[3, S, S] BGR or [S, S, 3] RGB")
    if array.ndim == 3 and array.shape[2] == 3 and array.shape[0] == array.shape[1] != 3:
        array = array[..., ::-1].transpose(2, 0, 1)
    return torch.from_numpy(caffe.mean_image(array, str(path)))


def _classes(options: ImportOptions, known: tuple[str, ...], count: int, file: str) -> tuple[str, ...]:
    """Names by --classes, by the file, or the numbers of the outputs."""
    if options.classes is not None:
        text = read_bytes(options.classes).decode("utf-8-sig", "backslashreplace")
        names, where = tuple(line.strip() for line in text.splitlines() if line.strip()), str(options.classes)
    else:
        names, where = known or tuple(str(i) for i in range(count)), file
    if len(names) != count:
        raise BundleError(f"{where} names {len(names)} classes", f"{count}, as the last layer has rows")
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < count else set()
    return tuple(f"{name} ({i})" if name in twice else name for i, name in enumerate(names))


def _sha256(kind: Kind, file: str, results: ImportedWeights) -> str:
    """Of the file; of the numbers where torchvision fetched them or a folder was given."""
    if file != torchvision_weights.DEFAULT and Path(file).is_file():
        return sha256_of(Path(file))
    digest = hashlib.sha256(kind.encode())
    for name, array in sorted(results.arrays.items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
