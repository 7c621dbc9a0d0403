"""Plots: functions from arrays to PNG files, and the kinds of plots of a run.

``run_plots`` and ``explanations`` compute the arrays from a run. A new kind is a function ``draw_KIND`` in
``run_plots.py`` and one line in :data:`PLOTS`. The choices and the help of ``alexnet plot`` come from :data:`PLOTS`, so
this module imports no heavy library; matplotlib is imported when a plot is drawn.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plot:
    """A kind of plot.

    Attributes:
        description: One line for help and docs.
        options: The options of the user that have an effect on it.
        count: Default number of images; 0 where no images are selected.
        after_training: Every training draws it.
        of_test: It shows the test split, so a run without one has no such plot.
    """

    description: str
    options: tuple[str, ...] = ()
    count: int = 0
    after_training: bool = False
    of_test: bool = False


PLOTS: dict[str, Plot] = {
    "filters": Plot("filters of the first layer, by tower", after_training=True),
    "curves": Plot("learning curves: loss, error, learning rate", after_training=True),
    "confusion": Plot("confusion matrix of the test split", ("store",), after_training=True, of_test=True),
    "roc": Plot("ROC and precision-recall curves of the test split, class against the rest", ("store",)),
    "predictions": Plot("test images with their top-5 predictions", ("count", "store"), 16, True, of_test=True),
    "features": Plot("feature maps of a layer for one image", ("images", "layer", "store"), 1),
    "saliency": Plot("data gradient, Grad-CAM and occlusion maps", ("images", "count", "target_class", "store"), 5),
    "neighbors": Plot("nearest training images in feature space", ("images", "count", "store"), 8),
    "mistakes": Plot("wrong predictions with the highest probability", ("count", "store"), 16),
    "embedding": Plot("test images in two dimensions, by UMAP, t-SNE or PCA", ("count", "method", "store"), 2000),
    "patches": Plot(
        "image patches with the strongest response of each unit of a layer", ("images", "count", "layer", "store"), 12
    ),
    "deconvnet": Plot(
        "the same patches, and what in them each unit responds to", ("images", "count", "layer", "store"), 6
    ),
    "maximization": Plot(
        "images made by gradient ascent that maximize a class or a unit of a layer",
        ("count", "layer", "target_class"),
        8,
    ),
}
TRAINING_PLOTS = tuple(kind for kind, plot in PLOTS.items() if plot.after_training)
IMAGE_PLOTS = tuple(kind for kind, plot in PLOTS.items() if "images" in plot.options)
