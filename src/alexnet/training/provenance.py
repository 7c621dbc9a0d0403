"""Provenance of a bundle's numbers: which split chose what, and how often the test split was evaluated.

A run's journal gets a line for each evaluation of its own test split. Repeated evaluations, with changes in between,
select by the test split.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet.bundle import Bundle, find_bundle
from alexnet.bundle.integrity import read_config
from alexnet.data.store import Store
from alexnet.evaluation.calibration import NO_TEMPERATURE
from alexnet.training.logger import TESTED, append_event, damage, read_events


@dataclass(frozen=True)
class Provenance:
    """Which split chose the epoch, the temperature and the thresholds of a bundle.

    Attributes:
        epoch: Which epoch's weights were kept, and by what.
        temperature: The temperature; 1 where none is applied.
        temperature_by: The split on which it was fitted; empty where nothing was fitted.
        count: Images of that split.
        thresholds: Target errors for which the bundle has thresholds.
        tested: Evaluations of the run's own test split since training; None for a bundle without a run.
    """

    epoch: str
    temperature: float
    temperature_by: str
    count: int
    thresholds: tuple[str, ...]
    tested: int | None

    def to_dict(self) -> dict[str, Any]:
        """The provenance as JSON values."""
        by = {"split": self.temperature_by, "count": self.count} if self.temperature_by else None
        chosen = {"epoch": self.epoch, "temperature": self.temperature, "temperature_fitted_on": by}
        return {"chosen_by": chosen | {"thresholds_for": list(self.thresholds)}, "test_evaluations": self.tested}

    def lines(self) -> list[str]:
        """The provenance as lines of text."""
        fitted = "temperature 1: nothing was fitted, and there are no thresholds"
        if self.temperature_by:
            targets = f"thresholds for {', '.join(f'{100 * float(t):g} %' for t in self.thresholds)}"
            fitted = f"temperature {self.temperature:.3f} and {targets if self.thresholds else 'no thresholds'} by "
            fitted += f"{self.count} {self.temperature_by} images"
            fitted += f" ({NO_TEMPERATURE[0].lower()}{NO_TEMPERATURE[1:-1]})" if self.temperature == 1.0 else ""
        lines = [f"chosen     {self.epoch}; {fitted}; nothing by the test split"]
        if self.tested is not None:
            times = "once" if self.tested == 1 else f"{self.tested} times"
            warning = "; changes made because of it are selected by it" if self.tested > 1 else ""
            lines.append(f"test       its test split was evaluated {times} since training{warning}")
        return lines


def provenance(run: str | Path) -> Provenance:
    """The provenance of a run folder or a bundle."""
    return of_bundle(Bundle.load(find_bundle(run)), run)


def of_bundle(bundle: Bundle, run: str | Path | None = None) -> Provenance:
    """The provenance of an open bundle; ``run`` is the run folder that it is in."""
    calibration = bundle.calibration
    return Provenance(
        epoch=str(bundle.data.get("kept", "epoch unknown")),
        temperature=bundle.temperature,
        temperature_by=str(calibration.get("fitted_on", "")),
        count=int(calibration.get("count", 0)),
        thresholds=tuple(sorted(bundle.thresholds, key=float)),
        tested=None if run is None else times_tested(Path(run)),
    )


def note_test(run: str | Path | None, store: Store, split: str, by: str, log: Callable[[str], None]) -> None:
    """Record in a run's journal that its own test split was evaluated; other images are not recorded.

    Args:
        run: The run folder or bundle; None for a classifier in memory.
        store: The store that was evaluated.
        split: The split that was evaluated.
        by: The command that evaluated it.
        log: Receives a line for each damaged file of the run.
    """
    if run is None:
        return
    run = Path(run)
    for problem in damage(run):
        log(problem)
    journal = run / "journal.jsonl"
    if split != "test" or not journal.is_file():
        return
    if _data(run).get("fingerprint") != store.fingerprint:
        return
    try:
        append_event(journal, TESTED, split=split, by=by)
    except OSError as error:
        log(f"{journal} can not be written ({error.strerror}): this evaluation of the test split is not counted")


def _data(run: Path) -> dict[str, Any]:
    """The metadata of the images that a run's bundle was trained on."""
    return read_config(find_bundle(run))[1].data


def times_tested(run: Path) -> int | None:
    """How often a run's own test split was evaluated since training; None without a journal."""
    try:
        events, _ = read_events(run)
    except OSError:
        return None
    return sum(bool(event.get("event") == TESTED) for event in events)
