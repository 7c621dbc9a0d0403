"""Deep Compression of one network: prune, retrain, share weights, fine-tune the shared values.

Both change gradients between the backward pass and the update, so they hold for every optimizer: a weight of 0 with a
zero gradient and zero state stays 0; equal weights with equal gradients and equal state stay equal.

Han, Mao and Dally 2016 (*Deep Compression*, arXiv 1510.00149). Every choice is made on the validation split.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from alexnet.bundle import Bundle, compressed_weights
from alexnet.bundle.compressed_weights import as_array
from alexnet.compression import pruning
from alexnet.compression.pruning import gone, gradual
from alexnet.compression.stages import (
    Stage,
    StageMeter,
    code_bits,
    nonzero_fraction,
    recipe_for,
    retrain,
    share_weights,
    sparse_size,
)
from alexnet.data.store import Store
from alexnet.errors import BundleError, RecipeError
from alexnet.models.network import Network
from alexnet.recipe import differences, option
from alexnet.training.optim import WeightConstraint

PRUNE_EVERY = 8  # steps; sorting 57 million magnitudes takes 1 s, a step of 64 images 1.5 s


@dataclass
class Pruning:
    """Prunes weights gradually, then trains the remaining ones.

    Attributes:
        first: Layer -> fraction kept at the beginning.
        last: Layer -> fraction kept from ``until`` on.
        until: Fraction of the training during which weights are pruned.
        steps: Steps so far.
        pruned: Layer -> mask of its pruned weights.
        finished: Are all weights pruned?
    """

    first: Mapping[str, float]
    last: Mapping[str, float]
    until: float = 0.5
    steps: int = 0
    pruned: dict[str, Tensor] = field(default_factory=dict)
    finished: bool = False

    @torch.no_grad()
    def begin(self, network: nn.Module, others: list[nn.Module], optimizer: torch.optim.Optimizer, done: float) -> None:
        due = not self.finished and (self.steps % PRUNE_EVERY == 0 or done >= self.until)
        self.steps += 1
        if not due:
            return
        self.finished = done >= self.until
        for name, last in self.last.items():
            weight = network.get_parameter(name)
            pruned = self.pruned[name] = gone(weight, gradual(done / self.until, self.first[name], last))
            past = [v for v in optimizer.state.get(weight, {}).values() if getattr(v, "shape", None) == weight.shape]
            for tensor in (weight, *(other.get_parameter(name) for other in others), *past):
                tensor.masked_fill_(pruned, 0.0)

    @torch.no_grad()
    def gradients(self, network: nn.Module) -> None:
        for name, pruned in self.pruned.items():
            gradient = network.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(pruned, 0.0)


class TiedCentroids:
    """Weights that share a value are trained as one: each gets the mean of their gradients, pruned ones get 0.

    Han, Mao and Dally 2016 (section 3.3) take the sum, with which the learning rate would depend on the cluster size.
    """

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        self.members: dict[str, tuple[Tensor, Tensor, int]] = {}  # positions [n], cluster of each [n], clusters
        for name in names:
            flat = network.get_parameter(name).detach().contiguous().flatten()
            alive = flat.nonzero()[:, 0]
            values, cluster = torch.unique(flat[alive], return_inverse=True)
            self.members[name] = (alive, cluster, len(values))

    def begin(self, network: nn.Module, others: list[nn.Module], optimizer: torch.optim.Optimizer, done: float) -> None:
        """Does nothing before a step."""

    @torch.no_grad()
    def gradients(self, network: nn.Module) -> None:
        for name, (alive, cluster, count) in self.members.items():
            gradient = network.get_parameter(name).grad
            if gradient is not None:
                means = _means(gradient.contiguous().flatten()[alive], cluster, count)
                gradient.copy_(self._spread(name, means, gradient))

    @torch.no_grad()
    def settle(self, network: nn.Module) -> None:
        """Make the weights of each cluster equal to the last bit: each becomes the mean of its cluster."""
        for name, (alive, cluster, count) in self.members.items():
            weight = network.get_parameter(name)
            weight.copy_(self._spread(name, _means(weight.contiguous().flatten()[alive], cluster, count), weight))

    def _spread(self, name: str, each: Tensor, like: Tensor) -> Tensor:
        alive, cluster, _ = self.members[name]
        flat = torch.zeros(like.numel(), dtype=like.dtype, device=like.device)
        flat[alive] = each.to(like.dtype)[cluster]
        return flat.view(like.shape)


def _means(values: Tensor, cluster: Tensor, count: int) -> Tensor:
    """Mean of the values of each cluster, float64 [clusters]."""
    sums = torch.bincount(cluster, weights=values.double(), minlength=count)
    return sums / torch.bincount(cluster, minlength=count).clamp(min=1)


LOSS_TOLERANCE = 0.002  # nats of validation loss: smaller differences do not justify a stage
SIZE_TOLERANCE = 0.03  # fraction below the target size that is close enough


@dataclass(frozen=True)
class CompressionOptions:
    """Options of Deep Compression.

    Attributes:
        epochs: Epochs of retraining, during and after pruning.
        tune_epochs: Epochs of fine-tuning the shared values; 0: never.
        lr: Peak learning rate of retraining; None: a third of the run's own.
        conv_bits: Bits of a shared weight's code in convolutions.
        fc_bits: Bits of a shared weight's code in fully connected layers.
    """

    epochs: int = 8
    tune_epochs: int = 1
    lr: float | None = None
    conv_bits: int = 8
    fc_bits: int = 5

    def __post_init__(self) -> None:
        limits = {"epochs": (1, 10_000), "tune_epochs": (0, 10_000), "conv_bits": (1, 8), "fc_bits": (1, 8)}
        for name, (low, high) in (limits | ({} if self.lr is None else {"lr": (1e-12, 1000)})).items():
            if not low <= (value := getattr(self, name)) <= high:
                raise RecipeError(f"{option(name)} is {value}", f"from {low} to {high}")

    def refuse_changed(self, method: str) -> None:
        """Raise :class:`RecipeError` for a value that was set, since ``method`` uses none."""
        for name in differences(CompressionOptions(), self):
            raise RecipeError(f"{option(name)} has no effect with --method {method}", "", "leave it out")


@dataclass(frozen=True)
class CompressedNetwork:
    """A network, the coding of each layer's weights in the file, and the stages that led to it."""

    network: Network
    coding: dict[str, str]
    stages: list[Stage]


@dataclass
class DeepCompression:
    """Compresses the network of ``bundle`` with the images of ``store``; each retraining logs below ``folder``."""

    bundle: Bundle
    store: Store
    meter: StageMeter
    options: CompressionOptions
    device: torch.device
    folder: Path
    log: Callable[[str], None]
    workers: int = 1
    quiet: bool = True
    trainings: int = field(default=0)

    def __post_init__(self) -> None:
        self.bits = code_bits(self.bundle.network, self.options.conv_bits, self.options.fc_bits)
        self.log("pruning sensitivity of each layer, as validation loss:")
        self.curves = pruning.curves(
            self.meter.original,
            self.store.split("validation"),
            self.bundle.normalization,
            self.bits,
            device=self.device,
            log=self.log,
        )

    def to_size(self, network: Network, budget: int) -> CompressedNetwork:
        """Compress a copy of ``network`` so that its coded weights take at most ``budget`` bytes.

        Raises:
            BundleError: If the budget is too small.
        """
        fractions = self.fractions_for(network, budget)
        self.log("weights to keep: " + ", ".join(f"{name} {100 * part:.3g} %" for name, part in fractions.items()))
        pruned = prune(network, fractions)
        pruned_stage = self.meter.measure("pruned", "small weights are 0", pruned, sparse_size(pruned))
        self.log_stage(pruned_stage)
        retrained = self.prune_and_retrain(network, fractions)
        retrained_stage = self.meter.measure(
            "retrained", "the remaining weights are retrained", retrained, sparse_size(retrained)
        )
        self.log_stage(retrained_stage)
        shared, current, candidate = share(retrained, self.bits), fractions, retrained
        while coded_size(shared, self.bits) > budget:  # the size of the codes differs a little from the estimate
            current = {name: 0.98 * part for name, part in current.items()}
            if min(current.values()) < 1e-5:
                raise budget_too_small(budget)
            candidate = prune(candidate, current)
            shared = share(candidate, self.bits)
        shared_stage = self.meter.measure("shared", "weights share values", shared, sparse_size(shared, self.bits))
        self.log_stage(shared_stage)
        stages = [pruned_stage, retrained_stage, shared_stage]
        return self.tune(CompressedNetwork(shared, dict.fromkeys(self.bits, "shared"), stages), budget)

    def fractions_for(self, network: Network, budget: int) -> dict[str, float]:
        """Layer -> fraction of weights to keep, so that the coded weights take ``budget`` bytes or slightly less."""
        estimate = float(budget)
        for _ in range(4):
            fractions = pruning.allocate(self.curves, estimate)
            if min(fractions.values()) < 1e-5:
                raise budget_too_small(budget)
            size = coded_size(share(prune(network, fractions), self.bits), self.bits)
            if (1 - 2 * SIZE_TOLERANCE) * budget <= size <= budget:
                break
            if size < budget and min(fractions.values()) > 0.99:
                break
            estimate *= (1 - SIZE_TOLERANCE) * budget / size
        return fractions

    def prune_and_retrain(self, network: Network, fractions: Mapping[str, float]) -> Network:
        """Retrain ``network`` while it is pruned, step by step, to ``fractions``."""
        constraint = Pruning(first=nonzero_by_layer(network, fractions), last=fractions)
        kept = _mean_fraction(network, fractions)
        retrained = self.train(network, constraint, self.options.epochs, self.options.lr, kept)
        return prune(retrained, fractions)

    def tune(self, compressed: CompressedNetwork, budget: int) -> CompressedNetwork:
        """Fine-tune the shared values where sharing raised the validation loss; keep them if the loss falls."""
        before, after = compressed.stages[-2].validation, compressed.stages[-1].validation
        assert before is not None and after is not None
        if not self.options.tune_epochs or after.loss <= before.loss + LOSS_TOLERANCE:
            self.log(f"sharing changed the loss by {after.loss - before.loss:+.4f}: no fine-tuning")
            return compressed
        constraint = TiedCentroids(compressed.network, list(self.bits))
        lr = recipe_for(self.bundle, 1, self.options.lr, 1.0, self.device).lr / 10
        kept = nonzero_fraction(compressed.network)
        network = self.train(compressed.network, constraint, self.options.tune_epochs, lr, kept)
        constraint.settle(network)
        stage = self.meter.measure("tuned", "shared values are fine-tuned", network, sparse_size(network, self.bits))
        self.log_stage(stage)
        assert stage.validation is not None
        if stage.validation.loss >= after.loss - LOSS_TOLERANCE or coded_size(network, self.bits) > budget:
            self.log("fine-tuning did not lower the validation loss: discarded")
            return compressed
        return CompressedNetwork(network, compressed.coding, [*compressed.stages, stage])

    def train(
        self, network: Network, constraint: WeightConstraint, epochs: int, lr: float | None, kept: float
    ) -> Network:
        """Train ``network`` under ``constraint`` in a folder of its own; ``kept``: fraction of nonzero weights."""
        self.trainings += 1
        recipe = recipe_for(self.bundle, epochs, lr, kept, self.device)
        bundle = dataclasses.replace(self.bundle, network=network)
        folder = self.folder / f"training-{self.trainings}"
        return retrain(
            bundle, recipe, self.store, folder, constraint, device=self.device, workers=self.workers, quiet=self.quiet
        )

    def log_stage(self, stage: Stage) -> None:
        """Log one line about a finished stage."""
        scores = stage.validation
        accuracy = f", validation top-1 {100 * scores.top1:.1f} %, loss {scores.loss:.4f}" if scores else ""
        self.log(f"{stage.name}: {100 * stage.nonzero:.2f} % of the weights, {stage.bytes / 1e6:.2f} MB{accuracy}")


@torch.no_grad()
def prune(network: Network, fractions: Mapping[str, float]) -> Network:
    """A copy that keeps only the largest weights of each layer, as many as ``fractions`` gives."""
    pruned = copy.deepcopy(network)
    for name, fraction in fractions.items():
        weight = pruned.get_parameter(name)
        weight.masked_fill_(pruning.gone(weight, fraction), 0.0)
    return pruned


def share(network: Network, bits: Mapping[str, int]) -> Network:
    """A copy whose weights share values."""
    shared = copy.deepcopy(network)
    share_weights(shared, bits)
    return shared


def coded_size(network: Network, bits: Mapping[str, int]) -> int:
    """Bytes of the coded weights of the layers in ``bits``, whose weights share values."""
    encoded = (compressed_weights.encode(as_array(network.get_parameter(name)), "shared") for name in bits)
    return sum(compressed_weights.sizes(streams) for _, streams in encoded)


def nonzero_by_layer(network: Network, names: Mapping[str, float]) -> dict[str, float]:
    """Layer -> fraction of its weights that are not 0."""
    return {n: int((w := network.get_parameter(n)).count_nonzero()) / w.numel() for n in names}


def _mean_fraction(network: Network, fractions: Mapping[str, float]) -> float:
    """``fractions`` averaged over all weights."""
    counts = {name: network.get_parameter(name).numel() for name in fractions}
    return sum(counts[name] * fraction for name, fraction in fractions.items()) / sum(counts.values())


def budget_too_small(budget: int) -> BundleError:
    """The error for a size that cannot be reached."""
    return BundleError(f"there are {max(budget, 0):,} bytes for the weights", "more", "ask for a larger --target-size")
