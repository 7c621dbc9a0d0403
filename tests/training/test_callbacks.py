"""Callbacks see a run and do not change it; trackers are tested with their libraries, and a local store."""

import json
import signal
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import alexnet
from alexnet import api
from alexnet.bundle import Bundle
from alexnet.cli import run as command
from alexnet.errors import Interrupted, RecipeError, TrainingError
from alexnet.recipe import get_recipe
from alexnet.training.logger import read_rows, write_summary

RECIPE = get_recipe("lenet5").replace(epochs=2, batch_size=32, checkpoint_every="1epoch")


@pytest.fixture(autouse=True)
def no_images(monkeypatch):
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())


class Record(alexnet.Callback):
    """Notes every event; draws from the global generators and overwrites what it is given."""

    def __init__(self):
        self.events = []

    def on_run_start(self, run):
        self.run = run
        self.events.append(("start", run.step))

    def on_epoch_end(self, row):
        self.events.append(("epoch", dict(row)))
        row.clear()
        torch.manual_seed(0)
        torch.randn(7)
        np.random.seed(0)

    def on_checkpoint(self, path):
        assert path.is_file()
        self.events.append(("checkpoint", path.name))

    def on_run_end(self, end):
        self.end = end
        self.events.append(("end", end.status))


def weights(folder):
    return {k: v.clone() for k, v in Bundle.load(folder / "bundle").network.state_dict().items()}


def test_a_callback_sees_the_run_and_does_not_change_it(digits, tmp_path):
    record = Record()
    seen = api.train(digits.path, RECIPE, tmp_path / "seen", device="cpu", callbacks=[record])
    api.train(digits.path, RECIPE, tmp_path / "alone", device="cpu")
    rows = read_rows(tmp_path / "seen")
    kinds = [kind for kind, _ in record.events]  # a checkpoint is written beside the training: it may end a step later
    assert kinds[0] == "start" and kinds[-2:] == ["checkpoint", "end"] and kinds.index("epoch") == 1
    assert sorted(kinds) == ["checkpoint", "checkpoint", "end", "epoch", "epoch", "start"]
    assert [row for kind, row in record.events if kind == "epoch"] == rows
    assert record.run.folder == tmp_path / "seen" and record.run.recipe == seen.recipe
    assert record.run.images == {"train": 160, "validation": 40, "test": 50} and len(record.run.classes) == 10
    assert record.end.scores["test"].top1 == seen.scores["test"].top1 and record.end.bundle == seen.bundle
    one, other = weights(tmp_path / "seen"), weights(tmp_path / "alone")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_interrupted_run_ends_and_a_resumed_one_begins_where_it_was(digits, tmp_path):
    class Stop(Record):
        def on_epoch_end(self, row):
            super().on_epoch_end(row)
            signal.raise_signal(signal.SIGTERM)

    first, second = Stop(), Record()
    with pytest.raises(Interrupted):
        api.train(digits.path, RECIPE, tmp_path / "run", device="cpu", callbacks=[first])
    assert first.end.status == "interrupted" and "stopped in epoch" in first.end.error
    api.resume(tmp_path / "run", device="cpu", callbacks=[second])
    assert second.events[0] == ("start", 5) and second.end.status == "finished"


def test_what_a_callback_raises(digits, tmp_path):
    class Broken(alexnet.Callback):
        def on_epoch_end(self, row):
            raise KeyError("nothing")

        def on_run_end(self, end):
            raise ValueError("two\nlines")

    result = api.train(digits.path, RECIPE, tmp_path / "run", device="cpu", callbacks=[Broken()])
    assert result.notes[-2:] == (
        "callback Broken.on_epoch_end failed: KeyError: 'nothing'",
        "callback Broken.on_run_end failed: ValueError: two lines",
    )

    class Absent(Record):
        def on_run_start(self, run):
            raise ConnectionError("no server")

    before, absent = Record(), Absent()
    with pytest.raises(TrainingError, match="callback Absent cannot start: ConnectionError: no server"):
        api.train(digits.path, RECIPE, tmp_path / "none", device="cpu", callbacks=[before, absent])
    assert not (tmp_path / "none").exists()
    assert before.end.status == "failed" and not hasattr(absent, "end")
    with pytest.raises(TrainingError, match="callback <built-in function print>; must be an instance"):
        api.train(digits.path, RECIPE, tmp_path / "none", callbacks=[print])
    with pytest.raises(RecipeError, match=r"unknown tracker 'mlfow'\. Did you mean 'mlflow'"):
        api.train(digits.path, RECIPE, tmp_path / "none", callbacks=["mlfow"])


def test_a_tracker_that_is_not_installed(monkeypatch, capsys, digits):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert command(["train", str(digits.path), "--model", "lenet5", "--tracker", "mlflow"]) == 2
    assert "tracker mlflow is not installed; pip install 'alexnet[mlflow]'" in capsys.readouterr().err


def tracked(name, digits, folder):
    """A run that was stopped after its first epoch and resumed, with one tracker."""

    class Stop(alexnet.Callback):
        def on_epoch_end(self, row):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        api.train(digits.path, RECIPE, folder, device="cpu", callbacks=[name, Stop()])
    result = api.resume(folder, device="cpu", callbacks=[name])
    assert not [note for note in result.notes if "callback" in note]
    return json.loads((folder / "trackers.json").read_text())[name], read_rows(folder), result


@pytest.fixture
def confusion_plot(monkeypatch):
    monkeypatch.setattr(api, "TRAINING_PLOTS", ("confusion",))


@pytest.mark.slow  # MLflow creates a database of many tables
@pytest.mark.filterwarnings("default")
def test_mlflow(digits, tmp_path, monkeypatch, confusion_plot):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    identifier, rows, result = tracked("mlflow", digits, tmp_path / "run")
    client = mlflow.MlflowClient()
    found = client.get_run(identifier)
    assert found.info.status == "FINISHED" and found.info.run_name == "run"
    assert client.get_experiment(found.info.experiment_id).name == "alexnet"
    assert found.data.params["lr"] == str(RECIPE.lr) and found.data.params["data"] == digits.name
    history = client.get_metric_history(identifier, "validation_top1")
    assert [(one.step, one.value) for one in history] == [(row["epoch"], row["validation_top1"]) for row in rows]
    assert found.data.metrics["final/test_top1"] == pytest.approx(result.scores["test"].top1)
    files = {file.path for file in client.list_artifacts(identifier)}
    assert files == {"plots", "recipe.toml", "results.csv"}
    assert [file.path for file in client.list_artifacts(identifier, "plots")] == ["plots/confusion.png"]


def leveldb_log(data):
    """The records of a file in the log format of LevelDB, which W&B writes behind a header of 7 bytes."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block is padding
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        record, at = record + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def values_of(items):
    return {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in items}


@pytest.mark.filterwarnings("default")
def test_wandb_offline(digits, tmp_path, monkeypatch, confusion_plot):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record as Entry

    monkeypatch.chdir(tmp_path)
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}.items():
        monkeypatch.setenv(name, value)
    identifier, rows, result = tracked("wandb", digits, tmp_path / "run")
    wandb.teardown()  # its service has written everything then
    config, summary, epochs, images, codes = {}, {}, [], {}, []
    for file in sorted(tmp_path.glob(f"wandb/offline-run-*-{identifier}/run-{identifier}.wandb")):
        for record in map(Entry.FromString, leveldb_log(file.read_bytes())):
            config |= values_of(record.run.config.update)
            summary |= values_of(record.summary.update)
            row = values_of(record.history.item)
            epochs += [(row["epoch"], row["validation_top1"])] if "validation_top1" in row else []
            images |= row if "confusion._type" in row else {}
            codes += [record.exit.exit_code] if record.HasField("exit") else []
    assert epochs == [(row["epoch"], row["validation_top1"]) for row in rows]
    assert config["lr"] == RECIPE.lr and summary["final/test_top1"] == pytest.approx(result.scores["test"].top1)
    assert images["confusion._type"] == "image-file" and codes == [1, 0]


@pytest.mark.filterwarnings("default")
def test_trackio(digits, tmp_path, monkeypatch, confusion_plot, capsys):
    pytest.importorskip("trackio")
    import trackio.context_vars
    import trackio.sqlite_storage
    import trackio.utils

    for module in (trackio, trackio.utils, trackio.sqlite_storage):
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.chdir(tmp_path)
    identifier, rows, result = tracked("trackio", digits, tmp_path / "run")
    printed = capsys.readouterr()
    assert not printed.out and "trackio show" in printed.err and "\x1b" not in printed.err
    assert trackio.context_vars.current_run.get() is None  # otherwise it is ended, and prints, again at exit
    logs = trackio.sqlite_storage.SQLiteStorage.get_logs("alexnet", identifier)
    assert [(r["epoch"], r["validation_top1"]) for r in logs if "epoch" in r] == [
        (row["epoch"], row["validation_top1"]) for row in rows
    ]
    final = next(r for r in logs if "final/test_top1" in r)
    assert final["final/test_top1"] == pytest.approx(result.scores["test"].top1) and "confusion" in final


def test_tensorboard_has_plots_and_hyperparameters(digits, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = api.train(digits.path, RECIPE, tmp_path / "run", device="cpu")
    plot = tmp_path / "confusion.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(plot)
    assert write_summary(tmp_path / "run", result.recipe, result.scores, [plot]) == ""
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert events.Scalars("final/test_top1")[-1].value == pytest.approx(result.scores["test"].top1)
    (image,) = events.Images("confusion")
    assert (image.width, image.height, image.step) == (4, 4, 10)
    start = events.SummaryMetadata("_hparams_/session_start_info")
    assert b"batch_size" in start.plugin_data.content
