"""Prepared once, interrupted anywhere: the same bytes, and nothing half-written is accepted."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from alexnet.data import pixels
from alexnet.data.prepare import check, prepare
from alexnet.data.sources import open_source
from alexnet.data.store import Store
from alexnet.errors import DataError, PictureError

from .conftest import png_bytes

SIZE = 8
SHARD = 4 * SIZE * SIZE * 3  # bytes of four pictures
FEW = {"size": SIZE, "shard_bytes": SHARD, "validation": 0.2, "test": 0.2}


def contents(root) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_folder_becomes_a_store(folder, tmp_path):
    root = folder({"a": 10, "b": 6})
    seen = []
    store = prepare(open_source(root), tmp_path / "s", **FEW, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 16) for done in range(1, 17)]
    assert sum(map(len, store.splits.values())) == 16 and store.skipped == 0 and store.mirror
    assert sorted(path.name for path in store.path.iterdir()) == sorted(
        ["dataset.json", "mean.npy", "skipped.jsonl", "test", "train", "validation"]
    )
    assert not (tmp_path / "s.partial").exists()
    split = store.split("train")
    for index, row in enumerate(split.origins()):
        data = (root / row["origin"]).read_bytes()
        assert row == {"origin": row["origin"], "sha256": hashlib.sha256(data).hexdigest(), "notes": []}
        expected = pixels.fit(pixels.decode(data), SIZE, "crop")
        np.testing.assert_array_equal(split.gather(np.array([index]))[0], expected)
        assert store.classes[split.labels[index]] == row["origin"][0]
    store.verify()
    assert check(open_source(root), store) == []


def test_digits(tmp_path):
    store = prepare(open_source("digits"), tmp_path / "digits", size=8)
    assert not store.mirror and sum(map(len, store.splits.values())) == 1797
    first = store.split("test").origins()[0]["origin"]
    truth = next(p for p in open_source("digits").splits["all"] if p.origin == first)
    np.testing.assert_array_equal(store.split("test").gather(np.array([0]))[0], truth.load())


def test_the_number_of_workers_changes_nothing(folder, tmp_path):
    source = open_source(folder({"a": 10, "b": 6}))
    one = prepare(source, tmp_path / "one", **FEW, workers=1)
    many = prepare(source, tmp_path / "many", **FEW, workers=7)
    assert contents(one.path) == contents(many.path)


@pytest.mark.parametrize("option", [{"size": 9}, {"fit": "pad"}, {"seed": 1}, {"test": 0.4}, {"validation": 0.4}])
def test_every_option_has_an_effect(folder, tmp_path, option):
    source = open_source(folder({"a": 10, "b": 6}))
    plain = prepare(source, tmp_path / "plain", **FEW)
    assert prepare(source, tmp_path / "other", **{**FEW, **option}).fingerprint != plain.fingerprint


# -- bad pictures


def spoil(root):
    """One of each kind of bad picture beside the good ones, class a."""
    (root / "a/empty.jpg").write_bytes(b"")
    (root / "a/one\nbyte.jpg").write_bytes(b"\xff")
    (root / "a/page.jpg").write_bytes(b"<!DOCTYPE html><title>404</title>")
    (root / "a/short.png").write_bytes(png_bytes(3)[:-300])
    (root / "a/link.png").symlink_to("nowhere")
    (root / "a/named.jpg").write_bytes(png_bytes(4))


def test_bad_pictures_are_excluded_and_listed(folder, tmp_path):
    root = folder({"a": 10, "b": 6})
    spoil(root)
    store = prepare(open_source(root), tmp_path / "s", **FEW)
    rows = [json.loads(line) for line in (store.path / "skipped.jsonl").read_text().splitlines()]
    reasons = {row["origin"]: row["reason"] for row in rows}
    assert store.skipped == len(rows) == 5 and sum(map(len, store.splits.values())) == 17
    assert "is empty" in reasons["a/empty.jpg"] and "has only 1 byte" in reasons["a/one\\x0abyte.jpg"]
    assert "looks like HTML" in reasons["a/page.jpg"] and "PNG is truncated" in reasons["a/short.png"]
    assert "can not be read" in reasons["a/link.png"]
    notes = {row["origin"]: row["notes"] for split in store.splits.values() for row in split.origins()}
    assert notes["a/named.jpg"] == ["PNG named .jpg"]
    assert check(open_source(root), store) == []
    store.verify()


def test_exclusion_does_not_move_other_pictures_between_splits(folder, tmp_path):
    root = folder({"a": 10, "b": 6})
    good = prepare(open_source(root), tmp_path / "good", **FEW)
    (root / "a/004.png").write_bytes(b"")
    bad = prepare(open_source(root), tmp_path / "bad", **FEW)
    for name in good.splits:
        first, second = ([row["origin"] for row in store.split(name).origins()] for store in (good, bad))
        assert second == [origin for origin in first if origin != "a/004.png"]


def test_the_first_bad_picture_ends_it_if_asked(folder, tmp_path):
    root = folder({"a": 10, "b": 6})
    (root / "b/page.jpg").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(PictureError, match=r"b/page\.jpg: looks like HTML"):
        prepare(open_source(root), tmp_path / "s", **FEW, bad="fail")
    assert not (tmp_path / "s").exists()


def test_truncated_pictures_by_choice(folder, tmp_path):
    root = folder({"a": 10, "b": 6})
    (root / "a/short.png").write_bytes(png_bytes(3)[:-300])
    store = prepare(open_source(root), tmp_path / "s", **FEW, allow_truncated=True)
    rows = [row for split in store.splits.values() for row in split.origins()]
    assert [row["origin"] for row in rows if row["notes"] == ["truncated"]] == ["a/short.png"]


def test_a_class_without_a_good_training_picture(folder, tmp_path):
    root = folder({"a": 10, "b": 2})
    for path in (root / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"class 'b' has no training picture left \(2 excluded, such as: b/00.*is empty"
    ):
        prepare(open_source(root), tmp_path / "s", size=SIZE, shard_bytes=1)


# -- interrupted

CHILD = """
    import os, signal, sys
    from alexnet.data.prepare import prepare
    from alexnet.data.sources import open_source
    root, path, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
    def progress(done, total):
        if done == stop:
            os.kill(os.getpid(), signal.SIGKILL)
    prepare(open_source(root), path, size=8, shard_bytes=4 * 8 * 8 * 3, validation=0.2, test=0.2, progress=progress)
"""


def killed_at(root, path, stop):
    code = textwrap.dedent(CHILD)
    done = subprocess.run([sys.executable, "-c", code, str(root), str(path), str(stop)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("stops", [(1,), (7,), (5, 12, 13), (16,)])
def test_killed_and_run_again_gives_the_same_bytes(folder, tmp_path, stops):
    root = folder({"a": 10, "b": 6})
    (root / "a/bad.jpg").write_bytes(b"")
    whole = prepare(open_source(root), tmp_path / "whole", **FEW)
    path = tmp_path / "killed"
    for stop in stops:
        killed_at(root, path, stop)
        assert not path.exists() and (tmp_path / "killed.partial").exists()
    seen = []
    store = prepare(open_source(root), path, **FEW, progress=lambda done, total: seen.append(done))
    assert contents(store.path) == contents(whole.path)
    assert seen[-1] == 17 and (stops == (1,) or len(seen) < 17), "finished shards were not done again"


@pytest.mark.parametrize("harm", ["half", "flipped", "gone", "record"])
def test_a_half_shard_is_never_accepted(folder, tmp_path, harm):
    root = folder({"a": 10, "b": 6})
    whole = prepare(open_source(root), tmp_path / "whole", **FEW)
    killed_at(root, tmp_path / "s", 9)
    shard = tmp_path / "s.partial" / "train" / "images-00000.npy"
    data = shard.read_bytes()
    if harm == "half":
        shard.write_bytes(data[: len(data) // 2])
    elif harm == "flipped":
        shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "gone":
        shard.unlink()
    else:
        (tmp_path / "s.partial" / "records" / "train-00000.json").write_text('{"sha256": "')
    (tmp_path / "s.partial" / "train" / "images-00009.npy.tmp").write_bytes(b"stale")
    assert contents(prepare(open_source(root), tmp_path / "s", **FEW).path) == contents(whole.path)


def test_other_settings_start_over_and_say_so(folder, tmp_path, caplog):
    root = folder({"a": 10, "b": 6})
    killed_at(root, tmp_path / "s", 9)
    store = prepare(open_source(root), tmp_path / "s", **{**FEW, "seed": 5})
    assert "settings differ from the interrupted run; starting over" in caplog.text
    assert contents(store.path) == contents(prepare(open_source(root), tmp_path / "t", **{**FEW, "seed": 5}).path)


def test_folders_of_others_are_left_alone(folder, tmp_path):
    source = open_source(folder({"a": 10, "b": 6}))
    (tmp_path / "s.partial").mkdir()
    (tmp_path / "s.partial" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"holds 'thesis\.tex', not made here"):
        prepare(source, tmp_path / "s", **FEW)
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="mine: exists and is no store; must be a new name; choose another path"):
        prepare(source, tmp_path / "mine", **FEW)
    assert (tmp_path / "s.partial" / "thesis.tex").exists()


def test_a_finished_store_is_returned_or_refused(folder, tmp_path):
    root = folder({"a": 10, "b": 6})
    store = prepare(open_source(root), tmp_path / "s", **FEW)
    (store.path / "lock").touch()  # as a kill between the last rename and the sweep leaves it
    before = (store.path / "dataset.json").stat().st_mtime_ns
    assert prepare(open_source(root), tmp_path / "s", **FEW).fingerprint == store.fingerprint
    assert (store.path / "dataset.json").stat().st_mtime_ns == before and not (store.path / "lock").exists()
    with pytest.raises(DataError, match="is a store of other size, fit; must be the same source and settings"):
        prepare(open_source(root), tmp_path / "s", **{**FEW, "size": 9, "fit": "pad"})
    os.utime(root / "a/000.png", ns=(1, 1))
    with pytest.raises(DataError, match="is a store of other source;"):
        prepare(open_source(root), tmp_path / "s", **FEW)


def test_two_processes_do_not_prepare_one_store(folder, tmp_path):
    source = open_source(folder({"a": 10, "b": 6}))
    inside, go, results = threading.Event(), threading.Event(), []

    def wait(done, total):
        inside.set()
        go.wait(20)

    first = threading.Thread(target=lambda: results.append(prepare(source, tmp_path / "s", **FEW, progress=wait)))
    first.start()
    assert inside.wait(20)
    with pytest.raises(DataError, match=r"s\.partial: another process is preparing this store"):
        prepare(source, tmp_path / "s", **FEW)
    go.set()
    first.join(20)
    assert isinstance(results[0], Store)


# -- the disk


def test_a_full_disk_keeps_the_finished_shards(folder, tmp_path):
    """A limit on the size of one file fails a write in the middle of a shard, as a full disk does."""
    root = folder({"a": 40, "b": 26})
    options = {"size": 8, "shard_bytes": 8 * 8 * 3 * 60, "validation": 0.1, "test": 0.7}  # one shard a split
    code = f"""
        import resource, sys
        from alexnet.data.prepare import prepare
        from alexnet.data.sources import open_source
        from alexnet.errors import DataError
        source = open_source(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        try:
            prepare(source, sys.argv[2], **{options})
        except DataError as error:
            print(error)
            sys.exit(3)
    """
    run = [sys.executable, "-c", textwrap.dedent(code), str(root), str(tmp_path / "s")]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert (
        "s.partial: File too large, 12,672 bytes needed in all, " in done.stdout and " free; make room" in done.stdout
    )
    partial = tmp_path / "s.partial"
    assert not list(partial.rglob("*.tmp")) and not (tmp_path / "s").exists()
    assert sorted(path.name for path in partial.rglob("images-*")) == ["images-00000.npy"] * 2
    seen = []
    store = prepare(open_source(root), tmp_path / "s", **options, progress=lambda done, total: seen.append(done))
    assert len(seen) == len(store.split("test")) + 2, "train and validation were kept"
    assert contents(store.path) == contents(prepare(open_source(root), tmp_path / "t", **options).path)


def test_too_little_room_is_said_before_the_work(folder, tmp_path, monkeypatch):
    source = open_source(folder({"a": 10, "b": 6}))
    import shutil

    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=1000))
    with pytest.raises(DataError, match="No space left on device, 3,072 bytes needed in all, 1,000 free"):
        prepare(source, tmp_path / "s", **FEW)
    monkeypatch.undo()
    prepare(source, tmp_path / "s", **FEW)


def test_memory_is_bounded(tmp_path):
    """A thousand pictures of 192 KiB, 192 MiB in all, in shards of 12 MiB."""
    code = """
        import resource, sys
        import numpy as np
        from alexnet.data.prepare import prepare
        from alexnet.data.sources import Picture, Source
        picture = np.zeros((256, 256, 3), np.uint8)
        listed = tuple(Picture(i % 2, f"{i:05d}", lambda: picture) for i in range(1000))
        source = Source("many", ("a", "b"), {"all": listed}, "f")
        prepare(source, sys.argv[1] + "/warm", size=8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        prepare(source, sys.argv[1] + "/s", size=256, shard_bytes=12 << 20, workers=2, validation=0, test=0.9)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    run = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 110_000, "KiB"


@pytest.mark.parametrize("wrong", [{"size": 0}, {"fit": "zoom"}, {"bad": "ignore"}, {"shard_bytes": 0}, {"workers": 0}])
def test_wrong_arguments(folder, tmp_path, wrong):
    with pytest.raises(DataError, match="must be"):
        prepare(open_source(folder({"a": 3, "b": 3})), tmp_path / "s", **wrong)


# -- check


def test_check_finds_every_change(folder, tmp_path):
    root = folder({"a": 10, "b": 6})
    store = prepare(open_source(root), tmp_path / "s", **FEW)
    data = bytearray((root / "a/003.png").read_bytes())
    data[200] ^= 1
    (root / "a/003.png").write_bytes(data)
    (root / "a/004.png").unlink()
    (root / "b/new.png").write_bytes(png_bytes(1))
    shard = store.path / "train/images-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x99")
    found = check(open_source(root), store)
    assert sorted(found) == sorted(
        [
            f"{shard}: SHA-256 is not the recorded one",
            "a/003.png: changed",
            "a/004.png: gone",
            "b/new.png: not in the store",
        ]
    )


def test_check_finds_a_flipped_byte_that_decodes(folder, tmp_path):
    """Every decoder shows a damaged JPEG without a word; the recorded SHA-256 does not."""
    import io

    from PIL import Image

    root = folder({"a": 4, "b": 4})
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    (root / "a/photo.jpg").write_bytes(buffer.getvalue())
    store = prepare(open_source(root), tmp_path / "s", **FEW)
    data = bytearray(buffer.getvalue())
    data[len(data) // 2] ^= 4
    (root / "a/photo.jpg").write_bytes(data)
    assert pixels.decode(bytes(data)).shape == (64, 64, 3)
    assert check(open_source(root), store) == ["a/photo.jpg: changed"]


def test_check_finds_renamed_classes(folder, tmp_path):
    root = folder({"a": 4, "b": 4})
    store = prepare(open_source(root), tmp_path / "s", **FEW)
    (root / "a").rename(root / "c")
    found = check(open_source(root), store)
    assert "classes: now b, c; in the store a, b" in found and "a/000.png: gone" in found
