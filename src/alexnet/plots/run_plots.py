"""The plots of a run: a function ``draw_KIND`` for each kind of :data:`alexnet.plots.PLOTS`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from alexnet.errors import ModelError, RunError, did_you_mean
from alexnet.explain.embedding import Method, Samples, most_confident_mistakes, test_samples, test_split
from alexnet.explain.opened_run import OpenedRun
from alexnet.export.classifier import Classifier
from alexnet.export.prediction import ImageInput
from alexnet.loader.augmentation import center_crops
from alexnet.loader.loader import to_device
from alexnet.plots import PLOTS, explanations
from alexnet.terminal import Progress
from alexnet.training.logger import read_rows
from alexnet.training.run_folder import read_start

PATCH_IMAGES = 1000  # test images that are searched for the strongest responses


@dataclass(frozen=True)
class PlotOptions:
    """Options of a plot.

    Attributes:
        count: Number of test images (patches, deconvnet, maximization: of units); by default what fits on a page.
        images: Images that are plotted instead of test images (features, saliency, neighbors, patches, deconvnet).
        layer: The layer that is plotted; by default the first (features), the last with feature maps (patches,
            deconvnet) or the last of all, whose units are the classes (maximization).
        target_class: The class that is explained; by default the top-1 prediction (saliency), or several
            (maximization).
        method: ``pca``, ``tsne``, ``umap``, or ``auto``: UMAP where umap-learn is installed, else PCA (embedding).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        store: Where the prepared images of the run are now, if they were moved.
        log: Receives progress messages.
        progress: Receives the number of indexed training images, and of all (neighbors).
    """

    count: int | None = None
    images: Sequence[ImageInput] = ()
    layer: str | None = None
    target_class: str | None = None
    method: Method = "auto"
    device: str = "auto"
    store: str | Path | None = None
    log: Callable[[str], None] = lambda _text: None
    progress: Progress | None = None

    def open(self, run: Path) -> OpenedRun:
        """The run as these options say."""
        return OpenedRun(run, store=self.store, device=self.device, log=self.log)


@dataclass(frozen=True)
class PlotJob:
    """One plot to draw: the run, the PNG file, and the options."""

    run: OpenedRun
    path: Path
    options: PlotOptions
    default_count: int

    @property
    def classifier(self) -> Classifier:
        """The run's classifier."""
        return self.run.classifier

    @property
    def count(self) -> int:
        """Number of images to plot."""
        return self.options.count or self.default_count

    def samples(self) -> Samples:
        """The user's images, or random test images."""
        if self.options.images:
            return Samples.of_inputs(self.classifier, list(self.options.images))
        return self.test_samples()

    def test_samples(self) -> Samples:
        """Random test images."""
        return test_samples(self.run, self.count)


def draw(kind: str, run: OpenedRun, path: Path | None, options: PlotOptions) -> Path:
    """Draw one plot of a run; :func:`alexnet.api.plot` describes the other arguments."""
    if kind not in PLOTS:
        raise RunError(f"unknown plot {kind!r}. {did_you_mean(kind, PLOTS)}")
    plot = PLOTS[kind]
    if options.count is not None and options.count < 1:
        raise RunError(f"--count {options.count}", "at least 1")
    _refuse_without_effect(kind, options)
    if kind == "features" and len(options.images) > 1:
        raise RunError(f"features of {len(options.images)} images", "one image a plot", "plot them one by one")
    function: Callable[[PlotJob], Path] = globals()[f"draw_{kind}"]
    run.drawn[kind] = function(PlotJob(run, path or run.folder / "plots" / f"{kind}.png", options, plot.count))
    return run.drawn[kind]


def _refuse_without_effect(kind: str, options: PlotOptions) -> None:
    default = PlotOptions()
    for name in dict.fromkeys(name for plot in PLOTS.values() for name in plot.options):
        if name in PLOTS[kind].options or (getattr(options, name) or None) == (getattr(default, name) or None):
            continue
        title = "images" if name == "images" else f"--{name.replace('_', '-')}"
        others = ", ".join(other for other, plot in PLOTS.items() if name in plot.options)
        raise RunError(f"{kind} takes no {title}", "", f"plots that do: {others}")


def draw_filters(job: PlotJob) -> Path:
    from alexnet.plots import filters

    network = job.classifier.network
    first = explanations.first_filters(network)
    if first is None:
        raise ModelError(f"{network.name} has no convolution", todo="its filters cannot be drawn")
    note = explanations.color_note(explanations.color_specialization(network))
    return filters.draw_filters(*first, job.path, note)


def draw_curves(job: PlotJob) -> Path:
    from alexnet.plots import curves

    rows, (recipe, _) = read_rows(job.run.folder), read_start(job.run.folder)
    return curves.draw(rows, job.path, by_loss=recipe.select_weights == "best-loss")


def draw_confusion(job: PlotJob) -> Path:
    from alexnet.plots import evaluation

    scores = job.run.predictions(test_split(job.run)).scores()
    return evaluation.draw_confusion(scores.confusion.numpy(), list(job.classifier.classes), job.path)


def draw_roc(job: PlotJob) -> Path:
    from alexnet.evaluation.detailed import detailed_scores
    from alexnet.plots import evaluation

    classifier, predictions = job.classifier, job.run.predictions(test_split(job.run))
    details = detailed_scores(predictions, classifier.classes, classifier.bundle.temperature, ())
    return evaluation.draw_roc(details.curves, job.path, len(classifier.classes))


def draw_predictions(job: PlotJob) -> Path:
    return _draw_images(job, job.test_samples())


def draw_mistakes(job: PlotJob) -> Path:
    split, temperature = test_split(job.run), job.classifier.bundle.temperature
    mistakes, duplicates = most_confident_mistakes(split, job.run.predictions(split), temperature, job.count)
    if not len(mistakes):
        raise RunError(
            f"{job.run.folder} makes no mistake on its {len(split)} test images", "", "there is nothing to plot"
        )
    return _draw_images(job, mistakes, duplicates)


def _draw_images(job: PlotJob, samples: Samples, duplicates: Sequence[int] = ()) -> Path:
    from alexnet.plots import predictions

    classes = job.classifier.classes
    top_k = [list(prediction.top_k) for prediction in job.classifier.predict(list(samples.images))]
    true_classes = [None if label is None else classes[label] for label in samples.labels]
    return predictions.draw(list(samples.images), true_classes, top_k, job.path, duplicates)


def draw_features(job: PlotJob) -> Path:
    from alexnet.plots import filters

    network = job.classifier.network
    layer = explanations.layer_name(job.classifier, job.options.layer)
    image = job.samples().images[:1]
    with torch.inference_mode():
        outputs = network.forward_to(job.classifier.inputs(list(image)), layer)[0].float().cpu().numpy()
    crop = center_crops(torch.from_numpy(image), network.image_size)[0].numpy()
    is_vector = outputs.ndim == 3 and outputs[0].size == 1
    return filters.draw_feature_maps(crop, outputs.reshape(-1) if is_vector else outputs, layer, job.path)


def draw_saliency(job: PlotJob) -> Path:
    from alexnet.plots import explanations

    rows = explanations.saliency_rows(job.classifier, job.samples(), job.options.target_class)
    return explanations.draw_saliency(rows, job.path)


def draw_neighbors(job: PlotJob) -> Path:
    from alexnet.plots import embedding as neighbors

    samples = job.samples()
    index = explanations.open_index(job.run, job.options.log, job.options.progress)
    return neighbors.draw_neighbors(explanations.neighbor_rows(job.classifier, samples, index), job.path)


def draw_patches(job: PlotJob) -> Path:
    return _draw_patches(job, views=False)


def draw_deconvnet(job: PlotJob) -> Path:
    return _draw_patches(job, views=True)


def _draw_patches(job: PlotJob, *, views: bool) -> Path:
    from alexnet.explain.saliency import last_maps

    network = job.classifier.network
    layer = explanations.layer_name(job.classifier, job.options.layer or last_maps(network)[0])
    samples = job.samples() if job.options.images else test_samples(job.run, PATCH_IMAGES)
    total = network.forward_to(job.classifier.inputs(list(samples.images[:1])), layer).shape[1]
    chosen = explanations.spread_units(job.count, total)
    tiles = explanations.patch_tiles(job.classifier, samples, layer, chosen, views=views)
    title = f"{len(tiles)} of {total} units of {layer}: the strongest responses to {len(samples)} images"
    note = "Each patch is what the unit sees of another image (its receptive field), strongest first."
    if views:
        note += " Right: the response, sent back to the pixels (Zeiler and Fergus 2014); gray is no contribution."
    return explanations.draw_units(tiles, title, note, job.path)


def draw_maximization(job: PlotJob) -> Path:
    from alexnet.explain.units import STEPS, maximize

    classifier, network = job.classifier, job.classifier.network
    last = [name for name, _ in network.named_children()][-1]
    layer = explanations.layer_name(classifier, job.options.layer or last)
    if job.options.target_class is not None and layer != last:
        raise RunError("--target-class and --layer both say what is maximized", "one of them", "leave one out")
    blank = torch.zeros(1, network.in_channels, network.image_size, network.image_size, device=classifier.device)
    total = network.forward_to(blank, layer).shape[1]
    chosen = explanations.spread_units(job.count, total)
    if job.options.target_class is not None:
        chosen = [explanations.class_index(classifier, job.options.target_class)]
    normalization = to_device(classifier.bundle.normalization, classifier.device)
    job.options.log(f"gradient ascent for {len(chosen)} images, {STEPS} steps")
    images = maximize(network, normalization, layer, chosen)
    labels = [classifier.classes[unit] if layer == last else f"unit {unit}" for unit in chosen]
    tiles = [explanations.Tile(label, [image]) for label, image in zip(labels, images, strict=True)]
    what = "classes" if layer == last else f"units of {layer}"
    note = "Each image is made by gradient ascent from noise. It shows what raises the response, not a typical image."
    return explanations.draw_units(tiles, f"Images that maximize {len(tiles)} of {total} {what}", note, job.path)


def draw_embedding(job: PlotJob) -> Path:
    from alexnet.explain.embedding import embed
    from alexnet.plots import embedding

    samples = job.test_samples()
    result = embed(job.classifier.embed(list(samples.images)), job.options.method)
    name = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}[result.method]
    title = f"{name} of the {job.classifier.network.features} features of {len(samples)} test images"
    note = f"{100 * result.kept:.0f} % of the ten nearest neighbors in feature space are among the ten nearest here"
    note += f" (by chance {100 * result.by_chance:.1f} %)."
    if result.method == "pca":
        note += f" The two axes explain {100 * result.explained:.0f} % of the variance."
    labels = np.array([-1 if label is None else label for label in samples.labels], np.int64)
    return embedding.draw_embedding(result.points, labels, job.classifier.classes, job.path, title, note)
