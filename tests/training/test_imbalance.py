"""Rare classes: balanced batches and weights in the loss, and that runs with them go on bit for bit."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alexnet import api
from alexnet.bundle import Bundle
from alexnet.data.prepare import prepare
from alexnet.data.sources import open_source
from alexnet.errors import RecipeError
from alexnet.loader.loader import Loader
from alexnet.recipe import get_recipe
from alexnet.training.run import normalization_for
from alexnet.training.state import State
from alexnet.training.task import Targets, cross_entropy

RECIPE = get_recipe("lenet5").replace(epochs=2, batch_size=16, checkpoint_every="1epoch")


@pytest.fixture(autouse=True)
def no_images(monkeypatch):
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Zeros as they are, and ever fewer of the other digits: 60 to train, 15 zeros of them, one nine."""
    source, left = open_source("digits"), {k: max(4, 30 - 3 * k) for k in range(10)}
    chosen = []
    for image in source.splits["all"]:
        if left[image.label] > 0:
            left[image.label] -= 1
            chosen.append(image)
    few = dataclasses.replace(source, splits={"all": tuple(chosen)}, fingerprint="uneven")
    return prepare(few, tmp_path_factory.mktemp("uneven") / "store", size=32, validation=0.3, test=0.2)


def labels_of(store, recipe, epoch=0):
    loader = Loader(
        store.split("train"),
        recipe,
        normalization_for(store, recipe, 32),
        image_size=32,
        channels=1,
        device=torch.device("cpu"),
    )
    return list(loader.epoch(epoch)), len(loader)


def test_balanced_batches_hold_each_class_equally_often(uneven):
    made, steps = labels_of(uneven, RECIPE.replace(sampling="balanced"))
    each = np.bincount(torch.cat([batch.labels for batch in made]).numpy(), minlength=10)
    assert each.max() - each.min() <= 1
    assert len(made) == steps  # an epoch is as long as it was
    own = uneven.split("train").labels
    for batch in made:
        assert np.array_equal(batch.labels.numpy(), own[batch.indices])
    natural, _ = labels_of(uneven, RECIPE)
    each = np.bincount(torch.cat([batch.labels for batch in natural]).numpy(), minlength=10)
    assert np.array_equal(each, np.bincount(own, minlength=10))


def test_a_image_that_comes_again_is_seen_otherwise(uneven):
    recipe = RECIPE.replace(sampling="balanced", crop="resized", min_crop_scale=0.3)
    made, _ = labels_of(uneven, recipe)
    indices = np.concatenate([batch.indices for batch in made])
    images = torch.cat([batch.images for batch in made])
    twice = next(i for i in indices if (indices == i).sum() > 1)
    first, second = np.flatnonzero(indices == twice)[:2]
    assert not torch.equal(images[first], images[second])


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_the_weighted_loss_by_hand(share):
    generator = torch.Generator().manual_seed(0)
    logits, weights = torch.randn(6, 3, generator=generator).double(), torch.tensor([0.5, 1.0, 3.0]).double()
    labels, others = torch.tensor([0, 2, 1, 1, 0, 2]), torch.tensor([1, 1, 2, 0, 0, 2])
    total = 0.0
    for row, a, b in zip(logits, labels.tolist(), others.tolist(), strict=True):
        logs = row - row.exp().sum().log()
        for label, part in ((a, share), (b, 1 - share)):
            target = torch.full((3,), 0.1 / 3).double()
            target[label] += 0.9
            total += part * float(weights[label]) * -float((target * logs).sum())
    assert float(cross_entropy(logits, Targets(labels, others, share), 0.1, weights)) == pytest.approx(total / 6)
    plain = cross_entropy(logits, Targets(labels), 0.1)
    assert torch.equal(plain, F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_the_weights_are_one_on_average(uneven):
    state = State(RECIPE.replace(class_weights="balanced"), uneven, torch.device("cpu"))
    labels = uneven.split("train").labels
    expected = [len(labels) / (10 * max(1, int((labels == k).sum()))) for k in range(10)]
    assert state.task.class_weights.tolist() == pytest.approx(expected)
    assert float(state.task.class_weights[torch.from_numpy(labels)].mean()) == pytest.approx(1)
    assert State(RECIPE, uneven, torch.device("cpu")).task.class_weights is None


@pytest.mark.parametrize("option", [{"sampling": "balanced"}, {"class_weights": "balanced"}])
def test_it_has_an_effect_and_goes_on_bit_for_bit(option, uneven, tmp_path):
    def weights(folder):
        return Bundle.load(folder / "bundle").network.state_dict()

    for name, recipe in (("plain", RECIPE), ("whole", RECIPE.replace(**option))):
        api.train(uneven.path, recipe, tmp_path / name, device="cpu")
    plain = weights(tmp_path / "plain")
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in weights(tmp_path / "whole").items())
    first = sorted((tmp_path / "whole" / "checkpoints").glob("step-*.pt"))[0]
    before = weights(tmp_path / "whole")
    api.resume(first, device="cpu")
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path / "whole").items())
    lines = [json.loads(line) for line in (tmp_path / "whole" / "journal.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["event"] == "epoch"] == [1, 2]


def test_correcting_twice_is_refused():
    with pytest.raises(RecipeError, match="both correct class frequencies"):
        RECIPE.replace(sampling="balanced", class_weights="balanced")
