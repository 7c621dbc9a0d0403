"""The stages of a compression: size, accuracy, memory and latency of the network after each one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from alexnet.bundle import Bundle
from alexnet.compression.quantize import weight_tensors
from alexnet.data.store import Store
from alexnet.evaluation.evaluate import predict_split
from alexnet.evaluation.metrics import Scores
from alexnet.export import latency
from alexnet.models.network import Network


@dataclass(frozen=True)
class Stage:
    """The measurements of one stage.

    Attributes:
        name: ``original``, ``pruned``, ``retrained``, ``shared``, ``tuned``, ``int8``, ``int4`` or ``coded``.
        description: What the stage did, in a few words.
        bytes: Size of the weights, as a file would hold them.
        nonzero: Fraction of the weights (without biases) that are not 0.
        memory: Bytes of the decoded weights while the network runs.
        validation: Scores on the validation split; None without images.
        latency: Batch size -> median milliseconds of the original and of this network, measured interleaved.
    """

    name: str
    description: str
    bytes: int
    nonzero: float
    memory: int
    validation: Scores | None = None
    latency: Mapping[int, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The stage as JSON values."""
        times = {str(n): {"original_ms": original, "ms": ms} for n, (original, ms) in self.latency.items()}
        scores = self.validation.to_dict() if self.validation else None
        return vars(self) | {"validation": scores, "latency": times}


class StageMeter:
    """Measures networks that replace the one in ``bundle``. Without a ``store`` accuracy is not measured."""

    def __init__(self, bundle: Bundle, store: Store | None, device: torch.device) -> None:
        self.bundle, self.store, self.device = bundle, store, device
        self.original = bundle.network.to(device).to(memory_format=torch.channels_last).eval()

    def measure(self, name: str, description: str, network: Network, size: int, *, rounds: int = 1) -> Stage:
        """Measure ``network``, whose weights take ``size`` bytes.

        Args:
            name: The name of the stage.
            description: What the stage did.
            network: The network after the stage.
            size: Bytes of its weights in a file.
            rounds: Factor on the default number of latency rounds.
        """
        network = network.to(self.device).to(memory_format=torch.channels_last).eval()
        times = {}
        for batch, default_rounds in latency.BATCHES.items():
            original, compressed = latency.interleaved_latency([self.original, network], batch, default_rounds * rounds)
            times[batch] = (original, compressed)
        memory = sum(p.nbytes for p in network.parameters())
        return Stage(name, description, size, nonzero_fraction(network), memory, self.validate(network), times)

    def validate(self, network: Network) -> Scores | None:
        """Scores on the validation split, in float32; None without images."""
        if self.store is None:
            return None
        return predict_split(
            network,
            self.store.split("validation"),
            self.bundle.normalization,
            image_size=network.image_size,
            channels=network.in_channels,
            device=self.device,
        ).scores()


def nonzero_fraction(network: Network) -> float:
    """Fraction of the weights (without biases) that are not 0."""
    weights = weight_tensors(network).values()
    return sum(int(w.count_nonzero()) for w in weights) / max(1, sum(w.numel() for w in weights))


def float32_size(network: Network) -> int:
    """Bytes of all weights and biases as float32."""
    return sum(4 * tensor.numel() for tensor in network.state_dict().values())


def sparse_size(network: Network, bits: Mapping[str, int] | None = None) -> int:
    """Bytes of the nonzero weights as a list, before Huffman coding.

    Each weight takes one byte for the gap to the previous one, and ``bits`` of its layer (32 without ``bits``).
    """
    coded = weight_tensors(network)
    rest = float32_size(network) - sum(4 * w.numel() for w in coded.values())
    per_weight = {name: 8 + (bits[name] if bits else 32) for name in coded}
    codebooks = sum(4 * 2 ** bits[name] for name in coded) if bits else 0
    return rest + codebooks + sum(int(w.count_nonzero()) * per_weight[name] for name, w in coded.items()) // 8
