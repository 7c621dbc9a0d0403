"""Bad images, kills, full disks: the same bytes in the end, and nothing half-written is accepted."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from alexnet.data.prepare import check, prepare
from alexnet.data.sources import open_source
from alexnet.errors import DataError, ImageError

from .conftest import FEW, contents, killed_at, png_bytes


def test_the_number_of_workers_changes_nothing(folder, tmp_path):
    source = open_source(folder({"a": 10, "b": 6}))
    one = prepare(source, tmp_path / "one", **FEW, workers=1)
    many = prepare(source, tmp_path / "many", **FEW, workers=7)
    assert contents(one.path) == contents(many.path)


# -- bad images


def spoil(root):
    """One of each kind of bad image beside the good ones, class a."""
    (root / "a/empty.jpg").write_bytes(b"")
    (root / "a/one\nbyte.jpg").write_bytes(b"\xff")
    (root / "a/page.jpg").write_bytes(b"<!DOCTYPE html><title>404</title>")
    (root / "a/short.png").write_bytes(png_bytes(3)[:-300])
    (root / "a/link.png").symlink_to("nowhere")
    (root / "a/named.jpg").write_bytes(png_bytes(4))


def test_bad_images_are_excluded_and_listed(folder, tmp_path):
    root = folder({"a": 10, "b": 6})
    spoil(root)
    store = prepare(open_source(root), tmp_path / "s", **FEW)
    rows = [json.loads(line) for line in (store.path / "skipped.jsonl").read_text().splitlines()]
    reasons = {row["origin"]: row["reason"] for row in rows}
    assert store.skipped == len(rows) == 5 and sum(map(len, store.splits.values())) == 17
    assert "is empty" in reasons["a/empty.jpg"] and "has only 1 byte" in reasons["a/one\\x0abyte.jpg"]
    assert "looks like HTML" in reasons["a/page.jpg"] and "PNG is truncated" in reasons["a/short.png"]
    assert "cannot be read" in reasons["a/link.png"]
    notes = {row["origin"]: row["notes"] for split in store.splits.values() for row in split.origins()}
    assert notes["a/named.jpg"] == ["PNG named .jpg"]
    assert check(open_source(root), store) == []
    store.verify()


def test_exclusion_does_not_move_other_images_between_splits(folder, tmp_path):
    root = folder({"a": 10, "b": 6})
    good = prepare(open_source(root), tmp_path / "good", **FEW)
    (root / "a/004.png").write_bytes(b"")
    bad = prepare(open_source(root), tmp_path / "bad", **FEW)
    for name in good.splits:
        first, second = ([row["origin"] for row in store.split(name).origins()] for store in (good, bad))
        assert second == [origin for origin in first if origin != "a/004.png"]


def test_the_first_bad_image_ends_it_if_asked(folder, tmp_path):
    root = folder({"a": 10, "b": 6})
    (root / "b/page.jpg").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ImageError, match=r"b/page\.jpg: looks like HTML"):
        prepare(open_source(root), tmp_path / "s", **FEW, bad="fail")
    assert not (tmp_path / "s").exists()


def test_truncated_images_by_choice(folder, tmp_path):
    root = folder({"a": 10, "b": 6})
    (root / "a/short.png").write_bytes(png_bytes(3)[:-300])
    store = prepare(open_source(root), tmp_path / "s", **FEW, allow_truncated=True)
    rows = [row for split in store.splits.values() for row in split.origins()]
    assert [row["origin"] for row in rows if row["notes"] == ["truncated"]] == ["a/short.png"]


# -- interrupted


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


@pytest.mark.parametrize("harm", ["half", "flipped", "gone", "pipe", "record"])
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
    elif harm in ("gone", "pipe"):
        shard.unlink()
        if harm == "pipe":
            os.mkfifo(shard)
    else:
        (tmp_path / "s.partial" / "records" / "train-00000.json").write_text('{"sha256": "')
    (tmp_path / "s.partial" / "train" / "images-00009.npy.tmp").write_bytes(b"stale")
    assert contents(prepare(open_source(root), tmp_path / "s", **FEW).path) == contents(whole.path)


@pytest.mark.parametrize("harm", ["label", "origin", "text", "list", "deep", "pipe", "zero", "folder"])
def test_a_record_that_was_edited_is_not_used(folder, tmp_path, harm):
    """Labels and origins are taken from it: an edited one gave a store with wrong labels, or a traceback."""
    root = folder({"a": 10, "b": 6})
    whole = prepare(open_source(root), tmp_path / "whole", **FEW)
    killed_at(root, tmp_path / "s", 9)
    record = tmp_path / "s.partial" / "records" / "train-00000.json"
    content = json.loads(record.read_text())
    record.unlink()
    if harm == "label":
        record.write_text(json.dumps(content | {"labels": [1 - label for label in content["labels"]]}))
    elif harm == "origin":
        content["origins"][0]["sha256"] = "0" * 64
        record.write_text(json.dumps(content))
    elif harm == "pipe":
        os.mkfifo(record)
    elif harm == "zero":
        record.symlink_to("/dev/zero")
    elif harm == "folder":
        record.mkdir()
    else:
        record.write_text({"text": json.dumps(content | {"labels": "x"}), "list": "[]", "deep": "[" * 100_000}[harm])
    if harm == "folder":
        with pytest.raises(DataError, match=r"train-00000\.json|Is a directory"):
            prepare(open_source(root), tmp_path / "s", **FEW)
    else:
        assert contents(prepare(open_source(root), tmp_path / "s", **FEW).path) == contents(whole.path)


# -- the disk and the memory


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
        "s.partial: File too large, 12,672 bytes needed in total, " in done.stdout
        and " free; free disk space" in done.stdout
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

    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=1000))
    with pytest.raises(DataError, match="No space left on device, 3,072 bytes needed in total, 1,000 free"):
        prepare(source, tmp_path / "s", **FEW)
    monkeypatch.undo()
    prepare(source, tmp_path / "s", **FEW)


def test_memory_is_bounded(tmp_path):
    """A thousand images of 192 KiB, 192 MiB in all, in shards of 12 MiB."""
    code = """
        import resource, sys
        import numpy as np
        from alexnet.data.prepare import prepare
        from alexnet.data.sources import Sample, Source
        image = np.zeros((256, 256, 3), np.uint8)
        listed = tuple(Sample(i % 2, f"{i:05d}", lambda: image) for i in range(1000))
        source = Source("many", ("a", "b"), {"all": listed}, "f")
        prepare(source, sys.argv[1] + "/warm", size=8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        prepare(source, sys.argv[1] + "/s", size=256, shard_bytes=12 << 20, workers=2, validation=0, test=0.9)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    run = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 110_000, "KiB"
