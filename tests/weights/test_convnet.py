"""cuda-convnet's checkpoints: towers joined, layouts turned, dropout halved; attacks and damage refused."""

import gzip
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from alexnet.errors import AlexNetError, BundleError
from alexnet.export.classifier import Classifier
from alexnet.models import create_model
from alexnet.models.layers import Convolution, Dropout, Flatten, LocalResponseNorm, MaxPool, SpatialNorm
from alexnet.models.network import Network
from alexnet.weights import convnet, files
from alexnet.weights.import_weights import ImportOptions, import_weights
from alexnet.weights.matching import _filled, _same_steps

from .conftest import Raw, cifar_19pct, convolve, image, pooled, py2, small_net, softmax

RANDOM = np.random.default_rng(3)


def conv(inputs, filters, kernel, channels, stride=1, padding=0):
    """A convolution as a checkpoint has it: one matrix an input, [channels·kernel², filters], padding negative."""
    weights = [RANDOM.normal(0, 0.3, (c * kernel**2, filters)).astype(np.float32) for c in channels]
    biases = RANDOM.normal(0, 0.1, (filters, 1)).astype("f4")
    return {
        "type": "conv",
        "inputs": inputs,
        "weights": weights,
        "biases": biases,
        "filterSize": [kernel] * len(inputs),
        "filterChannels": channels,
        "channels": channels,
        "filters": filters,
        "stride": [stride] * len(inputs),
        "padding": [-padding] * len(inputs),
        "groups": [1] * len(inputs),
        "randSparse": [False] * len(inputs),
    }


def fc(inputs, sizes, out):
    weights = [np.asfortranarray(RANDOM.normal(0, 0.3, (size, out)).astype(np.float32)) for size in sizes]
    return {"type": "fc", "inputs": inputs, "weights": weights, "biases": RANDOM.normal(0, 0.1, (1, out)).astype("f4")}


def neuron(source, kind="relu"):
    return {"type": "neuron", "inputs": [source], "neuron": {"type": kind, "params": {}}}


def pool(source, kind="max"):
    return {"type": "pool", "inputs": [source], "pool": kind, "sizeX": 3, "stride": 2, "start": 0}


def norm(source):
    """Its scale is stored divided by its size."""
    return {"type": "cmrnorm", "inputs": [source], "size": 5, "scale": 1e-4 / 5, "pow": 0.75, "minDiv": 2}


def towers() -> dict:
    """Net 145 with 4-6-4-4-4 maps a tower and 5 units in place of 2048; b lists fc7's inputs the other way round."""
    layers = {"data": {"type": "data"}, "labels": {"type": "data"}}
    for t, o in ("ab", "ba"):
        layers |= {
            f"conv1{t}": conv(["data"], 4, 11, [3], stride=4),
            f"cnorm1{t}": norm(f"conv1{t}"),
            f"pool1{t}": pool(f"cnorm1{t}"),
            f"pool1{t}_neuron": neuron(f"pool1{t}"),
            f"conv2{t}": conv([f"pool1{t}_neuron"], 6, 5, [4], padding=2),
            f"conv2{t}_neuron": neuron(f"conv2{t}"),
            f"cnorm2{t}": norm(f"conv2{t}_neuron"),
            f"cnorm2x{t}": {"type": "rnorm", "inputs": [f"cnorm2{t}"], "size": 5, "scale": 1e-3 / 25, "pow": 0.75},
            f"pool2{t}": pool(f"cnorm2x{t}"),
            f"conv3{t}": conv(["pool2a", "pool2b"] if t == "a" else ["pool2b", "pool2a"], 4, 3, [6, 6], padding=1),
            f"conv3{t}_neuron": neuron(f"conv3{t}"),
            f"conv4{t}": conv([f"conv3{t}_neuron"], 4, 3, [4], padding=1),
            f"conv4{t}_neuron": neuron(f"conv4{t}"),
            f"conv5{t}": conv([f"conv4{t}_neuron"], 4, 3, [4], padding=1),
            f"conv5{t}_neuron": neuron(f"conv5{t}"),
            f"pool5{t}": pool(f"conv5{t}_neuron"),
            f"fc2048{t}": fc(["pool5a", "pool5b"], [4, 4], 5),
            f"fc2048{t}_neuron": neuron(f"fc2048{t}"),
            f"hs1{t}": {"type": "hs", "inputs": [f"fc2048{t}_neuron"], "keep": 0.5},
            f"fc2048b{t}": fc([f"hs1{t}", f"hs1{o}"], [5, 5], 5),
            f"fc2048b{t}_neuron": neuron(f"fc2048b{t}"),
            f"hs2{t}": {"type": "hs", "inputs": [f"fc2048b{t}_neuron"], "keep": 0.5},
        }
    layers["fc1000"] = fc(["hs2a", "hs2b"], [5, 5], 3)
    layers["probs"] = {"type": "softmax", "inputs": ["fc1000"]}
    layers["logprob"] = {"type": "cost.logreg", "inputs": ["labels", "probs"]}
    return layers


def checkpoint(layers, **more) -> bytes:
    options = Raw(b"(coptions\nOptionsParser\no}(U\x04argsK\x01ub")
    return py2({"model_state": {"layers": layers, "epoch": 90, "batchnum": 1, **more}, "op": options})


def shuffled(layers: dict) -> dict:
    """Dictionaries of Python 2 have no order."""
    names = sorted(layers)
    RANDOM.shuffle(names)
    return {name: layers[name] for name in names}


def as_it_ran(layers: dict, x: np.ndarray) -> np.ndarray:
    """Logits of that checkpoint in a test, layer after layer with the arithmetic of 2012, for one input [3, 67, 67]."""
    known = {"data": x}

    def value(name):
        if name not in known:
            known[name] = computed(layers[name], [value(other) for other in layers[name]["inputs"]])
        return known[name]

    def computed(layer, inputs):
        kind = layer["type"]
        if kind == "conv":
            kernel, filters = layer["filterSize"][0], layer["filters"]
            stride, padding = layer["stride"][0], -layer["padding"][0]
            total = 0
            for i, (source, matrix) in enumerate(zip(inputs, layer["weights"], strict=True)):
                weight = matrix.reshape(layer["filterChannels"][i], kernel, kernel, filters).transpose(3, 0, 1, 2)
                total = total + convolve(source, weight, np.zeros(filters), stride, padding)
            return total + layer["biases"].reshape(-1, 1, 1)
        if kind == "fc":
            multiplications = [s.ravel() @ m.astype(np.float64) for s, m in zip(inputs, layer["weights"], strict=True)]
            return sum(multiplications) + layer["biases"].ravel()
        (x,) = inputs
        if kind == "neuron":
            return np.maximum(x, 0)
        if kind == "pool":
            return pooled(x)
        if kind == "hs":
            return x * layer["keep"]
        squares = np.pad(x**2, ((2, 2), (0, 0), (0, 0)) if kind == "cmrnorm" else ((0, 0), (2, 2), (2, 2)))
        windows = np.lib.stride_tricks.sliding_window_view(squares, 5, 0) if kind == "cmrnorm" else None
        if windows is None:
            windows = np.lib.stride_tricks.sliding_window_view(squares, (5, 5), (1, 2)).reshape(*x.shape, 25)
        return x * (layer.get("minDiv", 1) + layer["scale"] * windows.sum(-1)) ** -layer["pow"]

    return value("fc1000")


def joined() -> Network:
    """The same net as one network of ours."""
    layers = [
        ("conv1", Convolution(3, 8, 11, stride=4)),
        ("norm1", LocalResponseNorm(2)),
        ("pool1", MaxPool(3, 2)),
        ("relu1", nn.ReLU()),
        ("conv2", Convolution(8, 12, 5, padding=2, groups=2)),
        ("relu2", nn.ReLU()),
        ("norm2", LocalResponseNorm(2)),
        ("spatial2", SpatialNorm(5, 1e-3)),
        ("pool2", MaxPool(3, 2)),
        ("conv3", Convolution(12, 8, 3, padding=1)),
        ("relu3", nn.ReLU()),
        ("conv4", Convolution(8, 8, 3, padding=1, groups=2)),
        ("relu4", nn.ReLU()),
        ("conv5", Convolution(8, 8, 3, padding=1, groups=2)),
        ("relu5", nn.ReLU()),
        ("pool5", MaxPool(3, 2)),
        ("flatten", Flatten(1)),
        ("fc6", nn.Linear(8, 10)),
        ("relu6", nn.ReLU()),
        ("drop6", Dropout()),
        ("fc7", nn.Linear(10, 10)),
        ("relu7", nn.ReLU()),
        ("drop7", Dropout()),
        ("fc8", nn.Linear(10, 3)),
    ]
    return Network(
        "toy", layers, num_classes=3, in_channels=3, image_size=67, features="relu7", initial={}, towers=2
    ).eval()


def test_two_towers_become_one_network_with_the_same_predictions(tmp_path):
    layers = towers()
    path = tmp_path / "90.1"
    path.write_bytes(checkpoint(shuffled(layers)))
    found = convnet.read(path, "alexnet_2012")
    x = RANDOM.normal(0, 30, (3, 67, 67))
    with torch.inference_mode():
        logits = _filled(joined(), found)(torch.from_numpy(x)[None].float())[0].numpy()
    expected = as_it_ran(layers, x)
    assert np.ptp(expected) > 0.1
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    with torch.device("meta"):
        _same_steps(create_model("alexnet_2012"), found.steps, "file")
        for other in ("alexnet", "alexnet_caffe"):
            with pytest.raises(BundleError, match=r"another --model may fit"):
                _same_steps(create_model(other), found.steps, "file")
    by_keep = layers | {"hs2a": layers["hs2a"] | {"keep": 0.25}}
    path.write_bytes(checkpoint(by_keep))
    last = convnet.read(path, "alexnet_2012").arrays["fc8.weight"]
    assert np.allclose(last[:, :5] * 2, found.arrays["fc8.weight"][:, :5])
    assert np.array_equal(last[:, 5:], found.arrays["fc8.weight"][:, 5:])


def cifar(arrays: dict) -> dict:
    """The net 19pct with these weights as a checkpoint of 2012."""
    layers = {"data": {"type": "data"}, "labels": {"type": "data"}}
    before = "data"
    for name, steps in (("conv1", "mr"), ("conv2", "ra"), ("conv3", "ra"), ("fc10", "")):
        weight, bias = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
        if name == "fc10":
            layers[name] = fc([before], [1], 1) | {"weights": [np.asfortranarray(weight.T)], "biases": bias[None]}
        else:
            layers[name] = conv([before], weight.shape[0], 5, [weight.shape[1]], padding=2)
            layers[name] |= {"weights": [weight.reshape(len(weight), -1).T.copy()], "biases": bias[:, None]}
        before = name
        for step in steps:
            after = f"{before}_{step}"
            layers[after] = neuron(before) if step == "r" else pool(before, "max" if step == "m" else "avg")
            before = after
    layers["probs"] = {"type": "softmax", "inputs": [before]}
    layers["logprob"] = {"type": "cost.logreg", "inputs": ["labels", "probs"]}
    return layers


def meta(path, mean: np.ndarray, names=("ape", "bee", "cow", "dog")):
    content = {"num_vis": mean.size, "label_names": list(names), "data_mean": mean.transpose(2, 0, 1).reshape(-1, 1)}
    path.write_bytes(py2(content))
    return path


def of_2011(layers: dict) -> list:
    """The form of 2011: a list, inputs by number."""
    names = list(layers)
    return [
        layer | {"name": name, "inputs": [names.index(one) for one in layer.get("inputs", [])]}
        for name, layer in layers.items()
    ]


@pytest.mark.parametrize("form", ["plain", "gzip", "zip", "2011", "folder"])
def test_a_bundle_predicts_like_its_checkpoint(form, tmp_path):
    arrays = small_net()
    layers = cifar(arrays)
    data = checkpoint(of_2011(layers) if form == "2011" else shuffled(layers))
    path = tmp_path / "ConvNet"
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data", data)
    elif form == "folder":
        path.mkdir()
        (path / "9.1").write_bytes(b"an older one")
        (path / "10.1").write_bytes(data)
    else:
        path.write_bytes(gzip.compress(data) if form == "gzip" else data)
    mean = np.random.default_rng(5).uniform(60, 160, (40, 40, 3)).astype(np.float32)
    extras = ImportOptions(model="cifar_19pct", batches_meta=meta(tmp_path / "batches.meta", mean))
    bundle = import_weights("cuda-convnet", str(path), extras)
    assert (bundle.classes, bundle.stored_size, bundle.fit) == (("ape", "bee", "cow", "dog"), 40, "crop")
    shown = image(40)
    x = (shown.astype(np.float64) - mean)[4:36, 4:36].transpose(2, 0, 1)
    expected = softmax(cifar_19pct(arrays, x))
    loaded = Classifier.load(bundle.save(tmp_path / "bundle"))
    assert np.abs(loaded.probabilities(shown)[0] - expected).max() < 1e-5
    nine = loaded.probabilities(shown, crops=9)[0]
    center = mean[4:36, 4:36].astype(np.float64)
    crops = [
        softmax(cifar_19pct(arrays, (shown[a : a + 32, b : b + 32] - center).transpose(2, 0, 1)))
        for a in (0, 4, 8)
        for b in (0, 4, 8)
    ]
    assert np.abs(nine - np.mean(crops, 0)).max() < 1e-5


def test_local_filters_come_position_by_position(tmp_path):
    """weight[f, c, ky, kx, y, x] is row (m·C + c)·K² + ky·K + kx of column f, m = y·side + x."""
    side, channels, kernel, filters = 2, 3, 2, 4
    rows = side * side * channels * kernel * kernel
    matrix = (100.0 * np.arange(rows)[:, None] + np.arange(filters)).astype(np.float32)
    layer = conv(["data"], filters, kernel, [channels]) | {
        "type": "local",
        "weights": [matrix],
        "biases": np.arange(filters * side**2, dtype="f4")[:, None],
    }
    from alexnet.weights.convnet import Checkpoint
    from alexnet.weights.restricted_pickle import read

    found = Checkpoint(read(io.BytesIO(checkpoint({"data": {"type": "data"}, "l": layer}))), "file")
    weight = convnet._weight(found, "l", 0)
    for f, c, ky, kx, y, x in np.ndindex(weight.shape):
        row = ((y * side + x) * channels + c) * kernel**2 + ky * kernel + kx
        assert weight[f, c, ky, kx, y, x] == matrix[row, f]
    assert convnet._bias(found, "l", weight)[3, 1, 0] == 3 * 4 + 2  # index f·M² + y·M + x


def refusal(tmp_path, data: bytes, model: str = "cifar_19pct", mean: str = "1,2,3") -> str:
    (tmp_path / "1.1").write_bytes(data)
    with pytest.raises(BundleError) as caught:
        import_weights("cuda-convnet", str(tmp_path / "1.1"), ImportOptions(model=model, mean=mean))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def second(**changes):
    """The second layer as it is in the net, but for ``changes``."""
    return "conv2", conv(["conv1_m_r"], 32, 5, [32], padding=2) | changes


CHANGES = {
    "another size": (("conv2", conv(["conv1_m_r"], 32, 5, [16], padding=2)), "layer conv2.weight is [32, 16, 5, 5]; "),
    "another padding": (second(padding=[-1]), "layer conv2 has padding 1; must be 2, as conv2 in cifar_19pct"),
    "another neuron": (("conv2_r", neuron("conv2", "tanh")), "after conv2 comes conv2_r, a tanh; must be relu2, a r"),
    "another pool": (("conv2_r_a", pool("conv2_r")), "comes conv2_r_a, a max pool; must be pool2, an average pool"),
    "a circle": (("conv1", conv(["conv3_r_a"], 32, 5, [3])), "layers read each other in a circle"),
    "a layer that reads itself": (("conv1_m", pool("conv1_m")), "layer conv1_m, pool, reads itself"),
    "concat": (("conv2_r", {"type": "concat", "inputs": ["conv2", "conv1"]}), "layer conv2_r, concat, reads 2 layers"),
    "a missing input": (second(inputs=["nobody"]), "layer conv2 reads 'nobody'"),
    "no weights": (second(weights=[]), "layer conv2 has no weights"),
    "weights that are text": (second(weights=["x"]), "layer conv2 has no weights"),
    "no filters": (second(filterSize=[7]), "is [800, 32] with filters of 7×7; must be whole filters"),
    "random channels": (second(randSparse=[True]), "reads random channels"),
    "one more layer": (("fc11", fc(["fc10"], [4], 4)), "has 5 learned layers (conv1, conv2, conv3, fc10, fc11); must"),
    "a logistic end": (("end", neuron("fc10", "logistic")), "the last layer fc10 goes into end, a neuron; must be"),
    "a number that is none": (second(groups=float("nan")), "layer conv2 has no number groups"),
    "a word for a terminal": (("end", {"type": "\x1b[2J", "inputs": ["fc10"]}), "goes into end, a \\x1b[2J; must be"),
    "no type": (("conv2", {"inputs": []}), "layer conv2 has no type"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_does_not_fit_is_named(what, tmp_path):
    (name, layer), text = CHANGES[what]
    assert text in refusal(tmp_path, checkpoint(cifar(small_net()) | {name: layer}))


def test_what_is_no_checkpoint_is_refused(tmp_path):
    assert "has no model_state with layers" in refusal(tmp_path, py2({"layers": {}}))
    assert "has no model_state with layers" in refusal(tmp_path, py2([1]))
    assert "has no layer that learns" in refusal(tmp_path, checkpoint({"data": {"type": "data"}}))
    assert "501 layers" in refusal(tmp_path, checkpoint({f"d{i}": {"type": "data"} for i in range(501)}))
    assert "is damaged" in refusal(tmp_path, gzip.compress(checkpoint({}))[:-20])
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("b", b"2")
    assert "a zip file of 2 members" in refusal(tmp_path, (tmp_path / "two.zip").read_bytes())
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"holds no checkpoint; must be files named EPOCH\.BATCH"):
        convnet.read(tmp_path / "empty", "cifar_19pct")
    with pytest.raises(BundleError, match="holds no mean image; pass --batches-meta"):
        import_weights("cuda-convnet", str(_written(tmp_path)), ImportOptions(model="cifar_19pct"))


def _written(tmp_path):
    path = tmp_path / "1.1"
    path.write_bytes(checkpoint(cifar(small_net())))
    return path


def test_a_checkpoint_that_would_run_code_does_not(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    evil = Raw(pickle.dumps(Attack(), 2)[2:-1])
    text = refusal(tmp_path, checkpoint(cifar(small_net()), train_outputs=[evil]))
    assert "is refused: it holds a call of posix.system, which would run code; it was not run" in text
    assert not (tmp_path / "pwned").exists()


def test_a_bomb_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 100_000)
    bomb = gzip.compress(b"\x00" * 10_000_000)
    assert len(bomb) < 100_000
    assert "holds more than 100,000 bytes unpacked" in refusal(tmp_path, bomb)
    assert "bytes; must be at most 100,000" in refusal(tmp_path, b"\x00" * 200_000)


def test_metas(tmp_path):
    mean = np.arange(8 * 8 * 3, dtype=np.float32).reshape(8, 8, 3)
    found, names = convnet.read_meta(meta(tmp_path / "m", mean))
    assert np.array_equal(found, mean)
    assert names == ("ape", "bee", "cow", "dog")
    for content, text in (
        ({"label_names": ["a"], "data_mean": np.zeros((7, 1))}, "has no data_mean"),
        ({"label_names": ["a"]}, "has no data_mean"),
        ({"label_names": "abc", "data_mean": np.zeros((12, 1))}, "has no label_names"),
        ([], "has no data_mean"),
    ):
        (tmp_path / "m").write_bytes(py2(content))
        with pytest.raises(BundleError, match=text):
            convnet.read_meta(tmp_path / "m")


SMALL = checkpoint(
    {name: layer for name, layer in towers().items() if name in ("data", "conv1a", "cnorm1a", "pool1a", "conv2a")}
)


@given(data=st.data())
def test_damaged_bytes_end_in_our_errors_alone(data, tmp_path_factory):
    damaged = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(bytes(damaged[: data.draw(st.just(len(damaged)) | st.integers(1, len(damaged)))]))
    try:
        convnet.read(path, "cifar_19pct")
    except AlexNetError as error:
        assert "\n" not in str(error)
