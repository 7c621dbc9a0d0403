"""The filters of the first layer as a small picture for the page."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from alexnet.models.network import Network

GAP = 1  # pixels between filters, mid-gray


def first_filters(network: "Network") -> NDArray[np.float32] | None:
    """Weights [K, C, H, W] of the first layer that has filters; None where none has."""
    from alexnet.models.cuda_convnet import GraphNetwork

    if isinstance(network, GraphNetwork):
        found: Tensor | None = network.first_filters()
    else:
        found = next((p for p in network.parameters() if p.dim() == 4), None)
    return None if found is None else found.detach().float().cpu().contiguous().numpy()


def grid(weights: NDArray[np.floating[Any]], towers: int) -> NDArray[np.uint8]:
    """[K, C, H, W] -> uint8 [rows·(H+1)-1, columns·(W+1)-1, 3], tower *a* above tower *b*.

    Each filter is scaled to its own range around mid-gray: weight 0 is 128. Other than three channels: their mean.
    """
    if weights.shape[1] != 3:
        weights = np.repeat(weights.mean(1, keepdims=True), 3, 1)
    largest = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    cells = np.rint(128 + 127 * weights / np.where(largest > 0, largest, 1)).astype(np.uint8).transpose(0, 2, 3, 1)
    count, height, width, _ = cells.shape
    towers = towers if count % towers == 0 else 1
    columns = _columns(count, towers)
    rows = towers * math.ceil(count // towers / columns)
    drawn = np.full((rows * (height + GAP), columns * (width + GAP), 3), 128, np.uint8)
    for k, cell in enumerate(cells):
        tower, index = divmod(k, count // towers)
        row, column = tower * rows // towers + index // columns, index % columns
        drawn[row * (height + GAP) :, column * (width + GAP) :][:height, :width] = cell
    return drawn[:-GAP, :-GAP]


def _columns(count: int, towers: int) -> int:
    """About as wide as Figure 3 of the paper (16 for 96 filters), with full rows where possible."""
    aim, each = math.sqrt(count * 16 / 6), max(1, count // towers)
    whole = [n for n in range(1, each + 1) if each % n == 0 and 0.7 * aim <= n <= 1.4 * aim]
    return min(whole, key=lambda n: abs(n - aim)) if whole else min(each, math.ceil(aim))
