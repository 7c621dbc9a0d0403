"""``dataset.json``: what a store says of itself, read and checked before anything else of it is opened."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from alexnet.errors import DataError
from alexnet.schema import Sha256, check, class_fault, parse_json, seal_of

FORMAT = "alexnet-store"
VERSIONS = {"raw": 1, "jpeg": 2}  # encoding → format version; readers before JPEG shards refuse 2 by its number
SPLIT_NAMES = ("train", "validation", "test")


class _Split(msgspec.Struct):
    """One entry of ``splits``."""

    count: Annotated[int, Meta(ge=0)]
    shards: list[str]
    labels: str
    per_class: list[Annotated[int, Meta(ge=0)]]
    counts: list[Annotated[int, Meta(ge=1)]]
    index: str | msgspec.UnsetType = msgspec.UNSET


class _Description(msgspec.Struct):
    """What is checked of ``dataset.json`` beside format, version and file names."""

    name: str
    classes: list[str]
    size: Annotated[int, Meta(ge=1, le=4096)]
    fit: Literal["crop", "pad", "squash"]
    splits: dict[str, _Split]
    channel_means: Annotated[list[Annotated[float, Meta(ge=0, le=255)]], Meta(min_length=3, max_length=3)]
    mean_image: str
    color_std: Annotated[list[Annotated[float, Meta(ge=0)]], Meta(min_length=3, max_length=3)]
    color_axes: list[Annotated[list[float], Meta(min_length=3, max_length=3)]]
    sha256: dict[str, Sha256]
    bytes: dict[str, Annotated[int, Meta(ge=0)]]
    fingerprint: Sha256
    source_fingerprint: str
    settings: dict[str, Any]
    mirror: bool
    skipped: Annotated[int, Meta(ge=0)]
    created_by: str
    seal: Sha256


def fingerprint_of(
    classes: list[str], splits: Mapping[str, Any], sha256: Mapping[str, str], encoding: str = "raw"
) -> str:
    """What the pictures and labels are, as one SHA-256: the classes, the hashes of shards and labels, the encoding."""
    files = {
        name: [sha256[file] for file in (*about["shards"], about["labels"], *filter(None, [about.get("index")]))]
        for name, about in splits.items()
    }
    content = [classes, files, *([encoding] if encoding != "raw" else [])]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def damaged(where: str, reason: str) -> DataError:
    """The error for the store ``where`` that is not as it was written."""
    return DataError(f"{where}: damaged store ({reason})", "", "prepare the data set again")


def read_description(data: bytes, where: str) -> dict[str, Any]:
    """``dataset.json`` of the store ``where`` (a path or an address), checked. Raises DataError."""
    try:
        about = parse_json(data)
    except ValueError as error:
        raise damaged(where, f"dataset.json: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DataError(f"{where}: dataset.json is of another program", f"of format {FORMAT}", "choose another folder")
    _check_version(about, where)
    try:
        check(about, _Description)
    except ValueError as error:
        raise damaged(where, f"dataset.json: {error}") from error
    if fault := class_fault(about["classes"]):
        raise damaged(where, f"dataset.json: {fault}")
    _check_names(about, where)
    if about["seal"] != seal_of(about):
        raise damaged(where, "dataset.json has changed since it was written: its seal differs")
    encoding = about.get("encoding", "raw")
    if about["fingerprint"] != fingerprint_of(about["classes"], about["splits"], about["sha256"], encoding):
        raise damaged(where, "dataset.json: the fingerprint is not that of its classes and files")
    return about


def _check_version(about: Mapping[str, Any], where: str) -> None:
    version, encoding = about.get("version"), about.get("encoding", "raw")
    if version not in VERSIONS.values():
        newer = isinstance(version, int) and version > max(VERSIONS.values())
        todo = "update alexnet" if newer else "prepare the data set again"
        must = "version " + " or ".join(map(str, VERSIONS.values()))
        raise DataError(f"{where}: store of version {version!r}", must, todo)
    if VERSIONS.get(encoding) != version:
        raise damaged(where, f"dataset.json: encoding {encoding!r:.60} in version {version}")


def _check_names(about: Mapping[str, Any], where: str) -> None:
    """Only files inside the store are opened, whatever dataset.json says."""
    if tuple(about["splits"]) != SPLIT_NAMES:
        raise damaged(where, f"splits {', '.join(about['splits'])}")
    parts = about["splits"].values()
    try:
        names = [name for part in parts for name in (*part["shards"], part["labels"])] + [about["mean_image"]]
        names += [part["index"] for part in parts if about["version"] == VERSIONS["jpeg"]]
        for name in (*names, *about["sha256"]):
            if not re.fullmatch(r"(train/|validation/|test/)?[\w-]+(\.[a-z]+)?", name):
                raise damaged(where, f"file name {name!r}")
    except (KeyError, TypeError) as error:
        raise damaged(where, f"splits: {error}") from error
    missing = sorted(set(names) - set(about["sha256"]))
    if missing:
        raise damaged(where, f"no SHA-256 of {missing[0]}")
    if set(about["bytes"]) != set(about["sha256"]):
        raise damaged(where, "bytes and sha256 are not of the same files")
