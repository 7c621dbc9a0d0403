"""Who may ask: API keys from a file or the environment, compared in constant time."""

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from alexnet.errors import ServerError

SHORTEST = 16  # characters; 16 hexadecimal digits are 64 bits
_TODO = "make one: openssl rand -hex 32"


def read_keys(file: Path | None, environment: str = "") -> tuple[str, ...]:
    """The keys of ``file``, one a line, lines beginning with # left out; without a file that of the environment.

    No key at all is the empty tuple: everyone may ask. Raises :class:`ServerError`, which shows no key.
    """
    if file is None:
        return _checked([environment.strip()], "ALEXNET_API_KEY") if environment.strip() else ()
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"--key-file {file} can not be read", "a text file, one key a line", _TODO) from error
    return _checked([line for line in lines if line and not line.startswith("#")], f"--key-file {file}")


def _checked(keys: Sequence[str], where: str) -> tuple[str, ...]:
    if not keys:
        raise ServerError(f"{where} holds no key", "one a line", _TODO)
    for number, key in enumerate(keys, 1):
        if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise ServerError(
                f"{where}: key {number} has {len(key)} characters", f"{SHORTEST} or more ASCII, without spaces", _TODO
            )
    return tuple(keys)


class Keys:
    """The keys that open; none means that everyone may ask."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def open_to(self, key: str) -> bool:
        """Is ``key`` one of them?

        Every key is compared whole: the time tells neither how much of one was right nor which.
        """
        sent = _digest(key.strip().encode())
        matches = [hmac.compare_digest(sent, digest) for digest in self._digests]
        return any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
