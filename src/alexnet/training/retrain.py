"""A classifier that learns on while something in it is held: the one loop, without a test and without a bundle."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch

from alexnet.batches.loader import Loader
from alexnet.bundle import Bundle
from alexnet.data.store import Store
from alexnet.errors import Interrupted
from alexnet.models.network import Network
from alexnet.recipe import Recipe, from_dict
from alexnet.training import loop, machine
from alexnet.training.held import Held
from alexnet.training.journal import Journal
from alexnet.training.loop import Training
from alexnet.training.run import statistics_of
from alexnet.training.saving import Unsaved
from alexnet.training.start import of_bundle
from alexnet.training.state import State


def recipe_for(bundle: Bundle, epochs: int, rate: float | None, kept: float, device: torch.device) -> Recipe:
    """The bundle's own recipe for a few epochs more: full-size views, the rate from ``rate`` (a third of its own
    highest by default) to 0, and dropout as the network's connections are fewer.

    Han, Pool, Tran and Dally 2015 (section 3.2): dropout times √(connections kept), ``kept`` being that share.
    """
    base = machine.settled(own_recipe(bundle), device)
    changes: dict[str, Any] = {
        "epochs": epochs, "learning_rate": rate or base.highest_rate / 3, "rate_per": 0, "schedule": "cosine",
        "drops": (),
        "warmup": min(0.25, epochs / 4), "small_share": 0.0, "keep": "last", "join_from": 0, "stop_error": 0.0,
        "freeze": "", "dropout": base.dropout * math.sqrt(kept),
    }  # fmt: skip
    return base.replace(**changes)


def own_recipe(bundle: Bundle) -> Recipe:
    """The recipe by which a bundle was trained; of imported weights, the default one as they need it."""
    base = from_dict(bundle.recipe) if bundle.recipe else Recipe()
    return of_bundle(bundle, "the bundle", "").recipe(base)


def retrain(
    bundle: Bundle, recipe: Recipe, store: Store, folder: Path, held: Held, *, device: torch.device,
    workers: int = 1, quiet: bool = True,
) -> Network:  # fmt: skip
    """The network of ``bundle`` after it has learned by ``recipe`` on the store's training pictures, ``held`` holding.

    The bundle's own network stays as it is. ``folder`` gets journal.jsonl and results.csv, and no checkpoints: raises
    :class:`Interrupted` after a signal, and :class:`alexnet.errors.TrainingError` as training does.
    """
    start = of_bundle(bundle, "the bundle", "")
    state = State(recipe, store, device, start)
    state.held = held
    network = state.network
    statistics = dataclasses.replace(statistics_of(store, recipe, network.image_size), **state.shown)
    loader = Loader(
        store.split("train"), recipe, statistics, side=network.image_size, channels=network.in_channels, device=device,
        workers=workers,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with machine.tuned(recipe), Journal(folder, quiet=quiet) as journal, machine.stop_on_signals() as stop:
        journal.event("started", epochs=recipe.epochs, learning_rate=recipe.learning_rate, dropout=recipe.dropout)
        try:
            loop.train(Training(state, loader, statistics, journal, folder, stop, Unsaved(state, journal, folder)))
        except Interrupted as error:
            raise Interrupted(error.signal, "stopped while the network learned again; nothing was kept", "") from error
    return state.judged.eval()
