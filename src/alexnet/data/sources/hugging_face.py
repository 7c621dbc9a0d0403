"""Data sets of the Hugging Face library ``datasets`` → a source: a column of images, one of labels.

The only door to datasets, which is imported when such data is read. Images are not decoded by it: their bytes are.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from alexnet.data.sources.source import SPLITS, Problems, Row, Sample, Source, make_source, path_text, read_image
from alexnet.errors import DataError, printable

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
            text in a column ``label``.
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
    texts = {split: _labels(table, label, name) for split, table in splits.items()}
    feature = first.features[label]
    classes = list(feature.names) if isinstance(feature, library.ClassLabel) else []
    if not classes:
        classes = sorted({str(value) for values in texts.values() for value in values})
    position = {text: index for index, text in enumerate(classes)}
    rows = []
    for split, table in splits.items():
        raw = table.select_columns([image]).cast_column(image, library.Image(decode=False))
        for index, value in enumerate(texts[split]):
            number = value if isinstance(value, int) else position[str(value)]
            origin = f"{split}/{index:06d}"
            if not 0 <= number < len(classes):
                raise DataError(f"{name}: {origin} has label {number}", f"from 0 to {len(classes) - 1}", "leave it out")
            sample = Sample(number, origin, partial(_load, raw, image, index, origin))
            rows.append(Row(split, sample, f"{raw._fingerprint}/{index}"))
    return make_source(printable(name), classes, rows, problems=problems)


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


def _labels(table: Any, column: str, name: str) -> list[int | str]:
    values = list(table[column])
    if any(value is None for value in values):
        raise DataError(f"{name}: row {values.index(None)} has no {column}", "a label", "filter these rows")
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
