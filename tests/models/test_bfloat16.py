"""Answers in bfloat16: near those in float32, from weights of half the bytes."""

import pytest
import torch
from torch import nn

from alexnet.models import bfloat16, create_model

CPU = torch.device("cpu")


def network(name="alexnet", **how):
    return create_model(name, num_classes=7, generator=torch.Generator().manual_seed(0), **how).eval()


def images(of, count=3):
    shape = (count, of.in_channels, of.image_size, of.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 60


NETWORKS = [
    ("alexnet", {"image_size": 95}),
    ("cifar_18pct", {}),
    ("cifar_11pct", {}),
    ("lenet5", {}),
    ("alexnet_owt", {}),
]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("name", "how"), NETWORKS)
def test_answers_are_near(name, how, whole):
    exact = network(name, **how)
    half, x = bfloat16.Halved(exact, whole), images(exact)
    with torch.inference_mode():
        right, found = exact(x), half(x)
    assert found.dtype == torch.float32 and found.shape == (3, 7)
    apart = float((found - right).abs().max() / right.abs().max())
    assert 0 < apart < 0.03, apart
    assert all(weight.dtype == torch.float32 for weight in exact.parameters()), "the original was changed"


def test_weights_have_half_the_bytes():
    def size(module):
        return sum(weight.numel() * weight.element_size() for weight in module.parameters())

    exact = network("alexnet_small")
    assert size(bfloat16.Halved(exact, True)) * 2 == size(exact)
    linear = sum(size(layer) for layer in exact.modules() if type(layer) is nn.Linear)
    assert size(bfloat16.Halved(exact, False)) == size(exact) - linear // 2 < size(exact)


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ({"amx_bf16": True, "cpu_name": "Intel Xeon"}, True),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC 9R14"}, True),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, False),
        ({}, False),
    ],
)
def test_where_it_is_faster_goes_by_what_the_processor_is(monkeypatch, cpu, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert bfloat16.faster(CPU) == expected and not bfloat16.faster(torch.device("mps"))
