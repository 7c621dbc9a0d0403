"""A small sweep on 250 digits: its files, what is reused, wrong space files, and the command."""

import contextlib
import functools
import json
import os
import shutil
import signal
import sqlite3

import numpy as np
import pytest

from alexnet import cli
from alexnet.api import DataOptions
from alexnet.errors import Interrupted, RecipeError, RunError, TrainingError
from alexnet.experiments import sweep
from alexnet.experiments.runner import get_or_train
from alexnet.experiments.sweep import Dimension, SweepConfig, read_space, run_sweep
from alexnet.recipe import Recipe, get_recipe
from alexnet.training import loop
from alexnet.training import run as training_run
from alexnet.training.run_folder import locked, times_tested

optuna = pytest.importorskip("optuna")
BASE = get_recipe("lenet5").replace(epochs=2, warmup_epochs=0.2)
SPACE = "lr = {low = 0.001, high = 0.3, log = true}\nbatch_size = [16, 32]\n"


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "space.toml"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="module")
def swept(digits, space, tmp_path_factory):
    """(folder, result) of three trials and two finalists with two seeds."""
    folder = tmp_path_factory.mktemp("sweep") / "digits"
    config = SweepConfig(read_space(space), budget=3600, trials=3, finalists=2, seeds=2)
    return folder, run_sweep(str(digits.path), BASE, config, folder, DataOptions(), device="cpu")


def test_the_winner_has_the_lowest_mean_over_other_seeds(swept):
    folder, result = swept
    assert [trial.number for trial in result.trials] == [0, 1, 2]
    for trial in result.trials:
        assert 0.001 <= trial.values["lr"] <= 0.3 and trial.values["batch_size"] in (16, 32) and trial.seconds > 0
    means = [np.mean(finalist.errors) for finalist in result.finalists]
    assert means == sorted(means) and [len(finalist.errors) for finalist in result.finalists] == [2, 2]
    best = sorted((trial for trial in result.trials if not trial.pruned), key=lambda trial: trial.error)[:2]
    assert {finalist.trial.number for finalist in result.finalists} == {trial.number for trial in best}
    winner = result.finalists[0]
    assert Recipe.from_file(folder / "best.toml") == BASE.replace(**winner.trial.values)
    assert json.loads((folder / "sweep.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_only_the_winner_is_evaluated_on_the_test_split_and_once(swept, space, digits, monkeypatch):
    folder, result = swept
    tested = [path.parent.name for path in folder.glob("*/scores-test-1.json")]
    runs = [path for path in folder.iterdir() if (path / "run.json").exists()]
    number = str(result.finalists[0].trial.number)
    assert len(runs) == 4 and len(tested) == 2 and {name.split("-")[1] for name in tested} == {number}
    for run in runs:
        assert not times_tested(run), run
        assert "test" not in json.loads((run / "bundle" / "config.json").read_text())["metrics"]
    # The same command again trains nothing and evaluates nothing; another recipe is refused.
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr("alexnet.experiments.runner.evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    config = SweepConfig(read_space(space), budget=3600, trials=3, finalists=2, seeds=2)
    again = run_sweep(str(digits.path), BASE, config, folder, DataOptions(), device="cpu")
    assert again == result
    with pytest.raises(RunError, match="holds another sweep: epochs differs"):
        run_sweep(str(digits.path), BASE.replace(epochs=3), config, folder, DataOptions(), device="cpu")


def test_a_stopped_sweep_goes_on_with_the_same_trial(digits, space, tmp_path, monkeypatch):
    config = SweepConfig(read_space(space), budget=3600, trials=2, finalists=1, seeds=2)
    train, calls = loop.train, []

    def stop_in_the_second(training):
        calls.append(training.state.recipe)
        if len(calls) == 2:
            raise Interrupted(2, "stopped, saved in here", "")
        train(training)

    monkeypatch.setattr(loop, "train", stop_in_the_second)
    with pytest.raises(Interrupted, match="the same command continues"):
        run_sweep(str(digits.path), BASE, config, tmp_path / "sweep", DataOptions(), device="cpu")
    result = run_sweep(str(digits.path), BASE, config, tmp_path / "sweep", DataOptions(), device="cpu")
    assert len(result.trials) == 2 and calls[2] == calls[1]
    assert len(calls) == 1 + 1 + 1 + 2  # the first trial, the stopped one, that one again, two seeds


def test_a_signal_after_the_last_step_of_a_trial_stops_the_sweep(digits, space, tmp_path, monkeypatch):
    config = SweepConfig(read_space(space), budget=3600, trials=2, finalists=1, seeds=2)
    finish = training_run._finish

    def interrupted(training):
        signal.raise_signal(signal.SIGINT)
        return finish(training)

    monkeypatch.setattr(training_run, "_finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(str(digits.path), BASE, config, tmp_path / "sweep", DataOptions(), device="cpu")


@pytest.mark.slow
def test_a_trial_worse_than_the_median_is_pruned(digits, tmp_path, monkeypatch):
    """The fifth trial, after four that are never pruned, has a rate with which nothing is learned."""
    rates = [0.1, 0.1, 0.1, 0.1, 1e-9]
    config = SweepConfig({"lr": Dimension(choices=(0.1, 1e-9))}, budget=3600, trials=5, finalists=1, seeds=2)
    create = optuna.create_study

    def with_rates(**kwargs):
        study = create(**kwargs)
        for rate in rates:
            study.enqueue_trial({"lr": rate})
        return study

    monkeypatch.setattr(optuna, "create_study", with_rates)
    lines: list[str] = []
    options = DataOptions(log=lines.append)
    base = BASE.replace(epochs=3, batch_size=8)
    result = run_sweep(str(digits.path), base, config, tmp_path / "sweep", options, device="cpu")
    assert [trial.pruned for trial in result.trials] == [False] * 4 + [True]
    assert any("trial 4: lr 1e-09: pruned after 2 epochs" in line for line in lines)
    assert not list((tmp_path / "sweep").glob("trial-4-*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = ", "space.toml is not valid TOML: "),
        ("", "space.toml names no hyperparameter; write lr = {low"),
        ("learning_rate = [1, 2]", "space.toml: learning_rate is no hyperparameter. Did you mean 'lr'?"),
        ("epoch = [1, 2]", "space.toml: epoch is no hyperparameter. Did you mean 'epochs'?"),
        ("seed = [1, 2]", "space.toml: seed cannot be searched; leave it out; --recipe"),
        ("lr = 0.1", "space.toml: lr is 0.1; must be a list of values, or {low"),
        ("lr = [0.1]", "space.toml: lr is [0.1]; must be a list of at least two different values"),
        ("lr = [0.1, 0.1]", "space.toml: lr is [0.1, 0.1]; must be a list of at least two different"),
        ("lr = [0.1, 'a']", "space.toml: lr is 'a'; must be a number"),
        ("lr = {low = 0.1, high = 2000}", "space.toml: lr.high is 2000; must be from 1e-12 to 1000"),
        ("lr = {low = 0.1, high = 0.01}", "space.toml: lr is {'low': 0.1, 'high': 0.01}; must be low below high"),
        (
            "momentum = {low = 0, high = 0.9, log = true}",
            "space.toml: momentum is {'low': 0, 'high': 0.9, ",
        ),
        ("batch_size = {low = 8, high = 64, step = 0.5}", "space.toml: batch_size.step is 0.5; must be an integer"),
        ("batch_size = {low = 8, high = 64, step = inf}", "space.toml: batch_size is {'low': 8, 'high': 64, "),
        ("lr = {low = 0.1, high = 0.2, step = nan}", "space.toml: lr is {'low': 0.1, 'high': 0.2, 'step': nan}"),
        ("lr = " + "9" * 5000, "space.toml is not valid TOML: "),
        ("lr = " + "[" * 20_000, "space.toml is not valid TOML: TOML that is nested too deeply"),
        ("lr = [1]" + " " * 300_000, "space.toml is not valid TOML: TOML of 262,145 characters, the limit is 262,144"),
        ("model = {low = 1, high = 2}", "space.toml: model has a range; must be a list of values"),
        ("optimizer = ['sgd', 'adam']", "space.toml: optimizer is 'adam'; must be paper or sgd"),
    ],
)
def test_a_wrong_space_file_gets_one_line(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_space((tmp_path / "space.toml").relative_to(tmp_path))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_space_file_that_never_ends_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(RecipeError, match=f"{name} cannot be read: not a regular file"):
            read_space(tmp_path / name)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b"SQLite format 3\0" + b"x" * 5000),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_text("{}"),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
        lambda path: change(path, "UPDATE trial_params SET param_value = 5 WHERE param_name = 'lr'"),
        lambda path: change(path, "UPDATE trial_params SET distribution_json = 'x'"),
        lambda path: change(path, "UPDATE trial_values SET value = 17"),
        lambda path: change(path, "UPDATE trial_user_attributes SET value_json = '\"long\"'"),
        lambda path: change(path, "UPDATE trials SET state = 'ODD'"),
        lambda path: change(path, "DELETE FROM trials WHERE number = 1"),
        *(
            functools.partial(lambda table, path: change(path, f"DELETE FROM {table}"), table)
            for table in ("trial_params", "trial_values", "trial_user_attributes")
        ),
        *(
            functools.partial(lambda table, path: change(path, f"DROP TABLE {table}"), table)
            for table in (
                *("trials", "studies", "study_directions", "trial_params", "trial_values"),
                *("trial_user_attributes", "trial_system_attributes", "trial_intermediate_values"),
            )
        ),
    ],
)
def test_a_damaged_study_is_one_line(swept, space, digits, tmp_path, harm):
    """SQLAlchemy, Alembic and Optuna have their own exceptions; values outside of the space were searched on."""
    folder = shutil.copytree(swept[0], tmp_path / "sweep")
    harm(folder / "study.db")
    config = SweepConfig(read_space(space), budget=3600, trials=3, finalists=2, seeds=2)
    with pytest.raises(RunError, match=r"study\.db is damaged: .*; delete study\.db to search again"):
        run_sweep(str(digits.path), BASE, config, folder, DataOptions(), device="cpu")


def change(path, statement):
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)


def test_a_budget_too_short_for_the_finals_is_refused_after_the_first_trial(digits, space, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.time, "perf_counter", iter(range(0, 10**6, 60)).__next__)
    diverged = sweep.TrainedModel(sweep.Job("", BASE), tmp_path, digits, (), {}, "diverged")
    monkeypatch.setattr(sweep._Sweep, "train", lambda *_: diverged)
    message = "--budget is 10 min: a training takes 1 min, and --finalists 3 with --seeds 3 are 9 of them"
    with pytest.raises(RecipeError, match=message):
        run_sweep(
            str(digits.path), BASE, SweepConfig(read_space(space), 600), tmp_path / "s", DataOptions(), device="cpu"
        )


def test_no_memory_is_no_error_rate(digits, space, tmp_path, monkeypatch):
    """A trial that needs too much memory fails; the next one is tried, and nothing says that it diverged."""
    whole, calls = loop.train_step, []

    def once(state, batch):
        calls.append(state)
        if len(calls) == 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(state, batch)

    monkeypatch.setattr(loop, "train_step", once)
    log: list[str] = []
    config = SweepConfig(read_space(space), 3600, trials=1, finalists=1, seeds=2)
    result = run_sweep(str(digits.path), BASE, config, tmp_path / "s", DataOptions(log=log.append), device="cpu")
    assert [trial.number for trial in result.trials] == [1]
    assert any(line.startswith("trial 0: ") and "failed: 2.00 GiB of memory could not" in line for line in log)
    assert not list(tmp_path.rglob("diverged.json"))

    def always(state, batch):
        raise MemoryError

    monkeypatch.setattr(loop, "train_step", always)
    with pytest.raises(
        TrainingError, match=r"memory could not be .*; close other programs; the same command continues$"
    ):
        get_or_train(sweep.Job("", BASE.replace(seed=9)), digits, tmp_path / "t" / "x", device="cpu", num_workers=0)
    assert not list(tmp_path.rglob("diverged.json"))


def test_a_refused_start_leaves_no_folder(digits, space, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise RunError("refused")

    monkeypatch.setattr(sweep, "check_same_plan", refuse)
    config = SweepConfig(read_space(space), 3600, trials=1, finalists=1, seeds=2)
    for folder in (tmp_path / "a" / "b", tmp_path / "mine"):
        with pytest.raises(RunError, match="refused"):
            run_sweep(str(digits.path), BASE, config, folder, DataOptions(), device="cpu")
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / "thesis.txt").touch()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["mine"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_two_sweeps_in_one_folder_are_refused(digits, space, tmp_path):
    config = SweepConfig(read_space(space), 3600, trials=1, finalists=1, seeds=2)
    with locked(tmp_path / "s"), pytest.raises(RunError, match="is in use by another process"):
        run_sweep(str(digits.path), BASE, config, tmp_path / "s", DataOptions(), device="cpu")
    assert [path.name for path in (tmp_path / "s").iterdir()] == [".lock"]


def test_the_command(swept, space, digits, tmp_path, capsys):
    folder, result = swept
    shutil.copytree(folder, tmp_path / "sweep")
    words = ["sweep", str(digits.path), "--recipe", "lenet5", "--epochs", "2", "--space", str(space), "--trials", "3"]
    words += ["--finalists", "2", "--seeds", "2", "--output-dir", str(tmp_path / "sweep"), "--device", "cpu"]
    assert cli.run([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [finalist["trial"] for finalist in printed["finalists"]] == [f.trial.number for f in result.finalists]
    assert cli.run(words) == 0
    text = capsys.readouterr().out
    assert "the best over 2 other seeds" in text and "evaluated once" in text and "best.toml" in text
    assert cli.run(["sweep", str(digits.path)]) == 2
    assert "sweep needs --space FILE.toml" in capsys.readouterr().err
