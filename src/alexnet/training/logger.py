"""The log of a run: journal.jsonl, results.csv, TensorBoard events, and the terminal.

``journal.jsonl`` has a line per event, ``results.csv`` a row per epoch. Each line ends with a CRC-32: in the journal of
that line, in the results of all cells up to there. So a later change of a byte is detected. A resumed run continues
both files from the state of its checkpoint: later lines are cut off, so that none is there twice. If a line cannot be
written (disk full), that line is lost with a warning, and the run continues: only a checkpoint can end it.
"""

import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from alexnet.data.atomic_io import CRC_END, crc_matches, line_with_crc, read_regular
from alexnet.data.decode import decode
from alexnet.errors import RunError, printable
from alexnet.evaluation.metrics import Scores
from alexnet.recipe import Recipe
from alexnet.schema import parse_json
from alexnet.terminal import LOG_INTERVAL, unescaped
from alexnet.training.callbacks import Callbacks

COLUMNS = (
    "epoch",
    "steps",
    "lr",
    "train_loss",
    "train_top1",
    "validation_loss",
    "validation_top1",
    "validation_top5",
    "seconds",
    "images_per_second",
)


TESTED = "evaluated"  # the event of a test split that was looked at


def append_event(path: Path, kind: str, **values: Any) -> None:
    """Append an event to the journal ``path``; it is on the disk when this returns. Raises OSError."""
    line = line_with_crc({"time": round(time.time(), 3), "event": kind, **values})
    with path.open("a+b") as file:
        _drop_torn_line(file)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _drop_torn_line(file: IO[bytes]) -> None:
    """Remove the unfinished line that a killed process left at the end."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if size and file.read(1) != b"\n":
        file.seek(0)
        content = file.read()
        if not CRC_END.search(content, content.rfind(b"\n") + 1):
            file.truncate(content.rfind(b"\n") + 1)
        else:  # a whole line, but for its end
            file.write(b"\n")


def read_events(run: Path) -> tuple[list[dict[str, Any]], str]:
    """The events of a run's journal, and a message about damaged lines, or "". Raises OSError.

    Damaged lines are left out. A last line that a killed process did not finish is not counted as damage.
    """
    path = run / "journal.jsonl"
    events: list[dict[str, Any]] = []
    changed = []
    lines = read_regular(path).split(b"\n")
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not CRC_END.search(line):
            continue
        if not crc_matches(line):
            changed.append(number)
            continue
        with suppress(ValueError):  # a NaN that was written as one
            events.append(parse_json(line))
    if not changed:
        return events, ""
    numbers = ", ".join(map(str, changed[:5])) + (" …" if len(changed) > 5 else "")
    return events, f"{path} is damaged: line {numbers} changed after it was written and is left out"


def read_rows(run: Path) -> list[dict[str, float]]:
    """Return the rows of a run's results.csv, one per epoch.

    Raises:
        RunError: The file is missing or damaged.
    """
    path = run / "results.csv"
    try:
        header, *lines = read_regular(path).split(b"\n")
    except OSError as error:
        raise RunError(f"{run} has no results.csv: {error.strerror}", "a run folder") from error
    try:
        if header.decode() != ",".join((*COLUMNS, "crc32")) or lines.pop():
            raise ValueError("it does not begin or end as training writes it")
        rows, checksum = [], zlib.crc32(header)
        for number, line in enumerate(lines, 1):
            values, _, written = line.rpartition(b",")
            checksum = zlib.crc32(values, checksum)
            if written != f"{checksum:08x}".encode():
                raise ValueError(f"the checksum of row {number} differs")
            cells = zip(COLUMNS, values.decode().split(","), strict=True)
            rows.append({name: float(text) for name, text in cells if text})
    except (ValueError, IndexError) as error:
        raise RunError(
            f"{path} is damaged: {error}", "as training wrote it", f"alexnet train --resume {run} writes it anew"
        ) from error
    return rows


def damage(run: Path) -> list[str]:
    """Changes in the log of a run since it was written: a message for each file; empty if there are none."""
    lines = []
    try:
        lines.append(read_events(run)[1])
    except FileNotFoundError:
        if (run / "run.json").exists() and (run / "bundle").exists():
            lines.append(f"{run} has no journal.jsonl: evaluations of its test split are not counted")
    except OSError as error:
        lines.append(f"{run / 'journal.jsonl'} cannot be read: {error.strerror}")
    try:
        if (run / "results.csv").exists():
            read_rows(run)
    except RunError as error:
        lines.append(str(error))
    return [line for line in lines if line]


def _table(rows: list[dict[str, float]]) -> bytes:
    """results.csv: each row ends with the CRC-32 of all cells before, the header's included."""
    header = ",".join((*COLUMNS, "crc32"))
    checksum, lines = zlib.crc32(header.encode()), [header]
    for row in rows:
        values = ",".join(str(row.get(name, "")) for name in COLUMNS)
        checksum = zlib.crc32(values.encode(), checksum)
        lines.append(f"{values},{checksum:08x}")
    return "".join(line + "\n" for line in lines).encode()


class RunLogger:
    """The log of a run folder; on the terminal only warnings if ``quiet``. Close it, or use it in ``with``.

    ``callbacks`` receive epochs and checkpoints.
    """

    def __init__(
        self,
        folder: Path,
        *,
        quiet: bool = False,
        resume_at: int = 0,
        resume_step: int = 0,
        callbacks: Callbacks | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self.path = folder / "journal.jsonl"
        self._terminal = _Terminal(quiet, clock)
        self._cut(resume_at)
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step or None)
        self._callbacks = callbacks or Callbacks()
        self._callbacks.warn = self.warn

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def event(self, kind: str, **values: Any) -> None:
        """Append one event, whole or not at all; it is on the disk when this returns."""
        before = self.size()
        with self._forgiving(self.path):
            try:
                append_event(self.path, kind, **values)
            except OSError:
                with suppress(OSError):
                    os.truncate(self.path, before)
                raise

    def epoch(self, rows: list[dict[str, float]]) -> None:
        """An epoch has ended: ``rows`` are all epochs' results so far, the last one new."""
        row = rows[-1]
        self.write_rows(rows)
        self.event("epoch", **row)
        with self._forgiving(self.folder / "tensorboard"):
            for name, value in row.items():
                if name not in ("epoch", "steps"):
                    self._events.add_scalar(name, value, int(row["steps"]))
            self._events.flush()
        self._terminal.epoch(row)
        self._callbacks.epoch_end(row)

    def checkpoint(self, path: Path) -> None:
        """A checkpoint has been written."""
        self.event("checkpoint", file=path.name)
        self._callbacks.checkpoint(path)

    def write_rows(self, rows: list[dict[str, float]]) -> None:
        """Write results.csv again, atomically."""
        partial = self.folder / "results.csv.partial"
        with self._forgiving(self.folder / "results.csv"):
            with partial.open("wb") as file:
                file.write(_table(rows))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.folder / "results.csv")

    def begin_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Show that an epoch (from 0) of ``steps`` steps begins, of which ``done`` are done."""
        self._terminal.begin(epoch, epochs, steps, done)

    def step(self, loss: float, images: int) -> None:
        """Show that a step is done."""
        self._terminal.step(loss, images)

    def scored(self, split: str, done: int, total: int) -> None:
        """Show that ``done`` of the ``total`` images of a split are evaluated."""
        self._terminal.scored(split, done, total)

    def log(self, text: str) -> None:
        """Print a line on standard error, unless quiet."""
        self._terminal.log(text)

    def warn(self, text: str) -> None:
        """Print a warning on standard error, even if quiet."""
        self._terminal.warn(text)

    def size(self) -> int:
        """Bytes of journal.jsonl: the position where a resumed run continues."""
        return self.path.stat().st_size if self.path.exists() else 0

    def close(self) -> None:
        """End the progress bar and the event file."""
        self._terminal.close()
        with self._forgiving(self.folder / "tensorboard"):
            self._events.close()

    def _cut(self, size: int) -> None:
        if not size or self.size() < size:  # never longer: that would fill it with zeros
            if size:
                self.warn(
                    f"{self.path} has lost lines: it has {self.size():,} bytes, and had {size:,} at the checkpoint"
                )
            return
        with self.path.open("rb") as file:
            file.seek(size - 1)
            if file.read(1) != b"\n":  # lines were lost or added before this place: nothing is cut off
                return
            later = file.read().splitlines(keepends=True)
        os.truncate(self.path, size)
        mark = f'"event": "{TESTED}"'.encode()
        with self.path.open("ab") as file:  # evaluations of the test split stay on record
            file.writelines(line for line in later if mark in line and line.endswith(b"\n"))

    @contextmanager
    def _forgiving(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.warn(f"{path} could not be written ({error.strerror or error}); training goes on")


def write_summary(folder: Path, recipe: Recipe, scores: Mapping[str, Scores], plots: Sequence[Path]) -> str:
    """Add the hyperparameters with the final scores, and the plots, to the TensorBoard events of a finished run.

    Args:
        folder: The run folder.
        recipe: The hyperparameters.
        scores: Scores by split.
        plots: PNG files; each becomes an image with the file's name.

    Returns:
        One line about what could not be written, or "".
    """
    import torch
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    values = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in vars(recipe).items()}
    metrics = {f"final/{split}_top1": result.top1 for split, result in scores.items()}
    rows = read_rows(folder)
    step = int(rows[-1]["steps"]) if rows else 0
    try:
        with SummaryWriter(str(folder / "tensorboard")) as events:
            for summary in hparams(values, metrics):  # type: ignore[no-untyped-call]
                events.file_writer.add_summary(summary)
            for name, value in metrics.items():
                events.add_scalar(name, value, step)
            for path in plots:
                events.add_image(path.stem, torch.from_numpy(decode(path.read_bytes())), step, dataformats="HWC")
    except OSError as error:
        return f"{folder / 'tensorboard'} could not be written ({error.strerror or error})"
    return ""


class NullLogger(RunLogger):
    """The log of a process that is not the first of its run: it writes and prints nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "journal.jsonl"

    def event(self, kind: str, **values: Any) -> None: ...
    def epoch(self, rows: list[dict[str, float]]) -> None: ...
    def checkpoint(self, path: Path) -> None: ...
    def write_rows(self, rows: list[dict[str, float]]) -> None: ...
    def begin_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None: ...
    def step(self, loss: float, images: int) -> None: ...
    def scored(self, split: str, done: int, total: int) -> None: ...
    def log(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def close(self) -> None: ...


class _Terminal:
    """A progress bar on a terminal, plain lines elsewhere, only warnings when quiet; all on standard error.

    There is a line per epoch, and one if there was none for ``LOG_INTERVAL`` seconds of ``clock``.
    """

    def __init__(self, quiet: bool, clock: Callable[[], float]) -> None:
        from rich.console import Console

        def console(quiet: bool) -> Console:
            return Console(file=unescaped(sys.stderr), quiet=quiet, soft_wrap=True, highlight=False)

        self.console = console(quiet)
        self.warnings = console(False) if quiet else self.console  # one with a progress bar prints above it
        self.bar: Any = None
        self.clock, self.logged = clock, clock()

    def begin(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        self.started, self.images = self.clock(), 0
        self.position = f"epoch {epoch + 1}/{epochs}"
        self.done, self.steps = done, steps
        if not self.console.is_terminal:
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        if self.bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[info]}"))
            self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task("", total=epochs * steps, info="")
        total, completed = epochs * steps, epoch * steps + done  # epochs may differ in their steps
        self.bar.update(self.task, description=self.position, total=total, completed=completed)

    def step(self, loss: float, images: int) -> None:
        self.images, self.done = self.images + images, self.done + 1
        now = self.clock()
        text = f"loss {loss:.3f}  {self.images / max(now - self.started, 1e-9):.0f} images/s"
        if self.bar is not None:
            self.bar.update(self.task, advance=1, info=text)
        elif now - self.logged >= LOG_INTERVAL:
            self.log(f"{self.position}  step {self.done}/{self.steps}  {text}")

    def scored(self, split: str, done: int, total: int) -> None:
        text = f"{split}  {done:,}/{total:,} images"
        if self.bar is not None:
            self.bar.update(self.task, info=text)
        elif self.clock() - self.logged >= LOG_INTERVAL:
            self.log(text)

    def epoch(self, row: dict[str, float]) -> None:
        text = f"epoch {row['epoch']:3.0f}  train loss {row['train_loss']:.3f}  top-1 {100 * row['train_top1']:5.1f} %"
        if "validation_top1" in row:
            text += f"  validation loss {row['validation_loss']:.3f}  top-1 {100 * row['validation_top1']:5.1f} %"
        self.log(f"{text}  {row['images_per_second']:.0f} images/s  {row['seconds']:.0f} s")

    def log(self, text: str) -> None:
        self.logged = self.clock()
        self.console.print("\n".join(map(printable, text.split("\n"))), markup=False)

    def warn(self, text: str) -> None:
        self.warnings.print("\n".join(map(printable, f"warning: {text}".split("\n"))), markup=False)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
