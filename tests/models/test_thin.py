"""Products with weights in bfloat16, beside float64's and PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from alexnet.models import kernel, thin

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
def fast(compiled):
    if not thin.fits(torch.ones(1, 8), torch.ones(8, 8).bfloat16()):
        pytest.skip("no AVX-512 here, so PyTorch's product is taken")


def problem(case, bias=True):
    rows, features, outputs = case
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(rows, features, generator=generator)
    weight = torch.randn(outputs, features, generator=generator).bfloat16()
    return input, weight, torch.randn(outputs, generator=generator).bfloat16() if bias else None


def product(input, weight, bias):
    return thin.product(input, thin.packed(weight), bias, len(weight))


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
    """Among many rows nothing is left out: the slow twin."""
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
    packed = thin.packed(weight)
    assert packed.shape == (-(-outputs // 32), 33, 32) and packed.dtype == torch.bfloat16
    assert torch.equal(thin.unpacked(packed, outputs), weight)
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
    kernel.use(how != "off")
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        assert not thin.fits(input, weight)
