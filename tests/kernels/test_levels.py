"""Kernels that are compiled ahead of time: what a wheel carries, what a processor loads of it, and what it computes."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from alexnet import kernels
from alexnet.kernels import compiler, levels, native_kernels
from alexnet.models import create_model

ROOT = Path(__file__).parents[2]
SOURCES = Path(levels.__file__).parent
RESIZE = ("alexnet.kernels", {"resize": ["across", "down"]})
needs_compiler = pytest.mark.skipif(
    levels.find_compiler() is None or not levels.levels(), reason="no C compiler, or no level of this machine"
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder in place of the package's, with the sources of one kernel."""
    monkeypatch.setattr(compiler, "_folder", lambda package: tmp_path)
    shutil.copy(SOURCES / "resize.c", tmp_path)
    return tmp_path


@needs_compiler
def test_precompiled_libraries_need_no_compiler(package, monkeypatch):
    assert levels.precompile(package, package / levels.FOLDER, levels.find_compiler(), 2) == []
    names = sorted(path.name for path in (package / levels.FOLDER).iterdir())
    files = levels.sources(package)
    assert names == sorted(levels.library_name("resize", level, files) for level in levels.levels())
    monkeypatch.setenv("PATH", str(package / "empty"))
    monkeypatch.setenv("HOME", str(package / "home"))
    best = compiler.supported_level()
    for load in (compiler.compiled, compiler.cached):
        libraries = load(*RESIZE)
        assert [Path(library._name).name for library in libraries.values()] == (
            [levels.library_name("resize", best, files)] if best else []
        )
    assert not (package / "home").exists()
    monkeypatch.setattr(compiler, "_processor_features", set)
    assert compiler.compiled(*RESIZE) == {}, "a processor that supports no level"


def test_libraries_of_other_sources_are_not_loaded(package, monkeypatch):
    level = levels.LEVELS["x86_64"][0]
    before = levels.library_name("resize", level, levels.sources(package))
    with (package / "resize.c").open("a") as file:
        file.write("/* changed */")
    assert levels.library_name("resize", level, levels.sources(package)) != before
    assert levels.library_name("resize", level._replace(flags=("-O0",)), {}) != levels.library_name("resize", level, {})


@pytest.mark.parametrize(
    ("machine", "features", "name"),
    [
        ("x86_64", "avx2 bmi1 bmi2 f16c fma movbe", "avx2"),
        ("x86_64", "avx2 bmi1 bmi2 f16c fma movbe avx512f avx512bw avx512cd avx512dq avx512vl", "avx512"),
        ("x86_64", "avx2 bmi1 bmi2 f16c fma movbe avx512f avx512bw avx512cd avx512dq avx512vl amx_tile", "avx512"),
        ("x86_64", "sse4_2 avx", None),
        ("aarch64", "fp asimd", "neon"),
        ("riscv64", "anything", None),
    ],
)
def test_the_best_supported_level_is_taken(monkeypatch, machine, features, name):
    monkeypatch.setattr(levels.platform, "machine", lambda: machine)
    monkeypatch.setattr(compiler, "_processor_features", lambda: set(features.split()))
    level = compiler.supported_level()
    assert (level.name if level else None) == name


def test_the_reason_why_no_kernel_is_in_use(monkeypatch):
    monkeypatch.setattr(native_kernels, "_libraries", compiler.NativeLibraries("alexnet.kernels", {}))
    monkeypatch.setattr(compiler, "_processor_features", set)
    assert native_kernels.why_not().startswith("no precompiled kernels for this processor, and no working C compiler")
    native_kernels._libraries.built["lrn"] = None
    assert native_kernels.why_not() == ""
    with kernels.disabled():
        assert native_kernels.why_not() == "turned off"


def test_what_a_compiler_can_not_do_is_named(package):
    failed = levels.precompile(package, package / "out", "false", 2)
    assert failed == [f"resize ({level.name})" for level in levels.levels()]
    assert levels.precompile(package, package / "out", str(package / "none"), 2) == failed


@pytest.fixture(scope="module")
def compiled_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    assert levels.precompile(SOURCES, folder, levels.find_compiler(), 2) == []
    return folder


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("level", levels.levels(), ids=lambda level: level.name)
def test_every_level_computes_what_the_reference_does(compiled_folder, level, monkeypatch):
    """On a processor with AVX-512 this tests the code for AVX2 too."""
    if not level.features <= compiler._processor_features():
        pytest.skip(f"this processor is no {level.name}")
    monkeypatch.setattr(levels, "FOLDER", str(compiled_folder))
    monkeypatch.setattr(compiler, "supported_level", lambda: level)
    libraries = compiler.NativeLibraries("alexnet.kernels", native_kernels._FUNCTIONS)
    libraries.build()
    assert {Path(library._name).parent for library in libraries.built.values()} == {compiled_folder}
    assert all(f"-{level.name}-" in library._name for library in libraries.built.values())
    monkeypatch.setattr(native_kernels, "_libraries", libraries)
    network = create_model("alexnet", num_classes=5, image_size=96, generator=torch.Generator().manual_seed(0)).train()
    images = (torch.randn(4, 3, 96, 96) * 60).contiguous(memory_format=torch.channels_last)

    def outputs():
        generator = torch.random.manual_seed(0)
        assert generator is not None
        network.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(images), torch.arange(4))
        loss.backward()
        with torch.inference_mode():
            return [network.eval()(images), *(p.grad.clone() for p in network.train().parameters())]

    with kernels.using("always", "winograd"):  # for the gradients too
        fast = outputs()
    with kernels.disabled():
        slow = outputs()
    for a, b in zip(fast, slow, strict=True):
        assert float((a - b).abs().max()) <= 2e-4 * float(b.abs().max())


DRIVER = r"""
#include "lrn.c"
#include <stdio.h>
#include <stdlib.h>

/* The largest difference of lrn_f32_forward from the formula in double precision. */
int main(void) {
    enum { ROWS = 7, CHANNELS = 96, SIZE = 5 };
    static float x[ROWS * CHANNELS], y[ROWS * CHANNELS], sums[ROWS * CHANNELS];
    double worst = 0;
    for (int i = 0; i < ROWS * CHANNELS; i++) x[i] = (float)(rand() % 2001 - 1000) / 10;
    lrn_f32_forward(x, y, sums, ROWS, CHANNELS, SIZE, 2e-5f, 2, 0.75f);
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < CHANNELS; i++) {
            double sum = 0;
            for (int j = i - SIZE / 2; j <= i + (SIZE - 1) / 2; j++)
                if (j >= 0 && j < CHANNELS) sum += (double)x[r * CHANNELS + j] * x[r * CHANNELS + j];
            double right = x[r * CHANNELS + i] * pow(2 + 2e-5 * sum, -0.75);
            worst = fmax(worst, fabs(y[r * CHANNELS + i] - right));
        }
    printf("%.9f\n", worst);
}
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64")),
    reason="needs gcc-aarch64-linux-gnu and qemu-user",
)
def test_arm_compiles_all_kernels_and_computes_the_norm(tmp_path, monkeypatch):
    monkeypatch.setattr(levels.platform, "machine", lambda: "aarch64")
    assert levels.precompile(SOURCES, tmp_path / "compiled", "aarch64-linux-gnu-gcc", 2) == []
    (tmp_path / "driver.c").write_text(DRIVER)
    command = ["aarch64-linux-gnu-gcc", "driver.c", f"-I{SOURCES}", *levels.levels()[0].flags, "-O3", "-fopenmp"]
    subprocess.run([*command, "-o", "driver", "-lm"], cwd=tmp_path, check=True)
    command = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "./driver"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 1e-4, "of values up to 100"


FAKE = """#!/bin/sh
while [ "$1" != -o ]; do shift; done
echo library > "$2"
"""


@pytest.mark.slow
@pytest.mark.skipif(not levels.levels(), reason="no level of this machine")
def test_a_wheel_carries_the_kernels(tmp_path):
    """With a compiler that writes a word, since only names and places are tested here."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    tools = tmp_path / "bin"
    tools.mkdir()

    def wheel(mode: str):
        for old in tmp_path.glob("*.whl"):
            old.unlink()
        shutil.rmtree(source / "build", ignore_errors=True)
        code = f"import setuptools.build_meta as b; b.build_wheel({str(tmp_path)!r})"
        environment = os.environ | {"PATH": str(tools), "ALEXNET_KERNELS": mode}
        done = subprocess.run([sys.executable, "-c", code], cwd=source, env=environment, capture_output=True, text=True)
        return done, next(tmp_path.glob("*.whl"), None)

    done, path = wheel("auto")
    assert path.name.endswith("-py3-none-any.whl") and "no C compiler was found" in done.stderr
    done, path = wheel("required")
    assert path is None and "kernels are not compiled: no C compiler was found" in done.stderr
    done, path = wheel("on")
    assert path is None and "ALEXNET_KERNELS is 'on': it must be auto, required or off" in done.stderr
    (tools / "cc").write_text(FAKE)
    (tools / "cc").chmod(0o755)
    done, path = wheel("off")
    assert path.name.endswith("-py3-none-any.whl")
    done, path = wheel("required")
    assert "-py3-none-linux_" in path.name, done.stderr
    inside = {name for name in zipfile.ZipFile(path).namelist() if name.endswith(".so")}
    files = levels.sources(SOURCES)
    assert inside == {
        f"alexnet/kernels/compiled/{levels.library_name(Path(name).stem, level, files)}"
        for name in files
        if name.endswith(".c")
        for level in levels.levels()
    }
