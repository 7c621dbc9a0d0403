"""Inputs and results of predictions, shared by classifiers, exported files and the server; without PyTorch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode
from alexnet.errors import BundleError, ImageError, RecipeError

ImageInput: TypeAlias = str | Path | bytes | NDArray[np.uint8]  # a file, its bytes, or RGB pixels [H, W, 3]


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        filename: Path of the image, or ``#0``, ``#1``, ... for images in memory.
        top_k: The most probable classes, the first one first: (class name, probability).
        abstained: Is the first probability below the confidence threshold? None without a threshold.
        prediction_set: Classes of the conformal prediction set, the most probable first; None unless requested.
    """

    filename: str
    top_k: tuple[tuple[str, float], ...]
    abstained: bool | None = None
    prediction_set: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """The first prediction."""
        return self.top_k[0][0]

    @property
    def score(self) -> float:
        """The probability of the first prediction, 0 to 1."""
        return self.top_k[0][1]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, with the names of the server's JSON. Attributes that are None are left out."""
        optional = {} if self.abstained is None else {"abstained": self.abstained}
        sets = {} if self.prediction_set is None else {"prediction_set": list(self.prediction_set)}
        top_k = [{"label": label, "score": score} for label, score in self.top_k]
        return {"filename": self.filename, **optional, **sets, "top_k": top_k}


def best(
    name: str,
    row: NDArray[np.float32],
    classes: Sequence[str],
    top: int,
    confidence_threshold: float | None = None,
    limits: Sequence[float] | None = None,
) -> Prediction:
    """The ``top`` predictions of an image called ``name`` from its probabilities ``row`` [K].

    It abstains where the first one is below ``confidence_threshold``. ``limits`` [K]: a class is in the prediction set
    from this probability on.
    """
    order = np.argsort(-row, kind="stable")
    first = order[: max(1, top)]
    unknown = None if confidence_threshold is None else float(row[order[0]]) < confidence_threshold
    sets = None if limits is None else tuple(classes[k] for k in order if row[k] >= limits[k])
    return Prediction(name, tuple((classes[k], float(row[k])) for k in first), unknown, sets)


def check_threshold(below: float | None, target: float | None) -> None:
    """Raise :class:`RecipeError` for an invalid confidence threshold or target risk."""
    if below is not None and target is not None:
        raise RecipeError("--confidence-threshold and --target-risk both give a threshold", "one of them")
    if below is not None and not 0 <= below <= 1:
        raise RecipeError(f"--confidence-threshold is {below}", "a probability from 0 to 1")
    if target is not None and not 0 < target < 1:
        raise RecipeError(f"--target-risk is {target}", "a fraction of wrong predictions between 0 and 1, such as 0.02")


def threshold_for(thresholds: Mapping[str, float], target: float, where: str) -> float:
    """The threshold of the largest stored target risk that is not above ``target``.

    Raises :class:`BundleError` if there is none.
    """
    kept = {float(name): p for name, p in thresholds.items() if float(name) <= target + 1e-12}
    if not kept:
        stored = ", ".join(thresholds)
        must = f"at least {min(thresholds, key=float)} (it has thresholds for {stored})" if stored else ""
        todo = (
            "give --confidence-threshold"
            if stored
            else "it has none for any: alexnet evaluate RUN --calibrate fits them"
        )
        raise BundleError(f"{where} has no threshold for a target error of {target:g}", must, todo)
    return float(kept[max(kept)])


def conformal_limits(conformal: Mapping[str, Sequence[float]], level: float, where: str) -> tuple[float, ...]:
    """The thresholds of the classes for the smallest stored coverage that is not below ``level``.

    Raises :class:`BundleError` if there is none.
    """
    kept = {float(name): limits for name, limits in conformal.items() if float(name) >= level - 1e-12}
    if not kept:
        must = f"at most {max(conformal, key=float)}" if conformal else "calibrated"
        hint = (
            "" if conformal else "alexnet evaluate RUN --calibrate fits them (9 validation images of a class or more)"
        )
        raise BundleError(f"{where} has no prediction sets for a coverage of {level:g}", must, hint)
    return tuple(kept[min(kept)])


def as_pixels(image: ImageInput, name: str = "image") -> NDArray[np.uint8]:
    """An image's pixels, RGB [H, W, 3]. Raises :class:`ImageError` with ``name``."""
    if isinstance(image, str | Path):
        image = decode.read(image)
    if isinstance(image, bytes):
        image = decode.decode(image, name)
    if not isinstance(image, np.ndarray):
        raise ImageError(f"{name}: is {type(image).__name__}", "a path, bytes, or uint8 [H, W, 3], RGB")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(f"{name}: array {image.dtype} {list(image.shape)}", "uint8 [H, W, 3], RGB")
    return image


def named(images: ImageInput | Sequence[ImageInput]) -> list[tuple[str, ImageInput]]:
    """One image or many as a list with a name each: its path, or #0, #1, …"""
    items: list[ImageInput] = [images] if isinstance(images, str | Path | bytes | np.ndarray) else list(images)
    return [(str(p) if isinstance(p, str | Path) else f"#{i}", p) for i, p in enumerate(items)]
