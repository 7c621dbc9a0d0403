"""How much a server takes on: sizes, counts, times and the queue; and what it says when that is too much."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from alexnet.errors import RecipeError

WINDOW = 0.5  # seconds over which the rate is counted
BODIES = 16  # as many of the largest bodies as may lie in memory at a time


@dataclass(frozen=True)
class Limits:
    """The numbers, each with its unit; all can be set on the command line."""

    max_megabytes: float = 20.0  # body of a request, MB; more: 413
    max_megapixels: float = 50.0  # width × height of an image, by its header, millions; at most 50
    max_images: int = 16  # in one request; more: 413
    max_queue_size: int = 64  # images that are accepted and not answered yet; more: 503 with Retry-After
    max_batch_size: int = 32  # images that go through the network at a time
    batch_timeout_ms: float = 5.0  # ms that a batch waits for images that are being decoded; 0: goes at once
    header_seconds: float = 10.0  # for a request's head to arrive; later: the connection is closed
    body_seconds: float = 30.0  # for a request's body to arrive; later: 408
    request_timeout: float = 30.0  # from the body to the answer; later: 503
    write_seconds: float = 30.0  # for a client to read what was sent; later: the connection is closed
    drain_seconds: float = 30.0  # to answer what was accepted before SIGTERM
    max_connections: int = 512  # open at a time; more: 503

    def __post_init__(self) -> None:
        from alexnet.data.decode import MAX_PIXELS  # with Pillow: not for the sake of --help

        for field in fields(self):
            value, least = (
                getattr(self, field.name),
                0.0 if field.name in ("batch_timeout_ms", "drain_seconds") else 1e-3,
            )
            if not (math.isfinite(value) and value >= (1 if field.type in ("int", int) else least)):
                raise RecipeError(f"{_option(field.name)} is {value}", "a number above 0")
        if self.max_megapixels * 1e6 > MAX_PIXELS:
            raise RecipeError(f"--max-megapixels is {self.max_megapixels:g}", f"at most {MAX_PIXELS / 1e6:g}")
        if self.max_images > self.max_queue_size:
            raise RecipeError(f"--max-images is {self.max_images}", f"at most --max-queue-size, {self.max_queue_size}")

    @property
    def body_bytes(self) -> int:
        """The largest body, bytes."""
        return int(self.max_megabytes * 1e6)

    @property
    def pixels(self) -> int:
        """The largest image, pixels."""
        return int(self.max_megapixels * 1e6)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


class RequestRejected(Exception):  # noqa: N818 - an answer, not a fault of ours
    """A request that is answered with ``status`` and a reason for people. ``retry`` seconds: when to ask again."""

    def __init__(self, status: int, reason: str, retry: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry = status, reason, retry


class AdmissionController:
    """Counts what is accepted and not answered yet, and refuses what would be too much. Used by one thread."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.images = 0  # accepted and not answered
        self.bytes = 0  # of bodies in memory
        self._rate = 10.0  # answered images a second while there is work, smoothed
        self._last, self._done = time.monotonic(), 0  # since when, and how many were answered since

    @property
    def retry(self) -> int:
        """Seconds after which there should be room again."""
        return max(1, min(60, math.ceil(self.images / self._rate)))

    def room_for(self, images: int) -> None:
        """Raise :class:`RequestRejected` (503) unless so many more images can be accepted."""
        if self.images + images > self.limits.max_queue_size:
            raise RequestRejected(503, f"busy: {self.images} images are waiting; ask again later", self.retry)

    @contextmanager
    def accepted(self, images: int) -> Iterator[None]:
        """Inside, so many images count as accepted."""
        self.room_for(images)
        if not self.images:
            self._last, self._done = time.monotonic(), 0  # idle time says nothing of the rate
        self.images += images
        try:
            yield
        finally:
            self.images -= images
            self._count(images)

    def _count(self, images: int) -> None:
        """A batch is answered all at once: the rate is that of half a second at least."""
        self._done += images
        now = time.monotonic()
        if now - self._last >= WINDOW:
            self._rate += 0.5 * (self._done / (now - self._last) - self._rate)
            self._last, self._done = now, 0

    def hold(self, size: int) -> None:
        """Count ``size`` more bytes of a body; raises :class:`RequestRejected` (503) if all bodies together are too
        many."""
        if self.bytes + size > BODIES * self.limits.body_bytes:
            raise RequestRejected(503, "busy: too many bodies are being sent; ask again later", self.retry)
        self.bytes += size
