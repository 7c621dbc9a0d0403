"""What a run's network looks at, finds alike and gets wrong: numbers for the drawings and for the report."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet import recipe as recipes
from alexnet.api.evaluating import store_of
from alexnet.batches.transforms import center_views
from alexnet.bundle import weights_sha256
from alexnet.data import pixels
from alexnet.data.doctor.looking import SIDE
from alexnet.data.doctor.twins import twins
from alexnet.data.store import Split, Store
from alexnet.deploy.answers import Picture, named
from alexnet.deploy.classifier import Classifier
from alexnet.errors import ModelError, RunError
from alexnet.evaluation import neighbors as nearby
from alexnet.evaluation import saliency
from alexnet.evaluation.calibration import probabilities
from alexnet.evaluation.neighbors import Neighbors
from alexnet.evaluation.responses import Responses
from alexnet.evaluation.specialization import Specialization, specialization
from alexnet.models.cuda_convnet import GraphNetwork
from alexnet.visualize.canvas import shorten
from alexnet.visualize.neighbors import Near, Row
from alexnet.visualize.predictions import percent
from alexnet.visualize.saliency import Looked

Say = Callable[[str], None]
Images = NDArray[np.uint8]  # [N, S, S, 3], in the stored form

NAME = 28  # columns of a name in a heading
LOOKED_THROUGH = 20  # mistakes in which near-identical ones are looked for, for each that is shown
NEAREST = 6  # training pictures shown beside a picture, as in the paper


class Shown:
    """Pictures to explain: in stored form, with names, and true classes where those are known (None elsewhere)."""

    def __init__(self, images: Images, names: Sequence[str], labels: Sequence[int | None]) -> None:
        self.images, self.names, self.labels = images, list(names), list(labels)

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def given(cls, classifier: Classifier, pictures: Picture | Sequence[Picture]) -> "Shown":
        """Pictures that a person named. Raises :class:`alexnet.errors.PictureError`."""
        many = named(pictures)
        images = np.stack([classifier.prepare(picture, name) for name, picture in many])
        return cls(images, [Path(name).name for name, _ in many], [None] * len(many))

    @classmethod
    def of_split(cls, split: Split, rows: NDArray[np.int64]) -> "Shown":
        """Pictures of a split by their places in it."""
        origins = split.origins()
        return cls(split.gather(rows), [str(origins[i]["origin"]) for i in rows], split.labels[rows].tolist())


def sample(run: Path, count: int) -> Shown:
    """``count`` test pictures, drawn once and for all. Raises :class:`RunError` if there is none."""
    split = test_split(run)
    return Shown.of_split(split, np.random.default_rng(0).permutation(len(split))[:count].astype(np.int64))


def test_split(run: Path) -> Split:
    """The run's test pictures. Raises :class:`RunError` if there is none."""
    split = Store.open(store_of(run)).split("test")
    if not len(split):
        raise RunError(f"{run} has no test pictures", "one at least", "name pictures, or train with a test split")
    return split


def mistakes(split: Split, responses: Responses, temperature: float, count: int) -> tuple[Shown, list[int]]:
    """The wrong predictions of the highest probability, highest first, no two of them near-identical.

    Returns at most ``count`` images, and how many near-identical mistakes each stands for besides itself.
    """
    wrong = np.flatnonzero(~responses.correct)
    sure = probabilities(responses.log_probabilities[wrong], temperature).max(1) if len(wrong) else np.zeros(0)
    order = np.asarray(wrong[np.argsort(-sure, kind="stable")], np.int64)[: LOOKED_THROUGH * count]
    images = split.gather(order)
    thumbs = [pixels.fit(image, SIDE, "squash") for image in images]
    small = np.full(len(order), min(images.shape[1:3]) < SIDE)
    first = np.arange(len(order))  # the surest mistake that each is near-identical to
    for a, b in twins(np.stack(thumbs), small) if len(thumbs) else ():
        low, high = sorted((first[a], first[b]))
        first[first == high] = low
    kept, times = np.unique(first, return_counts=True)
    return Shown.of_split(split, order[kept[:count]]), (times[:count] - 1).tolist()


def look(classifier: Classifier, shown: Shown, of: str | None = None) -> list[Looked]:
    """The three maps of each picture, for the class called ``of`` or else for the first guess.

    Raises :class:`ModelError` for a class that there is not.
    """
    classes, network = classifier.classes, classifier.network
    if of is not None and of not in classes:
        raise ModelError(f"class {of!r}", recipes.nearest(of, list(classes)))
    rows = classifier.probabilities(list(shown.images))
    guesses = rows.argmax(1) if of is None else np.full(len(shown), classes.index(of))
    inputs = classifier.inputs(list(shown.images))
    views = center_views(torch.from_numpy(shown.images), network.image_size).numpy()
    maps = [
        method(network, inputs, guesses.tolist()).numpy()
        for method in (saliency.data_gradient, saliency.grad_cam, saliency.occlusion)
    ]
    found = []
    for i, (view, label, guess) in enumerate(zip(views, shown.labels, guesses.tolist(), strict=True)):
        truth = "" if label is None else f", true: {shorten(classes[label], NAME)}"
        kind = "predicted" if of is None else "evidence for"
        title = f"{kind}: {shorten(classes[guess], NAME)} ({percent(float(rows[i, guess]))}){truth}"
        title += f" · {shorten(Path(shown.names[i]).name, NAME)}"
        found.append(Looked(view, maps[0][i], maps[1][i], maps[2][i], title))
    return found


def index_of(
    run: Path, classifier: Classifier, say: Say, progress: nearby.Progress | None = None, store: Store | None = None
) -> Neighbors:
    """The run's index of training pictures: opened, or made (anew, where it is of other weights or damaged)."""
    path, weights = run / nearby.FILE, weights_sha256(run)
    if path.is_file():
        try:
            return Neighbors.open(path, weights)
        except RunError as error:
            say(f"{error.what}; it is made anew")
    store = store or Store.open(store_of(run))
    say(f"indexing the {len(store.split('train')):,} training pictures into {path}")
    return Neighbors.build(path, classifier.bundle, store, weights, device=classifier.device, progress=progress)


def near(classifier: Classifier, shown: Shown, index: Neighbors, count: int = NEAREST) -> list[Row]:
    """Each picture with its ``count`` nearest training pictures."""
    answers = classifier.probabilities(list(shown.images))
    distances, rows = index.nearest(classifier.embed(list(shown.images)), count)
    found = []
    for i, image in enumerate(shown.images):
        own = zip(distances[i].tolist(), rows[i].tolist(), strict=True)
        beside = [Near(index.thumbnail(row), index.label(row), distance) for distance, row in own]
        label = shown.labels[i]
        truth = None if label is None else classifier.classes[label]
        found.append(Row(image, truth, classifier.classes[int(answers[i].argmax())], beside))
    return found


def first_filters(classifier: Classifier) -> tuple[NDArray[np.float32], int]:
    """The weights [K, C, H, W] of the first layer, and in how many towers they lie."""
    network = classifier.network
    if isinstance(network, GraphNetwork):
        first = network.first_filters()
    else:
        first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d)).weight.detach()
    weights = first.float().cpu().contiguous().numpy()
    return weights, network.towers if len(weights) % network.towers == 0 else 1


def color_note(found: Specialization | None) -> str:
    """The color of the towers in a line; empty where there is nothing to say."""
    if found is None:
        return ""
    if len(found.towers) == 1:
        return f"Color of the filters: {100 * found.towers[0]:.0f} % of their energy (untrained: 67 %)"
    shares = ", ".join(f"tower {chr(ord('a') + i)} {100 * share:.0f} %" for i, share in enumerate(found.towers))
    chance = f"as far apart by chance: p = {found.by_chance:.2g}"
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
        raise ModelError(f"layer {name!r} is not in {network.name}", recipes.nearest(name, names))
    return name
