import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet.batches.transforms import Statistics
from alexnet.bundle import Bundle
from alexnet.data import pixels
from alexnet.deploy.classifier import Classifier
from alexnet.errors import BundleError, DataError, PictureError
from alexnet.models import create_model, halves, kernel
from alexnet.models.summary import work
from alexnet.native import Native


@pytest.fixture
def classifier(digits) -> Classifier:
    statistics = Statistics(torch.from_numpy(digits.mean_image), torch.ones(3), torch.eye(3), torch.tensor(40.0))
    network = create_model("cifar_18pct", image_size=24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # untrained weights would answer everything alike
        network.conv1.weight.mul_(1000)
        network.conv2.weight.mul_(5)
        network.fc10.weight.mul_(5)
    return Classifier(Bundle(network, digits.classes, statistics, stored_size=32, fit="crop"))


@pytest.fixture
def pictures(digits) -> list[np.ndarray]:
    return list(digits.split("test").gather(np.arange(7)))


def slow(classifier: Classifier, stored: np.ndarray) -> np.ndarray:
    """One picture's probabilities, step by step."""
    mean = classifier.statistics.mean.numpy()
    view = ((stored.astype(np.float32) - mean)[4:28, 4:28] / 40).transpose(2, 0, 1)
    with torch.no_grad():
        logits = classifier.network(torch.from_numpy(view.copy())[None])[0].double().numpy()
    return np.exp(logits) / np.exp(logits).sum()


def test_probabilities_against_a_plain_computation(classifier, pictures):
    found = classifier.probabilities(pictures)
    assert found.shape == (7, 10)
    assert found.dtype == np.float32
    assert found.sum(1) == pytest.approx(np.ones(7), abs=1e-5)
    assert np.ptp(found, axis=0).max() > 0.01  # the pictures do differ
    for row, picture in zip(found, pictures, strict=True):
        assert row == pytest.approx(slow(classifier, picture), abs=1e-4)  # float32, other orders of adding


def test_a_path_its_bytes_and_its_pixels_are_one_picture(classifier, digit_file):
    data = digit_file.read_bytes()
    ways = [digit_file, str(digit_file), data, pixels.decode(data)]
    alone = [classifier.predict(way)[0] for way in ways]
    together = classifier.predict(ways)
    assert [p.name for p in alone] == [str(digit_file), str(digit_file), "#0", "#0"]
    assert [p.name for p in together] == [str(digit_file), str(digit_file), "#2", "#3"]
    for one, all_of_them in zip(alone, together, strict=True):
        assert one.guesses == alone[0].guesses
        assert one.label == all_of_them.label
        assert one.probability == pytest.approx(all_of_them.probability, abs=1e-5)


def test_guesses_are_the_best_first(classifier, pictures):
    rows = classifier.probabilities(pictures)
    for top, many in ((1, 1), (3, 3), (5, 5), (10, 10), (99, 10), (0, 1)):
        for prediction, row in zip(classifier.predict(pictures, top=top), rows, strict=True):
            assert len(prediction.guesses) == many
            values = [p for _, p in prediction.guesses]
            assert values == sorted(values, reverse=True)
            assert values[0] == row.max()
            assert all(row[classifier.classes.index(name)] == p for name, p in prediction.guesses)
            assert prediction.label == classifier.classes[row.argmax()]
    assert sum(p for _, p in classifier.predict(pictures[0], top=10)[0].guesses) == pytest.approx(1, abs=1e-5)


def test_as_plain_values(classifier, pictures):
    prediction = classifier.predict(pictures[0], top=2)[0]
    assert prediction.to_dict() == {
        "picture": "#0",
        "guesses": [{"class": name, "probability": p} for name, p in prediction.guesses],
    }
    assert prediction.probability == prediction.guesses[0][1]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_the_batch_size_changes_no_answer(classifier, pictures, batch_size):
    expected = classifier.probabilities(pictures)
    found = classifier.probabilities(pictures, batch_size=batch_size)
    assert found == pytest.approx(expected, abs=1e-5)
    assert [p.name for p in classifier.predict(pictures, batch_size=batch_size)] == [f"#{i}" for i in range(7)]


def test_ten_views(classifier, pictures):
    one, ten = (classifier.probabilities(pictures, views=views) for views in (1, 10))
    assert ten.sum(1) == pytest.approx(np.ones(7), abs=1e-5)
    assert np.abs(one - ten).max() > 1e-3
    with pytest.raises(DataError, match="views is 2; must be 1, 9 or 10"):
        classifier.predict(pictures, views=2)


def test_embed_is_what_the_last_layer_sees(classifier, pictures):
    found = classifier.embed(pictures, batch_size=3)
    assert found.shape == (7, 576)
    assert found.dtype == np.float32
    with torch.no_grad():
        p = classifier.network.fc10(torch.from_numpy(found)).softmax(1).numpy()
    assert p == pytest.approx(classifier.probabilities(pictures), abs=1e-5)


def test_no_pictures(classifier):
    assert classifier.predict([]) == []
    assert classifier.probabilities([]).shape == (0, 10)
    assert classifier.embed([]).shape == (0, 576)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_prepare_is_decode_and_fit(classifier, digit_file, fit):
    other = Classifier(Bundle(classifier.network, classifier.classes, classifier.statistics, 32, fit))
    expected = pixels.fit(pixels.decode(digit_file.read_bytes()), 32, fit)
    for way in (digit_file, str(digit_file), digit_file.read_bytes(), pixels.decode(digit_file.read_bytes())):
        assert np.array_equal(other.prepare(way), expected)


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        (b"", "#1: is empty"),
        (b"not a picture at all", "#1: can not be decoded"),
        (np.zeros((4, 4, 3)), "#1: array float64 [4, 4, 3]; must be uint8 [H, W, 3], RGB"),
        (np.zeros((4, 4), np.uint8), "#1: array uint8 [4, 4]; must be uint8 [H, W, 3], RGB"),
        (np.zeros((4, 4, 4), np.uint8), "#1: array uint8 [4, 4, 4]"),
        (np.zeros((0, 4, 3), np.uint8), "array uint8 [0, 4, 3]"),
        (None, "#1: is NoneType; must be a path, bytes, or uint8 [H, W, 3], RGB"),
        ("nowhere/three.png", "nowhere/three.png: can not be read (No such file or directory)"),
        (Path(), ".: is not a file"),
    ],
)
def test_a_bad_picture_is_named(classifier, pictures, picture, text):
    for ask in (classifier.predict, classifier.probabilities, classifier.embed):
        with pytest.raises(PictureError) as caught:
            ask([pictures[0], picture])
        assert str(caught.value).startswith(text)


def test_a_cut_file_is_named(classifier, digit_file, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(digit_file.read_bytes()[:-20])
    with pytest.raises(PictureError, match=r"cut\.png"):
        classifier.predict([digit_file, cut])


def test_load_finds_the_bundle_of_a_run(classifier, pictures, tmp_path):
    classifier.bundle.save(tmp_path / "run" / "bundle")
    expected = classifier.probabilities(pictures)
    for path in (tmp_path / "run", str(tmp_path / "run" / "bundle")):
        assert np.array_equal(Classifier.load(path).probabilities(pictures), expected)
    with pytest.raises(BundleError):
        Classifier.load(tmp_path / "nothing")


@pytest.mark.parametrize("whole", [True, False])
def test_bf16_answers_nearly_alike_and_explains_in_float32(classifier, pictures, whole, monkeypatch):
    monkeypatch.setattr(halves, "faster", lambda device: whole)
    half = Classifier(classifier.bundle, precision="bf16")
    exact, found = classifier.probabilities(pictures), half.probabilities(pictures)
    assert 0 < np.abs(found - exact).max() < 0.03 and (found.argmax(1) == exact.argmax(1)).all()
    assert np.array_equal(half.embed(pictures), classifier.embed(pictures))
    assert half.precision == "bf16" and classifier.precision == "fp32"


def test_a_precision_that_there_is_not(classifier):
    with pytest.raises(BundleError, match="precision 'int8'; must be fp32 or bf16; alexnet export has int8"):
        Classifier(classifier.bundle, precision="int8")


def test_many_pictures_and_it_is_compiled(classifier, pictures, monkeypatch):
    """However they come; not for fewer, whose answers would wait for it."""
    built = []
    monkeypatch.setattr(kernel, "build", lambda: built.append(classifier._asked))
    monkeypatch.setattr(kernel, "_MUCH", 160 * work(classifier.network))
    for _ in range(82):
        classifier.predict(pictures[0])
    classifier.embed(pictures)
    classifier.probabilities(pictures, views=10)
    assert built == []
    classifier.predict(pictures[0])
    assert built == [160]


@pytest.mark.parametrize("pictures", [99, 100])
def test_what_is_expected_is_prepared_for_at_once_or_not_at_all(classifier, pictures, monkeypatch):
    built = []
    monkeypatch.setattr(kernel, "build", lambda: built.append(True))
    monkeypatch.setattr(kernel, "_MUCH", 100 * work(classifier.network))
    classifier.expect(pictures)
    assert bool(built) == (pictures == 100)


@pytest.mark.parametrize(("views", "loaded"), [(63, 0), (64, 1)])
def test_kernels_that_are_compiled_already_are_used_from_64_views_on(classifier, pictures, monkeypatch, views, loaded):
    calls = []
    monkeypatch.setattr(kernel, "load", lambda: calls.append(True))
    monkeypatch.setattr(kernel, "build", None)  # not called
    Classifier(classifier.bundle).expect(views)
    assert len(calls) == loaded
    Classifier(classifier.bundle).predict([pictures[0]] * views)
    assert len(calls) == 2 * loaded


def test_no_room_for_compiling_is_no_reason_not_to_answer(classifier, pictures, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(kernel, "_native", Native("alexnet.models", {"norm": ["f32_forward"]}, ("lanes.h", "norm.h")))
    monkeypatch.setattr(tempfile, "mkdtemp", full)
    monkeypatch.setenv("HOME", "/proc/nothing")
    classifier.hasten()
    assert not kernel.build()
    assert classifier.probabilities(pictures).shape == (7, 10)


def test_hastening_changes_no_answer_and_no_weight(tmp_path):
    network = create_model("alexnet", num_classes=10, generator=torch.Generator().manual_seed(0))
    gray = Statistics(torch.full((3,), 128.0), torch.zeros(3), torch.eye(3), torch.tensor(60.0))
    classes = tuple(f"class {number}" for number in range(10))
    classifier = Classifier(Bundle(network, classes, gray, stored_size=256, fit="crop"))
    pictures = list(np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), np.uint8))
    ways = [lambda: classifier.probabilities(pictures[0]), lambda: classifier.embed(pictures)]
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = [way() for way in ways]
    classifier.hasten()
    if kernel.in_use("thin") and kernel.library("thin").thin_pays():
        assert all(network.get_submodule(name).weight.stride() == (1, 4096) for name in ("fc6", "fc7"))
    for old, way in zip(before, ways, strict=True):
        assert way() == pytest.approx(old, rel=1e-4, abs=1e-6)  # minimal filtering, and sums in another order
    read = Bundle.load(classifier.save_pretrained(tmp_path / "bundle")).network.state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in weights.items())
