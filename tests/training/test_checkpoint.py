"""Faults on purpose: killed while saving, cut, flipped, forged, no room."""

import hashlib
import os
import pickle
import random
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from alexnet.errors import CheckpointError
from alexnet.training import checkpoint


def content(step: int, best: str = "") -> dict:
    weights = torch.full((1000,), float(step))
    return {"step": step, "weights": weights, "rows": [{"epoch": 1.0}], "best": {"file": best, "error": 0.5}}


def save(folder: Path, *steps: int, best: str = "") -> None:
    for step in steps:
        checkpoint.save(folder / checkpoint.name_of(step), content(step, best))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sign(path: Path) -> None:
    """What a forger would do too: a SHA-256 that fits."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    path = tmp_path / checkpoint.name_of(1234)
    values = {
        "weights": {
            "a": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
            "b": torch.tensor(1.5).double(),
        },
        "optimizer": {"param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "lr_before": None}]},
        "rows": [{"epoch": 1.0, "loss": 0.1 + 0.2}],
        "name": "ä",
    }
    checkpoint.save(path, values)
    found = checkpoint.load(path)
    assert found.pop("version") == checkpoint.VERSION
    weights = found.pop("weights")
    assert all(torch.equal(weights[name], values["weights"][name]) for name in ("a", "b"))
    assert found == {name: value for name, value in values.items() if name != "weights"}
    assert names(tmp_path) == ["step-00001234.pt", "step-00001234.pt.sha256"]
    # sha256sum -c agrees.
    subprocess.run(["sha256sum", "-c", "--quiet", f"{path.name}.sha256"], cwd=tmp_path, check=True)


def test_no_crc_is_computed_and_the_user_s_setting_stays(tmp_path):
    """CRC-32s take ten times as long as writing; the file has its SHA-256."""
    checkpoint.save(tmp_path / checkpoint.name_of(1), content(1))
    assert torch.serialization.get_crc32_options()
    with zipfile.ZipFile(tmp_path / checkpoint.name_of(1)) as file:
        assert {info.CRC for info in file.infolist() if info.file_size > 1000} == {0}


def test_the_newest_is_the_latest(tmp_path):
    save(tmp_path, 9, 10, 2)
    assert [path.name for path in checkpoint.list_all(tmp_path)] == [checkpoint.name_of(s) for s in (2, 9, 10)]
    assert checkpoint.load_latest(tmp_path)[1]["step"] == 10


def test_none_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no checkpoint; must be a folder of a run that saved one; start"):
        checkpoint.load_latest(tmp_path)


# Killed while saving

KILLER = """
import os, random, signal, sys, time, torch
from pathlib import Path
from alexnet.training import checkpoint
folder, moments, first = Path(sys.argv[1]), random.Random(0), 1
torch.set_num_threads(1)  # OpenMP's threads do not survive a fork: a child that waits for them waits for ever
for _ in range(12):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        for step in range(first, first + 100000):
            weights = torch.full((300000,), float(step))
            checkpoint.save(folder / checkpoint.name_of(step), {"step": step, "weights": weights})
            checkpoint.prune(folder)
            os.write(writer, step.to_bytes(8, "little"))
    os.close(writer)
    said = os.read(reader, 8)
    time.sleep(moments.random() * 0.1)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    while more := os.read(reader, 8):
        said = more
    os.close(reader)
    path, found = checkpoint.load_latest(folder)
    assert found["step"] >= int.from_bytes(said, "little")  # nothing that was reported saved is lost
    assert path.name == checkpoint.name_of(found["step"])
    for whole in checkpoint.list_all(folder):
        content = checkpoint.load(whole)
        assert (content["weights"] == content["step"]).all()
    first = found["step"] + 1
"""


def test_killed_at_any_moment_the_newest_complete_checkpoint_loads(tmp_path):
    words = [sys.executable, "-c", KILLER, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (tmp_path / "step-99999999.pt.partial").write_bytes(b"half")
    (tmp_path / "step-99999999.pt.sha256.partial").write_bytes(b"half")
    checkpoint.prune(tmp_path)
    kept = [path.name for path in checkpoint.list_all(tmp_path)]
    assert len(kept) == 2
    assert names(tmp_path) == sorted(kept + [f"{name}.sha256" for name in kept])


# Damaged


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "one bit":
        data[len(data) // 2] ^= 1  # in the weights, where neither PyTorch nor zip would look
        path.write_bytes(data)
    elif how == "without .sha256":
        path.with_name(path.name + ".sha256").unlink()
    elif how == "empty .sha256":
        path.with_name(path.name + ".sha256").write_text("")
    elif how == "binary .sha256":
        path.with_name(path.name + ".sha256").write_bytes(b"\xff\xfe")


HOWS = ["truncated", "empty", "one bit", "without .sha256", "empty .sha256", "binary .sha256"]


@pytest.mark.parametrize("how", HOWS)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_offered(tmp_path, how):
    save(tmp_path, 1, 2)
    newest = tmp_path / checkpoint.name_of(2)
    damage(newest, how)
    with pytest.raises(CheckpointError, match=str(newest)):
        checkpoint.load(newest)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_latest(tmp_path)
    assert str(newest) in str(caught.value)
    assert str(caught.value).endswith(f"a good one is left: --resume {tmp_path / checkpoint.name_of(1)}")
    damage(tmp_path / checkpoint.name_of(1), how)
    with pytest.raises(CheckpointError, match=r"no good one is left: start the run anew$"):
        checkpoint.load_latest(tmp_path)


def test_every_bit_counts(tmp_path):
    save(tmp_path, 1)
    path = tmp_path / checkpoint.name_of(1)
    data = path.read_bytes()
    for at in random.Random(1).sample(range(len(data)), 40):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        with pytest.raises(CheckpointError, match="is damaged: SHA-256"):
            checkpoint.load(path)


class Evil:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle"])
def test_a_forged_checkpoint_runs_no_code(tmp_path, how):
    victim, path = tmp_path / "victim", tmp_path / checkpoint.name_of(2)
    save(tmp_path, 1)
    if how == "pickle":
        path.write_bytes(pickle.dumps({"version": 1, "evil": Evil(victim)}))
    else:
        torch.save({"version": 1, "evil": Evil(victim)}, path, _use_new_zipfile_serialization=how == "torch")
    sign(path)
    for read in (checkpoint.load, lambda _: checkpoint.load_latest(tmp_path)):
        with pytest.raises(CheckpointError, match="holds more than tensors and plain values, or is damaged"):
            read(path)
    checkpoint.prune(tmp_path)
    assert not victim.exists()
    # The trap works: an unguarded read springs it.
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert victim.exists()


@pytest.mark.parametrize("seed", range(12))
def test_nonsense_with_a_fitting_sha256_is_refused(tmp_path, seed):
    path = tmp_path / checkpoint.name_of(1)
    save(tmp_path, 1)
    data, noise = bytearray(path.read_bytes()), random.Random(seed)
    if seed < 4:
        data = noise.randbytes((0, 1, 100, 5000)[seed])
    else:
        data[:600] = bytes(b ^ (noise.random() < 0.05) * noise.randrange(256) for b in data[:600])
    path.write_bytes(data)
    sign(path)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


@pytest.mark.parametrize("values", [{"version": 2}, {"version": None}, [1, 2], 5])
def test_another_version_is_refused(tmp_path, values):
    path = tmp_path / checkpoint.name_of(1)
    torch.save(values, path)
    sign(path)
    with pytest.raises(CheckpointError, match=r"is not of version 1; use the alexnet that wrote it"):
        checkpoint.load(path)


# No room


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    save(tmp_path, 1)
    path = tmp_path / checkpoint.name_of(2)
    for _ in range(2):
        with pytest.raises(CheckpointError) as caught, largest_file(1 << 20):
            checkpoint.save(path, {"step": 2, "weights": [torch.zeros(1 << 20)]})
        assert str(caught.value).startswith(f"checkpoint {path} could not be written (")
        assert "it needs about 4 MiB, " in str(caught.value)
        assert str(caught.value).endswith(" MiB are free; make room and resume")
    assert names(tmp_path) == ["step-00000001.pt", "step-00000001.pt.sha256"]
    assert checkpoint.load_latest(tmp_path)[1]["step"] == 1
    save(tmp_path, 2)
    assert checkpoint.load_latest(tmp_path)[1]["step"] == 2


def test_a_folder_that_is_gone(tmp_path):
    with pytest.raises(CheckpointError, match=r"could not be written \(.*No such file or directory"):
        checkpoint.save(tmp_path / "gone" / checkpoint.name_of(1), content(1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    save(tmp_path, 1)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            save(tmp_path, 2)
        assert checkpoint.load_latest(tmp_path)[1]["step"] == 1
    finally:
        tmp_path.chmod(0o700)


# What stays


def test_the_last_two_stay_and_the_best_that_they_name(tmp_path):
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 4)):
        checkpoint.save(tmp_path / f"best-epoch-{best:04d}.pt", {"eval_model": {}})
        save(tmp_path, step, best=f"best-epoch-{best:04d}.pt")
    (tmp_path / "notes.txt").write_text("a person's own file")
    checkpoint.prune(tmp_path)
    kept = ["best-epoch-0002.pt", "best-epoch-0004.pt", "step-00000003.pt", "step-00000004.pt"]
    assert names(tmp_path) == sorted(kept + [f"{name}.sha256" for name in kept] + ["notes.txt"])


def test_the_best_weights_stay_however_old(tmp_path):
    checkpoint.save(tmp_path / "best-epoch-0001.pt", {"eval_model": {}})
    for step in range(1, 8):
        save(tmp_path, step, best="best-epoch-0001.pt")
        checkpoint.prune(tmp_path)
    assert checkpoint.load(tmp_path / "best-epoch-0001.pt")["eval_model"] == {}


def test_best_weights_of_an_abandoned_future_go_and_not_those_in_use(tmp_path):
    """After going back to an earlier checkpoint, later best weights are nobody's."""
    for epoch in (2, 3, 7, 9):
        checkpoint.save(tmp_path / f"best-epoch-{epoch:04d}.pt", {"eval_model": {}})
    save(tmp_path, 2, best="best-epoch-0002.pt")
    save(tmp_path, 3, best="best-epoch-0003.pt")
    checkpoint.prune(tmp_path)
    assert [name for name in names(tmp_path) if name.endswith(".pt")] == [
        "best-epoch-0002.pt",
        "best-epoch-0003.pt",
        "step-00000002.pt",
        "step-00000003.pt",
    ]


def test_no_best_at_all(tmp_path):
    save(tmp_path, 1, 2, 3)
    checkpoint.prune(tmp_path)
    checkpoint.prune(tmp_path)
    assert [path.name for path in checkpoint.list_all(tmp_path)] == [checkpoint.name_of(s) for s in (2, 3)]
