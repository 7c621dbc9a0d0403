"""How many pictures of each class a cut takes, and a cut that keeps groups whole."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alexnet.data.listing import Picture
from alexnet.errors import DataError


def cut_groups(
    pictures: tuple[Picture, ...], classes: int, fraction: float, seed: Sequence[int]
) -> tuple[tuple[Picture, ...], tuple[Picture, ...]]:
    """(what is left, what is cut), with every group on one side.

    Groups are tried in a drawn order; one is cut if that brings the classes nearer to their
    shares and leaves every class a picture for training. Raises DataError if no group can be cut at all.
    """
    members = _members(pictures, seed)
    table = np.zeros((len(members), classes), np.int64)  # [G, K] pictures of each class in each group
    for number, own in enumerate(members.values()):
        np.add.at(table[number], [pictures[index].label for index in own], 1)
    left = table.sum(axis=0)  # [K]
    wanted = np.array(shares_of(left, fraction))  # [K]
    cut: set[int] = set()
    for row, own in zip(table, members.values(), strict=True):
        nearer = np.abs(wanted - row).sum() < np.abs(wanted).sum()
        if nearer and not ((left > 0) & (left == row)).any():
            wanted, left = wanted - row, left - row
            cut.update(own)
    if fraction > 0 and not cut and len(pictures) >= 3:
        what = f"no group of {len(members)} can be kept apart: too large, or all that a class has"
        raise DataError(what, "several groups in each class", "group otherwise, or bring splits of your own")
    sides = [tuple(p for index, p in enumerate(pictures) if (index in cut) == side) for side in (False, True)]
    return sides[0], sides[1]


def _members(pictures: tuple[Picture, ...], seed: Sequence[int]) -> dict[str, list[int]]:
    """Group → its pictures, in the order in which groups are tried. A picture without a group is one of its own."""
    found: dict[str, list[int]] = {}
    for index, picture in enumerate(pictures):
        found.setdefault(f"g{picture.group}" if picture.group else f"p{picture.origin}", []).append(index)
    names = sorted(found)
    order = np.random.Generator(np.random.PCG64(list(seed))).permutation(len(names))
    return {names[index]: found[names[index]] for index in order}


def shares_of(counts: NDArray[np.int64], fraction: float) -> list[int]:
    """How many of each class to cut: largest remainders, then at least one of three, then one left for training."""
    exact = counts * fraction
    shares = np.floor(exact).astype(np.int64)
    remainders = exact - shares
    more = round(float(exact.sum())) - int(shares.sum())
    for label in np.argsort(-remainders, kind="stable")[:more]:
        shares[label] += remainders[label] > 0
    if fraction > 0:
        shares = np.where(counts >= 3, np.maximum(shares, 1), shares)
    return [int(share) for share in np.minimum(shares, np.maximum(counts - 1, 0))]
