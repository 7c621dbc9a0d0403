"""Weights of torchvision: ``.pth`` files, and the weights that torchvision publishes and downloads."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from alexnet.errors import BundleError
from alexnet.weights.files import MOST_BYTES
from alexnet.weights.matching import ImportedWeights
from alexnet.weights.restricted_pickle import readable

DEFAULT = "DEFAULT"  # instead of a file: the default weights that torchvision publishes


def read(path: Path) -> ImportedWeights:
    """Read the state dict of a ``.pth`` file, at the top level or under ``model`` or ``state_dict``.

    A list of texts under ``classes`` becomes the class names. Only tensors and plain values are read
    (``weights_only``).

    Raises:
        BundleError: The file is damaged, holds other objects, or is not a state dict.
    """
    _bounded(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}", "a file of weights") from error
    except Exception as error:  # the restricted reader raises many kinds
        raise BundleError(
            f"{path} is refused: it holds more than tensors and plain values, or is damaged", "a state dict"
        ) from error
    state, classes = content, None
    if isinstance(content, Mapping):
        state = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), state)
        classes = content.get("classes")
    if not isinstance(state, Mapping) or not state:
        raise BundleError(f"{path} holds {type(content).__name__}", "a state dict: tensors by name")
    arrays = {readable(name).removeprefix("module."): _array(path, name, value) for name, value in state.items()}
    has_classes = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return ImportedWeights(arrays, classes=tuple(classes) if has_classes and classes else ())


class Published(NamedTuple):
    """Weights that torchvision publishes for one of its networks, with the normalization of its inputs."""

    state: dict[str, torch.Tensor]
    classes: tuple[str, ...]
    sha256: str  # first digits, from the file name; torchvision checks them
    mean: tuple[float, ...]  # subtracted from gray levels
    divide: tuple[float, ...]  # divisor after the subtraction


def of_network(name: str) -> Published:
    """The published weights of torchvision's network ``name``, from its cache or downloaded.

    Raises:
        BundleError: The weights are not in the cache and cannot be downloaded.
    """
    from torchvision.models import get_model_weights

    chosen = get_model_weights(name).DEFAULT
    try:
        state = chosen.get_state_dict(check_hash=True, progress=False)
    except Exception as error:  # no network, no name service, a proxy's page, a full disk, another file's hash
        reason = " ".join(str(error).split())[:100]
        raise BundleError(
            f"weights of {name} are not in torchvision's cache, and {chosen.url} could not be fetched ({reason})",
            "",
            f"put that file into {Path(torch.hub.get_dir()) / 'checkpoints'}, or leave {name} out",
        ) from error
    preset = chosen.transforms()
    # The two Inception networks convert torchvision's normalization to inputs of ±1 themselves.
    is_inception = name in ("googlenet", "inception_v3")
    mean, deviation = ((0.5,) * 3, (0.5,) * 3) if is_inception else (preset.mean, preset.std)
    sha256 = chosen.url.rpartition("-")[2].partition(".")[0]
    return Published(
        dict(state),
        tuple(chosen.meta["categories"]),
        sha256,
        tuple(255.0 * m for m in mean),
        tuple(255.0 * d for d in deviation),
    )


def fetch() -> ImportedWeights:
    """Published AlexNet weights of torchvision and the 1000 ImageNet classes, from its cache or downloaded.

    torchvision checks the hash of the file.

    Raises:
        BundleError: The weights are not in the cache and cannot be downloaded.
    """
    from torchvision.models import AlexNet_Weights

    chosen = AlexNet_Weights.DEFAULT
    try:
        state = chosen.get_state_dict(check_hash=True, progress=False)
    except Exception as error:  # no network, no name service, a proxy's page, a full disk, another file's hash
        reason = " ".join(str(error).split())[:150]
        raise BundleError(
            f"torchvision could not fetch {chosen.url} ({reason})",
            "",
            "fetch it where there is a network, then: alexnet import torchvision FILE BUNDLE",
        ) from error
    arrays = {name: value.numpy() for name, value in state.items()}
    return ImportedWeights(arrays, classes=tuple(chosen.meta["categories"]))


def _bounded(path: Path) -> None:
    """Refuse missing and too large files, and compressed zip files, which could decompress to any size."""
    if not path.is_file():
        raise BundleError(f"{path} is no file", "a .pth file, or DEFAULT: the one that torchvision publishes")
    if path.stat().st_size > MOST_BYTES:
        raise BundleError(f"{path} has {path.stat().st_size:,} bytes", f"at most {MOST_BYTES:,}")
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, ValueError):
        return  # PyTorch's format before 2020, or damaged: torch.load reports it
    if compressed:
        raise BundleError(f"{path} is a compressed zip file ({compressed[0]})", "a file that torch.save wrote")


def _array(path: Path, name: Any, value: Any) -> np.ndarray[Any, Any]:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or not value.is_floating_point():
        raise BundleError(f"{path}: {readable(name)} is {type(value).__name__}", "a tensor of floating-point numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise BundleError(f"{path}: {readable(name)} has a shape larger than its data", "a whole tensor")
    return np.asarray(value.detach().float().numpy())
