import copy
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet.bundle import Bundle
from alexnet.data import decode
from alexnet.errors import BundleError, DataError, ImageError
from alexnet.evaluation.ood import FeatureReference
from alexnet.export.classifier import Classifier
from alexnet.kernels import backend, native_kernels
from alexnet.kernels.compiler import NativeLibraries
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model
from alexnet.models.summary import work

from .conftest import lively


@pytest.fixture
def classifier(digits) -> Classifier:
    normalization = Normalization(torch.from_numpy(digits.mean_image), torch.ones(3), torch.eye(3), torch.tensor(40.0))
    network = create_model("cifar_18pct", image_size=24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # untrained weights would answer everything alike
        network.conv1.weight.mul_(1000)
        network.conv2.weight.mul_(5)
        network.fc10.weight.mul_(5)
    return Classifier(Bundle(network, digits.classes, normalization, stored_size=32, fit="crop"))


@pytest.fixture
def images(digits) -> list[np.ndarray]:
    return list(digits.split("test").gather(np.arange(7)))


def slow(classifier: Classifier, stored: np.ndarray) -> np.ndarray:
    """One image's probabilities, step by step."""
    mean = classifier.normalization.mean.numpy()
    view = ((stored.astype(np.float32) - mean)[4:28, 4:28] / 40).transpose(2, 0, 1)
    with torch.no_grad():
        logits = classifier.network(torch.from_numpy(view.copy())[None])[0].double().numpy()
    return np.exp(logits) / np.exp(logits).sum()


def test_probabilities_against_a_plain_computation(classifier, images):
    found = classifier.probabilities(images)
    assert found.shape == (7, 10)
    assert found.dtype == np.float32
    assert found.sum(1) == pytest.approx(np.ones(7), abs=1e-5)
    assert np.ptp(found, axis=0).max() > 0.01  # the images do differ
    for row, image in zip(found, images, strict=True):
        assert row == pytest.approx(slow(classifier, image), abs=1e-4)  # float32, other orders of adding


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["lenet5", "alexnet_small", "cifar_18pct"])
def test_distances_come_from_the_pass_of_the_probabilities(digits, name, precision):
    network = lively(name, 10)
    normalization = Normalization(torch.full((3,), 40.0), torch.ones(3), torch.eye(3), torch.tensor(4.0))
    size = max(32, network.image_size)
    bundle = Bundle(network, digits.classes, normalization, stored_size=size, fit="crop")
    images = [decode.fit(image, size, "crop") for image in digits.split("train").gather(np.arange(40))]
    assert Classifier(bundle, precision=precision).probabilities_and_distances(images)[1] is None
    features = Classifier(bundle).embed(images)
    reference = FeatureReference.fit(features, digits.split("train").labels[:40], features)
    classifier = Classifier(dataclasses.replace(bundle, feature_reference=reference), precision=precision)
    rows, distances = classifier.probabilities_and_distances(images, batch_size=16)
    assert np.array_equal(rows, classifier.probabilities(images, batch_size=16))
    assert distances == pytest.approx(reference.rank(features), abs=1e-3 if precision == "fp32" else 0.2)
    assert np.ptp(distances) > 0.9


def test_a_path_its_bytes_and_its_pixels_are_one_image(classifier, digit_file):
    data = digit_file.read_bytes()
    ways = [digit_file, str(digit_file), data, decode.decode(data)]
    alone = [classifier.predict(way)[0] for way in ways]
    together = classifier.predict(ways)
    assert [p.filename for p in alone] == [str(digit_file), str(digit_file), "#0", "#0"]
    assert [p.filename for p in together] == [str(digit_file), str(digit_file), "#2", "#3"]
    for one, all_of_them in zip(alone, together, strict=True):
        assert one.top_k == alone[0].top_k
        assert one.label == all_of_them.label
        assert one.score == pytest.approx(all_of_them.score, abs=1e-5)


def test_predictions_are_the_best_first(classifier, images):
    rows = classifier.probabilities(images)
    for top, many in ((1, 1), (3, 3), (5, 5), (10, 10), (99, 10), (0, 1)):
        for prediction, row in zip(classifier.predict(images, top=top), rows, strict=True):
            assert len(prediction.top_k) == many
            values = [p for _, p in prediction.top_k]
            assert values == sorted(values, reverse=True)
            assert values[0] == row.max()
            assert all(row[classifier.classes.index(name)] == p for name, p in prediction.top_k)
            assert prediction.label == classifier.classes[row.argmax()]
    assert sum(p for _, p in classifier.predict(images[0], top=10)[0].top_k) == pytest.approx(1, abs=1e-5)


def test_as_plain_values(classifier, images):
    prediction = classifier.predict(images[0], top=2)[0]
    assert prediction.to_dict() == {
        "filename": "#0",
        "top_k": [{"label": name, "score": p} for name, p in prediction.top_k],
    }
    assert prediction.score == prediction.top_k[0][1]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_the_batch_size_changes_no_answer(classifier, images, batch_size):
    expected = classifier.probabilities(images)
    found = classifier.probabilities(images, batch_size=batch_size)
    assert found == pytest.approx(expected, abs=1e-5)
    assert [p.filename for p in classifier.predict(images, batch_size=batch_size)] == [f"#{i}" for i in range(7)]


def test_ten_crops(classifier, images):
    one, ten = (classifier.probabilities(images, crops=crops) for crops in (1, 10))
    assert ten.sum(1) == pytest.approx(np.ones(7), abs=1e-5)
    assert np.abs(one - ten).max() > 1e-3
    with pytest.raises(DataError, match="crops is 2; must be 1, 9 or 10"):
        classifier.predict(images, crops=2)


def test_embed_is_what_the_last_layer_sees(classifier, images):
    found = classifier.embed(images, batch_size=3)
    assert found.shape == (7, 576)
    assert found.dtype == np.float32
    with torch.no_grad():
        p = classifier.network.fc10(torch.from_numpy(found)).softmax(1).numpy()
    assert p == pytest.approx(classifier.probabilities(images), abs=1e-5)


def test_features_that_overflow_are_refused(classifier, images):
    network = copy.deepcopy(classifier.bundle.network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(3e38)
    huge = Classifier(dataclasses.replace(classifier.bundle, network=network))
    for call in (huge.embed, huge.probabilities):
        with pytest.raises(BundleError, match="computes values that are NaN or Inf"):
            call(images[:2])


def test_no_images(classifier):
    assert classifier.predict([]) == []
    assert classifier.probabilities([]).shape == (0, 10)
    assert classifier.embed([]).shape == (0, 576)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_prepare_is_decode_and_fit(classifier, digit_file, fit):
    other = Classifier(Bundle(classifier.network, classifier.classes, classifier.normalization, 32, fit))
    expected = decode.fit(decode.decode(digit_file.read_bytes()), 32, fit)
    for way in (digit_file, str(digit_file), digit_file.read_bytes(), decode.decode(digit_file.read_bytes())):
        assert np.array_equal(other.prepare(way), expected)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (b"", "#1: is empty"),
        (b"not an image at all", "#1: cannot be decoded"),
        (np.zeros((4, 4, 3)), "#1: array float64 [4, 4, 3]; must be uint8 [H, W, 3], RGB"),
        (np.zeros((4, 4), np.uint8), "#1: array uint8 [4, 4]; must be uint8 [H, W, 3], RGB"),
        (np.zeros((4, 4, 4), np.uint8), "#1: array uint8 [4, 4, 4]"),
        (np.zeros((0, 4, 3), np.uint8), "array uint8 [0, 4, 3]"),
        (None, "#1: is NoneType; must be a path, bytes, or uint8 [H, W, 3], RGB"),
        ("nowhere/three.png", "nowhere/three.png: cannot be read (No such file or directory)"),
        (Path(), ".: is not a file"),
    ],
)
def test_a_bad_image_is_named(classifier, images, image, text):
    for ask in (classifier.predict, classifier.probabilities, classifier.embed):
        with pytest.raises(ImageError) as caught:
            ask([images[0], image])
        assert str(caught.value).startswith(text)


def test_a_cut_file_is_named(classifier, digit_file, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(digit_file.read_bytes()[:-20])
    with pytest.raises(ImageError, match=r"cut\.png"):
        classifier.predict([digit_file, cut])


def test_load_finds_the_bundle_of_a_run(classifier, images, tmp_path):
    classifier.bundle.save(tmp_path / "run" / "bundle")
    expected = classifier.probabilities(images)
    for path in (tmp_path / "run", str(tmp_path / "run" / "bundle")):
        assert np.array_equal(Classifier.load(path).probabilities(images), expected)
    with pytest.raises(BundleError):
        Classifier.load(tmp_path / "nothing")


@pytest.mark.parametrize("whole", [True, False])
def test_bf16_predictions_nearly_alike_and_explains_in_float32(classifier, images, whole, monkeypatch):
    monkeypatch.setattr(backend, "bf16_is_faster", lambda device: whole)
    half = Classifier(classifier.bundle, precision="bf16")
    exact, found = classifier.probabilities(images), half.probabilities(images)
    assert 0 < np.abs(found - exact).max() < 0.03 and (found.argmax(1) == exact.argmax(1)).all()
    assert np.array_equal(half.embed(images), classifier.embed(images))
    assert half.precision == "bf16" and classifier.precision == "fp32"


def test_a_precision_that_there_is_not(classifier):
    with pytest.raises(BundleError, match="precision 'int8'; must be fp32 or bf16; alexnet export has int8"):
        Classifier(classifier.bundle, precision="int8")


def test_many_images_and_it_is_compiled(classifier, images, monkeypatch):
    """However they come; not for fewer, whose answers would wait for it."""
    built = []
    monkeypatch.setattr(native_kernels, "build", lambda: built.append(classifier._crops))
    monkeypatch.setattr(native_kernels, "_WORTH_COMPILING", 160 * work(classifier.network))
    for _ in range(82):
        classifier.predict(images[0])
    classifier.embed(images)
    classifier.probabilities(images, crops=10)
    assert built == []
    classifier.predict(images[0])
    assert built == [160]


@pytest.mark.parametrize("images", [99, 100])
def test_what_is_expected_is_prepared_for_at_once_or_not_at_all(classifier, images, monkeypatch):
    built = []
    monkeypatch.setattr(native_kernels, "build", lambda: built.append(True))
    monkeypatch.setattr(native_kernels, "_WORTH_COMPILING", 100 * work(classifier.network))
    classifier.expect(images)
    assert bool(built) == (images == 100)


@pytest.mark.parametrize(("crops", "loaded"), [(63, 0), (64, 1)])
def test_kernels_that_are_compiled_already_are_used_from_64_crops_on(classifier, images, monkeypatch, crops, loaded):
    calls = []
    monkeypatch.setattr(native_kernels, "load", lambda: calls.append(True))
    monkeypatch.setattr(native_kernels, "build", None)  # not called
    Classifier(classifier.bundle).expect(crops)
    assert len(calls) == loaded
    Classifier(classifier.bundle).predict([images[0]] * crops)
    assert len(calls) == 2 * loaded


def test_no_room_for_compiling_is_no_reason_not_to_answer(classifier, images, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(
        native_kernels,
        "_libraries",
        NativeLibraries("alexnet.kernels", {"lrn": ["lrn_f32_forward"]}),
    )
    monkeypatch.setattr(tempfile, "mkdtemp", full)
    monkeypatch.setenv("HOME", "/proc/nothing")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    classifier.optimize()
    assert not native_kernels.build()
    assert classifier.probabilities(images).shape == (7, 10)


def test_optimizeing_changes_no_answer_and_no_weight(tmp_path):
    network = create_model("alexnet", num_classes=10, generator=torch.Generator().manual_seed(0))
    gray = Normalization(torch.full((3,), 128.0), torch.zeros(3), torch.eye(3), torch.tensor(60.0))
    classes = tuple(f"class {number}" for number in range(10))
    classifier = Classifier(Bundle(network, classes, gray, stored_size=256, fit="crop"))
    images = list(np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), np.uint8))
    ways = [lambda: classifier.probabilities(images[0]), lambda: classifier.embed(images)]
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = [way() for way in ways]
    classifier.optimize()
    if native_kernels.in_use("linear") and native_kernels.is_fast("linear"):
        assert all(network.get_submodule(name).weight.stride() == (1, 4096) for name in ("fc6", "fc7"))
    for old, way in zip(before, ways, strict=True):
        assert way() == pytest.approx(old, rel=1e-4, abs=1e-5)  # minimal filtering, and sums in another order
    read = Bundle.load(classifier.save_pretrained(tmp_path / "bundle")).network.state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in weights.items())
