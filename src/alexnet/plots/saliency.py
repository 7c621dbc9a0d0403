"""Saliency maps of images: data gradient, Grad-CAM and occlusion, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import DataError
from alexnet.formatting import shorten
from alexnet.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 12  # images on one page
TITLE = 118  # columns of a row's title
SIDE, HEADING, GAP, LEGEND, MARGIN = 2.0, 0.34, 0.12, 0.72, 0.2  # inches
COLUMNS = ("input crop", "data gradient", "Grad-CAM", "occlusion")
NOTE = (
    "Each map is scaled to its own maximum. Data gradient: the score is most sensitive to white pixels.\n"
    "Grad-CAM: yellow is evidence for the class. Occlusion: hiding orange lowers its probability, blue raises it."
)
WARM, COOL = np.array([0xE6, 0x9F, 0x00]), np.array([0x00, 0x72, 0xB2])  # Okabe and Ito's orange and blue


class SaliencyRow(NamedTuple):
    """An image uint8 [S, S, 3] as the network sees it, its three maps [S, S], and a line about the prediction."""

    image: NDArray[np.uint8]
    gradient: NDArray[np.floating[Any]]
    grad_cam: NDArray[np.floating[Any]]
    occlusion: NDArray[np.floating[Any]]
    title: str


def draw(rows: Sequence[SaliencyRow], path: Path | str) -> Path:
    """Draw 1 to 12 images, a row each. Raises DataError."""
    return canvas.save(figure(rows), path)


def figure(rows: Sequence[SaliencyRow]) -> "Figure":
    """The figure, before it is saved."""
    if not 1 <= len(rows) <= MOST:
        raise DataError(f"{len(rows)} images on one page", f"1 to {MOST}", "draw several pages")
    row = HEADING + SIDE + GAP
    width, height = 4 * SIDE + 3 * GAP + 2 * MARGIN, len(rows) * row + LEGEND + 0.3
    fig = canvas.new_figure(width, height, constrained=False)
    for index, one in enumerate(rows):
        y = height - 0.3 - (index + 1) * row + GAP
        for column, (name, image) in enumerate(zip(COLUMNS, panels(one), strict=True)):
            x = MARGIN + column * (SIDE + GAP)
            axes = fig.add_axes((x / width, y / height, SIDE / width, SIDE / height))
            axes.imshow(image, interpolation="nearest" if len(image) <= 64 else "antialiased")
            axes.set_axis_off()
            if remark := remarks(one)[column]:
                axes.text(
                    0.5,
                    0.04,
                    remark,
                    transform=axes.transAxes,
                    ha="center",
                    va="bottom",
                    size=7.5,
                    color="white",
                    linespacing=1.3,
                )
            if not index:
                fig.text(
                    (x + SIDE / 2) / width,
                    (height - 0.2) / height,
                    name,
                    ha="center",
                    va="center",
                    size=9,
                    color=canvas.GRAY,
                )
        fig.text(MARGIN / width, (y + SIDE + 0.1) / height, shorten(one.title, TITLE), size=9, color=canvas.INK)
    fig.text(0.5, LEGEND / 2 / height, NOTE, ha="center", va="center", size=8, color=canvas.GRAY, linespacing=1.5)
    return fig


def panels(one: SaliencyRow) -> list[NDArray[np.uint8]]:
    """The image and its three maps as images: uint8 [S, S, 3] each."""
    return [one.image, spread(one.gradient), heat(one.image, one.grad_cam), sided(one.image, one.occlusion)]


def remarks(one: SaliencyRow) -> list[str]:
    """A remark on each panel; empty where its map has something to show."""
    return [
        "",
        "" if one.gradient.any() else "all 0: no pixel\nchanges the score",
        "" if one.grad_cam.any() else "all 0: no evidence for the class\nin the last feature maps",
        "" if one.occlusion.any() else "all 0: hiding a region\nchanges nothing",
    ]


def spread(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Values from 0 on -> gray, 0 black, the 99.5th percentile white."""
    part = np.clip(values / (np.percentile(values, 99.5) or 1), 0, 1)
    return np.repeat(np.rint(255 * part).astype(np.uint8)[..., None], 3, axis=2)


def heat(image: NDArray[np.uint8], values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """The image in dark gray, and over it in yellow what is large in ``values`` [S, S]: from 0 on."""
    part = np.clip(values / (values.max() or 1), 0, 1)[..., None]
    return _over(image, part, np.array([0xF0, 0xE4, 0x42]))


def sided(image: NDArray[np.uint8], values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """The same with both signs: orange above 0, blue below."""
    part = np.clip(values / (np.abs(values).max() or 1), -1, 1)[..., None]
    return _over(image, np.abs(part), np.where(part > 0, WARM, COOL))


def _over(image: NDArray[np.uint8], part: NDArray[Any], color: NDArray[Any]) -> NDArray[np.uint8]:
    dark = 0.55 * image.mean(2, keepdims=True) + 20
    return np.asarray(np.rint(dark + 0.75 * part * (color - dark)).clip(0, 255), np.uint8)
