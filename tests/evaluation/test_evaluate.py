"""A split through a real network, against plain loops over its images."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix
from torch import nn

from alexnet.data.store import Split, Store
from alexnet.errors import DataError
from alexnet.evaluation import evaluate as evaluation
from alexnet.evaluation.evaluate import autocast, evaluate, log_probabilities, predict_split
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model
from alexnet.models.layers import Dropout
from alexnet.models.network import Network


def statistics_of(store: Store, mean: str = "image") -> Normalization:
    chosen = torch.from_numpy(store.mean_image) if mean == "image" else torch.tensor(store.channel_means).float()
    return Normalization(chosen, torch.tensor(store.color_std).float(), torch.eye(3), torch.tensor(1.0))


@pytest.fixture
def network() -> Network:
    made = create_model("cifar_18pct", image_size=24, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():  # untrained weights would answer everything alike
        for name, parameter in made.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(10 if "conv1" not in name else 1000)
    return made


def slow_probabilities(network: nn.Module, image: np.ndarray, mean: np.ndarray, side: int, crops: int) -> np.ndarray:
    """Mean of the softmax over the crops, one view at a time; the mean is subtracted before the view is cut."""
    whole, far = image.astype(np.float32) - mean, len(image) - side
    middle = (far // 2, far // 2)
    corners = [(0, 0), (0, far), (far, 0), (far, far), middle] if crops == 10 else [middle]
    corners = [(y, x) for y in (0, far // 2, far) for x in (0, far // 2, far)] if crops == 9 else corners
    found = []
    for top, left in corners:
        cut = whole[top : top + side, left : left + side]
        for view in (cut, cut[:, ::-1]) if crops == 10 else (cut,):
            with torch.no_grad():
                logits = network(torch.from_numpy(view.copy()).permute(2, 0, 1)[None])[0].double().numpy()
            found.append(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())
    assert len(found) == crops
    return np.mean(found, axis=0)


@pytest.mark.parametrize("mean", ["image", "channel"])
@pytest.mark.parametrize("crops", [1, 9, 10])
def test_probabilities_are_averaged_over_the_crops(digits, network, crops, mean):
    images = digits.split("test").gather(np.arange(6))
    normalization = statistics_of(digits, mean)
    found = log_probabilities(network, torch.from_numpy(images), normalization, image_size=24, channels=3, crops=crops)
    assert found.shape == (6, 10)
    assert torch.allclose(found.exp().sum(1), torch.ones(6), atol=1e-5)
    for i in range(6):
        expected = slow_probabilities(network, images[i], normalization.mean.numpy(), 24, crops)
        # float32 convolutions of one image and of six add up in other orders.
        assert found[i].exp().numpy() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("crops", [1, 9, 10])
def test_the_center_of_the_mean_is_subtracted_from_every_view(digits, network, crops):
    images = digits.split("test").gather(np.arange(4))
    mean = digits.mean_image[4:28, 4:28]
    normalization = dataclasses.replace(statistics_of(digits), mean=torch.from_numpy(mean), mean_follows_crop=False)
    found = log_probabilities(
        network, torch.from_numpy(images), normalization, image_size=24, channels=3, crops=crops
    ).exp()
    if crops == 1:
        places = [(4, 4, 1)]
    elif crops == 9:
        places = [(y, x, 1) for y in (0, 4, 8) for x in (0, 4, 8)]
    else:
        places = [(y, x, step) for y, x in ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4)) for step in (1, -1)]
    parts = []
    for y, x, step in places:
        cut = images[:, y : y + 24, x : x + 24][:, :, ::step].astype(np.float32) - mean
        with torch.no_grad():
            parts.append(network(torch.from_numpy(cut).permute(0, 3, 1, 2)).softmax(1))
    assert (found - torch.stack(parts).mean(0)).abs().max() < 1e-4


def test_ten_crops_do_not_average_logits(digits, network):
    images = torch.from_numpy(digits.split("test").gather(np.arange(20)))
    normalization = statistics_of(digits, "channel")
    found = log_probabilities(network, images, normalization, image_size=24, channels=3, crops=10).exp()
    logits = []
    with torch.no_grad():
        for top, left in [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]:
            cut = images[:, top : top + 24, left : left + 24].float() - normalization.mean
            logits += [network(x.permute(0, 3, 1, 2)) for x in (cut, cut.flip(2))]
    assert (found - torch.stack(logits).mean(0).softmax(1)).abs().max() > 0.05
    assert (found - torch.stack(logits).softmax(2).mean(0)).abs().max() < 1e-4


@pytest.mark.parametrize("batch_size", [1, 7, 25, 50, 1000])
def test_every_image_counts_once_whatever_the_batch(digits, network, batch_size):
    split = digits.split("test")
    scores = evaluate(
        network, split, statistics_of(digits), num_classes=10, image_size=24, channels=3, batch_size=batch_size
    )
    p = np.stack(
        [slow_probabilities(network, image, digits.mean_image, 24, 1) for image in split.gather(np.arange(50))]
    )
    assert scores.count == len(split) == 50
    assert scores.top1 == accuracy_score(split.labels, p.argmax(1))
    expected = confusion_matrix(split.labels, p.argmax(1), labels=range(10))
    assert np.array_equal(scores.confusion.numpy(), expected)
    assert scores.loss == pytest.approx(-np.log(p[np.arange(50), split.labels]).mean(), rel=1e-3)
    assert scores.split == "test"


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_eval_model_at_rest_and_left_in_its_mode(digits, network, training):
    noisy = nn.Sequential(network, Dropout(0.5)).train(training)
    arguments = {"num_classes": 10, "image_size": 24, "channels": 3}
    found = [evaluate(noisy, digits.split("test"), statistics_of(digits), **arguments).loss for _ in range(2)]
    assert found[0] == found[1]
    assert [module.training for module in noisy.modules()] == [training] * len(list(noisy.modules()))
    with pytest.raises(DataError):
        evaluate(noisy, digits.split("test"), statistics_of(digits), crops=3, **arguments)
    assert noisy.training is training


def test_evaluation_leaves_no_gradient(digits, network):
    evaluate(network, digits.split("test"), statistics_of(digits), num_classes=10, image_size=24, channels=3)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_a_split_of_one_image_and_few_classes(digits, tmp_path):
    class One(Split):
        def __len__(self) -> int:
            return 1

        def origins(self) -> list[dict[str, Any]]:
            return digits.split("test").origins()[:1]

    split = One(digits.path, "test", digits.metadata["splits"]["test"], 32)
    network = create_model("lenet5", num_classes=3, generator=torch.Generator().manual_seed(0))
    split.labels = np.array([2])
    scores = evaluate(network, split, statistics_of(digits), num_classes=3, image_size=32, channels=1, crops=10)
    assert (scores.count, scores.correct5, scores.crops) == (1, 1, 10)


def test_what_can_not_be_is_refused(digits, network):
    images, normalization = torch.zeros(1, 16, 16, 3, dtype=torch.uint8), statistics_of(digits, "channel")
    with pytest.raises(DataError, match=r"crops is 5; must be 1, 9 or 10"):
        log_probabilities(network, images, normalization, image_size=24, channels=3, crops=5)
    with pytest.raises(DataError, match=r"10 crops of 24 pixels do not fit an image of 16 pixels; use --crops 1"):
        log_probabilities(network, images, normalization, image_size=24, channels=3, crops=10)
    about = dict(digits.metadata["splits"]["test"])
    empty = Split(digits.path, "validation", about | {"shards": []}, 32)
    empty.labels = empty.labels[:0]
    with pytest.raises(DataError, match=r"the validation split is empty; must be at least one image"):
        evaluate(network, empty, normalization, num_classes=10, image_size=24, channels=3)


def test_bf16_is_close_and_float32_outside(digits, network):
    images, normalization = torch.from_numpy(digits.split("test").gather(np.arange(10))), statistics_of(digits)
    with torch.no_grad():
        network.fc10.weight.div_(30)
    results = []
    for precision in ("fp32", "bf16"):
        with autocast(images.device, precision):
            results.append(log_probabilities(network, images, normalization, image_size=24, channels=3))
    exact, rough = results
    assert rough.dtype == torch.float32
    assert 0 < (exact.exp() - rough.exp()).abs().max() < 0.05  # bf16 keeps 8 bits


def test_progress_counts_the_images(digits, network):
    seen, split = [], digits.split("test")
    options = {"num_classes": 10, "image_size": 24, "channels": 3, "batch_size": 64}
    evaluate(network, split, statistics_of(digits), progress=lambda *counts: seen.append(counts), **options)
    assert seen == [(min(done, len(split)), len(split)) for done in range(64, len(split) + 64, 64)]


@pytest.mark.parametrize("most", [7, 1, 0])
def test_a_batch_that_does_not_fit_the_memory_is_halved(digits, network, most, monkeypatch):
    """On a GPU that other programs use too. One image that does not fit is the error that it was."""
    split, normalization = digits.split("test"), statistics_of(digits)
    sizes = {"image_size": 24, "channels": 3}
    expected = predict_split(network, split, normalization, **sizes).log_probabilities
    plain = evaluation.log_probabilities

    def limited(network, images, *args, **kwargs):
        if len(images) > most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(network, images, *args, **kwargs)

    monkeypatch.setattr(evaluation, "log_probabilities", limited)
    if not most:
        with pytest.raises(RuntimeError, match="out of memory"):
            predict_split(network, split, normalization, **sizes)
        return
    found = predict_split(network, split, normalization, **sizes).log_probabilities
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)  # the sums of a batch depend on its size
