"""Images with the top-5 predictions below each: Figure 4 (left) of the paper."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alexnet import terminal
from alexnet.errors import DataError
from alexnet.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ImageArray = NDArray[np.uint8]
Predictions = Sequence[tuple[str, float]]

MOST = 30  # images on one page
SHOWN = 5  # predictions of each
SIDE, HEADING, BAR, GAP, SPACE, LEGEND = 2.1, 0.54, 0.2, 0.06, 0.2, 0.4  # inches; SPACE is between images
SMALL = 64  # pixels: an image up to this side is shown with sharp pixels


def draw(
    images: Sequence[ImageArray] | ImageArray,
    truths: Sequence[str | None],
    rankings: Sequence[Predictions],
    path: Path | str,
    near: Sequence[int] = (),
) -> Path:
    """Draw 1 to 30 ``images`` (uint8 [H, W, 3]) to a PNG, each with its five likeliest predictions as bars.

    ``truths`` are the true classes, None where unknown; ``predictions`` are (class, probability from 0 to 1), in any
    order; ``near`` is the number of near-duplicates of each image. Raises DataError.
    """
    return canvas.save(figure(images, truths, rankings, near), path)


def figure(
    images: Sequence[ImageArray] | ImageArray,
    truths: Sequence[str | None],
    rankings: Sequence[Predictions],
    near: Sequence[int] = (),
) -> "Figure":
    """The figure, before it is saved."""
    _check(images, truths, rankings)
    across, bars = grid_columns(len(images)), min(SHOWN, max(map(len, rankings)))
    cell = HEADING + SIDE + BAR * bars + SPACE
    width, height = across * (SIDE + SPACE) + SPACE, math.ceil(len(images) / across) * cell + LEGEND
    fig = canvas.new_figure(width, height, constrained=False)
    for index, (image, truth, ranked) in enumerate(zip(images, truths, map(rank, rankings), strict=True)):
        x = SPACE + index % across * (SIDE + SPACE)
        y = height - index // across * cell - HEADING - SIDE  # lower edge of the image
        axes = _axes(fig, x, y, SIDE)
        _image(axes, image, truth, ranked)
        if index < len(near) and near[index]:
            axes.text(
                0.97,
                0.03,
                f"+{near[index]} near-duplicates",
                transform=axes.transAxes,
                ha="right",
                va="bottom",
                size=7,
                color="white",
                bbox={"boxstyle": "round,pad=0.2", "facecolor": "black", "alpha": 0.7, "edgecolor": "none"},
            )
        _bars(_axes(fig, x, y - GAP - BAR * bars, BAR * bars), truth, ranked, bars)
    legend = "✓ correct   ✗ wrong" + ("\n" if across == 1 else "   ") + "bars: probability; blue: the true class"
    fig.text(0.5, LEGEND / 2 / height, legend, ha="center", va="center", size=8, color=canvas.GRAY)
    return fig


def rank(rankings: Predictions) -> list[tuple[str, float]]:
    """The five likeliest, likeliest first."""
    return sorted(rankings, key=lambda prediction: -prediction[1])[:SHOWN]


def grid_columns(count: int) -> int:
    """4 a row up to 16 images, as in the paper, then 5; the rows filled evenly where that is possible."""
    most = 4 if count <= 16 else 5
    return math.ceil(count / math.ceil(count / most))


def verdict(truth: str | None, ranked: list[tuple[str, float]]) -> tuple[str, str]:
    """Heading of an image and its color: ✓ correct, ✗ wrong, by sign and not by color alone."""
    if truth is None:
        return "true: unknown", canvas.GRAY
    return (f"✓ true: {truth}", canvas.GREEN) if ranked[0][0] == truth else (f"✗ true: {truth}", canvas.VERMILION)


def _axes(fig: "Figure", x: float, y: float, tall: float) -> "Axes":
    """Axes one image wide, ``tall`` inches tall, the lower left corner at (x, y) inches."""
    width, height = fig.get_size_inches()
    return fig.add_axes((x / width, y / height, SIDE / width, tall / height))


def _image(axes: "Axes", image: ImageArray, truth: str | None, ranked: list[tuple[str, float]]) -> None:
    axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) <= SMALL else "antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(canvas.PALE)
    axes.set_anchor("S")
    heading, color = verdict(truth, ranked)
    weight = "normal" if truth is None else "bold"
    canvas.fit(axes.set_title(heading, size=10, color=color, fontweight=weight, pad=18), SIDE)
    below = axes.annotate(
        f"predicted: {ranked[0][0]}",
        (0.5, 1),
        xycoords="axes fraction",
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        va="bottom",
        size=9,
        color=color,
    )
    canvas.fit(below, SIDE)


def _bars(axes: "Axes", truth: str | None, ranked: list[tuple[str, float]], bars: int) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(bars - 0.5, -0.5)
    for place, (name, probability) in enumerate(ranked):
        true = name == truth
        axes.barh(place, 1, height=0.84, color="#F4F4F4")
        axes.barh(place, probability, height=0.84, color=canvas.SKY if true else "#CCCCCC")
        label = axes.text(
            0.025,
            place,
            f"✓ {name}" if true else name,
            va="center_baseline",
            size=7.5,
            color=canvas.INK,
            fontweight="bold" if true else "normal",
        )
        canvas.fit(label, 0.72 * SIDE)
        axes.text(
            0.975,
            place,
            terminal.probability(probability),
            va="center_baseline",
            ha="right",
            size=7,
            color=canvas.INK,
        )


def _check(
    images: Sequence[ImageArray] | ImageArray, truths: Sequence[str | None], rankings: Sequence[Predictions]
) -> None:
    if not 1 <= len(images) <= MOST:
        raise DataError(f"{len(images)} images on one page", f"1 to {MOST}", "draw several pages")
    if not len(images) == len(truths) == len(rankings):
        raise DataError(
            f"{len(images)} images with {len(truths)} truths and {len(rankings)} lists of predictions",
            "the same number of each",
        )
    for index, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape or image.dtype != np.uint8:
            raise DataError(f"image {index} is {image.dtype} {list(image.shape)}", "uint8 [H, W, 3]")
    for index, result in enumerate(rankings):
        if not result or not all(0 <= probability <= 1 for _, probability in result):
            raise DataError(
                f"the predictions of image {index} are {list(result)[:SHOWN]!r}",
                "(class, probability) pairs with probabilities from 0 to 1",
            )
