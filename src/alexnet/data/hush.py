"""A decoder's warnings, kept to the thread that decodes: nothing is printed, all are collected."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast


class _Ours:
    """Stands in a warning filter where a pattern would: matches on threads that are decoding, and keeps the text."""

    pattern = "(?!)"  # for scikit-learn, which hands filters on as text: matches nothing

    def __init__(self) -> None:
        self.thread = threading.local()

    def match(self, text: str) -> bool:
        kept: list[str] | None = getattr(self.thread, "kept", None)
        if kept is not None:
            kept.append(text)
        return kept is not None


_ours = _Ours()
_FILTER = ("ignore", _ours, Warning, None, 0)


@contextmanager
def quiet() -> Iterator[list[str]]:
    """No warning of this thread leaves; they are collected. ``warnings.catch_warnings`` swaps a global list, which
    loses filters when several threads do it (before Python 3.14), so one filter stays that knows its threads."""
    filters = cast("list[Any]", warnings.filters)
    if not filters or filters[0] is not _FILTER:
        filters[:] = [_FILTER, *(entry for entry in filters if entry is not _FILTER)]
    kept: list[str] = []
    _ours.thread.kept = kept
    try:
        yield kept
    finally:
        _ours.thread.kept = None
