"""Pictures as people have them, and what is said of them: shared by everything that answers, without PyTorch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alexnet.data import pixels
from alexnet.errors import BundleError, PictureError, RecipeError

Picture: TypeAlias = str | Path | bytes | NDArray[np.uint8]  # a file, its bytes, or RGB pixels [H, W, 3]


@dataclass(frozen=True)
class Prediction:
    """The best guesses for one picture, most probable first: (class name, probability).

    ``unknown``: is the first one less probable than the threshold that was asked for? None: none was.
    """

    name: str
    guesses: tuple[tuple[str, float], ...]
    unknown: bool | None = None

    @property
    def label(self) -> str:
        """The first guess."""
        return self.guesses[0][0]

    @property
    def probability(self) -> float:
        """The probability of the first guess."""
        return self.guesses[0][1]

    def to_dict(self) -> dict[str, Any]:
        """As plain values; ``unknown`` only where a threshold was asked for."""
        return {"picture": self.name, **({} if self.unknown is None else {"unknown": self.unknown})} | {
            "guesses": [{"class": name, "probability": probability} for name, probability in self.guesses],
        }


def best(
    name: str, row: NDArray[np.float32], classes: Sequence[str], top: int, abstain_below: float | None = None
) -> Prediction:
    """The ``top`` guesses of a picture called ``name`` from its probabilities ``row`` [K]; unknown where the first one
    is below ``abstain_below``."""
    order = np.argsort(-row, kind="stable")[: max(1, top)]
    unknown = None if abstain_below is None else float(row[order[0]]) < abstain_below
    return Prediction(name, tuple((classes[k], float(row[k])) for k in order), unknown)


def check_threshold(below: float | None, target: float | None) -> None:
    """Raise :class:`RecipeError` for a threshold or a target error that can not be."""
    if below is not None and target is not None:
        raise RecipeError("--abstain-below and --target-error both give a threshold", "one of them")
    if below is not None and not 0 <= below <= 1:
        raise RecipeError(f"--abstain-below is {below}", "a probability from 0 to 1")
    if target is not None and not 0 < target < 1:
        raise RecipeError(f"--target-error is {target}", "a share of wrong answers between 0 and 1: 0.02")


def threshold_for(thresholds: Mapping[str, float], target: float, where: str) -> float:
    """The threshold that keeps the error among answers at ``target``: that of the largest stored target not above it.

    Raises :class:`BundleError` where validation could support none.
    """
    kept = {float(name): p for name, p in thresholds.items() if float(name) <= target + 1e-12}
    if not kept:
        stored = ", ".join(thresholds)
        must = f"at least {min(thresholds, key=float)} (it has thresholds for {stored})" if stored else ""
        todo = "give --abstain-below" if stored else "it has none for any: alexnet evaluate RUN --calibrate fits them"
        raise BundleError(f"{where} has no threshold for a target error of {target:g}", must, todo)
    return float(kept[max(kept)])


def as_pixels(picture: Picture, name: str = "picture") -> NDArray[np.uint8]:
    """A picture's pixels, RGB [H, W, 3]. Raises :class:`PictureError` with ``name``."""
    if isinstance(picture, str | Path):
        picture = pixels.read(picture)
    if isinstance(picture, bytes):
        picture = pixels.decode(picture, name)
    if not isinstance(picture, np.ndarray):
        raise PictureError(f"{name}: is {type(picture).__name__}", "a path, bytes, or uint8 [H, W, 3], RGB")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise PictureError(f"{name}: array {picture.dtype} {list(picture.shape)}", "uint8 [H, W, 3], RGB")
    return picture


def named(pictures: Picture | Sequence[Picture]) -> list[tuple[str, Picture]]:
    """One picture or many as a list with a name each: its path, or #0, #1, …"""
    many: list[Picture] = [pictures] if isinstance(pictures, str | Path | bytes | np.ndarray) else list(pictures)
    return [(str(p) if isinstance(p, str | Path) else f"#{i}", p) for i, p in enumerate(many)]
