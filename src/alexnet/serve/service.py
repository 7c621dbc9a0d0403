"""Who may ask: API keys from a file or the environment, compared in constant time.

What Prometheus may ask for at ``/metrics``. With several processes, sums over all of them.

Dynamic batching: images of many requests decoded beside each other, through the network together.

The server's state: which engine answers, whether it is ready, what is accepted; and how a new bundle takes over.
"""

import asyncio
import hashlib
import hmac
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from alexnet.errors import AlexNetError, ImageError, ServerError, reason
from alexnet.serve import logs
from alexnet.serve.engine import Engine, Found, Prepared, Want, in_thread
from alexnet.serve.limits import AdmissionController, Limits, RequestRejected
from alexnet.serve.requests import Upload

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


_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters and histograms of one process.

    ``shared``: several processes count together, in the folder that the environment's PROMETHEUS_MULTIPROC_DIR names;
    it must be set before prometheus_client is imported, which reads it then.
    """

    def __init__(self, shared: bool = False) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        from prometheus_client.platform_collector import PlatformCollector
        from prometheus_client.process_collector import ProcessCollector

        self.shared, self.registry = shared, CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("alexnet_requests", "Requests answered.", ["route", "status"], **own)
        self.seconds = Histogram("alexnet_request_seconds", "From head to answer.", ["route"], buckets=_SECONDS, **own)
        self.images = Counter("alexnet_images", "Images by what became of them.", ["outcome"], **own)
        self.batches = Histogram("alexnet_batch_images", "Images a batch.", buckets=_SIZES, **own)
        self.network_seconds = Histogram("alexnet_network_seconds", "One batch's time.", buckets=_SECONDS, **own)
        self.reloads = Counter("alexnet_reloads", "New bundles, taken or refused.", ["outcome"], **own)
        self.waiting = Gauge("alexnet_waiting", "Images accepted, not answered.", multiprocess_mode="livesum", **own)
        self.ready = Gauge("alexnet_ready", "Processes that answer.", multiprocess_mode="livesum", **own)
        for outcome in ("answered", "refused", "lost"):
            self.images.labels(outcome)  # 0 is an answer too
        if not shared:  # of this process: memory, file handles, processor time
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)

    def text(self) -> tuple[bytes, str]:
        """The page for Prometheus, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        registry = self.registry
        if self.shared:
            from prometheus_client.multiprocess import MultiProcessCollector

            registry = CollectorRegistry()
            collect: Callable[[Any], Any] = MultiProcessCollector
            collect(registry)
        return generate_latest(registry), CONTENT_TYPE_LATEST


class _Item(NamedTuple):
    image: Prepared
    want: Want
    future: "asyncio.Future[Found]"


class Batcher:
    """Feeds one engine from one thread. :meth:`answer` is called in the event loop, by as many as like.

    A batch is what waits when the network is free, at most ``limits.max_batch_size`` images. While other accepted
    images are still being decoded it waits for them, ``limits.batch_timeout_ms`` ms at most: a lone request waits for
    nothing.
    How many wait is bounded by who calls (:class:`alexnet.serve.limits.AdmissionController`).
    """

    def __init__(self, engine: Engine, limits: Limits, decoders: ThreadPoolExecutor, metrics: Metrics) -> None:
        self.engine, self.limits, self.decoders, self.metrics = engine, limits, decoders, metrics
        self._ready: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._coming = 0  # images that are being decoded
        self._inside = 0  # images from the first to the last line of :meth:`answer`
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)
        self._thread.start()

    async def response(self, data: bytes, name: str, want: Want) -> Found:
        """What is found of one image. Raises :class:`ImageError`."""
        self._inside += 1
        try:
            image = await self._prepared(data, name)
            future: asyncio.Future[Found] = self._loop.create_future()
            self._ready.put(_Item(image, want, future))
            return await future
        finally:
            self._inside -= 1

    async def _prepared(self, data: bytes, name: str) -> Prepared:
        self._coming += 1
        try:
            return await self._loop.run_in_executor(self.decoders, self.engine.prepare, data, name)
        finally:
            self._coming -= 1

    async def idle(self) -> None:
        """Wait until nobody waits for an answer."""
        while self._inside:
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Answer what was put in, then end the thread."""
        self._ready.put(None)
        await in_thread("join", self._thread.join)

    def _work(self) -> None:
        while (first := self._ready.get()) is not None:
            batch, last = self._gather(first)
            batch = [item for item in batch if not item.future.cancelled()]  # whose client went away
            if batch:
                self._run(batch)
            if last:
                return

    def _gather(self, first: _Item) -> tuple[list[_Item], bool]:
        """A batch that begins with ``first``, and whether it is the last one."""
        batch, until = [first], time.monotonic() + self.limits.batch_timeout_ms / 1000
        while len(batch) < self.limits.max_batch_size:
            left = until - time.monotonic() if self._coming else 0.0
            try:
                item = self._ready.get(timeout=left) if left > 0 else self._ready.get_nowait()
            except queue.Empty:
                break
            if item is None:
                return batch, True
            batch.append(item)
        return batch, False

    def _run(self, batch: list[_Item]) -> None:
        started = time.monotonic()
        try:
            result: list[Any] = list(self.engine.response([i.image for i in batch], [i.want for i in batch]))
        except Exception as error:  # whatever it is, these requests end and the next batch gets its turn
            logs.event("batch failed", logging.ERROR, trace=True, images=len(batch))
            result = [error] * len(batch)
        self.metrics.batches.observe(len(batch))
        self.metrics.network_seconds.observe(time.monotonic() - started)
        try:
            self._loop.call_soon_threadsafe(_hand_out, batch, result)
        except RuntimeError:  # the loop has ended, nobody waits
            return


def _hand_out(batch: list[_Item], results: list[Any]) -> None:
    for item, result in zip(batch, results, strict=True):
        if item.future.done():
            continue
        if isinstance(result, Exception):
            item.future.set_exception(result)
        else:
            item.future.set_result(result)


MOST_DECODERS = 8  # threads; a large image takes hundreds of megabytes while it is decoded
T = TypeVar("T")
State = Literal["loading", "ready", "draining"]


@dataclass(frozen=True)
class Settings:
    """All that a server is told when it starts; can be handed to another process."""

    path: Path  # a run, a bundle, FILE.onnx or FILE.xml
    limits: Limits = field(default_factory=Limits)
    device: str = "cpu"
    threads: int = 0  # of the network; 0: PyTorch's own choice
    top: int = 5  # predictions, where a request does not say
    confidence_threshold: float | None = None  # probability under which the first prediction is not believed
    images: bool = False  # are images of the data set given out: reference images, neighbors?
    hosts: tuple[str, ...] | None = ()  # in the Host header, besides those of this machine; None: any
    origins: tuple[str, ...] = ()  # of other sites whose pages may send requests; "*": all
    keys: tuple[str, ...] = ()
    key_file: Path | None = None  # read again at a reload
    reload_interval: float = 0.0  # seconds between checks for a changed bundle; 0: never
    drain_delay: float = 0.0  # seconds between "not ready" and the end of listening
    workers: int = 1
    shared_metrics: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"  # of a bundle's answers


class Service:
    """One process's part. Made in its event loop; :meth:`open` before the first answer."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.limits = settings, settings.limits
        self.gate, self.metrics = AdmissionController(settings.limits), Metrics(settings.shared_metrics)
        self.keys = Keys(settings.keys)
        self.state: State = "loading"
        self.decoders = ThreadPoolExecutor(min(MOST_DECODERS, max(2, os.cpu_count() or 1)), "decode")
        self._batcher: Batcher | None = None
        self._reloading = asyncio.Lock()
        self._background: set[asyncio.Task[Any]] = set()

    @property
    def engine(self) -> Engine:
        """What answers now; raises :class:`RequestRejected` (503) before there is one."""
        return self._ready().engine

    def _ready(self) -> Batcher:
        if self._batcher is None:
            raise RequestRejected(503, "loading: the classifier is being opened and verified", 2)
        return self._batcher

    async def open(self) -> None:
        """Open and verify the classifier, then be ready. Raises :class:`BundleError`."""
        if self.settings.threads:
            import torch

            torch.set_num_threads(self.settings.threads)
        await self._take(await self._open())
        if self.state == "loading":
            self.state = "ready"
        self.metrics.ready.set(1)
        self._said("ready")

    async def _open(self) -> Engine:
        """The thread is not given up when this is cancelled: compilers that it started have folders to remove."""
        return await asyncio.shield(self._in_background(in_thread("open", self._opened)))

    def _in_background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _opened(self) -> Engine:
        return Engine.open(self.settings.path, self.settings.device, self.limits.pixels, self.settings.precision)

    async def _take(self, engine: Engine) -> None:
        old, self._batcher = self._batcher, Batcher(engine, self.limits, self.decoders, self.metrics)
        if old is not None:  # what it has in hand it answers; new requests go to the new one
            self._in_background(self._retire(old))

    async def _retire(self, batcher: Batcher) -> None:
        await batcher.idle()
        await batcher.close()

    def _said(self, event: str) -> None:
        engine = self.engine
        if engine.max_abs_diff is None:
            logs.event("no reference images: only SHA-256 was checked", logging.WARNING, path=str(engine.path))
        if engine.explain is not None and engine.explain.refused:
            logs.event("no neighbors", logging.WARNING, reason=engine.explain.refused)
        logs.event(
            event,
            network=engine.name,
            classes=len(engine.classes),
            sha256=engine.sha256,
            max_abs_diff=engine.max_abs_diff,
            keys=bool(self.keys),
        )

    async def reload(self, read_keys: Callable[[], Sequence[str]]) -> bool:
        """Open what is on the disk now, verify it, and let it answer from the next request on.

        While it is opened the old one answers; it stays where the new one is damaged, and where a key is unusable.
        """
        async with self._reloading:
            try:
                keys = Keys(await in_thread("keys", read_keys))
                await self._take(await self._open())
            except AlexNetError as error:
                self.metrics.reloads.labels("refused").inc()
                logs.event("reload refused", logging.ERROR, reason=reason(error))
                return False
            self.keys = keys
            self.metrics.reloads.labels("taken").inc()
            self._said("reloaded")
            return True

    async def response(self, images: Sequence[Upload], want: Want) -> tuple[Engine, list[Found | ImageError]]:
        """What is found of each image, or why it can not be used, and by which engine.

        All of one request are answered by the same. Raises :class:`RequestRejected` where there is no room for them.
        """
        batcher = self._ready()
        with self.gate.accepted(len(images)):
            self.metrics.waiting.inc(len(images))
            try:
                result = await asyncio.gather(*(self._one(batcher, image, want) for image in images))
            finally:
                self.metrics.waiting.dec(len(images))
        return batcher.engine, result

    async def _one(self, batcher: Batcher, image: Upload, want: Want) -> Found | ImageError:
        outcome = "lost"
        try:
            result = await batcher.response(image.data, image.name, want)
            if want.neighbors:
                loop = asyncio.get_running_loop()
                result = await loop.run_in_executor(self.decoders, batcher.engine.neighbors, result, want.neighbors)
            outcome = "answered"
            return result
        except ImageError as error:
            outcome = "refused"
            return error
        finally:
            self.metrics.images.labels(outcome).inc()

    def drain(self) -> None:
        """From now on not ready; what comes is still answered."""
        self.state = "draining"
        self.metrics.ready.set(0)
        logs.event("draining", waiting=self.gate.images)

    async def close(self) -> None:
        """End the threads, after the last answer. It may be cancelled: then threads still work."""
        if self._batcher is not None:
            await self._batcher.close()
        await asyncio.gather(*self._background, return_exceptions=True)
        await in_thread("shutdown", self.decoders.shutdown)
