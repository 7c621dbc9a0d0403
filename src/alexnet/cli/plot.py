"""The commands ``plot`` and ``report``: a run in plots, or on one page."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.parser import Flag, SourceArguments, choose_cache, data_options, option
from alexnet.plots import IMAGE_PLOTS, PLOTS

if TYPE_CHECKING:
    Kind = str
else:
    Kind = Literal[tuple(PLOTS)]

_KINDS = "; ".join(f"{kind}: {plot.description}" for kind, plot in PLOTS.items())
_IMAGES = f"image files, folders or globs for {', '.join(IMAGE_PLOTS)} (default: test images)"


@dataclass(frozen=True)
class PlotArguments:
    """Plot what a run learned, what it predicts, and why, as a PNG file."""

    kind: Positional[Annotated[Kind, option("KIND", help=_KINDS)]]
    run: Positional[Annotated[Path, option("RUN")]]
    """a run directory (a bundle for filters, and with IMAGES)"""
    images: Positional[Annotated[tuple[str, ...], option("[IMAGE ...]", help=_IMAGES)]] = ()
    output: Annotated[Path | None, option("FILE", aliases=("-o",)), parser.PNG] = None
    """PNG file (default: RUN/plots/KIND.png)"""
    count: Annotated[int | None, option("N")] = None
    """number of test images, or of units (default: what fits on a page)"""
    layer: Annotated[str | None, option("LAYER")] = None
    """features, patches, deconvnet, maximization: layer, such as conv3, relu5 or fc7 (default: the first for features,
    the last with feature maps, the classes)"""
    target_class: Annotated[str | None, option("CLASS")] = None
    """saliency, maximization: class to explain (default: the predicted class, several classes)"""
    method: Literal["auto", "pca", "tsne", "umap"] = "auto"
    """embedding: auto is UMAP if umap-learn is installed, else PCA"""
    store: Annotated[str | None, option("STORE")] = None
    """where the prepared images are now, if they were moved: a directory or s3://..."""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""


def plot_command(argv: list[str]) -> int:
    """draw a plot of a run: filters, curves, saliency, nearest neighbors, ..."""
    args: PlotArguments = parser.parse(PlotArguments, argv, "plot")
    from alexnet import api
    from alexnet.data.sources.unlabeled import UnlabeledImages

    choose_cache()
    path = api.plot(
        args.kind,
        args.run,
        args.output,
        count=args.count,
        images=[Path(image.name) for image in UnlabeledImages(args.images)],
        layer=args.layer,
        target_class=args.target_class,
        method=args.method,
        store=args.store,
        device=args.device,
        log=output.log,
        progress=output.Progress("indexing"),
    )
    print(path)
    return 0


@dataclass(frozen=True)
class ReportArguments:
    """Write report.html: a run on one self-contained page.

    It shows the data, the doctor's findings, metrics with confidence intervals, plots, mistakes, saliency, cost, and
    the commands that reproduce the run.
    """

    run: Positional[Annotated[Path, option("RUN")]]
    """a run directory"""
    output: Annotated[Path | None, option("FILE", aliases=("-o",)), parser.HTML] = None
    """HTML file (default: RUN/report.html)"""
    store: Annotated[str | None, option("STORE")] = None
    """where the prepared images are now, if they were moved: a directory or s3://..."""
    doctor: Flag = True
    """do not examine the source images"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    source: Annotated[SourceArguments, option(name="data")] = field(default_factory=SourceArguments)


def report_command(argv: list[str]) -> int:
    """Write the report and print its path."""
    args: ReportArguments = parser.parse(ReportArguments, argv, "report")
    from alexnet import api

    path = api.write_report(
        args.run,
        args.output,
        store=args.store,
        doctor=args.doctor,
        device=args.device,
        options=replace(data_options(args.source), progress=None),
        progress=output.Progress,
    )
    print(path)
    return 0
