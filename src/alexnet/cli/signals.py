"""Ctrl-C and SIGTERM: the first signal interrupts a command, the second one ends the process immediately."""

import os
import signal
import threading
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM)


def handle() -> None:
    """Install the signal handlers until the process ends.

    The first signal raises KeyboardInterrupt with its number; training installs its own handler for it. At the second
    signal the process exits with status 130 or 143.

    A Python handler does not run while the main thread is inside a library, and an exception waits until the worker
    threads end. Both can take minutes. A thread therefore counts the signals, which Python writes to a pipe.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows no handlers in other threads
        return
    for number in _STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:  # a background job ignores it
            signal.signal(number, _interrupt)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # the pipe belongs to the parent
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
