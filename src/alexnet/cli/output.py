"""What is printed: results as tables, JSON or CSV on standard output; progress on standard error."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from alexnet import recipe as recipes
from alexnet.errors import printable
from alexnet.terminal import csv_cell, unescaped

if TYPE_CHECKING:
    from pathlib import Path

    from alexnet.api import Result
    from alexnet.api.provenance import Provenance
    from alexnet.bundle import Bundle
    from alexnet.evaluation.metrics import Scores


def say(text: str) -> None:
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
            say(f"{self.what}: {done} of {total} images")

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


def imported(bundle: "Bundle", path: "Path", *, as_json: bool) -> None:
    """What came of ``alexnet import``."""
    network = bundle.network
    parameters = sum(p.numel() for p in network.parameters())
    if as_json:
        about: dict[str, Any] = {
            "bundle": str(path),
            "model": network.name,
            "classes": len(bundle.classes),
            "parameters": parameters,
        }
        print(json.dumps({**about, **bundle.data}))
        return
    print(f"{network.name}, {len(bundle.classes)} classes, {parameters:,} parameters -> {path}")
    print(f"try it: alexnet predict {path} IMAGE")


def result(result: "Result", page: "Path | None" = None, *, as_json: bool) -> None:
    """What came of training, its warnings first; ``page`` is its report."""
    if as_json:
        print(json.dumps(_result_dict(result) | {"report": str(page) if page else None}))
        return
    for warning in result.warnings:
        print(f"WARNING    {warning}")
    rows = [(name, str(s.count), *_cells(s)) for name, s in result.scores.items()]
    table(f"{result.recipe.model}, center view", ("split", "images", *_columns(*result.scores.values())), rows)
    for note in result.notes:
        print(f"note       {note}")
    rate, precision = result.images_per_second, result.recipe.precision
    print(f"training   {rate:.1f} images/s in {precision}; this command took {result.seconds:.0f} s in all")
    print(f"run        {result.folder}  (bundle/, checkpoints/, journal.jsonl, results.csv, recipe.toml, tensorboard/)")
    print(f"images   {result.folder / 'plots'}  ({', '.join(p.stem for p in result.plots)})")
    if page is not None:
        print(f"report     {page}")
    print(f"use it     alexnet predict {result.folder} IMAGE…")


def _result_dict(result: "Result") -> dict[str, Any]:
    return {
        "run": str(result.folder),
        "bundle": str(result.bundle),
        "images_per_second": result.images_per_second,
        "seconds": result.seconds,
        "warnings": list(result.warnings),
        "notes": list(result.notes),
        "scores": {name: s.to_dict() for name, s in result.scores.items()},
    }


def scores(scores: "Scores", *, as_json: bool, provenance: "Provenance | None" = None) -> None:
    """What ``evaluate`` found: of an ensemble, each member's scores and weight first; of one run, what chose what."""
    if as_json:
        print(json.dumps(scores.to_dict() | (provenance.to_dict() if provenance else {})))
        return
    crops = "center view" if scores.crops == 1 else f"{scores.crops} crops"
    _members(scores, crops)
    rows = [("top-1", percent(scores.top1), percent(1 - scores.top1))]
    if scores.has_top5:
        rows.append(("top-5", percent(scores.top5), percent(1 - scores.top5)))
    table(f"{scores.split}: {scores.count} images, {crops}", ("", "accuracy", "error"), rows)
    training_images(scores.training_images_left_out, scores.training_images_included)
    low, high = scores.top1_interval
    over = f", over {len(scores.groups)} groups of images" if scores.groups else ""
    print(f"top-1 {percent(scores.top1)} (95 % CI {percent(low)} to {percent(high)}{over})")
    print(f"loss {scores.loss:.4f}   {scores.count / scores.seconds:.1f} images/s")
    for line in provenance.lines() if provenance else ():
        print(line)


def training_images(left_out: int, included: int) -> None:
    """One line where images of the split were trained on."""
    if left_out:
        print(f"{left_out} training images were left out (by SHA-256); --include-training-images keeps them")
    if included:
        print(f"WARNING: {included} of them are training images: the accuracy is too high for new images")


def _members(scores: "Scores", crops: str) -> None:
    from alexnet.evaluation.ensemble import EnsembleScores

    if not isinstance(scores, EnsembleScores):
        return
    rows = [(m.name, f"{m.weight:.4f}", *_cells(m.scores)) for m in scores.members]
    columns = ("member", "weight", *_columns(scores))
    table(f"{len(rows)} members alone on {scores.split}, {crops}", columns, rows)
    if scores.fitted_on:
        chosen = f"the {scores.fitted_count} images of {scores.fitted_on}"
        print(f"weights were found on {chosen}, which are not those reported")
    else:
        print("equal weights: the ensemble is the plain mean of the members' probabilities")
    print()


def _columns(*scores: "Scores") -> list[str]:
    """The names of the columns with scores; of five classes or fewer there is no top-5."""
    top5 = ["top-5", "top-5 error"] * any(one.has_top5 for one in scores)
    return ["top-1", "top-1 error", *top5, "loss"]


def _cells(scores: "Scores") -> list[str]:
    top5 = [percent(scores.top5), percent(1 - scores.top5)] * scores.has_top5
    return [percent(scores.top1), percent(1 - scores.top1), *top5, f"{scores.loss:.4f}"]


def _print_json(results: list[dict[str, Any]], top: int, below: float | None) -> None:
    print(json.dumps(results, indent=1))


def _print_csv(results: list[dict[str, Any]], top: int, below: float | None) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["filename", "rank", "label", "score", "error", *["abstained"] * (below is not None)])
    for entry in results:
        last = [] if below is None else [str(entry["abstained"]).lower() if "abstained" in entry else ""]
        for rank, prediction in enumerate(entry.get("top_k", []), 1):
            name, label = csv_cell(entry["filename"]), csv_cell(prediction["label"])
            writer.writerow([name, rank, label, f"{prediction['score']:.6f}", "", *last])
        if "error" in entry:
            writer.writerow([csv_cell(entry["filename"]), "", "", "", csv_cell(entry["error"]), *last])


def _print_predictions(results: list[dict[str, Any]], top: int, below: float | None) -> None:
    rows = []
    for entry in results:
        predictions = [f"{g['label']} {100 * g['score']:.1f} %" for g in entry.get("top_k", [])]
        answer = [] if below is None else [_answer(entry)]
        rows.append(
            (entry["filename"], *answer, *(predictions or ["not readable"]), *[""] * (top - max(len(predictions), 1)))
        )
    width = max((len(row) for row in rows), default=1)
    predictions = ["answer"] * (below is not None)
    columns = ("image", *predictions, *(f"prediction {i}" for i in range(1, width - len(predictions))))
    table("", columns, [row[:width] for row in rows])
    if below is not None:
        unknown = sum(bool(entry.get("abstained")) for entry in results)
        print(f"{unknown} of {len(results)} unknown: the first prediction has a probability below {below:.4g}")


def _answer(entry: dict[str, Any]) -> str:
    if "top_k" not in entry:
        return ""
    return "unknown" if entry["abstained"] else str(entry["top_k"][0]["label"])


def differences(a: str, b: str, *, as_json: bool) -> None:
    """Where two recipes differ, in their numbers and their networks, with each value's source."""
    options, traits = recipes.compare(a, b)
    if as_json:
        results = {"options": {d.what: d.to_dict() for d in options}, "networks": {d.what: d.to_dict() for d in traits}}
        print(json.dumps({"recipes": [a, b], **results}, indent=1))
        return
    columns = ("", a, "source", b, "source", "meaning")
    rows = [_difference_row(d, recipes.option(d.what)) for d in options]
    table("Numbers", columns, rows, right=len(columns))
    networks = [recipes.get_recipe(name).model for name in (a, b)]
    if traits:
        table(f"Networks: {' and '.join(networks)}", columns, [_difference_row(d, d.what) for d in traits], right=6)
    elif networks[0] != networks[1]:
        print("Networks: " + "   ".join(f"alexnet models {network}" for network in networks))


def _difference_row(difference: recipes.Difference, name: str) -> tuple[str, ...]:
    (a, b), (source_a, source_b) = difference.values, difference.sources
    return name, _shown(a), source_a, _shown(b), source_b, difference.meaning


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value) or "none"


PREDICTIONS: dict[str, Callable[[list[dict[str, Any]], int, float | None], None]] = {
    "table": _print_predictions,
    "json": _print_json,
    "csv": _print_csv,
}


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


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
