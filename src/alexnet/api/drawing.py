"""The drawings of a run, by name."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from alexnet import recipe as recipes
from alexnet.api.evaluating import evaluate, store_of
from alexnet.data.store import Store
from alexnet.deploy.classifier import Classifier
from alexnet.errors import RunError
from alexnet.models.cuda_convnet import GraphNetwork

DRAWINGS = ("filters", "curves", "confusion", "predictions")


def draw(what: str, run: str | Path, path: str | Path | None = None, *, count: int = 16) -> Path:
    """Draw ``filters``, ``curves``, ``confusion`` or ``predictions`` of a run (filters of a bundle too) as a PNG.

    Without ``path`` it goes into the run's ``pictures`` folder. ``count`` is for predictions: how many test pictures.
    """
    if what not in DRAWINGS:
        raise RunError(f"there is no drawing {what!r}", recipes.nearest(what, list(DRAWINGS)))
    run = Path(run)
    target = Path(path) if path else run / "pictures" / f"{what}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    if what == "curves":
        return _draw_curves(run, target)
    classifier = Classifier.load(run)
    if what == "filters":
        return _draw_filters(classifier, target)
    if what == "confusion":
        return _draw_confusion(run, classifier, target)
    return _draw_predictions(run, classifier, target, count)


def _draw_curves(run: Path, target: Path) -> Path:
    import csv

    from alexnet.visualize import curves

    try:
        with (run / "results.csv").open(newline="", encoding="utf-8") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    except OSError as error:
        raise RunError(f"{run} has no results.csv: {error.strerror}", "a run folder") from error
    return curves.draw(rows, target)


def _draw_filters(classifier: Classifier, target: Path) -> Path:
    from alexnet.visualize import filters

    network = classifier.network
    if isinstance(network, GraphNetwork):
        first = network.first_filters()
    else:
        first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d)).weight.detach()
    weights = first.float().cpu().contiguous().numpy()
    towers = network.towers if len(weights) % network.towers == 0 else 1
    return filters.draw(weights, towers, target)


def _draw_confusion(run: Path, classifier: Classifier, target: Path) -> Path:
    from alexnet.visualize import confusion

    return confusion.draw(evaluate(classifier, store_of(run)).confusion.numpy(), list(classifier.classes), target)


def _draw_predictions(run: Path, classifier: Classifier, target: Path, count: int) -> Path:
    from alexnet.visualize import predictions

    store = Store.open(store_of(run))
    split = store.split("test")
    chosen = np.random.default_rng(0).permutation(len(split))[:count].astype(np.int64)
    images = split.gather(chosen)
    guesses = [list(p.guesses) for p in classifier.predict(list(images))]
    truths: Sequence[str | None] = [store.classes[k] for k in split.labels[chosen]]
    return predictions.draw(list(images), list(truths), guesses, target)
