"""Fully connected layers in float32 and their gradients, beside float64's, whatever the processor."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alexnet.kernels import backend, linear, linear_f32, native_kernels
from alexnet.models import create_model, fusion

# rows, features, outputs: one of each; below and above the blocks of 16, 128 and 256; odd sizes; a classifier's
CASES = [(1, 1, 1), (5, 64, 32), (7, 300, 130), (33, 257, 1000), (130, 129, 7), (16, 512, 384), (40, 4096, 10)]


@pytest.fixture(autouse=True)
def compiled(native):
    if "linear_f32" not in native_kernels.built():
        pytest.skip("needs a C compiler")


@pytest.fixture
def fast(monkeypatch):
    """As on a processor with AVX2 and without AVX-512."""
    monkeypatch.setattr(native_kernels, "is_fast", lambda name: name != "linear_amx")


def problem(case):
    rows, features, outputs = case
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, features), (outputs, features), (outputs,), (rows, outputs)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_products_are_float64s(case):
    input, weight, bias, grad = problem(case)
    exact = [tensor.double() for tensor in (input, weight, bias, grad)]
    right = F.linear(*exact[:3]), exact[3] @ exact[1], exact[3].T @ exact[0], F.linear(*exact[:2])
    got = linear_f32.outputs(input, weight, bias), linear_f32.product(grad, weight)
    got += linear_f32.weight_gradient(grad, input), linear_f32.outputs(input, weight)
    for one, wanted, terms in zip(got, right, (case[1], case[2], case[0], case[1]), strict=True):
        assert one.dtype == torch.float32 and one.shape == wanted.shape
        # a sum of n products of order 1 is of order √n, and each addition rounds by at most 2^-24 of it
        assert (one - wanted).abs().max() <= 2**-24 * 6 * max(terms, 16)


def test_nothing_but_the_result_is_written():
    """Strips and blocks that are not whole end where the matrix ends."""
    for case in CASES:
        rows, features, outputs = case
        input, weight, bias, grad = problem(case)
        for shape, symbol, tensors in (
            ((rows, outputs), "linear_f32_forward", (input, weight, bias)),
            ((rows, features), "linear_f32_input_gradient", (grad, weight)),
            ((outputs, features), "linear_f32_weight_gradient", (grad, input)),
        ):
            size = shape[0] * shape[1]
            memory = torch.full((size + 128,), 7.5)
            out = memory[64 : 64 + size].view(shape)
            linear_f32._call(symbol, (rows, features, outputs), *tensors, out)
            assert (memory[:64] == 7.5).all() and (memory[64 + size :] == 7.5).all() and not (out == 7.5).any()


def test_nan_and_infinity_stay_in_their_row():
    input, weight, bias, grad = problem((9, 300, 40))
    input[3, 5], grad[4, 6] = torch.nan, torch.inf
    for got, rows in ((linear_f32.outputs(input, weight, bias), [3]), (linear_f32.product(grad, weight), [4])):
        assert torch.nonzero(~got.isfinite().all(1)).flatten().tolist() == rows and not got[rows].isfinite().any()


def test_the_number_of_threads_changes_no_bit():
    input, weight, bias, grad = problem((40, 1056, 450))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outs = linear_f32.outputs(input, weight, bias), linear_f32.product(grad, weight)
            results.append((*outs, linear_f32.weight_gradient(grad, input)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_and_its_gradients_are_pytorchs(bias, fast):
    torch.manual_seed(0)
    layer, input = nn.Linear(2048, 513, bias=bias), torch.randn(2048, 7).T.requires_grad_()  # not contiguous
    grad, parameters = torch.randn(513, 7).T, list(layer.parameters())
    assert linear_f32.fits(input, layer.weight)
    results = []
    for function in (linear_f32.linear, F.linear):
        out = function(input, layer.weight, layer.bias)
        results.append((out, *torch.autograd.grad(out, [input, *parameters], grad)))
    assert type(results[0][0].grad_fn).__name__ == "_LinearBackward"
    for got, right in zip(*results, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=3e-4)


def test_frozen_weights_have_no_gradient(fast):
    layer, input = nn.Linear(2048, 512).requires_grad_(False), torch.randn(5, 2048, requires_grad=True)
    linear_f32.linear(input, layer.weight, layer.bias).sum().backward()
    assert layer.weight.grad is None and input.grad is not None


def test_second_derivatives_are_refused(fast):
    layer, input = nn.Linear(2048, 512), torch.randn(5, 2048, requires_grad=True)
    out = linear_f32.linear(input, layer.weight, layer.bias)
    with pytest.raises(Exception, match="no second derivatives"):
        torch.autograd.grad(out.sum(), input, create_graph=True)


def test_which_layers_it_computes(fast, monkeypatch):
    network, rows = create_model("alexnet", num_classes=10), torch.randn(5, 9216)
    weight = network.fc6.weight
    assert linear_f32.fits(rows, weight) and linear_f32.fits(rows[:, :4096], network.fc7.weight)
    assert not linear_f32.fits(rows[:4], weight), "few rows wait for the memory"
    assert not linear_f32.fits(rows[:, :4096], network.fc8.weight), "small"
    assert not linear_f32.fits(rows.double(), weight.double()) and not linear_f32.fits(rows[0], weight)
    assert not linear_f32.fits(rows, weight.detach().t().contiguous().t()), "features first"
    with backend.disabled("linear_f32"):
        assert not linear_f32.fits(rows, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not linear_f32.fits(rows, weight)
    assert type(fusion.forward_fused([network.fc6], rows)[1].grad_fn).__name__ == "_LinearBackward"
    network.fc6.register_forward_hook(lambda *args: None)
    assert type(fusion.forward_fused([network.fc6], rows)[1].grad_fn).__name__ == "AddmmBackward0"
    monkeypatch.setattr(native_kernels, "is_fast", lambda name: False)
    assert not linear_f32.fits(rows, weight)


def test_under_a_slow_autocast_it_multiplies_rounded_numbers(fast, monkeypatch):
    monkeypatch.setattr(linear, "multiplies_bfloat16", lambda: False)
    layer, input = nn.Linear(2048, 513), torch.randn(7, 2048)
    with torch.autocast("cpu", torch.bfloat16):
        out = fusion.forward_fused([layer], input)[1]
    right = F.linear(input.bfloat16().double(), layer.weight.bfloat16().double(), layer.bias.bfloat16().double())
    assert out.dtype == torch.bfloat16 and (out - right).abs().max() <= 2**-8 * right.abs().max()


def test_many_rows_of_weights_that_are_stored_features_first(fast):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2048, 520)).eval()
    layer, input = network[0], torch.randn(9, 2048)
    right = F.linear(input.double(), layer.weight.double(), layer.bias.double())
    linear.store_features_first(network)
    few = linear.FewRowsLinear(layer)
    with torch.inference_mode():
        assert linear._is_features_first(layer.weight) and linear_f32.is_product(input, layer.weight)
        torch.testing.assert_close(few(input).double(), right, rtol=1e-5, atol=1e-5)
    assert few(input).requires_grad, "PyTorch's, which has a gradient"
