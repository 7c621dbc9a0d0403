"""What chose what, and how often the test split was looked at: the lines that stand under every number.

A run's journal gets a line each time its own test split is evaluated. A test split that is looked at again and again,
with changes in between, chooses too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet.bundle import Bundle, find_bundle
from alexnet.bundle.integrity import read_config
from alexnet.data.store import Store
from alexnet.training.logger import TESTED, append_event, damage, read_events


@dataclass(frozen=True)
class Provenance:
    """Which split chose the epoch, the temperature and the thresholds of a bundle.

    ``tested`` counts evaluations of the run's own test split since it was trained; None for a bundle without a run.
    """

    epoch: str
    temperature: float
    temperature_by: str  # "" where nothing was fitted
    count: int  # images of that split
    thresholds: tuple[str, ...]  # target errors that it could support
    tested: int | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        by = {"split": self.temperature_by, "count": self.count} if self.temperature_by else None
        chosen = {"epoch": self.epoch, "temperature": self.temperature, "temperature_fitted_on": by}
        return {"chosen_by": chosen | {"thresholds_for": list(self.thresholds)}, "test_evaluations": self.tested}

    def lines(self) -> list[str]:
        """For people."""
        fitted = "temperature 1: nothing was fitted, and there are no thresholds"
        if self.temperature_by:
            ranks = f"thresholds for {', '.join(f'{100 * float(t):g} %' for t in self.thresholds)}"
            fitted = f"temperature {self.temperature:.3f} and {ranks if self.thresholds else 'no thresholds'} by "
            fitted += f"{self.count} {self.temperature_by} images"
            fitted += " (no temperature made calibration better: none is applied)" if self.temperature == 1.0 else ""
        results = [f"chosen     {self.epoch}; {fitted}; nothing by the test split"]
        if self.tested is not None:
            times = "once" if self.tested == 1 else f"{self.tested} times"
            warning = "; what is changed because of it is chosen by it" if self.tested > 1 else ""
            results.append(f"test       its test split was evaluated {times} since training{warning}")
        return results


def provenance(run: str | Path) -> Provenance:
    """Of a run folder or a bundle."""
    return of_bundle(Bundle.load(find_bundle(run)), run)


def of_bundle(bundle: Bundle, run: str | Path | None = None) -> Provenance:
    """Of an open bundle, which lies in ``run``."""
    calibration = bundle.calibration
    return Provenance(
        epoch=str(bundle.data.get("kept", "epoch unknown")),
        temperature=bundle.temperature,
        temperature_by=str(calibration.get("fitted_on", "")),
        count=int(calibration.get("count", 0)),
        thresholds=tuple(sorted(bundle.thresholds, key=float)),
        tested=None if run is None else times_tested(Path(run)),
    )


def note_test(run: Any, store: Store, split: str, by: str, tell: Callable[[str], None]) -> None:
    """Write into a run's journal that its own test split was looked at; other images are nobody's business.

    What is damaged in the run's record is told of.
    """
    journal = Path("" if not isinstance(run, str | Path) else run) / "journal.jsonl"
    if isinstance(run, str | Path):
        for fault in damage(Path(run)):
            tell(fault)
    if split != "test" or not isinstance(run, str | Path) or not journal.is_file():
        return
    about = _data(Path(run))
    if about.get("fingerprint") != store.fingerprint:
        return
    try:
        append_event(journal, TESTED, split=split, by=by)
    except OSError as error:
        tell(f"{journal} can not be written ({error.strerror}): this look at the test split is not counted")


def _data(run: Path) -> dict[str, Any]:
    """What the bundle of a run was trained on; its config was checked when it was opened."""
    return read_config(find_bundle(run))[1].data


def times_tested(run: Path) -> int | None:
    """How often a run's own test split was evaluated since its training ended; None where there is no journal."""
    try:
        events, _ = read_events(run)
    except OSError:
        return None
    return sum(bool(event.get("event") == TESTED) for event in events)
