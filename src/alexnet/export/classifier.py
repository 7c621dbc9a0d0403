"""A trained classifier: images in (files, bytes or pixels), classes with probabilities out; and its latency."""

import dataclasses
import functools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alexnet.bundle import Bundle, ReferenceSample, find_bundle
from alexnet.cuda_convnet import GraphNetwork
from alexnet.data import decode, resize
from alexnet.data.remote import local_path
from alexnet.data.store import Split
from alexnet.errors import BundleError
from alexnet.evaluation.evaluate import (
    SplitPredictions,
    calibrated,
    features_of,
    inputs_of,
    log_probabilities,
    predict_split,
    refuse_nonfinite,
)
from alexnet.export import hub
from alexnet.export.prediction import ImageInput, Prediction, as_pixels, best, named
from alexnet.kernels import backend, linear, native_kernels
from alexnet.loader.loader import to_device
from alexnet.models import fusion, layers
from alexnet.models.network import Network
from alexnet.models.summary import work
from alexnet.system import choose_device

BATCHES = {1: 15, 32: 5}  # batch size -> rounds


@torch.inference_mode()
def interleaved_latency(networks: Sequence[Network], batch: int, rounds: int) -> list[float]:
    """Median milliseconds for ``batch`` images, of each network, from its input to its logits.

    Each round runs every network once; every other round is in reverse order.
    """
    first = networks[0]
    shape = (batch, first.in_channels, first.image_size, first.image_size)
    device = next(first.parameters()).device
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul_(60).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    seconds: list[list[float]] = [[] for _ in networks]
    for number in range(rounds + 1):
        order = list(enumerate(networks))
        for index, network in order if number % 2 else reversed(order):
            started = time.perf_counter()
            network(x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[index].append(time.perf_counter() - started)
    return [1000 * float(np.median(times[1:])) for times in seconds]  # the first round warms up


__all__ = ["Classifier", "ImageInput", "Precision", "Prediction", "from_pretrained"]

Precision = Literal["fp32", "bf16"]
_LOAD_FROM = 64  # crops for which compiling pays with no network, and loading what is compiled does


class Classifier:
    """A trained classifier on a device. Images get the preprocessing of the training.

    :func:`alexnet.load` opens one. An image is a path, the bytes of a file, or RGB pixels uint8 [H, W, 3].

    Args:
        bundle: The classifier in memory.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32``, or ``bf16``: faster and nearly as accurate. Embeddings and explanations stay in float32.

    Attributes:
        bundle: Network, classes, normalization and metrics.
        classes: Class names in the order of the probabilities.
        device: Where the network is.
        network: The network in float32.
        inference: The network that predicts, optimized: output of :meth:`inputs` -> logits [N, K].
        normalization: Mean and divisor of the inputs, gray levels.

    Raises:
        BundleError: The precision is unknown.
    """

    def __init__(self, bundle: Bundle, device: torch.device | str = "cpu", precision: Precision = "fp32") -> None:
        if precision not in get_args(Precision):
            raise BundleError(f"precision {precision!r}", "fp32 or bf16", "alexnet export has int8")
        self.bundle = bundle
        self.device = choose_device(device)
        self.network = bundle.network.to(self.device).to(memory_format=torch.channels_last).eval()
        self.precision = precision
        if precision == "bf16":
            self.inference: nn.Module = fusion.BF16Network(self.network, backend.bf16_is_faster(self.device))
        else:
            self.inference = layers.inference_copy(self.network)
        self.normalization = to_device(bundle.normalization, self.device)
        self.classes = bundle.classes
        self._crops = 0  # crops so far

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu", precision: Precision = "fp32") -> "Classifier":
        """Open a run folder or a bundle. Raises :class:`BundleError` if it is missing or damaged."""
        return cls(Bundle.load(find_bundle(path)), device, precision)

    def optimize(self) -> None:
        """Compile kernels and reorder weights ahead of the first prediction (takes seconds, once).

        The values of the weights stay the same, but large ones move in memory: do not call this while another thread
        uses the network. Predictions change by float32 rounding.
        """
        self._build()
        if self.precision == "fp32":
            linear.store_features_first(self.network)

    def expect(self, crops: int) -> None:
        """Prepare for predictions of ``crops`` crops: call :meth:`optimize` if it saves time (``alexnet``: from 700).

        Without this call, kernels are compiled after that many crops, and weights are not reordered. Kernels that are
        already compiled, by any process of this machine, are used from 64 crops on.
        """
        if self._pays(crops):
            self.optimize()
        else:
            self._load(crops)

    def predict(
        self,
        images: ImageInput | Sequence[ImageInput],
        top: int = 5,
        crops: int = 1,
        batch_size: int = 32,
        confidence_threshold: float | None = None,
    ) -> list[Prediction]:
        """Predict the classes of one image or of many.

        Args:
            images: One image, or a sequence of N images.
            top: Entries of ``top_k``, the most probable classes.
            crops: 1 (center crop), 9 or 10: the mean over so many crops.
            batch_size: Images per forward pass.
            confidence_threshold: Probability of the first prediction below which ``abstained`` is set; None: unset.

        Returns:
            N predictions in the order of the images.

        Raises:
            ImageError: An image cannot be read.
        """
        results = []
        for names, stored in self._batches(images, batch_size, crops):
            for name, row in zip(names, self._probabilities(stored, crops), strict=True):
                results.append(best(name, row, self.classes, top, confidence_threshold))
        return results

    def probabilities(
        self, images: ImageInput | Sequence[ImageInput], crops: int = 1, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Class probabilities of each image, with the bundle's temperature: float32 [N, K].

        The arguments are those of :meth:`predict`.
        """
        rows = [self._probabilities(stored, crops) for _, stored in self._batches(images, batch_size, crops)]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.classes)), np.float32)

    def probabilities_and_distances(
        self, images: ImageInput | Sequence[ImageInput], batch_size: int = 32
    ) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
        """Class probabilities [N, K], and how far the features of each image are from the training images' [N].

        A distance is the fraction of the validation images that are nearer, from 0 to 1
        (:class:`alexnet.evaluation.ood.FeatureReference`); None where the bundle has no reference. Both come from one
        pass, which no other thread may share.
        """
        reference, layer = self.bundle.feature_reference, self._feature_layer
        if reference is None:
            return self.probabilities(images, batch_size=batch_size), None
        if layer is None:
            rows = self.probabilities(images, batch_size=batch_size)
            return rows, reference.rank(self.embed(images, batch_size))
        features: list[NDArray[np.float32]] = []

        def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            features.append(output.flatten(1).float().cpu().numpy().copy())

        hook = layer.register_forward_hook(keep)
        try:
            rows = self.probabilities(images, batch_size=batch_size)
        finally:
            hook.remove()
        return rows, reference.rank(np.concatenate(features) if features else self.embed([]))

    @functools.cached_property
    def _feature_layer(self) -> nn.Module | None:
        """The layer of ``inference`` whose output :meth:`embed` gives; None if no single layer has it."""
        if isinstance(self.network, GraphNetwork):
            return None
        network = self.inference.network if isinstance(self.inference, fusion.BF16Network) else self.inference
        return network.get_submodule(self.network.features)

    def embed(self, images: ImageInput | Sequence[ImageInput], batch_size: int = 32) -> NDArray[np.float32]:
        """Features of each image's center crop in the last hidden layer: float32 [N, D] (AlexNet: fc7, 4096)."""
        rows = [self._embed(stored) for _, stored in self._batches(images, batch_size)]
        size = self.bundle.stored_size
        return np.concatenate(rows) if rows else self._embed(np.zeros((0, size, size, 3), np.uint8))

    def _embed(self, stored: NDArray[np.uint8]) -> NDArray[np.float32]:
        features = features_of(self.network, stored, self.normalization)
        refuse_nonfinite(features, self.network.name)
        return features

    def inputs(self, images: ImageInput | Sequence[ImageInput]) -> torch.Tensor:
        """The network's input for each image's center crop: float32 [N, C, s, s] on the classifier's device."""
        stored = np.stack([self.prepare(image, name) for name, image in named(images)])
        return inputs_of(self.network, stored, self.normalization)

    def prepare(self, image: ImageInput, name: str = "image") -> NDArray[np.uint8]:
        """An image in its stored size: RGB uint8 [S, S, 3]. Raises :class:`ImageError` with ``name``."""
        name = str(image) if isinstance(image, str | Path) else name
        return decode.fit(as_pixels(image, name), self.bundle.stored_size, self.bundle.fit)

    def _probabilities(self, stored: NDArray[np.uint8], crops: int) -> NDArray[np.float32]:
        result = log_probabilities(
            self.inference,
            torch.from_numpy(stored).to(self.device),
            self.normalization,
            image_size=self.network.image_size,
            channels=self.network.in_channels,
            crops=crops,
        )
        probabilities: NDArray[np.float32] = calibrated(result, self.bundle.temperature).exp().cpu().numpy()
        refuse_nonfinite(probabilities, self.network.name)
        return probabilities

    def _batches(
        self, images: ImageInput | Sequence[ImageInput], size: int, crops: int = 1
    ) -> Iterable[tuple[list[str], NDArray[np.uint8]]]:
        items = named(images)
        resize.expect(len(items))
        self._crops += len(items) * crops
        if self._pays(self._crops):
            self._build()
        else:
            self._load(self._crops)
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            yield [name for name, _ in batch], np.stack([self.prepare(image, name) for name, image in batch])

    @functools.cached_property
    def _work(self) -> int:
        return work(self.network)

    def _pays(self, crops: int) -> bool:
        return crops >= _LOAD_FROM and native_kernels.worth_compiling(crops * self._work)

    def _load(self, crops: int) -> None:
        if crops >= _LOAD_FROM and self.device.type == "cpu":
            native_kernels.load()

    def _build(self) -> None:
        if self.device.type == "cpu":
            native_kernels.build()

    def predict_split(self, split: Split, crops: int = 1) -> SplitPredictions:
        """Log probabilities of every image of a split, in float32, before the temperature."""
        predictions = predict_split(
            self.network,
            split,
            self.bundle.normalization,
            image_size=self.network.image_size,
            channels=self.network.in_channels,
            crops=crops,
            device=self.device,
        )
        refuse_nonfinite(predictions.log_probabilities, self.network.name)
        return predictions

    def predict_reference(self, reference: ReferenceSample) -> ReferenceSample:
        """``reference`` with the probabilities that this classifier predicts for its image."""
        row = self.probabilities(decode.decode(reference.png, reference.name))[0]
        return dataclasses.replace(reference, probabilities=row.tolist())

    def save_pretrained(self, folder: Path | str) -> Path:
        """Write the bundle to ``folder``, new or a bundle that is replaced; returns its path.

        :func:`alexnet.from_pretrained` and :func:`alexnet.load` read it. Raises :class:`BundleError`.
        """
        return self.bundle.save(local_path(folder))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish the bundle on the Hugging Face hub; see :func:`alexnet.export.hub.push_to_hub`."""
        return hub.push_to_hub(self.bundle, repo_id, **options)


def from_pretrained(
    name: str | Path, *, revision: str | None = None, token: str | None = None, device: str = "cpu"
) -> Classifier:
    """Load the classifier of a bundle or run folder, or of ``owner/name`` on the Hugging Face hub.

    Every byte of the bundle is checked.

    Args:
        name: Folder, or name on the hub.
        revision: Branch, tag or commit of the hub.
        token: Access token of the hub, for private repositories.
        device: cpu, cuda, cuda:N or auto.

    Raises:
        BundleError: The bundle is missing or damaged, or the hub cannot be reached.

    Example:
        >>> classifier = alexnet.from_pretrained("my-run")
    """
    return Classifier(hub.load_bundle(name, revision=revision, token=token), device)
