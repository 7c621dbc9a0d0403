"""kill -9 at random moments of a command, then the same command again: it ends as if nothing had happened."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alexnet import cli
from alexnet.data.decode import encode_png

# Runs a command in forked processes: once undisturbed, then killed so often, then to its end. What it wrote is removed
# where it ends before the kill. A first command may be followed by another one: training is gone on with by --resume.
KILLER = """
import json, os, random, shutil, signal, sys, time, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
from alexnet import cli
from alexnet.kernels import native_kernels as kernel
first, again, outputs, kills = json.loads(sys.argv[1])
outputs, begun = [Path(name) for name in outputs], Path(outputs[0]) / "run.json"
moments = random.Random(kills)

def attempt():
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        status = cli.run(again if begun.exists() else first)
    except BaseException:
        traceback.print_exc()
    os._exit(status)

def remove():
    for path in outputs:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

started = time.monotonic()
assert os.waitpid(attempt(), 0)[1] == 0
seconds = time.monotonic() - started
for path in outputs:
    path.rename(path.with_name("whole-" + path.name))
done = early = 0
while done < kills and early < 5 * kills:
    child = attempt()
    time.sleep(seconds * moments.uniform(0, 0.4 if again != first else 1.0))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    done += status == signal.SIGKILL
    early += status == 0
    finished = status == 0 or first[0] in ("compress", "predict") and outputs[0].exists()  # which replace nothing
    if finished and done < kills:
        remove()
assert os.waitpid(attempt(), 0)[1] == 0
print(f"{done} kills, {early} times the end came before, {seconds:.2f} s")
"""


def killed(kills: int, first: list[object], outputs: list[Path], again: list[object] | None = None) -> None:
    """Run KILLER. Each of ``outputs`` has next to it what the undisturbed command wrote: ``whole-NAME``."""
    words = [[*map(str, args)] for args in (first, again or first, outputs)]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, json.dumps([*words, kills])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)


def hashes(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory) -> Path:
    """The same digits as PNG files."""
    root = tmp_path_factory.mktemp("images") / "digits"
    for name in ("train", "validation", "test"):
        split = digits.split(name)
        for i, (image, label) in enumerate(zip(split.gather(np.arange(len(split))), split.labels, strict=True)):
            path = root / digits.classes[label] / f"{name}{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(image))
    return root


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
        "3",
        "--quiet",
        "--device",
        "cpu",
    ]
    assert cli.run([*map(str, words)]) == 0
    return path


KILLS = pytest.mark.parametrize("kills", [pytest.param(20, marks=pytest.mark.slow)])


@KILLS
def test_prepare(kills, folder, tmp_path):
    store = tmp_path / "store"
    killed(kills, ["prepare", folder, store, "--size", 32, "--shard-mb", 0.02], [store])
    assert hashes(store) == hashes(tmp_path / "whole-store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "whole-store"]


@KILLS
def test_train(kills, digits, tmp_path):
    run = tmp_path / "run"
    words = [
        "train",
        digits.path,
        "--output-dir",
        run,
        "--recipe",
        "lenet5",
        "--epochs",
        3,
        "--checkpoint-every",
        "1steps",
    ]
    killed(kills, [*words, "--device", "cpu"], [run], ["train", "--resume", run, "--device", "cpu"])
    weights = [hashes(path / "bundle")["model.safetensors"] for path in (run, tmp_path / "whole-run")]
    assert weights[0] == weights[1]
    names = [
        {path.relative_to(top) for top in (one,) for path in one.rglob("*") if "tensorboard" not in path.parts}
        for one in (run, tmp_path / "whole-run")
    ]
    assert names[0] == names[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole-run"]


@KILLS
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predict(kills, suffix, run, folder, tmp_path):
    out = tmp_path / f"out.{suffix}"
    words = ["predict", run, folder, "-o", out, "--batch-size", 4, "--device", "cpu"]
    killed(kills, words, [out])
    assert hashes(out) == {".": hashes(tmp_path / f"whole-{out.name}")["."]}
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, f"whole-{out.name}"]


@KILLS
@pytest.mark.parametrize("method", ["int8", "deep"])
def test_compress(kills, method, run, tmp_path):
    small = tmp_path / "small"
    words = ["compress", run, "--output", small, "--method", method, "--device", "cpu"]
    words += ["--target-size", "100KB", "--epochs", 1] if method == "deep" else []
    killed(kills, words, [small])
    weights = [hashes(path / "bundle")["model.safetensors"] for path in (small, tmp_path / "whole-small")]
    assert weights[0] == weights[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "whole-small"]


@KILLS
@pytest.mark.parametrize("suffix", ["onnx", "xml", "pt2"])
def test_export(kills, suffix, run, tmp_path):
    target = tmp_path / f"net.{suffix}"
    words = ["export", run, "--output", target, "--format", {"xml": "openvino", "pt2": "torch"}.get(suffix, suffix)]
    outputs = [target, target.with_suffix(".bin")] if suffix == "xml" else [target]
    killed(kills, words, outputs)
    assert cli.run(["verify", str(target), "--trust"]) == 0
    names = [path.name for path in outputs]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, *(f"whole-{name}" for name in names)])


@KILLS
def test_report(kills, run, tmp_path):
    path = Path(shutil.copytree(run, tmp_path / "run"))
    page, neighbors = outputs = [path / "report.html", path / "neighbors.safetensors"]
    before = {str(file.relative_to(path)) for file in path.rglob("*")}
    for output in outputs:
        output.unlink()
    killed(kills, ["report", path, "--device", "cpu"], outputs)
    texts = [  # without times and counts
        re.sub(r"\d+|evaluated [\w ]+ since", "", one.read_text())
        for one in (page, page.with_name("whole-report.html"))
    ]
    assert texts[0] == texts[1]
    assert hashes(neighbors) == hashes(neighbors.with_name("whole-neighbors.safetensors"))
    after = {str(file.relative_to(path)) for file in path.rglob("*")}
    assert after - before == {"whole-report.html", "whole-neighbors.safetensors"}
