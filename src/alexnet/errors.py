"""The exceptions that users can cause or meet, and the text of their messages::

    AlexNetError
    ├── ImageError        a file is not a usable image
    ├── DataError         a data set, store or split cannot be used
    ├── ModelError        a network does not exist or cannot be built
    ├── RecipeError       an option or a field of a recipe has an invalid value
    ├── BundleError       a trained classifier is damaged or does not fit
    ├── CheckpointError   a checkpoint is damaged or belongs to another run
    ├── RunError          a run directory cannot be used
    ├── TrainingError     training failed: out of memory, a lost process
    │   └── DivergedError the loss became NaN or Inf
    ├── ServerError       a server cannot start
    └── Interrupted       a signal stopped training; the run was saved and can be resumed

Every message is one line: the problem with its value, what the value must be, and a hint.
"""

import difflib
import errno
import itertools
import re
import unicodedata
from collections.abc import Collection, Mapping
from pathlib import PurePath


class AlexNetError(Exception):
    """Base class of all exceptions of this package. The message is one line.

    Args:
        what: the problem with its value, such as "--lr is 0".
        must: what the value must be, such as "above 0".
        todo: a hint: what to do about it.
    """

    def __init__(self, what: str, must: str = "", todo: str = "") -> None:
        self.what, self.must, self.todo = what, must, todo
        hint = (". " if todo[:1].isupper() else "; ") + todo if todo else ""
        super().__init__(what + (f"; must be {must}" if must else "") + hint)


class ImageError(AlexNetError):
    """A file is not a usable image."""


class DataError(AlexNetError):
    """A data set, store or split cannot be used."""


class ModelError(AlexNetError):
    """A network does not exist or cannot be built."""


class RecipeError(AlexNetError):
    """An option or a field of a recipe has an invalid value."""


class BundleError(AlexNetError):
    """A trained classifier is damaged or does not fit."""


class CheckpointError(AlexNetError):
    """A checkpoint is damaged or belongs to another run."""


class RunError(AlexNetError):
    """A run directory cannot be used."""


class TrainingError(AlexNetError):
    """Training failed: out of memory, a lost process, a non-finite loss."""


class DivergedError(TrainingError):
    """The loss of a training became NaN or Inf, and stayed so."""


class ServerError(AlexNetError):
    """A server cannot start."""


class Interrupted(AlexNetError):  # noqa: N818 - a request, not an error
    """A signal stopped training; the run was saved and can be resumed. ``signal`` is the signal's number."""

    def __init__(self, signal: int, what: str, todo: str) -> None:
        self.signal = signal
        super().__init__(what, "", todo)


def no_memory(error: BaseException) -> str:
    """The size of a failed memory allocation, such as "3.2 GB of memory"; empty for every other error.

    Python raises MemoryError; PyTorch raises RuntimeError on a CPU and a subclass of it on a GPU.
    """
    text = str(error)
    if isinstance(error, MemoryError):
        match = re.search(r"Unable to allocate ([\d.]+ \w+)", text)  # NumPy's
        return f"{match[1]} of memory" if match else "memory"
    if not isinstance(error, RuntimeError) or not re.search(r"out of memory|allocate memory", text):
        return ""
    match = re.search(r"[Tt]ried to allocate ([\d.]+) ?(bytes|\w+)", text)
    if match is None:
        return "memory"
    return f"{float(match[1]) / 1e6:,.0f} MB of memory" if match[2] == "bytes" else f"{match[1]} {match[2]} of memory"


def reason(error: BaseException) -> str:
    """The message of ``error`` in one line, without numbers of errors and paths of folders.

    That of the limit on open files if that limit caused it.
    """
    if no_files(error):
        return "too many open files. Raise the limit: ulimit -n 4096"
    if isinstance(error, OSError) and error.strerror:
        file = f" ({printable(PurePath(error.filename).name)})" if isinstance(error.filename, str) else ""
        return error.strerror + file
    return str(error) if isinstance(error, AlexNetError) else " ".join(str(error).split())


def no_files(error: BaseException | None) -> bool:
    """Whether ``error`` or one of its causes is the limit on open files. Such a file is not damaged."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        if "Too many open files" in str(error):  # exceptions of other libraries
            return True
        error = error.__cause__ or error.__context__
    return False


def did_you_mean(
    name: str, known: Collection[str], cutoff: float = 0.6, synonyms: Mapping[str, str] | None = None
) -> str:
    """The hint for an unknown name: the most similar of the ``known`` names, or the first 24 if none is similar.

    ``synonyms`` maps other names to known ones, such as ``learning_rate`` to ``lr``.
    """
    names = {name: name for name in known} | dict(synonyms or {})
    close = difflib.get_close_matches(name, names, 1, cutoff)
    if close:
        return f"Did you mean {names[close[0]]!r}?"
    others = f" and {len(known) - 24:,} others" if len(known) > 24 else ""
    return f"Choose from {', '.join(itertools.islice(known, 24))}{others}"


def counted(count: int, noun: str, several: str = "") -> str:
    """``1 image``, ``2,000 images``."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def printable(text: str) -> str:
    """``text`` on one line, with control characters and text-direction marks escaped as ``\\x1b`` or ``\\u202e``."""
    return text if text.isprintable() else "".join(map(_printable_character, text))


def _printable_character(c: str) -> str:
    if c.isprintable() or unicodedata.category(c) == "Zs":  # other spaces are harmless
        return c
    return c.encode("ascii", "backslashreplace").decode() if ord(c) > 127 else f"\\x{ord(c):02x}"
