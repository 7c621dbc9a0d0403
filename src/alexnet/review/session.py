"""What a person reviews: the images of the doctor's findings with the suggested decisions, and the decisions so far.

Every decision is written to the corrections file at once (see :mod:`alexnet.data.sources.corrections`). The file is
not overwritten if another program has changed it since.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alexnet.data.atomic_io import sha256_of
from alexnet.data.sources.corrections import ACTIONS, Decision, read_corrections, write_corrections
from alexnet.data.sources.source import Sample, Source, path_text
from alexnet.doctor.findings import Example, Finding, Report
from alexnet.errors import DataError, did_you_mean

MAX_CASE_IMAGES = 12  # images of a case on the page; a group of hundreds is not decided image by image
UNSUGGESTED = ("two-labels", "group-leak")  # findings whose images a person must choose from


@dataclass(frozen=True)
class Case:
    """One or more images to look at together.

    Attributes:
        origins: the images.
        why: what the finding says about them.
        suggested: the suggested decisions by origin; an image may have none.
        scores: class probabilities of the image, the highest first, if there is one image.
        hidden: how many images of the case are not listed.
    """

    origins: tuple[str, ...]
    why: str = ""
    suggested: Mapping[str, Decision] = field(default_factory=dict)
    scores: tuple[tuple[str, float], ...] = ()
    hidden: int = 0


@dataclass(frozen=True)
class Topic:
    """Cases of one kind, such as one finding of the doctor."""

    name: str
    severity: str
    title: str
    todo: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Change:
    """One change of a decision, as the page sends it."""

    image: int  # index
    action: str | None  # one of ACTIONS; None removes the decision
    label: str = ""


def doctor_topics(report: Report, source: Source) -> list[Topic]:
    """The findings of ``report`` that name images, errors first."""
    topics = []
    for finding in report.findings:
        cases = tuple(_case(finding, example, source) for example in finding.examples if example.origins)
        if cases and finding.severity != "note":
            topics.append(Topic(finding.check, finding.severity, finding.what, finding.todo, cases))
    return topics


def _case(finding: Finding, example: Example, source: Source) -> Case:
    excluded, labels = set(finding.exclude), finding.numbers.get("suggested", {})
    suggested: dict[str, Decision] = {}
    for origin in example.origins:
        if origin in labels:
            suggested[origin] = Decision("relabel", labels[origin])
        elif origin in excluded and finding.check not in UNSUGGESTED:
            suggested[origin] = Decision("exclude")
    origins = example.origins[:MAX_CASE_IMAGES]
    return Case(origins, example.why, suggested, hidden=len(example.origins) - len(origins))


class Session:
    """The topics of a review and its decisions, which are kept in the corrections file.

    Args:
        name: of the data set.
        classes: the class names.
        samples: the images of the data set by origin, with the labels of the data set.
        unlabeled: images without a label, by origin: their path relative to the folder of the corrections file.
        topics: what to review.
        path: the corrections file. Decisions that are in it are kept.

    Raises:
        DataError: the file exists and is not a corrections file.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        samples: Mapping[str, tuple[Sample, str]],
        unlabeled: Mapping[str, Sample],
        topics: Iterable[Topic],
        path: Path,
    ) -> None:
        self.name, self.classes, self.path = name, tuple(classes), path
        self._lock = threading.Lock()
        self._digest = self._on_disk()
        self.decisions = read_corrections(path) if self._digest else dict[str, Decision]()
        known = samples.keys() | unlabeled.keys()
        self.topics = [*topics]
        decided = tuple(Case((origin,), _text(one)) for origin, one in self.decisions.items() if origin in known)
        if decided:
            title = "Images that were decided on before"
            self.topics.append(Topic("decided", "note", title, "change a decision here", decided))
        origins = dict.fromkeys(origin for topic in self.topics for case in topic.cases for origin in case.origins)
        self.images: list[Sample] = [unlabeled[o] if o in unlabeled else samples[o][0] for o in origins if o in known]
        self._index = {image.origin: index for index, image in enumerate(self.images)}
        self._splits = ["" if image.origin in unlabeled else samples[image.origin][1] for image in self.images]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for the page."""
        return {
            "name": self.name,
            "file": path_text(self.path),
            "classes": list(self.classes),
            "images": [self._image(index) for index in range(len(self.images))],
            "topics": [
                {
                    "name": topic.name,
                    "severity": topic.severity,
                    "title": topic.title,
                    "todo": topic.todo,
                    "cases": [self._case(case) for case in topic.cases],
                }
                for topic in self.topics
            ],
        }

    def decide(self, changes: Sequence[Change]) -> None:
        """Apply all ``changes`` and write the corrections file; or none of them.

        Raises:
            ValueError: a change is invalid.
            DataError: the file was changed by another program, or cannot be written.
        """
        with self._lock:
            decisions = dict(self.decisions)
            for change in changes:
                self._check(change)
                image = self.images[change.image]
                if change.action is None:
                    decisions.pop(image.origin, None)
                    continue
                action = next(known for known in ACTIONS if known == change.action)
                was = self.classes[image.label] if self._splits[change.image] else ""
                decisions[image.origin] = Decision(action, change.label, was)
            if self._on_disk() != self._digest:
                raise DataError(f"{path_text(self.path)}: was changed by another program", "", "Start the review again")
            write_corrections(self.path, decisions)
            self._digest, self.decisions = self._on_disk(), decisions

    def _check(self, change: Change) -> None:
        if not 0 <= change.image < len(self.images):
            raise ValueError(f"image {change.image} is not in this review")
        is_labeled = bool(self._splits[change.image])
        allowed = ("keep", "relabel", "exclude") if is_labeled else ("add",)
        if change.action is not None and change.action not in allowed:
            raise ValueError(f"action {change.action!r}: {did_you_mean(str(change.action), allowed)}")
        if change.action in ("relabel", "add") and change.label not in self.classes:
            raise ValueError(f"class {change.label!r}: {did_you_mean(change.label, self.classes)}")
        if change.action not in ("relabel", "add") and change.label:
            raise ValueError(f"action {change.action!r} has no class")

    def _on_disk(self) -> str:
        """The SHA-256 of the corrections file; empty if there is none."""
        try:
            return sha256_of(self.path)
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise DataError(f"{path_text(self.path)}: cannot be read ({error.strerror})", "a readable file") from error

    def _image(self, index: int) -> dict[str, Any]:
        image = self.images[index]
        decision, split = self.decisions.get(image.origin), self._splits[index]
        return {
            "origin": image.origin,
            "split": split,
            "label": self.classes[image.label] if split else "",
            "decision": _plain(decision) if decision else None,
        }

    def _case(self, case: Case) -> dict[str, Any]:
        images = [origin for origin in case.origins if origin in self._index]
        return {
            "images": [self._index[origin] for origin in images],
            "suggested": [_plain(case.suggested[o]) if o in case.suggested else None for o in images],
            "why": case.why,
            "scores": [{"label": label, "score": score} for label, score in case.scores],
            "hidden": case.hidden,
        }


def _plain(decision: Decision) -> dict[str, str]:
    return {"action": decision.action, "label": decision.label}


def _text(decision: Decision) -> str:
    was = f" (it was {decision.was})" if decision.was and decision.label else ""
    return f"{decision.action}{' ' * bool(decision.label)}{decision.label}{was}"
