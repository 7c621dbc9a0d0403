"""The depth study on 250 digits with two depths."""

import json

import pytest

from alexnet import cli
from alexnet.api import DataOptions
from alexnet.errors import RecipeError, RunError
from alexnet.experiments import residual_depth
from alexnet.experiments.residual_depth import DepthConfig, make_plan, run_depth
from alexnet.experiments.runner import display_name, open_dataset, read_plan, write_result
from alexnet.training import loop
from alexnet.training.time_budget import TrainingSpeed


def run(store, folder, **config):
    dataset = open_dataset(str(store.path), DataOptions())
    config = {"depths": (8, 14), "seeds": 2, "epochs": 1} | config
    plan = make_plan(dataset, "few digits", DepthConfig(**config))
    return run_depth(plan, dataset, folder, DataOptions(), device="cpu")


@pytest.fixture(scope="module")
def study(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth") / "run"
    return folder, run(digits, folder)


def test_every_network_has_errors(study):
    folder, result = study
    names = ["plain_8", "residual_8", "plain_14", "residual_14"]
    assert list(result.train_errors) == list(result.test_errors) == names
    assert all(len(values) == 2 and all(0 <= e <= 100 for e in values) for values in result.train_errors.values())
    for model in result.models:
        config = json.loads((model.folder / "bundle" / "config.json").read_text())
        assert 100 * config["metrics"]["test"]["top1_error"] in result.test_errors[config["model"]["name"]]
        assert config["recipe"]["select_weights"] == "last"  # nothing is chosen
    assert (folder / "depth.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((folder / "depth.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict())) and written["plan"]["trainings"] == 8


def test_measurements_by_hand():
    training = {"plain_8": [4.0, 5.0], "residual_8": [4.0, 4.0], "plain_20": [9.0, 9.5], "residual_20": [1.0, 2.0]}
    test = {"plain_8": [10.0, 11.0], "residual_8": [9.0, 9.0], "plain_20": [14.0, 15.0], "residual_20": [8.0, 7.0]}
    measurements = residual_depth.measure((8, 20), training, test)
    assert [f.values for f in measurements] == [(5.0, 4.5), (8.0, 7.5), (6.0, 8.0), (1.0, 2.0)]
    assert [f.primary for f in measurements] == [True, True, False, False]


def test_finished_trainings_are_reused(study, digits, monkeypatch):
    folder, before = study
    monkeypatch.setattr(loop, "train", lambda _: pytest.fail("trained again"))
    assert run(digits, folder).to_dict() == before.to_dict()
    assert len(run(digits, folder, seeds=1).models) == 4  # fewer seeds: some of those that are there


def test_other_plan_is_refused(study, digits, tmp_path):
    folder, _ = study
    with pytest.raises(RunError, match="holds another plan: epochs differs; choose another --output-dir"):
        run(digits, folder, epochs=2)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="exists already and holds no depth study"):
        run(digits, tmp_path)


def test_a_budget_chooses_the_epochs_of_all(digits, tmp_path, monkeypatch):
    """One speed for all: 4 networks, each epoch 160·0.01 + 40·0.001 s, each end 1.34 s."""
    monkeypatch.setattr(
        residual_depth.time_budget, "measure_training", lambda *_: TrainingSpeed(0.01, 0.01, 0.001, 1.0)
    )
    result = run(digits, tmp_path / "run", epochs=None, budget="22s", depths=(8, 14), seeds=1)
    expected = int((0.9 * 22 / 4 - 1.34) / 1.64)
    assert result.plan.base.epochs == expected == 2
    monkeypatch.setattr(residual_depth.time_budget, "measure_training", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(loop, "train", lambda _: pytest.fail("trained again"))
    assert run(digits, tmp_path / "run", epochs=None, budget="22s", seeds=1).plan == result.plan
    monkeypatch.setattr(residual_depth.time_budget, "measure_training", lambda *_: TrainingSpeed(10.0, 10.0, 1.0, 1.0))
    with pytest.raises(RecipeError, match="--budget is 22 s: one epoch of each of 8 trainings takes"):
        run(digits, tmp_path / "other", epochs=None, budget="22s")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depths": (8, 21)}, "--depths names 21; must be one of 8, 14, 20, 32, 44, 56 (6n + 2 layers)"),
        ({"depths": (20,)}, "--depths names only 20; must be at least two depths, to compare them"),
        ({"seeds": 0}, "--seeds is 0; must be at least 1"),
        ({"epochs": 3, "budget": "1min"}, "--budget and --epochs exclude each other; leave one out"),
    ],
)
def test_invalid_config(config, message):
    with pytest.raises(RecipeError) as caught:
        DepthConfig(**config)
    assert str(caught.value) == message


def test_the_command(study, digits, capsys):
    folder, before = study
    plan = read_plan(folder, "depth study") | {"data": display_name(str(digits.path))}
    write_result(folder / "plan.json", plan)
    argv = [
        "study",
        "depth",
        str(digits.path),
        "--depths",
        "8",
        "14",
        "--seeds",
        "2",
        "--epochs",
        "1",
        "--device",
        "cpu",
    ]
    assert cli.run([*argv, "--output-dir", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "plain 14" in output and "He et al." in output and f"shortcuts prevent it: {before.verdict}" in output
    assert cli.run([*argv, "--output-dir", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train_error"] == before.train_errors
    assert cli.run(["study", "depth"]) == 2
    assert "depth needs DATA" in capsys.readouterr().err
