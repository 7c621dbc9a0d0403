"""A run as a folder for timm and transformers, against the real libraries."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

import alexnet
from alexnet.bundle import Bundle, ReferenceSample
from alexnet.data.decode import encode_png
from alexnet.errors import BundleError
from alexnet.export import timm_folder
from alexnet.export.classifier import Classifier
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model

CLASSES = ("cat", "dog", "<bird & co>")


@pytest.fixture
def bundle():
    """A two-tower network of random weights, and its reference images."""
    network = create_model("alexnet_small", num_classes=3, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                layer.weight.mul_(1.5)
    normalization = Normalization(
        torch.tensor([120.0, 110.0, 100.0]), torch.ones(3), torch.eye(3), torch.tensor([60.0, 61.0, 62.0])
    )
    calibration = {"temperature": 1.7}
    made = Bundle(network, CLASSES, normalization, stored_size=28, fit="crop", calibration=calibration)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), np.uint8)
    rows = Classifier(made).probabilities(list(images))
    assert rows.std() > 0.05 and np.ptp(rows, axis=0).max() > 1e-3  # the images have an effect
    samples = [
        ReferenceSample(str(i), encode_png(image), row.tolist())
        for i, (image, row) in enumerate(zip(images, rows, strict=True))
    ]
    return dataclasses.replace(made, reference_samples=samples)


def test_a_tower_network_in_timm(bundle, tmp_path):
    timm = pytest.importorskip("timm")
    report, _ = alexnet.export_model(bundle.save(tmp_path / "bundle"), tmp_path / "folder", format="timm")
    assert report.max_abs_diff < 1e-5 and report.compared == 3
    network = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True).eval()
    assert network.num_classes == 3
    other = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True, num_classes=5)
    assert other.get_classifier().out_features == 5
    first = "conv1.weight"
    assert torch.equal(other.state_dict()[first], bundle.network.state_dict()[first])
    features = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True, num_classes=0)
    assert features(torch.zeros(1, 3, 24, 24)).shape == (1, network.head_hidden_size)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("kind", ["jpeg", "png", "gray", "array"])
def test_a_pipeline_of_transformers_predicts_the_same(bundle, tmp_path, fit, kind):
    """For images of every shape. timm's own preprocessing differs by up to 0.02 here: its crop lies elsewhere."""
    pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    bundle = dataclasses.replace(bundle, fit=fit)
    alexnet.export_model(bundle.save(tmp_path / "bundle"), tmp_path / "folder", format="timm")
    alexnet.register_timm()
    pipeline = transformers.pipeline("image-classification", model=str(tmp_path / "folder"), top_k=3, device="cpu")
    classifier = Classifier(bundle)
    for size in [(28, 28), (56, 84), (50, 81), (81, 37), (5, 9), (1, 40), (300, 11)]:  # height and width
        pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
        image = Image.fromarray(pixels).resize((9, 9)).resize(size[::-1])
        file = tmp_path / {"jpeg": "image.jpg"}.get(kind, "image.png")
        (image.convert("L") if kind == "gray" else image).save(file)
        if kind == "array" and 1 in size:
            continue  # transformers takes the first axis for the channels
        given = np.asarray(image) if kind == "array" else str(file)
        expected = dict(zip(CLASSES, classifier.probabilities([file])[0].tolist(), strict=True))
        found = {entry["label"]: entry["score"] for entry in pipeline(given)}
        assert found == pytest.approx(expected, abs=1e-5), size


@pytest.mark.parametrize("stored", [24, 28, 60, 59, 118])
def test_timm_computes_the_stored_size_again(stored):
    """As floor(size / crop_pct); 24 / (24 / 118) is 117.99999999999999."""
    timm = pytest.importorskip("timm")
    transform = timm.data.create_transform((3, 24, 24), crop_pct=timm_folder._crop_pct(24, stored))
    assert transform.transforms[0].size == stored


def test_what_timm_cannot_express(bundle, tmp_path, monkeypatch):
    whole = bundle.normalization.mean.expand(28, 28, 3)
    mean = dataclasses.replace(bundle, normalization=dataclasses.replace(bundle.normalization, mean=whole))
    cases = {
        "a mean image; use --format onnx, or train with --mean channel": mean,
        "no --fit pad": dataclasses.replace(bundle, fit="pad"),
        "does not enlarge images of 20 pixels to 24": dataclasses.replace(bundle, stored_size=20),
        "starts at pixel 2, and this classifier's at 1": dataclasses.replace(bundle, stored_size=27),
        "no gray images": dataclasses.replace(
            bundle, network=create_model("lenet5", num_classes=3), reference_samples=()
        ),
    }
    for message, wrong in cases.items():
        with pytest.raises(BundleError, match=message):
            timm_folder.export_timm(wrong, tmp_path / "folder", wrong.reference_samples)
    assert not (tmp_path / "folder").exists()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BundleError, match="timm is not installed; pip install 'alexnet"):
        timm_folder.export_timm(bundle, tmp_path / "folder", bundle.reference_samples)
    with pytest.raises(BundleError, match="--format timm with --precision int8"):
        alexnet.export_model(bundle.save(tmp_path / "bundle"), format="timm", precision="int8")
