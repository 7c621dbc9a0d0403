"""What is held stays: dead weights dead under every update rule, shared weights equal, all else learning."""

import pytest
import torch

from alexnet.compression import stages
from alexnet.compression.deep import PRUNE_EVERY, Pruning, TiedCentroids
from alexnet.compression.pruning import gone, gradual
from alexnet.models import create_model
from alexnet.recipe import get_recipe
from alexnet.training import optim

NAMES = ["c5.weight", "f6.weight"]


def network():
    return create_model("lenet5", generator=torch.Generator().manual_seed(0)).train()


def step(net, rule, held, done, seed, others=()):
    random = torch.Generator().manual_seed(seed)
    held.begin(net, list(others), rule, done)
    x = torch.randn(8, 1, 32, 32, generator=random)
    loss = torch.nn.functional.cross_entropy(net(x), torch.randint(0, 10, (8,), generator=random))
    loss.backward()
    held.gradients(net)
    rule.step()
    rule.zero_grad()


RULES = ["paper", "sgd", "adamw"]


@pytest.mark.parametrize("rule", RULES)
def test_pruned_weights_stay_gone_and_the_others_learn(rule):
    net, average = network(), network().eval()
    recipe = get_recipe("lenet5").replace(optimizer=rule, lr=0.01, weight_decay=0.01, momentum=0.9)
    made = optim.create_optimizer(net, recipe)
    held = Pruning(first=dict.fromkeys(NAMES, 1.0), last={"c5.weight": 0.2, "f6.weight": 0.05}, until=0.5)
    before, was_dead = {name: p.clone() for name, p in net.named_parameters()}, dict.fromkeys(NAMES, None)
    total = 6 * PRUNE_EVERY
    for number in range(total):
        step(net, made, held, number / total, number, [average])
        for name in NAMES:
            dead = net.get_parameter(name) == 0
            assert was_dead[name] is None or bool(dead[was_dead[name]].all()), "a dead weight came back"
            was_dead[name] = dead
            assert not average.get_parameter(name)[held.pruned[name]].any()
    for name, share in held.last.items():
        alive = net.get_parameter(name).count_nonzero() / net.get_parameter(name).numel()
        assert float(alive) == pytest.approx(share, abs=2 / net.get_parameter(name).numel())
        assert bool((net.get_parameter(name)[~was_dead[name]] != before[name][~was_dead[name]]).all())
    for name, p in net.named_parameters():
        assert not torch.equal(p, before[name]), name


def test_cutting_follows_the_published_schedule_and_ends_when_it_should():
    net = network()
    made = optim.create_optimizer(net, get_recipe("lenet5").replace(lr=1e-9))  # weights all but stand still
    held = Pruning(first={"f6.weight": 1.0}, last={"f6.weight": 0.1}, until=0.5)
    seen, total = {}, 8 * PRUNE_EVERY
    for number in range(total):
        step(net, made, held, number / total, number)
        weight = net.get_parameter("f6.weight")
        seen[number] = float(weight.count_nonzero()) / weight.numel()
    for number in range(0, total // 2, PRUNE_EVERY):
        assert seen[number] == pytest.approx(gradual(2 * number / total, 1.0, 0.1), abs=1e-3)
        assert seen[number + PRUNE_EVERY - 1] == seen[number]  # between two cuts nothing goes
    assert {seen[number] for number in range(total // 2, total)} == {seen[total - 1]}
    assert seen[total - 1] == pytest.approx(0.1, abs=1e-3)


def test_what_is_cut_is_what_is_smallest_then():
    net = network()
    weight = net.get_parameter("f6.weight")
    expected = gone(weight, 0.3)
    held = Pruning(first={"f6.weight": 0.3}, last={"f6.weight": 0.3})
    held.begin(net, [], optim.create_optimizer(net, get_recipe("lenet5")), 0.0)
    assert torch.equal(weight == 0, expected)


@pytest.mark.parametrize("rule", RULES)
def test_shared_weights_learn_as_one(rule):
    net = network()
    stages.share_weights(net, {"c5.weight": 4, "f6.weight": 3})
    with torch.no_grad():
        net.get_parameter("f6.weight")[:, ::2] = 0
    recipe = get_recipe("lenet5").replace(optimizer=rule, lr=0.01)
    made, held = optim.create_optimizer(net, recipe), TiedCentroids(net, NAMES)
    before = {name: net.get_parameter(name).detach().clone() for name in NAMES}
    for number in range(5):
        step(net, made, held, number / 5, number)
    held.settle(net)
    for name in NAMES:
        after, old = net.get_parameter(name).detach(), before[name]
        assert torch.equal(after == 0, old == 0)
        for value in old[old != 0].unique():
            now = after[old == value]
            assert len(now.unique()) == 1
            assert float(now[0]) != float(value)


def test_a_shared_gradient_is_the_mean_of_its_cluster_s():
    net = network()
    stages.share_weights(net, {"f6.weight": 2})
    weight = net.get_parameter("f6.weight")
    gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    weight.grad = gradient.clone()
    TiedCentroids(net, ["f6.weight"]).gradients(net)
    for value in weight.detach().unique():
        members = weight.detach() == value
        slow = gradient[members].double().mean()
        assert torch.allclose(weight.grad[members].double(), slow.expand(int(members.sum())), atol=1e-7)
