"""Ctrl-C and SIGTERM: the first one interrupts a command, the second one ends its process at once."""

import os
import signal
import threading
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM)


def handle() -> None:
    """From now on until the process ends: the first signal raises KeyboardInterrupt with its number, or does what a
    training does with it; at the second one the process exits with status 130 or 143.

    A handler in Python does not run while the main thread is inside a library, and an exception waits until worker
    threads end: both may take minutes. So a thread counts the signals, from the pipe that Python writes them to.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows no handlers
        return
    for number in _STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as of a background job
            signal.signal(number, _interrupt)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # the pipe is the parent's
    threading.Thread(target=_count, args=(reading,), name="signals", daemon=True).start()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _count(pipe: int) -> None:
    count = 0
    while count < 2:
        (number,) = os.read(pipe, 1)
        count += number in _STOPPING
    cursor = b"\x1b[?25h" if os.isatty(2) else b""  # a progress bar hides it
    os.write(2, cursor + b"\nalexnet: stopped at once by a second signal\n")
    os._exit(128 + number)
