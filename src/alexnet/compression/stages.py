"""The stages of a compression: quantization, retraining, and what is measured after each stage."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alexnet.bundle import Bundle, compressed_weights
from alexnet.bundle.compressed_weights import as_array
from alexnet.data.store import Store
from alexnet.errors import DivergedError, Interrupted, TrainingError
from alexnet.evaluation.evaluate import predict_split
from alexnet.evaluation.metrics import Scores
from alexnet.export import classifier
from alexnet.models.network import Network
from alexnet.recipe import Recipe, from_dict
from alexnet.training import loop, runtime
from alexnet.training.async_checkpoint import NoCheckpoints
from alexnet.training.finetune import of_bundle
from alexnet.training.logger import RunLogger
from alexnet.training.loop import Training
from alexnet.training.optim import WeightConstraint
from alexnet.training.run import training_loader
from alexnet.training.state import State

Method = Literal["deep", "int8", "int4"]


def weight_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The weights that are compressed (all but biases), by parameter name, in the network's order."""
    return {name: p for name, p in network.named_parameters() if p.dim() >= 2}


def code_bits(network: nn.Module, conv: int, fc: int) -> dict[str, int]:
    """Parameter name -> bits of a code: ``fc`` in fully connected layers, ``conv`` in all others.

    Han et al. 2016 take 5 and 8.
    """
    return {
        name: fc if isinstance(network.get_submodule(name.rpartition(".")[0]), nn.Linear) else conv
        for name in weight_tensors(network)
    }


@torch.no_grad()
def share_weights(network: nn.Module, bits: Mapping[str, int]) -> dict[str, str]:
    """Replace the weights of the named layers, in place, by at most 2^bits shared values; returns name -> coding."""
    for name, width in bits.items():
        weight = network.get_parameter(name)
        weight.copy_(torch.from_numpy(compressed_weights.share(as_array(weight), width)))
    return dict.fromkeys(bits, "shared")


@torch.no_grad()
def round_to_integers(network: nn.Module, kind: Literal["int8", "int4"]) -> dict[str, str]:
    """Round all weights but biases, in place, to integers times a scale; returns name -> coding."""
    for weight in weight_tensors(network).values():
        values = as_array(weight)
        largest = compressed_weights.largest_of(values, kind)
        integers = compressed_weights.integers(values, largest, kind)
        weight.copy_(torch.from_numpy(compressed_weights.from_whole(integers, largest, kind, values.shape)))
    return dict.fromkeys(weight_tensors(network), kind)


def recipe_for(bundle: Bundle, epochs: int, lr: float | None, kept: float, device: torch.device) -> Recipe:
    """The bundle's own recipe for retraining: a cosine schedule from ``lr`` to 0, reduced dropout.

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
        "select_weights": "last",
        "train_on_val_from_epoch": 0,
        "stop_train_error": 0.0,
        "early_stop_fraction": 0.0,
        "patience": 0,
        "first_layer_lr_mult": 1.0,
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
    :class:`Interrupted` after a signal, and :class:`TrainingError` as training does.
    """
    start = of_bundle(bundle, "the bundle", "")
    state = State(recipe, store, device, start)
    state.constraint = held
    loader, normalization = training_loader(state, store, workers)
    folder.mkdir(parents=True, exist_ok=True)
    with runtime.cpu_settings(recipe), RunLogger(folder, quiet=quiet) as journal, runtime.stop_on_signals() as stop:
        journal.event("started", epochs=recipe.epochs, lr=recipe.lr, dropout=recipe.dropout)
        try:
            loop.train(
                Training(state, loader, normalization, journal, folder, stop, NoCheckpoints(state, journal, folder))
            )
        except Interrupted as error:
            raise Interrupted(error.signal, "stopped while the network learned again; nothing was kept", "") from error
        except TrainingError as error:  # its hint is for alexnet train, and names files of the temporary folder
            hint = f"lower --lr (now {recipe.lr:.3g})" if isinstance(error, DivergedError) else "close other programs"
            raise type(error)(f"retraining: {error.what}", "", f"{hint}; nothing was kept") from error
    return state.eval_model.eval()


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
        for batch, default_rounds in classifier.BATCHES.items():
            original, compressed = classifier.interleaved_latency(
                [self.original, network], batch, default_rounds * rounds
            )
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
