"""The shards of a split that lies elsewhere: opened when they are used, fetched ahead where the order is known."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexnet.data.cache import touch
from alexnet.data.places import read_array
from alexnet.errors import DataError

Obtain = Callable[[str, threading.Event], Path]  # a shard's name -> the file; ends early when the event is set


_MOST_OPEN = 256  # memory maps of a split


class Fetched(Sequence[NDArray[np.uint8]]):
    """A split's shards by number, each a memory map of a file in the cache."""

    def __init__(self, address: str, names: Sequence[str], shapes: Sequence[tuple[int, ...]], obtain: Obtain) -> None:
        self._address, self.names, self._shapes, self._obtain = address, names, shapes, obtain
        self._open: dict[int, tuple[Path, NDArray[np.uint8]]] = {}
        self._lock = threading.Lock()
        self._plans: list[_Plan] = []

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:  # type: ignore[override]  # no slices
        """The shard, fetched if it is not here. Raises DataError."""
        for plan in list(self._plans):
            plan.reached(number)
        with self._lock:
            found = self._open.get(number)
        path, array = found or self._opened(number)
        touch(path)
        return array

    @contextmanager
    def expecting(self, turns: Iterable[int], ahead: int) -> Iterator[None]:
        """While it is open, the shards ``turns`` are fetched in that order, ``ahead`` beyond the one used last."""
        with ThreadPoolExecutor(max(1, ahead), thread_name_prefix="shards") as pool:
            plan = _Plan(list(turns), ahead, lambda n: pool.submit(self._obtain, self.names[n], plan.stop))
            self._plans.append(plan)
            try:
                plan.go_on()
                yield
            finally:
                self._plans.remove(plan)
                plan.end()

    def _opened(self, number: int) -> tuple[Path, NDArray[np.uint8]]:
        for _ in range(3):  # another process may put it out between fetching and opening
            path = self._fetched(number)
            try:
                array = read_array(path, np.uint8, len(self._shapes[number]), self._shown(number))
            except DataError:
                if path.exists():
                    raise
                continue
            if array.shape != self._shapes[number]:
                raise DataError(f"{self._shown(number)}: {array.shape}", str(self._shapes[number]), "prepare it again")
            with self._lock:  # maps of files that were put out would hold their room, and each has a file handle
                left = [(n, (p, a)) for n, (p, a) in self._open.items() if p.exists()]
                self._open = dict(left[-_MOST_OPEN:]) | {number: (path, array)}
            return path, array
        must = "so large that what is in use stays"
        raise DataError(
            f"{self._shown(number)}: put out of the cache again and again", must, "give a larger --cache-gb"
        )

    def _fetched(self, number: int) -> Path:
        for plan in list(self._plans):
            future = plan.futures.pop(number, None)
            if future is not None and not future.cancelled():
                return future.result()
        return self._obtain(self.names[number], threading.Event())

    def _shown(self, number: int) -> str:
        return f"{self._address}/{self.names[number]}"


class _Plan:
    """In which order shards come, and how far the fetching may be ahead of their use."""

    def __init__(self, turns: list[int], ahead: int, start: Callable[[int], Future[Path]]) -> None:
        self.turns, self.ahead, self.start = turns, ahead, start
        self.places = {number: place for place, number in enumerate(turns)}
        self.used, self.begun = -1, 0  # places
        self.futures: dict[int, Future[Path]] = {}
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def reached(self, number: int) -> None:
        """This shard is used now."""
        place = self.places.get(number, -1)
        if place > self.used:
            self.used = place
            self.go_on()

    def go_on(self) -> None:
        """Begin with all that may be fetched by now."""
        with self._lock:
            while self.begun < min(self.used + 1 + self.ahead, len(self.turns)) and not self.stop.is_set():
                number = self.turns[self.begun]
                self.futures[number] = self.start(number)
                self.begun += 1

    def end(self) -> None:
        """Fetch no more; what is being fetched ends at its next piece."""
        self.stop.set()
        for future in list(self.futures.values()):
            future.cancel()
