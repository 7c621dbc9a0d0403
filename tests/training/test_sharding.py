"""A network cut among processes is the same network: outputs, gradients, checkpoints, and the bytes that it costs."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from alexnet.errors import RecipeError
from alexnet.models.layers import set_generator
from alexnet.recipe import Recipe
from alexnet.training import checkpoint
from alexnet.training.distributed.communication import bytes_per_step
from alexnet.training.distributed.sharding import Layout, ModelSharding
from alexnet.training.distributed.world import World
from alexnet.training.task import build_network

SMALL = Recipe(
    model="alexnet_small",
    stored_size=32,
    epochs=2,
    batch_size=32,
    progressive_size=0,
    hflip=0.0,
    precision="fp32",
    convolution="plain",
    validation=0.2,
    lr=1e-3,
    mixup_prob=0.5,
    clip_grad_norm=0.5,
    warmup_epochs=0.0,
    optimizer="paper",
    weight_decay=0.0005,
    initialization="own",
)
IMAGES, CLASSES = 14, 7  # odd shares, odd classes


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> tuple[Path, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = 20 * torch.randn(IMAGES, 3, 24, 24, generator=generator)
    labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
    path = tmp_path_factory.mktemp("batch") / "batch.pt"
    torch.save((images, labels), path)
    return path, images, labels


@pytest.fixture(scope="module")
def single(batch) -> dict:
    """The same pass in one process, by nothing of what is tested."""
    _, images, labels = batch
    network = build_network(SMALL, CLASSES).train()
    set_generator(network, torch.Generator().manual_seed(1))
    logits = network(images)
    F.cross_entropy(logits, labels).backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    norm = torch.cat([g.flatten() for g in gradients.values()]).double().norm()
    count = sum(g.numel() for g in gradients.values())
    return {"logits": logits.detach(), "gradients": gradients, "norm": float(norm), "count": count}


def passes(ranks, batch, folder: Path, processes: int, layout: list, **more) -> list[dict]:
    ranks(
        processes,
        "gradients",
        recipe=SMALL.to_dict(),
        classes=CLASSES,
        images=IMAGES,
        data=str(batch[0]),
        layout=layout,
        out=str(folder / "found"),
        **more,
    )
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in range(processes)]


LAYOUTS = [
    (2, ["towers"]),
    (4, ["towers"]),
    (2, ["hybrid"]),
    (3, ["hybrid"]),
    (4, ["hybrid", 2]),
    (3, ["data"]),
]


@pytest.mark.parametrize(("processes", "layout"), LAYOUTS, ids=str)
def test_outputs_and_gradients_are_those_of_one_process(processes, layout, batch, single, ranks, tmp_path):
    for found in passes(ranks, batch, tmp_path, processes, layout):
        expected = single["logits"][found["places"]]
        assert (found["logits"] - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max()))
        assert list(found["gradients"]) == list(single["gradients"])
        for name, gradient in single["gradients"].items():
            scale = max(1.0, float(gradient.abs().max()))
            assert (found["gradients"][name] - gradient).abs().max() <= 1e-6 * scale, name
        if found["norm"] is not None:
            assert float(found["norm"]) == pytest.approx(single["norm"], rel=1e-5)
        expected = bytes_per_step(build_network(SMALL, CLASSES), Layout(*layout), IMAGES, processes)
        if IMAGES % processes == 0:
            assert found["sent"] == pytest.approx(expected, rel=1e-9)
        else:
            assert sum(found["sent"].values()) == pytest.approx(sum(expected.values()), rel=0.25)


def test_a_tower_is_half_of_the_network(batch, single, ranks, tmp_path):
    for found in passes(ranks, batch, tmp_path, 2, ["towers"]):
        assert found["own"] / single["count"] == pytest.approx(0.5, abs=0.001)  # fc8's biases are on both


@pytest.mark.parametrize("layout", [["towers"], ["hybrid"]], ids=str)
def test_the_naive_mistake_makes_gradients_twice_too_large(layout, batch, single, ranks, tmp_path):
    """Summing the logits' gradient over two processes that both have it: the control of the tests above."""
    found = passes(ranks, batch, tmp_path, 2, layout, naive=True)[0]
    assert torch.allclose(found["logits"], single["logits"], atol=1e-5)  # the outputs show nothing
    for name in ("conv2.weight", "fc6.weight", "fc8.weight"):
        assert torch.allclose(found["gradients"][name], 2 * single["gradients"][name], rtol=1e-3, atol=1e-6), name


def run(ranks, digits, folder: Path, processes: int, layout: list, **more) -> list:
    ranks(processes, store=str(digits.path), folder=str(folder), recipe=SMALL.to_dict(), layout=layout, **more)
    return json.loads(Path(f"{folder}.json").read_text())["losses"]


@pytest.fixture(scope="module")
def alone(digits, ranks, tmp_path_factory) -> tuple[Path, list]:
    folder = tmp_path_factory.mktemp("alone") / "run"
    return folder, run(ranks, digits, folder, 1, ["data"])


def newest(folder: Path) -> dict:
    return checkpoint.load_latest(folder / "checkpoints")[1]


def same_checkpoint(a: dict, b: dict, atol: float) -> None:
    for which in ("network", "ema"):
        assert list(a[which]) == list(b[which])
        for name, tensor in a[which].items():
            assert torch.allclose(tensor, b[which][name], rtol=0, atol=atol), (which, name)
    assert a["optimizer"]["param_groups"] == b["optimizer"]["param_groups"]
    assert list(a["optimizer"]["state"]) == list(b["optimizer"]["state"])
    for number, state in a["optimizer"]["state"].items():
        for name, tensor in state.items():
            other = b["optimizer"]["state"][number][name]
            assert tensor.shape == other.shape
            # A sum in another order may turn a ReLU or a maximum of one image around: gradients of a layer before it
            # were seen to differ by 1e-4 of the largest, weights not.
            assert (tensor - other).abs().max() <= 50 * atol * max(1, other.abs().max()), (number, name)


@pytest.mark.parametrize(
    ("processes", "layout"),
    [
        (2, ["towers"]),
        pytest.param(4, ["towers"], marks=pytest.mark.slow),
        pytest.param(2, ["hybrid"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_and_its_checkpoint_are_those_of_one_process(processes, layout, alone, digits, ranks, tmp_path):
    losses = run(ranks, digits, tmp_path / "run", processes, layout)
    assert [right for _, right in losses] == [right for _, right in alone[1]]
    assert max(abs(a - b) for (a, _), (b, _) in zip(losses, alone[1], strict=True)) < 1e-6
    same_checkpoint(newest(tmp_path / "run"), newest(alone[0]), 1e-5)


@pytest.mark.slow
def test_any_layout_goes_on_with_any_other(alone, digits, ranks, tmp_path):
    """Five steps an epoch: stopped in the middle, each time gone on with in another layout."""
    folder, losses = tmp_path / "run", []
    for processes, layout, stop in ((2, ["towers"], 2), (1, ["data"], 4), (2, ["hybrid"], 7), (2, ["data"], 11)):
        acts = [["SIGTERM", processes - 1, stop]]
        losses += run(ranks, digits, folder, processes, layout, acts=acts, expect=143 if stop < 11 else 0)
    assert len(losses) == 10
    assert max(abs(a - b) for (a, _), (b, _) in zip(losses, alone[1], strict=True)) < 1e-6
    same_checkpoint(newest(folder), newest(alone[0]), 1e-5)


@pytest.mark.parametrize(
    ("layout", "model", "message"),
    [
        (Layout("towers"), "alexnet_single", "alexnet_single has no two towers; must be alexnet or alexnet_2012"),
        (Layout("hybrid", 2), "cifar_18pct", "no fully connected layers to shard"),
    ],
)
def test_networks_that_can_not_be_cut_are_refused(layout, model, message):
    with torch.device("meta"), pytest.raises(RecipeError, match=message):
        ModelSharding(
            build_network(Recipe(model=model, initialization="own"), 10), layout, World(torch.device("cpu"), 0, 2, 2)
        )


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(grad_accum_steps=0), "--grad-accum-steps is 0; must be at least 1"),
        (Layout("data", 2), "--split is 2 with --parallel data"),
        (Layout("hybrid", -1), "--split is -1"),
        (Layout("hybrid", 0, 2), "--grad-accum-steps is not supported with --parallel hybrid"),
    ],
)
def test_what_does_not_go_together_is_refused(layout, message):
    with pytest.raises(RecipeError, match=message):
        layout.check(None, Recipe())


def test_the_big_networks_are_cut_in_half():
    """alexnet and alexnet_2012 themselves, without their weights."""
    for name in ("alexnet", "alexnet_2012"):
        with torch.device("meta"):
            whole = build_network(Recipe(model=name), 1000)
            shapes = {key: value.shape for key, value in whole.named_parameters()}
            cut = ModelSharding(whole, Layout("towers"), World(torch.device("meta"), 0, 2, 2))
        mine = dict(cut.network.named_parameters())
        assert list(mine) == list(shapes)
        assert sum(p.numel() for p in mine.values()) * 2 == sum(s.numel() for s in shapes.values()) + 1000
        assert mine["conv2.weight"].shape == (128, 48, 5, 5)
        assert mine["conv3.weight"].shape == (192, 256, 3, 3)
        assert mine["fc8.weight"].shape == (1000, 2048)
