"""Bytes against numbers worked out by hand from the paper's sizes, and a model that behaves as it must."""

import json

import pytest
import torch

from alexnet import cli
from alexnet.models import create_model
from alexnet.training.distributed.communication import DeviceModel, bytes_per_step, predict_step
from alexnet.training.distributed.sharding import Layout

with torch.device("meta"):
    ALEXNET = create_model("alexnet", num_classes=1000)
PARAMETERS = 60_965_224
CORE = DeviceModel(45e9, 10e9 / 8, 50e-6)


def test_data_parallel_sends_all_gradients():
    assert bytes_per_step(ALEXNET, Layout(), 128, 2) == {"gradients": 4 * PARAMETERS}
    assert bytes_per_step(ALEXNET, Layout(), 128, 8) == {"gradients": pytest.approx(2 * 7 / 8 * 4 * PARAMETERS)}
    assert bytes_per_step(ALEXNET, Layout(), 128, 1) == {}


def test_towers_send_a_few_activations():
    """Half of what meets goes over, and its gradient back: 256·13·13 numbers at conv3, 9216, 4096; 1000 logits once."""
    found = bytes_per_step(ALEXNET, Layout("towers"), 128, 2)
    assert found == {"conv3": 128 * 256 * 13 * 13 * 4, "fc6": 128 * 9216 * 4, "fc7": 128 * 4096 * 4, "fc8": 128 * 4000}
    assert sum(found.values()) < 0.15 * 4 * PARAMETERS


def test_a_hybrid_sends_the_convolutions_gradients():
    convolutions = sum(p.numel() for name, p in ALEXNET.named_parameters() if name.startswith("conv"))
    found = bytes_per_step(ALEXNET, Layout("hybrid"), 512, 4)
    assert found["gradients"] == pytest.approx(2 * 3 / 4 * 4 * convolutions)
    assert found["fc6"] == pytest.approx(2 * 3 / 4 * 512 * 9216 * 4)
    grid = bytes_per_step(ALEXNET, Layout("hybrid", 2), 512, 4)  # two rows: gradients of the fully connected halves too
    assert grid["gradients"] == pytest.approx(6 * convolutions + 4 * ((PARAMETERS - convolutions - 1000) / 2 + 1000))


def test_a_prediction_has_its_limits():
    alone = predict_step(ALEXNET, Layout(), 128, 1, CORE)
    assert alone.seconds == alone.compute == pytest.approx(3 * 128 * 723_940_352 / 45e9, rel=0.05)
    free = DeviceModel(45e9, 1e30, 0)
    for layout in (Layout(), Layout("towers"), Layout("hybrid", 2)):
        assert predict_step(ALEXNET, layout, 256, 2, free).images_per_second == pytest.approx(
            2 * alone.images_per_second
        )
    slow = DeviceModel(45e12, 1e9 / 8, 0)  # a fast device on a slow link: 244 MB at 125 MB/s
    assert predict_step(ALEXNET, Layout(), 256, 2, slow).seconds == pytest.approx(4 * PARAMETERS / 125e6, rel=0.02)


def test_the_command_prints_it(capsys):
    words = ["study", "scaling", "--devices", "1", "2", "1024", "--gmacs", "10000", "--json"]
    assert cli.run(words) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["devices"], row["layout"]) for row in rows] == [(1, "data")] + [
        (devices, layout) for devices in (2, 1024) for layout in ("data", "towers", "hybrid")
    ]
    assert rows[0]["bytes"] == 0
    assert cli.run([*words[:-1], "--fixed"]) == 0
    assert "hybrid" in capsys.readouterr().out
