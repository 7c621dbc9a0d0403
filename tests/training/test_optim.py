"""The paper's rule as printed, in float64 NumPy, against the optimizer, step by step."""

import copy
import io
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from alexnet.models import create_model
from alexnet.recipe import Recipe, get_recipe
from alexnet.training import optim
from alexnet.training.optim import PaperSGD

STEPS = 60
RATES = {
    "constant": [0.01] * STEPS,
    "warm-up": [0.01 * min((t + 1) / 20, 1) for t in range(STEPS)],
    "multistep": [0.01 * 0.1 ** (t // 20) for t in range(STEPS)],
    "cosine": [0.01 * (1 + math.cos(math.pi * t / (STEPS - 1))) / 2 for t in range(STEPS)],  # ends at 0
    "up and down": [0.01 * (1, 0.1, 10, 0.3)[t % 4] for t in range(STEPS)],
    "nothing in the middle": [0.0 if 20 <= t < 30 else 0.01 for t in range(STEPS)],
}


def gradients(seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).standard_normal((STEPS, 3, 4)))


START = np.random.default_rng(99).standard_normal((3, 4))


def as_printed(rates, decay=0.0005, momentum=0.9) -> list[np.ndarray]:
    w, v, found = START.copy(), np.zeros((3, 4)), []
    for rate, g in zip(rates, gradients(), strict=True):
        v = momentum * v - decay * rate * w - rate * g
        w = w + v
        found.append(w)
    return found


def steps(made: torch.optim.Optimizer, w: torch.Tensor, rates) -> list[np.ndarray]:
    found = []
    for rate, g in zip(rates, gradients()[len(gradients()) - len(rates) :], strict=True):
        made.param_groups[0]["lr"] = rate
        w.grad = torch.from_numpy(g).to(w.dtype)
        made.step()
        found.append(w.detach().double().numpy().copy())
    return found


def weight(dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(START.copy()).to(dtype))


# float64 carries 16 digits: 60 steps leave 13. float32 carries 7: of weights near 2, 60 roundings of 1.2e-7 each.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-5)])
@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
def test_every_step_is_the_paper_s_rule(rates, dtype, tolerance):
    w = weight(dtype)
    found = steps(PaperSGD([w]), w, rates)
    for step, (a, b) in enumerate(zip(found, as_printed(rates), strict=True)):
        assert np.abs(a - b).max() < tolerance, f"step {step}"


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0005), (0.9, 0.0), (0.5, 0.1)])
def test_with_other_numbers_too(momentum, decay):
    w, rates = weight(), RATES["multistep"]
    found = steps(PaperSGD([w], momentum=momentum, weight_decay=decay), w, rates)
    assert np.abs(found[-1] - as_printed(rates, decay, momentum)[-1]).max() < 1e-13


def test_pytorch_s_sgd_agrees_only_while_the_rate_is_the_same():
    w, rates = weight(), RATES["multistep"]
    sgd = steps(torch.optim.SGD([w], lr=0.01, momentum=0.9, weight_decay=0.0005), w, rates)
    paper = as_printed(rates)
    assert max(np.abs(a - b).max() for a, b in zip(sgd[:20], paper[:20], strict=True)) < 1e-13
    apart = [np.abs(a - b).max() for a, b in zip(sgd, paper, strict=True)]
    # At the drop the paper's velocity still holds the old rate: ten times PyTorch's step at first.
    assert apart[20] > 0.01
    assert apart[30] > 0.05
    # What the two had gathered before the drop is spent after some ten steps: 0.9^20 = 0.12 of it is left.
    assert abs(apart[39] - apart[38]) < 0.2 * apart[20]


@pytest.mark.parametrize("at", [1, 20, 25, 59])  # 20: the first step after a drop
def test_a_saved_state_goes_on_as_if_nothing_had_been(at):
    rates, w = RATES["multistep"], weight()
    made = PaperSGD([w])
    begun = []
    for rate, g in zip(rates[:at], gradients()[:at], strict=True):
        made.param_groups[0]["lr"] = rate
        w.grad = torch.from_numpy(g)
        made.step()
        begun.append(w.detach().numpy().copy())
    assert made.state_dict()["param_groups"][0]["lr_before"] == rates[at - 1]
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    again = nn.Parameter(w.detach().clone())
    other = PaperSGD([again], lr=123.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.param_groups[0]["lr_before"] == rates[at - 1]
    assert other.param_groups[0]["momentum"] == 0.9
    whole = weight()
    expected = steps(PaperSGD([whole]), whole, rates)
    assert all(np.array_equal(a, b) for a, b in zip(begun, expected[:at], strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(steps(other, again, rates[at:]), expected[at:], strict=True))


@pytest.mark.parametrize("kind", ["paper", "sgd", "adamw"])
def test_a_momentum_that_was_written_in_another_memory_order(kind):
    """As a network that was cut among processes writes it. PyTorch's fused kernels would mix up its numbers."""
    torch.manual_seed(0)
    recipe = Recipe(optimizer=kind, momentum=0.9, lr=0.01)
    networks = [nn.Sequential(nn.Conv2d(3, 4, 5)).to(memory_format=torch.channels_last) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    first, second = (optim.create_optimizer(network, recipe) for network in networks)
    gradients = torch.randn(4, 4, 3, 5, 5)
    for step, gradient in enumerate(gradients):
        if step == 2:
            state = copy.deepcopy(first.state_dict())
            for kept in state["state"].values():
                kept |= {name: value.contiguous() for name, value in kept.items() if isinstance(value, torch.Tensor)}
            optim.load_state(second, state)
            networks[1].load_state_dict(networks[0].state_dict())
        for network, rule in zip(networks, (first, second), strict=True):
            network[0].weight.grad = gradient.contiguous(memory_format=torch.channels_last)
            network[0].bias.grad = gradient.sum((1, 2, 3))
            rule.step()
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_first_step_has_no_velocity_and_momentum_stays_as_set():
    w = weight()
    made = PaperSGD([w])
    assert made.param_groups[0]["lr_before"] is None
    found = steps(made, w, [0.01])
    assert found[0] == pytest.approx(START - 0.01 * (gradients()[-1] + 0.0005 * START), abs=1e-15)
    steps(made, w, [0.001])
    assert made.param_groups[0]["momentum"] == 0.9


def test_groups_keep_their_own_rates():
    a, b = weight(), weight()
    made = PaperSGD([{"params": [a]}, {"params": [b], "weight_decay": 0.0}])
    slow = [RATES["multistep"], RATES["warm-up"]]
    for t, g in enumerate(gradients()):
        for group, rates in zip(made.param_groups, slow, strict=True):
            group["lr"] = rates[t]
        a.grad, b.grad = torch.from_numpy(g), torch.from_numpy(g)
        made.step()
    assert np.abs(a.detach().numpy() - as_printed(slow[0])[-1]).max() < 1e-13
    assert np.abs(b.detach().numpy() - as_printed(slow[1], decay=0.0)[-1]).max() < 1e-13


def test_a_closure_is_called_and_its_loss_returned():
    w = weight()

    def closure() -> float:
        w.grad = torch.ones_like(w)
        return 3.5

    assert PaperSGD([w]).step(closure) == 3.5
    assert not torch.equal(w, weight())


# The groups of a recipe

BARE = get_recipe("cifar_18pct").replace(bias_lr_mult=1.0, fc_weight_decay=-1.0, weight_decay=0.004)


def settings(recipe: Recipe) -> dict[str, tuple[float, float]]:
    network = create_model("cifar_18pct")
    made = optim.create_optimizer(network, recipe)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr_mult"], group["weight_decay"])
        for group in made.param_groups
        for parameter in group["params"]
    }
    assert sorted(found) == sorted(names.values())  # every parameter in one group
    assert sum(len(group["params"]) for group in made.param_groups) == len(names)
    return found


@pytest.mark.parametrize("kind", ["paper", "adamw"])
def test_parameter_groups(kind):
    found = settings(BARE.replace(optimizer=kind, bias_lr_mult=2.0, fc_weight_decay=1.0))
    for layer in ("conv1", "conv2", "conv3", "fc10"):
        assert found[f"{layer}.bias"] == (2.0, 0.0)
        assert found[f"{layer}.weight"] == (1.0, 1.0 if layer == "fc10" else 0.004)
    found = settings(BARE.replace(optimizer=kind, bias_weight_decay=True))
    assert set(found.values()) == {(1.0, 0.004)}
    found = settings(BARE.replace(optimizer=kind, fc_weight_decay=0.0))
    assert found["fc10.weight"] == (1.0, 0.0)
    assert found["conv1.weight"] == (1.0, 0.004)


def test_adamw_has_the_recipe_s_numbers():
    made = optim.create_optimizer(create_model("lenet5"), Recipe(optimizer="adamw", momentum=0.8, lr=0.002))
    assert isinstance(made, torch.optim.AdamW)
    assert {(group["betas"], group["lr"]) for group in made.param_groups} == {((0.8, 0.999), 0.002)}
    paper = optim.create_optimizer(create_model("lenet5"), BARE.replace(momentum=0.8))
    assert isinstance(paper, PaperSGD)
    assert {group["momentum"] for group in paper.param_groups} == {0.8}


def test_biases_get_the_schedule_s_rate_times_their_own():
    made = optim.create_optimizer(create_model("cifar_18pct"), BARE.replace(bias_lr_mult=2.0))
    optim.set_lr(made, 0.003)
    assert sorted({group["lr"] for group in made.param_groups}) == [0.003, 0.006]
    optim.set_lr(made, 0.001)
    assert sorted({group["lr"] for group in made.param_groups}) == [0.001, 0.002]


def test_biases_that_the_schedule_does_not_lower():
    made = optim.create_optimizer(create_model("cifar_18pct"), BARE.replace(bias_lr_mult=2.0, schedule_bias_lr=False))
    optim.set_lr(made, 0.0001, 0.001)
    assert sorted({(group["scheduled"], group["lr"]) for group in made.param_groups}) == [
        (False, 0.002),
        (True, 0.0001),
    ]


# Clipping


def with_gradients() -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(n)) for n in (2, 3, 1, 1)]
    for parameter, g in zip(parameters, ([3.0, 0.0], [0.0, 4.0, 0.0], [12.0]), strict=False):
        parameter.grad = torch.tensor(g)
    return parameters  # the last has none; the norm is 13


@pytest.mark.parametrize("longest", [0.0, 20.0, 13.0])
def test_short_gradients_are_left_alone(longest):
    parameters = with_gradients()
    before = [copy.deepcopy(p.grad) for p in parameters]
    assert float(optim.clip_grad_norm(parameters, longest)) == 13.0
    assert all(p.grad is b or torch.equal(p.grad, b) for p, b in zip(parameters, before, strict=True))
    assert parameters[3].grad is None


def test_a_long_gradient_is_shortened_as_a_whole():
    parameters = with_gradients()
    assert float(optim.clip_grad_norm(parameters, 6.5)) == 13.0
    # PyTorch divides by the norm plus 1e-6.
    found = torch.cat([p.grad for p in parameters[:3]]).tolist()
    assert found == pytest.approx([1.5, 0, 0, 2, 0, 6], rel=1e-6)


def test_a_gradient_that_is_no_number_is_told():
    parameters = with_gradients()
    parameters[0].grad[0] = math.nan
    assert math.isnan(optim.clip_grad_norm(parameters, 5.0))
    parameters[0].grad[0] = math.inf
    assert math.isinf(optim.clip_grad_norm(parameters, 5.0))


def test_learning_rates_rise_geometrically_from_the_first_layer_to_the_last():
    network = create_model("lenet5")
    names = [name for name, _ in network.named_parameters()]
    layers = list(dict.fromkeys(name.split(".")[0] for name in names))
    recipe = Recipe(first_layer_lr_mult=0.1, layer_lr_mult=f"{layers[1]}=0.5")
    groups = optim.parameter_groups(network, recipe)
    mults = {id(p): group["lr_mult"] for group in groups for p in group["params"]}
    expected = {layer: 10 ** -(1 - i / (len(layers) - 1)) for i, layer in enumerate(layers)} | {layers[1]: 0.5}
    for name, parameter in network.named_parameters():
        assert mults[id(parameter)] == pytest.approx(expected[name.split(".")[0]]), name
    assert (expected[layers[0]], expected[layers[-1]]) == (pytest.approx(0.1), 1.0)


def test_no_optimizer_imports_dynamo():
    """PyTorch's wrappers import it at the first step, load or zero_grad: seconds before the first batch."""
    code = """
import sys, torch
from alexnet.recipe import OPTIMIZERS, Recipe, lookup
for name, choice in OPTIMIZERS.items():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = lookup(OPTIMIZERS, name)([{"params": [weight], "lr": 0.1, "weight_decay": 0.0}], Recipe())
    optimizer.zero_grad()
    weight.sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert weight.max() < 1, name
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
