"""What all commands share: messages and progress on standard error, tables on standard output, and Ctrl-C.

The first Ctrl-C or SIGTERM interrupts a command, the second one ends the process immediately.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from alexnet import terminal
from alexnet.errors import printable
from alexnet.terminal import unescaped

if TYPE_CHECKING:
    from alexnet.evaluation.intervals import Estimate
    from alexnet.evaluation.metrics import Scores


def log(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """A progress bar on a terminal, else a line every 10 % and every 30 s, with images per second and the time left.

    Called with the images done and their total; the first call sets the images that the speed does not count. A call
    with fewer images than the last one begins again: a study prepares several parts of its data.
    """

    def __init__(self, phase: str) -> None:
        self.phase, self.tenth = phase, -1
        self.first, self.last, self.started, self.logged = 0, -1, 0.0, 0.0
        self.bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self.last < 0 or done < self.last:
            self.close()
            self.first, self.started, self.tenth = done, time.monotonic(), -1
        self.last = done
        if sys.stderr.isatty():
            self._bar(done, total)
        elif (tenth := 10 * done // max(total, 1)) != self.tenth or self._silent():
            self.tenth, self.logged = tenth, time.monotonic()
            log(f"{self.phase}: {done:,} of {total:,} images{self._speed(done, total)}")

    def _silent(self) -> bool:
        return time.monotonic() - self.logged >= terminal.LOG_INTERVAL

    def _speed(self, done: int, total: int) -> str:
        """``, 41 images/s, 2 min 3 s left``; empty at the start."""
        count, seconds = done - self.first, time.monotonic() - self.started
        if count < 1 or seconds <= 0:
            return ""
        left = f", {terminal.format_duration(round(seconds / count * (total - done)))} left" if done < total else ""
        return f", {count / seconds:,.0f} images/s{left}"

    def _bar(self, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        if self.bar is None:
            columns = (
                TextColumn(self.phase),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("images{task.description}"),
            )
            self.bar = Progress(*columns, console=Console(file=unescaped(sys.stderr)), transient=True)
            self.bar.start()
            self.bar.add_task("", total=total)
        self.bar.update(self.bar.task_ids[0], completed=done, total=total, description=self._speed(done, total))
        if done >= total:
            self.close()

    def close(self) -> None:
        """Remove the bar, if there is one."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def training_images(left_out: int, included: int) -> None:
    """Print how many images of the split are training images, if there are any."""
    if left_out:
        print(f"{left_out} training images were left out (by SHA-256); --include-training-images keeps them")
    if included:
        print(f"WARNING: {included} of them are training images: the accuracy is too high for new images")


def score_columns(*scores: "Scores") -> list[str]:
    """The column names of :func:`score_cells`. Data with at most five classes has no top-5."""
    top5 = ["top-5", "top-5 error"] * any(one.has_top5 for one in scores)
    return ["top-1", "top-1 error", *top5, "loss"]


def score_cells(scores: "Scores") -> list[str]:
    """Accuracies, errors and loss as cells of a table."""
    top5 = [percent(scores.top5), percent(1 - scores.top5)] * scores.has_top5
    return [percent(scores.top1), percent(1 - scores.top1), *top5, f"{scores.loss:.4f}"]


def percent(fraction: float, decimals: int = 2) -> str:
    """``0.9876`` -> ``98.76 %``; empty for NaN."""
    return terminal.percent(fraction, decimals)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: int = 1) -> None:
    """Print a table. Columns with an index of ``right`` or more are right-aligned if they hold only numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:  # rich would exit with status 1 for `alexnet models | head -1`
            raise BrokenPipeError

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        numbers = all(not row[i] or row[i][0].isdigit() for row in rows)
        table.add_column(printable(column), justify="right" if i >= right and numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    terminal = sys.stdout.isatty()
    width = None if terminal else _width(columns, rows)
    console = PipeConsole(file=unescaped(sys.stdout), width=width, highlight=False, markup=False)
    if title:
        console.print(printable(title), style="bold", soft_wrap=True)
    console.print(table)


def _cell(text: str) -> str:
    """One line of at most 200 characters: a class name may have 10,000."""
    return printable(text if len(text) <= 200 else text[:199] + "…")


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """The width of a table in a file or a pipe: no cell is folded."""
    cells = [[len(_cell(c)) for c in line] for line in (columns, *rows)]
    widest: list[int] = [max(column) + 3 for column in zip(*cells, strict=True)]
    return max(80, sum(widest))


def estimate_cells(estimate: "Estimate") -> tuple[str, str]:
    """The value and its confidence interval in percent; empty for NaN."""
    if math.isnan(estimate.value):
        return "", ""
    return percent(estimate.value, 1), f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"


def resampled_groups(groups: int) -> None:
    """Print that the intervals come from a bootstrap over groups, if they do."""
    from alexnet.evaluation.intervals import FEW_GROUPS

    if groups:
        few = "; too few for reliable intervals" if groups < FEW_GROUPS else ""
        print(f"intervals  bootstrap over {groups} groups{few}")


def fail(message: str, status: int) -> int:
    """Print an error message in one line and return ``status``."""
    log(f"alexnet: {printable(message)}")
    return status


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
