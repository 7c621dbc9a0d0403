"""Pages from Jinja2 templates: HTML in single files with images as data URLs, and the Markdown of model cards.

An HTML page loads nothing and runs no script.
"""

import base64
import html
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode
from alexnet.errors import printable

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: Any) -> str:
    """The page of a template: HTML, or Markdown for a template that ends in ``.md``.

    Class and file names come from other people's files: markup in them is escaped (in Markdown by the filter
    ``markdown``), and control characters become visible. A missing value is an error.

    Args:
        template: A file in ``templates``.
        **values: The values that the template uses.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader,
        autoescape=not template.endswith(".md"),
        keep_trailing_newline=template.endswith(".md"),
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = escape_markdown
    return environment.get_template(template).render(values)


def escape_markdown(text: str) -> str:
    """``text`` as plain Markdown text: at most 100 characters, without HTML, links or formulas."""
    text = printable(text if len(text) <= 100 else text[:99] + "…")
    return re.sub(r"([\\`*_{}\[\]()#|~$!])", r"\\\1", html.escape(text))


def _visible(value: Any) -> Any:
    """``value`` with control characters made visible, line by line; macros' HTML stays as it is."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(map(printable, value.split("\n")))


def image_url(image: NDArray[np.uint8], size: int) -> str:
    """An image uint8 [H, W, 3] as a data URL, ``size`` pixels on its longer side; small images keep sharp pixels."""
    height, width = image.shape[:2]
    if max(height, width) * 2 <= size:
        times = size // max(height, width)
        return png_url(decode.encode_png(np.ascontiguousarray(image.repeat(times, axis=0).repeat(times, axis=1))))
    small = image if max(height, width) <= size else decode.fit(image, size, "squash" if height == width else "pad")
    return jpeg_url(decode.encode_jpeg(small, 82))


def png_url(data: bytes) -> str:
    """The bytes of a PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def jpeg_url(data: bytes) -> str:
    """The bytes of a JPEG as a data URL."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
