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

SIDE = 200  # pixels of an image's side on the page
CONTENTS = (
    ("made", "What was trained"),
    ("data", "The data"),
    ("numbers", "Numbers"),
    ("sure", "How sure"),
    ("images", "Images"),
    ("mistakes", "Mistakes"),
    ("looks", "Where it looks"),
    ("neighbors", "Alike"),
    ("learned", "Filters and curves"),
    ("cost", "Cost"),
    ("again", "Again"),
)


def page(facts: Mapping[str, Any]) -> str:
    """The page as HTML. Names in it come from other people' files: the template escapes all of them."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(contents=CONTENTS, **facts)


def write(facts: Mapping[str, Any], path: Path) -> Path:
    """Write the page to ``path``, whole or not at all. Raises RunError."""
    text = page(facts).encode("utf-8", "replace")
    try:
        write_file(path, text)
    except OSError as error:
        raise RunError(f"{path}: can not be written ({error.strerror})", "a file in a writable folder") from error
    return path


def photograph(image: NDArray[np.uint8], side: int = SIDE) -> str:
    """An image [H, W, 3] as a data: address, ``side`` pixels on its longer side; small ones keep hard pixels."""
    height, width = image.shape[:2]
    if max(height, width) * 2 <= side:
        times = side // max(height, width)
        return png(decode.encode_png(np.ascontiguousarray(image.repeat(times, axis=0).repeat(times, axis=1))))
    small = image if max(height, width) <= side else decode.fit(image, side, "squash" if height == width else "pad")
    return "data:image/jpeg;base64," + base64.b64encode(decode.encode_jpeg(small, 82)).decode()


def png(data: bytes) -> str:
    """The bytes of a PNG as a data: address."""
    return "data:image/png;base64," + base64.b64encode(data).decode()
