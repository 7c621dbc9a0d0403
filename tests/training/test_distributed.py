"""Several processes on gloo train what one trains: the same losses, weights, counts; and none waits for the dead."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet import api
from alexnet.bundle import Bundle
from alexnet.errors import RecipeError, RunError
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model
from alexnet.recipe import Recipe, get_recipe
from alexnet.training import checkpoint
from alexnet.training.distributed.sharding import Layout
from alexnet.training.distributed.world import World, partition
from alexnet.training.logger import read_rows

# 160 images: 7 steps an epoch, the last of 16. Mixup draws partners from other processes' shares; crops are shared by
# neighbors; the average, the momentum and the clipped gradient follow.
RECIPE = get_recipe("cifar_18pct").replace(
    epochs=2,
    batch_size=24,
    validation=0.2,
    schedule="constant",
    ema_decay=0.99,
    pca_noise_std=0.1,
    mixup_prob=0.5,
    random_erase_prob=0.2,
    crop_group_size=5,
    crop="random",
    image_size=24,
    clip_grad_norm=0.5,
    precision="fp32",
    convolution="plain",
)
# Dropout on two layers, response norm in two towers, a frozen layer: a small AlexNet, of 160 images 3 steps.
ALEXNET = Recipe(
    model="alexnet_small",
    stored_size=32,
    epochs=1,
    batch_size=64,
    progressive_size=0,
    hflip=0.0,
    precision="fp32",
    convolution="plain",
    validation=0.2,
    lr=1e-3,
    freeze="conv1",
    mixup_prob=1.0,
    warmup_epochs=0.0,
    initialization="own",
)


def note(folder: Path) -> dict:
    return json.loads(Path(f"{folder}.json").read_text())


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return Bundle.load(folder / "bundle").network.state_dict()


def furthest(a: Path, b: Path) -> float:
    one, other = tensors(a), tensors(b)
    assert list(one) == list(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def alone(digits, tmp_path_factory, ranks) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    ranks(1, store=str(digits.path), folder=str(folder), recipe=RECIPE.to_dict())
    return folder


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow), 4])
def test_data_parallel_has_the_losses_of_one_process(processes, alone, digits, tmp_path, ranks):
    """Shares of 12, 8 or 6 images, of 8, 5·2 + 6 or 4 in the last batch; the global batch stays what it is."""
    folder = tmp_path / "run"
    ranks(processes, store=str(digits.path), folder=str(folder), recipe=RECIPE.to_dict())
    one, many = note(alone)["losses"], note(folder)["losses"]
    assert len(one) == 14
    assert [right for _, right in many] == [right for _, right in one]
    assert np.allclose([loss for loss, _ in many], [loss for loss, _ in one], rtol=0, atol=1e-6)
    assert furthest(folder, alone) < 1e-5
    scores = [Bundle.load(path / "bundle").metrics for path in (folder, alone)]
    for split in ("validation", "test"):
        assert [found[split]["count"] for found in scores] == [{"validation": 40, "test": 50}[split]] * 2
        assert scores[0][split]["top1"] == scores[1][split]["top1"]
        assert scores[0][split]["loss"] == pytest.approx(scores[1][split]["loss"], abs=1e-6)
    lines = [len((path / name).read_text().splitlines()) for path in (folder, alone) for name in ("results.csv",)]
    assert lines == [3, 3]


@pytest.mark.slow
def test_the_same_layout_twice_is_the_same_bit_for_bit(digits, tmp_path, ranks):
    for name in "ab":
        ranks(2, store=str(digits.path), folder=str(tmp_path / name), recipe=RECIPE.replace(epochs=1).to_dict())
    assert furthest(tmp_path / "a", tmp_path / "b") == 0


def test_deterministic_layouts_are_equal_bit_for_bit(digits, tmp_path, ranks):
    """1 and 2 processes; then 1 that is stopped and resumed by 4. Dropout, mixup, PCA noise, average, clipping."""
    job = {"store": str(digits.path), "recipe": RECIPE.to_dict(), "layout": ["data", 0, 1, True]}
    for processes in (1, 2):
        ranks(processes, folder=str(tmp_path / str(processes)), **job)
    ranks(1, expect=143, folder=str(tmp_path / "4"), acts=[["SIGTERM", 0, 9]], **job)
    ranks(4, folder=str(tmp_path / "4"), **job)
    assert furthest(tmp_path / "1", tmp_path / "2") == furthest(tmp_path / "1", tmp_path / "4") == 0
    assert note(tmp_path / "1")["losses"] == note(tmp_path / "2")["losses"]
    rows = [read_rows(tmp_path / name) for name in "124"]
    for row in (row for table in rows for row in table):
        del row["seconds"], row["images_per_second"]
    assert rows[0] == rows[1] == rows[2]
    weights = sum(tensor.numel() for tensor in tensors(tmp_path / "1").values())
    assert note(tmp_path / "2")["sent"]["gradients"] == 4 * weights


def test_deterministic_is_close_to_the_usual_order(alone, digits, tmp_path, ranks):
    folder = tmp_path / "run"
    layout = ["data", 0, 1, True]
    ranks(1, store=str(digits.path), folder=str(folder), recipe=RECIPE.to_dict(), layout=layout)
    assert 0 < furthest(folder, alone) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"batch_size": 3, "image_size": 32}, {"precision": "bf16"}])
def test_deterministic_layouts_of_other_recipes(changes, digits, tmp_path, ranks):
    """Response norm in two towers and dropout; fewer images than processes; bfloat16."""
    job = {"store": str(digits.path), "recipe": ALEXNET.replace(**changes).to_dict(), "layout": ["data", 0, 1, True]}
    for processes in (1, 4):
        ranks(processes, folder=str(tmp_path / str(processes)), **job)
    assert furthest(tmp_path / "1", tmp_path / "4") == 0


@pytest.mark.parametrize(
    ("processes", "layout", "recipe", "message"),
    [
        (3, ["data", 0, 1, True], RECIPE, "--deterministic with 3 processes; must be 1, 2, 4 or 8"),
        (1, ["data", 0, 2, True], RECIPE, "--deterministic is not supported with --grad-accum-steps"),
        (1, ["towers", 0, 1, True], ALEXNET, "--deterministic is not supported with --parallel towers"),
    ],
)
def test_what_deterministic_refuses(processes, layout, recipe, message, digits, tmp_path, ranks):
    job = {"store": str(digits.path), "folder": str(tmp_path / "run"), "recipe": recipe.to_dict(), "layout": layout}
    said = ranks(processes, expect=1, **job)["said"]
    assert all(message in text for text in said), said


def test_every_layout_begins_with_the_same_fitted_last_layer(digits, tmp_path, ranks):
    """One process, and two with a tower each; a learning rate of nearly 0."""
    network = create_model("alexnet_small", num_classes=3, generator=torch.Generator().manual_seed(5))
    normalization = Normalization(torch.full((3,), 30.0), torch.ones(3), torch.eye(3), torch.tensor(1.0))
    bundle = Bundle(network=network, classes=("a", "b", "c"), normalization=normalization, stored_size=32, fit="crop")
    source = bundle.save(tmp_path / "source")
    recipe = ALEXNET.replace(
        lr=1e-12, fit_last_layer=True, mean="channel", model="alexnet_small", select_weights="last", freeze=""
    )
    job = {"store": str(digits.path), "recipe": recipe.to_dict(), "init_from": str(source)}
    for name, processes, layout in (("one", 1, ["data"]), ("towers", 2, ["towers"])):
        ranks(processes, folder=str(tmp_path / name), layout=layout, **job)
    assert furthest(tmp_path / "one", tmp_path / "towers") < 1e-5
    losses = [Bundle.load(tmp_path / name / "bundle").metrics["validation"]["loss"] for name in ("one", "towers")]
    assert max(losses) < np.log(10) - 0.3  # a last layer that knows nothing has the logarithm


@pytest.mark.slow
def test_dropout_is_that_of_the_place_in_the_batch(digits, tmp_path, ranks):
    """Masks of one process's batch, cut: so the losses agree with dropout on, in shares and in accumulated pieces."""
    for name, processes, layout in (("one", 1, ["data"]), ("two", 2, ["data"]), ("pieces", 1, ["data", 0, 3])):
        folder = str(tmp_path / name)
        ranks(processes, store=str(digits.path), folder=folder, recipe=ALEXNET.to_dict(), layout=layout)
    one, two, pieces = (np.array(note(tmp_path / name)["losses"]) for name in ("one", "two", "pieces"))
    assert np.abs(two - one).max() < 1e-6
    assert np.abs(pieces - one).max() < 1e-6


def test_a_signal_to_any_process_stops_all_at_one_step(alone, digits, tmp_path, ranks):
    """SIGTERM to the second of two, in the middle of an epoch; gone on with by one process, then by three."""
    folder = tmp_path / "run"
    job = {"store": str(digits.path), "folder": str(folder), "recipe": RECIPE.to_dict()}
    said = ranks(2, expect=143, acts=[["SIGTERM", 1, 3]], **job)["said"]
    assert all(f"alexnet train --resume {folder}" in text for text in said)
    assert not (folder / "bundle").exists()
    assert [path.name for path in checkpoint.list_all(folder / "checkpoints")] == [checkpoint.name_of(3)]
    ranks(1, expect=130, acts=[["SIGINT", 0, 9]], **job)
    ranks(3, **job)
    assert furthest(folder, alone) < 1e-5
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["event"] == "epoch"] == [1, 2]
    assert [line.get("processes") for line in lines if line["event"] in ("started", "resumed")] == [2, None, 3]


def test_sigusr1_to_any_process_saves(digits, tmp_path, ranks):
    folder = tmp_path / "run"
    recipe = RECIPE.replace(epochs=1, checkpoint_every="1000min").to_dict()
    ranks(2, store=str(digits.path), folder=str(folder), recipe=recipe, acts=[["SIGUSR1", 1, 2]])
    assert [path.name for path in checkpoint.list_all(folder / "checkpoints")] == [
        checkpoint.name_of(step) for step in (2, 7)
    ]


@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("raise", marks=pytest.mark.slow)])
def test_a_process_that_dies_ends_the_others_with_a_clear_message(how, digits, tmp_path, ranks):
    """Killed, or an error of one process only: the others wait for a sum that never comes, and must not hang."""
    folder = tmp_path / "run"
    recipe = RECIPE.replace(checkpoint_every="2steps").to_dict()
    job = {"store": str(digits.path), "folder": str(folder), "recipe": recipe}
    found = ranks(3, expect=None, acts=[[how, 1, 5]], **job)
    assert found["ended"] == [1, -signal.SIGKILL if how == "SIGKILL" else 3, 1], found
    for rank in (0, 2):
        assert "TrainingError: another process of this run ended or cannot be reached" in found["said"][rank]
        assert "continue from the last checkpoint with --resume" in found["said"][rank]
    assert checkpoint.load_latest(folder / "checkpoints")[1]["position"]["step"] == 4
    ranks(2, **job)


def test_losses_that_are_no_numbers_on_one_process_stop_all_alike(digits, tmp_path, ranks):
    """One process of two meets pixels that are no numbers: both leave them out, and stop after the same third one."""
    folder, recipe = tmp_path / "run", RECIPE.replace(epochs=1, checkpoint_every="1steps").to_dict()
    acts = [["nan", 1, 3], ["nan", 1, 5], ["nan", 1, 6], ["nan", 1, 7]]
    found = ranks(2, expect=1, store=str(digits.path), folder=str(folder), recipe=recipe, acts=acts)
    assert all("DivergedError: the loss is nan at step 7 (epoch 1)" in text for text in found["said"]), found
    content = checkpoint.load_latest(folder / "checkpoints")[1]
    assert content["position"]["step"] == 6 and content["position"]["nonfinite_steps"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in content["network"].values())


def test_shares_are_contiguous_and_take_every_place_once():
    for total in (1, 2, 7, 128):
        for parts in (1, 2, 3, 8):
            shares = [partition(total, part, parts) for part in range(parts)]
            assert [place for one in shares for place in one] == list(range(total))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            worlds = [World(torch.device("cpu"), rank, parts) for rank in range(parts)]
            assert sum(world.loss_weight(total) for world in worlds) == pytest.approx(1)
            assert all(len(world.label_rows(total)) >= 1 for world in worlds)


@pytest.mark.slow
def test_fewer_images_than_processes(digits, tmp_path, ranks):
    """A batch of 3 on 4 processes: one has nothing to add, and takes part all the same."""
    recipe = RECIPE.replace(epochs=1, batch_size=3, checkpoint_every="1000min", image_size=16).to_dict()
    for name, processes in (("one", 1), ("four", 4)):
        ranks(processes, store=str(digits.path), folder=str(tmp_path / name), recipe=recipe)
    one, four = (np.array(note(tmp_path / name)["losses"]) for name in ("one", "four"))
    assert np.abs(one - four).max() < 1e-5  # 54 steps, each of which rounds
    assert np.abs(one[:10] - four[:10]).max() < 1e-6


@pytest.mark.parametrize("late", [0, 1])
def test_who_starts_again_is_not_sent_to_those_who_are_gone(late, ranks):
    """torchrun's own store outlives the workers, and has the addresses of the killed ones when new ones begin."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(store.port)}
    ranks(2, "meet", expect=-signal.SIGKILL, environment=agent, late=[0, 0], kill=True)
    for _ in range(2):
        ranks(2, "meet", environment=agent, late=[late, 0.5], kill=False, limit=20)


# By torchrun itself


def torchrun(*words: str | Path, agents: int = 1, processes: int = 2, port: int = 0, folder: Path) -> list:
    """One torchrun a machine, on two addresses of the loopback where there are two; returns the processes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    rendezvous = [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-backend=c10d", "--rdzv-id=test"]
    base = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={agents}", f"--nproc-per-node={processes}"]
    base += ["--max-restarts=3", "--monitor-interval=0.2", *rendezvous]
    calls = [
        [*base, f"--local-addr=127.0.0.{number + 1}", "-m", "--", "alexnet", "train", *map(str, words)]
        for number in range(agents)
    ]
    started = []
    for number, call in enumerate(calls):
        with (folder / f"agent-{number}.log").open("w") as log:
            started.append(subprocess.Popen(call, env=environment, stdout=log, stderr=log))
    return started


def options(recipe: Recipe) -> list[str]:
    base, found = get_recipe("cifar_18pct"), []
    for name, value in recipe.to_dict().items():
        if getattr(base, name) != getattr(recipe, name):
            found += [
                f"--{name.replace('_', '-')}",
                *([str(v) for v in value] if isinstance(value, list) else [str(value)]),
            ]
    return found


def killed_once(agents: list, folder: Path, victim: str) -> None:
    """Wait until a checkpoint is there, kill a worker with -9, and wait for the end."""
    deadline = time.monotonic() + 500
    while not checkpoint.list_all(folder / "checkpoints"):
        assert time.monotonic() < deadline
        assert all(agent.poll() is None for agent in agents), [p.read_text() for p in folder.parent.glob("*.log")]
        time.sleep(0.05)
    for status in Path("/proc").glob("[0-9]*/environ"):
        try:
            values = status.read_bytes().split(b"\0")
        except OSError:
            continue
        mine = f"{folder}".encode() in Path(status.parent / "cmdline").read_bytes()
        if mine and f"RANK={victim}".encode() in values:
            os.kill(int(status.parent.name), signal.SIGKILL)
    for agent in agents:
        agent.wait(500)


@pytest.mark.slow  # two agents and four workers import PyTorch: half a minute on a quiet core
@pytest.mark.parametrize("agents", [1, 2])
def test_torchrun_restarts_after_a_worker_is_killed(agents, digits, tmp_path, ranks):
    """One machine with two processes, or two machines (two agents that meet at an address) with one each."""
    recipe = RECIPE.replace(epochs=8, checkpoint_every="1steps", schedule="constant")
    folder, words = tmp_path / "run", [digits.path, "--recipe", "cifar_18pct", *options(recipe)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = torchrun(
        *words, "--output-dir", folder, "--quiet", agents=agents, processes=2 // agents, port=port, folder=tmp_path
    )
    try:
        killed_once(started, folder, "1")
    finally:
        for agent in started:
            if agent.poll() is None:
                agent.terminate()
            agent.wait(60)
    logs = "\n".join(path.read_text() for path in tmp_path.glob("agent-*.log"))
    assert [agent.returncode for agent in started] == [0] * agents, logs
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["event"] == "epoch"] == list(range(1, 9))
    assert any(line["event"] == "resumed" for line in lines), "the worker died too late"
    ranks(2, store=str(digits.path), folder=str(tmp_path / "calm"), recipe=recipe.to_dict())
    assert furthest(folder, tmp_path / "calm") == 0  # the same layout: the same weights, bit for bit


def test_max_restarts_needs_a_run_that_can_be_found(digits, capfd, monkeypatch):
    from alexnet import cli

    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert cli.run(["train", str(digits.path), "--recipe", "cifar_18pct"]) == 2
    assert "torchrun --max-restarts needs a run directory to resume; pass --output-dir DIR" in capfd.readouterr().err


def test_a_restart_refuses_the_folder_of_another_command(alone, digits):
    with pytest.raises(RunError, match=r"holds a run with epochs = 2; must be the run of this command"):
        api.train(digits.path, RECIPE.replace(epochs=5), alone, device="cpu", go_on=True)


def test_a_network_in_two_needs_two_processes(digits, tmp_path):
    with pytest.raises(
        RecipeError, match=r"sharded over 2 processes does not fit 1 process; must be a multiple of 2; start them with"
    ):
        api.train(digits.path, RECIPE, tmp_path / "run", device="cpu", layout=Layout("towers"))
