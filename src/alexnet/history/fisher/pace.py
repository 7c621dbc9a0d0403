"""How densely the runner-up can look at pictures in the time that it has: measured on a few of them."""

import dataclasses
import os
import time

import numpy as np

from alexnet.data.store import Store
from alexnet.history.fisher import margin
from alexnet.history.fisher.classifier import Settings
from alexnet.history.fisher.descriptors import Grid, count, describe, middle
from alexnet.history.fisher.learning import WITNESSES

STEPS = (2, 3, 4, 5, 6, 8, 10, 12)  # pixels from patch to patch, of which the smallest that fits is taken
MANY = 6000  # patches in a picture at most: beyond, neighbors say the same
ENCODING = 1.5  # times as long as describing: axes, posteriors and sums come to it
BESIDE = 120.0  # seconds for mixtures and linear classifiers at most; less with few pictures
TRIED = 4  # pictures that are described to see how long it takes


def settings_within(settings: Settings, store: Store, seconds: float) -> Settings:
    """``settings`` with the densest grid that can be used in ``seconds``, by a few training pictures' time."""
    each = patch_seconds(settings, store)
    sides = min(settings.side or store.size, store.size)
    for step in STEPS:
        grid = dataclasses.replace(settings.grid, step=step)
        found = dataclasses.replace(settings, grid=grid)
        patches = count(sides, grid)
        if patches <= MANY and needed(patches, each, store) <= seconds:
            return found
    return found


def needed(patches: int, each: float, store: Store) -> float:
    """Seconds for all pictures of the store, with so many ``patches`` of ``each`` seconds in every one."""
    train, validation, test = (len(store.split(name)) for name in ("train", "validation", "test"))
    pictures = min(train, WITNESSES) + min(train, margin.MOST) + validation + test
    beside = min(BESIDE, BESIDE * train / 2000)
    return beside + pictures * patches * each * ENCODING / (os.cpu_count() or 1)


def patch_seconds(settings: Settings, store: Store) -> float:
    """To describe a patch, on one core."""
    split, grid = store.split("train"), Grid(4, settings.grid.patch, settings.grid.scales)
    pictures = split.gather(np.arange(min(TRIED, len(split))))
    views = [middle(picture, settings.side) for picture in pictures]
    describe(views[0], grid)  # what is made once
    started = time.perf_counter()
    patches = sum(len(describe(view, grid).sift) for view in views)
    return (time.perf_counter() - started) / patches
