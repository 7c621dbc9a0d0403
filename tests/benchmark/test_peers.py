"""A peer must compute the same network, or the ratio says nothing."""

import dataclasses

import pytest
import torch

from alexnet.benchmark import peers, steps
from alexnet.benchmark.runner import Skipped
from alexnet.models import create_model
from alexnet.models.summary import summarize


@pytest.mark.parametrize("name", ["cifar_18pct", "cifar_80sec", "alexnet_small", "alexnet_owt"])
def test_plain_modules_answer_alike(name):
    network = create_model(name, generator=torch.Generator().manual_seed(0))
    images = torch.randn(3, network.in_channels, network.image_size, network.image_size) * 60
    other = peers.plain(network)
    assert peers.max_relative_diff(other, network, images) < 1e-5
    assert all(type(module).__module__.startswith(("torch.nn", "alexnet.benchmark")) for module in other.modules())


def test_the_two_towers_and_the_last_window_are_there():
    """224 pixels: the last of 55 windows reads past the edge, so a pad stands before the first convolution."""
    network = create_model("alexnet", num_classes=5, image_size=64, generator=torch.Generator().manual_seed(0))
    images = torch.randn(2, 3, 64, 64) * 60
    other = peers.plain(network)
    assert type(other[0]) is torch.nn.ZeroPad2d and any(isinstance(layer, peers.TowerNorm) for layer in other)
    assert peers.max_relative_diff(other, network, images) < 1e-5
    with torch.no_grad():
        other[-1].weight[0] += 0.1
    assert peers.max_relative_diff(other, create_model("alexnet", num_classes=5, image_size=64), images) > 1e-3


@pytest.mark.parametrize("form", peers.FORMS, ids=lambda form: form.name)
def test_forms_compute_the_same_network_in_their_own_arithmetic(form):
    network = create_model("cifar_18pct", generator=torch.Generator().manual_seed(0)).eval()
    images = torch.randn(3, 3, 32, 32) * 60
    with torch.inference_mode():
        right = network(images)
    plain, input = form.network(peers.plain(network)), form.input(images)
    assert input.is_contiguous(memory_format=torch.channels_last) == form.channels_last
    types = {parameter.dtype for parameter in plain.parameters()}
    assert types == {torch.bfloat16 if form.arithmetic == "bf16 weights" else torch.float32}
    with torch.inference_mode():
        output = dataclasses.replace(form, compiled=False).function(plain)(input).float()
    difference = float((output - right).abs().max() / right.abs().max())
    assert difference < 1e-5 if form.precision == "fp32" else 1e-4 < difference < 0.05


def test_a_form_with_other_outputs_is_left_out(monkeypatch):
    monkeypatch.setattr(peers.Form, "input", lambda self, images: images + 1)
    with pytest.raises(Skipped, match=r"its outputs differ by .* of the largest"):
        steps.plain_inference(steps.Target("cifar_18pct"), 2, peers.FORMS[0])
    monkeypatch.setattr(peers.Form, "input", lambda self, images: images * float("nan"))
    with pytest.raises(Skipped, match="its outputs differ by nan"):
        steps.plain_step("cifar_18pct", peers.FORMS[0])


@pytest.mark.parametrize("form", [form for form in peers.FORMS if form.precision == "bf16"])
def test_bfloat16_is_left_out_where_the_processor_has_none(monkeypatch, form):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx2": True})
    with pytest.raises(Skipped, match="number by number on this processor"):
        steps.plain_inference(steps.Target("cifar_18pct"), 2, form)


@pytest.mark.slow
def test_a_compiled_form_computes_and_trains(monkeypatch):
    form = peers.Form("fp32", compiled=True)
    monkeypatch.setattr(steps.runtime, "choose_precision", lambda *_: "fp32")
    assert steps.plain_inference(steps.Target("cifar_18pct"), 2, form)().done > 0
    assert steps.plain_training("cifar_18pct", 2, form)().done > 0


def test_what_torch_has_not_is_left_out():
    with pytest.raises(Skipped, match="LocallyConnected"):
        peers.plain(create_model("cifar_13pct"))


def test_torchvisions_network_has_the_multiplications_that_are_counted():
    counted = summarize(peers.build_on_meta(peers.TORCHVISION)).parameters
    with torch.device("meta"):
        assert sum(p.numel() for p in peers.torchvision_alexnet().parameters()) == counted == 61_100_840
