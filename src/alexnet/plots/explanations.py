"""Explanations of a classifier, computed in the form that the plots and the report show."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.bundle import weights_sha256
from alexnet.cuda_convnet import GraphNetwork
from alexnet.data.store import Store, recorded_store
from alexnet.errors import ModelError, RunError, did_you_mean
from alexnet.explain import neighbors as nearest
from alexnet.explain import saliency
from alexnet.explain.neighbors import Neighbors, Progress
from alexnet.explain.samples import Samples
from alexnet.explain.specialization import Specialization, specialization
from alexnet.export.classifier import Classifier
from alexnet.formatting import probability, shorten
from alexnet.loader.augmentation import center_crops
from alexnet.plots.neighbors import Neighbor, NeighborRow
from alexnet.plots.saliency import SaliencyRow
from alexnet.training.run_folder import read_start

NAME_COLUMNS = 28  # maximal width of a class or file name in a title
NEIGHBORS = 6  # training images shown for each image, as in the paper


def saliency_rows(classifier: Classifier, samples: Samples, target_class: str | None = None) -> list[SaliencyRow]:
    """Three saliency maps of each image, for ``target_class`` or else for the top-1 prediction.

    Raises:
        ModelError: If there is no such class.
    """
    classes, network = classifier.classes, classifier.network
    if target_class is not None and target_class not in classes:
        raise ModelError(f"unknown class {target_class!r}. {did_you_mean(target_class, classes)}")
    probabilities = classifier.probabilities(list(samples.images))
    targets = probabilities.argmax(1) if target_class is None else np.full(len(samples), classes.index(target_class))
    inputs = classifier.inputs(list(samples.images))
    crops = center_crops(torch.from_numpy(samples.images), network.image_size).numpy()
    maps = [
        method(network, inputs, targets.tolist()).numpy()
        for method in (saliency.data_gradient, saliency.grad_cam, saliency.occlusion)
    ]
    rows = []
    for i, (crop, label, target) in enumerate(zip(crops, samples.labels, targets.tolist(), strict=True)):
        kind = "predicted" if target_class is None else "class"
        title = f"{kind}: {shorten(classes[target], NAME_COLUMNS)} ({probability(float(probabilities[i, target]))})"
        title += "" if label is None else f", true: {shorten(classes[label], NAME_COLUMNS)}"
        title += f" · {shorten(Path(samples.names[i]).name, NAME_COLUMNS)}"
        rows.append(SaliencyRow(crop, maps[0][i], maps[1][i], maps[2][i], title))
    return rows


def open_index(
    run: Path,
    classifier: Classifier,
    log: Callable[[str], None],
    progress: Progress | None = None,
    store: Store | None = None,
) -> Neighbors:
    """The run's index of training images: opened, or built where it is missing, damaged or of other weights."""
    path, weights = run / nearest.FILE, weights_sha256(run)
    if path.is_file():
        try:
            return Neighbors.open(path, weights)
        except RunError as error:
            log(f"{error.what}: it is built again")
    store = store or Store.open(recorded_store(run, read_start(run)[1]))
    log(f"indexing the {len(store.split('train')):,} training images into {path}")
    return Neighbors.build(path, classifier.bundle, store, weights, device=classifier.device, progress=progress)


def neighbor_rows(
    classifier: Classifier, samples: Samples, index: Neighbors, count: int = NEIGHBORS
) -> list[NeighborRow]:
    """Each image with its ``count`` nearest training images."""
    probabilities = classifier.probabilities(list(samples.images))
    distances, indices = index.nearest(classifier.embed(list(samples.images)), count)
    rows = []
    for i, image in enumerate(samples.images):
        neighbors = [
            Neighbor(index.thumbnail(k), index.label(k), distance)
            for distance, k in zip(distances[i].tolist(), indices[i].tolist(), strict=True)
        ]
        label = samples.labels[i]
        true_class = None if label is None else classifier.classes[label]
        rows.append(NeighborRow(image, true_class, classifier.classes[int(probabilities[i].argmax())], neighbors))
    return rows


def first_filters(classifier: Classifier) -> tuple[NDArray[np.float32], int]:
    """The weights [K, C, H, W] of the first convolution, and the number of towers they are divided into."""
    network = classifier.network
    if isinstance(network, GraphNetwork):
        first = network.first_filters()
    else:
        first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d)).weight.detach()
    weights = first.float().cpu().contiguous().numpy()
    return weights, network.towers if len(weights) % network.towers == 0 else 1


def color_specialization(classifier: Classifier) -> Specialization | None:
    """The color specialization of the first layer; None for gray images."""
    return specialization(*first_filters(classifier))


def color_note(result: Specialization | None) -> str:
    """The color specialization as a line of text; empty for gray images."""
    if result is None:
        return ""
    if len(result.towers) == 1:
        return f"Color in the filters: {100 * result.towers[0]:.0f} % of their energy (untrained: 67 %)"
    towers = ", ".join(f"tower {chr(ord('a') + i)} {100 * share:.0f} %" for i, share in enumerate(result.towers))
    return f"Color in the filters' energy: {towers} (untrained: 67 %); difference by chance: p = {result.by_chance:.2g}"


def layer_name(classifier: Classifier, name: str | None) -> str:
    """``name``, if the network has such a layer; by default its first layer. Raises :class:`ModelError`."""
    network = classifier.network
    names = list(network.keys) if isinstance(network, GraphNetwork) else [n for n, _ in network.named_children()]
    if name is None:
        return names[0]
    if name not in names:
        raise ModelError(f"unknown layer {name!r} of {network.name}. {did_you_mean(name, names)}")
    return name
