"""The story of depth told for real, tiny: two depths on 250 digits."""

import json

import pytest

from alexnet import cli
from alexnet.api import DataOptions
from alexnet.errors import RecipeError, RunError
from alexnet.experiments import plan as material
from alexnet.experiments import residual_depth
from alexnet.experiments.contest import plan as budget
from alexnet.experiments.residual_depth import Config
from alexnet.training import loop


def told(store, folder, **config):
    found = material.find(str(store.path), DataOptions())
    made = residual_depth.make(found, "few digits", Config(**{"depths": (8, 14), "seeds": 2, "epochs": 1} | config))
    return residual_depth.run(made, found, folder, DataOptions(), device="cpu")


@pytest.fixture(scope="module")
def story(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth") / "run"
    return folder, told(digits, folder)


def test_every_network_has_its_errors(story):
    folder, found = story
    names = ["plain_8", "residual_8", "plain_14", "residual_14"]
    assert list(found.training) == list(found.test) == names
    assert all(len(values) == 2 and all(0 <= e <= 100 for e in values) for values in found.training.values())
    for member in found.members:
        config = json.loads((member.folder / "bundle" / "config.json").read_text())
        assert 100 * config["metrics"]["test"]["top1_error"] in found.test[config["model"]["name"]]
        assert config["recipe"]["select_weights"] == "last"  # nothing is chosen
    assert (folder / "depth.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((folder / "depth.json").read_text())
    assert written == json.loads(json.dumps(found.to_dict())) and written["plan"]["trainings"] == 8


def test_findings_by_hand():
    training = {"plain_8": [4.0, 5.0], "residual_8": [4.0, 4.0], "plain_20": [9.0, 9.5], "residual_20": [1.0, 2.0]}
    test = {"plain_8": [10.0, 11.0], "residual_8": [9.0, 9.0], "plain_20": [14.0, 15.0], "residual_20": [8.0, 7.0]}
    found = residual_depth.findings((8, 20), training, test)
    assert [f.values for f in found] == [(5.0, 4.5), (8.0, 7.5), (6.0, 8.0), (1.0, 2.0)]
    assert [f.primary for f in found] == [True, True, False, False]


def test_finished_trainings_are_found_again(story, digits, monkeypatch):
    folder, before = story
    monkeypatch.setattr(loop, "train", lambda _: pytest.fail("trained again"))
    assert told(digits, folder).to_dict() == before.to_dict()
    assert len(told(digits, folder, seeds=1).members) == 4  # fewer seeds: some of those that are there


def test_another_story_is_refused(story, digits, tmp_path):
    folder, _ = story
    with pytest.raises(RunError, match="holds another plan: its epochs is different; choose another --output-dir"):
        told(digits, folder, epochs=2)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="exists already and holds no story of depth"):
        told(digits, tmp_path)


def test_a_budget_chooses_the_epochs_of_all(digits, tmp_path, monkeypatch):
    """One pace for all: 4 networks of 2 seeds, each epoch 160·0.01 + 40·0.001 s, each end 1.18 s."""
    monkeypatch.setattr(residual_depth.pace, "measure_training", lambda *_: budget.Pace(0.01, 0.01, 0.001, 1.0))
    found = told(digits, tmp_path / "run", epochs=None, budget="40s", depths=(8, 14), seeds=2)
    expected = int((0.9 * 40 / 8 - 1.18) / 1.64)
    assert found.plan.base.epochs == expected == 2
    monkeypatch.setattr(residual_depth.pace, "measure_training", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(loop, "train", lambda _: pytest.fail("trained again"))
    assert told(digits, tmp_path / "run", epochs=None, budget="40s").plan == found.plan
    monkeypatch.setattr(residual_depth.pace, "measure_training", lambda *_: budget.Pace(10.0, 10.0, 1.0, 1.0))
    with pytest.raises(RecipeError, match="--budget of 40 s: one epoch of each of 8 trainings takes"):
        told(digits, tmp_path / "other", epochs=None, budget="40s")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depths": (8, 21)}, "--depths names 21; must be one of 8, 14, 20, 32, 44, 56 (6n + 2 layers)"),
        ({"depths": (20,)}, "--depths is 20 alone; must be at least two, to be compared"),
        ({"seeds": 0}, "--seeds is 0; must be at least 1"),
        ({"epochs": 3, "budget": "1min"}, "--budget and --epochs both say how long; must be one of them"),
    ],
)
def test_what_can_not_be(config, message):
    with pytest.raises(RecipeError) as caught:
        Config(**config)
    assert str(caught.value) == message


def test_the_command(story, digits, capsys):
    folder, before = story
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"data": material.shown(str(digits.path))}))
    words = [
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
    assert cli.run([*words, "--output-dir", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "plain 14" in said and "He et al." in said and f"shortcuts mend it: {before.verdict}" in said
    assert cli.run([*words, "--output-dir", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training_error"] == before.training
    assert cli.run(["study", "depth"]) == 2
    assert "depth needs DATA" in capsys.readouterr().err
