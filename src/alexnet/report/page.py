"""A run's report as one HTML file that needs nothing else: images inside, light and dark, no script, no request."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode
from alexnet.data.atomic_io import write_file
from alexnet.errors import RunError

IMAGE_SIZE = 200  # pixels of the longer size of an image on the page
CONTENTS = (
    ("training", "Training"),
    ("data", "Data"),
    ("metrics", "Metrics"),
    ("calibration", "Calibration"),
    ("images", "Predictions"),
    ("mistakes", "Mistakes"),
    ("saliency", "Saliency maps"),
    ("neighbors", "Nearest images"),
    ("filters", "Filters and curves"),
    ("cost", "Cost"),
    ("reproduction", "Reproduction"),
)


def page(values: Mapping[str, Any]) -> str:
    """The page as HTML. Names in it come from other people' files: the template escapes all of them."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(contents=CONTENTS, **values)


def write(values: Mapping[str, Any], path: Path) -> Path:
    """Write the page to ``path``, whole or not at all. Raises RunError."""
    text = page(values).encode("utf-8", "replace")
    try:
        write_file(path, text)
    except OSError as error:
        raise RunError(f"{path}: can not be written ({error.strerror})", "a file in a writable folder") from error
    return path


def embedded(image: NDArray[np.uint8], size: int = IMAGE_SIZE) -> str:
    """An image uint8 [H, W, 3] as a data URL, ``size`` pixels on its longer side; small images keep sharp pixels."""
    height, width = image.shape[:2]
    if max(height, width) * 2 <= size:
        times = size // max(height, width)
        return png_url(decode.encode_png(np.ascontiguousarray(image.repeat(times, axis=0).repeat(times, axis=1))))
    small = image if max(height, width) <= size else decode.fit(image, size, "squash" if height == width else "pad")
    return "data:image/jpeg;base64," + base64.b64encode(decode.encode_jpeg(small, 82)).decode()


def png_url(data: bytes) -> str:
    """The bytes of a PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(data).decode()
