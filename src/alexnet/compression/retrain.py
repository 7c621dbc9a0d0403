"""Retraining of a network under a weight constraint: the training loop without evaluation and without a bundle."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch

from alexnet.bundle import Bundle
from alexnet.data.store import Store
from alexnet.errors import Interrupted
from alexnet.loader.loader import Loader
from alexnet.models.network import Network
from alexnet.recipe import Recipe, from_dict
from alexnet.training import loop, runtime
from alexnet.training.async_checkpoint import NoCheckpoints
from alexnet.training.finetune import of_bundle
from alexnet.training.logger import RunLogger
from alexnet.training.loop import Training
from alexnet.training.run import normalization_for
from alexnet.training.state import State
from alexnet.training.weight_constraint import WeightConstraint


def recipe_for(bundle: Bundle, epochs: int, lr: float | None, kept: float, device: torch.device) -> Recipe:
    """The bundle's own recipe for retraining: full-size crops, a cosine schedule from ``lr`` to 0, reduced dropout.

    ``lr`` is a third of the recipe's peak by default.

    Han, Pool, Tran and Dally 2015 (section 3.2): dropout times √(connections kept), ``kept`` being that share.
    """
    base = runtime.resolve_auto(own_recipe(bundle), device)
    changes: dict[str, Any] = {
        "epochs": epochs,
        "lr": lr or base.peak_lr / 3,
        "lr_base_size": 0,
        "schedule": "cosine",
        "lr_milestones": (),
        "warmup_epochs": min(0.25, epochs / 4),
        "progressive_fraction": 0.0,
        "select_weights": "last",
        "train_on_val_from_epoch": 0,
        "stop_train_error": 0.0,
        "freeze": "",
        "dropout": base.dropout * math.sqrt(kept),
    }
    return base.replace(**changes)


def own_recipe(bundle: Bundle) -> Recipe:
    """The recipe by which a bundle was trained; of imported weights, the default one as they need it."""
    base = from_dict(bundle.recipe) if bundle.recipe else Recipe()
    return of_bundle(bundle, "the bundle", "").recipe(base)


def retrain(
    bundle: Bundle,
    recipe: Recipe,
    store: Store,
    folder: Path,
    held: WeightConstraint,
    *,
    device: torch.device,
    workers: int = 1,
    quiet: bool = True,
) -> Network:
    """The network of ``bundle`` after it has learned by ``recipe`` on the store's training images, ``held`` holding.

    The bundle's own network stays as it is. ``folder`` gets journal.jsonl and results.csv, and no checkpoints: raises
    :class:`Interrupted` after a signal, and :class:`alexnet.errors.TrainingError` as training does.
    """
    start = of_bundle(bundle, "the bundle", "")
    state = State(recipe, store, device, start)
    state.constraint = held
    network = state.network
    normalization = dataclasses.replace(normalization_for(store, recipe, network.image_size), **state.preprocessing)
    loader = Loader(
        store.split("train"),
        recipe,
        normalization,
        image_size=network.image_size,
        channels=network.in_channels,
        device=device,
        num_workers=workers,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with runtime.cpu_settings(recipe), RunLogger(folder, quiet=quiet) as journal, runtime.stop_on_signals() as stop:
        journal.event("started", epochs=recipe.epochs, lr=recipe.lr, dropout=recipe.dropout)
        try:
            loop.train(
                Training(state, loader, normalization, journal, folder, stop, NoCheckpoints(state, journal, folder))
            )
        except Interrupted as error:
            raise Interrupted(error.signal, "stopped while the network learned again; nothing was kept", "") from error
    return state.eval_model.eval()
