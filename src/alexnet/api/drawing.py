"""The drawings of a run, by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from alexnet import recipe as recipes
from alexnet.api import explaining
from alexnet.api.evaluating import evaluate, store_of
from alexnet.api.explaining import Shown
from alexnet.api.honest import responses_of
from alexnet.batches.loader import choose_device
from alexnet.data.remote import local_path
from alexnet.deploy.answers import Picture
from alexnet.deploy.classifier import Classifier
from alexnet.errors import RunError
from alexnet.evaluation.embedding import Method
from alexnet.evaluation.neighbors import Progress
from alexnet.training.journal import damage, read_rows

AT_THE_END = ("filters", "curves", "confusion", "predictions")  # what every training draws
DRAWINGS = (*AT_THE_END, "features", "saliency", "neighbors", "mistakes", "embedding")
OF_PICTURES = ("features", "saliency", "neighbors")  # drawings that pictures can be named for
COUNTS = {"predictions": 16, "saliency": 5, "neighbors": 8, "mistakes": 16, "embedding": 2000, "features": 1}


@dataclass(frozen=True)
class Wishes:
    """How a drawing is wished: ``count`` pictures (None: what fits), and what single drawings take."""

    count: int | None = None
    pictures: Sequence[Picture] = ()  # features, saliency, neighbors: these instead of test pictures
    layer: str | None = None  # features: which layer; by default the first
    of: str | None = None  # saliency: what speaks for this class; by default for the first guess
    method: Method = "auto"  # embedding
    device: str = "auto"
    say: Callable[[str], None] = lambda _text: None
    progress: Progress | None = None


def draw(
    what: str, run: str | Path, path: str | Path | None = None, *, count: int | None = None, **wishes: object
) -> Path:
    """Draw ``what`` of a run as a PNG and return its path; without ``path`` it goes into the run's ``pictures``.

    ``filters`` (of a bundle too), ``curves``, ``confusion``, ``predictions``; ``features`` (the maps of a layer),
    ``saliency`` (data gradient, Grad-CAM, occlusion), ``neighbors`` (the nearest training pictures), ``mistakes``
    (the surest ones), ``embedding`` (a map of the test pictures). ``wishes`` are the other fields of :class:`Wishes`.
    Raises :class:`RunError`, and what reading pictures raises.
    """
    if what not in DRAWINGS:
        raise RunError(f"there is no drawing {what!r}", recipes.nearest(what, list(DRAWINGS)))
    wished = Wishes(count, **wishes)  # type: ignore[arg-type]
    _check(what, wished)
    run = local_path(run)
    target = local_path(path) if path else run / "pictures" / f"{what}.png"
    if what == "curves":
        return _draw_curves(run, target)
    for fault in damage(run):
        wished.say(fault)
    return _DRAW[what](run, Classifier.load(run, choose_device(wished.device)), target, wished)


def _check(what: str, wished: Wishes) -> None:
    if wished.count is not None and wished.count < 1:
        raise RunError(f"--count {wished.count}", "at least 1")
    if wished.pictures and what not in OF_PICTURES:
        raise RunError(f"{what} takes no pictures", "", f"those that do: {', '.join(OF_PICTURES)}")
    if what == "features" and len(wished.pictures) > 1:
        raise RunError(f"features of {len(wished.pictures)} pictures", "one picture a drawing", "draw them one by one")


def _shown(what: str, run: Path, classifier: Classifier, wished: Wishes) -> Shown:
    if wished.pictures:
        return Shown.given(classifier, list(wished.pictures))
    return explaining.sample(run, wished.count or COUNTS[what])


def _draw_curves(run: Path, target: Path) -> Path:
    from alexnet.visualize import curves

    try:
        rows = read_rows(run)
    except OSError as error:
        raise RunError(f"{run} has no results.csv: {error.strerror}", "a run folder") from error
    return curves.draw(rows, target)


def _draw_filters(run: Path, classifier: Classifier, target: Path, wished: Wishes) -> Path:
    from alexnet.visualize import filters

    note = explaining.color_note(explaining.color_of(classifier))
    return filters.draw(*explaining.first_filters(classifier), target, note)


def _draw_confusion(run: Path, classifier: Classifier, target: Path, wished: Wishes) -> Path:
    from alexnet.visualize import confusion

    return confusion.draw(evaluate(classifier, store_of(run)).confusion.numpy(), list(classifier.classes), target)


def _draw_predictions(run: Path, classifier: Classifier, target: Path, wished: Wishes) -> Path:
    return _guessed(classifier, explaining.sample(run, wished.count or COUNTS["predictions"]), target)


def _draw_mistakes(run: Path, classifier: Classifier, target: Path, wished: Wishes) -> Path:
    split = explaining.test_split(run)
    count = wished.count or COUNTS["mistakes"]
    wrong, near = explaining.mistakes(split, responses_of(classifier, split), classifier.bundle.temperature, count)
    if not len(wrong):
        raise RunError(f"{run} makes no mistake on its {len(split)} test pictures", "", "there is nothing to draw")
    return _guessed(classifier, wrong, target, near)


def _guessed(classifier: Classifier, shown: Shown, target: Path, near: Sequence[int] = ()) -> Path:
    from alexnet.visualize import predictions

    guesses = [list(p.guesses) for p in classifier.predict(list(shown.images))]
    truths = [None if label is None else classifier.classes[label] for label in shown.labels]
    return predictions.draw(list(shown.images), truths, guesses, target, near)


def _draw_features(run: Path, classifier: Classifier, target: Path, wished: Wishes) -> Path:
    from alexnet.batches.transforms import center_views
    from alexnet.visualize import maps

    layer, network = explaining.layer_of(classifier, wished.layer), classifier.network
    shown = _shown("features", run, classifier, wished)
    with torch.inference_mode():
        found = network.until(classifier.inputs(list(shown.images[:1])), layer)[0].float().cpu().numpy()
    view = center_views(torch.from_numpy(shown.images[:1]), network.image_size)[0].numpy()
    return maps.draw(view, found.reshape(-1) if found.ndim == 3 and found[0].size == 1 else found, layer, target)


def _draw_saliency(run: Path, classifier: Classifier, target: Path, wished: Wishes) -> Path:
    from alexnet.visualize import saliency

    return saliency.draw(explaining.look(classifier, _shown("saliency", run, classifier, wished), wished.of), target)


def _draw_neighbors(run: Path, classifier: Classifier, target: Path, wished: Wishes) -> Path:
    from alexnet.visualize import neighbors

    shown = _shown("neighbors", run, classifier, wished)
    index = explaining.index_of(run, classifier, wished.say, wished.progress)
    return neighbors.draw(explaining.near(classifier, shown, index), target)


def _draw_embedding(run: Path, classifier: Classifier, target: Path, wished: Wishes) -> Path:
    from alexnet.evaluation.embedding import embed
    from alexnet.visualize import embedding

    shown = explaining.sample(run, wished.count or COUNTS["embedding"])
    found = embed(classifier.embed(list(shown.images)), wished.method)
    title = f"{len(shown)} test pictures as {classifier.network.features} sees them, by {found.method.upper()}"
    note = f"Of each picture's ten nearest in feature space, {100 * found.kept:.0f} % are among its ten nearest here"
    note += f" (by chance {100 * found.by_chance:.1f} %)."
    if found.method == "pca":
        note += f" The two axes hold {100 * found.explained:.0f} % of the variance."
    labels = np.array([-1 if label is None else label for label in shown.labels], np.int64)
    return embedding.draw(found.points, labels, classifier.classes, target, title, note)


_DRAW: dict[str, Callable[[Path, Classifier, Path, Wishes], Path]] = {
    "filters": _draw_filters,
    "confusion": _draw_confusion,
    "predictions": _draw_predictions,
    "features": _draw_features,
    "saliency": _draw_saliency,
    "neighbors": _draw_neighbors,
    "mistakes": _draw_mistakes,
    "embedding": _draw_embedding,
}
