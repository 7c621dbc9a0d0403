"""Pictures as people have them, and what is said of them: shared by everything that answers, without PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alexnet.data import pixels
from alexnet.errors import PictureError

Picture: TypeAlias = str | Path | bytes | NDArray[np.uint8]  # a file, its bytes, or RGB pixels [H, W, 3]


@dataclass(frozen=True)
class Prediction:
    """The best guesses for one picture, most probable first: (class name, probability)."""

    name: str
    guesses: tuple[tuple[str, float], ...]

    @property
    def label(self) -> str:
        """The first guess."""
        return self.guesses[0][0]

    @property
    def probability(self) -> float:
        """The probability of the first guess."""
        return self.guesses[0][1]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "picture": self.name,
            "guesses": [{"class": name, "probability": probability} for name, probability in self.guesses],
        }


def best(name: str, row: NDArray[np.float32], classes: Sequence[str], top: int) -> Prediction:
    """The ``top`` guesses of a picture called ``name`` from its probabilities ``row`` [K]."""
    order = np.argsort(-row, kind="stable")[: max(1, top)]
    return Prediction(name, tuple((classes[k], float(row[k])) for k in order))


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
