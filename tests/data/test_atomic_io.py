"""Files are whole or not there."""

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from alexnet.data.atomic_io import (
    _exclusive,
    atomic_write,
    crc_matches,
    final_name,
    jsonl_bytes,
    line_with_crc,
    npy_bytes,
    npy_header,
    open_regular,
    read_jsonl,
    read_regular,
    sha256_of,
    whole_folder,
    write_file,
)
from alexnet.errors import DataError


def test_the_header_is_numpys(tmp_path):
    for count in (0, 1, 10**9):
        header = npy_header(count, (7, 7, 3))
        assert len(header) == 128
    (tmp_path / "x.npy").write_bytes(npy_header(2, (1, 2, 3)) + bytes(range(12)))
    assert np.load(tmp_path / "x.npy").tolist() == [[[[0, 1, 2], [3, 4, 5]]], [[[6, 7, 8], [9, 10, 11]]]]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_file(tmp_path / "x", b"old")
    with pytest.raises(OSError, match="disk"), atomic_write(tmp_path / "x") as file:
        file.write(b"half")
        assert (tmp_path / "x").read_bytes() == b"old"
        raise OSError("disk")
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_bytes() == b"old"
    write_file(tmp_path / "x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_bytes() == b"new"


def test_a_device_or_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("fifo", "link"):
        with pytest.raises(FileExistsError, match="no regular file"):
            write_file(tmp_path / name, b"new")
    assert (tmp_path / "fifo").is_fifo() and (tmp_path / "link").is_symlink()


def test_lines_of_json_and_arrays_come_back(tmp_path):
    rows = [{"origin": "größe\n", "n": 1}, {}]
    write_file(tmp_path / "rows.jsonl", jsonl_bytes(rows))
    assert read_jsonl(tmp_path / "rows.jsonl") == rows
    write_file(tmp_path / "rows.jsonl", b'{"a": 1}\n{"a"')
    with pytest.raises(DataError, match=r"rows\.jsonl: .*must be lines of JSON; prepare the data set again"):
        read_jsonl(tmp_path / "rows.jsonl")
    write_file(tmp_path / "x.npy", npy_bytes(np.arange(3)))
    assert np.load(tmp_path / "x.npy").tolist() == [0, 1, 2]


def test_the_hash_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2


def test_what_is_renamed_is_on_disk_before_and_its_folder_after(tmp_path, monkeypatch):
    """Else a loss of power leaves a name without its content, or the old name."""
    done = []

    def named(descriptor):
        return Path(f"/proc/self/fd/{descriptor}").readlink()

    sync, rename, replace = os.fsync, Path.rename, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append(("sync", named(descriptor))), sync(descriptor)))
    for name, real in (("rename", rename), ("replace", replace)):
        monkeypatch.setattr(Path, name, lambda self, to, real=real: (done.append(("rename", Path(to))), real(self, to)))
    write_file(tmp_path / "x", b"new")
    with whole_folder(tmp_path / "folder") as new:
        (new / "sub").mkdir()
        (new / "sub" / "a").write_text("1")
    place = done.index(("rename", tmp_path / "x"))
    assert done[place - 1][0] == "sync" and done[place - 1][1].name.startswith("x.")
    assert done[place + 1] == ("sync", tmp_path)
    place = done.index(("rename", tmp_path / "folder"))
    synced = [str(path.relative_to(new)) for kind, path in done[:place] if kind == "sync" and path.is_relative_to(new)]
    assert synced == [".", "sub/a", "sub"] and done[place + 1] == ("sync", tmp_path)


def test_a_temporary_file_of_anybody_else_stays(tmp_path):
    (tmp_path / "x.tmp").write_text("mine")
    (tmp_path / "x.partial").write_text("mine")
    write_file(tmp_path / "x", b"new")
    assert (tmp_path / "x.tmp").read_text() == (tmp_path / "x.partial").read_text() == "mine"
    assert [final_name(name) for name in ("x", "x.tmp", "x.0123abcd.tmp", "x.tmp.y")] == ["x", "x", "x", "x.tmp.y"]


def test_temporary_files_of_killed_processes_are_deleted(tmp_path):
    dead, mine = tmp_path / "x.0123abcd.tmp", [tmp_path / name for name in ("x.0123abcd", "y.0123abcd.tmp", "x.1.tmp")]
    for path in (dead, *mine):
        path.write_bytes(b"half")
    (tmp_path / "x.89abcdef.tmp").touch()  # killed before it wrote a byte
    with atomic_write(tmp_path / "x") as first:
        first.write(b"first")  # not on the disk yet
        write_file(tmp_path / "x", b"second")  # two at once: the first one's stays
    assert (tmp_path / "x").read_bytes() == b"first"
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "x", *mine])


def test_a_folder_is_whole_or_not_there(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(OSError, match="disk"), whole_folder(path) as new:
        (new / "a").write_text("half")
        raise OSError("disk")
    assert not list(tmp_path.iterdir())
    with whole_folder(path) as new:
        (new / "a").write_text("1")
        assert not path.exists()
    with whole_folder(path, lambda: ["a"]) as new:
        (new / "b").write_text("2")
        assert [p.name for p in path.iterdir()] == ["a"]
    assert [p.name for p in path.iterdir()] == ["b"] and [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_of_two_that_replace_a_folder_the_second_sees_what_the_first_wrote(tmp_path):
    path = tmp_path / "folder"
    with whole_folder(path) as new:
        (new / "mine").touch()
    with whole_folder(path, lambda: [p.name for p in path.iterdir() if p.name != "mine"]) as second:
        (second / "b").touch()
        with whole_folder(path) as first:
            (first / "a").touch()
        assert sorted(p.name for p in path.iterdir()) == ["a", "mine"]
    assert sorted(p.name for p in path.iterdir()) == ["b", "mine"]


def test_a_folder_that_another_process_replaces_is_waited_for(tmp_path):
    path, order = tmp_path / "folder", []
    path.mkdir()
    with _exclusive(path):
        other = threading.Thread(target=lambda: [_replace(path), order.append("second")])
        other.start()
        time.sleep(0.2)
        order.append("first")
    other.join()
    assert order == ["first", "second"] and [p.name for p in path.iterdir()] == ["b"]


def _replace(path):
    with whole_folder(path) as new:
        (new / "b").touch()


def test_only_what_a_killed_process_left_is_swept(tmp_path):
    path, dead = tmp_path / "folder", tmp_path / ".folder.0123abcd.partial"
    mine = [
        tmp_path / name for name in (".folder.partial", ".folder.mine.partial", ".other.0123abcd.partial", "folder.old")
    ]
    for folder in (dead, *mine):
        folder.mkdir()
    with whole_folder(path), whole_folder(path) as other:  # two at once
        (other / "a").touch()
    assert not dead.exists() and all(folder.exists() for folder in mine)
    assert sorted(tmp_path.iterdir()) == sorted([path, *mine])


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a pipe"])
def test_only_regular_files_are_opened(kind, tmp_path):
    """Reading a pipe without a writer, or /dev/zero, would never end."""
    path = tmp_path / "file"
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
        path = path if kind.startswith("link") else tmp_path / "pipe"
    for read in (read_regular, open_regular, sha256_of):
        with pytest.raises(OSError, match="not a regular file"):
            read(path)
    with pytest.raises(DataError, match="not a regular file"):
        read_jsonl(path)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nothing")


def test_a_line_with_a_crc_is_known_again():
    line = line_with_crc({"origin": "größe\n\udcff", "n": [1.5, None]})
    assert crc_matches(line) and crc_matches(line[:-1]) and json.loads(line)["origin"] == "größe\n\udcff"
    for place in range(len(line) - 1):
        assert not crc_matches(line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :])
    for other in (b"", b"\n", b"{}\n", line[:-2], line + b"\n", b"x" + line):
        assert not crc_matches(other)
