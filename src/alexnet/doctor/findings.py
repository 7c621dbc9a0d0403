"""What the doctor found, and what follows from it: findings, the verdict, the list of images to leave out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from alexnet.errors import counted

Severity = Literal["error", "warning", "note"]
_RANK = {"error": 0, "warning": 1, "note": 2}


class Example(NamedTuple):
    """One case of a finding."""

    origins: tuple[str, ...]  # one image, or those that belong together
    why: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing about a data set. An error makes training dishonest or impossible; a warning makes its result worse."""

    check: str  # a short name: leak, truncated, shortcut …
    severity: Severity
    what: str  # one sentence with its numbers
    todo: str = ""
    examples: tuple[Example, ...] = ()  # all of them
    exclude: tuple[str, ...] = ()  # origins to leave out, which would mend it
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        cases = [{"images": list(example.origins), "why": example.why} for example in self.examples]
        plain = {"check": self.check, "severity": self.severity, "what": self.what, "todo": self.todo}
        return plain | {"examples": cases, "exclude": list(self.exclude), "numbers": dict(self.numbers)}


@dataclass(frozen=True)
class Report:
    """All that was found in a data set; errors first."""

    name: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]  # split → images of each class
    drawn: bool  # the splits are not the data's own but those that training would draw
    findings: tuple[Finding, ...]

    @property
    def honest(self) -> bool:
        """May one believe a result of training on this?"""
        return all(finding.severity != "error" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """One line: train or not."""
        results = {kind: sum(finding.severity == kind for finding in self.findings) for kind in _RANK}
        if results["error"]:
            problems = counted(results["error"], "fault")
            return f"Do not train on this yet: {problems} would make the result wrong or useless."
        if results["warning"]:
            return f"Can be trained on; {counted(results['warning'], 'warning')} to read first."
        return "Healthy: nothing stands against training on this."

    def exclusions(self) -> dict[str, str]:
        """Origin → why it should be left out, in the order of the findings."""
        results: dict[str, str] = {}
        for finding in self.findings:
            for origin in finding.exclude:
                results.setdefault(origin, finding.check)
        return results

    def exclusion_list(self) -> str:
        """As a text file for ``--exclude``: a name, a tab, the reason."""
        head = f"# {self.name}: images that alexnet doctor would leave out; delete a line to keep its image"
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
    """Errors first, then warnings, then notes; else as they came."""
    return tuple(sorted(findings, key=lambda finding: _RANK[finding.severity]))
