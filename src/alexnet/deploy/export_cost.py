"""What a lower precision costs, counted: original and exported classifier on the same validation pictures."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.bundle import Bundle
from alexnet.data.store import Split, Store
from alexnet.deploy.classifier import Classifier
from alexnet.deploy.export_int8 import CALIBRATION
from alexnet.deploy.runtime import Exported
from alexnet.errors import DataError

BATCH = 32


def calibration(store: Store) -> NDArray[np.uint8]:
    """Pictures of the training split to measure ranges on: uint8 [n, S, S, 3], spread over all of it."""
    split = store.split("train")
    if not len(split):
        raise DataError(f"{store.path} has no training pictures", "at least one", "give another store")
    indices = np.linspace(0, len(split) - 1, min(CALIBRATION, len(split))).astype(np.int64)
    return split.gather(indices)


def cost(bundle: Bundle, exported: Path, store: Store) -> dict[str, int]:
    """How many of the validation pictures (``count``) the ``original`` and the ``exported`` classifier have right."""
    split = store.split("validation")
    return {
        "count": len(split),
        "original": _right(Classifier(bundle), split),
        "exported": _right(Exported.load(exported, trust=True), split),
    }


def _right(answers: Any, split: Split) -> int:
    right = 0
    for start in range(0, len(split), BATCH):
        indices = np.arange(start, min(start + BATCH, len(split)))
        rows = answers.probabilities(list(split.gather(indices)))
        right += int((rows.argmax(1) == split.labels[indices]).sum())
    return right
