"""The doctor's report: findings, the verdict, the list of images to exclude, and the HTML page."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from alexnet import pages
from alexnet.data import decode
from alexnet.data.atomic_io import write_file, written
from alexnet.data.sources.source import Sample, Source
from alexnet.errors import DataError, ImageError, counted
from alexnet.terminal import shorten

Severity = Literal["error", "warning", "note"]
_RANK = {"error": 0, "warning": 1, "note": 2}


class Example(NamedTuple):
    """One case of a finding: an image, or images that belong together."""

    origins: tuple[str, ...]  # one image, or those that belong together
    why: str = ""


@dataclass(frozen=True)
class Finding:
    """One finding about a data set.

    An error makes results wrong or training impossible; a warning makes results worse; a note is information.
    """

    check: str  # name of the check: leak, truncated, shortcut …
    severity: Severity
    what: str  # one sentence with its numbers
    todo: str = ""
    examples: tuple[Example, ...] = ()  # all of them
    exclude: tuple[str, ...] = ()  # origins of the images whose exclusion solves the problem
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        cases = [{"images": list(example.origins), "why": example.why} for example in self.examples]
        plain = {"check": self.check, "severity": self.severity, "what": self.what, "todo": self.todo}
        return plain | {"examples": cases, "exclude": list(self.exclude), "numbers": dict(self.numbers)}


@dataclass(frozen=True)
class Report:
    """All findings about a data set, errors first."""

    name: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]  # split → images of each class
    drawn: bool  # the data brings no splits: these are the splits that training would make
    findings: tuple[Finding, ...]

    @property
    def honest(self) -> bool:
        """Whether results of training on this data can be trusted: there are no errors."""
        return all(finding.severity != "error" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """One line: whether to train on this data."""
        results = {kind: sum(finding.severity == kind for finding in self.findings) for kind in _RANK}
        if results["error"]:
            problems = counted(results["error"], "problem")
            return f"Do not train on this data yet: {problems} would make the result wrong or useless."
        if results["warning"]:
            return f"Ready for training. Read {counted(results['warning'], 'warning')} first."
        return "Ready for training: no problems found."

    def exclusions(self) -> dict[str, str]:
        """Origins of the images to exclude, each with the name of its check, in the order of the findings."""
        results: dict[str, str] = {}
        for finding in self.findings:
            for origin in finding.exclude:
                results.setdefault(origin, finding.check)
        return results

    def exclusion_list(self) -> str:
        """The text of a file for ``--exclude``: one line an image, its name, a tab and the reason."""
        head = f"# {self.name}: images that alexnet doctor suggests to exclude; delete a line to keep its image"
        return "\n".join([head, *(f"{origin}\t{why}" for origin, why in self.exclusions().items()), ""])

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "honest": self.honest,
            "classes": list(self.classes),
            "counts": {split: list(counts) for split, counts in self.counts.items()},
            "splits_drawn": self.drawn,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def without_reviewed(finding: Finding, reviewed: Set[str]) -> Finding | None:
    """``finding`` without the cases that a person has reviewed and kept; None if no case is left.

    Errors stay: a decision to keep two copies does not make the test accuracy of a leak correct.

    Args:
        finding: a finding.
        reviewed: origins of the images that are kept.
    """
    if finding.severity == "error":
        return finding
    examples = tuple(case for case in finding.examples if not case.origins or set(case.origins) - reviewed)
    kept = len(finding.examples) - len(examples)
    if finding.examples and not examples:
        return None
    what = f"{finding.what}; {counted(kept, 'case')} reviewed and kept" if kept else finding.what
    exclude = tuple(origin for origin in finding.exclude if origin not in reviewed)
    return replace(finding, what=what, examples=examples, exclude=exclude)


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then warnings, then notes; otherwise in the given order."""
    return tuple(sorted(findings, key=lambda finding: _RANK[finding.severity]))


SIZE = 96  # pixels of a thumbnail on the page
MAX_EXAMPLES, MAX_IMAGES = 12, 6  # examples of a finding, images of an example


class PageImage(NamedTuple):
    """One image on the page."""

    name: str
    image: str  # a data: URL, or empty if there is no thumbnail


def write_page(report: Report, source: Source, path: Path) -> None:
    """Write the page to ``path``, atomically. Raises DataError if it cannot be written."""
    images = {image.origin: image for samples in (*source.splits.values(), source.added) for image in samples}
    with written(path, DataError):
        write_file(path, page(report, images).encode("utf-8", "replace"))


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
    rows = [
        (shorten(title, 200), [counts[label] for counts in report.counts.values()])
        for label, title in enumerate(report.classes)
    ]
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
