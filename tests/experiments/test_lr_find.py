"""The learning rate range test: its arithmetic on made curves, and a real one on digits."""

import json

import numpy as np
import pytest
import torch

from alexnet import cli
from alexnet.api import DataOptions
from alexnet.bundle import Bundle
from alexnet.data.store import Store
from alexnet.errors import RecipeError
from alexnet.experiments.lr_find import LRFindConfig, find_lr, lowest_loss, smooth
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model
from alexnet.plots import studies
from alexnet.recipe import get_recipe
from alexnet.training import loop
from alexnet.training.finetune import of_bundle

RATES = np.geomspace(1e-6, 10, 200)


def test_the_lowest_loss_is_found_behind_the_first_steps():
    """The loss falls around 0.001 and rises from 0.5 on; a low average at the start does not count."""
    loss = 2 - 1.5 / (1 + np.exp(-3 * np.log(RATES / 1e-3))) + np.where(RATES > 0.5, 10 * RATES, 0)
    loss[:3] = 0.1
    assert 0.4 < lowest_loss(RATES, loss) <= 0.5


@pytest.mark.parametrize("loss", [np.full(200, 2.3), np.linspace(2.3, 4.0, 200), np.linspace(2.3, 2.29, 200)])
def test_a_loss_that_does_not_fall_suggests_nothing(loss):
    with pytest.raises(RecipeError, match="the loss does not fall at learning rates from 1e-06 to 10; pass another"):
        lowest_loss(RATES, loss)


def test_the_moving_average_is_that_of_the_formula():
    losses = [3.0, 1.0, 2.0, 5.0]
    for n in range(1, 5):
        weights = [0.9 ** (n - 1 - i) for i in range(n)]
        assert smooth(losses)[n - 1] == pytest.approx(np.dot(weights, losses[:n]) / sum(weights))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 5}, "--steps is 5; must be at least 20"),
        ({"low": 0.1, "high": 0.01}, "--low is 0.1 and --high 0.01; must be 0 < low < high, at most 1000"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(RecipeError) as caught:
        LRFindConfig(**settings)
    assert str(caught.value) == message


def test_digits(digits, tmp_path, capsys):
    """LeNet-5 on 160 digits, twice: the numbers are the same, and --lr follows --lr-base-size."""
    words = ["lr-find", str(digits.path), "--recipe", "lenet5", "--steps", "60", "--device", "cpu"]
    words += ["--output", str(tmp_path / "plot.png"), "--low", "1e-5"]
    assert cli.run([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert result["rates"] == pytest.approx(np.geomspace(1e-5, 10, 60)[: len(result["rates"])])
    assert 1e-2 < result["lowest"] < 5 and result["suggestion"] == pytest.approx(result["lowest"] / 10)
    lower = find_lr(
        str(digits.path),
        get_recipe("lenet5").replace(lr_base_size=32),  # batches of 64: --lr is half of the rate
        LRFindConfig(60, 1e-5),
        tmp_path / "plot.png",
        DataOptions(),
        device="cpu",
    )
    assert lower.suggestion == pytest.approx(result["suggestion"] / 2)
    assert list(lower.losses) == result["losses"]  # the same seed, the same numbers


def test_pretrained_weights_see_images_normalized_as_they_expect(digits, tmp_path, monkeypatch):
    """The first batch is (pixels − 100) / 50 of images of the store, not normalized by the store's own mean."""

    class FirstBatchError(Exception):
        pass

    def stop(_, batch):
        raise FirstBatchError(batch)

    ones, network = torch.ones(3), create_model("lenet5", in_channels=3, generator=torch.Generator().manual_seed(0))
    normalization = Normalization(100 * ones, ones, torch.eye(3), torch.tensor(50.0))
    start = of_bundle(Bundle(network, tuple("abcdefghij"), normalization, 32, "crop"), "made", "0" * 64)
    recipe = start.recipe(get_recipe("lenet5")).replace(batch_size=8)
    monkeypatch.setattr(loop, "train_step", stop)
    with pytest.raises(FirstBatchError) as caught:
        find_lr(
            str(digits.path), recipe, LRFindConfig(), tmp_path / "a.png", DataOptions(), init_from=start, device="cpu"
        )
    (batch,) = caught.value.args
    pixels = (batch.images * 50 + 100).permute(0, 2, 3, 1)  # [8, 32, 32, 3]
    train = Store.open(digits.path).split("train")
    images = {image.tobytes() for image in train.gather(np.arange(len(train)))}
    assert (pixels - pixels.round()).abs().max() < 1e-3
    assert {image.tobytes() for image in pixels.round().byte().numpy()} <= images


def test_the_plot_shows_the_lowest_loss_of_a_step():
    """The moving average does not fall as low."""
    figure = studies.lr_find_figure("", [0.1, 0.2, 0.4, 0.8], [2.3, 2.2, 0.5, 9.0], [2.3, 2.2, 1.9, 2.6], 0.04)
    low, high = figure.axes[0].get_ylim()
    assert 0 < low < 0.5 and high < 9
