"""The report as one HTML file that needs nothing else: thumbnails inside, light and dark, no script."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alexnet.data import decode
from alexnet.data.atomic_io import write_file
from alexnet.data.sources.listing import Sample, Source
from alexnet.doctor.findings import Example, Report
from alexnet.errors import DataError, ImageError

SIDE = 96  # pixels of a thumbnail on the page
CASES, EACH = 12, 6  # examples of a finding, images of an example


class Shown(NamedTuple):
    """One image on the page."""

    name: str
    image: str  # a data: address, or empty where nothing can be shown


def write_page(report: Report, source: Source, path: Path) -> None:
    """Write the page to ``path``, whole or not at all. Raises DataError if it can not be written."""
    images = {image.origin: image for own in source.splits.values() for image in own}
    try:
        write_file(path, page(report, images).encode())
    except OSError as error:
        raise DataError(f"{path}: can not be written ({error.strerror})", "a file in a writable folder", "") from error


def page(report: Report, images: Mapping[str, Sample]) -> str:
    """The page as HTML. Names and reasons come from other people' files: the template escapes all of them."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    findings: list[dict[str, Any]] = []
    for finding in report.findings:
        cases = [
            (example.why, _shown(example, images), max(0, len(example.origins) - EACH))
            for example in finding.examples[:CASES]
        ]
        findings.append({"about": finding, "cases": cases, "more": len(finding.examples) - len(cases)})
    rows = [(title, [counts[label] for counts in report.counts.values()]) for label, title in enumerate(report.classes)]
    return environment.from_string(template).render(
        report=report, findings=findings, rows=rows, excluded=len(report.exclusions()), side=SIDE
    )


def _shown(example: Example, images: Mapping[str, Sample]) -> list[Shown]:
    return [Shown(origin, _thumbnail(images.get(origin))) for origin in example.origins[:EACH]]


def _thumbnail(sample: Sample | None) -> str:
    if sample is None:
        return ""
    try:
        data = sample.load()
        image = decode.decode(data, sample.origin, allow_truncated=True) if isinstance(data, bytes) else data
    except (ImageError, OSError):
        return ""
    small = decode.encode_jpeg(decode.fit(image, SIDE, "pad"))
    return "data:image/jpeg;base64," + base64.b64encode(small).decode()
