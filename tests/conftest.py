"""What the tests of several packages share: a small store of real digits."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes of one thread outrun two of two on two cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import settings

if not torch.cuda.is_available():  # Triton asks when it is imported: a GPU's kernels are tested on the processor
    os.environ.setdefault("TRITON_INTERPRET", "1")

import torch.nn.functional as F

from alexnet import bundle, kernels
from alexnet.data.prepare import prepare
from alexnet.data.sources import open_source
from alexnet.data.store import Store
from alexnet.evaluation.evaluate import autocast
from alexnet.kernels import native_kernels
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model
from alexnet.training import finetune

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# The same examples every time, and no clock: a busy machine is no defect.
settings.register_profile("house", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("house")

# A shell ignores SIGINT in what it starts in the background, and programs that tests start inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """No test leaves the process with denormal numbers treated as zero, as training does for its own time."""
    yield
    lost = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(False)
    assert not lost, "the test left the process with denormal numbers treated as zero"


@pytest.fixture(autouse=True)
def no_starter(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Trainings on folders begin with random weights, which is quick; tests/test_starter.py tests the starter."""
    for module in (bundle, bundle.bundle, finetune):
        monkeypatch.setattr(module, "STARTER_FOLDER", tmp_path_factory.getbasetemp() / "no-starter")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The first 250 of scikit-learn's digits at 32 pixels: 160 to train, 40 to validate, 50 to test."""
    source = open_source("digits")
    few = dataclasses.replace(source, splits={"all": source.splits["all"][:250]}, fingerprint="first 250")
    return prepare(few, tmp_path_factory.mktemp("digits") / "store", size=32, validation=0.2, test=0.2)


@pytest.fixture(scope="session")
def reseal() -> Callable[..., None]:
    """``reseal(folder, **entries)`` changes dataset.json, and records the store's files as they are now."""
    from alexnet.data.atomic_io import sha256_of
    from alexnet.data.store_backend import checksum_of, fingerprint_of

    def again(folder: Path, **entries: object) -> None:
        about = json.loads((folder / "dataset.json").read_text()) | entries
        for name in about["sha256"] if "sha256" not in entries else ():
            about["sha256"][name] = sha256_of(folder / name)
        with contextlib.suppress(KeyError, TypeError):  # entries that are refused before the fingerprint is computed
            found = fingerprint_of(about["classes"], about["splits"], about["sha256"], about.get("encoding", "raw"))
            about["fingerprint"] = entries.get("fingerprint", found)
        (folder / "dataset.json").write_text(json.dumps(about | {"checksum": checksum_of(about)}))

    return again


@pytest.fixture(scope="session")
def digit_file(tmp_path_factory: pytest.TempPathFactory, digits: Store) -> Path:
    """One of them as a PNG of 48 × 40 pixels."""
    import numpy as np

    from alexnet.data.decode import encode_png

    image = np.full((40, 48, 3), 200, np.uint8)
    image[4:36, 10:42] = digits.split("test").gather(np.array([3]))[0]
    path = tmp_path_factory.mktemp("images") / "three.png"
    path.write_bytes(encode_png(image))
    return path


@pytest.fixture(scope="module")  # not longer: while playwright is open, its event loop is this thread's
def browser() -> Iterator["Browser"]:
    """Debian's chromium without a window. It asks no other host for anything."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync"]
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium, args=quiet)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[..., dict]]:
    """Runs a job in so many processes; see ``training/ranks.py``."""
    words = [sys.executable, str(Path(__file__).parent / "training" / "ranks.py")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

        def run(processes: int, job: str = "train", expect: object = 0, **more: object) -> dict:
            server.stdin.write(json.dumps({"processes": processes, "job": job, **more}) + "\n")
            server.stdin.flush()
            found = json.loads(server.stdout.readline())
            if expect is not None:
                assert found["ended"] == [expect] * processes, found
            return found

        yield run
        server.stdin.close()


@pytest.fixture
def imagenet() -> Normalization:
    """ImageNet's mean and color statistics as the 2012 code had them, gray levels."""
    axes = torch.tensor([[-0.564, -0.713, 0.418], [-0.576, -0.024, -0.817], [-0.592, 0.701, 0.397]])
    return Normalization(
        mean=torch.tensor([127.30, 119.72, 104.91]),
        color_std=torch.tensor([121.78, 37.09, 19.72]),
        color_axes=axes,  # columns are the axes
        divide=torch.tensor(1.0),
    )


@pytest.fixture
def native() -> Iterator[None]:
    """Native kernels and Winograd convolutions are in use."""
    if not native_kernels.build():
        pytest.skip("no C compiler builds the kernels here")
    with kernels.using("auto"), kernels.using("always", "winograd"):
        yield


@pytest.fixture
def reference() -> Iterator[None]:
    """Reference implementations are in use, also after a test that compiled the native kernels."""
    with kernels.disabled():
        yield


@pytest.fixture
def trained(native: None) -> Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """``trained(fast)``: losses and weights of a hundred steps of a small network, by native kernels or PyTorch."""

    def train(fast: bool, precision: str = "fp32") -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with contextlib.nullcontext() if fast else kernels.disabled():
            network = create_model("cifar_18pct").to(memory_format=torch.channels_last)
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.normal_(0, 0.05, generator=generator)  # large enough to learn at once
            images = torch.randn(16, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
            labels, losses = torch.arange(16) % 4, []
            optimizer = torch.optim.SGD(network.parameters(), lr=5e-4, momentum=0.9)
            for _ in range(100):
                with autocast(images.device, precision):
                    loss = F.cross_entropy(network(images).float(), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            return torch.tensor(losses), network.state_dict()

    return train
