"""How fast a contestant is on this machine: some steps of its own training, measured before any contestant begins."""

import time
from collections.abc import Iterator
from statistics import median

import torch

from alexnet.batches.loader import Batch, Loader, in_order, to_device
from alexnet.data.store import Store
from alexnet.evaluation.evaluate import log_probabilities
from alexnet.history.contest.budget import Pace
from alexnet.recipe import Recipe
from alexnet.training import loop, machine
from alexnet.training.run import statistics_of
from alexnet.training.state import State

LEAST, MOST, ENOUGH = 3, 60, 2.5  # timed steps; of more than the least, none is begun after so many seconds
WRITTEN = 40  # bytes on disk for each parameter: two checkpoints of four numbers, the best, the bundle
RATE = 150e6  # bytes a second that are hashed, written and flushed, with care


def measure(recipe: Recipe, store: Store, device: torch.device) -> Pace:
    """Seconds a picture at the recipe's sizes: one step to warm up, then a few that count, batches included."""
    started = time.perf_counter()
    with machine.tuned(recipe):
        state = State(recipe, store, device)
        network = state.network
        statistics = statistics_of(store, recipe, network.image_size)
        loader = Loader(
            store.split("train"), recipe, statistics, side=network.image_size, channels=network.in_channels,
            device=device,
        )  # fmt: skip
        begun = time.perf_counter() - started
        sides = sorted({network.image_size, recipe.small_size or network.image_size})
        seconds = [_train(state, loader, side) for side in sides if side <= network.image_size]
        judged = _judge(state, store)
    parameters = sum(p.numel() for p in network.parameters())
    return Pace(seconds[0], seconds[-1], judged, 2 * begun + parameters * WRITTEN / RATE)


def _train(state: State, loader: Loader, side: int) -> float:
    """Seconds to learn from a picture whose view has ``side`` pixels."""
    batches = _endless(loader, side)
    state.network.train()
    loop.train_step(state, next(batches))
    found: list[float] = []
    started = time.perf_counter()
    while len(found) < LEAST or (len(found) < MOST and time.perf_counter() - started < ENOUGH):
        begun = time.perf_counter()
        batch = next(batches)
        loop.train_step(state, batch)
        state.position.step += 1
        state.average()
        found.append((time.perf_counter() - begun) / len(batch.labels))
    return median(found)  # what else happens on the machine disturbs single steps


def _endless(loader: Loader, side: int) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from loader.epoch(epoch, 0, side)
        epoch += 1


def _judge(state: State, store: Store) -> float:
    """Seconds to judge a picture at full size."""
    network = state.judged.eval()
    statistics = to_device(statistics_of(store, state.recipe, network.image_size), state.device)
    split = store.split("validation")
    images, _ = next(in_order(split, min(64, len(split))))
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        log_probabilities(
            network, images.to(state.device), statistics, side=network.image_size, channels=network.in_channels,
        ).cpu()  # fmt: skip
        seconds.append(time.perf_counter() - started)
    return min(seconds) / len(images)
