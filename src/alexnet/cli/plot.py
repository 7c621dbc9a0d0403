"""The command ``plot``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.options import choose_cache
from alexnet.cli.predict import expand


@dataclass(frozen=True)
class PlotArguments:
    """Draw an image of a run: what it learned, what it answers, and why.

    IMAGES (files, folders, globs) are for features, saliency and neighbors; by default test images are drawn.
    """

    kind: Positional[
        Literal[
            "filters",
            "curves",
            "confusion",
            "predictions",
            "features",
            "saliency",
            "neighbors",
            "mistakes",
            "embedding",
        ]
    ]
    """first-layer filters by tower | learning curves | confusion matrix | test images with five predictions | a
    layer's maps | where it looks | nearest training images | the surest mistakes | a map of the test images"""
    run: Positional[Path]
    """a run folder (with IMAGES, and for filters, a bundle will do)"""
    images: Positional[tuple[str, ...]] = ()
    """images of your own instead of test images"""
    output: Path | None = None
    """PNG file; by default into the run's folder plots/"""
    count: int | None = None
    """how many test images; by default what fits on a page"""
    layer: str | None = None
    """features: which layer (conv3, relu5, fc7 …); by default the first"""
    target_class: str | None = None
    """saliency: what speaks for this class; by default for the first prediction"""
    method: Literal["auto", "pca", "umap"] = "auto"
    """embedding: UMAP where umap-learn is installed, else PCA"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N"""


def run(argv: list[str]) -> int:
    """what a run learned and why it answers so, as a PNG: filters, saliency, neighbors …"""
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
