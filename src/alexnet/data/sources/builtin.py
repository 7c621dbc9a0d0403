"""Data sets known by name: the digits of scikit-learn, and data sets of ``torchvision.datasets``.

torchvision finds, fetches and checks the files. Its image decoders are not used.
"""

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexnet.data.sources.folders import read_folder
from alexnet.data.sources.source import Row, Sample, Source, make_source, path_text
from alexnet.errors import DataError
from alexnet.system import cache_folder

SETS = ("cifar10", "digits", "fashion_mnist", "imagenette", "mnist")


def read_builtin(name: str, data_root: Path | None = None, download: bool = False) -> Source:
    """The data set ``name``, one of SETS.

    Args:
        name: the data set.
        data_root: folder of torchvision's data sets; default ``~/.cache/alexnet``.
        download: fetch a data set that is not in ``data_root``.

    Raises:
        DataError: if the data set is missing, or cannot be fetched.
    """
    return _digits() if name == "digits" else _torchvision(name, data_root, download)


def _digits() -> Source:
    """1,797 handwritten digits, 8 × 8 pixels, 17 gray levels. They are part of scikit-learn: no download."""
    from sklearn.datasets import load_digits

    dataset = load_digits()
    images = np.round(dataset.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    return make_source("digits", map(str, range(10)), _array_rows("all", images, dataset.target), allow_hflip=False)


def _torchvision(name: str, data_root: Path | None, download: bool) -> Source:
    """A torchvision data set in ``data_root`` (default ~/.cache/alexnet), fetched only with ``download``.

    torchvision checks MD5 sums before it unpickles anything. Raises DataError.
    """
    root = data_root or cache_folder()
    try:
        return _imagenette(root, download) if name == "imagenette" else _arrays(name, root, download)
    except DataError:
        raise
    except Exception as error:  # torchvision raises RuntimeError, OSError, URLError, and what tar and zlib raise
        raise (_not_fetched(name, root, error) if download else _not_found(name, root)) from error


def _not_fetched(name: str, root: Path, error: Exception) -> DataError:
    problem = f"{name}: download to {path_text(root)} failed ({' '.join(str(error).split())})"
    return DataError(problem, "", "check the network, or fetch it elsewhere and pass --data-root")


def _not_found(name: str, root: Path) -> DataError:
    hint = "pass --download to fetch it, or --data-root for the folder where it lies"
    return DataError(f"{name}: not found in {path_text(root)}", "downloaded once", hint)


def _arrays(name: str, root: Path, download: bool) -> Source:
    import warnings

    from torchvision import datasets

    types = {"cifar10": datasets.CIFAR10, "mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy ≥ 2.4 warns about the pickles of CIFAR-10, written by NumPy 1
        sets = {split: types[name](root, train=split == "train", download=download) for split in ("train", "test")}
    classes = [str(digit) for digit in range(10)] if name == "mnist" else sets["train"].classes
    rows = [
        row
        for split, dataset in sets.items()
        for row in _array_rows(split, np.asarray(dataset.data), map(int, dataset.targets))
    ]
    return make_source(name, classes, rows, allow_hflip=name != "mnist")


def _imagenette(root: Path, download: bool) -> Source:
    """Ten classes of ImageNet as JPEG files. torchvision fetches the files and names the classes."""
    from torchvision.datasets import Imagenette

    folders = {"full": "imagenette2", "320px": "imagenette2-320", "160px": "imagenette2-160"}
    size = next((size for size, folder in folders.items() if (root / folder).is_dir()), "320px")
    names = [title[0] for title in Imagenette(root, "train", size, download=download).classes]
    source = read_folder(root / folders[size])  # classes in the order of their WordNet numbers, as torchvision's
    return Source("imagenette", tuple(names), source.splits, source.fingerprint, True, source.notes)


def _array_rows(split: str, images: NDArray[np.uint8], labels: Iterable[int]) -> Iterator[Row]:
    """Rows of ``images`` uint8 [N, H, W] or [N, H, W, 3]. The stamp of the first row is the hash of all pixels."""
    stamp = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    for index, label in enumerate(labels):
        yield Row(split, Sample(int(label), f"{split}#{index:07d}", partial(_rgb, images, index)), stamp)
        stamp = ""


def _rgb(images: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    image = images[index]
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
