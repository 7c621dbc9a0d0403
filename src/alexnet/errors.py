"""Every error that a person can cause or meet, in one tree::

    AlexNetError
    ├── ImageError      a file that is not a usable image
    ├── DataError         a data set, store or split that can not be used
    ├── ModelError        a network that does not exist or can not be built so
    ├── RecipeError       a number of a run that can not be
    ├── BundleError       a trained classifier that is damaged or does not fit
    ├── CheckpointError   a checkpoint that is damaged or belongs to another run
    ├── RunError          a run folder that can not be used
    ├── TrainingError     training that went wrong: not a number, out of memory
    ├── ServerError       a server that can not start
    └── Interrupted       a signal asked training to stop; the run was saved and can go on

One grammar for all: what and its value, what it must be, what to do.
"""

import difflib
import errno
import re
import unicodedata
from collections.abc import Collection, Mapping


class AlexNetError(Exception):
    """Base of all errors of this package. The message is one line meant for a person.

    ``what`` says what is wrong and its value, ``must`` what it must be, ``todo`` what to do about it.
    """

    def __init__(self, what: str, must: str = "", todo: str = "") -> None:
        self.what, self.must, self.todo = what, must, todo
        super().__init__(what + (f"; must be {must}" if must else "") + (f"; {todo}" if todo else ""))


class ImageError(AlexNetError):
    """A file that is not a usable image."""


class DataError(AlexNetError):
    """A data set, store or split that can not be used."""


class ModelError(AlexNetError):
    """A network that does not exist or can not be built so."""


class RecipeError(AlexNetError):
    """A number of a run that can not be."""


class BundleError(AlexNetError):
    """A trained classifier that is damaged or does not fit."""


class CheckpointError(AlexNetError):
    """A checkpoint that is damaged or belongs to another run."""


class RunError(AlexNetError):
    """A run folder that can not be used."""


class TrainingError(AlexNetError):
    """Training that went wrong: not a number, out of memory."""


class ServerError(AlexNetError):
    """A server that can not start."""


class Interrupted(AlexNetError):  # noqa: N818 - it is a request, not an error
    """A signal asked training to stop; the run was saved and can go on. ``signal`` is its number."""

    def __init__(self, signal: int, what: str, todo: str) -> None:
        self.signal = signal
        super().__init__(what, "", todo)


def no_memory(error: BaseException) -> str:
    """What could not be had, if memory is what was missing: "3.2 GB of memory"; else nothing.

    Python raises MemoryError, PyTorch a RuntimeError (of a processor) or one of its kinds (of a GPU).
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
    """One line for a person: the message of ``error``, or the limit on open files if that caused it."""
    return "too many open files. Raise the limit: ulimit -n 4096" if no_files(error) else str(error)


def no_files(error: BaseException | None) -> bool:
    """Did ``error``, or what caused it, come from the limit on open files? A file that fails so is not damaged."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        if "Too many open files" in str(error):  # libraries that raise errors of their own
            return True
        error = error.__cause__ or error.__context__
    return False


def did_you_mean(
    word: str, known: Collection[str], cutoff: float = 0.6, synonyms: Mapping[str, str] | None = None
) -> str:
    """The second sentence of a message about an unknown name: the most similar known one, or all of them.

    ``synonyms`` maps other words for known names to these names.
    """
    names = {name: name for name in known} | dict(synonyms or {})
    close = difflib.get_close_matches(word, names, 1, cutoff)
    return f"Did you mean {names[close[0]]!r}?" if close else f"Choose from {', '.join(known)}"


def counted(count: int, noun: str, several: str = "") -> str:
    """``1 image``, ``2,000 images``."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def printable(text: str) -> str:
    """``text`` fit for one line of a message: what a terminal would obey becomes ``\\x1b`` or ``\\u202e``."""
    return text if text.isprintable() else "".join(map(_printable_character, text))


def _printable_character(c: str) -> str:
    if c.isprintable() or unicodedata.category(c) == "Zs":  # other spaces are harmless
        return c
    return c.encode("ascii", "backslashreplace").decode() if ord(c) > 127 else f"\\x{ord(c):02x}"
