"""Products of few rows, and with weights in bfloat16, beside float64's and PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alexnet import kernels
from alexnet.kernels import backend, linear
from alexnet.models import layers

# rows, features, outputs: rows alone, by pairs, by the dozen and what is left of them, and more than are taken at once
CASES = [
    (1, 9, 10),
    (3, 33, 70),
    (4, 600, 129),
    (5, 256, 128),
    (33, 300, 129),
    (35, 513, 40),
    (130, 40, 33),
    (2, 9216, 64),
]


@pytest.fixture(autouse=True)
def fast(native):
    if not linear.fits(torch.ones(1, 8), torch.ones(8, 8).bfloat16()):
        pytest.skip("no AVX2 here, so PyTorch's product is taken")


def problem(case, bias=True):
    rows, features, outputs = case
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(rows, features, generator=generator)
    weight = torch.randn(outputs, features, generator=generator).bfloat16()
    return input, weight, torch.randn(outputs, generator=generator).bfloat16() if bias else None


def product(input, weight, bias):
    return linear.linear_bf16(input, linear.packed(weight), bias, len(weight))


def right(input, weight, bias):
    return F.linear(input.double(), weight.double(), None if bias is None else bias.double())


def error(got, right):
    """Root mean square, as a share of the numbers' spread."""
    return ((got - right).double().pow(2).mean().sqrt() / right.double().std()).item()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_product_with_the_weights_as_they_were_rounded(case, bias):
    """Sums in float32: 256 features at a time, so rounding of 3e-8 to 4e-7, as PyTorch's own is."""
    input, weight, bias = problem(case, bias)
    exact, got = right(input, weight, bias), product(input, weight, bias)
    assert got.shape == exact.shape and got.dtype == torch.float32
    assert error(got, exact) < 5e-7
    assert error(F.linear(input, weight.float(), None if bias is None else bias.float()), exact) < 2e-6
    twin = F.linear(input.bfloat16(), weight, bias)  # whose inputs and outputs are rounded to three digits too
    assert 1e-4 < error(twin, exact) < 1e-2


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize(("features", "outputs"), [(600, 130), (9, 10), (256, 256)])
def test_what_is_zero_in_few_rows_is_left_out_and_changes_no_bit(rows, zeros, features, outputs):
    """Among many rows nothing is left out: the reference implementation."""
    input, weight, bias = problem((33, features, outputs))
    input[torch.rand(input.shape, generator=torch.Generator().manual_seed(1)) < zeros] = 0
    assert torch.equal(product(input[:rows], weight, bias), product(input, weight, bias)[:rows])


def test_weights_of_what_is_zero_are_not_read():
    input, weight, _ = problem((2, 600, 130))
    input[:, 300:500] = 0
    weight[:, 300:500] = float("nan")
    assert product(input, weight, None).isfinite().all()


def test_the_number_of_threads_changes_no_bit():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append([product(*problem(case)) for case in CASES])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("outputs", [10, 32, 70, 128])
def test_packing_loses_nothing(outputs):
    _, weight, _ = problem((1, 33, outputs))
    packed = linear.packed(weight)
    assert packed.shape == (-(-outputs // 32), 33, 32) and packed.dtype == torch.bfloat16
    assert torch.equal(linear.unpacked(packed, outputs), weight)
    assert packed[0, 5, 0] == weight[0, 5] and packed[0, 5, 1] == (weight[16, 5] if outputs > 16 else 0)


def test_rows_that_lie_apart_in_memory():
    input, weight, bias = problem((6, 40, 20))
    assert torch.equal(product(input.T.contiguous().T, weight, bias), product(input, weight, bias))


def test_infinity_and_what_is_no_number_do_not_vanish():
    input, weight, bias = problem((14, 40, 20))
    for wrong in (float("nan"), float("inf")):
        input[3, 7] = wrong
        out = product(input, weight, bias)
        assert not out[3].isfinite().any() and out[4:].isfinite().all()
        assert not product(input[3:4], weight, bias).isfinite().any()


@pytest.mark.parametrize(
    "how", ["half", "double", "float weight", "maps", "empty", "gradient", "autocast", "off", "meta"]
)
def test_what_it_can_not_compute_goes_the_other_way(how):
    input, weight = torch.ones(2, 8), torch.ones(4, 8).bfloat16()
    input = {"half": input.bfloat16(), "double": input.double(), "maps": input[:, :, None], "empty": input[:0]}.get(
        how, input
    )
    if how == "float weight":
        weight = weight.float()
    if how == "meta":
        input, weight = input.to("meta"), weight.to("meta")
    input.requires_grad_(how == "gradient")
    kernels.use("off" if how == "off" else "auto")
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        assert not linear.fits(input, weight)


# ---- weights in float32, features first

LONG = [(1, 4096, 600), (2, 4200, 512), (3, 2050, 1000), (4, 1100, 1024), (4, 9216, 513)]


def layer_of(features, outputs, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, outputs, bias))


def rows_of(rows, features, zeros=0.0):
    generator = torch.Generator().manual_seed(1)
    input = torch.randn(rows, features, generator=generator)
    input[torch.rand(input.shape, generator=generator) < zeros] = 0
    return input


@torch.inference_mode()
def predictions(network, twin, input):
    """By PyTorch, and by the kernel once the weights are laid."""
    before = twin(input)
    assert torch.equal(before, network(input))
    linear.store_features_first(network)
    return before, twin(input)


@pytest.mark.parametrize("zeros", [0.2, 0.9, 1.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", LONG, ids=str)
def test_few_rows_are_the_product_in_float32(case, bias, zeros):
    """Sums of 256 features at a time: rounding of 1e-7 to 4e-7 of the outputs' spread, as PyTorch's own."""
    rows, features, outputs = case
    network, input = layer_of(features, outputs, bias), rows_of(rows, features, zeros)
    twin = layers.inference_copy(network)
    exact = right(input, network[0].weight, network[0].bias)
    plain, got = predictions(network, twin, input)
    assert got.shape == exact.shape and got.dtype == torch.float32
    assert not torch.equal(got, plain) or zeros == 1  # so it was the kernel
    if zeros < 1:
        assert error(got, exact) < 1e-6 and error(plain, exact) < 3e-6
    else:
        assert torch.equal(got, network[0].bias.expand_as(got) if bias else torch.zeros_like(got))


def test_a_row_without_zeros_is_pytorchs():
    network, input = layer_of(4096, 600), rows_of(2, 4096)
    twin = layers.inference_copy(network)
    linear.store_features_first(network)
    with torch.inference_mode():
        assert torch.equal(twin(input[:1]), network(input[:1]))
        assert not torch.equal(twin(input), network(input))


def test_a_row_alone_has_the_bits_that_it_has_among_others_and_with_more_threads():
    network, input, before = layer_of(4096, 700), rows_of(4, 4096, 0.5), torch.get_num_threads()
    _, all_of_them = predictions(network, twin := layers.inference_copy(network), input)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                assert torch.equal(torch.cat([twin(row[None]) for row in input]), all_of_them)
    finally:
        torch.set_num_threads(before)


def test_float32_weights_of_what_is_zero_are_not_read():
    network, input = layer_of(4096, 600), rows_of(3, 4096)
    input[:, 300:500] = 0
    twin = layers.inference_copy(network)
    linear.store_features_first(network)
    with torch.inference_mode():
        network[0].weight[:, 300:500] = float("nan")
        assert twin(input).isfinite().all() and not network(input).isfinite().any()
        input[1, 7] = float("inf")
        assert twin(input).isfinite().all(1).tolist() == [True, False, True]


def test_laying_changes_no_weight_and_nobody_who_holds_one():
    network = layer_of(4096, 600)
    weight, values = network[0].weight, network[0].weight.detach().clone()
    rule = torch.optim.SGD(network.parameters(), lr=0.1)
    linear.store_features_first(network)
    assert network[0].weight is weight and weight.stride() == (1, 600) and torch.equal(weight, values)
    assert weight.requires_grad and weight.is_leaf
    input = rows_of(5, 4096)
    network(input).sum().backward()
    rule.step()  # who trains on trains these
    assert torch.allclose(weight.detach(), values - 0.1 * input.sum(0), atol=1e-5)
    copied = nn.Linear(4096, 600)
    copied.load_state_dict(network[0].state_dict())
    assert torch.equal(copied.weight, weight) and copied.weight.is_contiguous()


def test_changed_weights_are_answered_with():
    network = layer_of(4096, 600)
    twin = layers.inference_copy(network)
    linear.store_features_first(network)
    with torch.inference_mode():
        network[0].weight.mul_(2)
        network[0].bias.zero_()
        input = rows_of(1, 4096, 0.5)
        assert error(twin(input), right(input, network[0].weight, None)) < 1e-6


def test_rows_that_do_not_fit_the_weights_are_refused():
    network = layer_of(4096, 600)
    twin = layers.inference_copy(network)
    linear.store_features_first(network)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="shapes"):
        twin(torch.ones(1, 4095))
    assert not linear.fits(torch.ones(1, 9), torch.ones(4, 8).bfloat16())


@pytest.mark.parametrize("features,outputs", [(4096, 511), (1000, 1000)])
def test_small_layers_stay_as_they_are(features, outputs):
    network = layer_of(features, outputs)
    assert type(layers.inference_copy(network)[0]) is nn.Linear
    linear.store_features_first(network)
    assert network[0].weight.is_contiguous()


@pytest.mark.parametrize("how", ["many", "half", "autocast", "off", "gradient"])
def test_other_rows_go_the_other_way(how, monkeypatch):
    network, input = layer_of(4096, 600), rows_of(5 if how == "many" else 4, 4096)
    twin = layers.inference_copy(network)
    linear.store_features_first(network)
    if how == "half":
        network, twin, input = network.bfloat16(), twin, input.bfloat16()
    monkeypatch.setattr(linear, "_call", None)
    kernels.use("off" if how == "off" else "auto")
    kernels.use("off", "linear_f32")
    with torch.set_grad_enabled(how == "gradient"), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        assert torch.equal(twin(input), network(input))


@pytest.mark.parametrize("how", ["off", "double", "meta"])
def test_what_is_not_laid(how):
    network = layer_of(4096, 600)
    network = network.double() if how == "double" else network.to("meta") if how == "meta" else network
    kernels.use("off" if how == "off" else "auto")
    linear.store_features_first(network)
    assert network[0].weight.is_contiguous()


def test_a_layer_under_autocast_is_multiplied_in_float32_with_autocasts_roundings():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 32)
    input = torch.randn(5, 64, generator=generator, requires_grad=True)
    target = torch.randn(5, 32, generator=generator)
    found = []
    for call in (
        lambda: F.linear(input, layer.weight, layer.bias),
        lambda: backend.apply(F.linear, input, layer.weight, layer.bias),
    ):
        layer.zero_grad()
        input.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            out = call()
        assert out.dtype == torch.bfloat16
        (out.float() * target).sum().backward()
        found.append([out.detach().float(), input.grad, layer.weight.grad.clone(), layer.bias.grad.clone()])
    for a, b in zip(*found, strict=True):
        assert float((a - b).abs().max()) <= 2**-7 * float(b.abs().max())


def test_where_autocast_is_slow(monkeypatch):
    input = torch.zeros(1, 4)
    for cpu, slow in (
        ({"architecture": "x86_64"}, True),
        ({"architecture": "x86_64", "avx512_f": True}, False),
        ({"architecture": "aarch64"}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda cpu=cpu: cpu)
        assert not linear.is_slow_under_autocast(input)
        with torch.autocast("cpu", torch.bfloat16):
            assert linear.is_slow_under_autocast(input) == slow
            with kernels.disabled("linear"):
                assert not linear.is_slow_under_autocast(input)
