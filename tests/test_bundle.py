"""Saved and loaded bit for bit; whatever is changed, missing or foreign is refused by name."""

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet.batches.transforms import Statistics
from alexnet.bundle import Bundle, Golden, find
from alexnet.data.pixels import decode, encode_png
from alexnet.data.store import Store
from alexnet.deploy.classifier import Classifier
from alexnet.errors import BundleError
from alexnet.evaluation.metrics import Scores
from alexnet.models import create_model
from alexnet.models.network import Network
from alexnet.recipe import named


def make(store: Store) -> Bundle:
    recipe = named("lenet5").replace(mean="image")
    statistics = Statistics(
        torch.from_numpy(store.mean_image),
        torch.tensor(store.color_std).float(),
        torch.tensor(store.color_axes).float(),
        torch.tensor(80.0),
    )
    bare = Bundle(
        network=create_model("lenet5", generator=torch.Generator().manual_seed(0)),
        classes=store.classes,
        statistics=statistics,
        stored_size=32,
        fit="crop",
        recipe=recipe.to_dict(),
        metrics={"test": Scores("test", 1, 50, 25, 50, 1.5, torch.ones(10, 10), 2.0).to_dict()},
        initialization="own",
        data={"name": "digits", "counts": {"train": 160}},
    )
    pictures = store.split("test").gather(np.arange(2))
    expected = Classifier(bare).probabilities(list(pictures)).tolist()
    golden = [Golden(f"{i:02d}", encode_png(pictures[i]), expected[i]) for i in range(2)]
    return dataclasses.replace(bare, golden=golden)


@pytest.fixture
def bundle(digits) -> Bundle:
    return make(digits)


@pytest.fixture
def saved(bundle, tmp_path) -> Path:
    return bundle.save(tmp_path / "bundle")


FILES = [
    "README.md", "config.json", "golden/00.png", "golden/01.png", "golden/expected.json", "mean.safetensors",
    "model.safetensors",
]  # fmt: skip


def test_a_bundle_comes_back_bit_for_bit(bundle, saved):
    assert sorted(str(p.relative_to(saved)) for p in saved.rglob("*") if p.is_file()) == FILES
    found = Bundle.load(saved)
    before, after = bundle.network.state_dict(), found.network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name, value in bundle.statistics.tensors().items():
        assert torch.equal(getattr(found.statistics, name), value)
    for field in ("classes", "stored_size", "fit", "recipe", "metrics", "initialization", "data", "golden"):
        assert getattr(found, field) == getattr(bundle, field), field
    assert (found.network.name, found.image_size, found.network.in_channels) == ("lenet5", 32, 1)
    assert not found.network.training
    again = found.save(saved.parent / "again")
    assert all((again / name).read_bytes() == (saved / name).read_bytes() for name in FILES)


def test_a_mean_that_does_not_follow_and_a_divisor_a_channel_come_back(bundle, tmp_path):
    center = dataclasses.replace(
        bundle.statistics, mean=torch.ones(32, 32, 3), divide=torch.tensor([50.0, 60.0, 70.0]), follows=False
    )
    path = dataclasses.replace(bundle, statistics=center).save(tmp_path / "bundle")
    found = Bundle.load(path).statistics
    assert (found.follows, found.divide.tolist(), found.mean.shape) == (False, [50.0, 60.0, 70.0], (32, 32, 3))
    said = json.loads((path / "config.json").read_text())["preprocessing"]
    assert (said["subtract"], said["divide"]) == ("center of the mean image", [50.0, 60.0, 70.0])


def test_the_golden_pictures_are_answered_as_expected(bundle, saved):
    found = Bundle.load(saved)
    p = Classifier(found).probabilities([golden.png for golden in found.golden])
    assert np.array_equal(p, np.array([golden.probabilities for golden in bundle.golden], np.float32))
    assert [decode(golden.png).shape for golden in found.golden] == [(32, 32, 3)] * 2


def test_a_bundle_without_golden_pictures_or_numbers(bundle, tmp_path):
    bare = dataclasses.replace(bundle, golden=(), metrics={}, recipe={}, data={})
    assert Bundle.load(bare.save(tmp_path / "bare")).golden == []


def listed(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())


def test_saving_again_replaces_the_old_bundle_and_keeps_what_is_not_of_it(bundle, saved, tmp_path):
    for name in ("bundle.old", "bundle.partial", "bundle.tmp"):  # the user's own
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    (saved / "notes.txt").write_text("mine")
    (saved / "golden" / "mine.png").write_text("mine")
    (saved / ".git" / "objects").mkdir(parents=True)
    (saved / ".git" / "objects" / "a1").write_text("mine")
    (saved / "link").symlink_to("nowhere")
    (saved / "folder").symlink_to(tmp_path / "bundle.old")
    changed = dataclasses.replace(bundle, golden=bundle.golden[:1], initialization="paper")
    assert changed.save(saved) == saved
    found = Bundle.load(saved)
    assert found.initialization == "paper" and len(found.golden) == 1
    own = [name for name in FILES if name != "golden/01.png"]
    others = [".git/objects/a1", "folder", "golden/mine.png", "link", "notes.txt"]
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
    dataclasses.replace(bundle, golden=()).save(saved)
    (saved / "golden" / "00.png").write_text("mine")
    with pytest.raises(BundleError, match=r"golden/00\.png, which is not part of the bundle .*move it away"):
        bundle.save(saved)
    assert (saved / "golden" / "00.png").read_text() == "mine" and Bundle.load(saved).golden == []
    assert not list(tmp_path.glob(".*"))


KILLS = """
import ctypes, os, sys
from pathlib import Path
from alexnet.bundle import Bundle, find
from alexnet.deploy.classifier import Classifier
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
    assert Bundle.load(find(path.parent)).initialization == seen[-1]
    kept = path if path.exists() else find(path.parent)
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
    from alexnet.bundle import whole

    read = whole.read_golden

    def slow(path, *rest):
        monkeypatch.setattr(whole, "read_golden", read)
        dataclasses.replace(bundle, golden=(), initialization="paper").save(saved)
        return read(path, *rest)

    monkeypatch.setattr(whole, "read_golden", slow)
    assert Bundle.load(saved).initialization == "paper"


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_have_the_rights_that_the_umask_leaves(bundle, tmp_path, mask):
    before = os.umask(mask)
    try:
        path = bundle.save(tmp_path / "bundle")
        modes = {stat.S_IMODE(p.stat().st_mode) for p in path.rglob("*") if p.is_file()}
        folders = {stat.S_IMODE(p.stat().st_mode) for p in [path, path / "golden"]}
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
    name = data.index(b'"golden/00.png"') + 9  # then it says golden/01.png, which stands there already
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
        "decode": "RGB, 8 bits, EXIF rotation applied, transparency over white", "stored_size": 32, "fit": "crop",
        "view": "center", "image_size": 32, "subtract": "mean image", "divide": 80.0, "gray": True,
    }  # fmt: skip
    assert set(config["versions"]) == {"alexnet", "torch", "python"}
    card = (saved / "README.md").read_text()
    assert "| test, 1 view | 50 | 50.00 % | 100.00 % | 1.5000 |" in card
    assert "lenet5 for 10 classes" in card


def test_the_card_says_how_sure_and_what_chose_what(bundle, tmp_path):
    scores = {"views": 1, "count": 50, "top1": 0.5, "top1_interval": [0.366, 0.634], "top5": 1.0, "loss": 1.5}
    data = {"name": "digits", "counts": {"train": 160, "test": 50}, "kept": "epoch 3, the lowest validation error"}
    fitted = {"temperature": 1.25, "fitted_on": "validation", "count": 40, "thresholds": {"0.1": 0.9, "0.05": 0.95}}
    told = dataclasses.replace(bundle, metrics={"test": scores}, data=data, recipe={"seed": 7}, calibration=fitted)
    card = (told.save(tmp_path / "bundle") / "README.md").read_text()
    for line in (
        "| 1.5000 | 36.6 to 63.4 % |", "- Pictures: 160 train, 50 test.", "- The weights are those of epoch 3",
        "- Temperature 1.250, found on 40 validation pictures.", "- Seed 7;",
        "of 0.950 or more are wrong for at most 5 %",
    ):  # fmt: skip
        assert line in card, line
    assert card.index("at most 5 %") < card.index("at most 10 %")
    bare = dataclasses.replace(bundle, metrics={}, data={}, recipe={}).save(tmp_path / "bare") / "README.md"
    assert "Temperature" not in bare.read_text() and "Pictures:" not in bare.read_text()


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
    assert find(saved) == saved
    assert find(str(tmp_path)) == saved  # a run folder
    shutil.rmtree(saved)
    with pytest.raises(BundleError, match=r"holds no bundle; must be a run folder or a bundle; give the folder"):
        find(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(BundleError, match=r"finish the run: alexnet train --resume "):
        find(tmp_path)
    with pytest.raises(BundleError, match=r"there is no .*nowhere; must be a run folder or a bundle"):
        find(tmp_path / "nowhere")
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
