"""What a network weighs, answers and takes at each stage of its compression."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from alexnet.bundle import Bundle
from alexnet.compression.quantizing import layers
from alexnet.data.store import Store
from alexnet.deploy import latency
from alexnet.evaluation.metrics import Scores
from alexnet.evaluation.responses import collect
from alexnet.models.network import Network


@dataclass(frozen=True)
class Stage:
    """One row of the table. ``bytes``: of the weights, as a file would hold them; ``memory``: while the network runs.

    ``kept``: share of the weights, biases aside, that are not 0. ``latency``: pictures at once -> median milliseconds
    of the original and of this network, measured in turn.
    """

    name: str
    what: str
    bytes: int
    kept: float
    memory: int
    validation: Scores | None = None
    latency: Mapping[int, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        times = {str(n): {"original_ms": a, "ms": b} for n, (a, b) in self.latency.items()}
        scores = self.validation.to_dict() if self.validation else None
        return vars(self) | {"validation": scores, "latency": times}


class Scale:
    """Measures networks in place of the one in ``bundle``; without a ``store`` it counts no answers."""

    def __init__(self, bundle: Bundle, store: Store | None, device: torch.device) -> None:
        self.bundle, self.store, self.device = bundle, store, device
        self.original = bundle.network.to(device).to(memory_format=torch.channels_last).eval()

    def stage(self, name: str, what: str, network: Network, size: int, *, rounds: int = 1) -> Stage:
        """Measure ``network``, whose weights take ``size`` bytes; ``rounds`` times as long as usual."""
        network = network.to(self.device).to(memory_format=torch.channels_last).eval()
        times = {}
        for batch, usual in latency.BATCHES.items():
            first, second = latency.in_turn([self.original, network], batch, usual * rounds)
            times[batch] = (first, second)
        memory = sum(p.nbytes for p in network.parameters())
        return Stage(name, what, size, kept(network), memory, self.validation(network), times)

    def validation(self, network: Network) -> Scores | None:
        """Scores on the validation split, in float32."""
        if self.store is None:
            return None
        return collect(
            network, self.store.split("validation"), self.bundle.statistics, side=network.image_size,
            channels=network.in_channels, device=self.device,
        ).scores()  # fmt: skip


def kept(network: Network) -> float:
    """Share of the weights, biases aside, that are not 0."""
    weights = layers(network).values()
    return sum(int(w.count_nonzero()) for w in weights) / max(1, sum(w.numel() for w in weights))


def plain_size(network: Network) -> int:
    """Bytes of all weights as float32."""
    return sum(4 * tensor.numel() for tensor in network.state_dict().values())


def listed_size(network: Network, bits: Mapping[str, int] | None = None) -> int:
    """Bytes of a plain list of the weights that are left, before any Huffman code: each with a byte for the gap before
    it, and ``bits`` of its layer (float32 where there are none)."""
    coded = layers(network)
    rest = plain_size(network) - sum(4 * w.numel() for w in coded.values())
    each = {name: 8 + (bits[name] if bits else 32) for name in coded}
    books = sum(4 * 2 ** bits[name] for name in coded) if bits else 0
    return rest + books + sum(int(w.count_nonzero()) * each[name] for name, w in coded.items()) // 8
