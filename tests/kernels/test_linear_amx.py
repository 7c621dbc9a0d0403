"""Gradients of fully connected weights on tiles, beside float64's, and tiles beside their emulation in C."""

import ctypes
import subprocess

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alexnet.kernels import backend, levels, linear_amx, native_kernels
from alexnet.models import create_model, fusion

# rows, features, outputs: fewer rows than a tile, more than a strip of features, one block
CASES = [(5, 64, 32), (40, 1056, 96), (33, 288, 160), (1, 32, 32)]


@pytest.fixture(autouse=True)
def compiled(native):
    if "linear_amx" not in native_kernels.built():
        pytest.skip("needs a C compiler")


def problem(case):
    rows, features, outputs = case
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(rows, size, generator=generator).bfloat16() for size in (outputs, features))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gradient_is_float64s_rounded(case):
    grad, input = problem(case)
    got, right = linear_amx.weight_gradient(grad, input), grad.double().T @ input.double()
    assert got.dtype == torch.bfloat16 and got.shape == right.shape
    # half of a unit of the last place of bfloat16, and float32 sums of at most 40 products of order 1
    assert ((got - right).abs() <= 2**-8 * right.abs() + 1e-5).all()


def test_the_number_of_threads_changes_no_bit():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(linear_amx.weight_gradient(*problem((40, 1056, 96))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.skipif(not backend.has_amx(), reason="the processor has no AMX")
def test_tiles_have_the_bits_of_their_emulation(tmp_path):
    source = native_kernels.__file__.replace("native_kernels.py", "linear_amx.c")
    flags = [*levels.FLAGS, "-march=native", "-mno-amx-bf16"]
    subprocess.run(["cc", source, *flags, "-o", str(tmp_path / "emulated.so"), "-lm"], check=True)
    emulated = ctypes.CDLL(str(tmp_path / "emulated.so"))
    assert native_kernels.is_fast("linear_amx") and not emulated.linear_amx_is_fast()
    for case in CASES:
        grad, input = problem(case)
        out = torch.empty(case[2], case[1], dtype=torch.bfloat16)
        shape = native_kernels.LinearShape(*case, 1)
        emulated.linear_amx_scratch_size.restype = ctypes.c_int64
        scratch = torch.empty(emulated.linear_amx_scratch_size(ctypes.byref(shape)))
        emulated.linear_amx_weight_gradient(
            ctypes.byref(shape), *map(native_kernels.pointer, (grad, input, out, scratch))
        )
        assert torch.equal(out, linear_amx.weight_gradient(grad, input))


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_and_its_gradients_are_autocasts(bias):
    """Sums are in another order than PyTorch's, so some roundings to bfloat16 differ by a unit of the last place."""
    torch.manual_seed(0)
    layer, input = nn.Linear(96, 64, bias=bias), torch.randn(7, 96, requires_grad=True)
    grad, parameters = torch.randn(7, 64).bfloat16(), list(layer.parameters())
    results = []
    for function in (linear_amx.linear, F.linear):
        with torch.autocast("cpu", torch.bfloat16):
            out = function(input, layer.weight, layer.bias)
        assert out.dtype == torch.bfloat16
        results.append((out, *torch.autograd.grad(out, [input, *parameters], grad)))
    for got, right in zip(*results, strict=True):
        assert got.dtype == right.dtype
        assert (got - right).abs().max() <= 2**-7 * right.abs().max()


def test_which_layers_train_on_tiles(monkeypatch):
    monkeypatch.setattr(native_kernels, "is_fast", lambda name: True)
    network, rows = create_model("alexnet", num_classes=10), torch.randn(2, 9216)
    weight = network.fc6.weight
    assert [id(w) for w in linear_amx.large_weights(network)] == [id(network.fc6.weight), id(network.fc7.weight)]
    assert not linear_amx.fits(rows, weight), "float32"
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_amx.fits(rows, weight) and not linear_amx.fits(rows, network.fc8.weight)
        used = []
        monkeypatch.setattr(linear_amx, "linear", lambda *args: used.append(1) or args[0])
        assert fusion.forward_fused([network.fc6], rows)[0] == 1 and used
        with torch.no_grad():
            assert not linear_amx.fits(rows, weight)
        weight.requires_grad_(False)
        assert not linear_amx.fits(rows, weight), "frozen"
