"""Layer files from end to end: trained through the doors of the house, resumed to the bit, answered from a bundle."""

import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet.data.run_file import write_run_file

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from layer_examples import HERE

from alexnet import api, cli
from alexnet.bundle import Bundle
from alexnet.cuda_convnet import GraphNetwork
from alexnet.data.prepare import prepare
from alexnet.data.sources import open_source
from alexnet.data.store import Store
from alexnet.errors import CheckpointError, ModelError, RecipeError, RunError
from alexnet.recipe import get_recipe
from alexnet.training import layer_files
from alexnet.training.distributed.world import World
from alexnet.training.state import State

RECIPE = get_recipe("layer_file").replace(
    stored_size=8,
    crop="center",
    hflip=0.0,
    epochs=4,
    batch_size=16,
    divide=60.0,
    validation=0.2,
    checkpoint_every="1epoch",
)


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    source = open_source("digits")
    few = dataclasses.replace(source, splits={"all": source.splits["all"][:200]}, fingerprint="first 200")
    return prepare(few, tmp_path_factory.mktemp("small") / "store", size=8, validation=0.2, test=0.2).path


@pytest.fixture(autouse=True)
def no_images(monkeypatch):
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())


def written(folder: Path) -> dict[str, Path]:
    """Dropout, shared weights, schedules, noise on the rates: everything that a resume must put back."""
    text = (HERE / "shared-params.cfg").read_text()
    text = text.replace("tgtFactor=250,noiseStdev=0", "tgtFactor=20,noiseStdev=0.3").replace("epsW=0.01", "epsW=0.0005")
    text = text.replace("epsB=0.02", "epsB=0.001")
    (folder / "mine.cfg").write_text((HERE / "shared.cfg").read_text())
    (folder / "rates.cfg").write_text(text)
    return {"layers": folder / "mine.cfg", "layer_params": folder / "rates.cfg"}


@pytest.fixture(scope="session")
def whole(small, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "TRAINING_PLOTS", ("filters", "curves"))
        result = api.train(small, RECIPE, folder / "run", device="cpu", **written(folder))
    assert (result.recipe.model, len(result.plots)) == ("mine", 2)
    for name in ("mine.cfg", "rates.cfg"):
        (folder / name).unlink()  # the run needs them no more
    return folder / "run"


def weights(folder: Path) -> str:
    state = Bundle.load(folder / "bundle").network.state_dict()
    return hashlib.sha256(b"".join(state[k].contiguous().numpy().tobytes() for k in sorted(state))).hexdigest()


def test_it_learns(whole):
    rows = (whole / "results.csv").read_text().splitlines()
    losses = [float(row.split(",")[3]) for row in rows[1:]]
    assert losses[-1] < losses[0]
    rates = [float(row.split(",")[2]) for row in rows[1:]]
    assert rates == [0.0005] * 4  # the highest of all weights: f2's stays


def test_several_processes_are_refused(small, tmp_path):
    paths = written(tmp_path)
    files = layer_files.of_training(paths["layers"], paths["layer_params"])
    recipe, cpu = layer_files.fitting(RECIPE, files), torch.device("cpu")
    with pytest.raises(RecipeError, match="--layers with 2 processes; must be one process; start it without torchrun"):
        State(recipe, Store.open(small), cpu, files=files, world=World(cpu, size=2))


def test_a_bundle_carries_its_files(whole, small, tmp_path, digit_file):
    shutil.copytree(whole / "bundle", tmp_path / "bundle")
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert config["model"]["name"] == config["model"]["layer_files"]["name"] == "mine"
    assert "weightSource=f2" in config["model"]["layer_files"]["layers"]
    classifier = api.load(tmp_path / "bundle", device="cpu")
    network = classifier.network
    assert isinstance(network, GraphNetwork)
    assert network.definition.parameters == 17_226
    assert network.weight_of("f3") is network.weight_of("f2")
    assert len(classifier.predict(digit_file)[0].top_k) == 5
    assert classifier.embed([digit_file]).shape == (1, 64)
    scores = api.evaluate(tmp_path / "bundle", small, device="cpu")
    assert scores.top1 == api.evaluate(whole, device="cpu").top1 == config["metrics"]["test"]["top1"]
    for reference in Bundle.load(tmp_path / "bundle").reference_samples:
        assert np.allclose(classifier.probabilities(reference.png)[0], reference.probabilities, atol=1e-6)


def test_a_changed_layer_file_inside_a_bundle_is_found_out(whole, tmp_path):
    shutil.copytree(whole / "bundle", tmp_path / "bundle")
    path = tmp_path / "bundle" / "config.json"
    path.write_text(path.read_text().replace("softrelu", "relu"))
    from alexnet.errors import BundleError

    with pytest.raises(BundleError, match="has changed"):
        api.load(tmp_path / "bundle")


def test_resumed_equals_never_stopped(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    earlier = sorted((folder / "checkpoints").glob("step-*.pt"))[0]
    shutil.rmtree(folder / "bundle")
    api.resume(earlier, device="cpu")
    assert weights(folder) == weights(whole)


def test_the_parameter_file_may_be_changed_before_a_resume_the_layer_file_not(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    earlier = sorted((folder / "checkpoints").glob("step-*.pt"))[0]
    rates = folder / "layer-params.cfg"
    rates.write_text(rates.read_text().replace("epsW=0.0005", "epsW=0.00005"))  # 2012's way to lower a rate
    api.resume(earlier, device="cpu")
    assert weights(folder) != weights(whole)
    layers = folder / "layers.cfg"
    layers.write_text(layers.read_text().replace("softrelu", "relu"))
    with pytest.raises(RunError, match=r"layers\.cfg has changed since the run began"):
        api.resume(folder, device="cpu")
    write_run_file(folder, json.loads((folder / "run.json").read_text()))
    with pytest.raises(CheckpointError, match=r"was made with another layer file than layers\.cfg of the run"):
        api.resume(folder, device="cpu")


def test_from_a_terminal(small, tmp_path, capsys, digit_file):
    given = written(tmp_path)
    words = [
        "train",
        str(small),
        "--output-dir",
        str(tmp_path / "run"),
        "--layers",
        str(given["layers"]),
        "--layer-params",
        str(given["layer_params"]),
        "--stored-size",
        "8",
        "--hflip",
        "0",
        "--crop",
        "center",
        "--epochs",
        "1",
        "--divide",
        "60",
        "--validation",
        "0.2",
        "--device",
        "cpu",
        "--quiet",
    ]
    assert cli.run(words) == 0
    assert "mine, center crop" in capsys.readouterr().out
    assert cli.run(["predict", str(tmp_path / "run"), str(digit_file), "--device", "cpu"]) == 0
    assert cli.run(["evaluate", str(tmp_path / "run"), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["count"] == 40
    for wrong, message in (
        (["--lr", "0.1"], "--lr has no effect on a layer file; must be left out"),
        (["--mixup-prob", "0.5"], "--mixup-prob has no effect on a layer file"),
        (["--model", "alexnet"], "--model has no effect on a layer file"),
    ):
        assert cli.run([*words[:2], "--output-dir", str(tmp_path / "new"), *words[4:], *wrong]) == 2
        assert message in capsys.readouterr().err
    assert cli.run(["train", "--resume", str(tmp_path / "run"), "--layers", str(given["layers"])]) == 2
    assert "--layers cannot change when a run is resumed" in capsys.readouterr().err


def test_one_file_without_the_other_is_refused(small, tmp_path):
    given = written(tmp_path)
    with pytest.raises(RecipeError, match="--layers without --layer-params; pass both"):
        api.train(small, RECIPE, tmp_path / "run", layers=given["layers"])
    with pytest.raises(RecipeError, match="--layer-params without --layers; pass both"):
        api.train(small, RECIPE, tmp_path / "run", layer_params=given["layer_params"])
    with pytest.raises(ModelError, match="cannot be read"):
        api.train(small, RECIPE, tmp_path / "run", layers=tmp_path / "none.cfg", layer_params=given["layer_params"])
    assert not (tmp_path / "run").exists()


def test_classes_that_do_not_fit_are_refused(small, tmp_path):
    given = written(tmp_path)
    given["layers"].write_text(given["layers"].read_text().replace("outputs=10", "outputs=7"))
    with pytest.raises(ModelError, match=r"layer 'cost': .* a layer of 10 outputs, one for each class, not 'probs'"):
        api.train(small, RECIPE, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_rate_that_explodes_leaves_finite_weights(small, tmp_path):
    given = written(tmp_path)
    given["layer_params"].write_text(given["layer_params"].read_text().replace("epsW=0.0005", "epsW=900"))
    from alexnet.errors import TrainingError

    with pytest.raises(TrainingError, match="the loss is"):
        api.train(small, RECIPE, tmp_path / "run", device="cpu", **given)


def test_random_connections_travel_in_the_bundle(tmp_path):
    source = open_source("digits")
    few = dataclasses.replace(source, splits={"all": source.splits["all"][:60]}, fingerprint="first 60")
    store = prepare(few, tmp_path / "store", size=16, validation=0.2, test=0.2)
    recipe = RECIPE.replace(stored_size=16, epochs=1, ema_decay=0.9)
    result = api.train(
        store.path,
        recipe,
        tmp_path / "run",
        device="cpu",
        layers=HERE / "sparse.cfg",
        layer_params=HERE / "sparse-params.cfg",
    )
    network = Bundle.load(result.bundle).network
    connections = network.module_of("c2").connections0
    assert connections.dtype == torch.int64
    assert sorted(connections[:32].tolist()) == list(range(32))
    assert not torch.equal(connections[:32], torch.arange(32))
    classifier = result.classifier()
    for reference in Bundle.load(
        result.bundle
    ).reference_samples:  # a pool that draws answers alike, whoever else is asked about
        assert np.allclose(classifier.probabilities(reference.png)[0], reference.probabilities, atol=1e-5)


def test_the_recipe_is_inert_where_the_files_speak():
    assert layer_files.of_training(None, None) is None
    files = layer_files.of_training(HERE / "local.cfg", HERE / "local-params.cfg")
    assert files.name == "local"
    assert layer_files.fitting(get_recipe("layer_file"), files).model == "local"


def test_a_start_that_is_refused_after_its_files_were_written_leaves_no_folder(small, tmp_path):
    files = written(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RecipeError, match="--compile with a network of layer files"):
        api.train(small, RECIPE.replace(compile=True), tmp_path / "new" / "run", device="cpu", **files)
    assert sorted(tmp_path.iterdir()) == before
