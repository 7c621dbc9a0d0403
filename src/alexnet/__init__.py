"""AlexNet, whole: the network of 2012 exactly as it was, trained on anybody's images.

Importing this package is fast and does no work; each name below is imported when it is first used.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet.api import compress, evaluate, load, prepare, report, train
    from alexnet.api.plotting import plot
    from alexnet.errors import AlexNetError
    from alexnet.export.classifier import Classifier, from_pretrained
    from alexnet.export.export_run import export
    from alexnet.export.exported_model import ExportedModel
    from alexnet.export.prediction import Prediction
    from alexnet.export.verify import verify
    from alexnet.models import create_model, list_models
    from alexnet.recipe import Recipe

__all__ = [
    "AlexNetError",
    "Classifier",
    "ExportedModel",
    "Prediction",
    "Recipe",
    "compress",
    "create_model",
    "evaluate",
    "export",
    "from_pretrained",
    "list_models",
    "load",
    "plot",
    "prepare",
    "report",
    "train",
    "verify",
]

_HOMES = {
    "AlexNetError": "alexnet.errors",
    "Classifier": "alexnet.export.classifier",
    "ExportedModel": "alexnet.export.exported_model",
    "Prediction": "alexnet.export.prediction",
    "Recipe": "alexnet.recipe",
    "compress": "alexnet.api",
    "create_model": "alexnet.models",
    "evaluate": "alexnet.api",
    "export": "alexnet.export.export_run",
    "from_pretrained": "alexnet.export.classifier",
    "list_models": "alexnet.models",
    "load": "alexnet.api",
    "plot": "alexnet.api",
    "prepare": "alexnet.api",
    "report": "alexnet.api",
    "train": "alexnet.api",
    "verify": "alexnet.export.verify",
}


def __getattr__(name: str) -> Any:
    if os.name != "posix":
        raise ImportError(f"operating system {os.name!r} is not supported; use Linux, on Windows by WSL 2")
    if name not in _HOMES:
        raise AttributeError(f"module 'alexnet' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
