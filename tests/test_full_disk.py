"""No command fails with a traceback, or leaves half of a file, where a disk is full. A limit on the size of files is
reached as a full disk is, and needs no rights."""

import contextlib
import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet import cli
from alexnet.bundle import Bundle, find_bundle
from alexnet.errors import BundleError
from alexnet.export.classifier import Classifier

LIMITS = [0, 1_000, 10_000]  # bytes of a file


@contextlib.contextmanager
def largest_file(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def hashes(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    words = [
        "train",
        digits.path,
        "--output-dir",
        path,
        "--recipe",
        "lenet5",
        "--epochs",
        "2",
        "--quiet",
        "--device",
        "cpu",
    ]
    assert cli.run([*map(str, words)]) == 0
    return path


COMMANDS = {
    "export-onnx": ("export", "RUN", "--output", "OUT/net.onnx"),
    "export-openvino": ("export", "RUN", "--output", "OUT/net.xml", "--format", "openvino"),
    "export-torch": ("export", "RUN", "--output", "OUT/net.pt2", "--format", "torch"),
    "compress": ("compress", "RUN", "--output", "OUT/small", "--method", "int8", "--device", "cpu"),
    "plot": ("plot", "filters", "RUN", "--output", "OUT/filters.png"),
    "report": ("report", "RUN", "--output", "OUT/report.html", "--device", "cpu"),
    "evaluate": ("evaluate", "RUN", "--calibrate", "--device", "cpu"),
    "promote": ("promote", "RUN", "OUT/served", "--device", "cpu"),
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_finds_no_room_says_so_in_one_line(name, limit, run, tmp_path, capsys):
    if name.startswith("export"):
        pytest.importorskip("openvino")
        pytest.importorskip("onnxscript")
    (tmp_path / "out").mkdir()
    words = [word.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")) for word in COMMANDS[name]]
    before = hashes(run)
    with largest_file(limit):
        status = cli.run(words)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 1 and message.startswith("alexnet: ") and "File too large" in message
    assert not list((tmp_path / "out").iterdir())
    after = hashes(run)
    assert {path for path in before | after if before.get(path) != after.get(path)} <= {"journal.jsonl"}
    Bundle.load(find_bundle(run))


@pytest.mark.parametrize("limit", LIMITS)
def test_training_and_preparing(limit, digits, tmp_path, capsys):
    words = ["--recipe", "lenet5", "--epochs", "1", "--quiet", "--device", "cpu"]
    for command in (
        ["prepare", "digits", str(tmp_path / "store"), "--size", "32"],
        ["train", str(digits.path), "--output-dir", str(tmp_path / "run"), *words],
    ):
        with largest_file(limit):
            status = cli.run(command)
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert status == 1 and message.startswith("alexnet: ") and "File too large" in message
        assert not (tmp_path / "store").exists() and not (tmp_path / "run" / "bundle").exists()
    again = (tmp_path / "run" / "run.json").exists()
    assert cli.run(["train", "--resume", str(tmp_path / "run"), "--quiet"] if again else command) == 0
    Bundle.load(tmp_path / "run" / "bundle")


def test_save_pretrained_raises_the_project_s_error(run, tmp_path):
    classifier = Classifier.load(run)
    for limit in LIMITS:
        with (
            largest_file(limit),
            pytest.raises(BundleError, match=r"bundle .*mine could not be written: File too large"),
        ):
            classifier.save_pretrained(tmp_path / "mine")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="could not be written: Not a directory"):
        classifier.save_pretrained(tmp_path / "file" / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("words", [("models",), ("recipes", "digits")])
def test_standard_output_that_is_full(words):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "alexnet", *words], stdout=full, stderr=subprocess.PIPE, env=os.environ, check=False
        )
    assert (done.returncode, done.stderr.decode()) == (
        1,
        "alexnet: No space left on device; make room, or write to another disk\n",
    )
