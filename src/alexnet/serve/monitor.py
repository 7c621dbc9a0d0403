"""Counts of what a server predicts, by day, written to a folder: no image and no name (``serve --monitor FOLDER``)."""

import logging
import secrets
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from alexnet.data.atomic_io import write_file
from alexnet.errors import ImageError, ServerError
from alexnet.evaluation.drift import DayCounts
from alexnet.serve import logs
from alexnet.serve.engine import Engine, ImageResult

FLUSH_SECONDS = 10.0  # between two writes of the counts


class Monitor:
    """The counts of one process. :meth:`add` is called from the event loop, :meth:`flush` from any thread.

    Each process and each start writes files of its own, ``DATE.MODEL.TOKEN.json``; readers add them up.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServerError(f"--monitor {folder}: {error.strerror}", "a folder that can be written") from error
        self.folder, self._token = folder, secrets.token_hex(4)
        self._lock = threading.Lock()
        self._days: dict[tuple[str, str], DayCounts] = {}
        self._changed: set[tuple[str, str]] = set()

    def add(self, engine: Engine, results: Sequence[ImageResult | ImageError], threshold: float | None) -> bool:
        """Count the results of one request.

        Args:
            engine: What predicted them.
            results: The results.
            threshold: The confidence threshold of the request.

        Returns:
            Are these the first counts since the last write? Then :meth:`flush` must be called in FLUSH_SECONDS.
        """
        key = datetime.now(UTC).strftime("%Y-%m-%d"), engine.sha256
        with self._lock:
            if key not in self._days:
                self._days[key] = DayCounts(*key, list(engine.classes), [0] * len(engine.classes))
            counts, is_first = self._days[key], not self._changed
            self._changed.add(key)
            for result in results:
                if isinstance(result, ImageError):
                    counts.failed += 1
                    continue
                label = int(result.probabilities.argmax())
                score = float(result.probabilities[label])
                abstained = threshold is not None and score < threshold
                counts.add(label, score, result.brightness, result.pixels, abstained, result.distance)
        return is_first

    def flush(self) -> None:
        """Write what has changed. A full disk is logged; the counts stay, and are written later."""
        with self._lock:
            changed = {key: self._days[key].to_json() for key in self._changed}
            self._changed.clear()
            last = max(self._days, default=None)
            for key in [key for key in self._days if last is not None and key[0] < last[0]]:
                del self._days[key]  # an earlier day: its last counts are written now
        for (date, sha256), data in changed.items():
            try:
                write_file(self.folder / f"{date}.{sha256[:12]}.{self._token}.json", data)
            except OSError as error:
                logs.event("monitor cannot be written", logging.ERROR, reason=f"{self.folder}: {error.strerror}")
                with self._lock:
                    self._changed |= {(date, sha256)} & set(self._days)
