"""Export of a run: training images calibrate int8, validation images measure the accuracy that a precision costs."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.bundle import Bundle, find_bundle
from alexnet.data.remote import local_path
from alexnet.data.run_file import read_run_file
from alexnet.data.store import Split, Store, recorded_store
from alexnet.errors import DataError
from alexnet.export.classifier import Classifier
from alexnet.export.export import CALIBRATION, SUFFIXES, ExportReport, Format, Precision
from alexnet.export.export import export as export_bundle
from alexnet.export.export_module import Input
from alexnet.export.exported_model import ExportedModel

BATCH = 32


def export_model(
    run: str | Path,
    path: str | Path | None = None,
    *,
    format: Format = "onnx",
    precision: Precision = "fp32",
    input: Input = "images",
    data: str | Path | None = None,
) -> tuple[ExportReport, dict[str, int] | None]:
    """Write a run or bundle as one file that others run; see :func:`alexnet.export.export.export`.

    Also returned, where precision is lost and the run's images (or the store ``data``) are at hand: how many of the
    validation ``count`` the ``original`` and the ``exported`` classifier have right.
    """
    bundle = Bundle.load(find_bundle(run))
    store = _store(Path(run), data) if precision != "fp32" else None
    if store is not None:
        bundle.same_classes(store.classes, store.address)
    folder = find_bundle(run).resolve()
    name = folder.parent.name if folder.name == "bundle" else folder.name
    target = local_path(path) if path else Path(name + SUFFIXES[format])
    images = calibration(store) if store is not None and precision == "int8" else None
    report = export_bundle(bundle, target, format=format, precision=precision, input=input, calibration=images)
    return report, accuracy_cost(bundle, target, store) if store is not None else None


def _store(run: Path, data: str | Path | None) -> Store | None:
    """The store ``data``, or the one that a run was trained on; None where only a bundle is at hand."""
    if data is None and not (run / "run.json").is_file():
        return None
    return Store.open(data or recorded_store(run, read_run_file(run)))


def calibration(store: Store) -> NDArray[np.uint8]:
    """Images of the training split to measure ranges on: uint8 [n, S, S, 3], spread over all of it."""
    split = store.split("train")
    if not len(split):
        raise DataError(f"{store.address} has no training images", "at least one", "give another store")
    indices = np.linspace(0, len(split) - 1, min(CALIBRATION, len(split))).astype(np.int64)
    return split.gather(indices)


def accuracy_cost(bundle: Bundle, exported: Path, store: Store) -> dict[str, int]:
    """How many of the validation images (``count``) the ``original`` and the ``exported`` classifier have right."""
    split = store.split("validation")
    return {
        "count": len(split),
        "original": count_correct(Classifier(bundle), split),
        "exported": count_correct(ExportedModel.load(exported, trust=True), split),
    }


def count_correct(classifier: Any, split: Split) -> int:
    """How many images of ``split`` are classified correctly by the top-1 prediction of ``classifier``."""
    result = 0
    for start in range(0, len(split), BATCH):
        indices = np.arange(start, min(start + BATCH, len(split)))
        rows = classifier.probabilities(list(split.gather(indices)))
        result += int((rows.argmax(1) == split.labels[indices]).sum())
    return result
