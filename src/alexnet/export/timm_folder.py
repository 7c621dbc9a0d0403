"""A classifier as a folder for timm and transformers: ``config.json`` and ``model.safetensors`` in timm's form.

timm has no AlexNet. :func:`register_timm` adds this project's networks to timm's registry, and its preprocessing to
transformers; then ``timm.create_model("local-dir:FOLDER", pretrained=True)`` and
``transformers.pipeline("image-classification", model="FOLDER")`` load the folder. No code is in the folder. Without
the registration both report an unknown model.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alexnet.bundle import Bundle
from alexnet.bundle.integrity import write_tensors
from alexnet.data import decode
from alexnet.data.atomic_io import json_bytes, whole_folder
from alexnet.errors import BundleError
from alexnet.export.exported_model import TOLERANCE
from alexnet.models import create_model, list_models, meta_model
from alexnet.models.alexnet_variants import NetworkWithKeys
from alexnet.models.network import Network
from alexnet.models.registry import find
from alexnet.schema import ReferenceSample

CROP_MODES = {"crop": "center", "squash": "squash"}


def register_timm() -> list[str]:
    """Add this project's networks to timm's registry under their names, such as ``alexnet_owt``; returns the names.

    Call it once, before ``timm.create_model`` or ``transformers.pipeline`` reads a folder of ``alexnet export RUN
    --format timm``. If transformers is installed, it receives the preprocessing of this project, which a folder names:
    a pipeline then predicts what ``alexnet predict`` does.

    Raises:
        BundleError: If timm is not installed.
    """
    names = _register_networks()
    with contextlib.suppress(ImportError):  # transformers is not installed
        from alexnet.export import transformers_processor

        transformers_processor.register()
    return names


def _register_networks() -> list[str]:
    timm = _timm()
    names = list_models()
    for name in names:
        if not timm.is_model(name):
            timm.models.register_model(_builder(name))
    return names


def export_timm(bundle: Bundle, folder: Path, samples: Sequence[ReferenceSample]) -> float:
    """Write ``bundle`` to the new folder ``folder``; timm's predictions are compared with the original's first.

    The temperature of the bundle is part of the last layer's weights, so that a softmax gives calibrated probabilities.

    Args:
        bundle: The classifier.
        folder: The folder to write.
        samples: Images of the stored size with the probabilities that are expected of them.

    Returns:
        The largest difference of a probability.

    Raises:
        BundleError: timm is not installed, cannot express the preprocessing, or predicts something else.
    """
    config, state = _config(bundle), _state(bundle)
    _register_networks()
    try:
        with whole_folder(folder) as partial:
            (partial / "config.json").write_bytes(json_bytes(config))
            write_tensors(partial / "model.safetensors", state)
            rows = _predict(partial, [decode.decode(sample.png, sample.name) for sample in samples])
            difference = float(np.abs(rows - np.array([sample.probabilities for sample in samples])).max())
            if not difference <= TOLERANCE["fp32"]:
                raise BundleError(
                    f"timm's predictions differ from the original's by {difference:.2g} in a probability",
                    f"at most {TOLERANCE['fp32']:g}",
                    "report this with the versions of timm and PyTorch",
                )
    except OSError as error:
        raise BundleError(f"{folder} could not be written: {error.strerror or error}", "", "choose another") from error
    return difference


def _builder(name: str) -> Callable[..., Network]:
    """The function that timm calls for the network ``name``."""

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> Network:
        from timm.models import build_model_with_cfg

        if kwargs.get("pretrained_cfg") is None:
            size = find(name).image_size
            kwargs["pretrained_cfg"] = {"architecture": name, "input_size": (3, size, size), "num_classes": 1000}
        network: Network = build_model_with_cfg(_Build(name), name, pretrained, **kwargs)
        return network

    entrypoint.__name__ = entrypoint.__qualname__ = name
    return entrypoint


class _Build:
    """Builds the network ``name`` from timm's arguments."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(
        self, num_classes: int | None = None, in_chans: int | None = None, img_size: int | None = None, **_timm: Any
    ) -> Network:
        size = img_size or find(self.name).image_size
        if torch.empty(0).is_meta:  # transformers builds first and loads the weights later
            network = meta_model(self.name, num_classes=num_classes or 2, in_channels=in_chans or 3, image_size=size)
        else:
            network = create_model(self.name, num_classes=num_classes or None, in_channels=in_chans, image_size=size)
        _plain_keys(network)
        if num_classes == 0:
            network.reset_classifier(0)
        return network


def _plain_keys(network: Network) -> None:
    """Give the state dict the names of the parameters: transformers finds parameters by them."""
    if isinstance(network, NetworkWithKeys):
        network.keys = {}


def _config(bundle: Bundle) -> dict[str, Any]:
    """timm's ``config.json``. Raises :class:`BundleError` if timm cannot express the preprocessing."""
    network, normalization = bundle.network, bundle.normalization
    if network.name not in list_models():
        raise BundleError(
            f"a {network.name} cannot be exported for timm", "one of this project's networks", "use --format onnx"
        )
    if normalization.mean.dim() != 1:
        raise BundleError(
            "timm subtracts one mean per channel, and this classifier a mean image",
            "",
            "use --format onnx, or train with --mean channel",
        )
    if network.in_channels != 3 or bundle.fit not in CROP_MODES:
        raise BundleError(
            f"timm's preprocessing has no {'gray images' if network.in_channels != 3 else f'--fit {bundle.fit}'}",
            "",
            "use --format onnx",
        )
    size, margin = network.image_size, bundle.stored_size - network.image_size
    if margin < 0:
        raise BundleError(
            f"timm's preprocessing does not enlarge images of {bundle.stored_size} pixels to {size}",
            "",
            f"use --format onnx, or train with --stored-size {size}",
        )
    if round(margin / 2) != margin // 2:
        raise BundleError(
            f"timm's center crop of {size} from {bundle.stored_size} pixels starts at pixel {round(margin / 2)}, and "
            f"this classifier's at {margin // 2}",
            "",
            f"use --format onnx, or train with --stored-size {bundle.stored_size + 1}",
        )
    names = list(dict(network.named_children()))
    pretrained_cfg = {
        "architecture": network.name,
        "num_classes": network.num_classes,
        "input_size": [3, size, size],
        "crop_pct": _crop_pct(size, bundle.stored_size),
        "crop_mode": CROP_MODES[bundle.fit],
        "interpolation": "bilinear",
        "mean": (normalization.mean.double() / 255).tolist(),
        "std": (normalization.divide.double().expand(3) / 255).tolist(),
        "first_conv": names[0],
        "classifier": names[-1],
    }
    return {
        "architecture": network.name,
        "num_classes": network.num_classes,
        "num_features": network.num_features,
        "label_names": list(bundle.classes),
        "model_args": {"img_size": size},
        "image_processor_type": "AlexNetImageProcessor",  # of transformers_processor.py
        "pretrained_cfg": pretrained_cfg,
    }


def _crop_pct(size: int, stored: int) -> float:
    """The fraction ``size / stored``, from which timm computes ``stored`` as floor(size / fraction)."""
    fraction = size / stored
    return fraction if math.floor(size / fraction) == stored else math.nextafter(fraction, 0)


def _state(bundle: Bundle) -> dict[str, Tensor]:
    """The parameters by name; those of the last layer are divided by the temperature."""
    last = list(dict(bundle.network.named_children()))[-1]
    tensors = {**dict(bundle.network.named_parameters()), **dict(bundle.network.named_buffers())}
    return {
        name: (value.detach() / bundle.temperature if name.startswith(f"{last}.") else value.detach()).contiguous()
        for name, value in tensors.items()
    }


@torch.no_grad()
def _predict(folder: Path, images: list[Any]) -> np.ndarray[Any, Any]:
    """Probabilities [n, K] of a folder, by timm's own network and preprocessing."""
    timm = _timm()
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    batch = torch.stack([transform(decode.pillow_image(image)) for image in images])
    return np.asarray(network(batch).softmax(1))


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise BundleError("timm is not installed", "", "pip install 'alexnet[timm]'") from error
    return timm
