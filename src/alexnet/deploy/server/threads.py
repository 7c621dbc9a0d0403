"""Work in a thread of its own that nothing has to wait for: opening files on a disk that may hang, joining threads."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


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
