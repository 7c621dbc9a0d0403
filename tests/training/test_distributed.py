"""Several processes on gloo train what one trains: the same losses, weights, counts; and none waits for the dead."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet import api
from alexnet.bundle import Bundle
from alexnet.errors import RecipeError
from alexnet.recipe import Recipe, named
from alexnet.training import checkpoint
from alexnet.training.distributed import World, share
from alexnet.training.parallel import Layout

# 160 pictures: 7 steps an epoch, the last of 16. Mixup draws partners from other processes' shares; crops are shared by
# neighbors; the average, the momentum and the clipped gradient follow.
RECIPE = named("cifar_18pct").replace(
    epochs=2, batch_size=24, validation=0.2, drops=(), averaging=0.99, color_noise=0.1, mixup=0.5, erase=0.2,
    crops_shared=5, crop="random", image_size=24, clip=0.5, precision="fp32",
)  # fmt: skip
# Dropout on two layers, response norm in two towers, a frozen layer: the whole AlexNet on small views.
ALEXNET = Recipe(
    model="alexnet", image_size=67, in_channels=1, stored_size=32, epochs=1, batch_size=16, small_size=0, mirror=False,
    precision="fp32", validation=0.2, learning_rate=1e-4, freeze="conv1",
)  # fmt: skip


@pytest.fixture(scope="module")
def ranks() -> Iterator[Callable[..., dict]]:
    """Runs a job in so many processes; see ``ranks.py``."""
    words = [sys.executable, str(Path(__file__).with_name("ranks.py"))]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

        def run(processes: int, job: str = "train", expect: object = 0, **more: object) -> dict:
            server.stdin.write(json.dumps({"processes": processes, "job": job, **more}) + "\n")
            server.stdin.flush()
            found = json.loads(server.stdout.readline())
            if expect is not None:
                assert found["ended"] == [expect] * processes, found
            return found

        yield run
        server.stdin.close()


def note(folder: Path) -> dict:
    return json.loads(Path(f"{folder}.json").read_text())


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return Bundle.load(folder / "bundle").network.state_dict()


def furthest(a: Path, b: Path) -> float:
    one, other = tensors(a), tensors(b)
    assert list(one) == list(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def alone(digits, tmp_path_factory, ranks) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    ranks(1, store=str(digits.path), folder=str(folder), recipe=RECIPE.to_dict())
    return folder


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_data_parallel_has_the_losses_of_one_process(processes, alone, digits, tmp_path, ranks):
    """Shares of 12, 8 or 6 pictures, of 8, 5·2 + 6 or 4 in the last batch; the global batch stays what it is."""
    folder = tmp_path / "run"
    ranks(processes, store=str(digits.path), folder=str(folder), recipe=RECIPE.to_dict())
    one, many = note(alone)["losses"], note(folder)["losses"]
    assert len(one) == 14
    assert [right for _, right in many] == [right for _, right in one]
    assert np.allclose([loss for loss, _ in many], [loss for loss, _ in one], rtol=0, atol=1e-6)
    assert furthest(folder, alone) < 1e-5
    scores = [Bundle.load(path / "bundle").metrics for path in (folder, alone)]
    for split in ("validation", "test"):
        assert [found[split]["count"] for found in scores] == [{"validation": 40, "test": 50}[split]] * 2
        assert scores[0][split]["top1"] == scores[1][split]["top1"]
        assert scores[0][split]["loss"] == pytest.approx(scores[1][split]["loss"], abs=1e-6)
    lines = [len((path / name).read_text().splitlines()) for path in (folder, alone) for name in ("results.csv",)]
    assert lines == [3, 3]


def test_the_same_layout_twice_is_the_same_bit_for_bit(digits, tmp_path, ranks):
    for name in "ab":
        ranks(2, store=str(digits.path), folder=str(tmp_path / name), recipe=RECIPE.replace(epochs=1).to_dict())
    assert furthest(tmp_path / "a", tmp_path / "b") == 0


def test_dropout_is_that_of_the_place_in_the_batch(digits, tmp_path, ranks):
    """Masks of one process's batch, cut: so the losses agree with dropout on, in shares and in accumulated pieces."""
    for name, processes, layout in (("one", 1, ["data"]), ("two", 2, ["data"]), ("pieces", 1, ["data", 0, 3])):
        folder = str(tmp_path / name)
        ranks(processes, store=str(digits.path), folder=folder, recipe=ALEXNET.to_dict(), layout=layout)
    one, two, pieces = (np.array(note(tmp_path / name)["losses"]) for name in ("one", "two", "pieces"))
    assert np.abs(two - one).max() < 1e-6
    assert np.abs(pieces - one).max() < 1e-6
