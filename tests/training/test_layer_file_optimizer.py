"""The update rule of a parameter file against the rule as documented, step by step in float64; the schedules."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from layer_examples import EXAMPLES, files, network

from alexnet.cuda_convnet import Data, Files, Tree, build
from alexnet.cuda_convnet.parameters import Rates, Schedule
from alexnet.errors import ModelError
from alexnet.training.layer_files import LayerFileOptimizer, constrain_norms


def test_schedules_check_values():
    steps = Schedule("dexp", 250, 0, 4)
    assert [steps.rate(0.01, p) for p in (0, 0.3, 0.7, 1)] == pytest.approx([0.01, 0.00158740, 0.000251984, 0.00004])
    assert steps.rate(0.01, 0.25) == 0.01  # the first i with p <= (i + 1)/n
    assert steps.rate(0.01, 0.2500001) == pytest.approx(0.00158740)
    assert Schedule("exp", 250).rate(0.01, 0.5) == pytest.approx(0.000632456, rel=1e-5)
    assert Schedule("linear", 250).rate(0.01, 0.5) == pytest.approx(0.00502)
    assert Schedule("default").rate(0.01, 0.7) == 0.01
    assert (Schedule("exp", 250).rate(1, 0.5), Schedule("exp", 250).rate(0, 0.5)) == (1, 0)  # stuck, as in 2012


@pytest.mark.parametrize("kind", ["dexp", "jdexp"])
def test_the_last_step_has_the_last_rate_whatever_stands_before(kind):
    for progress in (0, 0.5, 1):  # one step, which is the last
        assert Schedule(kind, 250, 0, 1).rate(0.01, progress) == pytest.approx(0.00004)
        assert Schedule(kind, 250, 0, 4).rate(0, progress) == 0
    # The steps before the last are powers of the base rate in the 2012 code: a base of 1 stays 1 until the last.
    rates = [Schedule(kind, 250, 0, 4).rate(1, p) for p in (0, 0.5, 0.75, 0.8)]
    assert rates == pytest.approx([1, 1, 1, 0.004])


@pytest.mark.parametrize("p", np.linspace(0, 1, 41))
def test_jdexp_goes_between_its_steps(p):
    n, target, base = 5, 100.0, 0.3
    rates = [base * target ** (-i / (n - 1)) for i in range(n)]
    i = next(k for k in range(n) if p <= (k + 1) / n)
    expected = rates[i]
    if i > 0 and p > (i + 0.5) / n and 0.2 < p < 0.9:
        expected = math.sqrt(rates[i] * rates[i - 1])
    assert Schedule("jdexp", target, 0, n).rate(base, p) == pytest.approx(expected)


class Slow:
    """One matrix by the documented rule, float64."""

    def __init__(self, weight: np.ndarray, rates: Rates) -> None:
        self.w, self.rates = weight.copy(), rates
        self.inc, self.a, self.b = (np.zeros_like(weight) for _ in range(3))

    def step(self, minus_gradient: np.ndarray, progress: float) -> None:
        r = self.rates
        if r.base == 0:
            return
        e = r.schedule.rate(r.base, progress)
        if r.super_eps > 0:
            self.a = r.momentum * self.a + (1 - r.momentum) * minus_gradient
            self.b = r.momentum * self.b + (1 - r.momentum) * minus_gradient**2
            self.inc = 0.9 * self.inc + e * minus_gradient / np.sqrt(self.b - self.a + r.super_eps)
        else:
            self.inc = r.momentum * self.inc + e * minus_gradient
        if r.decay > 0:
            self.inc = self.inc - r.decay * e * self.w
        self.w = self.w + self.inc


def columns(kind: str, w: np.ndarray) -> list[tuple]:
    """Index of each column that the limits look at."""
    if kind == "local":
        return [(m, slice(None), f) for m in range(w.shape[0]) for f in range(w.shape[2])]
    return [(f,) for f in range(len(w))]


def slow_limit(w: np.ndarray, r: Rates, kind: str) -> None:
    for index in columns(kind, w):
        v = w[index]
        n = v.size
        if kind == "conv" and r.norm_max > 0:
            s = math.sqrt(((v - v.mean()) ** 2).sum()) / n
            v *= r.norm_min / s if s < r.norm_min else r.norm_max / s if s > r.norm_max else 1
        if r.ball > 0:
            length = math.sqrt((v**2).sum())
            v *= r.ball * n / length if length > r.ball * n else 1


def test_the_rule_check_values():
    net = network("shared")
    rule = LayerFileOptimizer(net)
    group = next(g for g in rule.param_groups if g["layer"] == "f2" and g["input"] == 0)
    group["rates"] = Rates(0.1, 0.9, decay=0.0005)
    weight = group["params"][0]
    with torch.no_grad():
        weight.fill_(1)
    for gradient, expected in ((1, 1.09995), (0.5, 1.23985)):
        rule.set_progress(0.0)
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        weight.grad.fill_(-gradient)  # G is that of minus the cost
        rule.step()
        assert float(weight[0, 0].detach()) == pytest.approx(expected, abs=1e-6)


def test_limits_check_values():
    w = torch.tensor([1.0, 2, 3, 6]).view(1, 1, 2, 2)
    constrain_norms(w, Rates(1, 0, norm_min=0.1, norm_max=0.5), "conv")
    assert w.ravel().tolist() == pytest.approx([0.534522, 1.069045, 1.603567, 3.207135], abs=2e-6)
    w = torch.tensor([[3.0, 4.0]])
    constrain_norms(w, Rates(1, 0, ball=1.5), "fc")
    assert w.ravel().tolist() == pytest.approx([1.8, 2.4])
    constrain_norms(w, Rates(1, 0, ball=0.1), "treefc")  # has no limit
    assert w.ravel().tolist() == pytest.approx([1.8, 2.4])
    flat = torch.full((1, 1, 2, 2), 2.0)
    constrain_norms(flat, Rates(1, 0, norm_min=0.1, norm_max=0.5), "conv")
    assert flat.ravel().tolist() == [2.0] * 4  # no spread to scale


@pytest.mark.parametrize("name", ["towers", "spatial", "local", "images", "sparse"])
def test_each_example_learns_by_the_documented_rule(name):
    parameters = files(name).parameters
    if name == "local":
        parameters = parameters.replace("wball=0.005", "wball=0.00005\nsuperEps=0.01")
        parameters = parameters.replace("wball=0\n", "wball=0.0001\n")
    net = build(
        Files(name, files(name).layers, parameters), Data(EXAMPLES[name][0]), generator=torch.Generator().manual_seed(0)
    ).to(memory_format=torch.channels_last)
    net.double()
    rule = LayerFileOptimizer(net)
    slow = {id(g["params"][0]): Slow(g["params"][0].detach().numpy(), g["rates"]) for g in rule.param_groups}
    random = np.random.default_rng(0)
    for step in range(5):
        progress = step / 5
        rule.set_progress(progress)
        for group in rule.param_groups:
            weight = group["params"][0]
            # superEps can take a root of what is below 0 (A is not squared); small gradients stay clear of that.
            gradient = random.standard_normal(weight.shape) * (0.01 if name == "local" else 1)
            weight.grad = torch.from_numpy(gradient.copy())
            reference = slow[id(weight)]
            reference.step(-gradient, progress)
            if group["input"] >= 0 and reference.rates.base:
                slow_limit(reference.w, reference.rates, group["kind"])
        rule.step()
        for group in rule.param_groups:
            found, expected = group["params"][0].detach().numpy(), slow[id(group["params"][0])].w
            assert np.allclose(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True), (group["layer"], group["input"])


def test_a_rate_of_zero_freezes_wholly():
    text = files("shared").parameters + "\n[f2]\nepsW=0\nwc=1\nwball=0.000001\n"
    net = build(Files("frozen", files("shared").layers, text), Data(8), generator=torch.Generator().manual_seed(0))
    before = net.weight_of("f2").detach().clone()
    rule = LayerFileOptimizer(net)
    for _ in range(2):
        _, cost = net.costs(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))
        cost.backward()
        rule.step()
    assert torch.equal(net.weight_of("f2"), before)  # no gradient, no decay, no limit
    assert (net.module_of("f2").bias != 0).any()
    assert net.rates["f3", 0] == 0.0  # a user of a frozen matrix moves nothing


def shared(change: str, old: str = "") -> tuple:
    text = files("shared").parameters.replace(old, change) if old else files("shared").parameters + change
    net = build(Files("shared", files("shared").layers, text), Data(8), generator=torch.Generator().manual_seed(0))
    return net, LayerFileOptimizer(net)


def test_users_of_a_shared_matrix_learn_at_their_own_rates():
    """fc: W += e_owner·G_owner + e_user·G_user, each gradient by itself from a network that does not share."""
    net, rule = shared("\n[f3]\nepsW=0.03\nschedW=linear[tgtFactor=10,noiseStdev=0]\n")
    twin_text = files("shared").layers.replace("weightSource=f2\n", "")
    twin = build(Files("twin", twin_text, files("shared").parameters), Data(8))
    with torch.no_grad():
        for name in ("f1", "f2", "f3", "f10"):
            twin.weight_of(name).copy_(net.weight_of(name))
            twin.module_of(name).bias.copy_(net.module_of(name).bias)
    x, labels = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(4)
    before = net.weight_of("f2").detach().clone()
    rule.set_progress(0.5)
    net.eval().costs(x, labels)[1].backward()
    twin.eval().costs(x, labels)[1].backward()
    rule.step()
    user = 0.03 * (1 - 0.5) + 0.5 * 0.03 / 10
    expected = before - 0.01 * twin.weight_of("f2").grad - user * twin.weight_of("f3").grad
    assert torch.allclose(net.weight_of("f2"), expected, atol=1e-7)
    assert twin.weight_of("f3").grad.abs().max() > 1e-4


CONV = """
[data]
type=data
dataIdx=0
[labels]
type=data
dataIdx=1
[c1]
type=conv
inputs=data
channels=16
filters=16
filterSize=3
padding=1
initW=0.1
partialSum=0
gpu=0
[c2]
type=conv
inputs=c1
channels=16
filters=16
filterSize=3
padding=1
initW=0.1
partialSum=0
weightSource=c1[0]
[f]
type=fc
inputs=c2
outputs=3
initW=0.1
[p]
type=softmax
inputs=f
[c]
type=cost.logreg
inputs=labels,p
gpu=0
"""


@pytest.mark.parametrize(("rate", "factor"), [(0.5, 1.0), (0.0, 0.0)])
def test_users_in_conv_learn_at_the_owners_rate_or_not_at_all(rate, factor):
    rates = "epsB=0\nmomW=0\nmomB=0\n"
    text = f"[c1]\nepsW=0.1\n{rates}[c2]\nepsW={rate}\n{rates}[f]\nepsW=0\n{rates}[c]\ncoeff=1\n"
    net = build(Files("conv", CONV, text), Data(4, 16), generator=torch.Generator().manual_seed(0))
    twin = build(Files("twin", CONV.replace("weightSource=c1[0]\n", ""), text), Data(4, 16))
    with torch.no_grad():
        for name in ("c1", "c2", "f"):
            twin.weight_of(name).copy_(net.weight_of(name))
    x, labels = torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(2)), torch.arange(3)
    before, rule = net.weight_of("c1").detach().clone(), LayerFileOptimizer(net)
    net.costs(x, labels)[1].backward()
    twin.costs(x, labels)[1].backward()
    rule.step()
    expected = before - 0.1 * (twin.weight_of("c1").grad + factor * twin.weight_of("c2").grad)
    assert torch.allclose(net.weight_of("c1"), expected, atol=1e-6)


def test_noise_makes_each_use_of_a_rate_larger_by_a_fresh_share():
    _, rule = shared("\n[f1]\nschedW=linear[tgtFactor=1,noiseStdev=1]\n")
    group = next(g for g in rule.param_groups if g["layer"] == "f1" and g["input"] == 0)
    seen = []
    for seed in range(3000):
        rule.generator.manual_seed(seed)
        rule.set_progress(0.5)
        seen.append(group["lr"])
    assert min(seen) >= 0.01
    assert np.mean(seen) == pytest.approx(0.01 * (1 + math.sqrt(2 / math.pi)), rel=0.02)  # mean of |normal|
    assert rule.max_lr() == 0.01
    rule.generator.manual_seed(0)
    rule.set_progress(0.5)
    assert group["lr"] == seen[0]


def test_a_node_of_a_tree_learns_by_its_leaves():
    text = files("shared").layers.replace("type=fc\ninputs=f3\noutputs=10", "type=treefc\ninputs=f3")
    rates = files("shared").parameters + "\n[f10]\nwc=0.5\nwball=0.00001\n"
    tree = Tree([[], [], [], [0, 1], [3, 2]], 4)
    net = build(Files("tree", text, rates), Data(8, classes=3, tree=tree), generator=torch.Generator().manual_seed(0))
    rule, weight = LayerFileOptimizer(net), net.weight_of("f10")
    w, inc = weight.detach().double().numpy().copy(), np.zeros((5, 64))
    k = np.array([1, 1, 1, 2, 3])[:, None]
    for seed in range(3):
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        _, cost = net.costs(images, torch.tensor([0, 2]))
        rule.zero_grad()
        cost.backward()
        g = -weight.grad.double().numpy()
        assert np.allclose(g[3], g[0] + g[1], atol=1e-6)
        assert np.allclose(g[4], g[:3].sum(0), atol=1e-6)
        inc = 0.9 * inc + 0.01 / k * (g - 0.5 / k * w)
        w = w + inc
        rule.step()
        assert np.allclose(weight.detach().numpy(), w, atol=1e-6)


def test_a_network_that_can_not_learn_is_refused():
    with pytest.raises(ModelError, match="all costs of shared have coeff 0"):
        shared("coeff=0", "coeff=1")


def test_what_is_written_down_and_put_back():
    net, rule = shared("")
    torch.manual_seed(0)
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    net.eval().costs(x, labels)[1].backward()
    rule.step()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    saved = {name: {k: t.clone() for k, t in value.items()} for name, value in rule.state_dict()["layers"].items()}
    other, again = shared("epsW=0.5", "epsW=0.01")  # a parameter file changed since: its numbers count
    other.load_state_dict(state)
    again.load_state_dict({"layers": saved})
    assert all(g["rates"].base == 0.5 for g in again.param_groups if g["input"] >= 0)
    increment = again.state[other.weight_of("f10")]["increment"]
    assert torch.equal(increment, rule.state[net.weight_of("f10")]["increment"])
    assert increment.data_ptr() != saved["f10[0]"]["increment"].data_ptr()
