"""A network that PyTorch compiles computes and learns what it does as it is."""

import csv
import dataclasses
import functools
import shutil
from pathlib import Path

import pytest
import torch

from alexnet import api
from alexnet.data.prepare import prepare
from alexnet.data.sources import open_source
from alexnet.data.store import Store
from alexnet.errors import RecipeError
from alexnet.kernels import native_kernels
from alexnet.models import create_model
from alexnet.models.layers import set_generator
from alexnet.recipe import Recipe, get_recipe
from alexnet.training.distributed.world import World
from alexnet.training.state import State

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")  # which the compiler looks at

SMALL = get_recipe("cifar_18pct").replace(epochs=2, batch_size=16, validation=0.2, schedule="constant", lr=1e-3)
WITH_DROPOUT = Recipe(
    model="alexnet_small",
    initialization="own",
    stored_size=32,
    epochs=2,
    batch_size=16,
    progressive_size=24,
    precision="fp32",
    validation=0.2,
    compile=True,
)


@pytest.fixture(autouse=True)
def no_images(monkeypatch):
    monkeypatch.setattr(api, "TRAINING_PLOTS", ())


@pytest.fixture
def traced(monkeypatch):
    """What the compiler sees is run operation by operation: no minute for C++."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    source = open_source("digits")
    source = dataclasses.replace(source, splits={"all": source.splits["all"][:60]}, fingerprint="first 60")
    return prepare(source, tmp_path_factory.mktemp("store") / "32", size=32, validation=0.2, test=0.2)


def losses(folder: Path) -> list[float]:
    with (folder / "results.csv").open(newline="") as file:
        return [float(row[split]) for row in csv.DictReader(file) for split in ("train_loss", "validation_loss")]


def train(store: Store, recipe: Recipe, folder: Path) -> list[float]:
    api.train(store.path, recipe, folder, device="cpu")
    return losses(folder)


@pytest.mark.parametrize("name", ["alexnet_small", "cifar_18pct", "resnet18"])
def test_nothing_in_a_network_breaks_it_into_pieces(name, traced):
    """Custom gradients, dropout with a generator of its own, pools and norms: all in one graph, kernels left out."""
    native_kernels.build()
    network = create_model(name, num_classes=10, generator=torch.Generator().manual_seed(0)).train()
    set_generator(network, torch.Generator())
    side = network.image_size
    images = torch.randn(2, network.in_channels, side, side, generator=torch.Generator().manual_seed(1))
    seen = torch._dynamo.explain(network)(images)
    assert (seen.graph_count, seen.graph_break_count) == (1, 0)


def test_it_learns_as_without(store, tmp_path, traced):
    """The kernels' rounding is all that differs, and two epochs of it."""
    got = train(store, SMALL.replace(compile=True), tmp_path / "compiled")
    right = train(store, SMALL, tmp_path / "plain")
    assert got == pytest.approx(right, rel=1e-4)


def test_its_masks_are_a_function_of_seed_and_step(store, tmp_path, traced):
    """Compiled layers draw from PyTorch's own generator, whose state before does not matter."""
    torch.manual_seed(1)
    first = train(store, WITH_DROPOUT, tmp_path / "first")
    torch.manual_seed(2)
    assert train(store, WITH_DROPOUT, tmp_path / "second") == first
    assert train(store, WITH_DROPOUT.replace(seed=1), tmp_path / "other") != first


def test_several_processes_are_refused(store):
    world = World(torch.device("cpu"))
    world.size = 2
    with pytest.raises(RecipeError, match="--compile with several processes; must be one process"):
        State(SMALL.replace(compile=True), store, torch.device("cpu"), world=world)


@pytest.mark.slow
def test_compiled_in_earnest(store, tmp_path):
    """By PyTorch's C++, in two or three minutes."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler here")
    torch.compiler.reset()
    got = train(store, SMALL.replace(compile=True), tmp_path / "compiled")
    assert got == pytest.approx(train(store, SMALL, tmp_path / "plain"), rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_cuda_graphs_learn_as_without(store, tmp_path):
    recipe = SMALL.replace(precision="fp32", epochs=3)
    folders = tmp_path / "graphs", tmp_path / "plain"
    for folder, wanted in zip(folders, (True, False), strict=True):
        api.train(store.path, recipe.replace(compile=wanted), folder, device="cuda")
    assert losses(folders[0]) == pytest.approx(losses(folders[1]), rel=1e-3)
