"""Ensembles against plain loops over their images, and fitted weights against a brute-force grid."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alexnet.errors import DataError
from alexnet.evaluation import ensemble
from alexnet.evaluation.ensemble import Member, fit_weights
from alexnet.evaluation.evaluate import evaluate
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model


def member(store, name, seed, side, split="test", divide=1.0, mean="image"):
    """A network that answers each image otherwise; its own view, mean and scale."""
    network = create_model(name, image_size=side, generator=torch.Generator().manual_seed(seed)).eval()
    chosen = torch.from_numpy(store.mean_image) if mean == "image" else torch.tensor(store.channel_means)
    normalization = Normalization(chosen.float(), torch.ones(3), torch.eye(3), torch.tensor(divide))
    return Member(f"{name}-{seed}", network, store.split(split), normalization, side, network.in_channels)


@pytest.fixture
def members(digits):
    return [
        member(digits, "figure1_relu", 0, 28, divide=64.0),
        member(digits, "lenet5", 1, 32, divide=80.0, mean="channel"),
        member(digits, "figure1_tanh", 2, 24, divide=30.0),
    ]


def slow(members, weights, labels):
    """Float64 probabilities [N, K], an image and a member at a time."""
    out = np.zeros((len(labels), 10))
    for each, weight in zip(members, weights, strict=True):
        for i in range(len(labels)):
            image = each.split.gather(np.array([i]))[0].astype(np.float64)
            mean = each.normalization.mean.double().numpy()
            start = (image.shape[0] - each.image_size) // 2
            cut = slice(start, start + each.image_size)
            x = (image - mean)[cut, cut] / float(each.normalization.divide)
            if each.channels == 1:
                x = (x * [0.299, 0.587, 0.114]).sum(2, keepdims=True)
            with torch.no_grad():
                logits = each.network.double()(torch.from_numpy(x).permute(2, 0, 1)[None])[0].numpy()
            each.network.float()
            out[i] += weight * np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    return out


@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
def test_an_ensemble_is_the_weighted_mean_of_probabilities(digits, members, weights):
    labels = digits.split("test").labels
    scores = ensemble.evaluate(members, weights, num_classes=10, batch_size=7)
    expected = slow(members, weights or [1 / 3] * 3, labels)
    assert scores.count == len(labels) == 50
    assert scores.correct1 == (expected.argmax(1) == labels).sum()
    assert scores.loss == pytest.approx(-np.log(expected[np.arange(50), labels]).mean(), rel=1e-4)  # float32 networks
    assert int(scores.confusion.sum()) == 50
    assert [m.weight for m in scores.members] == pytest.approx(weights or [1 / 3] * 3)


def test_members_alone_score_as_they_do_alone(members):
    found = ensemble.evaluate(members, num_classes=10, crops=1)
    for each, (name, _, scores) in zip(members, found.members, strict=True):
        alone = evaluate(
            each.network,
            each.split,
            each.normalization,
            num_classes=10,
            image_size=each.image_size,
            channels=each.channels,
        )
        assert (name, scores.correct1, scores.correct5) == (each.name, alone.correct1, alone.correct5)
        assert scores.loss == pytest.approx(alone.loss, rel=1e-6)
    assert found.to_dict()["members"][1]["run"] == "lenet5-1"
    assert found.to_dict()["weights_fitted_on"] is None


def test_ten_crops_are_averaged_within_each_member(digits, members):
    two = [members[0], members[2]]
    found = ensemble.evaluate(two, num_classes=10, crops=10, batch_size=60)
    losses = [
        evaluate(
            m.network, m.split, m.normalization, num_classes=10, image_size=m.image_size, channels=3, crops=10
        ).loss
        for m in two
    ]
    assert [m.scores.loss for m in found.members] == pytest.approx(losses, rel=1e-5)
    assert found.loss <= max(losses)


def test_an_impossible_answer_of_one_member_is_not_the_end():
    logs = torch.tensor([[[0.0, -np.inf]], [[-np.inf, 0.0]]])  # [2, 1, 2]
    assert ensemble.combine(logs, torch.tensor([0.25, 0.75])).exp().tolist() == [[0.25, 0.75]]
    assert ensemble.combine(logs, torch.tensor([0.0, 1.0])).exp().tolist() == [[0.0, 1.0]]


def test_other_images_are_refused(digits, members):
    other = member(digits, "figure1_relu", 0, 28, split="validation")
    with pytest.raises(DataError) as caught:
        ensemble.same_images([members[0], other], "give DATA")
    assert str(caught.value) == (
        "the test images of figure1_relu-0 and figure1_relu-0 are not the same: 50 and 40, 0 in both; "
        "must be the same for all members of an ensemble; give DATA"
    )
    ensemble.same_images(members, "")


def test_one_set_of_images_stored_in_two_sizes_is_the_same(digits, tmp_path):
    import dataclasses

    from alexnet.data.prepare import prepare
    from alexnet.data.sources import open_source

    source = open_source("digits")
    few = dataclasses.replace(source, splits={"all": source.splits["all"][:250]}, fingerprint="first 250")
    small = prepare(few, tmp_path / "store", size=16, validation=0.2, test=0.2)
    pair = [member(digits, "figure1_relu", 0, 28), member(small, "figure1_relu", 1, 16)]
    ensemble.same_images(pair, "")
    assert ensemble.evaluate(pair, num_classes=10).count == 50


# --- weights --------------------------------------------------------------------------------------------------------


def loss(weights, logs):
    return -np.log(np.asarray(weights) @ np.exp(logs)).mean()


def grid_minimum(logs, step):
    members = len(logs)
    parts = round(1 / step)
    rows = [c for c in itertools.product(range(parts + 1), repeat=members - 1) if sum(c) <= parts]
    weights = np.array([[*row, parts - sum(row)] for row in rows]) / parts
    return -np.log(np.maximum(weights @ np.exp(logs), 1e-300)).mean(1).min()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("members", [2, 3])
def test_fitted_weights_are_no_worse_than_any_on_a_grid(seed, members):
    draw = np.random.default_rng(seed)
    logs = np.log(draw.dirichlet(np.full(10, 0.3), (members, 40))[:, :, 0] + 1e-6)  # [M, 40]
    logs[0] += seed % 3  # sometimes one member is better than all others
    found = fit_weights(logs)
    assert found.shape == (members,) and (found >= 0).all() and found.sum() == pytest.approx(1, abs=1e-12)
    best = grid_minimum(logs, 0.005 if members == 2 else 0.01)
    assert loss(found, logs) <= best + 1e-7


def test_weights_by_hand():
    """Two members, one right on 3 of 4 images, the other on the fourth: w³(1−w) is greatest at 3/4."""
    sure, never = 0.0, -np.inf
    logs = np.array([[sure, sure, sure, never], [never, never, never, sure]])
    assert fit_weights(logs) == pytest.approx([0.75, 0.25], abs=1e-4)


def test_a_member_that_is_worse_everywhere_gets_nothing():
    good = np.log(np.array([0.9, 0.8, 0.7]))
    assert fit_weights(np.stack([good - 1, good, good - 0.1])) == pytest.approx([0, 1, 0], abs=1e-6)


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_nothing_is_left_to_gain(seed, members):
    """Cover's bound: at the optimum no member's mean of p / Σ w·p exceeds one."""
    logs = np.log(np.random.default_rng(seed).dirichlet(np.ones(5), (members, 30))[:, :, 0])
    p = np.exp(logs)
    assert (p / (fit_weights(logs) @ p)).mean(1).max() <= 1 + 1e-5


def test_what_weights_are_fitted_to_is_the_true_class(digits, members):
    labels = digits.split("test").labels
    logs = ensemble.true_class_log_probabilities(members, batch_size=13)
    assert logs.shape == (3, 50)
    for i, each in enumerate(members):
        expected = slow([each], [1.0], labels)[np.arange(50), labels]
        assert logs[i] == pytest.approx(np.log(expected), abs=1e-3)
