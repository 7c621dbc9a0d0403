"""Import of published weights into a bundle, with the preprocessing that they were trained with.

Correct weights with a wrong preprocessing still predict well enough that the error is not noticed. So each kind of
file has its own preprocessing:

=============  ===========================  ==================  =====================================================
kind           image -> stored            crop                mean; divisor
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
}  # the default network of each kind

# ImageNet normalization of torchvision in gray levels; its transforms have the same as fractions of 255.
_MEAN, _STD = torch.tensor([0.485, 0.456, 0.406]) * 255, torch.tensor([0.229, 0.224, 0.225]) * 255
_CAFFE_MEAN = torch.tensor([122.679, 116.669, 104.007])  # channel means of Caffe's ILSVRC-2012 mean image, RGB
_STORED, _LARGE = (
    {True: 256, False: 32},
    100,
)  # stored size in pixels: inputs of at least 100 pixels (ImageNet), or less (CIFAR-10)
# Principal components of ImageNet colors, gray levels (2012 code); used only by further training.
_COLOR_STD = torch.tensor([121.78, 37.09, 19.72])
_COLOR_AXES = torch.tensor([[-0.564, -0.713, 0.418], [-0.576, -0.024, -0.817], [-0.592, 0.701, 0.397]])


@dataclass(frozen=True)
class ImportOptions:
    """Options of an import."""

    model: str | None = None  # name of the network; None: the default of the kind
    mean: str | None = None  # .binaryproto, .npy, or three numbers R,G,B
    classes: Path | None = None  # file of class names, one per line
    batches_meta: Path | None = None  # mean image and class names of cuda-convnet
    log: Callable[[str], None] = lambda text: None  # receives one line of progress or warning


def import_weights(kind: Kind, file: str, options: ImportOptions | None = None) -> Bundle:
    """Import a file of weights.

    Args:
        kind: The format of the file.
        file: Path of the file; for torchvision also ``DEFAULT``, the weights that torchvision downloads.
        options: Network, mean and class names.

    Returns:
        The bundle, with reference samples.

    Raises:
        BundleError: The file is invalid or does not match the network; the message names the file and the layer.
    """
    options = options or ImportOptions()
    if kind not in MODELS:
        raise BundleError(f"unknown kind of weights {kind!r}", f"one of {', '.join(MODELS)}")
    model = options.model or MODELS[kind]
    imported, names, image = _read(kind, file, model, options)
    network = load_into_model(model, imported, file)
    classes = _classes(options, names or imported.classes, network.num_classes, file)
    mean = mean_of(options.mean) if options.mean else None if image is None else torch.from_numpy(image)
    if mean is not None and not bool(((mean >= 0) & (mean <= 255)).all()):
        raise BundleError(f"the mean has values from {mean.min():g} to {mean.max():g}", "gray levels, 0 to 255")
    stored = mean.shape[0] if mean is not None and mean.dim() == 3 else _STORED[network.image_size >= _LARGE]
    if stored < network.image_size:
        raise BundleError(f"the mean image has {stored} pixels", f"at least {network.image_size}, the size of the crop")
    normalization, fit = _preprocessing(kind, mean, network.image_size, options)
    data = {"imported": {"kind": kind, "file": Path(file).name, "sha256": _sha256(kind, file, imported)}}
    bundle = Bundle(network, classes, normalization, stored, fit, initialization="own", data=data)
    return replace(bundle, reference_samples=reference_samples(bundle))


def reference_samples(bundle: Bundle) -> list[ReferenceSample]:
    """Three images of waves, the same for each stored size, with the probabilities that the network gives them."""
    size, samples = bundle.stored_size, []
    y, x = np.mgrid[0:size, 0:size] / size
    for i in range(3):
        waves = [np.sin(2 * np.pi * ((i + 1) * x + (c + 1) * y * (c + i) + 0.2 * c)) for c in range(3)]
        image = np.rint(127.5 + 127.5 * np.stack(waves, -1)).astype(np.uint8)  # [S, S, 3]
        crops = center_crops(torch.from_numpy(image)[None], bundle.image_size)
        with torch.inference_mode():
            inputs = normalize(crops, None, None, bundle.normalization, bundle.network.in_channels)
            probabilities = (bundle.network(inputs) / bundle.temperature).softmax(1)[0].tolist()
        samples.append(ReferenceSample(f"{i:02d}", encode_png(image), probabilities))
    return samples


def _read(
    kind: Kind, file: str, model: str, options: ImportOptions
) -> tuple[ImportedWeights, tuple[str, ...], NDArray[Any] | None]:
    """Weights, class names and mean image of the file."""
    if kind == "torchvision":
        if file == torchvision_weights.DEFAULT:
            return torchvision_weights.fetch(), (), None
        return torchvision_weights.read(local_path(file)), (), None
    if kind == "caffe":
        return caffe.read(local_path(file)), (), None
    imported = convnet.read(local_path(file), model)
    if options.batches_meta is None:
        return imported, (), None
    mean, names = convnet.read_meta(options.batches_meta)
    return imported, names, mean


def _preprocessing(
    kind: Kind, mean: torch.Tensor | None, image_size: int, options: ImportOptions
) -> tuple[Normalization, Fit]:
    one = torch.tensor(1.0)
    if kind == "torchvision":
        return Normalization(_MEAN if mean is None else mean, _COLOR_STD, _COLOR_AXES, _STD), "crop"
    if kind == "cuda-convnet":
        if mean is None:
            raise BundleError(
                "a checkpoint of cuda-convnet holds no mean image",
                "",
                "pass --batches-meta FILE, the batches.meta of its images, or --mean",
            )
        center = center_crops(mean[None], image_size)[0] if mean.dim() == 3 else mean  # [s, s, 3]
        return Normalization(center, _COLOR_STD, _COLOR_AXES, one, mean_follows_crop=False), "crop"
    if mean is None:
        options.log("no --mean: the channel means of ILSVRC-2012 are used instead of its mean image")
    return Normalization(_CAFFE_MEAN if mean is None else mean, _COLOR_STD, _COLOR_AXES, one), "squash"


def mean_of(text: str) -> torch.Tensor:
    """Parse the value of ``--mean``.

    Args:
        text: Three numbers R,G,B, or a file. A ``.binaryproto`` and a ``.npy`` [3, S, S] are in Caffe's order BGR; a
            ``.npy`` [S, S, 3] is RGB.

    Returns:
        The mean, RGB, gray levels: [3] or [S, S, 3].

    Raises:
        BundleError: The numbers or the file are invalid.
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
    """Class names from --classes, from the file, or the indices of the outputs. Repeated names get their index."""
    if options.classes is not None:
        text = read_bytes(options.classes).decode("utf-8-sig", "backslashreplace")
        names, source = tuple(line.strip() for line in text.splitlines() if line.strip()), str(options.classes)
    else:
        names, source = known or tuple(str(i) for i in range(count)), file
    if len(names) != count:
        raise BundleError(f"{source} names {len(names)} classes", f"{count}, the number of rows of the last layer")
    repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < count else set()
    return tuple(f"{name} ({i})" if name in repeated else name for i, name in enumerate(names))


def _sha256(kind: Kind, file: str, imported: ImportedWeights) -> str:
    """SHA-256 of the file, or of the arrays if ``file`` is DEFAULT or a directory."""
    if file != torchvision_weights.DEFAULT and Path(file).is_file():
        return sha256_of(Path(file))
    digest = hashlib.sha256(kind.encode())
    for name, array in sorted(imported.arrays.items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
