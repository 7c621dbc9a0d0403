"""Linear probes: how well a linear classifier separates the classes of a dataset from the features of each layer.

Yosinski et al. 2014 asked how transferable the features of each layer are, Alain and Bengio 2016 answered such
questions with linear classifiers. The features of a layer are its outputs, with feature maps averaged down to at most
:data:`MAX_FEATURES` numbers (Zhang et al. 2016). The classifier is ridge regression on standardized features; its
penalty is chosen by the validation split. The same network with random weights shows what the architecture alone gives.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from alexnet.bundle import Bundle, find_bundle
from alexnet.cuda_convnet import GraphNetwork
from alexnet.data.atomic_io import json_bytes, write_file
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Split, Store
from alexnet.errors import ModelError, RecipeError
from alexnet.evaluation.evaluate import inputs_of
from alexnet.evaluation.intervals import Estimate, proportion_ci
from alexnet.experiments.runner import open_dataset, prepare_store
from alexnet.loader.loader import to_device
from alexnet.models import create_model
from alexnet.models.network import Network
from alexnet.recipe import Recipe
from alexnet.system import choose_device

MAX_FEATURES = 9216  # as many as AlexNet's pool5 has
PENALTIES = (1e1, 1e2, 1e3, 1e4, 1e5)
BATCH = 50  # images


@dataclass(frozen=True)
class Probe:
    """The linear classifier on one layer: test accuracy of the trained and of the random network."""

    layer: str
    features: int
    penalty: float
    top1: Estimate
    random_top1: Estimate


@dataclass(frozen=True)
class ProbeResult:
    """All probes of a network, from the first layer to the last."""

    run: str
    data: str
    counts: dict[str, int]
    probes: tuple[Probe, ...]
    plot: Path

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        probes = [asdict(p) | {n: getattr(p, n).to_dict() for n in ("top1", "random_top1")} for p in self.probes]
        return {"run": self.run, "data": self.data, "counts": self.counts, "probes": probes, "plot": str(self.plot)}


def run_probes(
    run: str | Path, data: str, folder: Path, options: DataOptions, *, images: int = 3000, device: str = "auto"
) -> ProbeResult:
    """Fit and test a linear probe on each layer of a run, a bundle or the starter.

    Args:
        run: A run folder or a bundle, or ``starter``.
        data: Images of any classes.
        folder: Gets probes.json and probes.png.
        options: How ``data`` is read.
        images: Limit of training and validation images together; 0: no limit.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ModelError: The network is no sequence of layers.
        DataError: The data has no validation or test images.
    """
    if images < 0:
        raise RecipeError(f"--images is {images}", "at least 0")
    bundle = Bundle.load(find_bundle(run))
    network, where = bundle.network, choose_device(device)
    if isinstance(network, GraphNetwork):
        raise ModelError(f"{network.name} is no sequence of layers", "a network of alexnet models")
    recipe = Recipe(stored_size=bundle.stored_size, fit=bundle.fit)
    store = prepare_store(open_dataset(data, options), recipe, images, options)
    untrained = create_model(
        network.name,
        num_classes=network.num_classes,
        in_channels=network.in_channels,
        image_size=network.image_size,
    ).initialize(torch.Generator().manual_seed(0))
    probes = []
    for layer in layers_of(network):
        options.log_line(f"probe of {layer}")
        size, penalty, top1 = _probe(network, bundle, layer, store, where)
        _, _, random_top1 = _probe(untrained, bundle, layer, store, where)
        probes.append(Probe(layer, size, penalty, top1, random_top1))
    counts = {name: len(store.split(name)) for name in ("train", "validation", "test")}
    result = ProbeResult(str(run), store.name, counts, tuple(probes), folder / "probes.png")
    from alexnet.plots import studies

    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "probes.json", json_bytes(result.to_dict()))
    rows = [(p.layer, p.top1, p.random_top1) for p in probes]
    title = f"Linear probes of {run} ({network.name}) on {store.name}, {counts['train']} training images"
    studies.draw_probes(title, rows, result.plot)
    return result


def layers_of(network: Network) -> list[str]:
    """The layers that are probed: of each learned layer but the last, the last layer before the next learned one."""
    names = [name for name, _ in network.named_children()]
    learned = [k for k, name in enumerate(names) if next(network.get_submodule(name).parameters(), None) is not None]
    skipped = {"Dropout", "Flatten"}  # they change no feature in evaluation
    layers = []
    for first, following in itertools.pairwise(learned):
        own = [n for n in names[first:following] if type(network.get_submodule(n)).__name__ not in skipped]
        layers.append(own[-1])
    return layers


def _probe(
    network: Network, bundle: Bundle, layer: str, store: Store, device: torch.device
) -> tuple[int, float, Estimate]:
    """Number of features, penalty, and test accuracy."""
    x, y = {}, {}
    network = network.eval().to(device)
    normalization = to_device(bundle.normalization, device)
    for name in ("train", "validation", "test"):
        split = store.split(name)
        x[name] = features(network, layer, split, lambda images: inputs_of(network, images, normalization))
        y[name] = split.labels
    mean, std = x["train"].mean(0), x["train"].std(0)
    scaled = {name: (values - mean) / np.where(std > 0, std, 1) for name, values in x.items()}
    accuracies = []
    for penalty in PENALTIES:
        predicted = ridge(scaled["train"], y["train"], scaled["validation"], penalty)
        accuracies.append(float((predicted == y["validation"]).mean()))
    best = PENALTIES[int(np.argmax(accuracies))]
    hits = ridge(scaled["train"], y["train"], scaled["test"], best) == y["test"]
    return x["train"].shape[1], best, proportion_ci(hits, store.split("test").groups)


@torch.inference_mode()
def features(
    network: Network, layer: str, split: Split, inputs: Callable[[NDArray[np.uint8]], torch.Tensor]
) -> NDArray[np.float32]:
    """The outputs of ``layer`` for the center crops of a split, [N, D] with D at most :data:`MAX_FEATURES`."""
    rows = []
    for start in range(0, len(split), BATCH):
        images = split.gather(np.arange(start, min(start + BATCH, len(split)), dtype=np.int64))
        outputs = network.forward_to(inputs(images), layer)
        if outputs.dim() == 4:
            side = max(1, math.isqrt(MAX_FEATURES // outputs.shape[1]))
            if side < outputs.shape[2]:
                outputs = F.adaptive_avg_pool2d(outputs, side)
        rows.append(outputs.flatten(1).float().cpu().numpy())
    return np.concatenate(rows)


def ridge(
    train: NDArray[np.float32], labels: NDArray[np.int64], x: NDArray[np.float32], penalty: float
) -> NDArray[np.int64]:
    """The predicted classes of ``x`` by ridge regression of one-hot labels, with an intercept."""
    from sklearn.linear_model import Ridge

    classes = np.unique(labels)
    targets = (labels[:, None] == classes).astype(np.float64)
    fitted = Ridge(alpha=penalty, solver="cholesky").fit(train, targets)
    return np.asarray(classes[fitted.predict(x).reshape(len(x), -1).argmax(1)])
