"""The plots of a run by kind, and the numbers that they and the report show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.api.detailed_evaluation import responses_of
from alexnet.api.evaluation import evaluate, store_of
from alexnet.bundle import weights_sha256
from alexnet.cuda_convnet import GraphNetwork
from alexnet.data import decode
from alexnet.data.remote import local_path
from alexnet.data.store import Split, Store
from alexnet.doctor.duplicates import near_duplicates
from alexnet.doctor.images import SIDE
from alexnet.errors import ModelError, RunError, did_you_mean
from alexnet.evaluation.calibration import probabilities
from alexnet.evaluation.evaluate import SplitPredictions
from alexnet.explain import neighbors as nearby
from alexnet.explain import saliency
from alexnet.explain.embedding import Method
from alexnet.explain.features import Specialization, specialization
from alexnet.explain.neighbors import Neighbors, Progress
from alexnet.export.classifier import Classifier
from alexnet.export.prediction import ImageInput, named
from alexnet.loader.augmentation import center_crops
from alexnet.loader.loader import choose_device
from alexnet.plots.canvas import shorten
from alexnet.plots.neighbors import Near, Row
from alexnet.plots.predictions import percent
from alexnet.plots.saliency import Looked
from alexnet.training.logger import damage, read_rows

Say = Callable[[str], None]
Images = NDArray[np.uint8]  # [N, S, S, 3], in the stored form

NAME = 28  # columns of a name in a heading
LOOKED_THROUGH = 20  # mistakes in which near-identical ones are looked for, for each that is shown
NEAREST = 6  # training images shown beside an image, as in the paper


class Shown:
    """Images to explain: in stored form, with names, and true classes where those are known (None elsewhere)."""

    def __init__(self, images: Images, names: Sequence[str], labels: Sequence[int | None]) -> None:
        self.images, self.names, self.labels = images, list(names), list(labels)

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def given(cls, classifier: Classifier, samples: ImageInput | Sequence[ImageInput]) -> "Shown":
        """Images that a person named. Raises :class:`alexnet.errors.ImageError`."""
        many = named(samples)
        images = np.stack([classifier.prepare(image, name) for name, image in many])
        return cls(images, [Path(name).name for name, _ in many], [None] * len(many))

    @classmethod
    def of_split(cls, split: Split, rows: NDArray[np.int64]) -> "Shown":
        """Images of a split by their places in it."""
        origins = split.origins()
        return cls(split.gather(rows), [str(origins[i]["origin"]) for i in rows], split.labels[rows].tolist())


def sample(run: Path, count: int) -> Shown:
    """``count`` test images, drawn once and for all. Raises :class:`RunError` if there is none."""
    split = test_split(run)
    return Shown.of_split(split, np.random.default_rng(0).permutation(len(split))[:count].astype(np.int64))


def test_split(run: Path) -> Split:
    """The run's test images. Raises :class:`RunError` if there is none."""
    split = Store.open(store_of(run)).split("test")
    if not len(split):
        raise RunError(f"{run} has no test images", "one at least", "name images, or train with a test split")
    return split


def mistakes(split: Split, responses: SplitPredictions, temperature: float, count: int) -> tuple[Shown, list[int]]:
    """The wrong predictions of the highest probability, highest first, no two of them near-identical.

    Returns at most ``count`` images, and how many near-identical mistakes each stands for besides itself.
    """
    wrong = np.flatnonzero(~responses.correct)
    sure = probabilities(responses.log_probabilities[wrong], temperature).max(1) if len(wrong) else np.zeros(0)
    order = np.asarray(wrong[np.argsort(-sure, kind="stable")], np.int64)[: LOOKED_THROUGH * count]
    images = split.gather(order)
    thumbs = [decode.fit(image, SIDE, "squash") for image in images]
    small = np.full(len(order), min(images.shape[1:3]) < SIDE)
    first = np.arange(len(order))  # the surest mistake that each is near-identical to
    for a, b in near_duplicates(np.stack(thumbs), small) if len(thumbs) else ():
        low, high = sorted((first[a], first[b]))
        first[first == high] = low
    kept, times = np.unique(first, return_counts=True)
    return Shown.of_split(split, order[kept[:count]]), (times[:count] - 1).tolist()


def look(classifier: Classifier, items: Shown, target_class: str | None = None) -> list[Looked]:
    """The three maps of each image, for the class ``target_class`` or else for the first prediction.

    Raises :class:`ModelError` for a class that there is not.
    """
    classes, network = classifier.classes, classifier.network
    if target_class is not None and target_class not in classes:
        raise ModelError(f"unknown class {target_class!r}. {did_you_mean(target_class, classes)}")
    rows = classifier.probabilities(list(items.images))
    rankings = rows.argmax(1) if target_class is None else np.full(len(items), classes.index(target_class))
    inputs = classifier.inputs(list(items.images))
    crops = center_crops(torch.from_numpy(items.images), network.image_size).numpy()
    maps = [
        method(network, inputs, rankings.tolist()).numpy()
        for method in (saliency.data_gradient, saliency.grad_cam, saliency.occlusion)
    ]
    results = []
    for i, (view, label, prediction) in enumerate(zip(crops, items.labels, rankings.tolist(), strict=True)):
        truth = "" if label is None else f", true: {shorten(classes[label], NAME)}"
        kind = "predicted" if target_class is None else "evidence for"
        title = f"{kind}: {shorten(classes[prediction], NAME)} ({percent(float(rows[i, prediction]))}){truth}"
        title += f" · {shorten(Path(items.names[i]).name, NAME)}"
        results.append(Looked(view, maps[0][i], maps[1][i], maps[2][i], title))
    return results


def index_of(
    run: Path, classifier: Classifier, say: Say, progress: nearby.Progress | None = None, store: Store | None = None
) -> Neighbors:
    """The run's index of training images: opened, or made (anew, where it is of other weights or damaged)."""
    path, weights = run / nearby.FILE, weights_sha256(run)
    if path.is_file():
        try:
            return Neighbors.open(path, weights)
        except RunError as error:
            say(f"{error.what}; it is made anew")
    store = store or Store.open(store_of(run))
    say(f"indexing the {len(store.split('train')):,} training images into {path}")
    return Neighbors.build(path, classifier.bundle, store, weights, device=classifier.device, progress=progress)


def near(classifier: Classifier, items: Shown, index: Neighbors, count: int = NEAREST) -> list[Row]:
    """Each image with its ``count`` nearest training images."""
    predictions = classifier.probabilities(list(items.images))
    distances, rows = index.nearest(classifier.embed(list(items.images)), count)
    results = []
    for i, image in enumerate(items.images):
        own = zip(distances[i].tolist(), rows[i].tolist(), strict=True)
        beside = [Near(index.thumbnail(row), index.label(row), distance) for distance, row in own]
        label = items.labels[i]
        truth = None if label is None else classifier.classes[label]
        results.append(Row(image, truth, classifier.classes[int(predictions[i].argmax())], beside))
    return results


def first_filters(classifier: Classifier) -> tuple[NDArray[np.float32], int]:
    """The weights [K, C, H, W] of the first layer, and in how many towers they lie."""
    network = classifier.network
    if isinstance(network, GraphNetwork):
        first = network.first_filters()
    else:
        first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d)).weight.detach()
    weights = first.float().cpu().contiguous().numpy()
    return weights, network.towers if len(weights) % network.towers == 0 else 1


def color_note(results: Specialization | None) -> str:
    """The color of the towers in a line; empty where there is nothing to say."""
    if results is None:
        return ""
    if len(results.towers) == 1:
        return f"Color of the filters: {100 * results.towers[0]:.0f} % of their energy (untrained: 67 %)"
    shares = ", ".join(f"tower {chr(ord('a') + i)} {100 * share:.0f} %" for i, share in enumerate(results.towers))
    chance = f"as far apart by chance: p = {results.by_chance:.2g}"
    return f"Energy that answers color alone: {shares} (untrained: 67 % each); {chance}"


def color_of(classifier: Classifier) -> Specialization | None:
    """The paper's specialization as a number."""
    return specialization(*first_filters(classifier))


def layer_of(classifier: Classifier, name: str | None) -> str:
    """The layer called so, or the first. Raises :class:`ModelError` with the names that there are."""
    network = classifier.network
    names = list(network.keys) if isinstance(network, GraphNetwork) else [n for n, _ in network.named_children()]
    if name is None:
        return names[0]
    if name not in names:
        raise ModelError(f"unknown layer {name!r} of {network.name}. {did_you_mean(name, names)}")
    return name


TRAINING_PLOTS = ("filters", "curves", "confusion", "predictions")  # what every training draws
PLOTS = (*TRAINING_PLOTS, "features", "saliency", "neighbors", "mistakes", "embedding")
OF_IMAGES = ("features", "saliency", "neighbors")  # drawings that images can be named for
COUNTS = {"predictions": 16, "saliency": 5, "neighbors": 8, "mistakes": 16, "embedding": 2000, "features": 1}


@dataclass(frozen=True)
class PlotOptions:
    """How a drawing is wished: ``count`` images (None: what fits), and what single drawings take."""

    count: int | None = None
    images: Sequence[ImageInput] = ()  # features, saliency, neighbors: these instead of test images
    layer: str | None = None  # features: which layer; by default the first
    target_class: str | None = None  # saliency: what speaks for this class; by default for the first prediction
    method: Method = "auto"  # embedding
    device: str = "auto"
    say: Callable[[str], None] = lambda _text: None
    progress: Progress | None = None


def plot(
    kind: str, run: str | Path, path: str | Path | None = None, *, count: int | None = None, **config: object
) -> Path:
    """Write one plot of a run as a PNG file and return its path.

    Args:
        kind: ``filters``, ``curves``, ``confusion``, ``predictions``, ``features`` (the feature maps of a layer),
            ``saliency`` (data gradient, Grad-CAM, occlusion), ``neighbors`` (the nearest training images),
            ``mistakes`` (the most confident wrong predictions) or ``embedding`` (a 2-D map of the test images).
        run: run directory; ``filters`` takes a bundle too, and so do the kinds that take ``images``, with images.
        path: PNG file to write; by default ``RUN/plots/KIND.png``.
        count: number of test images; by default what fits on the page.
        config: the other fields of :class:`PlotOptions`.

    Raises:
        RunError: the kind is unknown, the run cannot be read, or an option does not fit the kind.
        ImageError: one of ``images`` cannot be read.
    """
    if kind not in PLOTS:
        raise RunError(f"unknown plot {kind!r}. {did_you_mean(kind, PLOTS)}")
    wished = PlotOptions(count, **config)  # type: ignore[arg-type]
    _check(kind, wished)
    run = local_path(run)
    target = local_path(path) if path else run / "plots" / f"{kind}.png"
    if kind == "curves":
        return _draw_curves(run, target)
    for fault in damage(run):
        wished.say(fault)
    return _DRAW[kind](run, Classifier.load(run, choose_device(wished.device)), target, wished)


def _check(what: str, wished: PlotOptions) -> None:
    if wished.count is not None and wished.count < 1:
        raise RunError(f"--count {wished.count}", "at least 1")
    if wished.images and what not in OF_IMAGES:
        raise RunError(f"{what} takes no images", "", f"those that do: {', '.join(OF_IMAGES)}")
    if what == "features" and len(wished.images) > 1:
        raise RunError(f"features of {len(wished.images)} images", "one image a drawing", "draw them one by one")


def _shown(what: str, run: Path, classifier: Classifier, wished: PlotOptions) -> Shown:
    if wished.images:
        return Shown.given(classifier, list(wished.images))
    return sample(run, wished.count or COUNTS[what])


def _draw_curves(run: Path, target: Path) -> Path:
    from alexnet.plots import curves

    try:
        rows = read_rows(run)
    except OSError as error:
        raise RunError(f"{run} has no results.csv: {error.strerror}", "a run folder") from error
    return curves.draw(rows, target)


def _draw_filters(run: Path, classifier: Classifier, target: Path, wished: PlotOptions) -> Path:
    from alexnet.plots import filters

    note = color_note(color_of(classifier))
    return filters.draw(*first_filters(classifier), target, note)


def _draw_confusion(run: Path, classifier: Classifier, target: Path, wished: PlotOptions) -> Path:
    from alexnet.plots import confusion

    return confusion.draw(evaluate(classifier, store_of(run)).confusion.numpy(), list(classifier.classes), target)


def _draw_predictions(run: Path, classifier: Classifier, target: Path, wished: PlotOptions) -> Path:
    return _predictioned(classifier, sample(run, wished.count or COUNTS["predictions"]), target)


def _draw_mistakes(run: Path, classifier: Classifier, target: Path, wished: PlotOptions) -> Path:
    split = test_split(run)
    count = wished.count or COUNTS["mistakes"]
    wrong, near = mistakes(split, responses_of(classifier, split), classifier.bundle.temperature, count)
    if not len(wrong):
        raise RunError(f"{run} makes no mistake on its {len(split)} test images", "", "there is nothing to draw")
    return _predictioned(classifier, wrong, target, near)


def _predictioned(classifier: Classifier, items: Shown, target: Path, near: Sequence[int] = ()) -> Path:
    from alexnet.plots import predictions

    rankings = [list(p.top_k) for p in classifier.predict(list(items.images))]
    truths = [None if label is None else classifier.classes[label] for label in items.labels]
    return predictions.draw(list(items.images), truths, rankings, target, near)


def _draw_features(run: Path, classifier: Classifier, target: Path, wished: PlotOptions) -> Path:
    from alexnet.loader.augmentation import center_crops
    from alexnet.plots import feature_maps

    layer, network = layer_of(classifier, wished.layer), classifier.network
    text = _shown("features", run, classifier, wished)
    with torch.inference_mode():
        result = network.forward_to(classifier.inputs(list(text.images[:1])), layer)[0].float().cpu().numpy()
    view = center_crops(torch.from_numpy(text.images[:1]), network.image_size)[0].numpy()
    return feature_maps.draw(
        view, result.reshape(-1) if result.ndim == 3 and result[0].size == 1 else result, layer, target
    )


def _draw_saliency(run: Path, classifier: Classifier, target: Path, wished: PlotOptions) -> Path:
    from alexnet.plots import saliency

    return saliency.draw(look(classifier, _shown("saliency", run, classifier, wished), wished.target_class), target)


def _draw_neighbors(run: Path, classifier: Classifier, target: Path, wished: PlotOptions) -> Path:
    from alexnet.plots import neighbors

    text = _shown("neighbors", run, classifier, wished)
    index = index_of(run, classifier, wished.say, wished.progress)
    return neighbors.draw(near(classifier, text, index), target)


def _draw_embedding(run: Path, classifier: Classifier, target: Path, wished: PlotOptions) -> Path:
    from alexnet.explain.embedding import embed
    from alexnet.plots import embedding

    text = sample(run, wished.count or COUNTS["embedding"])
    result = embed(classifier.embed(list(text.images)), wished.method)
    title = f"{len(text)} test images as {classifier.network.features} sees them, by {result.method.upper()}"
    note = f"Of each image's ten nearest in feature space, {100 * result.kept:.0f} % are among its ten nearest here"
    note += f" (by chance {100 * result.by_chance:.1f} %)."
    if result.method == "pca":
        note += f" The two axes hold {100 * result.explained:.0f} % of the variance."
    labels = np.array([-1 if label is None else label for label in text.labels], np.int64)
    return embedding.draw(result.points, labels, classifier.classes, target, title, note)


_DRAW: dict[str, Callable[[Path, Classifier, Path, PlotOptions], Path]] = {
    "filters": _draw_filters,
    "confusion": _draw_confusion,
    "predictions": _draw_predictions,
    "features": _draw_features,
    "saliency": _draw_saliency,
    "neighbors": _draw_neighbors,
    "mistakes": _draw_mistakes,
    "embedding": _draw_embedding,
}
