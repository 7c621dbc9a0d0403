"""``plot`` from Python."""

from pathlib import Path
from typing import Any

from alexnet.data.remote import local_path
from alexnet.plots import run_plots
from alexnet.plots.run_plots import PlotOptions


def plot(
    kind: str, run: str | Path, path: str | Path | None = None, *, count: int | None = None, **options: Any
) -> Path:
    """Draw a plot of a run as a PNG.

    Args:
        kind: A key of :data:`alexnet.plots.registry.PLOTS`: ``filters``, ``curves``, ``confusion``, ``predictions``,
            ``features``, ``saliency``, ``neighbors``, ``mistakes`` or ``embedding``.
        run: A run folder. With ``images``, and for ``filters``, a bundle is enough.
        path: The PNG file; by default in the run's folder ``plots``.
        count: Number of test images; by default what fits on a page.
        **options: Other fields of :class:`alexnet.plots.run_plots.PlotOptions`: ``images``, ``layer``,
            ``target_class``, ``method``, ``device``, ``log``, ``progress``.

    Returns:
        The path of the PNG.

    Raises:
        RunError: If there is no such plot, an option has no effect on it, or the file can not be written.
        ImageError: If an image can not be read.
        ModelError: If there is no such layer or class.

    Example:
        >>> alexnet.plot("curves", "my-run")
        >>> alexnet.plot("saliency", "my-run", images=["cat.jpg"], target_class="dog")
    """
    target = local_path(path) if path else None
    return run_plots.draw(kind, local_path(run), target, PlotOptions(count, **options))
