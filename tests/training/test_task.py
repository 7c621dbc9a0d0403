"""Auxiliary classifiers in the loss, and batch norm's statistics in the running average."""

import pytest
import torch
import torch.nn.functional as F

from alexnet.evaluation.evaluate import evaluate
from alexnet.loader.loader import Batch
from alexnet.models.layers import Dropout
from alexnet.recipe import get_recipe
from alexnet.training import loop
from alexnet.training.run import normalization_for
from alexnet.training.state import State

RECIPE = get_recipe("digits").replace(
    initialization="own",
    divide_std=True,
    stored_size=32,
    precision="fp32",
    label_smoothing=0.0,
    epochs=1,
    clip_grad_norm=0.0,
)


def state(store, **changes):
    return State(RECIPE.replace(**changes), store, torch.device("cpu"))


def batch(count=3, side=47):
    random = torch.Generator().manual_seed(0)
    return Batch(torch.randn(count, 3, side, side, generator=random), torch.arange(count), torch.arange(count).numpy())


def test_the_loss_counts_auxiliary_classifiers(digits):
    pytest.importorskip("torchvision")
    found = state(digits, model="googlenet", image_size=47)
    for module in found.network.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    given = batch()
    found.network.train()
    answer = found.network(given.images)
    beside = [auxiliary_head.take() for auxiliary_head in found.network.auxiliary_heads()]
    expected = F.cross_entropy(answer, given.labels) + 0.3 * sum(F.cross_entropy(x, given.labels) for x in beside)
    value, correct = loop.train_step(found, given)
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    assert correct == int((answer.argmax(1) == given.labels).sum())
    assert all(auxiliary_head.head.fc2.weight.requires_grad for auxiliary_head in found.network.auxiliary_heads())


def test_the_recipes_dropout_is_not_for_networks_with_their_own(digits):
    pytest.importorskip("torchvision")
    network = state(digits, model="googlenet", image_size=47, dropout=0.31).network
    assert sorted(module.p for module in network.modules() if isinstance(module, Dropout)) == [0.2, 0.7, 0.7]


def test_statistics_of_batch_norm_are_averaged(digits):
    """Without them the average would judge with the statistics of a network that has learned nothing: mean 0."""
    found = state(digits, model="residual_8", image_size=32, ema_decay=0.9, batch_size=32)
    norm, mean = found.network.stem[1], found.ema.module.stem[1]
    before = mean.running_mean.clone()
    norm.running_mean.fill_(5.0)
    found.position.step = 4
    found.update_ema()
    keep = min(0.9**4, 2 / 11)
    assert torch.allclose(mean.running_mean, before + (1 - keep) * (5.0 - before))
    assert int(mean.num_batches_tracked) == int(norm.num_batches_tracked)


def test_a_network_with_batch_norm_learns_and_its_average_predictions(digits, tmp_path):
    found = state(digits, model="residual_8", image_size=32, ema_decay=0.9, batch_size=32, lr=0.01)
    normalization = normalization_for(digits, found.recipe, 32)
    from alexnet.loader.loader import Loader

    loader = Loader(
        digits.split("train"), found.recipe, normalization, image_size=32, channels=3, device=torch.device("cpu")
    )
    for epoch in range(8):
        found.network.train()
        for given in loader.epoch(epoch):
            loop.train_step(found, given)
            found.position.step += 1
            found.update_ema()
    scores = [
        evaluate(network, digits.split("train"), normalization, num_classes=10, image_size=32, channels=3).top1
        for network in (found.network, found.ema.module)
    ]
    assert min(scores) > 0.6
