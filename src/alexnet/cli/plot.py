"""The command ``plot``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from alexnet.cli import output, parser
from alexnet.cli.options import choose_cache
from alexnet.cli.predict import expand
from alexnet.plots.registry import IMAGE_PLOTS, PLOTS

if TYPE_CHECKING:
    Kind = str
else:
    Kind = Literal[tuple(PLOTS)]

_KINDS = "; ".join(f"{kind}: {plot.description}" for kind, plot in PLOTS.items())


@dataclass(frozen=True)
class PlotArguments:
    """Draw a plot of a run as a PNG."""

    kind: Annotated[Positional[Kind], arg(help=_KINDS)]
    run: Positional[Path]
    """a run folder; with IMAGES, and for filters, a bundle is enough"""
    images: Annotated[
        Positional[tuple[str, ...]],
        arg(help=f"image files, folders or globs, for {', '.join(IMAGE_PLOTS)}; by default test images"),
    ] = ()
    output: Path | None = None
    """PNG file; by default in the run's folder plots"""
    count: int | None = None
    """number of test images; by default what fits on a page"""
    layer: str | None = None
    """features: a layer (conv3, relu5, fc7, ...); by default the first"""
    target_class: str | None = None
    """saliency: the class to explain; by default the top-1 prediction"""
    method: Literal["auto", "pca", "umap"] = "auto"
    """embedding: UMAP where umap-learn is installed, else PCA"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N"""


def run(argv: list[str]) -> int:
    """draw a plot of a run: filters, curves, saliency, nearest neighbors, ..."""
    args: PlotArguments = parser.parse(PlotArguments, argv, "plot")
    from alexnet import api

    choose_cache()
    path = api.plot(
        args.kind,
        args.run,
        args.output,
        count=args.count,
        images=expand(args.images),
        layer=args.layer,
        target_class=args.target_class,
        method=args.method,
        device=args.device,
        log=output.say,
        progress=output.Progress("indexing"),
    )
    print(path)
    return 0
