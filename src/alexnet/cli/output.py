"""What is printed: results as tables, JSON or CSV on standard output; progress on standard error."""

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alexnet.errors import printable
from alexnet.terminal import unescaped

if TYPE_CHECKING:
    from alexnet.evaluation.intervals import Estimate
    from alexnet.evaluation.metrics import Scores


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Progress:
    """A progress bar on a terminal; a line every tenth elsewhere."""

    def __init__(self, what: str) -> None:
        self.what, self.tenth = what, -1
        self.bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            self._bar(done, total)
        elif 10 * done // max(total, 1) != self.tenth:
            self.tenth = 10 * done // max(total, 1)
            log(f"{self.what}: {done} of {total} images")

    def _bar(self, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self.bar is None:
            columns = (TextColumn(self.what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(file=unescaped(sys.stderr)), transient=True)
            self.bar.start()
            self.bar.add_task("", total=total)
        self.bar.update(self.bar.task_ids[0], completed=done, total=total)
        if done >= total:
            self.bar.stop()


def training_images(left_out: int, included: int) -> None:
    """One line where images of the split were trained on."""
    if left_out:
        print(f"{left_out} training images were left out (by SHA-256); --include-training-images keeps them")
    if included:
        print(f"WARNING: {included} of them are training images: the accuracy is too high for new images")


def score_columns(*scores: "Scores") -> list[str]:
    """The names of the columns with scores; of five classes or fewer there is no top-5."""
    top5 = ["top-5", "top-5 error"] * any(one.has_top5 for one in scores)
    return ["top-1", "top-1 error", *top5, "loss"]


def score_cells(scores: "Scores") -> list[str]:
    top5 = [percent(scores.top5), percent(1 - scores.top5)] * scores.has_top5
    return [percent(scores.top1), percent(1 - scores.top1), *top5, f"{scores.loss:.4f}"]


def percent(fraction: float, decimals: int = 2) -> str:
    """``0.9876`` -> ``98.76 %``; empty for NaN."""
    return "" if math.isnan(fraction) else f"{100 * fraction:.{decimals}f} %"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: int = 1) -> None:
    """A table on standard output; columns from number ``right`` on are set right if they hold numbers only."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        numbers = all(not row[i] or row[i][0].isdigit() for row in rows)
        table.add_column(printable(column), justify="right" if i >= right and numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    terminal = sys.stdout.isatty()
    width = None if terminal else _width(columns, rows)
    console = Console(file=unescaped(sys.stdout), width=width, highlight=False, markup=False)
    if title:
        console.print(printable(title), style="bold", soft_wrap=True)
    console.print(table)


def _cell(text: str) -> str:
    """One line of at most 200 characters: a class name may have 10,000, and a pipe gets rows as wide as the widest."""
    return printable(text if len(text) <= 200 else text[:199] + "…")


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """In a file or a pipe nothing needs folding: as wide as the cells are."""
    cells = [[len(_cell(c)) for c in line] for line in (columns, *rows)]
    widest: list[int] = [max(column) + 3 for column in zip(*cells, strict=True)]
    return max(80, sum(widest))


def estimate_cells(one: "Estimate") -> tuple[str, str]:
    """A number and its interval; empty where there is none."""
    return percent(one.value, 1), f"{100 * one.low:.1f} to {100 * one.high:.1f}" if one.value == one.value else ""


def resampled_groups(groups: int) -> None:
    from alexnet.evaluation.intervals import FEW_GROUPS

    if groups:
        few = "; so few that no interval can be trusted" if groups < FEW_GROUPS else ""
        print(f"intervals  {groups} groups were resampled whole{few}")


def fail(message: str, status: int) -> int:
    log(f"alexnet: {printable(message)}")
    return status
