"""Curves as the whole evaluation gives them, pruned layer by pruned layer; and nothing of the network changes."""

import copy

import pytest
import torch

from alexnet import api
from alexnet.bundle import Bundle
from alexnet.compression import pruning, stages
from alexnet.compression.pruning import SHARES, gone
from alexnet.evaluation.evaluate import predict_split
from alexnet.recipe import get_recipe


@pytest.fixture(scope="module")
def bundle(digits, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "TRAINING_PLOTS", ())
        recipe = get_recipe("lenet5").replace(epochs=6, batch_size=16)
        return Bundle.load(
            api.train(digits.path, recipe, tmp_path_factory.mktemp("sensitivity") / "run", device="cpu").bundle
        )


def test_against_the_whole_evaluation(bundle, digits, monkeypatch):
    monkeypatch.setattr(pruning, "CHUNK", 7)  # several parts, the last one smaller
    split, network = digits.split("validation"), bundle.network.train()
    before = copy.deepcopy(network.state_dict())
    bits = stages.code_bits(network, 8, 5)
    found = pruning.curves(network, split, bundle.normalization, bits, device=torch.device("cpu"))
    assert network.training
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())
    assert list(found) == list(bits)

    def loss(net):
        return predict_split(net.eval(), split, bundle.normalization, image_size=32, channels=1).scores().loss

    for name, curve in found.items():
        assert (curve.count, curve.bits) == (network.get_parameter(name).numel(), bits[name])
        assert curve.base == pytest.approx(loss(copy.deepcopy(network)), abs=1e-5)
        assert list(curve.losses) == list(SHARES[: len(curve.losses)])
        for share in list(curve.losses)[::3]:
            cut = copy.deepcopy(network)
            with torch.no_grad():
                cut.get_parameter(name).masked_fill_(gone(cut.get_parameter(name), share), 0.0)
            assert curve.losses[share] == pytest.approx(loss(cut), abs=1e-4), (name, share)
    assert max(max(curve.losses.values()) for curve in found.values()) > found["c1.weight"].base + 0.1


def test_what_is_beyond_hope_is_not_measured_further(bundle, digits, monkeypatch):
    monkeypatch.setattr(pruning, "MAX_RISE", 0.05)
    bits = {"output.weight": 5}
    curve = pruning.curves(
        bundle.network, digits.split("validation"), bundle.normalization, bits, device=torch.device("cpu")
    )["output.weight"]
    losses = list(curve.losses.values())
    assert len(losses) < len(SHARES)
    assert losses[-1] > curve.base + 0.05
    assert all(loss <= curve.base + 0.05 for loss in losses[:-1])
