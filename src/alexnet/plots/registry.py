"""The kinds of plots of a run.

A new kind is a function ``draw_KIND`` in ``run_plots.py`` and one line in :data:`PLOTS`. The choices and the help of
``alexnet plot`` come from :data:`PLOTS`, so this module imports no heavy library.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plot:
    """A kind of plot.

    Attributes:
        description: One line for help and docs.
        count: Default number of images; 0 where no images are selected.
        takes_images: The user can give images.
        after_training: Every training draws it.
    """

    description: str
    count: int = 0
    takes_images: bool = False
    after_training: bool = False


PLOTS: dict[str, Plot] = {
    "filters": Plot("filters of the first layer, by tower", after_training=True),
    "curves": Plot("learning curves: loss, error, learning rate", after_training=True),
    "confusion": Plot("confusion matrix of the test split", after_training=True),
    "predictions": Plot("test images with their top-5 predictions", count=16, after_training=True),
    "features": Plot("feature maps of a layer for one image", count=1, takes_images=True),
    "saliency": Plot("data gradient, Grad-CAM and occlusion maps", count=5, takes_images=True),
    "neighbors": Plot("nearest training images in feature space", count=8, takes_images=True),
    "mistakes": Plot("wrong predictions with the highest probability", count=16),
    "embedding": Plot("test images in two dimensions, by UMAP or PCA", count=2000),
}
TRAINING_PLOTS = tuple(kind for kind, plot in PLOTS.items() if plot.after_training)
IMAGE_PLOTS = tuple(kind for kind, plot in PLOTS.items() if plot.takes_images)
