"""Saved and loaded bit for bit; whatever is changed, missing or foreign is refused by name."""

import dataclasses
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from alexnet.bundle import Bundle, ReferenceSample, find_bundle
from alexnet.data.decode import decode, encode_png
from alexnet.data.store import Store
from alexnet.errors import BundleError
from alexnet.evaluation.metrics import Scores
from alexnet.export.classifier import Classifier
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model
from alexnet.models.network import Network
from alexnet.recipe import get_recipe
from alexnet.schema import checksum_of


def make(store: Store) -> Bundle:
    recipe = get_recipe("lenet5").replace(mean="image")
    normalization = Normalization(
        torch.from_numpy(store.mean_image),
        torch.tensor(store.color_std).float(),
        torch.tensor(store.color_axes).float(),
        torch.tensor(80.0),
    )
    bare = Bundle(
        network=create_model("lenet5", generator=torch.Generator().manual_seed(0)),
        classes=store.classes,
        normalization=normalization,
        stored_size=32,
        fit="crop",
        recipe=recipe.to_dict(),
        metrics={"test": Scores("test", 1, 50, 25, 50, 1.5, torch.ones(10, 10), 2.0).to_dict()},
        initialization="own",
        data={"name": "digits", "counts": {"train": 160}},
    )
    images = store.split("test").gather(np.arange(2))
    expected = Classifier(bare).probabilities(list(images)).tolist()
    reference = [ReferenceSample(f"{i:02d}", encode_png(images[i]), expected[i]) for i in range(2)]
    return dataclasses.replace(bare, reference_samples=reference)


@pytest.fixture
def bundle(digits) -> Bundle:
    return make(digits)


@pytest.fixture
def saved(bundle, tmp_path) -> Path:
    return bundle.save(tmp_path / "bundle")


FILES = [
    "README.md",
    "config.json",
    "mean.safetensors",
    "model.safetensors",
    "reference/00.png",
    "reference/01.png",
    "reference/expected.json",
]


def test_a_bundle_comes_back_bit_for_bit(bundle, saved):
    assert sorted(str(p.relative_to(saved)) for p in saved.rglob("*") if p.is_file()) == FILES
    found = Bundle.load(saved)
    before, after = bundle.network.state_dict(), found.network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name, value in bundle.normalization.tensors().items():
        assert torch.equal(getattr(found.normalization, name), value)
    for field in ("classes", "stored_size", "fit", "recipe", "metrics", "initialization", "data", "reference_samples"):
        assert getattr(found, field) == getattr(bundle, field), field
    assert (found.network.name, found.image_size, found.network.in_channels) == ("lenet5", 32, 1)
    assert not found.network.training
    again = found.save(saved.parent / "again")
    assert all((again / name).read_bytes() == (saved / name).read_bytes() for name in FILES)


def test_a_mean_that_does_not_follow_and_a_divisor_a_channel_come_back(bundle, tmp_path):
    center = dataclasses.replace(
        bundle.normalization,
        mean=torch.ones(32, 32, 3),
        divide=torch.tensor([50.0, 60.0, 70.0]),
        mean_follows_crop=False,
    )
    path = dataclasses.replace(bundle, normalization=center).save(tmp_path / "bundle")
    found = Bundle.load(path).normalization
    assert (found.mean_follows_crop, found.divide.tolist(), found.mean.shape) == (
        False,
        [50.0, 60.0, 70.0],
        (32, 32, 3),
    )
    said = json.loads((path / "config.json").read_text())["preprocessing"]
    assert (said["subtract"], said["divide"]) == ("center of the mean image", [50.0, 60.0, 70.0])


def test_the_reference_images_are_answered_as_expected(bundle, saved):
    found = Bundle.load(saved)
    p = Classifier(found).probabilities([reference.png for reference in found.reference_samples])
    assert np.array_equal(p, np.array([reference.probabilities for reference in bundle.reference_samples], np.float32))
    assert [decode(reference.png).shape for reference in found.reference_samples] == [(32, 32, 3)] * 2


def test_a_bundle_without_reference_images_or_numbers(bundle, tmp_path):
    bare = dataclasses.replace(bundle, reference_samples=(), metrics={}, recipe={}, data={})
    assert Bundle.load(bare.save(tmp_path / "bare")).reference_samples == []


def listed(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())


def test_saving_again_replaces_the_old_bundle_and_keeps_what_is_not_of_it(bundle, saved, tmp_path):
    for name in ("bundle.old", "bundle.partial", "bundle.tmp"):  # the user's own
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    (saved / "notes.txt").write_text("mine")
    (saved / "reference" / "mine.png").write_text("mine")
    (saved / ".git" / "objects").mkdir(parents=True)
    (saved / ".git" / "objects" / "a1").write_text("mine")
    (saved / "link").symlink_to("nowhere")
    (saved / "folder").symlink_to(tmp_path / "bundle.old")
    changed = dataclasses.replace(bundle, reference_samples=bundle.reference_samples[:1], initialization="paper")
    assert changed.save(saved) == saved
    found = Bundle.load(saved)
    assert found.initialization == "paper" and len(found.reference_samples) == 1
    own = [name for name in FILES if name != "reference/01.png"]
    others = [".git/objects/a1", "folder", "reference/mine.png", "link", "notes.txt"]
    assert listed(saved) == sorted([*own, *others])
    assert listed(tmp_path / "bundle.old") == ["thesis.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "bundle.old", "bundle.partial", "bundle.tmp"]


@pytest.mark.parametrize("name", ["thesis.txt", "README.md", "config.json", "model.safetensors", "sub/thesis.txt"])
def test_a_folder_that_is_no_bundle_is_refused_and_unchanged(bundle, tmp_path, name):
    folder = tmp_path / "papers"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text('{"format": "mine"}')
    with pytest.raises(BundleError, match=r"exists and is not a bundle .*choose another folder"):
        bundle.save(folder)
    assert listed(folder) == [name] and (folder / name).read_text() == '{"format": "mine"}'
    assert [p.name for p in tmp_path.iterdir()] == ["papers"]


def test_other_places_to_save_to(bundle, saved, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        bundle.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    Bundle.load(bundle.save(tmp_path / "empty"))
    Bundle.load(bundle.save(tmp_path / "new" / "deep" / "bundle"))
    (tmp_path / "link").symlink_to("bundle")
    dataclasses.replace(bundle, initialization="paper").save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and Bundle.load(saved).initialization == "paper"
    dataclasses.replace(bundle, reference_samples=()).save(saved)
    (saved / "reference" / "00.png").write_text("mine")
    with pytest.raises(BundleError, match=r"reference/00\.png, which is not part of the bundle .*move it away"):
        bundle.save(saved)
    assert (saved / "reference" / "00.png").read_text() == "mine" and Bundle.load(saved).reference_samples == []
    assert not list(tmp_path.glob(".*"))


KILLS = """
import ctypes, os, sys
from pathlib import Path
from alexnet.bundle import Bundle, find_bundle
from alexnet.export.classifier import Classifier
path, exchange = Path(sys.argv[1]), sys.argv[2] == "exchange"
old = Bundle.load(path)
new = Bundle.load(path.with_name("new"))
CALLS = ("open", "os.", "shutil.")

def killed_at(number):
    child = os.fork()
    if child == 0:
        if not exchange:
            ctypes.CDLL = lambda *_, **__: object()  # a C library without renameat2
        left = [number]
        def hook(event, args):
            if event.startswith(CALLS):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
        sys.addaudithook(hook)
        new.save(path)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

number, seen = 0, []
while killed_at(number):
    seen.append(Bundle.load(path).initialization)
    assert Bundle.load(find_bundle(path.parent)).initialization == seen[-1]
    kept = path if path.exists() else find_bundle(path.parent)
    assert (kept / "notes.txt").read_text() == "mine"
    if seen[-1] == "paper":
        old.save(path)  # from the beginning
    number += 1
assert {"own", "paper"} == set(seen) and number > 40, seen
assert Bundle.load(path).initialization == "paper"
assert sorted(p.name for p in path.parent.iterdir()) == ["bundle", "new"]
"""


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_kill_at_any_moment_leaves_one_whole_bundle(bundle, saved, way):
    (saved / "notes.txt").write_text("mine")
    dataclasses.replace(bundle, initialization="paper").save(saved.with_name("new"))
    words = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", KILLS, str(saved), way]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


def test_a_bundle_that_is_replaced_while_it_is_read_is_read_again(bundle, saved, monkeypatch):
    from alexnet.bundle import bundle as whole

    read = whole.read_reference

    def slow(path, *rest):
        monkeypatch.setattr(whole, "read_reference", read)
        dataclasses.replace(bundle, reference_samples=(), initialization="paper").save(saved)
        return read(path, *rest)

    monkeypatch.setattr(whole, "read_reference", slow)
    assert Bundle.load(saved).initialization == "paper"


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_have_the_rights_that_the_umask_leaves(bundle, tmp_path, mask):
    before = os.umask(mask)
    try:
        path = bundle.save(tmp_path / "bundle")
        modes = {stat.S_IMODE(p.stat().st_mode) for p in path.rglob("*") if p.is_file()}
        folders = {stat.S_IMODE(p.stat().st_mode) for p in [path, path / "reference"]}
    finally:
        os.umask(before)
    assert (modes, folders) == ({0o666 & ~mask}, {0o777 & ~mask})


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_changed_byte_is_refused_by_the_file_s_name(saved, name, where):
    path = saved / name
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        Bundle.load(saved)
    assert name in str(caught.value) or name == "config.json"
    assert str(saved) in str(caught.value)


def same_values(a: bytes, b: bytes) -> bool:
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


def test_every_changed_byte_of_config_json_is_refused(saved):
    """Class names and sizes stand there: one wrong letter must not become an answer."""
    path = saved / "config.json"
    data = path.read_bytes()
    name = data.index(b'"reference/00.png"') + 9  # then it says reference/01.png, which stands there already
    for at in (name, *range(0, len(data), 41)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        if changed.isascii() and same_values(changed, data):
            continue  # the 17th digit of a number
        path.write_bytes(changed)
        with pytest.raises(BundleError):
            Bundle.load(saved)
    path.write_bytes(data.replace(b'"crop"', b'"pad"'))
    with pytest.raises(BundleError, match=r"config\.json has changed: SHA-256"):
        Bundle.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(BundleError) as caught:
        Bundle.load(saved)
    assert name in str(caught.value)
    assert "No such file" in str(caught.value)


def edited(saved: Path, **changes: object) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"version": 3}, "has version 3; must be 1 or 2; install a newer alexnet"),
        ({"format": "other"}, "config.json is not of format alexnet-bundle; must be a bundle that training wrote"),
        ({"sha256": {}}, "config.json is damaged: it lacks SHA-256 of the files; use another copy"),
        ({"sha256": None}, "config.json is damaged: it lacks SHA-256 of the files; use another copy"),
    ],
)
def test_what_is_no_bundle_of_ours(saved, changes, text):
    edited(saved, **changes)
    with pytest.raises(BundleError) as caught:
        Bundle.load(saved)
    assert str(caught.value).endswith(text)


def test_weights_of_another_network_do_not_hold_together(bundle, tmp_path):
    saved = dataclasses.replace(bundle, classes=("a", "b")).save(tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"does not hold together: .*size mismatch"):
        Bundle.load(saved)


def test_config_says_all_of_the_preprocessing(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["preprocessing"] == {
        "decode": "RGB, 8 bits, EXIF rotation applied, transparency over white",
        "stored_size": 32,
        "fit": "crop",
        "view": "center",
        "image_size": 32,
        "subtract": "mean image",
        "divide": 80.0,
        "gray": True,
    }
    assert set(config["versions"]) == {"alexnet", "torch", "python"}
    card = (saved / "README.md").read_text()
    assert "| test, 1 crop | 50 | 50.00 % | 100.00 % | 1.5000 |" in card
    assert "lenet5 for 10 classes" in card


def test_the_card_says_how_sure_and_what_chose_what(bundle, tmp_path):
    scores = {"crops": 1, "count": 50, "top1": 0.5, "top1_interval": [0.366, 0.634], "top5": 1.0, "loss": 1.5}
    data = {"name": "digits", "counts": {"train": 160, "test": 50}, "kept": "epoch 3, the lowest validation error"}
    fitted = {"temperature": 1.25, "fitted_on": "validation", "count": 40, "thresholds": {"0.1": 0.9, "0.05": 0.95}}
    told = dataclasses.replace(bundle, metrics={"test": scores}, data=data, recipe={"seed": 7}, calibration=fitted)
    card = (told.save(tmp_path / "bundle") / "README.md").read_text()
    for line in (
        "| 1.5000 | 36.6 to 63.4 % |",
        "- Images: 160 train, 50 test.",
        "- The weights are those of epoch 3",
        "- Temperature 1.250, fitted on 40 validation images.",
        "- Seed 7;",
        "of 0.950 or more have at most 5 % error",
    ):
        assert line in card, line
    assert card.index("at most 5 %") < card.index("at most 10 %")
    unscaled = dataclasses.replace(told, calibration=fitted | {"temperature": 1.0}).save(tmp_path / "unscaled")
    assert "- No temperature improved calibration" in (unscaled / "README.md").read_text()
    bare = dataclasses.replace(bundle, metrics={}, data={}, recipe={}).save(tmp_path / "bare") / "README.md"
    assert "Temperature" not in bare.read_text() and "Images:" not in bare.read_text()


# Classes


@pytest.mark.parametrize(
    ("classes", "difference"),
    [
        ("abc", None),
        ("ab", "it lacks c"),
        ("abcde", "it has d, e besides"),
        ("abx", "it lacks c; it has x besides"),
        ("acb", "the same classes in another order"),
    ],
)
def test_classes_that_differ(bundle, classes, difference):
    three = dataclasses.replace(bundle, classes=("a", "b", "c"))
    if difference is None:
        three.same_classes(list(classes), "photos")
        return
    with pytest.raises(BundleError) as caught:
        three.same_classes(list(classes), "photos")
    assert str(caught.value) == (
        f"the classes of photos are not those of the classifier: {difference}; must be the 3 classes that it was "
        "trained on; evaluate on data with the same class folders"
    )


# Where it is


def test_find(saved, tmp_path):
    assert find_bundle(saved) == saved
    assert find_bundle(str(tmp_path)) == saved  # a run folder
    shutil.rmtree(saved)
    with pytest.raises(BundleError, match=r"holds no bundle; must be a run folder or a bundle; give the folder"):
        find_bundle(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(BundleError, match=r"finish the run: alexnet train --resume "):
        find_bundle(tmp_path)
    with pytest.raises(BundleError, match=r"there is no .*nowhere; must be a run folder or a bundle"):
        find_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is no bundle: "):
        Bundle.load(tmp_path)


def test_opening_draws_nothing(bundle, tmp_path, monkeypatch):
    """Sixty million random numbers, and the memory for them, only to be replaced."""
    network = create_model("cifar_80sec")
    path = dataclasses.replace(bundle, network=network).save(tmp_path / "bundle")
    monkeypatch.setattr(Network, "initialize", lambda self, generator=None: pytest.fail("weights were drawn"))
    found = dict(Bundle.load(path).network.named_parameters())
    assert all(torch.equal(found[name], right) for name, right in network.named_parameters())
    assert all(parameter.requires_grad for parameter in found.values())


# Bundles that somebody edited and protected by a checksum again: every hash is right


def resealed(saved: Path, config: dict | None = None, **files: bytes) -> Path:
    """The bundle with other entries in its config and other files, all hashes right."""
    names = {"mean": "mean.safetensors", "model": "model.safetensors", "expected": "reference/expected.json"}
    content = json.loads((saved / "config.json").read_text())
    for name, data in files.items():
        (saved / names[name]).write_bytes(data)
        content["sha256"][names[name]] = hashlib.sha256(data).hexdigest()
    for place, value in (config or {}).items():
        *path, last = place.split("/")
        entry = content
        for part in path:
            entry = entry[part]
        entry[last] = value
    content["sha256"]["config.json"] = checksum_of(content, "sha256")
    (saved / "config.json").write_text(json.dumps(content))
    return saved


def refused(saved: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.load(saved)
    text = str(caught.value)
    assert text.isprintable() and str(saved) in text
    return text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["c1.weight", "f6.bias"])
def test_weights_that_are_not_finite_are_refused(bundle, saved, name, value):
    tensors = {key: tensor.clone().contiguous() for key, tensor in bundle.network.state_dict().items()}
    tensors[name].flatten()[0] = value
    assert f"{name} has values that are NaN or Inf" in refused(resealed(saved, model=safetensors.torch.save(tensors)))


def test_weights_that_float32_can_not_hold_are_refused(bundle, saved):
    tensors = {key: tensor.double().contiguous() for key, tensor in bundle.network.state_dict().items()}
    tensors["c1.weight"].flatten()[0] = 1e300
    assert "c1.weight has values that are NaN or Inf" in refused(resealed(saved, model=safetensors.torch.save(tensors)))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"divide": torch.tensor(0.0)}, "divide is 0.0"),
        ({"divide": torch.tensor(-1.0)}, "divide is -1.0"),
        ({"divide": torch.tensor(1e-40)}, "divide is 9.9"),
        ({"divide": torch.tensor([1.0, 0.0, 1.0])}, "divide is [1.0, 0.0, 1.0]"),
        ({"divide": torch.ones(2)}, "divide is [1.0, 1.0]"),
        ({"divide": torch.tensor(float("nan"))}, "divide has values that are NaN"),
        ({"mean": torch.full((32, 32, 3), float("inf"))}, "mean has values that are NaN or Inf"),
        ({"mean": torch.zeros(31, 31, 3)}, "do not fit the preprocessing"),
        ({"mean": torch.zeros(3)}, "do not fit the preprocessing"),
        ({"mean": torch.zeros(())}, "do not fit the preprocessing"),
        ({"color_std": torch.zeros(4)}, "do not fit the preprocessing"),
        ({"color_axes": torch.full((3, 3), float("nan"))}, "color_axes has values that are NaN"),
        ({"extra": torch.zeros(3)}, "mean.safetensors holds color_axes, color_std, divide, extra, mean"),
    ],
)
def test_statistics_that_give_no_numbers_are_refused(bundle, saved, changes, text):
    tensors = bundle.normalization.tensors() | changes
    assert text in refused(resealed(saved, mean=safetensors.torch.save(tensors)))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"preprocessing/stored_size": "32"}, "Expected `int`, got `str` - at `$.preprocessing.stored_size`"),
        ({"preprocessing/stored_size": 32.5}, "Expected `int`, got `float`"),
        ({"preprocessing/stored_size": 20000}, "`$.preprocessing.stored_size`"),
        ({"preprocessing/stored_size": 0}, "`$.preprocessing.stored_size`"),
        ({"preprocessing/stored_size": True}, "Expected `int`, got `bool`"),
        ({"preprocessing/fit": "stretch"}, "`$.preprocessing.fit`"),
        ({"preprocessing/subtract": "nothing"}, "`$.preprocessing.subtract`"),
        ({"preprocessing": []}, "Expected `object`, got `array` - at `$.preprocessing`"),
        ({"model/image_size": 20000}, "`$.model.image_size`"),
        ({"model/image_size": "32"}, "`$.model.image_size`"),
        ({"model/in_channels": 2}, "`$.model.in_channels`"),
        ({"model/name": 3}, "`$.model.name`"),
        ({"model/name": "nosuch"}, "model 'nosuch' does not exist"),
        ({"model/layer_files": {"name": "x"}}, "`$.model.layer_files`"),
        ({"model/initialization": []}, "`$.model.initialization`"),
        ({"classes": "ab"}, "Expected `array`, got `str` - at `$.classes`"),
        ({"classes": None}, "got `null` - at `$.classes`"),
        ({"classes": [1, 2]}, "Expected `str`, got `int`"),
        ({"classes": []}, "0 classes"),
        ({"classes": ["a"] * 10}, "classes 0 and 1 have the same name 'a'"),
        ({"classes": ["\x1b[2J", *"abcdefghi"]}, "class 0 is '\\x1b[2J': control and text-direction"),
        ({"classes": ["a\u202eb", *"bcdefghij"]}, "class 0 is 'a\\u202eb'"),
        ({"recipe": 3}, "`$.recipe`"),
        ({"metrics": []}, "`$.metrics`"),
        ({"data": "x"}, "`$.data`"),
        ({"calibration": {"temperature": 0}}, "`$.calibration.temperature`"),
        ({"calibration": {"temperature": "1"}}, "`$.calibration.temperature`"),
        ({"calibration": {"thresholds": {"0.1": 2}}}, "calibration.thresholds"),
        ({"calibration": {"thresholds": {"x": 0.5}}}, "threshold for 'x'"),
        ({"calibration": {"thresholds": {"nan": 0.5}}}, "is damaged"),
        ({"calibration": []}, "`$.calibration`"),
        ({"version": "1"}, "has version '1'"),
        ({"version": True}, "has version True"),
        ({"version": [1]}, "has version [1]"),
    ],
)
def test_a_config_that_is_not_of_the_schema_is_refused(saved, config, text):
    assert text in refused(resealed(saved, config))


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200_000 + b"]" * 200_000,
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
        b"\xff\xfe",
        b"null",
        b"[]",
        b"",
        b'{"format": "alexnet-bundle", "version": 1, "x": NaN}',
        b'{"format": "alexnet-bundle", "version": 1, "x": 1e999}',
    ],
)
def test_a_config_that_is_no_json_of_ours_is_refused(saved, data):
    (saved / "config.json").write_bytes(data)
    refused(saved)


ROW = [0.1] * 10


@pytest.mark.parametrize(
    "expected",
    [
        {"00.png": ROW[:9]},
        {"00.png": [*ROW, 0.0]},
        {"00.png": []},
        {"00.png": [ROW]},
        {"00.png": {"a": 1}},
        {"00.png": ["0.1"] * 10},
        {"00.png": [2.0] * 10},
        {"00.png": [-0.1] * 10},
        {"00.png": None},
        [ROW],
        None,
        3,
        {"02.png": ROW},
        {"../reference/00.png": ROW},
        {"expected.json": ROW},
        {"\x00.png": ROW},
    ],
)
def test_reference_probabilities_that_can_not_be_are_refused(saved, expected):
    refused(resealed(saved, expected=json.dumps(expected).encode()))


def test_reference_probabilities_nested_deeply_are_refused(saved):
    refused(resealed(saved, expected=b"[" * 200_000 + b"]" * 200_000))


@pytest.mark.parametrize(
    "name",
    [
        "/dev/zero",
        "../x",
        "/etc/passwd",
        "a\0b",
        "reference/../../x",
        "reference",
        "",
        "reference/a/b.png",
        "x.txt",
        "a\nb",
    ],
)
def test_a_table_of_hashes_names_files_of_a_bundle_only(saved, name):
    content = json.loads((saved / "config.json").read_text())
    assert "is damaged" in refused(resealed(saved, {"sha256": content["sha256"] | {name: "0" * 64}}))


@pytest.mark.parametrize("sha256", ["0" * 63, "Z" * 64, "", 3, None, ["0" * 64]])
def test_a_table_of_hashes_holds_hashes_only(saved, sha256):
    edited(saved, sha256=json.loads((saved / "config.json").read_text())["sha256"] | {"README.md": sha256})
    assert "is damaged" in refused(saved)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["out", "/dev/zero", "pipe", "folder", "loop"])
def test_a_file_that_is_a_link_out_or_a_pipe_is_refused(saved, tmp_path, name, kind):
    path = saved / name
    path.rename(tmp_path / "outside")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"out": tmp_path / "outside", "loop": path}.get(kind, kind))
    text = refused(saved)
    assert name in text
    assert "link out of the folder" in text or "not a regular file" in text or kind == "loop"


def test_links_inside_and_a_link_to_the_bundle_itself_are_fine(saved, tmp_path):
    (saved / "weights").mkdir()
    (saved / "model.safetensors").rename(saved / "weights" / "x")
    (saved / "model.safetensors").symlink_to("weights/x")
    (tmp_path / "link").symlink_to(saved)
    assert Bundle.load(tmp_path / "link").classes


def test_names_that_a_bundle_can_not_have_are_not_written(bundle, tmp_path):
    for change in (
        {"classes": ("a", "b\x1b")},
        {"reference_samples": [ReferenceSample("../x", b"", [])]},
        {"reference_samples": [ReferenceSample("a/b", b"", [])]},
    ):
        with pytest.raises(BundleError, match="can not be saved with"):
            dataclasses.replace(bundle, **change).save(tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
