"""Convolutions by minimal filtering beside PyTorch's, both measured against float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from alexnet import kernels
from alexnet.kernels import winograd
from alexnet.models import create_model, layers
from alexnet.models.layers import Convolution

# images, channels, height, width, kernels, side of a filter, padding, groups: sizes that tiles' outputs do not divide
CASES = [
    (5, 32, 16, 16, 32, 5, 2, 1),
    (9, 96, 13, 11, 64, 5, 2, 2),
    (17, 48, 13, 13, 48, 3, 1, 1),
    (16, 32, 21, 18, 96, 3, 0, 2),
]


@pytest.fixture(autouse=True)
def fast(native):
    if not winograd.fits(torch.ones(32, 16, 16, 16), torch.ones(16, 16, 3, 3), 1, 1, 1):
        pytest.skip("no AVX2 here, so PyTorch's convolution is taken")


def problem(case):
    n, channels, height, width, kernels, side, padding, groups = case
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(n, channels, height, width, generator=generator).relu()
    weight = torch.randn(kernels, channels // groups, side, side, generator=generator) * 0.1
    bias = torch.randn(kernels, generator=generator)
    return [t.requires_grad_() for t in (input, weight, bias)], {"padding": padding, "groups": groups}


def predictions(parts, convolve):
    """Output and the three gradients."""
    output = convolve(*parts)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, parts, grad)]


def error(got, right):
    return ((got - right).double().pow(2).mean().sqrt() / right.double().std()).item()


# By the tiles' side; PyTorch's own errors are 1e-7 to 2e-6 of the numbers' spread.
TOLERANCES = {6: 3e-6, 7: 6e-6, 8: 1e-5}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("case", "tile"), [(case, tile) for case in CASES for tile in (6, 7, 8) if tile < 8 or case[5] == 5], ids=str
)
def test_it_is_a_convolution(monkeypatch, case, tile, relu):
    """Errors against float64."""
    monkeypatch.setattr(winograd, "_tile_size", lambda *_: tile)
    parts, geometry = problem(case)
    assert winograd.fits(parts[0], parts[1], 1, **geometry)

    def plain(input, weight, bias):
        out = F.conv2d(input, weight, bias, **geometry)
        return out.relu() if relu else out

    got = predictions(parts, lambda *p: winograd.convolve(*p, **geometry, relu=relu))
    right = predictions([p.detach().double().requires_grad_() for p in parts], plain)
    assert [t.shape for t in got] == [t.shape for t in right]
    assert max(map(error, got, right)) < TOLERANCES[tile]
    assert min(map(error, got, right)) > 0, "not computed in float32 at all"


def test_tiles_are_those_with_fewer_multiplications():
    """Of alexnet's maps, ImageNet's other sizes, and CIFAR's: a larger one rounds more, so it has to save a tenth."""
    sizes = (6, 7, 8, 9, 13, 14, 16, 27, 28, 32)
    found = {(size, side): winograd._tile_size(64, size, size, side) for size in sizes for side in (3, 5)}
    assert [size for size in sizes if found[size, 3] == 7] == [9, 13, 14]
    assert [size for size in sizes if found[size, 5] == 7] == [6, 9]
    assert [size for size in sizes if found[size, 5] == 8] == [7, 8, 13, 14, 16, 27, 28, 32]
    for (size, side), tile in found.items():
        multiplications = {
            t: math.ceil(size / (t + 1 - side)) ** 2 * t * t for t in ((6, 7, 8) if side == 5 else (6, 7))
        }
        smaller = [multiplications[t] for t in multiplications if t < tile]
        assert all(multiplications[tile] < 0.9 * others for others in smaller)
        assert all(others >= 0.9 * multiplications[tile] for t, others in multiplications.items() if t > tile)
    assert winograd._tile_size(1, 13, 13, 3) == 6, "nine tiles take the time of sixteen"


def test_without_bias_and_with_frozen_parts():
    parts, geometry = problem(CASES[0])
    input, weight = parts[0], parts[1]
    output = winograd.convolve(input, weight, None, **geometry)
    assert error(output, F.conv2d(input, weight, padding=2).detach()) < TOLERANCES[7]
    whole = torch.autograd.grad(output.sum(), (input, weight))
    frozen = winograd.convolve(input, weight.detach(), None, **geometry)
    assert torch.equal(torch.autograd.grad(frozen.sum(), input)[0], whole[0])
    first = winograd.convolve(input.detach(), weight, None, **geometry)
    assert torch.equal(torch.autograd.grad(first.sum(), weight)[0], whole[1])


def test_it_repeats_bit_for_bit():
    parts, geometry = problem(CASES[1])
    first, *others = [predictions(parts, lambda *p: winograd.convolve(*p, **geometry)) for _ in range(3)]
    assert all(torch.equal(a, b) for other in others for a, b in zip(other, first, strict=True))


def test_the_number_of_threads_changes_the_output_by_no_bit():
    """Of filters' gradients it changes the order of a sum, as in PyTorch's own."""
    parts, geometry = problem(CASES[0])
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(predictions(parts, lambda *p: winograd.convolve(*p, **geometry)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0]) and torch.equal(other[1], results[0][1])
        assert max(map(error, other, results[0])) < TOLERANCES[7]


def test_infinity_and_what_is_no_number_do_not_vanish():
    parts, geometry = problem(CASES[0])
    for wrong in (float("nan"), float("inf")):
        input = parts[0].detach().clone()
        input[0, 0, 4, 4] = wrong
        output = winograd.convolve(input, parts[1], parts[2], **geometry, relu=True)
        assert not output[0].isfinite().all() and output[1:].isfinite().all()


@pytest.mark.parametrize("how", ["stride", "few", "side", "channels", "float64", "autocast", "off", "meta"])
def test_what_it_can_not_compute_goes_the_other_way(how):
    input, weight = torch.ones(32, 16, 16, 16), torch.ones(16, 16, 3, 3)
    if how == "few":
        input = input[:1]
    if how == "side":
        weight = torch.ones(16, 16, 7, 7)
    if how == "channels":
        input, weight = torch.ones(32, 12, 16, 16), torch.ones(16, 12, 3, 3)
    if how == "float64":
        input, weight = input.double(), weight.double()
    if how == "meta":
        input, weight = input.to("meta"), weight.to("meta")
    kernels.use("off" if how == "off" else "auto")
    with torch.autocast("cpu", torch.float16, enabled=how == "autocast"):
        assert not winograd.fits(input, weight, 2 if how == "stride" else 1, 1, 1)


def test_a_hundred_steps_of_training_stay_together(trained):
    """All kernels of a network at once: convolutions, pools and norms."""
    losses, weights = trained(True)
    right_losses, right_weights = trained(False)
    assert right_losses[-1] < 0.6 * right_losses[0], "nothing was learned, so nothing was compared"
    assert not torch.equal(losses, right_losses), "both went the same way"
    # Rounding of 1e-6 a step grows with the steps: here to 1e-4 of the losses, 3e-4 of the weights' spread; ten times
    # that is allowed. Twice the rate makes it ten times as much: a bit decides which way a ReLU's edge is passed.
    assert torch.allclose(losses, right_losses, rtol=1e-3)
    for name, right in right_weights.items():
        assert error(weights[name], right) < 3e-3, name


def test_a_layer_takes_it_by_itself():
    layer = Convolution(32, 32, 5, padding=2)
    input = torch.randn(8, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    fast = layer(input)
    kernels.use("off")
    slow = layer(input)
    assert not torch.equal(fast, slow) and error(fast, slow) < 3e-6


def test_by_default_it_is_used_for_inference_but_not_training():
    kernels.use("auto", "winograd")
    layer = Convolution(32, 32, 5, padding=2)
    input = torch.randn(8, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    trains = layer(input)
    with torch.inference_mode():
        predictions = layer(input)
        kernels.use("off")
        plain = layer(input)
    assert torch.equal(trains, plain), "PyTorch's convolution"
    assert not torch.equal(predictions, plain) and error(predictions, plain) < 3e-6


def layer(case):
    """A convolution that keeps its filters, its input, and what PyTorch makes of it."""
    n, channels, height, width, kernels, side, padding, groups = case
    generator = torch.Generator().manual_seed(0)
    made = layers.cache_filters(Convolution(channels, kernels, side, padding=padding, groups=groups))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return made, torch.randn(n, channels, height, width, generator=generator)


def plain(made, input):
    with torch.inference_mode(), kernels.disabled():
        return made(input)


def answer(made, input):
    with torch.inference_mode():
        return made(input)


@pytest.mark.parametrize("images", [1, 2, 5, 40])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kept_filters_answer_to_few_images_too(case, images):
    made, input = layer((images, *case[1:]))
    first = answer(made, input)
    assert 0 < error(first, plain(made, input)) < TOLERANCES[7]
    assert torch.equal(answer(made, input), first)


def test_kept_filters_are_made_once_and_anew_when_the_weights_change():
    made, input = layer((1, *CASES[2][1:]))
    answer(made, input)
    (before,) = [filters for *_, filters in made.filter_cache._filters.values()]
    answer(made, input)
    (after,) = [filters for *_, filters in made.filter_cache._filters.values()]
    assert after is before
    with torch.no_grad():
        made.weight.mul_(2)
    assert error(answer(made, input), plain(made, input)) < TOLERANCES[7]
    made.load_state_dict({name: -tensor for name, tensor in made.state_dict().items()})
    assert error(answer(made, input), plain(made, input)) < TOLERANCES[7]
    for _ in range(3):  # the last one's memory may be the next one's
        made.weight = torch.nn.Parameter(torch.randn_like(made.weight))
        assert error(answer(made, input), plain(made, input)) < TOLERANCES[7]
    made.weight.data = made.weight.detach() * 3  # as Module.to puts them
    assert error(answer(made, input), plain(made, input)) < TOLERANCES[7]


def test_tiles_that_all_threads_share_come_out_as_those_that_each_has_alone():
    made, input = layer((1, *CASES[1][1:]))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(answer(made, input))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_a_network_for_predictions_has_the_same_weights_in_memory():
    network = create_model("alexnet", num_classes=3, image_size=95)
    twin = layers.inference_copy(network)
    asked = {"fc6", "fc7"}  # by the twin where they lie: they may be laid otherwise (thin.lay)
    theirs = {name: p.data_ptr() for name, p in network.named_parameters() if name.split(".")[0] not in asked}
    assert {name: p.data_ptr() for name, p in twin.named_parameters()} == theirs
    assert all(twin.get_submodule(name)._layers == (network.get_submodule(name),) for name in asked)
    assert not twin.training and network.training and network.conv2.filter_cache is None
    assert all(layer.filter_cache for layer in twin.modules() if isinstance(layer, Convolution))
