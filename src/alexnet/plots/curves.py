"""Learning curves: loss, error and learning rate by epoch, with the best validation epoch marked."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet.errors import DataError
from alexnet.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = list[dict[str, float]]
Style = dict[str, Any]  # keywords of matplotlib

# Line and color of each curve: told apart without color too.
TRAIN: Style = {"color": canvas.GRAY, "linestyle": "--"}
VALIDATION: Style = {"color": canvas.BLUE, "linestyle": "-"}
TOP5: Style = {"color": canvas.SKY, "linestyle": "-."}


def draw(rows: Rows, path: Path | str, *, by_loss: bool = False) -> Path:
    """Draw the rows of results.csv to a PNG. Accuracies are 0 to 1; where one is missing or NaN,
    the line goes straight on to the next. ``by_loss``: the best epoch is that with the lowest validation loss.

    Raises DataError for no rows, or a row without its epoch.
    """
    return canvas.save(figure(rows, by_loss=by_loss), path)


def figure(rows: Rows, *, by_loss: bool = False) -> "Figure":
    """The figure, before it is saved."""
    if not rows:
        raise DataError("the results have no rows", "one for each epoch", "train for one epoch first")
    if any(not math.isfinite(row.get("epoch", math.nan)) for row in rows):
        raise DataError("a row of the results has no epoch", "a number in the column 'epoch'")
    fig = canvas.new_figure(13, 4.4)
    loss, error, rate = fig.subplots(1, 3, width_ratios=[1, 1.15, 0.75])
    marked = best(rows, by_loss=by_loss)
    _loss(canvas.plain(loss), rows, marked)
    _error(canvas.plain(error), rows, marked)
    _rate(canvas.plain(rate), rows)
    for axes in (loss, error, rate):
        _epochs(axes, rows)
    fig.legend(
        *error.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=10,
        labelcolor=canvas.INK,
        handlelength=2.6,
    )
    fig.suptitle(headline(rows, by_loss=by_loss), x=0.01, ha="left", size=13, color=canvas.INK)
    return fig


def best(rows: Rows, *, by_loss: bool = False) -> dict[str, float] | None:
    """The row with the highest validation accuracy, of equals the lowest loss, as training chooses; or None.

    ``by_loss``: the row with the lowest validation loss, as ``--select-weights best-loss`` chooses.
    """
    measured = [row for row in rows if math.isfinite(row.get("validation_top1", math.nan))]
    if by_loss:
        return min(measured, key=lambda row: row.get("validation_loss", math.inf), default=None)
    return max(measured, key=lambda row: (row["validation_top1"], -row.get("validation_loss", 0.0)), default=None)


def headline(rows: Rows, *, by_loss: bool = False) -> str:
    """The title: the best epoch and its error."""
    row, last = best(rows, by_loss=by_loss), max(row["epoch"] for row in rows)
    if row is None:
        return f"{last:g} epoch{'s' * (last != 1)}, not validated"
    accuracy = 100 * row["validation_top1"]
    title = "Lowest validation loss: epoch" if by_loss else "Best validation epoch:"
    return f"{title} {row['epoch']:g} of {last:g}, error {100 - accuracy:.2f} %, accuracy {accuracy:.2f} %"


def _loss(axes: "Axes", rows: Rows, marked: dict[str, float] | None) -> None:
    _line(axes, rows, "train_loss", "train", TRAIN)
    _line(axes, rows, "validation_loss", "validation", VALIDATION)
    _mark_epoch(axes, marked)
    axes.set_title("Loss", loc="left", size=12, color=canvas.INK)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.02)


def _error(axes: "Axes", rows: Rows, marked: dict[str, float] | None) -> None:
    _line(axes, rows, "train_top1", "train", TRAIN)
    _line(axes, rows, "validation_top1", "validation", VALIDATION)
    _line(axes, rows, "validation_top5", "validation, top-5", TOP5)
    _mark_epoch(axes, marked)
    _mark_best(axes, marked)
    axes.set_title("Error in %", loc="left", size=12, color=canvas.INK)
    axes.set_title("accuracy in %", loc="right", size=9, color=canvas.GRAY)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.02)
    accuracy = axes.secondary_yaxis("right", functions=(_other, _other))
    accuracy.tick_params(colors=canvas.GRAY, labelsize=9)
    accuracy.spines["right"].set_color(canvas.PALE)


def _rate(axes: "Axes", rows: Rows) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    epochs, rates = _points(rows, "lr")
    axes.step(epochs, rates, where="mid", color=canvas.INK, linewidth=1.8, **_dots(rows))
    axes.set_title("Learning rate", loc="left", size=12, color=canvas.INK)
    if rates and 0 < 10 * min(rates) <= max(rates):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif rates:
        axes.set_ylim(0, 1.25 * max(rates) or 1)
    if len(set(rates)) == 1:
        axes.set_yticks([0, rates[0]])
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]  # 0.00005 where all rates are above 0.0001
    number = canvas.numbers([*rates, *ticks], 0 if axes.get_yscale() == "log" else 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _line(axes: "Axes", rows: Rows, name: str, label: str, style: Style) -> None:
    """One curve; an accuracy (``…_top1``) is drawn as the error in percent."""
    epochs, values = _points(rows, name)
    if "_top" in name:
        values = [100 - 100 * value for value in values]
    if values:
        axes.plot(epochs, values, label=label, linewidth=1.8, **style, **_dots(rows))


def _mark_epoch(axes: "Axes", row: dict[str, float] | None) -> None:
    if row is not None:
        axes.axvline(row["epoch"], color=canvas.VERMILION, linewidth=1, linestyle=":", zorder=1)


def _mark_best(axes: "Axes", row: dict[str, float] | None) -> None:
    if row is None:
        return
    accuracy = 100 * row["validation_top1"]
    axes.plot(
        [row["epoch"]],
        [100 - accuracy],
        "o",
        markersize=9,
        markerfacecolor="none",
        markeredgewidth=1.8,
        color=canvas.VERMILION,
        label="best epoch",
        zorder=5,
    )


def _epochs(axes: "Axes", rows: Rows) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch", size=9, color=canvas.GRAY)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if len(rows) == 1:
        axes.set_xlim(rows[0]["epoch"] - 1, rows[0]["epoch"] + 1)


def _dots(rows: Rows) -> Style:
    """A few epochs are shown as points, since a single one makes no line."""
    return {"marker": "o", "markersize": 4} if len(rows) <= 12 else {}


def _points(rows: Rows, name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of a column, where there is a value."""
    known = [row for row in rows if math.isfinite(row.get(name, math.nan))]
    return [row["epoch"] for row in known], [row[name] for row in known]


def _other(percent: Any) -> Any:
    """Error to accuracy and back."""
    return 100 - percent
