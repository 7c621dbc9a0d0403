"""``--batch-size auto``: powers of two, by memory and number of images, with a learning rate that fits."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import alexnet
from alexnet.data.sources.options import DataOptions
from alexnet.errors import RecipeError
from alexnet.recipe import Recipe, get_recipe
from alexnet.training import batch_size
from alexnet.training.run_data import open_store

CPU = torch.device("cpu")
LENET = get_recipe("lenet5").replace(validation=0.1)
MIB = 2.0**20


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store("digits", LENET, DataOptions(cache=tmp_path_factory.mktemp("cache")))  # 1,294 training images


def choose(store, recipe, monkeypatch, memory=1e12, keep_lr=False, per_image=MIB, fixed=0.0):
    monkeypatch.setattr(batch_size, "free_memory", lambda device: memory)
    monkeypatch.setattr(batch_size, "step_memory", lambda *_: (fixed, per_image))
    lines: list[str] = []
    chosen = batch_size.choose_batch_size(recipe, store, CPU, keep_lr=keep_lr, log=lines.append)
    return chosen, lines[0]


@pytest.mark.parametrize(
    ("recipe_size", "memory", "fixed", "expected"),
    [
        (32, 1e12, 0, 64),  # 1,294 images / 20 steps = 64.7
        (256, 1e12, 0, 256),  # few images do not make it smaller than the recipe's
        (100, 1e12, 0, 64),  # a power of two
        (256, 100 * MIB, 0, 64),  # 80 % of 100 MiB: 80 images
        (256, 100 * MIB, 60 * MIB, 16),  # 20 images beside the weights
        (256, 2 * MIB, 0, 1),
    ],
)
def test_size(store, monkeypatch, recipe_size, memory, fixed, expected):
    chosen, line = choose(store, LENET.replace(batch_size=recipe_size), monkeypatch, memory=memory, fixed=fixed)
    assert chosen.batch_size == expected
    assert line.startswith(f"batch size: {expected}, for ")
    assert ("of free memory" in line) == (memory < 1e12)
    assert chosen.replace(batch_size=recipe_size, lr=LENET.lr) == LENET.replace(batch_size=recipe_size)


def test_never_above_the_limit(store, monkeypatch):
    chosen, _ = choose(store, LENET.replace(batch_size=5000), monkeypatch)
    assert chosen.batch_size == batch_size.MAX_BATCH_SIZE


@pytest.mark.parametrize(
    ("changes", "keep_lr", "expected"),
    [
        ({"optimizer": "adamw", "lr": 0.001}, False, 0.002),  # √(64/16)
        ({"optimizer": "sgd", "lr": 0.01}, False, 0.04),  # 64/16
        ({"optimizer": "sgd", "lr": 0.01}, True, 0.01),
        ({"optimizer": "sgd", "lr": 0.01, "lr_base_size": 32}, False, 0.01),  # the recipe scales it itself
    ],
)
def test_learning_rate(store, monkeypatch, changes, keep_lr, expected):
    recipe = Recipe(model="lenet5", initialization="own", batch_size=16).replace(**changes)
    chosen, line = choose(store, recipe, monkeypatch, keep_lr=keep_lr)
    assert (chosen.batch_size, chosen.lr) == (64, expected)
    assert f"learning rate {expected:g}" in line


def test_not_even_one_image(store, monkeypatch):
    with pytest.raises(RecipeError, match="needs about 200 GiB, and 1 GiB of memory are free"):
        choose(store, LENET, monkeypatch, memory=2.0**30, per_image=200 * 2.0**30)


def test_memory_of_a_step_is_that_of_its_feature_maps(store):
    """LeNet-5: 61,706 or fewer weights, six numbers each. Its layers keep their inputs and outputs, twice in a step."""
    network = alexnet.create_model("lenet5", num_classes=10)
    weights = sum(parameter.numel() for parameter in network.parameters())
    outputs: list[int] = []
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _m, _i, output: outputs.append(4 * output.numel()))
    network(torch.zeros(1, network.in_channels, network.image_size, network.image_size))
    fixed, per_image = batch_size.step_memory(LENET, store, CPU)
    assert fixed == pytest.approx(6 * 4 * weights, rel=0.5)
    assert sum(outputs) < per_image < 6 * sum(outputs)


def test_free_memory_is_positive_and_below_that_of_the_machine():
    total = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    assert 0 < batch_size.free_memory(CPU) <= 1024 * total


def test_the_limit_of_a_container_counts(monkeypatch):
    files = {"/sys/fs/cgroup/memory.max": ["3000"], "/sys/fs/cgroup/memory.current": ["1000"]}
    monkeypatch.setattr(batch_size, "_lines", lambda path: files.get(path, []))
    assert batch_size.free_memory(CPU) == 2000
    files["/sys/fs/cgroup/memory.max"] = ["max"]  # no limit
    assert batch_size.free_memory(CPU) > 1e6


def test_a_run_records_what_was_chosen(tmp_path):
    result = alexnet.train("digits", "lenet5", tmp_path / "run", batch_size="auto", epochs=1, stored_size=32)
    text = (tmp_path / "run" / "recipe.toml").read_text()
    assert result.recipe.batch_size == 64
    assert "batch_size = 64 " in text


@pytest.mark.slow
def test_the_option(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "alexnet", "train", "digits", "--recipe", "lenet5", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = run("--batch-size", "auto", "--epochs", "1", "--no-report", "--output-dir", "r")
    assert done.returncode == 0, done.stderr
    assert "batch size: 64, for 1,294 training images (recipe: 64)" in done.stderr
    refused = run("--batch-size", "automatic")
    assert refused.returncode == 2
    assert refused.stderr == "alexnet: --batch-size is 'automatic': must be an integer or auto\n"
