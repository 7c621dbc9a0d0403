"""``report``, ``diagnose`` and ``data_warnings`` from Python."""

from pathlib import Path

from alexnet.data.remote import local_path
from alexnet.data.sources.options import DataOptions
from alexnet.doctor.findings import Report as Diagnosis
from alexnet.doctor.images import Phases
from alexnet.report import report as reports
from alexnet.report.facts import data_warnings

__all__ = ["data_warnings", "diagnose", "write_report"]


def write_report(
    run: str | Path,
    path: str | Path | None = None,
    *,
    store: str | Path | None = None,
    doctor: bool = True,
    quick: bool = False,
    device: str = "auto",
    options: DataOptions | None = None,
    progress: Phases | None = None,
    diagnosis: tuple[Diagnosis | None, str] | None = None,
) -> Path:
    """Write the report of a run as one HTML file.

    Args:
        run: A run folder.
        path: The HTML file; by default ``report.html`` in the run's folder.
        store: The prepared images of the run, if they were moved.
        doctor: Examine the training images, if they are available.
        quick: Leave out what takes long: the doctor on more than 3,000 images, and a new index of neighbors.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        options: How the training images are read.
        progress: Makes the progress bar of a phase from its name.
        diagnosis: The result of :func:`diagnose`, if it was called already.

    Returns:
        The path of the report.

    Raises:
        RunError: If ``run`` is not a run folder, or the report can not be written.
        BundleError: If the bundle is damaged.
        DataError: If the prepared images are missing or damaged.

    Example:
        >>> path = alexnet.write_report("my-run")
        >>> webbrowser.open(path.as_uri())
    """
    return reports.write_report(
        local_path(run),
        local_path(path) if path else None,
        store=store,
        doctor=doctor,
        quick=quick,
        device=device,
        options=options,
        progress=progress,
        diagnosis=diagnosis,
    )


def diagnose(
    run: str | Path,
    *,
    store: str | Path | None = None,
    quick: bool = False,
    options: DataOptions | None = None,
    progress: Phases | None = None,
) -> tuple[Diagnosis | None, str]:
    """Examine the training images of a run with the doctor.

    Args:
        run: A run folder.
        store: The prepared images of the run, if they were moved.
        quick: Examine at most 3,000 images.
        options: How the training images are read.
        progress: Makes the progress bar of a phase from its name.

    Returns:
        The doctor's report, or None and the reason why there is none.

    Raises:
        RunError: If ``run`` is not a run folder.
        BundleError: If the bundle is damaged.
        DataError: If the prepared images are missing or damaged.

    Example:
        >>> diagnosis, reason = alexnet.api.diagnose("my-run")
        >>> print(diagnosis.verdict if diagnosis else reason)
    """
    return reports.diagnose(local_path(run), store=store, quick=quick, options=options, progress=progress)
