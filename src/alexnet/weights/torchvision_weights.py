"""torchvision's AlexNet: ``.pth`` files, and the weights that torchvision publishes, fetched by its own machinery."""

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

DEFAULT = "DEFAULT"  # in place of a file: what torchvision publishes as its best


def read(path: Path) -> ImportedWeights:
    """The state dict in a ``.pth`` file, alone or under ``model`` or ``state_dict``, and its classes where it has any.

    Tensors and plain values alone are read (``weights_only``). Raises :class:`BundleError`.
    """
    _bounded(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BundleError(f"{path} can not be read: {error.strerror or error}", "a file of weights") from error
    except Exception as error:  # whatever the restricted reader raises, it means the same
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
    known = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return ImportedWeights(arrays, classes=tuple(classes) if known and classes else ())


class Published(NamedTuple):
    """Weights that torchvision publishes for one of its networks, and the gray levels that their inputs are made by."""

    state: dict[str, torch.Tensor]
    classes: tuple[str, ...]
    sha256: str  # as the file's name begins: torchvision checks it
    mean: tuple[float, ...]  # subtracted from gray levels
    divide: tuple[float, ...]  # what is left is divided by


def of_network(name: str) -> Published:
    """The weights of torchvision's network called ``name`` from its cache, or fetched where there is a network.

    Raises :class:`BundleError` where neither is.
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
    # Its two Inceptions bring inputs from torchvision's numbers back to those that their weights are for: ±1.
    middle = name in ("googlenet", "inception_v3")
    mean, deviation = ((0.5,) * 3, (0.5,) * 3) if middle else (preset.mean, preset.std)
    sha256 = chosen.url.rpartition("-")[2].partition(".")[0]
    return Published(
        dict(state),
        tuple(chosen.meta["categories"]),
        sha256,
        tuple(255.0 * m for m in mean),
        tuple(255.0 * d for d in deviation),
    )


def fetch() -> ImportedWeights:
    """torchvision's published weights and the 1000 classes of ImageNet; its cache, its check of the file's hash.

    Raises :class:`BundleError` where there is no network and nothing in the cache.
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
    """Refuse what is no file, and a zip file that unpacks to more than it is."""
    if not path.is_file():
        raise BundleError(f"{path} is no file", "a .pth file, or DEFAULT: the one that torchvision publishes")
    if path.stat().st_size > MOST_BYTES:
        raise BundleError(f"{path} has {path.stat().st_size:,} bytes", f"at most {MOST_BYTES:,}")
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, ValueError):
        return  # PyTorch's form of before 2020, or damaged: PyTorch says which
    if packed:
        raise BundleError(f"{path} is a packed zip file ({packed[0]})", "a file that torch.save wrote")


def _array(path: Path, name: Any, value: Any) -> np.ndarray[Any, Any]:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or not value.is_floating_point():
        raise BundleError(f"{path}: {readable(name)} is {type(value).__name__}", "a tensor of floating-point numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise BundleError(f"{path}: {readable(name)} claims more numbers than the file has", "a whole tensor")
    return np.asarray(value.detach().float().numpy())
