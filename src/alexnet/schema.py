"""Checks of external data: regular files within a folder, bounded JSON and TOML, and a schema for its values.

Every function raises ValueError with a message of one line; callers add the path and a hint.
"""

import errno
import hashlib
import json
import math
import re
import stat
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from alexnet.errors import printable

T = TypeVar("T")

JSON_BYTES, JSON_DEPTH = 64 << 20, 64  # size of a file, and nesting depth of arrays and objects
TOML_CHARACTERS = 1 << 18
NAME_LENGTH = 10_000  # characters of a class name
MAX_SIZE = 8192  # pixels of a stored image, per side

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, Meta(ge=1, le=MAX_SIZE)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]
PositiveInt = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]

# Invisible characters that change what terminals and editors display: text direction, annotations, hidden tags.
_HIDDEN = re.compile("[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]")


@dataclass(frozen=True)
class ReferenceSample:
    """An image, and the probabilities that every copy of a classifier must predict for its center crop.

    Bundles, exported files and servers carry some, so that ``alexnet verify`` can compare.
    """

    name: str
    png: bytes
    probabilities: list[float]  # [K], in the order of the classes


def parse_json(data: bytes) -> Any:
    """Parse JSON within the limits of size and depth above. NaN, Infinity and numbers beyond float range are errors."""
    if len(data) > JSON_BYTES:
        raise ValueError(f"JSON of {len(data):,} bytes, the limit is {JSON_BYTES:,}")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    level = [value]
    for _ in range(JSON_DEPTH):
        level = [item for one in level for item in _items(one)]
        if not level:
            return value
    raise ValueError(f"JSON that is nested more than {JSON_DEPTH} deep")


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML within the limit of size above."""
    if len(text) > TOML_CHARACTERS:
        raise ValueError(f"TOML of {len(text):,} characters, the limit is {TOML_CHARACTERS:,}")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("TOML that is nested too deeply") from None


def read_toml_text(path: Path) -> str:
    """The text of a TOML file. Raises OSError if it cannot be read, UnicodeDecodeError if it is not UTF-8."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with path.open(encoding="utf-8-sig") as file:
        return file.read(TOML_CHARACTERS + 1)


def check(value: Any, schema: type[T]) -> T:
    """``value`` as ``schema``, a msgspec Struct or any other type of msgspec. Types are not converted."""
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        raise ValueError(printable(str(error))) from error  # it may quote the value


def checksum_of(metadata: Mapping[str, Any], field: str = "checksum") -> str:
    """The SHA-256 of all entries except ``field``, which stores it, as JSON with sorted keys."""
    rest = {name: value for name, value in metadata.items() if name != field}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def with_checksum(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """``metadata`` and a ``checksum`` of all its entries. :func:`read_checksummed` reads a file of it."""
    return {**metadata, "checksum": checksum_of(metadata)}


def class_fault(names: Sequence[Any]) -> str:
    """The problem with the class names of a classifier; empty if they are valid.

    Valid are at least two distinct names of 1 to 10,000 characters without control characters, line separators, lone
    surrogates and characters that change the direction of text.
    """
    if len(names) < 2:
        return f"{len(names)} classes: at least 2 are needed"
    first: dict[str, int] = {}
    for k, name in enumerate(names):
        if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH:
            return f"class {k} is {name!r:.40}: it must be text of 1 to {NAME_LENGTH:,} characters"
        if _HIDDEN.search(name) or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
            return f"class {k} is {name!a:.80}: control and text-direction characters are not allowed"
        if first.setdefault(name, k) != k:
            return f"classes {first[name]} and {k} have the same name {name!r:.40}"
    return ""


def regular_file(folder: Path, name: str, links_within: Path | None = None) -> Path:
    """The path of a regular file in a folder, with all links resolved.

    Devices and pipes are refused because they may never end, and links out of the folder because they reveal other
    files.

    Args:
        folder: folder that contains the file.
        name: path relative to ``folder``.
        links_within: folder that links may lead to; by default ``folder``.

    Raises:
        OSError: the file does not exist.
        ValueError: the name or the file is not allowed.
    """
    pure = PurePosixPath(name)
    if not name or not name.isprintable() or "\\" in name or pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"file name {name!r:.60}: it must be relative and inside the folder")
    try:
        path = (folder / name).resolve(strict=True)
    except RuntimeError as error:  # a loop of links, before Python 3.13
        raise ValueError(f"{name}: {error}") from error
    if not path.is_relative_to((links_within or folder).resolve()):
        raise ValueError(f"{name} is a link out of the folder: replace it by a copy of the file")
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{name} is not a regular file")
    return path


def read_json(folder: Path, name: str, links_within: Path | None = None) -> Any:
    """The value of a JSON file in ``folder``. Raises OSError if it cannot be read, ValueError if it is invalid."""
    with regular_file(folder, name, links_within).open("rb") as file:
        return parse_json(file.read(JSON_BYTES + 1))


def read_checksummed(folder: Path, name: str) -> dict[str, Any]:
    """The entries of a JSON file that was written :func:`with_checksum`, without the checksum.

    Raises OSError if it cannot be read, ValueError if it is invalid or has changed.
    """
    metadata = check(read_json(folder, name), dict[str, Any])
    if metadata.get("checksum") != checksum_of(metadata):
        problem = "differs" if "checksum" in metadata else "is missing"
        raise ValueError(f"{name} has changed since it was written: its checksum {problem}")
    del metadata["checksum"]
    return metadata


def _items(value: Any) -> Sequence[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()


def _constant(name: str) -> float:
    raise ValueError(f"{name} in place of a number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.20} is too large for a number")
    return number
