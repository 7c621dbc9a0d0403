"""Dynamic batching: pictures of many requests decoded beside each other, through the network together."""

import asyncio
import logging
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from alexnet.deploy.server import logs
from alexnet.deploy.server.engine import Engine, Found, Prepared, Want
from alexnet.deploy.server.limits import Limits
from alexnet.deploy.server.metrics import Metrics
from alexnet.deploy.server.threads import in_thread


class _Item(NamedTuple):
    picture: Prepared
    want: Want
    future: "asyncio.Future[Found]"


class Batcher:
    """Feeds one engine from one thread. :meth:`answer` is called in the event loop, by as many as like.

    A batch is what waits when the network is free, at most ``limits.batch`` pictures. While other accepted pictures
    are still being decoded it waits for them, ``limits.batch_wait`` ms at most: a lone request waits for nothing.
    How many wait is bounded by who calls (:class:`alexnet.deploy.server.limits.Gate`).
    """

    def __init__(self, engine: Engine, limits: Limits, decoders: ThreadPoolExecutor, metrics: Metrics) -> None:
        self.engine, self.limits, self.decoders, self.metrics = engine, limits, decoders, metrics
        self._ready: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._coming = 0  # pictures that are being decoded
        self._inside = 0  # pictures from the first to the last line of :meth:`answer`
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)
        self._thread.start()

    async def answer(self, data: bytes, name: str, want: Want) -> Found:
        """What is found of one picture. Raises :class:`PictureError`."""
        self._inside += 1
        try:
            picture = await self._prepared(data, name)
            future: asyncio.Future[Found] = self._loop.create_future()
            self._ready.put(_Item(picture, want, future))
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
        batch, until = [first], time.monotonic() + self.limits.batch_wait / 1000
        while len(batch) < self.limits.batch:
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
            found: list[Any] = list(self.engine.answer([i.picture for i in batch], [i.want for i in batch]))
        except Exception as error:  # whatever it is, these requests end and the next batch gets its turn
            logs.event("batch failed", logging.ERROR, trace=True, pictures=len(batch))
            found = [error] * len(batch)
        self.metrics.batches.observe(len(batch))
        self.metrics.network_seconds.observe(time.monotonic() - started)
        try:
            self._loop.call_soon_threadsafe(_hand_out, batch, found)
        except RuntimeError:  # the loop has ended, nobody waits
            return


def _hand_out(batch: list[_Item], found: list[Any]) -> None:
    for item, result in zip(batch, found, strict=True):
        if item.future.done():
            continue
        if isinstance(result, Exception):
            item.future.set_exception(result)
        else:
            item.future.set_result(result)
