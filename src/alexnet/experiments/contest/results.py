"""The results of a contest: one row per contestant, compared with AlexNet, with interleaved latencies."""

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.bundle import Bundle
from alexnet.data.store import Split
from alexnet.evaluation.evaluate import log_probabilities
from alexnet.evaluation.intervals import Estimate, PairedComparison, compare, proportion_ci
from alexnet.experiments.contest.plan import BASELINE, FISHER, Contestant, find_contestant
from alexnet.experiments.contest.train import ContestantResult, Predictions
from alexnet.experiments.fisher.classifier import FisherClassifier
from alexnet.loader.loader import to_device
from alexnet.terminal import csv_cell, format_duration
from alexnet.training import runtime

MAX_ROUNDS = 30  # measured images
WARMUP_ROUNDS = 2

Predictor = Callable[[NDArray[np.uint8]], Any]  # stored image [S, S, 3] -> scores, computed when it returns


@dataclass(frozen=True)
class Latency:
    """Milliseconds per image at batch size 1: median and quartiles over the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"median": self.median, "quartiles": [self.low, self.high], "rounds": self.rounds}


def load_predictor(name: str, folder: Path, device: torch.device) -> Predictor:
    """Load a finished contestant from its folder."""
    if name == FISHER:
        return FisherClassifier.load(folder).scores
    bundle = Bundle.load(folder / "bundle")
    network, normalization = bundle.network.to(device).eval(), to_device(bundle.normalization, device)
    network = network.to(memory_format=torch.channels_last)

    def predict(image: NDArray[np.uint8]) -> list[float]:
        images = torch.from_numpy(image[None]).to(device)
        scores = log_probabilities(
            network, images, normalization, image_size=bundle.image_size, channels=network.in_channels
        )
        return scores[0].tolist()

    return predict


def measure_latency(
    predictors: Mapping[str, Predictor], split: Split, max_seconds: float, rounds: int = MAX_ROUNDS
) -> dict[str, Latency]:
    """Measure all predictors in turn on one image after another.

    Args:
        predictors: Predictors by name.
        split: Images.
        max_seconds: No round starts after this time; at least three rounds are measured.
        rounds: Maximum number of rounds.
    """
    milliseconds: dict[str, list[float]] = {name: [] for name in predictors}
    begin = time.perf_counter()
    with runtime.cpu_settings():
        for number in range(WARMUP_ROUNDS + rounds):
            image = split.gather(np.array([number % len(split)]))[0]
            for name, predict in predictors.items():
                started = time.perf_counter()
                predict(image)
                if number >= WARMUP_ROUNDS:
                    milliseconds[name].append(1000 * (time.perf_counter() - started))
            if number >= WARMUP_ROUNDS + 2 and time.perf_counter() - begin > max_seconds:
                break
    return {name: _summarize(values) for name, values in milliseconds.items()}


def _summarize(values: list[float]) -> Latency:
    low, median, high = (float(x) for x in np.percentile(values, [25, 50, 75]))
    return Latency(median, low, high, len(values))


SIGNIFICANCE = 0.05  # p below it: the difference is statistically significant
IN_2012 = (
    "on ImageNet in 2012, top-5 test error: AlexNet 15.3 % (the mean of seven networks, two of them trained on more "
    "images), Fisher vectors 26.2 %"
)


@dataclass(frozen=True)
class ResultRow:
    """Result of a contestant. Errors are fractions of the test images."""

    contestant: Contestant
    result: ContestantResult
    top1: Estimate | None  # None where training diverged
    top5: Estimate | None  # None with five classes or fewer
    comparison: PairedComparison | None  # AlexNet (old) and this contestant (new); None without AlexNet
    latency: Latency | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "name": self.contestant.name,
            "title": self.contestant.title,
            "year": self.contestant.year,
            "published": self.contestant.published,
            "top1_error": self.top1.to_dict() if self.top1 else None,
            "top5_error": self.top5.to_dict() if self.top5 else None,
            "comparison_with_alexnet": self.comparison.to_dict() if self.comparison else None,
            "latency_ms": self.latency.to_dict() if self.latency else None,
            **{name: value for name, value in vars(self.result).items() if name != "name"},
        }


def result_rows(
    results: Mapping[str, ContestantResult],
    predictions: Mapping[str, Predictions],
    latencies: Mapping[str, Latency],
    groups: Sequence[str],
) -> list[ResultRow]:
    """One row per contestant, lowest top-1 error first, diverged ones last.

    Args:
        results: Costs by contestant.
        predictions: Predictions by contestant, without those that diverged.
        latencies: Latencies by contestant.
        groups: Group of each test image for the intervals; empty without groups.
    """
    rows = []
    baseline = predictions.get(BASELINE)
    for name, result in results.items():
        own = predictions.get(name)
        top1 = top5 = comparison = None
        if own is not None:
            top1 = proportion_ci(~own.correct, groups)
            if own.scores.shape[1] > 5:
                top5 = proportion_ci(~own.in_top_k(5), groups)
            if baseline is not None and name != BASELINE:
                comparison = compare(baseline.correct, own.correct, groups)
        rows.append(ResultRow(find_contestant(name), result, top1, top5, comparison, latencies.get(name)))
    return sorted(rows, key=lambda row: (row.top1 is None, row.top1.value if row.top1 else 0.0))


def verdict(rows: Sequence[ResultRow]) -> str:
    """Compare AlexNet with the Fisher vectors, the second place of 2012, in one sentence."""
    by_name = {row.contestant.name: row for row in rows}
    absent = [title for name, title in ((BASELINE, "AlexNet"), (FISHER, "Fisher vectors")) if name not in by_name]
    if absent:
        reason = "neither took part" if len(absent) == 2 else f"{absent[0]} did not take part"
        return f"No comparison of AlexNet with Fisher vectors: {reason}"
    alexnet, fisher = by_name[BASELINE], by_name[FISHER]
    if alexnet.top1 is None or fisher.top1 is None or fisher.comparison is None:
        return "No comparison of AlexNet with Fisher vectors: AlexNet diverged"
    errors = (
        f"Top-1 test error: AlexNet {100 * alexnet.top1.value:.1f} %, Fisher vectors {100 * fisher.top1.value:.1f} %"
    )
    difference, p = fisher.comparison.difference, fisher.comparison.p_value
    # Where the predictions differ on few images, the exact test is stricter than the bootstrap interval.
    if difference.low <= 0 <= difference.high or p >= SIGNIFICANCE:
        return f"{errors}; the difference is not statistically significant (p = {p:.2g})"
    better = "AlexNet is" if difference.high < 0 else "Fisher vectors are"
    return f"{errors}; {better} better (p = {p:.2g})"


def table(rows: Sequence[ResultRow]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The results as column titles and rows of text; columns without values are left out."""
    columns = (
        "contestant",
        "top-1 error",
        "top-5 error",
        "against AlexNet",
        "p (McNemar)",
        "parameters",
        "multiply-adds",
        "epochs",
        "training",
        "total",
        "ms per image",
        "on disk",
        "architecture at ILSVRC, top-5",
    )
    lines = [_cells(row) for row in rows]
    used = [i for i, _ in enumerate(columns) if i < 2 or any(line[i] != "–" for line in lines)]
    return tuple(columns[i] for i in used), [tuple(line[i] for i in used) for line in lines]


def _cells(row: ResultRow) -> tuple[str, ...]:
    result = row.result
    if row.top1 is None:
        return (row.contestant.title, f"diverged: {result.diverged[:60]}", *["–"] * 11)
    return (
        row.contestant.title,
        _percent(row.top1),
        _percent(row.top5),
        _error_difference(row.comparison),
        "–" if row.comparison is None else f"{row.comparison.p_value:.2g}",
        _count(result.parameters),
        _count(result.multiply_adds),
        "–" if result.name == FISHER else str(result.epochs),
        format_duration(result.training_seconds),
        format_duration(result.seconds),
        "–" if row.latency is None else f"{row.latency.median:.1f}",
        f"{result.bytes / 1e6:.1f} MB",
        row.contestant.published or "–",
    )


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{100 * estimate.value:.2f} % ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"


def _error_difference(comparison: PairedComparison | None) -> str:
    """Difference of errors in points: the negative difference of accuracies."""
    if comparison is None:
        return "–"
    accuracy = comparison.difference
    value, low, high = (0 - 100 * x for x in (accuracy.value, accuracy.high, accuracy.low))  # 0 - x is never -0.00
    return f"{value:+.2f} ({low:+.1f} to {high:+.1f})"


def _count(number: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)


def csv_text(rows: Sequence[ResultRow]) -> str:
    """The results as CSV, one line per contestant, numbers unrounded. Text cells are safe in spreadsheets."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        (
            "name",
            "year",
            "top1_error",
            "top1_low",
            "top1_high",
            "top5_error",
            "difference_to_alexnet",
            "p_mcnemar",
            "parameters",
            "multiply_adds",
            "epochs",
            "training_seconds",
            "seconds",
            "latency_ms",
            "bytes",
            "diverged",
        )
    )
    for row in rows:
        result, top1 = row.result, row.top1
        writer.writerow(
            [
                csv_cell(result.name),
                row.contestant.year,
                *((top1.value, top1.low, top1.high) if top1 else ("", "", "")),
                row.top5.value if row.top5 else "",
                -row.comparison.difference.value if row.comparison else "",
                row.comparison.p_value if row.comparison else "",
                result.parameters,
                result.multiply_adds,
                result.epochs,
                round(result.training_seconds, 2),
                round(result.seconds, 2),
                row.latency.median if row.latency else "",
                result.bytes,
                csv_cell(result.diverged),
            ]
        )
    return out.getvalue()


def markdown(title: str, rows: Sequence[ResultRow], notes: Sequence[str]) -> str:
    """The results as a Markdown page with a table, notes and the plot."""
    columns, lines = table(rows)
    cells = [columns, tuple("---" for _ in columns), *lines]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells)
    return f"# {title}\n\n{text}\n\n" + "\n".join(f"* {note}" for note in notes) + "\n\n![errors](contest.png)\n"


def draw(title: str, subtitle: str, rows: Sequence[ResultRow], path: Path) -> None:
    """Plot the errors of the contestants with their intervals; nothing where all diverged."""
    from alexnet.plots import studies as plot

    bars = [
        plot.ContestBar(
            row.contestant.title,
            100 * row.top1.value,
            100 * row.top1.low,
            100 * row.top1.high,
            row.latency.median if row.latency else 0.0,
            row.result.training_seconds,
            row.contestant.name == FISHER,
        )
        for row in rows
        if row.top1 is not None
    ]
    if bars:
        plot.draw_contest(title, subtitle, bars, path)
