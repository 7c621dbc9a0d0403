"""The report as one HTML file with embedded thumbnails, a light and a dark style, and no scripts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alexnet import pages
from alexnet.data import decode
from alexnet.data.atomic_io import write_file
from alexnet.data.sources.source import Sample, Source
from alexnet.doctor.findings import Example, Report
from alexnet.errors import DataError, ImageError

SIZE = 96  # pixels of a thumbnail on the page
MAX_EXAMPLES, MAX_IMAGES = 12, 6  # examples of a finding, images of an example


class PageImage(NamedTuple):
    """One image on the page."""

    name: str
    image: str  # a data: URL, or empty if there is no thumbnail


def write_page(report: Report, source: Source, path: Path) -> None:
    """Write the page to ``path``, atomically. Raises DataError if it can not be written."""
    images = {image.origin: image for samples in source.splits.values() for image in samples}
    try:
        write_file(path, page(report, images).encode("utf-8", "replace"))
    except OSError as error:
        raise DataError(f"{path}: can not be written ({error.strerror})", "a file in a writable folder") from error


def page(report: Report, images: Mapping[str, Sample]) -> str:
    """The page as HTML."""
    findings: list[dict[str, Any]] = []
    for finding in report.findings:
        cases = [
            (example.why, _page_images(example, images), max(0, len(example.origins) - MAX_IMAGES))
            for example in finding.examples[:MAX_EXAMPLES]
        ]
        single = all(len(example.origins) == 1 for example in finding.examples)  # shown next to each other
        more = len(finding.examples) - len(cases)
        findings.append({"finding": finding, "cases": cases, "single": single, "more": more})
    rows = [(title, [counts[label] for counts in report.counts.values()]) for label, title in enumerate(report.classes)]
    excluded = len(report.exclusions())
    return pages.render("doctor.html", report=report, findings=findings, rows=rows, excluded=excluded, size=SIZE)


def _page_images(example: Example, images: Mapping[str, Sample]) -> list[PageImage]:
    return [PageImage(origin, _thumbnail(images.get(origin))) for origin in example.origins[:MAX_IMAGES]]


def _thumbnail(sample: Sample | None) -> str:
    if sample is None:
        return ""
    try:
        data = sample.load()
        image = decode.decode(data, sample.origin, allow_truncated=True) if isinstance(data, bytes) else data
    except (ImageError, OSError):
        return ""
    return pages.jpeg_url(decode.encode_jpeg(decode.fit(image, SIZE, "pad")))
