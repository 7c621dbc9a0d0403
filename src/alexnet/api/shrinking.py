"""Deep Compression of one network: pruned by what its layers can spare, trained again, its weights shared and tuned.

Han, Mao and Dally 2016 (*Deep Compression*, arXiv 1510.00149). Every choice is made by the validation split.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from alexnet.api.stages import Scale, Stage, kept, listed_size
from alexnet.bundle import Bundle
from alexnet.compression import pruning, quantizing, tensors
from alexnet.compression.file import as_array
from alexnet.data.store import Store
from alexnet.errors import BundleError
from alexnet.evaluation import sensitivity
from alexnet.models.network import Network
from alexnet.training.held import Held, Pruning, Sharing
from alexnet.training.retrain import recipe_for, retrain

PAYS = 0.002  # nats of validation loss from which on a stage was worth its time
CLOSE = 0.03  # how far below the wanted size is near enough


@dataclass(frozen=True)
class Effort:
    """How much is tried: epochs of learning again after pruning, and of tuning shared values; bits of their codes."""

    epochs: int = 8
    tune_epochs: int = 1
    learning_rate: float | None = None  # at its highest; None: a third of the run's own
    conv_bits: int = 8
    fc_bits: int = 5


@dataclass(frozen=True)
class Shrunk:
    """A network whose weights can be written by ``coding``, and the stages that led to it."""

    network: Network
    coding: dict[str, str]
    stages: list[Stage]


@dataclass
class Shrinker:
    """What a compression with pictures needs; ``folder`` gets the journals of what is learned again."""

    bundle: Bundle
    store: Store
    scale: Scale
    effort: Effort
    device: torch.device
    folder: Path
    tell: Callable[[str], None]
    workers: int = 1
    quiet: bool = True
    trainings: int = field(default=0)

    def __post_init__(self) -> None:
        self.bits = quantizing.bits_of(self.bundle.network, self.effort.conv_bits, self.effort.fc_bits)
        self.tell("how much each layer can spare, by validation loss:")
        self.curves = sensitivity.curves(
            self.scale.original, self.store.split("validation"), self.bundle.statistics, self.bits,
            device=self.device, tell=self.tell,
        )  # fmt: skip

    def to_size(self, network: Network, budget: int) -> Shrunk:
        """``network`` (not changed) with its coded weights in at most ``budget`` bytes; raises :class:`BundleError`."""
        wanted = self.shares_for(network, budget)
        self.tell("to keep: " + ", ".join(f"{name} {100 * share:.3g} %" for name, share in wanted.items()))
        cut = prune(network, wanted)
        pruned = self.scale.stage("pruned", "small weights are 0", cut, listed_size(cut))
        self.said(pruned)
        again = self.learn(network, wanted)
        retrained = self.scale.stage("retrained", "what is left has learned again", again, listed_size(again))
        self.said(retrained)
        made, shares, after = share(again, self.bits), wanted, again
        while size_of(made, self.bits) > budget:  # codes differ a little from what was foreseen
            shares = {name: 0.98 * part for name, part in shares.items()}
            if min(shares.values()) < 1e-5:
                raise too_small(budget)
            after = prune(after, shares)
            made = share(after, self.bits)
        common = self.scale.stage("shared", "weights share values", made, listed_size(made, self.bits))
        self.said(common)
        return self.tuned(Shrunk(made, dict.fromkeys(self.bits, "shared"), [pruned, retrained, common]), budget)

    def shares_for(self, network: Network, budget: int) -> dict[str, float]:
        """Layer -> share to keep, so that the file's streams take about ``budget`` bytes, rather less."""
        foreseen = float(budget)
        for _ in range(4):
            shares = pruning.allocate(self.curves, foreseen)
            if min(shares.values()) < 1e-5:
                raise too_small(budget)
            size = size_of(share(prune(network, shares), self.bits), self.bits)
            if (1 - 2 * CLOSE) * budget <= size <= budget or (size < budget and min(shares.values()) > 0.99):
                break
            foreseen *= (1 - CLOSE) * budget / size
        return shares

    def learn(self, network: Network, wanted: Mapping[str, float]) -> Network:
        """The network trained again while it is cut, step by step, to the ``wanted`` shares."""
        held = Pruning(first=alive(network, wanted), last=wanted)
        again = self.train(network, held, self.effort.epochs, self.effort.learning_rate, _left(network, wanted))
        return prune(again, wanted)

    def tuned(self, found: Shrunk, budget: int) -> Shrunk:
        """The shared values tuned, where sharing has cost something and tuning gives some of it back."""
        before, common = found.stages[-2].validation, found.stages[-1].validation
        assert before is not None and common is not None
        if not self.effort.tune_epochs or common.loss <= before.loss + PAYS:
            self.tell(f"sharing cost {common.loss - before.loss:.4f} of loss: nothing to tune")
            return found
        held = Sharing(found.network, list(self.bits))
        base = recipe_for(self.bundle, 1, self.effort.learning_rate, 1.0, self.device).learning_rate
        network = self.train(found.network, held, self.effort.tune_epochs, base / 10, kept(found.network))
        held.settle(network)
        stage = self.scale.stage("tuned", "shared values have learned", network, listed_size(network, self.bits))
        self.said(stage)
        assert stage.validation is not None
        if stage.validation.loss >= common.loss - PAYS or size_of(network, self.bits) > budget:
            self.tell("tuning did not pay: the values stay as they were")
            return found
        return Shrunk(network, found.coding, [*found.stages, stage])

    def train(self, network: Network, held: Held, epochs: int, rate: float | None, share: float) -> Network:
        """``network`` through the one loop, in a folder of its own."""
        self.trainings += 1
        recipe = recipe_for(self.bundle, epochs, rate, share, self.device)
        bundle = dataclasses.replace(self.bundle, network=network)
        folder = self.folder / f"training-{self.trainings}"
        return retrain(
            bundle, recipe, self.store, folder, held, device=self.device, workers=self.workers, quiet=self.quiet
        )

    def said(self, stage: Stage) -> None:
        """A line while it works."""
        scores = stage.validation
        words = f", validation top-1 {100 * scores.top1:.1f} %, loss {scores.loss:.4f}" if scores else ""
        self.tell(f"{stage.name}: {100 * stage.kept:.2f} % of the weights, {stage.bytes / 1e6:.2f} MB{words}")


@torch.no_grad()
def prune(network: Network, shares: Mapping[str, float]) -> Network:
    """A copy with only the largest weights of each layer, as many as ``shares`` says."""
    made = copy.deepcopy(network)
    for name, part in shares.items():
        weight = made.get_parameter(name)
        weight.masked_fill_(pruning.gone(weight, part), 0.0)
    return made


def share(network: Network, bits: Mapping[str, int]) -> Network:
    """A copy whose weights share values."""
    made = copy.deepcopy(network)
    quantizing.share(made, bits)
    return made


def size_of(network: Network, bits: Mapping[str, int]) -> int:
    """Bytes of the streams of the layers in ``bits``, whose weights share values."""
    encoded = (tensors.encode(as_array(network.get_parameter(name)), "shared") for name in bits)
    return sum(tensors.sizes(streams) for _, streams in encoded)


def alive(network: Network, names: Mapping[str, float]) -> dict[str, float]:
    """Share of each layer's weights that are not 0."""
    return {n: int((w := network.get_parameter(n)).count_nonzero()) / w.numel() for n in names}


def _left(network: Network, wanted: Mapping[str, float]) -> float:
    counts = {name: network.get_parameter(name).numel() for name in wanted}
    return sum(counts[name] * part for name, part in wanted.items()) / sum(counts.values())


def too_small(budget: int) -> BundleError:
    """The error for a size that can not be."""
    return BundleError(f"there are {max(budget, 0):,} bytes for the weights", "more", "ask for a larger --target-size")
