"""A run folder with damaged or edited files: each is named in one line, and nothing is computed from it."""

import hashlib
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from alexnet import api, cli
from alexnet.data.run_file import write_run_file
from alexnet.errors import CheckpointError, RunError
from alexnet.recipe import get_recipe
from alexnet.report.facts import epochs_of, events_of
from alexnet.training import checkpoint
from alexnet.training.logger import TESTED, append_event, damage
from alexnet.training.run_folder import read_start, times_tested


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory) -> Path:
    recipe = get_recipe("lenet5").replace(epochs=2, stored_size=32, checkpoint_every="1epoch", ema_decay=0.9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "TRAINING_PLOTS", ())
        return api.train(digits.path, recipe, run=tmp_path_factory.mktemp("run") / "run", quiet=True).folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def forged(path: Path, change) -> None:
    """The checkpoint with other content, and a SHA-256 that fits."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")


def poison(name: str):
    def change(content) -> None:
        next(iter(content[name].values())).view(-1)[0] = float("nan")

    return change


def momentum(value):
    """A native kernel would write beyond a momentum that is smaller than its weights."""

    def change(content) -> None:
        next(iter(content["optimizer"]["state"].values()))["momentum_buffer"] = value

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (poison("network"), "has NaN or Inf in"),
        (poison("ema"), "has NaN or Inf in"),
        (lambda content: content.pop("position"), "is inconsistent: Object missing required field `position`"),
        (lambda content: content.update(network={}), "is inconsistent: "),
        (lambda content: content.update(rows=3), "is inconsistent: "),
        (momentum(1.0), "momentum_buffer of the optimizer has not the shape of its weights"),
        (momentum(torch.tensor(1.0)), "momentum_buffer of the optimizer has not the shape of its weights"),
        (momentum(torch.zeros(3)), "momentum_buffer of the optimizer has not the shape of its weights"),
        (lambda content: content["optimizer"]["param_groups"][0].update(maximize=b"x"), "maximize of the optimizer"),
        (lambda content: content["optimizer"]["param_groups"][0].update(lr=float("nan")), "lr of the optimizer is nan"),
        (lambda content: content["optimizer"]["param_groups"][0].update(nesterov=3), "nesterov of the optimizer is 3"),
        (lambda content: content["schedule"].clear(), "is inconsistent: "),
        (lambda content: content["recipe"].update(zzz=1), "is inconsistent: unknown hyperparameter 'zzz'. Choose from"),
    ],
)
def test_a_checkpoint_that_was_edited_is_refused(run, change, text):
    forged(checkpoint.latest(run / "checkpoints"), change)
    with pytest.raises(CheckpointError) as caught:
        api.resume(run, quiet=True)
    assert text in str(caught.value) and str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


def test_a_hash_file_with_control_characters_is_printed_escaped(run):
    path = checkpoint.latest(run / "checkpoints")
    path.with_name(path.name + ".sha256").write_text("\x1b[2J" + "0" * 60)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "3",
        "{}",
        '{"data": 1, "store": "x"}',
        '{"data": "x", "store": ["x"]}',
        '{"data": "x", "store": NaN}',
        '{"data": "x", "store": "x", "options": "abc"}',
        '{"data": "x", "store": "x", "from": 3}',
        "[" * 200_000,
        "{",
    ],
)
def test_a_run_file_that_is_not_of_the_schema_is_refused(run, text):
    (run / "run.json").write_text(text)
    with pytest.raises(RunError, match="is no run folder: ") as caught:
        read_start(run)
    assert str(caught.value).isprintable()


def test_a_changed_byte_in_the_journal_costs_its_line_alone(run):
    path = run / "journal.jsonl"
    before, data = events_of(run), path.read_bytes()
    assert len(before) > 3 and times_tested(run) is not None
    for byte in (b"\xff", b"\0", b"\r"):
        path.write_bytes(data[:3] + byte + data[4:])
        assert events_of(run) == before[1:] and times_tested(run) is not None
        assert damage(run) == [f"{path} is damaged: line 1 changed after it was written and is left out"]


@pytest.mark.parametrize("name", ["journal.jsonl", "results.csv"])
def test_every_changed_byte_of_the_record_is_noticed(run, name):
    path = run / name
    data = path.read_bytes()
    assert damage(run) == []
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        (fault,) = damage(run)
        assert fault.startswith(f"{path} is damaged: ") and fault.isprintable()


def test_every_command_says_that_the_record_is_damaged(run, capsys):
    """Of the journal a line is lost; results.csv is refused where it is read, and written anew on resuming."""
    for name in ("journal.jsonl", "results.csv"):
        data = (run / name).read_bytes()
        (run / name).write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    for args in (["evaluate"], ["plot", "neighbors"], ["train", "--quiet", "--resume"]):
        assert cli.run([*args, str(run), "--device", "cpu"]) == 0, capsys.readouterr().err
        errors = capsys.readouterr().err.splitlines()
        for name in ("journal.jsonl", "results.csv"):
            assert sum(f"{run / name} is damaged: " in line for line in errors) == 1, errors
    assert damage(run) == [f"{run / 'journal.jsonl'} is damaged: line 1 changed after it was written and is left out"]
    assert cli.run(["report", str(run), "--device", "cpu", "--no-doctor"]) == 0
    assert "journal.jsonl is damaged: " in capsys.readouterr().err


def test_a_journal_that_lost_lines_is_told_of_and_loses_no_others(run, capsys, monkeypatch):
    """A line before the checkpoint's place is gone, so that this place is within another line: nothing is cut off."""
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())
    path, errors = run / "journal.jsonl", lambda: capsys.readouterr().err
    append_event(path, TESTED, split="test", by="a later evaluation " + "x" * 300)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:]))
    api.resume(run)
    assert path.read_bytes().startswith(b"".join(lines[1:]))
    errors()
    path.write_bytes(lines[0])
    api.resume(run)
    assert f"warning: {path} has lost lines: it has {len(lines[0]):,} bytes, and had " in errors()
    assert path.read_bytes().startswith(lines[0])
    path.unlink()
    assert cli.run(["evaluate", str(run), "--device", "cpu"]) == 0
    assert f"{run} has no journal.jsonl: evaluations of its test split are not counted\n" in errors()
    api.resume(run)
    assert f"warning: {path} has lost lines: it has 0 bytes" in errors() and damage(run) == []


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_that_lost_its_checkpoints_does_not_begin_again(run, capsys, finished):
    """Deleted to save space, say: its record would be discarded, and its bundle replaced after hours."""
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    if not finished:
        shutil.rmtree(run / "bundle")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert cli.run(["train", "--resume", str(run), "--quiet", "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert f"the checkpoints of {run} are gone, so it cannot go on; " in error and "--output-dir" in error
    assert ("in its bundle" in error) == finished
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["run.json", "recipe.toml"])
def test_every_command_refuses_a_changed_beginning(run, name, capsys):
    path = run / name
    data = path.read_bytes()
    path.write_bytes(
        data.replace(b"digits", b"digitz") if name == "run.json" else data.replace(b"epochs = 2", b"epochs = 3")
    )
    assert path.read_bytes() != data
    for args in (["evaluate"], ["plot", "neighbors"], ["train", "--resume"], ["report"]):
        assert cli.run([*args, str(run), "--device", "cpu"]) == 1
        assert capsys.readouterr().err.splitlines() == [
            f"alexnet: {path} has changed since the run began: its SHA-256 differs; restore it from a copy"
        ]


@pytest.mark.parametrize(
    "change", [(b".", b"x"), (b"epoch", b"epoxh"), (b"\n", b"\n\xff"), (b"\n", b"\n1,2,3,4,5,6,7,8,9,10,11,12\n")]
)
def test_a_changed_byte_in_the_results_is_named(run, change):
    path = run / "results.csv"
    rows = epochs_of(run)
    assert [row["epoch"] for row in rows] == [0, 1] or [row["epoch"] for row in rows] == [1, 2]
    path.write_bytes(path.read_bytes().replace(*change, 1))
    with pytest.raises(RunError, match=r"results\.csv is damaged: "):
        epochs_of(run)


def test_every_file_of_a_run_has_the_rights_that_the_umask_leaves(trained):
    mask = os.umask(0)
    os.umask(mask)
    modes = {
        str(path.relative_to(trained)): stat.S_IMODE(path.stat().st_mode)
        for path in trained.rglob("*")
        if path.is_file()
    }
    assert {name for name, mode in modes.items() if mode != 0o666 & ~mask} == set()


@pytest.mark.parametrize("source", [None, 3, {}, {"name": 1, "sha256": "x"}, {"name": "starter"}])
def test_the_weights_that_a_run_began_with_are_checked(run, source):
    """``run.json`` with a valid checksum: a KeyError when the run was resumed."""
    metadata = read_start(run)[1]
    write_run_file(run, {name: value for name, value in metadata.items() if name != "checksum"} | {"from": source})
    with pytest.raises(RunError, match=r"is no run folder: .*from"):
        read_start(run)
