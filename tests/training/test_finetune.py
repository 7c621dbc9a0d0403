"""Fine-tuning on a few digits: what is copied, what is drawn, what stays frozen, and a resume without the source."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet import api, cli
from alexnet.bundle import Bundle, find_bundle
from alexnet.data.atomic_io import sha256_of
from alexnet.data.decode import encode_png
from alexnet.data.prepare import prepare
from alexnet.data.sources import Source, open_source
from alexnet.data.store import Store
from alexnet.errors import BundleError, RecipeError, RunError
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model
from alexnet.recipe import get_recipe
from alexnet.training import finetune, loop
from alexnet.training.finetune import for_few_epochs, from_bundle, initial_weights
from alexnet.training.task import build_network

SMALL = get_recipe("cifar_18pct").replace(
    epochs=1, batch_size=16, validation=0.2, schedule="constant", checkpoint_every="1epoch"
)
HEAD = ("fc10.weight", "fc10.bias")


@pytest.fixture(autouse=True)
def no_images(monkeypatch):
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())


def few(classes: int, count: int = 60) -> Source:
    source = open_source("digits")
    chosen = [image for image in source.splits["all"] if image.label < classes][:count]
    return dataclasses.replace(
        source, splits={"all": chosen}, classes=source.classes[:classes], fingerprint=f"{count} of {classes}"
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[int, Store]:
    """Digits 0 to 3, and 0 to 5, at 32 pixels."""
    folder = tmp_path_factory.mktemp("stores")
    return {n: prepare(few(n), folder / str(n), size=32, validation=0.2, test=0.2) for n in (4, 6)}


@pytest.fixture(scope="module")
def source(stores, tmp_path_factory) -> Path:
    """A run of four classes."""
    folder = tmp_path_factory.mktemp("source") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "TRAINING_PLOTS", ())
        api.train(stores[4].path, SMALL, folder, device="cpu")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(Bundle.load(folder / "bundle").network.state_dict())


def test_new_classes_get_a_fresh_last_layer_and_the_rest_is_copied(source, stores):
    start = from_bundle(source)
    network = build_network(start.recipe(SMALL.replace(seed=7)), 6)
    drawn = {name: value.clone() for name, value in network.state_dict().items()}
    start.load_into(network, stores[6].classes)
    before = weights(source)
    for name, value in network.state_dict().items():
        assert torch.equal(value, drawn[name] if name in HEAD else before[name]), name
    same = build_network(start.recipe(SMALL), 4)
    start.load_into(same, stores[4].classes)
    assert all(torch.equal(value, before[name]) for name, value in same.state_dict().items())
    start.load_into(same, stores[4].classes[::-1])  # the same names in another order are other classes
    assert start.fresh(stores[4].classes[::-1]) == "fc10"
    assert start.fresh(stores[4].classes) == ""


def test_frozen_layers_stay_bit_for_bit_and_the_others_learn(source, stores, tmp_path):
    before = weights(source)
    folder = tmp_path / "run"
    result = api.train(
        stores[6].path,
        SMALL.replace(freeze="conv1..conv2", layer_lr_mult="fc10=10,conv3=0.1"),
        folder,
        init_from=source,
        device="cpu",
    )
    after = weights(folder)
    for name in before:
        assert torch.equal(after[name], before[name]) == name.startswith(("conv1", "conv2")), name
    assert after["fc10.weight"].shape == (6, 1024)
    about = json.loads((folder / "run.json").read_text())["from"]
    sha256 = sha256_of(source / "bundle" / "config.json")
    assert about == {"name": str(source / "bundle"), "sha256": sha256, "fresh": "fc10"}
    bundle = Bundle.load(result.bundle)
    assert bundle.data["from"] == about
    assert f"starting from {source / 'bundle'}" in (result.bundle / "README.md").read_text()
    slow = api.train(
        stores[6].path,
        SMALL.replace(freeze="conv1..conv2", layer_lr_mult="fc10=10,conv3=0"),
        tmp_path / "slow",
        init_from=source,
        device="cpu",
    )
    assert torch.equal(weights(slow.folder)["conv3.weight"], before["conv3.weight"])


def test_the_source_s_mean_and_divisor_are_kept(source, stores, tmp_path):
    """Weights are right for what was subtracted when they learned: the new images' mean image is another."""
    first = Bundle.load(source / "bundle").normalization
    result = api.train(
        stores[6].path,
        None,
        tmp_path / "run",
        init_from=source,
        device="cpu",
        epochs=2,
        batch_size=16,
        lr_milestones=(1,),
    )
    found = Bundle.load(result.bundle).normalization
    assert torch.equal(found.mean, first.mean)
    assert not np.array_equal(found.mean.numpy(), stores[6].mean_image)
    assert (found.mean_follows_crop, float(found.divide)) == (first.mean_follows_crop, float(first.divide))
    assert torch.allclose(found.color_std, torch.tensor(stores[6].color_std).float())  # noise is the new images' own
    recipe = result.recipe
    assert (recipe.model, recipe.mean, recipe.stored_size) == ("cifar_18pct", "center", 32)


def test_resumed_without_the_source_bit_for_bit(source, stores, tmp_path):
    gone, folder = tmp_path / "source", tmp_path / "run"
    shutil.copytree(source, gone)
    recipe = SMALL.replace(epochs=3, ema_decay=0.9, freeze="conv1")
    api.train(stores[6].path, recipe, folder, init_from=gone, device="cpu")
    whole = weights(folder)
    shutil.rmtree(gone)
    shutil.rmtree(folder / "bundle")
    earlier = sorted((folder / "checkpoints").glob("step-*.pt"))[0]
    result = api.resume(earlier, device="cpu")
    again = weights(folder)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    bundle = Bundle.load(result.bundle)
    assert bundle.data["from"]["name"] == str(gone / "bundle")
    assert torch.equal(bundle.normalization.mean, Bundle.load(source / "bundle").normalization.mean)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(source, stores, tmp_path, monkeypatch):
    """Its folder does not hold the weights that it began with: they are read again, and must be the same."""
    begun = shutil.copytree(source, tmp_path / "source")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    recipe = SMALL.replace(seed=3)
    api.train(stores[6].path, recipe, whole, init_from=begun, device="cpu")

    def die(*_args):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(loop, "train_step", die)
        api.train(stores[6].path, recipe, killed, init_from=begun, device="cpu")
    early = shutil.copytree(killed, tmp_path / "early")
    api.resume(killed, device="cpu")
    assert all(torch.equal(value, weights(killed)[name]) for name, value in weights(whole).items())
    shutil.rmtree(begun / "bundle")
    with pytest.raises(BundleError, match="bundle"):
        api.resume(early, device="cpu")
    shutil.copytree(whole / "bundle", begun / "bundle")
    with pytest.raises(RunError, match="holds other weights than the run began with"):
        api.resume(early, device="cpu")
    assert not (early / "bundle").exists()


def test_what_can_not_start_is_refused(source, stores, tmp_path):
    with pytest.raises(RecipeError, match=r"--model is lenet5; must be cifar_18pct, as .* has it; leave it out"):
        api.train(stores[6].path, None, tmp_path / "a", init_from=source, model="lenet5")
    with pytest.raises(RecipeError, match=r"--mean is channel; must be center"):
        api.train(stores[6].path, SMALL.replace(mean="channel"), tmp_path / "a", init_from=source)
    with pytest.raises(RecipeError, match=r"--divide is 2\.0; must be 1\.0"):
        api.train(stores[6].path, SMALL, tmp_path / "a", init_from=source, divide=2.0)
    with pytest.raises(BundleError, match="there is no"):
        api.train(stores[6].path, SMALL, tmp_path / "a", init_from=tmp_path / "nothing")
    assert not (tmp_path / "a").exists()
    start = from_bundle(source)
    start.check(start.recipe(SMALL).replace(stored_size=40))  # the center of a mean image is the same for all crops
    with pytest.raises(RecipeError, match=r"--image-size is 40; must be at most 32, as the mean image of .* has"):
        start.check(start.recipe(SMALL).replace(stored_size=40, image_size=40))
    caffe = dataclasses.replace(start, normalization=dataclasses.replace(start.normalization, mean_follows_crop=True))
    with pytest.raises(RecipeError, match=r"--stored-size is 40; must be 32, as the mean image of .* has"):
        caffe.check(caffe.recipe(SMALL).replace(stored_size=40))
    with pytest.raises(RecipeError) as caught:
        start.load_into(build_network(SMALL.replace(image_size=40), 4), stores[4].classes)
    assert str(caught.value) == (
        f"layer fc10.weight of {source / 'bundle'} is [4, 1024]; must be [4, 1600] for images of 40 pixels; use the "
        "weights' own --image-size 32"
    )
    with pytest.raises(RecipeError, match=r"--freeze: no layer 'conv9' with parameters"):
        api.train(stores[6].path, SMALL.replace(freeze="conv9"), tmp_path / "b", init_from=source, device="cpu")


def test_from_the_command_line(source, stores, tmp_path, capsys):
    words = ["train", str(stores[6].path), "--output-dir", str(tmp_path / "run"), "--device", "cpu", "--quiet"]
    words += ["--init-from", str(source), "--epochs", "1", "--schedule", "constant"]
    words += ["--freeze", "conv1..conv3", "--batch-size", "16"]
    assert cli.run([*words, "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])
    before, after = weights(source), weights(tmp_path / "run")
    assert [name for name in before if not torch.equal(before[name], after[name])] == list(HEAD)
    assert cli.run(["train", "--resume", str(tmp_path / "run"), "--init-from", str(source)]) == 2
    assert "--init-from cannot change when a run is resumed" in capsys.readouterr().err
    assert cli.run([*words[:2], "--init-from", str(tmp_path / "nothing")]) == 1
    assert "nothing; must be a run folder or a bundle" in capsys.readouterr().err
    assert cli.run([*words[:2], "--init-from", str(source), "--model", "lenet5"]) == 2
    assert "--model is lenet5; must be cifar_18pct" in capsys.readouterr().err


def test_weights_that_torchvision_publishes(monkeypatch, stores):
    """Fetched by torchvision (here: handed over), with a divisor a channel and torchvision's images."""
    with torch.device("meta"):
        shapes = {n: tuple(v.shape) for n, v in create_model("alexnet_owt", num_classes=10).state_dict().items()}
    from alexnet.weights import torchvision_weights
    from alexnet.weights.matching import ImportedWeights

    found = ImportedWeights(
        {n: np.zeros(shape, np.float32) for n, shape in shapes.items()}, classes=tuple("abcdefghij")
    )
    monkeypatch.setattr(torchvision_weights, "fetch", lambda: found)
    start = finetune.from_published("torchvision")
    recipe = start.recipe(get_recipe("modern"))
    assert (recipe.model, recipe.mean, recipe.divide_std, recipe.stored_size) == ("alexnet_owt", "channel", True, 256)
    assert start.normalization.divide.tolist() == pytest.approx([58.395, 57.12, 57.375])
    assert start.fresh(["x", "y"]) == "classifier.6"
    start.check(recipe)


@pytest.fixture
def starter(tmp_path, monkeypatch) -> Path:
    """A starter with random weights of a network that is as small as the tests need; in a folder without its name."""
    from alexnet import bundle
    from alexnet.bundle import bundle as bundles

    network = create_model("alexnet", num_classes=3, image_size=63).initialize(torch.Generator().manual_seed(0))
    ones = torch.ones(3)
    made = Bundle(
        network, ("a", "b", "c"), Normalization(100 * ones, ones, torch.eye(3), torch.tensor(1.0)), 72, "crop"
    )
    folder = made.save(tmp_path / "package" / "starter")
    for module in (bundle, bundles, finetune):
        monkeypatch.setattr(module, "STARTER_FOLDER", folder)
    return folder


def chosen(data="images", recipe="", init_from="", layer_file=False, **changes) -> tuple[str, str]:
    result = initial_weights(data, recipe, init_from, changes, layer_file=layer_file)
    return result.pretrained.name if result.pretrained else "", result.why


def test_own_images_start_from_the_starter_and_the_rest_from_random_weights(starter, stores, source):
    name, why = chosen()
    assert name == "starter"
    assert why == (
        "the starter (alexnet trained on 3 classes), which suits most images; --init-from scratch for random weights"
    )
    assert chosen(model="alexnet", lr=0.1, epochs=3)[0] == "starter"
    assert chosen(image_size=60)[0] == "starter", "fc6 has the same size"
    assert chosen(recipe="finetune")[0] == chosen(data="digits", init_from="starter")[0] == "starter"
    assert chosen(init_from=source)[0] == str(source / "bundle")
    for expected, kwargs in {
        "as usual for digits": {"data": "digits"},
        "as usual for cifar10": {"data": "cifar10"},
        "as in the recipe paper": {"recipe": "paper"},
        "as in the recipe modern": {"recipe": get_recipe("modern")},
        "since a layer file defines the network": {"layer_file": True},
        "since there is a starter for alexnet, not for alexnet_owt": {"model": "alexnet_owt"},
        "since the starter does not fit: --in-channels is 1; must be 3, as starter has it": {"in_channels": 1},
        "since the starter does not fit: --mean is image; must be channel, as starter has it": {"mean": "image"},
        "since the starter does not fit: --image-size is 96; must be 63, as starter has it": {"image_size": 96},
        "by --init-from scratch": {"init_from": "scratch"},
    }.items():
        assert chosen(**kwargs) == ("", f"random, {expected}"), kwargs
    assert chosen(data=str(stores[4].path)) == ("", "random, as usual for digits")  # a prepared store of them


def test_without_a_starter_everything_begins_with_random_weights(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(finetune, "STARTER_FOLDER", tmp_path / "none")
    monkeypatch.setattr("alexnet.bundle.bundle.STARTER_FOLDER", tmp_path / "none")
    assert chosen() == ("", "random, since this installation has no starter weights (docs/starter.md)")
    assert cli.run(["predict", "starter", "image.jpg"]) == 1
    assert "this installation has no starter weights; docs/starter.md says how they are made" in capsys.readouterr().err


def test_a_damaged_starter_is_refused(starter):
    file = starter / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"model.safetensors has changed: SHA-256 .*; use another copy"):
        chosen()


def test_a_foreign_starter_is_refused_or_used_as_it_is(starter, capsys):
    """Another program's config.json, and a network that is not alexnet: a one-line error, or a run that says so."""
    config = starter / "config.json"
    for content in ("", "{", '{"model_type": "bert"}', "[]"):
        config.write_text(content)
        with pytest.raises(BundleError, match="starter") as caught:
            chosen()
        assert "\n" not in str(caught.value)
        assert cli.run(["predict", "starter", "image.png"]) == 1
        with pytest.raises(BundleError, match="starter"):
            api.load("starter")
    shutil.rmtree(starter)
    network = create_model("lenet5", generator=torch.Generator().manual_seed(0))
    ones = torch.ones(3)
    Bundle(
        network, tuple("abcdefghij"), Normalization(100 * ones, ones, torch.eye(3), torch.tensor(80.0)), 32, "crop"
    ).save(starter)
    result = initial_weights("images", "", "", {}, layer_file=False)
    assert result.pretrained is not None and result.why.startswith("the starter (lenet5 trained on 10 classes)")
    with pytest.raises(RecipeError, match="--in-channels is 3; must be 1, as starter has it"):
        result.pretrained.check(result.pretrained.recipe(get_recipe("finetune")).replace(in_channels=3))


def folder_of(folder: Path, mode: str = "RGB", size: tuple[int, int] = (80, 80), **counts: int) -> Path:
    """Random images in class folders: ``folder_of(path, x=4, y=4)``."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    for k, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng([k, i]).integers(0, 255, (*size, *channels), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"x": 9}, "images: 1 class; must be at least 2 classes; add a folder of other images"),
        ({"x": 1, "y": 1}, "has no validation split, which --select-weights best-loss needs; add images (4 of a class"),
        ({"x": 6, "y": 6, "option": ("--in-channels", "4")}, "--in-channels is 4; must be from 0 to 3"),
        ({"x": 6, "y": 6, "option": ("--image-size", "96")}, "--image-size is 96; must be 63, as starter has it"),
    ],
)
def test_images_that_the_starter_cannot_learn_from(settings, message, starter, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    option = settings.pop("option", ())
    images = folder_of(tmp_path / "images", **settings)
    words = ["train", str(images), "--output-dir", str(tmp_path / "run"), "--init-from", "starter", *option]
    assert cli.run([*words, "--epochs", "1", "--no-report", "--device", "cpu"]) in (1, 2)
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("alexnet: ")]
    assert len(error) == 1 and message in error[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "L", "x": 4, "y": 4},
        {"mode": "RGBA", "x": 4, "y": 4, "z": 1},
        {"size": (3, 2), "a": 5, "b": 5},
    ],
)
def test_the_starter_learns_from_few_and_odd_images(settings, starter, tmp_path):
    """Gray, transparent and tiny images, four of a class, one of a class, names of the starter's own classes."""
    images = folder_of(tmp_path / "images", **settings)
    options = api.DataOptions(cache=tmp_path / "cache")
    before = {path: path.read_bytes() for path in starter.rglob("*") if path.is_file()}
    changes = {"epochs": 1, "batch_size": 8, "progressive_size": 0}
    result = api.train(images, run=tmp_path / "run", options=options, device="cpu", **changes)
    classes = tuple(name for name in settings if name not in ("mode", "size"))
    assert Bundle.load(result.bundle).classes == classes
    assert json.loads((result.folder / "run.json").read_text())["from"]["fresh"] == "fc8"
    assert {path: path.read_bytes() for path in starter.rglob("*") if path.is_file()} == before


def test_the_starter_has_its_name_in_every_command(starter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert api.load("starter").classes == ("a", "b", "c")
    Path("starter").mkdir()  # a folder of images, say
    assert api.load("starter").classes == ("a", "b", "c")
    shutil.copytree(starter, "starter/bundle")  # a run of one's own goes before
    assert find_bundle("starter") == Path("starter/bundle")


def test_what_is_set_stays_with_few_epochs():
    assert set(for_few_epochs(())) == {
        "mixup_prob", "cutmix_prob", "label_smoothing", "min_crop_scale", "progressive_size",
    }  # fmt: skip
    set_by_the_user = ("mixup_alpha", "cutmix_prob", "progressive_fraction", "crop")
    assert set(for_few_epochs(set_by_the_user)) == {"label_smoothing"}


def test_fine_tuning_has_a_recipe_of_its_own(starter, tmp_path):
    for k, name in enumerate("xy"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng([k, i]).integers(0, 255, (80, 80, 3), np.uint8)
            (tmp_path / "images" / name / f"{i}.png").write_bytes(encode_png(pixels))
    lines = []
    options = api.DataOptions(cache=tmp_path / "cache", log=lines.append)
    changes = {"epochs": 2, "batch_size": 8, "progressive_size": 0}
    result = api.train(tmp_path / "images", run=tmp_path / "run", options=options, device="cpu", **changes)
    assert (result.recipe.recipe, result.recipe.first_layer_lr_mult, result.recipe.stored_size) == ("finetune", 0.3, 72)
    assert lines[-2].startswith("initial weights: the starter (alexnet trained on 3 classes)")
    assert json.loads((result.folder / "run.json").read_text())["from"]["name"] == "starter"
    weaker = {"mixup_prob": 0.0, "cutmix_prob": 0.0, "label_smoothing": 0.0, "min_crop_scale": 0.4}
    assert {name: getattr(result.recipe, name) for name in weaker} == weaker
    assert lines[-1] == (
        "fewer than 10 epochs, so weaker augmentation: "
        "--mixup-prob 0 --cutmix-prob 0 --label-smoothing 0 --min-crop-scale 0.4"
    )
    named = api.train(
        tmp_path / "images", "finetune", run=tmp_path / "named", options=options, device="cpu", init_from="starter",
        **changes,
    )  # fmt: skip
    assert named.recipe == get_recipe("finetune").replace(
        **changes, stored_size=72, image_size=named.recipe.image_size, model=named.recipe.model,
        initialization=named.recipe.initialization, mean=named.recipe.mean, divide=named.recipe.divide,
        divide_std=named.recipe.divide_std, fit=named.recipe.fit, in_channels=named.recipe.in_channels,
        precision=named.recipe.precision, convolution=named.recipe.convolution,
    )  # fmt: skip
    scratch = api.train(
        tmp_path / "images", run=tmp_path / "scratch", options=options, device="cpu", init_from="scratch",
        model="lenet5", **changes | {"epochs": 1},
    )  # fmt: skip
    assert (scratch.recipe.recipe, lines[-1]) == ("lenet5", "initial weights: random, by --init-from scratch")
