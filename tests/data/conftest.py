"""Small folders of real files."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def png_bytes(seed: int, side: int = 12) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """``folder({"cat": 5, "train/dog": 3})`` writes so many PNGs into each folder and gives the root."""

    def make(counts: dict[str, int], name: str = "pictures") -> Path:
        root = tmp_path / name
        for number, (place, count) in enumerate(counts.items()):
            (root / place).mkdir(parents=True)
            for index in range(count):
                (root / place / f"{index:03d}.png").write_bytes(png_bytes(1000 * number + index))
        return root

    return make
