"""``compress``, ``report``, ``diagnose``, ``data_warnings`` and ``plot`` from Python."""

from pathlib import Path
from typing import Any

from alexnet.compression import compress as compression
from alexnet.compression.compress import CompressionResult
from alexnet.compression.deep import CompressionOptions
from alexnet.compression.stages import Method
from alexnet.data.remote import local_path
from alexnet.data.sources.options import DataOptions
from alexnet.doctor.findings import Report as Diagnosis
from alexnet.doctor.images import Phases
from alexnet.explain.opened_run import OpenedRun
from alexnet.plots import run_plots
from alexnet.plots.run_plots import PlotOptions
from alexnet.report import report as reports
from alexnet.report.facts import data_warnings


def compress(
    run: str | Path,
    output: str | Path | None = None,
    data: str | Path | None = None,
    *,
    method: Method = "deep",
    target_size: int | None = None,
    max_accuracy_drop: float | None = None,
    compression_options: CompressionOptions | None = None,
    device: str = "auto",
    workers: int = 1,
    options: DataOptions | None = None,
    quiet: bool = True,
) -> CompressionResult:
    """Write a much smaller copy of a classifier to a new folder.

    With neither ``target_size`` nor ``max_accuracy_drop`` the bundle becomes 35 times smaller, or less where that
    loses more than 1 point of validation accuracy. Without images nothing is pruned. Nothing is written on an error.

    Args:
        run: A run folder or a bundle.
        output: The new folder; by default RUN's name with ``-compressed``.
        data: Images for retraining and validation; by default the run's own.
        method: ``deep`` prunes, retrains and shares weights; ``int8`` and ``int4`` only round them.
        target_size: Maximal size of the whole bundle, in bytes.
        max_accuracy_drop: Maximal loss of validation accuracy, in points; the bundle is made as small as it allows.
        compression_options: Epochs, learning rate and bits of ``deep``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: Data-loading threads (does not affect results).
        options: How ``data`` is read.
        quiet: Print no progress of retraining.

    Returns:
        The measurements of every stage, and the comparison with the original on the test split.

    Raises:
        BundleError: If the size or the accuracy cannot be reached, or the bundle is compressed already.
        DataError: If the images have no training or validation split.
        RunError: If ``output`` is in use or cannot be written.

    Example:
        >>> result = alexnet.compress("my-run", "small", target_size=7_000_000)
        >>> print(result.ratio, result.test.difference)
    """
    return compression.compress(
        local_path(run),
        None if output is None else local_path(output),
        data,
        method=method,
        target_size=target_size,
        max_accuracy_drop=max_accuracy_drop,
        compression=compression_options or CompressionOptions(),
        device=device,
        workers=workers,
        options=options or DataOptions(),
        quiet=quiet,
    )


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
        quick: Leave out what takes long: the doctor on more than 3,000 images, half of the saliency maps, and all
            training images but a sample of at least 500 as neighbors.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        options: How the training images are read.
        progress: Makes the progress bar of a phase from its name.
        diagnosis: The result of :func:`diagnose`, if it was called already.

    Returns:
        The path of the report.

    Raises:
        RunError: If ``run`` is not a run folder, or the report cannot be written.
        BundleError: If the bundle is damaged.
        DataError: If the prepared images are missing or damaged.

    Example:
        >>> path = alexnet.write_report("my-run")
        >>> webbrowser.open(path.as_uri())
    """
    return reports.write_report(
        OpenedRun(local_path(run), store=store, device=device),
        local_path(path) if path else None,
        doctor=doctor,
        quick=quick,
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
        quick: Leave out the doctor if there are more than 3,000 images.
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
    opened = OpenedRun(local_path(run), store=store)
    return reports.diagnose(opened, quick=quick, options=options, progress=progress)


def plot(
    kind: str, run: str | Path, path: str | Path | None = None, *, count: int | None = None, **options: Any
) -> Path:
    """Draw a plot of a run as a PNG.

    Args:
        kind: A key of :data:`alexnet.plots.PLOTS`: ``filters``, ``curves``, ``confusion``, ``roc``, ``predictions``,
            ``features``, ``saliency``, ``neighbors``, ``mistakes``, ``embedding``, ``patches``, ``deconvnet`` or
            ``maximization``.
        run: A run folder. With ``images``, and for ``filters``, a bundle is enough.
        path: The PNG file; by default in the run's folder ``plots``.
        count: Number of test images, or of units; by default what fits on a page.
        **options: Other fields of :class:`alexnet.plots.run_plots.PlotOptions`: ``images``, ``layer``,
            ``target_class``, ``method``, ``store``, ``device``, ``log``, ``progress``.

    Returns:
        The path of the PNG.

    Raises:
        RunError: If there is no such plot, an option has no effect on it, or the file cannot be written.
        ImageError: If an image cannot be read.
        ModelError: If there is no such layer or class.

    Example:
        >>> alexnet.plot("curves", "my-run")
        >>> alexnet.plot("saliency", "my-run", images=["cat.jpg"], target_class="dog")
    """
    target, plot_options = local_path(path) if path else None, PlotOptions(count, **options)
    return run_plots.draw(kind, plot_options.open(local_path(run)), target, plot_options)
