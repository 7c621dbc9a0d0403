"""Croissant 1.0 metadata of a store, for data catalogs and dataset search: ``alexnet prepare DATA STORE --croissant``.

Two files are written beside those of the store. ``croissant.json`` describes every file with its SHA-256, the classes
and the images. ``images.csv`` has a row for each image; the metadata describe its columns, so that a reader of
Croissant gets records with labels.

Source: Croissant Format Specification 1.0, MLCommons 2024.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.data.atomic_io import json_bytes, sha256_of, write_file, written
from alexnet.data.store import Store
from alexnet.errors import DataError
from alexnet.terminal import csv_cell

METADATA, IMAGES = "croissant.json", "images.csv"
COLUMNS = {  # of images.csv: the type and the meaning
    "split": ("Text", "train, validation or test"),
    "class": ("Text", "name of the class, behind an apostrophe where a spreadsheet would compute it"),
    "origin": ("Text", "the source file, or the number of the image in its source; behind an apostrophe likewise"),
    "sha256": ("Text", "SHA-256 of the source's bytes"),
    "shard": ("Text", "the file of the store that holds the pixels"),
    "row": ("Integer", "index of the image in its shard, from 0"),
}
_TERMS = "citeAs column data dataType examples extract field fileProperty fileObject fileSet format includes"
_TERMS += " isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate"
_TERMS += " separator source subField transform equivalentProperty"
_CONTEXT: dict[str, Any] = {term: f"cr:{term}" for term in _TERMS.split()} | {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}
_FORMATS = {".json": "application/json", ".jsonl": "application/jsonlines", ".csv": "text/csv"}


def write_croissant(store: Store, folder: Path) -> Path:
    """Write the metadata of ``store`` to its folder, in place of earlier ones.

    License, author and address of the images are not known here: add them to the file before it is published.

    Args:
        store: The store.
        folder: Its folder.

    Returns:
        The path of ``croissant.json``.

    Raises:
        DataError: The files cannot be written.
    """
    with written(folder / METADATA, DataError):
        write_file(folder / IMAGES, _csv(store).encode())
        write_file(folder / METADATA, json_bytes(_metadata(store, folder)))
    return folder / METADATA


def _csv(store: Store) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows(store))
    return text.getvalue()


def _rows(store: Store) -> Iterator[tuple[str | int, ...]]:
    for name, split in store.splits.items():
        description = store.metadata["splits"][name]
        shards = np.repeat(np.arange(len(description["counts"])), description["counts"])
        rows = np.concatenate([np.arange(0), *(np.arange(count) for count in description["counts"])])
        for origin, label, shard, row in zip(split.origins(), split.labels, shards, rows, strict=True):
            path = description["shards"][shard]
            yield name, csv_cell(store.classes[label]), csv_cell(origin["origin"]), origin["sha256"], path, int(row)


def _metadata(store: Store, folder: Path) -> dict[str, Any]:
    data, encoding = store.metadata, store.metadata.get("encoding", "raw")
    counts = ", ".join(f"{len(split):,} {name}" for name, split in store.splits.items())
    sizes = data["bytes"] | {name: (folder / name).stat().st_size for name in ("dataset.json", IMAGES)}
    sha256 = data["sha256"] | {name: sha256_of(folder / name) for name in ("dataset.json", IMAGES)}
    pixels = "as JPEGs" if encoding == "jpeg" else "as NumPy arrays, uint8 [n, height, width, RGB]"
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": data["name"],
        "description": f"{len(store.classes)} classes of images, {counts}; {store.size} × {store.size} pixels, "
        f"{pixels}. A store of the Python package alexnet, fingerprint {store.fingerprint}.",
        "version": "1.0.0",
        "distribution": [_file(name, sha256[name], sizes[name]) for name in sorted(sha256)],
        "recordSet": [_classes(store), _images()],
    }


def _file(name: str, sha256: str, size: int) -> dict[str, Any]:
    encoding = _FORMATS.get(Path(name).suffix, "application/octet-stream")
    file = {"@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name, "contentSize": f"{size} B"}
    return file | {"encodingFormat": encoding, "sha256": sha256}


def _classes(store: Store) -> dict[str, Any]:
    """The classes as an enumeration; their numbers are those of ``labels.npy``."""
    fields = [_field("classes", "class", "Text", "name"), _field("classes", "number", "Integer", "label")]
    data = [{"classes/class": csv_cell(name), "classes/number": number} for number, name in enumerate(store.classes)]
    about = {"@type": "cr:RecordSet", "@id": "classes", "name": "classes", "key": {"@id": "classes/class"}}
    return about | {"dataType": "sc:Enumeration", "field": fields, "data": data}


def _images() -> dict[str, Any]:
    fields = []
    for column, (kind, meaning) in COLUMNS.items():
        source = {"fileObject": {"@id": IMAGES}, "extract": {"column": column}}
        field = _field("images", column, kind, meaning) | {"source": source}
        if column == "class":
            field["references"] = {"field": {"@id": "classes/class"}}
        fields.append(field)
    about = {"@type": "cr:RecordSet", "@id": "images", "name": "images", "description": "one record for each image"}
    return about | {"field": fields}


def _field(record_set: str, name: str, kind: str, description: str) -> dict[str, Any]:
    about = {"@type": "cr:Field", "@id": f"{record_set}/{name}", "name": name, "description": description}
    return about | {"dataType": f"sc:{kind}"}
