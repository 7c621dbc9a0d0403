"""The doctor's report: findings, the verdict, and the list of images to exclude."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from alexnet.errors import counted

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


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then warnings, then notes; otherwise in the given order."""
    return tuple(sorted(findings, key=lambda finding: _RANK[finding.severity]))
