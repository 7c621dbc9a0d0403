"""Compressed weights on disk: bit for bit; every way to damage the file is one clear line."""

import json

import numpy as np
import pytest
import torch

from alexnet.bundle import compressed_weights
from alexnet.compression import stages
from alexnet.errors import BundleError
from alexnet.models import create_model


@pytest.fixture(scope="module", params=["shared", "int8", "int4"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def network(kind):
    """LeNet-5, half of its weights 0."""
    made = create_model("lenet5", generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for weight in stages.weight_tensors(made).values():
            weight[weight.abs() < weight.abs().median()] = 0
    if kind == "shared":
        stages.share_weights(made, stages.code_bits(made, 8, 5))
    else:
        stages.round_to_integers(made, kind)
    return made


@pytest.fixture
def written(network, kind, tmp_path):
    path = tmp_path / "model.safetensors"
    compressed_weights.write(path, network.state_dict(), dict.fromkeys(stages.weight_tensors(network), kind))
    return path


def shapes(network):
    return {name: tuple(t.shape) for name, t in network.state_dict().items()}


def test_there_and_back(network, kind, written):
    found, coding = compressed_weights.read(written, shapes(network))
    assert coding == dict.fromkeys(stages.weight_tensors(network), kind)
    assert set(found) == set(network.state_dict())
    for name, tensor in network.state_dict().items():
        assert found[name].dtype == torch.float32
        assert np.array_equal(found[name].numpy().view(np.uint32), tensor.numpy().view(np.uint32)), name
    assert written.stat().st_size < 4 * sum(t.numel() for t in network.state_dict().values()) / 3


def test_a_changed_byte_or_a_lost_end_is_one_clear_line(network, written, tmp_path):
    """With no bundle around it: the file defends itself. Every byte of the header, and many of the rest."""
    data = written.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    random = np.random.default_rng(0)
    places = [*range(0, header, 23), *random.integers(header, len(data), 40).tolist()]
    path, silent = tmp_path / "bad.safetensors", 0
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << random.integers(8))]) + data[place + 1 :])
        try:
            found, _ = compressed_weights.read(path, shapes(network))
        except BundleError as error:
            assert "\n" not in str(error)
            assert str(path) in str(error)
            assert len(str(error)) < 600
        else:  # a bias, which has no SHA-256 of its own here: the bundle's covers it
            silent += 1
            changed = [n for n, t in network.state_dict().items() if not torch.equal(t, found[n])]
            assert all(name.endswith("bias") for name in changed), changed
    assert silent < 12
    for end in (0, 4, 8, 100, header, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(BundleError, match=r"is damaged"):
            compressed_weights.read(path, shapes(network))


def rewritten(path, target, change):
    """The file with another header or other arrays, as safetensors itself writes it."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, "np") as opened:
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        said = json.loads(opened.metadata()["alexnet"])
    change(said["tensors"], arrays, said)
    save_file(arrays, target, metadata={"alexnet": json.dumps(said)})
    return target


CHANGES = [
    (lambda h, a, m: m.update(version=2), "version 2; must be alexnet-compressed version 1; install a newer"),
    (lambda h, a, m: m.update(format="other"), "is of format 'other'"),
    (lambda h, a, m: m.pop("tensors"), "its header names no tensors"),
    (lambda h, a, m: h.clear(), "names no tensors"),
    (lambda h, a, m: h.update(more=h["f6.weight"]), "it also has 'more'"),
    (lambda h, a, m: a.update(more=np.zeros(3, np.float32)), "it also has 'more'"),
    (lambda h, a, m: a.pop("f6.bias"), "f6.bias"),
    (lambda h, a, m: a.update({"f6.bias": np.zeros(5, np.float32)}), r"f6.bias: float32 \[5\], not float32 \[84\]"),
    (lambda h, a, m: a.pop("f6.weight/codes"), "f6.weight"),
    (lambda h, a, m: h["f6.weight"].update(shape=[10**9, 10**9]), "f6.weight"),
    (lambda h, a, m: h["f6.weight"].update(sha256="0" * 64), "f6.weight: the decoded numbers do not match"),
    (lambda h, a, m: h["f6.weight"].pop("sha256"), "f6.weight: 'sha256'"),
    (lambda h, a, m: h.update({"f6.weight": 7}), "names no tensors"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_a_file_that_lies(network, written, tmp_path, change, words):
    with pytest.raises(BundleError, match=words) as caught:
        compressed_weights.read(rewritten(written, tmp_path / "other.safetensors", change), shapes(network))
    assert "\n" not in str(caught.value)


def test_writing_never_rounds(network, kind, tmp_path):
    other = {name: t + 0.001 * torch.randn(t.shape) for name, t in network.state_dict().items()}
    with pytest.raises(BundleError, match=f"cannot be written as {kind}"):
        compressed_weights.write(tmp_path / "x.safetensors", other, {"f6.weight": kind})
