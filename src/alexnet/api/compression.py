"""``compress`` from Python."""

from pathlib import Path

from alexnet.compression import compress as compression
from alexnet.compression.compress import CompressionResult
from alexnet.compression.deep import CompressionOptions
from alexnet.compression.quantize import Method
from alexnet.data.remote import local_path
from alexnet.data.sources.options import DataOptions


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
        BundleError: If the size or the accuracy can not be reached, or the bundle is compressed already.
        DataError: If the images have no training or validation split.
        RunError: If ``output`` is in use or can not be written.

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
