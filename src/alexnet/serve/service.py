"""The service behind the routes: its settings, API keys, metrics, dynamic batching, and the swap to a new bundle."""

import asyncio
import contextlib
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
from alexnet.evaluation.drift import BRIGHTNESS, CONFIDENCE, DISTANCE, PIXELS
from alexnet.serve import logs
from alexnet.serve.engine import Engine, ImageResult, PreparedImage, RequestOptions
from alexnet.serve.limits import AdmissionController, Limits, RequestRejected
from alexnet.serve.monitor import FLUSH_SECONDS, Monitor
from alexnet.serve.schemas import Upload

T = TypeVar("T")
State = Literal["loading", "ready", "draining"]

MIN_KEY_LENGTH = 16  # characters; 16 hexadecimal digits are 64 bits
MAX_DECODERS = 8  # threads; a large image takes hundreds of megabytes while it is decoded
_KEY_HINT = "make one: openssl rand -hex 32"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Settings:
    """Settings of a server; can be pickled for another process."""

    path: Path  # a run, a bundle, FILE.onnx or FILE.xml
    limits: Limits = field(default_factory=Limits)
    device: str = "cpu"
    threads: int = 0  # of the network; 0: PyTorch's default
    top: int = 5  # entries of top_k, unless a request says otherwise
    confidence_threshold: float | None = None  # abstain if the first score is lower
    share_images: bool = False  # give out images of the data set: reference samples, neighbors
    hosts: tuple[str, ...] | None = ()  # in the Host header, besides those of this machine; None: any
    origins: tuple[str, ...] = ()  # of other sites whose pages may send requests; "*": all
    keys: tuple[str, ...] = ()
    key_file: Path | None = None  # read again at a reload
    reload_interval: float = 0.0  # seconds between checks for a changed bundle; 0: none
    drain_delay: float = 0.0  # seconds between "not ready" and the end of listening
    workers: int = 1
    shared_metrics: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"  # of a bundle
    monitor: Path | None = None  # folder of daily counts


# API keys


def read_keys(file: Path | None, environment: str = "") -> tuple[str, ...]:
    """API keys from a file or the environment.

    Args:
        file: One key per line; lines that begin with # are comments.
        environment: The key to use where no file is given.

    Returns:
        The keys; empty if the server requires none.

    Raises:
        ServerError: The file cannot be read, or a key is too short. The message shows no key.
    """
    if file is None:
        return _checked([environment.strip()], "ALEXNET_API_KEY") if environment.strip() else ()
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"--key-file {file} cannot be read", "a text file, one key a line", _KEY_HINT) from error
    return _checked([line for line in lines if line and not line.startswith("#")], f"--key-file {file}")


def _checked(keys: Sequence[str], source: str) -> tuple[str, ...]:
    if not keys:
        raise ServerError(f"{source} holds no key", "one a line", _KEY_HINT)
    for number, key in enumerate(keys, 1):
        if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
            raise ServerError(
                f"{source}: key {number} has {len(key)} characters",
                f"{MIN_KEY_LENGTH} or more ASCII, without spaces",
                _KEY_HINT,
            )
    return tuple(keys)


class ApiKeys:
    """The valid API keys; an empty collection means that no key is required."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def verify(self, key: str) -> bool:
        """Is ``key`` valid? The time of the comparison is the same for every key."""
        digest = _digest(key.strip().encode())
        matches = [hmac.compare_digest(digest, valid) for valid in self._digests]
        return any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class Metrics:
    """Prometheus metrics of one process.

    Args:
        shared: Several processes count together, in the folder that PROMETHEUS_MULTIPROC_DIR names. The variable must
            be set before prometheus_client is imported.
    """

    def __init__(self, shared: bool = False) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        from prometheus_client.platform_collector import PlatformCollector
        from prometheus_client.process_collector import ProcessCollector

        self.shared, self.registry = shared, CollectorRegistry()
        kwargs: dict[str, Any] = {"registry": self.registry}
        live: dict[str, Any] = {"multiprocess_mode": "livesum", **kwargs}
        seconds: dict[str, Any] = {"buckets": _SECONDS, **kwargs}
        self.requests = Counter("alexnet_requests", "Responses sent.", ["route", "status"], **kwargs)
        self.seconds = Histogram("alexnet_request_seconds", "Time from header to response.", ["route"], **seconds)
        self.images = Counter("alexnet_images", "Images by outcome.", ["outcome"], **kwargs)
        self.batches = Histogram("alexnet_batch_images", "Images in a batch.", buckets=_SIZES, **kwargs)
        self.network_seconds = Histogram("alexnet_network_seconds", "Time of a batch.", **seconds)
        self.reloads = Counter("alexnet_reloads", "Reloads of the bundle by outcome.", ["outcome"], **kwargs)
        self.confidence = Histogram(
            "alexnet_confidence", "Probability of the top-1 prediction.", buckets=CONFIDENCE, **kwargs
        )
        self.brightness = Histogram(
            "alexnet_brightness", "Mean gray level of an image, 0 to 255.", buckets=BRIGHTNESS, **kwargs
        )
        self.pixels = Histogram(
            "alexnet_pixels", "Height × width of an image as it was sent.", buckets=PIXELS, **kwargs
        )
        self.distance = Histogram(
            "alexnet_feature_distance",
            "Fraction of the validation images whose features are nearer to the training images.",
            buckets=DISTANCE,
            **kwargs,
        )
        self.predicted = Counter("alexnet_predicted", "Top-1 predictions, with --monitor.", ["label"], **kwargs)
        self.abstained = Counter("alexnet_abstained", "Predictions below the confidence threshold.", **kwargs)
        self.waiting = Gauge("alexnet_waiting", "Images accepted and not finished.", **live)
        self.ready = Gauge("alexnet_ready", "Processes that are ready.", **live)
        for outcome in ("answered", "refused", "lost"):
            self.images.labels(outcome)  # exported as 0 from the start
        if not shared:  # memory, file handles and CPU time of this process
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


# Batching


async def in_thread(name: str, function: Callable[..., T], *args: object) -> T:
    """The result of ``function(*args)``, called in a new daemon thread.

    An executor's threads are joined when the loop closes and when Python ends, so a hung disk would keep the process
    alive. A thread that has ended also releases its team of OpenMP threads: with more threads than cores, GCC's would
    slow down every later operation.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if future.done():  # cancelled
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, failure = None, None
        try:
            result = function(*args)
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, result, failure)

    threading.Thread(target=work, name=name, daemon=True).start()
    return await future


class _Item(NamedTuple):
    image: PreparedImage
    options: RequestOptions
    future: "asyncio.Future[ImageResult]"


class Batcher:
    """Dynamic batching: runs one engine in one thread. :meth:`predict` is called from the event loop.

    When the network is free, the waiting images form a batch of at most ``limits.max_batch_size``. The batch waits up
    to ``limits.batch_timeout_ms`` while other accepted images are being decoded, so a single request does not wait.
    :class:`alexnet.serve.limits.AdmissionController` bounds how many images wait.
    """

    def __init__(self, engine: Engine, limits: Limits, decoders: ThreadPoolExecutor, metrics: Metrics) -> None:
        self.engine, self.limits, self.decoders, self.metrics = engine, limits, decoders, metrics
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._decoding = 0  # images
        self._pending = 0  # calls of predict that have not returned
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)
        self._thread.start()

    async def predict(self, data: bytes, name: str, options: RequestOptions) -> ImageResult:
        """The result for one encoded image. Raises :class:`ImageError`."""
        self._pending += 1
        try:
            image = await self._decode(data, name)
            future: asyncio.Future[ImageResult] = self._loop.create_future()
            self._queue.put(_Item(image, options, future))
            return await future
        finally:
            self._pending -= 1

    async def _decode(self, data: bytes, name: str) -> PreparedImage:
        self._decoding += 1
        try:
            return await self._loop.run_in_executor(self.decoders, self.engine.prepare, data, name)
        finally:
            self._decoding -= 1

    async def idle(self) -> None:
        """Wait until no image is pending."""
        while self._pending:
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Finish the queued images, then end the thread."""
        self._queue.put(None)
        await in_thread("join", self._thread.join)

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, is_last = self._collect(first)
            batch = [item for item in batch if not item.future.cancelled()]  # cancelled: the client disconnected
            if batch:
                self._run(batch)
            if is_last:
                return

    def _collect(self, first: _Item) -> tuple[list[_Item], bool]:
        """The batch that begins with ``first``, and whether the batcher is closed after it."""
        batch, deadline = [first], time.monotonic() + self.limits.batch_timeout_ms / 1000
        while len(batch) < self.limits.max_batch_size:
            remaining = deadline - time.monotonic() if self._decoding else 0.0
            try:
                item = self._queue.get(timeout=remaining) if remaining > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                return batch, True
            batch.append(item)
        return batch, False

    def _run(self, batch: list[_Item]) -> None:
        started = time.monotonic()
        try:
            images, options = [item.image for item in batch], [item.options for item in batch]
            results: list[Any] = list(self.engine.predict(images, options))
        except Exception as error:  # these requests fail; the next batch runs
            logs.event("batch failed", logging.ERROR, trace=True, images=len(batch))
            results = [error] * len(batch)
        self.metrics.batches.observe(len(batch))
        self.metrics.network_seconds.observe(time.monotonic() - started)
        try:
            self._loop.call_soon_threadsafe(_set_results, batch, results)
        except RuntimeError:  # the loop has ended
            return


def _set_results(batch: list[_Item], results: list[Any]) -> None:
    for item, result in zip(batch, results, strict=True):
        if item.future.done():
            continue
        if isinstance(result, Exception):
            item.future.set_exception(result)
        else:
            item.future.set_result(result)


class Service:
    """The service of one process. It is created in the event loop; :meth:`open` loads the classifier."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.limits = settings, settings.limits
        self.admission, self.metrics = AdmissionController(settings.limits), Metrics(settings.shared_metrics)
        self.keys = ApiKeys(settings.keys)
        self.monitor = None if settings.monitor is None else Monitor(settings.monitor)
        self.state: State = "loading"
        self.decoders = ThreadPoolExecutor(min(MAX_DECODERS, max(2, os.cpu_count() or 1)), "decode")
        self._batcher: Batcher | None = None
        self._reloading = asyncio.Lock()
        self._background: set[asyncio.Task[Any]] = set()

    @property
    def engine(self) -> Engine:
        """The current engine. Raises :class:`RequestRejected` (503) while there is none."""
        return self._current_batcher().engine

    def _current_batcher(self) -> Batcher:
        if self._batcher is None:
            raise RequestRejected(503, "loading: the classifier is being opened and verified", 2)
        return self._batcher

    @property
    def capabilities(self) -> list[str]:
        """What requests may ask for besides predictions."""
        return [name for name in self.engine.capabilities if name != "neighbors" or self.settings.share_images]

    async def open(self) -> None:
        """Open and verify the classifier, then be ready. Raises :class:`BundleError`."""
        if self.settings.threads:
            import torch

            torch.set_num_threads(self.settings.threads)
        self._use(await self._open())
        if self.state == "loading":
            self.state = "ready"
        self.metrics.ready.set(1)
        self._log_engine("ready")

    async def _open(self) -> Engine:
        """A new engine. Cancelling does not stop the thread, so that compilers can clean up."""
        return await asyncio.shield(self._run_in_background(in_thread("open", self._open_engine)))

    def _open_engine(self) -> Engine:
        return Engine.open(self.settings.path, self.settings.device, self.limits.pixels, self.settings.precision)

    def _run_in_background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _use(self, engine: Engine) -> None:
        """Send new requests to ``engine``; the old engine finishes its own and is closed."""
        old, self._batcher = self._batcher, Batcher(engine, self.limits, self.decoders, self.metrics)
        if old is not None:
            self._run_in_background(self._retire(old))

    async def _retire(self, batcher: Batcher) -> None:
        await batcher.idle()
        await batcher.close()

    def _log_engine(self, event: str) -> None:
        engine = self.engine
        if engine.max_abs_diff is None:
            logs.event("no reference images: only SHA-256 was checked", logging.WARNING, path=str(engine.path))
        if engine.explainer is not None and engine.explainer.index_error:
            logs.event("no neighbors", logging.WARNING, reason=engine.explainer.index_error)
        logs.event(
            event,
            network=engine.name,
            classes=len(engine.classes),
            sha256=engine.sha256,
            max_abs_diff=engine.max_abs_diff,
            keys=bool(self.keys),
        )

    async def reload(self, read_keys: Callable[[], Sequence[str]]) -> bool:
        """Open and verify the bundle that is on the disk now, and use it from the next request on.

        The old bundle serves meanwhile. It stays if the new one is damaged, or if the keys cannot be read.
        """
        async with self._reloading:
            try:
                keys = ApiKeys(await in_thread("keys", read_keys))
                self._use(await self._open())
            except AlexNetError as error:
                self.metrics.reloads.labels("refused").inc()
                logs.event("reload refused", logging.ERROR, reason=reason(error))
                return False
            self.keys = keys
            self.metrics.reloads.labels("taken").inc()
            self._log_engine("reloaded")
            return True

    async def predict(
        self, images: Sequence[Upload], options: RequestOptions
    ) -> tuple[Engine, list[ImageResult | ImageError]]:
        """The results of one request, all from one engine, which is returned too.

        An image that cannot be used has an :class:`ImageError` in place of its result. Raises :class:`RequestRejected`
        if the queue is full.
        """
        batcher = self._current_batcher()
        with self.admission.admit(len(images)):
            self.metrics.waiting.inc(len(images))
            try:
                results = await asyncio.gather(*(self._predict_one(batcher, image, options) for image in images))
            finally:
                self.metrics.waiting.dec(len(images))
        return batcher.engine, results

    async def _predict_one(self, batcher: Batcher, image: Upload, options: RequestOptions) -> ImageResult | ImageError:
        outcome = "lost"
        try:
            result = await batcher.predict(image.data, image.name, options)
            if options.neighbors:
                loop = asyncio.get_running_loop()
                add_neighbors = batcher.engine.add_neighbors
                result = await loop.run_in_executor(self.decoders, add_neighbors, result, options.neighbors)
            outcome = "answered"
            return result
        except ImageError as error:
            outcome = "refused"
            return error
        finally:
            self.metrics.images.labels(outcome).inc()

    def count(self, engine: Engine, results: Sequence[ImageResult | ImageError], threshold: float | None) -> None:
        """Count the results of a request: in the metrics, and in the monitor's folder if there is one."""
        for result in results:
            if isinstance(result, ImageResult):
                label = int(result.probabilities.argmax())
                score = float(result.probabilities[label])
                self.metrics.confidence.observe(score)
                self.metrics.brightness.observe(result.brightness)
                self.metrics.pixels.observe(result.pixels)
                if result.distance is not None:
                    self.metrics.distance.observe(result.distance)
                if self.monitor is not None:
                    self.metrics.predicted.labels(engine.classes[label]).inc()
                if threshold is not None and score < threshold:
                    self.metrics.abstained.inc()
        if self.monitor is not None and self.monitor.add(engine, results, threshold):
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush_monitor, self.monitor)

    def _flush_monitor(self, monitor: Monitor) -> None:
        with contextlib.suppress(RuntimeError):  # the decoders have ended: close writes the counts
            self.decoders.submit(monitor.flush)

    def drain(self) -> None:
        """Report not ready from now on; requests are still served."""
        self.state = "draining"
        self.metrics.ready.set(0)
        logs.event("draining", waiting=self.admission.images)

    async def close(self) -> None:
        """Finish all images, then end the threads. If this is cancelled, threads may still run."""
        if self._batcher is not None:
            await self._batcher.close()
        await asyncio.gather(*self._background, return_exceptions=True)
        await in_thread("shutdown", self.decoders.shutdown)
        if self.monitor is not None:
            await in_thread("monitor", self.monitor.flush)
