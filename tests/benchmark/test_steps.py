"""Whose answers are timed: a trained network gets its own images, and what it has right is counted."""

import json
import shutil

import numpy as np
import pytest
import torch

from alexnet import api, cli
from alexnet.benchmark import steps, suite
from alexnet.benchmark.runner import Skipped, Timing
from alexnet.benchmark.steps import Target
from alexnet.export.export import calibration
from alexnet.recipe import get_recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("bench") / "run"
    api.train(
        digits.path,
        get_recipe("cifar_18pct").replace(epochs=2, batch_size=16, seed=3, lr_milestones=(1,)),
        folder,
        device="cpu",
    )
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy, whose journal may be written to."""
    return shutil.copytree(trained, tmp_path / "run")


def test_a_run_is_timed_with_its_weights_on_its_test_images(run, digits):
    mine, test = Target.of(run), digits.split("test")
    assert mine.model == "cifar_18pct"
    whole = api.load(run).network.state_dict()
    assert all(torch.equal(whole[name], found) for name, found in mine.network().state_dict().items())
    assert np.array_equal(mine.stored(len(test)), test.gather(np.arange(len(test))))
    assert len(mine.stored(200)) == 200, "more than there are"
    assert np.array_equal(mine.calibration(), calibration(digits))
    batches = mine.batches(8, torch.channels_last)
    assert len(batches) == 8 and {tuple(batch.shape) for batch in batches} == {(8, 3, 32, 32)}
    assert len({float(batch.sum()) for batch in batches}) == 8, "not the same images again and again"
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in batches)


def test_without_a_run_there_is_noise():
    fresh = Target("cifar_18pct")
    (only,) = fresh.batches(4, torch.contiguous_format)
    assert only.shape == (4, 3, 32, 32) and 55 < only.std() < 65
    assert fresh.calibration().shape == (steps.CALIBRATION, 32, 32, 3)
    assert steps.forward_flop(fresh.shapes()) == steps.forward_flop(fresh.network())


def test_contenders_answer_in_turn(run):
    seen = []
    unit = steps._predictions(
        lambda images: seen.append(images) or images, Target.of(run).batches(16, torch.channels_last)
    )
    unit()
    assert all(seen[i] is seen[i + 4] and seen[i] is not seen[i + 1] for i in range(4))


def test_what_is_right_is_counted(run, digits):
    """As ``alexnet evaluate`` counts it; a file of integers may lose an image or two of 50."""
    said = []
    found = {a.name: a for a in suite.accuracies(Target.of(run), said.append)}
    scores = api.evaluate(run)
    assert found["alexnet, fp32"].right == found["plain PyTorch modules, fp32"].right == round(scores.top1 * 50)
    assert all(a.count == 50 and not a.skipped for a in found.values())
    assert len(found) == len(said) == 5
    assert all(abs(a.right - found["alexnet, fp32"].right) <= 4 for a in found.values())


def test_what_can_not_answer_is_left_out(monkeypatch, run):
    def none(*_):
        raise Skipped("it is not installed")

    monkeypatch.setattr(suite.steps, "export_int8", none)
    found = suite.accuracies(Target.of(run), lambda line: None)
    assert [a.skipped for a in found] == ["", "", "it is not installed", "it is not installed", ""]


def test_from_the_command_line(monkeypatch, run, capsys):
    """Times are other tests' business (slow): here nobody is."""
    asked = []

    def time_candidates(candidates, rounds, say):
        asked.extend(candidates)
        return [Timing(candidate, (1.0, 1.0)) for candidate in candidates]

    monkeypatch.setattr(suite, "time_candidates", time_candidates)
    assert cli.run(["bench", "--run", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["run"] == str(run) and len(found["accuracies"]) == 5
    assert {group["part"] for group in found["groups"]} == {"inference"}
    assert {c.arguments["target"].run for c in asked if "target" in c.arguments} == {str(run)}
    assert cli.run(["bench", "--run", str(run)]) == 0
    printed = capsys.readouterr().out
    right = found["accuracies"][0]["right"]
    assert f"test images of {run}" in printed and f"{2 * right:.2f} %" in printed
    assert api.provenance(run).tested == 2, "a look at the test split is a look, whoever takes it"


@pytest.mark.slow
def test_a_race_of_a_trained_network(run, capfd):
    assert cli.run(["bench", "--run", str(run), "--rounds", "2", "--quick", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert all("median" in group["candidates"]["alexnet, fp32"] for group in found["groups"][:2])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--run /nowhere", "--run /nowhere: no run; must be the folder that `alexnet train --output-dir` wrote"),
        ("--run RUN --only training", "--run with other parts than inference"),
        ("--run RUN --model lenet5", "--run with --model lenet5"),
    ],
)
def test_wrong_config_get_one_line(words, said, run, capsys):
    assert cli.run(["bench", *words.replace("RUN", str(run)).split()]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
