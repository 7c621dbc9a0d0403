"""A small classifier that tells images apart, and its exported files, made once."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet.bundle import Bundle, ReferenceSample
from alexnet.data.decode import encode_png
from alexnet.export.classifier import Classifier
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model


def lively(name: str, classes: int, **sizes: int):
    """A network whose untrained answers differ from image to image: each layer's output has a spread of one."""
    network = create_model(name, num_classes=classes, generator=torch.Generator().manual_seed(1), **sizes).eval()
    channels, side = network.in_channels, network.image_size
    x = 60 * torch.randn(4, channels, side, side, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        for layer in network.children():
            y = layer(x.clone())
            if hasattr(layer, "weight"):
                layer.weight.mul_(2 / y.std())
                y = layer(x.clone())
            x = y
    return network


def make_bundle(
    store, name: str, *, fit="crop", stored=32, classes=10, mean="image", divide=2.0, **sizes: int
) -> Bundle:
    """A bundle of ``name`` over the digits' classes with two reference images in color."""
    axis = np.arange(stored) * 32 // stored
    images = store.split("test").gather(np.arange(2))[:, axis][:, :, axis]
    ramp = np.linspace(0, 80, stored).astype(np.uint8)
    images = np.stack([images[..., 0], images[..., 1] // 2 + ramp, 255 - images[..., 2] // 3], -1)
    image = torch.from_numpy(np.ascontiguousarray(store.mean_image[axis][:, axis]))
    means = torch.tensor([110.0, 100.0, 90.0]) + (image / 2 if mean == "image" else 0)  # gray levels, at most 255
    normalization = Normalization(means, torch.ones(3), torch.eye(3), torch.tensor(divide))
    names = tuple(f"class {k}" for k in range(classes))
    bare = Bundle(lively(name, classes, **sizes), names, normalization, stored_size=stored, fit=fit)
    rows = Classifier(bare).probabilities(list(images)).tolist()
    reference = [
        ReferenceSample(f"{i:02d}", encode_png(p), r) for i, (p, r) in enumerate(zip(images, rows, strict=True))
    ]
    return dataclasses.replace(bare, reference_samples=reference)


@pytest.fixture(scope="session")
def cifar(digits) -> Bundle:
    """The CIFAR-10 net of 2012 on images of 32 pixels, of which it sees 24."""
    return make_bundle(digits, "cifar_18pct", image_size=24)


@pytest.fixture(scope="session")
def whole_alexnet(digits):
    """Makes the network of the paper, untrained, at its own size."""
    return lambda: make_bundle(digits, "alexnet", stored=256, mean="channel")


@pytest.fixture(scope="session")
def onnx_file(cifar, tmp_path_factory) -> Path:
    from alexnet.export.export import export

    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    report = export(cifar, path)
    assert report.max_abs_diff <= 1e-4
    return path


@pytest.fixture(scope="session")
def saved_bundle(cifar, tmp_path_factory) -> Path:
    return cifar.save(tmp_path_factory.mktemp("original") / "bundle")
