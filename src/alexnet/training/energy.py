"""What a training costs in energy, where the machine tells: the processor's own counters, read while it computes.

Linux shows Intel's and AMD's counters (RAPL) as files: ``/sys/class/powercap/intel-rapl:N/energy_uj``, microjoules of a
whole processor package. They start again from 0 at ``max_energy_range_uj``, after minutes to hours, so a thread adds
them up as they go. They count everything that the package does, for other programs too, and no graphics card, memory
module or power supply. Most virtual machines show none, and often only root may read them: then nothing is measured.
"""

import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

COUNTERS = Path("/sys/class/powercap")
SECONDS = 5.0  # between readings: a package of 300 W counts 2^32 µJ, the shortest range, in 14 s


class Meter:
    """Joules of all processor packages while it is open; ``joules`` is None where the machine tells nothing."""

    def __init__(self, counters: Path = COUNTERS, seconds: float = SECONDS) -> None:
        self._last: dict[Path, int] = {}
        self._range: dict[Path, int] = {}  # where each begins anew
        self._sum = 0.0
        for folder in sorted(counters.glob("*-rapl:*")):
            if folder.name.count(":") == 1 and (value := _number(folder / "energy_uj")) is not None:  # a package
                self._last[folder] = value
                self._range[folder] = _number(folder / "max_energy_range_uj") or 0
        self._done, self._seconds = threading.Event(), seconds
        self._thread = threading.Thread(target=self._watch, daemon=True) if self._last else None

    @property
    def joules(self) -> float | None:
        """Counted so far."""
        return self._sum if self._thread else None

    def __enter__(self) -> "Meter":
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._done.set()
        if self._thread:
            self._thread.join()
            self.read()

    def read(self) -> None:
        """Add what the counters have gained since they were read last."""
        for folder, last in self._last.items():
            value = _number(folder / "energy_uj")
            if value is None:
                continue
            gained = value - last if value >= last else value + self._range[folder] - last
            self._sum += max(0, gained) / 1e6
            self._last[folder] = value

    def _watch(self) -> None:
        while not self._done.wait(self._seconds):
            self.read()


def _number(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None
