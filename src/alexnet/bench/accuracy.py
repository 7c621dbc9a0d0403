"""How many pictures of its test split a trained network has right in each precision: what speed costs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alexnet.bench import peers, steps, whole_numbers
from alexnet.bench.arena import Skipped
from alexnet.bench.subject import Subject
from alexnet.bundle import Bundle
from alexnet.deploy.classifier import Classifier
from alexnet.deploy.export_run import right
from alexnet.evaluation.evaluate import log_probabilities
from alexnet.models import kernel
from alexnet.temporary import temporary_folder


@dataclass(frozen=True)
class Accuracy:
    """``right`` of ``count`` pictures, by the likeliest class; or the reason why nothing was counted."""

    name: str
    right: int = 0
    count: int = 0
    skipped: str = ""


def accuracies(subject: Subject, say: Callable[[str], None]) -> list[Accuracy]:
    """Of the contenders that answer with the run's weights, in this process."""
    kernel.build()
    split, found = subject.test(), []
    with temporary_folder() as folder:
        for name, make in _contenders(subject, folder):
            say(f"accuracy: {name}")
            try:
                found.append(Accuracy(name, right(make(), split), len(split)))
            except Skipped as skipped:
                found.append(Accuracy(name, skipped=str(skipped)))
    return found


def _contenders(subject: Subject, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    bundle = subject.bundle()
    yield f"{steps.OURS}, fp32", lambda: Classifier(bundle)
    yield f"{steps.OURS}, bf16", lambda: Classifier(bundle, precision="bf16")
    for suffix, who in ((".xml", steps.OPENVINO), (".onnx", steps.ONNX)):
        yield (
            f"{steps.OURS}, int8 file, by {who}",
            lambda suffix=suffix: whole_numbers.exported(subject, folder, suffix),  # type: ignore[misc]
        )
    yield f"{steps.PLAIN}, fp32", lambda: _Plain(peers.plain(bundle.network).eval(), bundle)


class _Plain:
    """A network of ``torch.nn`` modules that answers as a :class:`Classifier` does."""

    def __init__(self, network: nn.Module, bundle: Bundle) -> None:
        self.network, self.bundle = network, bundle

    def probabilities(self, pictures: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        own = self.bundle.network
        found: NDArray[np.float32] = log_probabilities(
            self.network, torch.from_numpy(np.stack(pictures)), self.bundle.statistics,
            side=own.image_size, channels=own.in_channels,
        ).exp().numpy()  # fmt: skip
        return found
