"""The module that is exported: its resize is Pillow's to the last bit, its predictions are the classifier's."""

import layer_examples
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from alexnet.bundle import Bundle
from alexnet.data import decode
from alexnet.errors import BundleError
from alexnet.export.classifier import Classifier
from alexnet.export.export import SUFFIXES, export, predict_samples
from alexnet.export.export_module import Enlarge, ExportableNorm, ExportModule, HalfWeights, Resize, exportable_layers
from alexnet.loader.augmentation import Normalization, resize
from alexnet.models import create_model
from alexnet.models.layers import LocalResponseNorm

from .conftest import make_bundle


@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(1, 90),
    st.sampled_from(["crop", "pad", "squash"]),
    st.integers(0, 2**32 - 1),
)
@example(1, 900, 24, "crop", 0)
@example(900, 1, 24, "pad", 0)
@example(257, 512, 64, "pad", 0)  # a side of 32.125 pixels
@example(10, 20, 13, "pad", 0)  # of 6.5: half to even, as Python rounds
@example(701, 353, 32, "squash", 1)  # Pillow 13 in one call takes the columns first
def test_resize_is_that_of_the_images_bit_for_bit(height, width, size, how, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    found = Resize(size, how)(torch.from_numpy(image)).numpy()
    assert np.array_equal(found, decode.fit(image, size, how))


def test_resize_of_extremes_stays_in_range():
    for value in (0, 255):
        image = torch.full((77, 130, 3), value, dtype=torch.uint8)
        assert (Resize(31, "crop")(image) == value).all()


@pytest.mark.parametrize(("stored", "side"), [(32, 224), (30, 31), (17, 50)])
def test_enlarging_is_that_of_the_batches_bit_for_bit(stored, side):
    images = torch.randint(
        0, 256, (2, stored, stored, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(Enlarge(stored, side)(images.float()), resize(images, side).float())


@pytest.mark.parametrize("towers", [1, 2])
def test_plain_norm_is_the_response_norm(towers):
    norm = LocalResponseNorm(towers, alpha=0.3)  # the paper's 0.0001 would hide a wrong window
    x = torch.randn(2, 12, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ExportableNorm(norm, 12)(x), norm(x), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lenet5", {"image_size": 32}),
        ("lenet5", {"image_size": 33, "stored": 40, "mean": "channel"}),  # windows that stick out
        ("cifar_18pct", {"image_size": 24, "fit": "pad"}),
        ("cifar_18pct", {"image_size": 48, "mean": "image"}),  # stored smaller than the view
        ("alexnet", {"image_size": 67, "stored": 70, "fit": "squash", "classes": 3}),
    ],
)
def test_it_predicts_like_the_classifier(digits, name, options):
    bundle = make_bundle(digits, name, **options)
    original, rng = Classifier(bundle), np.random.default_rng(0)
    assert (
        exportable_layers(bundle.network)(torch.zeros(1, bundle.network.in_channels, *[bundle.image_size] * 2))
        .isfinite()
        .all()
    )
    images = [rng.integers(low, 256, (h, w, 3), np.uint8) for low, h, w in ((0, 50, 41), (200, 9, 90), (90, 131, 20))]
    expected = original.probabilities(images)
    whole, decoded = ExportModule(bundle).eval(), ExportModule(bundle, "decoded").eval()
    with torch.inference_mode():
        found = torch.cat([whole(torch.from_numpy(p)) for p in images]).numpy()
        batch = torch.from_numpy(np.stack([original.prepare(p) for p in images]))
        assert np.abs(decoded(batch).numpy() - expected).max() < 2e-5
    assert np.abs(found - expected).max() < 2e-5
    assert np.abs(expected[0] - expected[1]).max() > 1e-2  # they do tell images apart


def test_half_weights_are_half_and_close(digits):
    bundle = make_bundle(digits, "cifar_18pct", image_size=24)
    half = ExportModule(bundle, "decoded", half=True).eval()
    assert isinstance(half.network, HalfWeights)
    kinds = {b.dtype for name, b in half.network.named_buffers()}
    assert kinds == {torch.float16}
    assert not list(half.network.parameters())
    x = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = (half(x) - ExportModule(bundle, "decoded")(x)).abs().max()
    assert 0 < difference < 1e-2


def test_the_original_keeps_its_layers(digits):
    network = create_model("alexnet", num_classes=2, image_size=67)
    before = list(network.children())
    names = [name for name, _ in exportable_layers(network).named_children()]
    assert "drop6" not in names and "norm1" in names
    assert list(network.children()) == before


def layer_file_bundle(name):
    normalization = Normalization(torch.full((3,), 120.0), torch.ones(3), torch.eye(3), torch.tensor(1.0))
    network = layer_examples.network(name).eval()
    return Bundle(network, tuple("abcdefghij"), normalization, stored_size=network.image_size + 3, fit="crop")


@pytest.mark.parametrize(
    ("name", "format", "precision"),
    [("images", "onnx", "fp32"), ("towers", "onnx", "fp16"), ("towers", "torch", "fp32")],
)
def test_the_network_of_a_layer_file(name, format, precision, tmp_path):
    """The export compares the file with the classifier; the images tell the classes apart."""
    bundle = layer_file_bundle(name)
    with torch.no_grad():
        for parameter in bundle.network.parameters():
            parameter.mul_(3)
    report = export(bundle, tmp_path / f"file{SUFFIXES[format]}", format=format, precision=precision)
    assert report.compared >= 2 and report.max_abs_diff < (1e-5 if precision == "fp32" else 1e-2)
    rows = np.array([sample.probabilities for sample in predict_samples(bundle)])
    assert np.ptp(rows, axis=0).max() > 1e-3


def test_a_layer_file_that_draws_numbers_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"layer 'p1' draws random numbers .*; use alexnet predict"):
        export(layer_file_bundle("sparse"), tmp_path / "file.onnx")
