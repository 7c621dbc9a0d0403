"""The NumPy port: every number at the place where Caffe's has it, proven with numbers that tell their place."""

import numpy as np
import pytest

from alexnet.errors import BundleError
from alexnet.weights import caffe
from alexnet.weights.import_weights import Extras, import_weights

from .conftest import Py2, py2, small_net


def port(arrays: dict, named: bool = False) -> dict:
    """Arrays in Caffe's layout (conv1 blue first) -> a port: HWIO, [in, out], first fc by (y, x, channel)."""
    content, maps = {}, 0
    for name in sorted({key.partition(".")[0] for key in arrays}):
        weight, bias = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
        if weight.ndim == 4:
            maps = weight.shape[0]
            weight = np.ascontiguousarray(weight.transpose(2, 3, 1, 0))
        else:
            if maps:
                side = int((weight.shape[1] / maps) ** 0.5)
                weight = weight.reshape(-1, maps, side, side).transpose(0, 2, 3, 1).reshape(weight.shape)
            weight, maps = np.ascontiguousarray(weight.T), 0
        content[name] = {"weights": weight, "biases": bias} if named else [weight, bias]
    return content


def save(path, content) -> None:
    np.save(path, np.array(content, object), allow_pickle=True)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("python", [2, 3])
def test_marked_values_stand_where_caffe_has_them(named, python, tmp_path):
    """conv1 [f, c, y, x] holds 1000f + 100c + 10y + x; fc6 [o, (c, y, x)] holds 1000o + 100c + 10y + x."""
    f, c, y, x = np.meshgrid(*map(np.arange, (4, 3, 2, 2)), indexing="ij")
    conv = (1000 * f + 100 * c + 10 * y + x).astype(np.float32)
    o, c, y, x = np.meshgrid(*map(np.arange, (5, 4, 3, 3)), indexing="ij")
    full = (1000 * o + 100 * c + 10 * y + x).astype(np.float32)
    after = np.arange(10, dtype=np.float32).reshape(2, 5)
    arrays = {
        "conv1.weight": conv,
        "conv1.bias": np.arange(4, dtype=np.float32),
        "fc6.weight": full.reshape(5, 36),
        "fc6.bias": np.zeros(5, np.float32),
        "fc7.weight": after,
        "fc7.bias": np.zeros(2, np.float32),
    }
    content = port(arrays, named)
    assert content["fc6"]["weights" if named else 0][(1 * 3 + 2) * 4 + 3, 4] == 4000 + 300 + 10 + 2  # row (y, x, c)
    path = tmp_path / "net.npy"
    if python == 3:
        save(path, content)
    else:
        header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
        made = py2([content])[2:-1]
        state = b"(K\x01)" + Py2().type("O8", "|") + b"\x89" + made + b"tb."
        reduce = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        path.write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header.ljust(117) + b"\n" + reduce + state)
    found = caffe.read_npy_network(path).arrays
    assert set(found) == set(arrays)
    assert np.array_equal(found["conv1.weight"], conv[:, ::-1])  # blue first there, red first here
    for name in ("conv1.bias", "fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias"):
        assert np.array_equal(found[name], arrays[name]), name


def test_a_port_becomes_the_bundle_that_its_caffemodel_becomes(tmp_path):
    from .test_caffe import small_model

    arrays = small_net()
    (tmp_path / "net.caffemodel").write_bytes(small_model(arrays))
    save(tmp_path / "net.npy", port(arrays | {"conv1.weight": arrays["conv1.weight"][:, ::-1]}))
    extras = Extras(model="cifar_19pct", mean="120,110,100")
    one = import_weights("caffe", str(tmp_path / "net.caffemodel"), extras)
    two = import_weights("caffe-npy", str(tmp_path / "net.npy"), extras)
    for name, value in one.network.state_dict().items():
        assert np.array_equal(two.network.state_dict()[name], value), name
    assert [g.probabilities for g in one.reference] == [g.probabilities for g in two.reference]


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_code_does_not(tmp_path):
    save(tmp_path / "evil.npy", {"conv1": Attack(tmp_path / "pwned")})
    with pytest.raises(BundleError, match=r"evil\.npy is refused: it holds a call of (posix|nt)\.system"):
        import_weights("caffe-npy", str(tmp_path / "evil.npy"))
    assert not (tmp_path / "pwned").exists()
    np.load(tmp_path / "evil.npy", allow_pickle=True)  # NumPy runs it
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\x93NUMPY\x01\x00\xff\xff{", "is no .npy file"),
        (b"hello", "is no .npy file"),
        (np.zeros(3), "holds ndarray; must be a dictionary of layers"),
        ({}, "holds dict"),
        ({"conv1": [np.zeros((2, 2))]}, "layer conv1 has no weights and biases"),
        ({"conv1": "text"}, "layer conv1 has no weights and biases"),
        ({"conv1": [np.zeros((1, 1, 1, 3)), np.zeros(3)], "fc6": [np.zeros((7, 2)), np.zeros(2)]}, "layer fc6 reads 7"),
    ],
)
def test_what_is_no_port_is_refused(content, text, tmp_path):
    path = tmp_path / "net.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        save(path, content)
    else:
        np.save(path, content)
    with pytest.raises(BundleError, match=text.replace(".", r"\.")):
        caffe.read_npy_network(path)
    if isinstance(content, dict) and content:  # cut anywhere
        data = path.read_bytes()
        for at in range(1, len(data), 37):
            path.write_bytes(data[:at])
            with pytest.raises(BundleError):
                caffe.read_npy_network(path)
