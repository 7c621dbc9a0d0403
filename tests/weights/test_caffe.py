"""Caffe's files, written here by hand in both of their forms, against an independent forward pass."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.errors import AlexNetError, BundleError
from alexnet.export.classifier import Classifier
from alexnet.weights import caffe
from alexnet.weights.import_weights import ImportOptions, import_weights
from alexnet.weights.matching import load_into_model

from .conftest import (
    blob,
    cifar_19pct,
    convolve,
    image,
    layer,
    normalized,
    part,
    pooled,
    single,
    small_net,
    softmax,
    varint,
    whole,
)

FORMS = ("now", "2014")


def small_model(arrays: dict, form: str = "now", **how) -> bytes:
    """The CIFAR-10 net 19pct as Caffe would store it: blue first in conv1, ReLU after or before a pool as it comes."""
    geometry = whole(3, 2) + whole(4, 5) + whole(6, 1)
    maximum, mean = whole(1, 0) + whole(2, 3) + whole(3, 2), whole(1, 1) + whole(2, 3) + whole(3, 2)

    def learned(kind, name, about=b""):
        weight, bias = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
        return layer(kind, name, [weight[:, ::-1] if name == "conv1" else weight, bias], about, form, **how)

    parts = [
        part(1, "small"),
        layer("Data", "data", form=form),
        learned("Convolution", "conv1", geometry),
        layer("Pooling", "pool1", (), maximum, form),
        layer("ReLU", "relu1", form=form),
        learned("Convolution", "conv2", geometry),
        layer("ReLU", "relu2", form=form),
        layer("Pooling", "pool2", (), mean, form),
        learned("Convolution", "conv3", geometry),
        layer("ReLU", "relu3", form=form),
        layer("Pooling", "pool3", (), mean, form),
        layer("Dropout", "drop", form=form),
        learned("InnerProduct", "fc10"),
        layer("Softmax", "prob", form=form),
    ]
    return b"".join(parts)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", [{}, {"packed": False}, {"double": True}], ids=["packed", "unpacked", "double"])
def test_blobs_of_both_forms_come_back_with_conv1_in_rgb(form, how, tmp_path):
    arrays = small_net()
    (tmp_path / "small.caffemodel").write_bytes(small_model(arrays, form, **how))
    found = caffe.read(tmp_path / "small.caffemodel")
    assert set(found.arrays) == set(arrays)
    assert all(np.array_equal(found.arrays[name], arrays[name]) for name in arrays)
    kinds = [step.kind for step in found.steps]
    assert kinds[:4] == ["convolution", "max pool", "relu", "convolution"]
    assert found.steps[0].numbers == {"padding": 2, "kernel": 5, "stride": 1, "groups": 1}


def mean_file(tmp_path, side: int = 40):
    """A mean image as Caffe stores it: blue, green, red [1, 3, S, S]; returned as RGB [S, S, 3], too."""
    image = np.random.default_rng(5).uniform(60, 160, (side, side, 3)).astype(np.float32)
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(blob(image[..., ::-1].transpose(2, 0, 1)[None], "2014"))
    return path, image


def test_a_bundle_predicts_like_caffe(tmp_path):
    """From the bytes of the file to probabilities: squashed image, center of both, blue first, mean at its place."""
    arrays = small_net()
    (tmp_path / "small.caffemodel").write_bytes(small_model(arrays, "2014"))
    path, mean = mean_file(tmp_path)
    extras = ImportOptions(model="cifar_19pct", mean=str(path))
    bundle = import_weights("caffe", str(tmp_path / "small.caffemodel"), extras)
    assert (bundle.stored_size, bundle.fit, bundle.classes) == (40, "squash", ("0", "1", "2", "3"))
    shown = image(40)
    x = (shown.astype(np.float64) - mean)[4:36, 4:36].transpose(2, 0, 1)  # the center 32 of 40
    expected = softmax(cifar_19pct(arrays, x))
    loaded = Classifier.load(bundle.save(tmp_path / "bundle"))
    assert np.ptp(expected) > 0.05
    assert np.abs(loaded.probabilities(shown)[0] - expected).max() < 1e-5
    for reference in loaded.bundle.reference_samples:
        assert np.allclose(loaded.probabilities(reference.png)[0], reference.probabilities, atol=1e-6)
    again = import_weights("caffe", str(tmp_path / "small.caffemodel"), extras)
    assert [g.probabilities for g in again.reference_samples] == [g.probabilities for g in bundle.reference_samples]
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "Imported from caffe: `small.caffemodel`" in card


def test_bvlc_alexnet_whole(tmp_path):
    """All 58 million numbers of it (5 classes), in the form of 2014, against a forward pass by its definition."""
    random = np.random.default_rng(0)
    conv = {
        "conv1": (96, 3, 11),
        "conv2": (256, 48, 5),
        "conv3": (384, 256, 3),
        "conv4": (384, 192, 3),
        "conv5": (256, 192, 3),
    }
    shapes = {name: (out, inside, k, k) for name, (out, inside, k) in conv.items()}
    shapes |= {"fc6": (4096, 9216), "fc7": (4096, 4096), "fc8": (5, 4096)}
    weights = {
        name: random.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5)
        for name, shape in shapes.items()
    }
    weights["conv1"] /= 30
    biases = {name: random.standard_normal(shape[0], np.float32) * np.float32(0.1) for name, shape in shapes.items()}
    geometry = {
        "conv1": whole(4, 11) + whole(6, 4),
        "conv2": whole(3, 2) + whole(4, 5) + whole(5, 2),
        "conv3": whole(3, 1) + whole(4, 3),
        "conv4": whole(3, 1) + whole(4, 3) + whole(5, 2),
        "conv5": whole(3, 1) + whole(4, 3) + whole(5, 2),
    }
    norm = whole(1, 5) + single(2, 1e-4) + single(3, 0.75)
    pool = whole(1, 0) + whole(2, 3) + whole(3, 2)
    path = tmp_path / "bvlc_alexnet.caffemodel"
    with path.open("wb") as file:
        for name in shapes:
            kind = "Convolution" if name in conv else "InnerProduct"
            file.write(layer(kind, name, [weights[name], biases[name]], geometry.get(name, b""), "2014"))
            if name != "fc8":
                file.write(layer("ReLU", f"relu{name[-1]}", form="2014"))
            if name in ("conv1", "conv2"):
                file.write(layer("LRN", f"norm{name[-1]}", (), norm, "2014"))
            if name in ("conv1", "conv2", "conv5"):
                file.write(layer("Pooling", f"pool{name[-1]}", (), pool, "2014"))
            if name in ("fc6", "fc7"):
                file.write(layer("Dropout", f"drop{name[-1]}", form="2014"))
    bundle = import_weights("caffe", str(path), ImportOptions(mean="122.679,116.669,104.007"))
    assert (bundle.network.name, bundle.stored_size, bundle.fit) == ("alexnet_caffe", 256, "squash")
    shown = image(256)
    x = shown[14:241, 14:241, ::-1].astype(np.float64) - (104.007, 116.669, 122.679)  # blue first
    x = convolve(x.transpose(2, 0, 1), weights["conv1"], biases["conv1"], stride=4)
    x = pooled(normalized(np.maximum(x, 0)))
    x = pooled(normalized(np.maximum(convolve(x, weights["conv2"], biases["conv2"], padding=2, groups=2), 0)))
    for name, groups in (("conv3", 1), ("conv4", 2), ("conv5", 2)):
        x = np.maximum(convolve(x, weights[name], biases[name], padding=1, groups=groups), 0)
    x = pooled(x).ravel()  # 256 × 6 × 6
    for name in ("fc6", "fc7"):
        x = np.maximum(weights[name] @ x + biases[name], 0)
    expected = softmax(weights["fc8"] @ x + biases["fc8"])
    assert np.abs(Classifier(bundle).probabilities(shown)[0] - expected).max() < 1e-4
    with pytest.raises(BundleError, match=r"after relu1 comes norm1, a norm; must be pool1, a max pool, as in c"):
        load_into_model("caffenet", caffe.read(path), "file")
    with pytest.raises(BundleError, match=r"layer norm1 has (k|towers) 1; must be 2, as norm1 in alexnet"):
        load_into_model("alexnet", caffe.read(path), "file")


def refusal(tmp_path, data: bytes, **extras) -> str:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(BundleError) as caught:
        import_weights("caffe", str(tmp_path / "file"), ImportOptions(model="cifar_19pct", **extras))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_named_with_both_sizes(tmp_path):
    arrays = small_net()
    wrong = arrays | {"conv2.weight": np.zeros((32, 16, 5, 5), np.float32)}
    text = refusal(tmp_path, small_model(wrong))
    assert "layer conv2.weight is [32, 16, 5, 5]; must be [32, 32, 5, 5], as in cifar_19pct" in text
    more = small_model(arrays) + layer("InnerProduct", "fc11", [np.zeros((3, 4), np.float32)])
    assert "also has fc11.weight" in refusal(tmp_path, more)
    fewer = b"".join(layer("InnerProduct", n, [arrays[f"{n}.weight"], arrays[f"{n}.bias"]]) for n in ("fc10",))
    assert "lacks conv1.weight, conv1.bias, conv2.weight, conv2.bias and 2 more" in refusal(tmp_path, fewer)
    nan = arrays | {"conv3.bias": np.full(64, np.nan, np.float32)}
    assert "layer conv3.bias holds non-finite or integer values" in refusal(tmp_path, small_model(nan))
    other = small_model(arrays).replace(
        whole(3, 2) + whole(4, 5) + whole(6, 1), whole(3, 2) + whole(4, 5) + whole(6, 2), 1
    )
    assert "layer conv1 has stride 2; must be 1, as conv1 in cifar_19pct" in refusal(tmp_path, other)


def test_a_file_of_learned_layers_alone_is_taken_at_its_sizes(tmp_path):
    arrays = small_net()
    names = ("conv1", "conv2", "conv3")
    data = b"".join(layer("Convolution", n, [arrays[f"{n}.weight"], arrays[f"{n}.bias"]]) for n in names)
    data += layer("InnerProduct", "fc10", [arrays["fc10.weight"], arrays["fc10.bias"]])
    (tmp_path / "file").write_bytes(data)
    assert load_into_model("cifar_19pct", caffe.read(tmp_path / "file"), "file").num_classes == 4


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "is damaged or not a Caffe file"),
        (part(1, "a net"), "holds no weights"),
        (
            part(100, part(1, "c") + part(7, part(7, part(1, varint(9))) + part(5, b"1234"))),
            "a blob of [9] with 1 numbers",
        ),
        (part(100, part(7, whole(1, 2**40) + whole(2, 2**40))), "a blob whose shape is"),
        (part(100, part(7, whole(1, -1))), "a blob whose shape is [-1, 1, 1, 1]"),
        (part(100, whole(7, 3)), "field 7 has wire type 0 where a message must be"),
        (part(100, part(7, part(5, b"12345"))), "5 bytes, no multiple of 4"),
        (part(2, part(1, part(1, "conv1"))), "a layer in the form of 2013"),
        (part(100, part(1, "c") + part(2, "Convolution") + part(7, part(5, b"1234")) * 3), "has 3 blobs"),
        (part(100, b"") * 10_002, "more than 10,000 layers"),
    ],
)
def test_damaged_files_are_refused_in_one_line(data, text, tmp_path):
    assert text in refusal(tmp_path, data)


WHOLE = small_model({name: array[:2, ...] for name, array in small_net().items()})


@given(data=st.data())
def test_damaged_bytes_end_in_our_errors_alone(data, tmp_path_factory):
    damaged = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(damaged), 400) - 1) | st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(1, len(damaged)) | st.just(len(damaged)))]
    path = tmp_path_factory.getbasetemp() / "damaged.caffemodel"
    path.write_bytes(bytes(damaged))
    try:
        load_into_model("cifar_19pct", caffe.read(path), "file")
    except AlexNetError as error:
        assert "\n" not in str(error)


def test_means(tmp_path):
    path, image = mean_file(tmp_path, 8)
    assert np.array_equal(caffe.read_mean(path), image)
    for wrong in (np.zeros((4, 8, 8)), np.zeros((3, 8, 9)), np.full((3, 8, 8), np.inf), np.zeros(3)):
        path.write_bytes(blob(wrong))
        with pytest.raises(BundleError, match=r"must be a mean image \[3, S, S\]"):
            caffe.read_mean(path)


@pytest.mark.parametrize("shape", [[1 << 62, 0], [1] * 70, [0, 1 << 31], [1 << 40, 1 << 40, 0]])
def test_shapes_that_no_array_can_have_are_refused_in_one_line(shape, tmp_path):
    sides = [part(7, b"".join(whole(1, side) for side in shape))]
    content = b"".join(sides) + part(5, b"")
    data = part(100, part(1, "conv1") + part(2, "Convolution") + part(7, content))
    assert "a blob whose shape is" in refusal(tmp_path, data)
