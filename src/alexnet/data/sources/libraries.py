"""Data sets of other libraries: the digits of scikit-learn, data sets of ``torchvision.datasets`` and of ``datasets``.

Each library is imported when its data is read. torchvision and ``datasets`` (of Hugging Face) find, fetch and check the
files. Their image decoders are not used.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.atomic_io import whole_folder
from alexnet.data.sources.folders import read_folder
from alexnet.data.sources.source import (
    SPLITS,
    Problems,
    Row,
    Sample,
    Source,
    class_name,
    make_source,
    path_text,
    read_image,
    stamp_of,
)
from alexnet.data.sources.tables import MISSING
from alexnet.errors import DataError, printable
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


PREFIX = "hf:"  # hf:OWNER/NAME, or hf:OWNER/NAME:CONFIGURATION
LABELS = ("label", "labels", "fine_label", "class")  # preferred, if there are several columns of labels


def is_saved(path: Path) -> bool:
    """Whether ``path`` is a folder that ``save_to_disk`` of datasets wrote."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    )


def read_saved(path: Path, problems: Problems | None = None) -> Source:
    """The images of a folder that ``save_to_disk`` wrote. Raises DataError."""
    library = _datasets(path_text(path))
    try:
        data = library.load_from_disk(str(path))
    except Exception as error:  # of pyarrow, of the operating system, and its own
        raise DataError(
            f"{path_text(path)}: {_one_line(error)}", "a folder of save_to_disk", "save it again"
        ) from error
    return read_dataset(data, path_text(path.resolve().name), problems)


def read_name(name: str, download: bool, problems: Problems | None = None) -> Source:
    """The images of ``hf:OWNER/NAME``, which ``load_dataset`` fetches or takes from its cache. Raises DataError."""
    if not download:
        raise DataError(f"{printable(name)} is on the Hugging Face hub", "fetched", "pass --download")
    library = _datasets(name)
    repository, _, configuration = name.removeprefix(PREFIX).partition(":")
    try:
        data = library.load_dataset(repository, configuration or None)
    except Exception as error:  # of the network, of the hub, of pyarrow, and its own
        hint = "check the name and the network; a configuration is written hf:OWNER/NAME:CONFIGURATION"
        raise DataError(f"{printable(name)} could not be read: {_one_line(error)}", "", hint) from error
    return read_dataset(data, repository.rstrip("/").rpartition("/")[2], problems)


def read_dataset(data: Any, name: str = "dataset", problems: Problems | None = None) -> Source:
    """The images of a ``datasets.Dataset`` or ``datasets.DatasetDict``.

    Args:
        data: The data set. It needs one column of images (``datasets.Image``), and one of labels: ``ClassLabel``, or
            texts or numbers in a column ``label``.
        name: Name of the source.
        problems: A list to which recoverable errors are added. None: they raise.

    Raises:
        DataError: If there is no such column, or a label or a split has no meaning.
    """
    library = _datasets(name)
    if isinstance(data, library.Dataset):
        splits: Mapping[str, Any] = {"all": data}
    elif isinstance(data, library.DatasetDict):
        splits = {_split(name, key): value for key, value in data.items()}
    else:
        raise DataError(f"{name} is a {type(data).__name__}", "a datasets.Dataset or DatasetDict")
    first = next(iter(splits.values()))
    image, label = _image_column(library, first, name), _label_column(library, first, name)
    feature = first.features[label]
    for split, table in splits.items():  # a label means the same class in every split
        if image not in table.features or table.features.get(label) != feature:
            problem = f"{name}: columns {image} and {label} of {split} are not those of {next(iter(splits))}"
            raise DataError(problem, "the same classes in every split, in one order", "cast it, or leave it out")
    labels = {split: _labels(table, label, name) for split, table in splits.items()}
    position: dict[Any, int]
    if isinstance(feature, library.ClassLabel):
        classes, position = list(feature.names), {number: number for number in range(len(feature.names))}
    else:
        values = sorted({value for values in labels.values() for value in values})  # numbers by size: 2 before 10
        classes, position = list(map(str, values)), {value: number for number, value in enumerate(values)}
    rows = []
    for split, table in splits.items():
        raw = table.select_columns([image]).cast_column(image, library.Image(decode=False))
        stamps = _stamps(raw, image)
        for index, value in enumerate(labels[split]):
            origin = f"{split}/{index:06d}"
            if value not in position:
                raise DataError(f"{name}: {origin} has label {value}", f"from 0 to {len(classes) - 1}", "leave it out")
            sample = Sample(position[value], origin, partial(_load, raw, image, index, origin))
            rows.append(Row(split, sample, f"{raw._fingerprint}/{index}{stamps[index]}"))
    return make_source(printable(name), classes, rows, problems=problems)


def saved_folder(data: Any, cache: Path) -> Path:
    """``data``, as for :func:`read_dataset`, as a folder that ``save_to_disk`` wrote into ``cache``. Raises DataError.

    A run records where its images are: an object has no place of its own.
    """
    folder = cache / f"dataset-{read_dataset(data).fingerprint[:16]}"
    if not is_saved(folder):
        with whole_folder(folder, lambda: [path.name for path in folder.iterdir()]) as partial:
            data.save_to_disk(str(partial))
    return folder


def _stamps(table: Any, column: str) -> list[str]:
    """For each row a text that changes when the image file changes that its cell names; empty for bytes in the cell.

    The fingerprint of a data set is of its cells. The first row has the stamps of the files of the data set itself.
    """
    stamps = []
    for rows in table.with_format("arrow").iter(batch_size=1000):
        for cells in rows.column(column).chunks:
            paths, absent = cells.field("path").to_pylist(), cells.field("bytes").is_null().to_pylist()
            stamps += [
                stamp_of(Path(path)) if path and missing else "" for path, missing in zip(paths, absent, strict=True)
            ]
    own = [stamp_of(Path(file["filename"])) for file in table.cache_files]
    return [" ".join([*own, *stamps[:1]]), *stamps[1:]]


def _load(table: Any, column: str, index: int, origin: str) -> bytes:
    """The bytes of an image."""
    cell = table[index][column]
    content: bytes | None = cell and cell["bytes"]
    if content:
        return content
    if cell and cell["path"]:
        return read_image(Path(cell["path"]))
    raise DataError(f"{origin}: the cell is empty", "an image", "leave it out")


def _split(name: str, key: str) -> str:
    if key.lower() not in SPLITS:
        raise DataError(f"{name}: split {printable(key)}", "train, validation or test", "remove or rename it")
    return SPLITS[key.lower()]


def _image_column(library: Any, table: Any, name: str) -> str:
    columns = [column for column, feature in table.features.items() if isinstance(feature, library.Image)]
    if len(columns) != 1:
        raise DataError(
            f"{name} has {len(columns)} columns of images", "one", "select the columns that are used, and cast to Image"
        )
    return str(columns[0])


def _label_column(library: Any, table: Any, name: str) -> str:
    columns = [column for column, feature in table.features.items() if isinstance(feature, library.ClassLabel)]
    preferred = [column for column in LABELS if column in columns] or columns[:1]
    text = [column for column in LABELS if column in table.features]
    if not preferred and not text:
        raise DataError(f"{name} has no labels", "a column of ClassLabel, or a column 'label'", "add or rename one")
    return str((preferred or text)[0])


def _labels(table: Any, column: str, name: str) -> list[Any]:
    """The labels: integers, numbers, or texts without spaces around them. Raises DataError for a missing one."""
    values = [class_name(path_text(value.strip())) if isinstance(value, str) else value for value in table[column]]
    for row, value in enumerate(values):
        if value is None or value != value or (isinstance(value, str) and (not value or value.casefold() in MISSING)):
            raise DataError(f"{name}: row {row} has no {column}", "a label", "filter these rows")
        if not isinstance(value, int | float | str):
            raise DataError(f"{name}: row {row} has the {column} {value!r:.60}", "a number or a text", "convert them")
    return values


def _datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{name}: the library datasets is not installed", "", "pip install 'alexnet[datasets]'"
        ) from error
    return datasets


def _one_line(error: Exception) -> str:
    return f"{printable(' '.join(str(error).split())):.200}"
