"""The server's state: which engine answers, whether it is ready, what is accepted; and how a new bundle takes over."""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from alexnet.deploy.server import logs
from alexnet.deploy.server.batching import Batcher
from alexnet.deploy.server.body import Upload
from alexnet.deploy.server.engine import Engine, Found, Want
from alexnet.deploy.server.keys import Keys
from alexnet.deploy.server.limits import Gate, Limits, Refused
from alexnet.deploy.server.metrics import Metrics
from alexnet.deploy.server.threads import in_thread
from alexnet.errors import AlexNetError, PictureError, reason

MOST_DECODERS = 8  # threads; a large picture takes hundreds of megabytes while it is decoded
T = TypeVar("T")
State = Literal["loading", "ready", "draining"]


@dataclass(frozen=True)
class Settings:
    """All that a server is told when it starts; can be handed to another process."""

    path: Path  # a run, a bundle, FILE.onnx or FILE.xml
    limits: Limits = field(default_factory=Limits)
    device: str = "cpu"
    threads: int = 0  # of the network; 0: PyTorch's own choice
    top: int = 5  # guesses, where a request does not say
    abstain_below: float | None = None  # probability under which the first guess is not believed
    pictures: bool = False  # are images of the data set given out: reference images, neighbors?
    hosts: tuple[str, ...] | None = ()  # in the Host header, besides those of this machine; None: any
    origins: tuple[str, ...] = ()  # of other sites whose pages may send requests; "*": all
    keys: tuple[str, ...] = ()
    key_file: Path | None = None  # read again at a reload
    watch: float = 0.0  # seconds between looks for a changed bundle; 0: none
    drain_delay: float = 0.0  # seconds between "not ready" and the end of listening
    processes: int = 1
    shared_metrics: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"  # of a bundle's answers


class Service:
    """One process's part. Made in its event loop; :meth:`open` before the first answer."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.limits = settings, settings.limits
        self.gate, self.metrics = Gate(settings.limits), Metrics(settings.shared_metrics)
        self.keys = Keys(settings.keys)
        self.state: State = "loading"
        self.decoders = ThreadPoolExecutor(min(MOST_DECODERS, max(2, os.cpu_count() or 1)), "decode")
        self._batcher: Batcher | None = None
        self._reloading = asyncio.Lock()
        self._background: set[asyncio.Task[Any]] = set()

    @property
    def engine(self) -> Engine:
        """What answers now; raises :class:`Refused` (503) before there is one."""
        return self._ready().engine

    def _ready(self) -> Batcher:
        if self._batcher is None:
            raise Refused(503, "loading: the classifier is being opened and verified", 2)
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
        if engine.drift is None:
            logs.event("no golden pictures: only SHA-256 was checked", logging.WARNING, path=str(engine.path))
        if engine.explain is not None and engine.explain.refused:
            logs.event("no neighbors", logging.WARNING, reason=engine.explain.refused)
        logs.event(
            event, network=engine.name, classes=len(engine.classes), sha256=engine.sha256, drift=engine.drift,
            keys=bool(self.keys),
        )  # fmt: skip

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

    async def answer(self, pictures: Sequence[Upload], want: Want) -> tuple[Engine, list[Found | PictureError]]:
        """What is found of each picture, or why it can not be used, and by which engine.

        All of one request are answered by the same. Raises :class:`Refused` where there is no room for them.
        """
        batcher = self._ready()
        with self.gate.accepted(len(pictures)):
            self.metrics.waiting.inc(len(pictures))
            try:
                found = await asyncio.gather(*(self._one(batcher, picture, want) for picture in pictures))
            finally:
                self.metrics.waiting.dec(len(pictures))
        return batcher.engine, found

    async def _one(self, batcher: Batcher, picture: Upload, want: Want) -> Found | PictureError:
        outcome = "lost"
        try:
            found = await batcher.answer(picture.data, picture.name, want)
            if want.neighbors:
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(self.decoders, batcher.engine.neighbors, found, want.neighbors)
            outcome = "answered"
            return found
        except PictureError as error:
            outcome = "refused"
            return error
        finally:
            self.metrics.pictures.labels(outcome).inc()

    def drain(self) -> None:
        """From now on not ready; what comes is still answered."""
        self.state = "draining"
        self.metrics.ready.set(0)
        logs.event("draining", waiting=self.gate.pictures)

    async def close(self) -> None:
        """End the threads, after the last answer. It may be cancelled: then threads still work."""
        if self._batcher is not None:
            await self._batcher.close()
        await asyncio.gather(*self._background, return_exceptions=True)
        await in_thread("shutdown", self.decoders.shutdown)
