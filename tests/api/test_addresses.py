"""Training and evaluating on a store behind an address, as on the same store in a folder."""

import dataclasses
import hashlib
from types import SimpleNamespace

import pytest

from alexnet import api
from alexnet.cli import run as command
from alexnet.data.cache import Cache, default_cache, set_default_cache
from alexnet.data.prepare import prepare
from alexnet.data.sources import open_source
from alexnet.errors import DataError, RecipeError
from alexnet.explain.neighbors import Neighbors
from alexnet.export import export
from alexnet.export.classifier import Classifier
from alexnet.export.verify import verify
from alexnet.plots import canvas
from alexnet.recipe import get_recipe
from alexnet.training.run_folder import read_start
from alexnet.weights.import_weights import import_weights

RECIPE = get_recipe("lenet5").replace(epochs=2, batch_size=16, checkpoint_every="3steps")


@pytest.fixture
def both(tmp_path):
    """A store of digits in small JPEG shards, and its address."""
    import fsspec

    source = open_source("digits")
    few = dataclasses.replace(source, splits={"all": source.splits["all"][:120]}, fingerprint="first 120")
    how = {"encoding": "jpeg", "shard_bytes": 8 * 384, "mixed": True}
    local = prepare(few, tmp_path / "s", size=RECIPE.stored_size, fit=RECIPE.fit, **how)
    system, before = fsspec.filesystem("memory"), default_cache()
    system.put(str(local.path), "/trained", recursive=True)
    set_default_cache(Cache(tmp_path / "cache", first_wait=0.01))
    yield local, "memory://trained"
    set_default_cache(before)
    system.rm("/trained", recursive=True)


def weights(folder):
    return hashlib.sha256((folder / "bundle" / "model.safetensors").read_bytes()).hexdigest()


def test_a_run_on_an_address_is_the_run_on_the_folder(both, tmp_path, capsys):
    local, address = both
    recipe = RECIPE.replace(shuffle_window=3)
    here = api.train(local.path, recipe, tmp_path / "here", device="cpu")
    there = api.train(address, recipe, tmp_path / "there", device="cpu")
    assert weights(here.folder) == weights(there.folder)
    assert read_start(there.folder)[1]["store"] == address
    assert there.scores["test"].top1 == here.scores["test"].top1
    assert api.evaluate(there.folder).top1 == api.evaluate(here.folder, address).top1
    assert command(["evaluate", str(there.folder), "--data", address, "--cache", str(tmp_path / "c")]) == 0
    assert "top-1" in capsys.readouterr().out and list((tmp_path / "c" / "remote").iterdir())


def test_report_and_export_read_a_store_at_an_address(both, tmp_path, capsys, monkeypatch):
    local, address = both
    run = api.train(local.path, RECIPE.replace(epochs=1), tmp_path / "run", device="cpu").folder
    local.path.rename(tmp_path / "moved")  # the address alone has it now
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "chosen"))
    report, onnx = tmp_path / "report.html", tmp_path / "net.onnx"
    assert command(["report", str(run), "--store", address, "--output", str(report)]) == 0, capsys.readouterr().err
    assert report.is_file() and list((tmp_path / "chosen" / "remote").iterdir())
    words = ["--precision", "fp16", "--data", address, "--output", str(onnx)]
    assert command(["export", str(run / "bundle"), *words]) == 0, capsys.readouterr().err
    assert onnx.is_file() and "validation images" in capsys.readouterr().out


@pytest.mark.parametrize(
    "call",
    [
        lambda address: api.train("digits", "lenet5", address),
        lambda address: api.resume(address),
        lambda address: api.load(address),
        lambda address: api.evaluate(address),
        lambda address: api.write_report(address),
        lambda address: api.plot("curves", address),
        lambda address: api.compress(address),
        lambda address: verify(address),
        lambda address: export.export_model(address),
        lambda address: import_weights("caffe", address),
        lambda address: Classifier.save_pretrained(SimpleNamespace(bundle=SimpleNamespace(save=None)), address),
        lambda address: api.promote("run", address),
        lambda address: api.promote_back(address),
        lambda address: prepare(open_source("digits"), address, size=8),
        lambda address: canvas.save(None, address),
        lambda address: Neighbors.open(address),
    ],
)
def test_what_must_be_on_this_disk_is_no_address(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="s3://bucket/x: is an address"):
        call("s3://bucket/x")
    assert not list(tmp_path.iterdir())


def test_what_the_recipe_leaves_open_is_written_down(both, tmp_path):
    _, address = both
    made = api.train(address, RECIPE.replace(epochs=1), tmp_path / "run", device="cpu")
    assert made.recipe.shuffle_window == read_start(made.folder)[0].shuffle_window == 16
    with pytest.raises(RecipeError, match="--sampling balanced and --shuffle-window exclude each other; leave one out"):
        RECIPE.replace(sampling="balanced", shuffle_window=2)
