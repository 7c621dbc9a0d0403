"""Limits of the server (sizes, counts, times), and the admission control that enforces them."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from alexnet.errors import RecipeError

RATE_WINDOW = 0.5  # seconds over which the throughput is measured
MAX_BODIES = 16  # so many bodies of the largest size fit into memory at a time


@dataclass(frozen=True)
class Limits:
    """Limits of a server; each is an option of ``alexnet serve``."""

    max_megabytes: float = 20.0  # body of a request, MB; more: 413
    max_megapixels: float = 50.0  # width × height of an image, by its header, millions; at most 50
    max_images: int = 16  # images in one request; more: 413
    max_queue_size: int = 64  # images accepted and not finished; more: 503 with Retry-After
    max_batch_size: int = 32  # images in one forward pass
    batch_timeout_ms: float = 5.0  # ms that a batch waits for images that are being decoded; 0: no wait
    header_seconds: float = 10.0  # seconds for the header of a request to arrive; later: 408
    body_seconds: float = 30.0  # seconds for the body of a request to arrive; later: 408
    request_timeout: float = 30.0  # seconds from the body to the response; later: 503
    write_seconds: float = 30.0  # seconds for a client to read a response; later: the connection is closed
    drain_seconds: float = 30.0  # seconds to finish accepted requests after SIGTERM
    max_connections: int = 512  # open connections; more: 503

    def __post_init__(self) -> None:
        from alexnet.data.decode import MAX_PIXELS  # imports Pillow, which --help does not need

        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in ("int", int):
                minimum = 1.0
            else:
                minimum = 0.0 if field.name in ("batch_timeout_ms", "drain_seconds") else 1e-3
            if not (math.isfinite(value) and value >= minimum):
                raise RecipeError(f"--{field.name.replace('_', '-')} is {value}", "a number above 0")
        if self.max_megapixels * 1e6 > MAX_PIXELS:
            raise RecipeError(f"--max-megapixels is {self.max_megapixels:g}", f"at most {MAX_PIXELS / 1e6:g}")
        if self.max_images > self.max_queue_size:
            raise RecipeError(f"--max-images is {self.max_images}", f"at most --max-queue-size, {self.max_queue_size}")

    @property
    def body_bytes(self) -> int:
        """The largest body of a request, bytes."""
        return int(self.max_megabytes * 1e6)

    @property
    def pixels(self) -> int:
        """The largest image, pixels."""
        return int(self.max_megapixels * 1e6)


class RequestRejected(Exception):  # noqa: N818 - an expected response, not a failure of the server
    """The request gets an error response.

    Args:
        status: HTTP status.
        reason: One line for the client.
        retry_after: Seconds after which the client may try again.
    """

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after


class AdmissionController:
    """Counts images in progress and bytes of bodies in memory, and rejects more than the limits allow.

    Not thread-safe: it is used from the event loop only.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.images = 0  # accepted and not finished
        self.bytes = 0  # of bodies in memory
        self._rate = 10.0  # finished images per second under load, smoothed
        self._window_start, self._finished = time.monotonic(), 0

    @property
    def retry_after(self) -> int:
        """Estimated seconds until the queue is empty, 1 to 60."""
        return max(1, min(60, math.ceil(self.images / self._rate)))

    def check_capacity(self, images: int) -> None:
        """Raise :class:`RequestRejected` (503) unless the queue has room for ``images`` more."""
        if self.images + images > self.limits.max_queue_size:
            raise RequestRejected(503, f"busy: {self.images} images are waiting; try again later", self.retry_after)

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Count ``images`` as in progress inside the block. Raises :class:`RequestRejected` (503)."""
        self.check_capacity(images)
        if not self.images:
            self._window_start, self._finished = time.monotonic(), 0  # idle time does not count
        self.images += images
        try:
            yield
        finally:
            self.images -= images
            self._update_rate(images)

    def _update_rate(self, images: int) -> None:
        """Batches finish all at once, so the rate is measured over half a second at least."""
        self._finished += images
        now = time.monotonic()
        if now - self._window_start >= RATE_WINDOW:
            self._rate += 0.5 * (self._finished / (now - self._window_start) - self._rate)
            self._window_start, self._finished = now, 0

    def reserve(self, size: int) -> None:
        """Count ``size`` more bytes of a body. Raises :class:`RequestRejected` (503) over the limit of all bodies."""
        if self.bytes + size > MAX_BODIES * self.limits.body_bytes:
            raise RequestRejected(503, "busy: too many bodies are being sent; try again later", self.retry_after)
        self.bytes += size
