"""What can be held of the Dockerfile and the configurations in docs/serving.md without an engine that runs them."""

import importlib.machinery
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from alexnet import cli
from alexnet.cli import serve, train
from alexnet.cli.serve import MonitorArguments, ServeArguments
from alexnet.kernels import native_kernels
from alexnet.serve.limits import Limits

from .conftest import Client, form

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
DOCS = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def instructions(text: str) -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines.splitlines() if line)]


def last_stage() -> dict[str, str]:
    found = instructions(TEXT)
    starts = [i for i, (word, _) in enumerate(found) if word == "FROM"]
    assert len(starts) == 2  # what builds is not in what runs
    return dict(found[starts[-1] :])


def test_it_runs_as_nobody_of_importance():
    stage = last_stage()
    assert stage["USER"].isdigit() and int(stage["USER"]) >= 10_000  # a number: KServe's runAsNonRoot needs one
    words = [word for word, _ in instructions(TEXT)]
    assert words.index("USER") > max(i for i, word in enumerate(words) if word == "RUN")
    assert stage["STOPSIGNAL"] == "SIGTERM" and stage["EXPOSE"] == "8000"


def test_what_it_starts_is_a_command_of_ours(monkeypatch):
    stage = last_stage()
    entry, words = json.loads(stage["ENTRYPOINT"]), json.loads(stage["CMD"])
    assert entry == ["alexnet"] and 'alexnet = "alexnet.__main__:main"' in (ROOT / "pyproject.toml").read_text()
    seen: list[ServeArguments] = []
    monkeypatch.setattr(serve, "_serve", lambda given, shared: seen.append(given))
    assert cli.run(words) == 0
    assert (str(seen[0].run), seen[0].host, seen[0].port) == ("/model", "0.0.0.0", 8000)
    assert json.loads(stage["VOLUME"]) == ["/model"]


def test_the_health_check_asks_the_server_at_its_own_port(server):
    _, _, command = last_stage()["HEALTHCHECK"].partition("CMD ")
    assert json.loads(command) == ["python", "-m", "alexnet.cli.serve", "health"]
    entry = ["/opt/alexnet/bin/python", "/opt/alexnet/bin/alexnet", "serve", "/model"]
    assert serve.health([*entry, "--host", "0.0.0.0", "--port", str(server.port)]) is None
    assert "Connection refused" in serve.health([*entry, "--port", "9"])
    assert serve.health(["/opt/alexnet/bin/alexnet", "train", "digits"]) is None


def test_the_image_has_compiled_kernels_or_is_not_built():
    assert 'RUN ALEXNET_KERNELS=required pip install "/src[$EXTRAS]"' in TEXT  # tests/kernels/test_levels.py


def test_what_is_copied_is_there_and_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for word, rest in instructions(TEXT):
        if word == "COPY" and not rest.startswith("--from"):
            for name in rest.split()[:-1]:
                assert (ROOT / name).exists() and f"!{name}" in ignored


def test_the_steps_that_ci_image_takes(tmp_path, monkeypatch):
    """Without Docker, debootstrap or root: what it would run, what it copies, and that its commands exist."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("ci_image", str(ROOT / ".ci" / "image"))
    image = importlib.util.module_from_spec(importlib.util.spec_from_loader("ci_image", loader))
    monkeypatch.setitem(sys.modules, "ci_image", image)
    loader.exec_module(image)
    steps = []

    def run(stage, command, **_):
        steps.append((command[-1], dict(stage.args), stage.user))
        if "-m venv" in command[-1]:
            (stage.root / "opt" / "alexnet" / "bin").mkdir(parents=True)

    monkeypatch.setattr(image, "run", run)
    (tmp_path / "base" / "etc").mkdir(parents=True)
    stage = image.build(tmp_path, tmp_path / "base", {"TORCH_INDEX": "https://index"}, [])
    first = tmp_path / "stage-0" / "src"
    assert (first / "pyproject.toml").is_file() and (first / "src" / "alexnet" / "__init__.py").is_file()
    assert (stage.root / "opt" / "alexnet" / "bin").is_dir() and not (stage.root / "src").exists()
    assert [arguments for step, arguments, _ in steps if step.endswith("torch torchvision")] == [
        {"EXTRAS": "serve", "TORCH_INDEX": "https://index"}
    ]
    assert {user for _, _, user in steps} == {"0"} and stage.user == "10001"
    assert stage.env["PATH"] == "/opt/alexnet/bin:/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"
    assert stage.settings["STOPSIGNAL"] == "SIGTERM" and "ENTRYPOINT" in stage.settings
    assert train.parse(image.TRAIN[2:])[1].model == "lenet5"
    monkeypatch.setattr(native_kernels, "build", lambda: True)
    exec(image.KERNELS, {})


def test_the_server_writes_no_file(saved_bundle, png, tmp_path):
    """Under a limit of 0 bytes a file, and without a temporary folder: a read-only file system is enough."""
    code = (
        "import sys, resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "sys.modules['dill'] = None;"  # which PyTorch imports where it is installed, and which needs a temporary folder
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); from alexnet.cli import main; main(sys.argv[1:])"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path / "none"), "PYTHONDONTWRITEBYTECODE": "1"}
    call = [sys.executable, "-c", code, "serve", str(saved_bundle), "--port", "0", "--device", "cpu"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "env": environment, "text": True}
    with subprocess.Popen(call, **options) as process:
        try:
            assert process.stdout.readline().startswith("Loading")
            client = Client(int(process.stdout.readline().strip().rpartition(":")[2]))
            big = png + b"\0" * 3_000_000  # over what a form parser usually keeps in memory
            assert client.post(*form(("a.png", big), ("b.png", png))).status == 200
        finally:
            process.terminate()
            assert process.wait(60) == 0


@pytest.mark.slow
def test_triton_s_configuration_fits_the_exported_file(cifar, tmp_path):
    import onnxruntime

    from alexnet.export.export import export

    export(cifar, tmp_path / "model.onnx", input="decoded")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (given,), (answered,) = session.get_inputs(), session.get_outputs()
    block = next(b for b in re.findall(r"^```\w*\n(.*?)^```", DOCS, re.M | re.S) if "platform" in b)
    names = re.findall(r'name: "(\w+)", data_type: TYPE_(\w+), dims: \[([^\]]+)\]', block)
    assert names[0][:2] == (given.name, "UINT8") and given.type == "tensor(uint8)"
    assert names[1][:2] == (answered.name, "FP32") and answered.type == "tensor(float)"
    assert names[0][2] == "256, 256, 3" and list(given.shape[1:]) == [32, 32, 3] and isinstance(given.shape[0], str)
    assert answered.shape[1] == 10


def test_the_commands_of_the_docs_exist(monkeypatch):
    """Each ``alexnet serve`` in the page, and each of its options."""
    seen: list[ServeArguments] = []
    monkeypatch.setattr(serve, "_serve", lambda given, shared: seen.append(given))
    lines = [line.split("#")[0] for line in re.findall(r"^alexnet (serve .*)$", DOCS, re.M)]
    lists = re.findall(r"\[(serve, [^\]]*)\]", DOCS)
    for words in [*map(shlex.split, lines), *([w.strip(' "') for w in found.split(",")] for found in lists)]:
        assert cli.run(words) == 0, words
    assert len(seen) >= 3
    known = {"--" + f.name.replace("_", "-") for kind in (ServeArguments, Limits) for f in fields(kind)}
    others = {"--" + f.name.replace("_", "-") for f in fields(MonitorArguments)}
    told = set(re.findall(r"`(--[a-z-]+)", DOCS)) - {"--build-arg", "--input", "--against"}
    assert told <= known | others, told - known - others
    assert known - told <= {"--run", "--limits", "--port", "--threads", "--device", "--reference"}
