"""What a network weighs, answers and takes at each stage of its compression.

Deep Compression of one network: pruned by what its layers can spare, trained again, its weights shared and tuned.

Han, Mao and Dally 2016 (*Deep Compression*, arXiv 1510.00149). Every choice is made by the validation split.


How small, and by which method: the size or the loss that was asked for, and the network that keeps to it.

A trained classifier made small: what is wanted, how it is reached, what it cost, and the folder that holds it.
"""

import copy
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from alexnet.api.detailed_evaluation import refuse_mixed, replayed
from alexnet.api.evaluation import store_for
from alexnet.api.provenance import note_test
from alexnet.bundle import Bundle, find_bundle
from alexnet.compression import codec, file, pruning
from alexnet.compression.file import Method, as_array, layers
from alexnet.cuda_convnet import GraphNetwork
from alexnet.data.atomic_io import sha256_of, whole_folder, write_file
from alexnet.data.remote import local_path
from alexnet.data.run_file import write_run_file
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store
from alexnet.errors import BundleError, DataError, RecipeError, RunError
from alexnet.evaluation import calibration as calibrations
from alexnet.evaluation import intervals
from alexnet.evaluation.evaluate import SplitPredictions, predict_split
from alexnet.evaluation.intervals import PairedComparison
from alexnet.evaluation.metrics import Scores
from alexnet.explain import features
from alexnet.export import latency
from alexnet.export.classifier import Classifier
from alexnet.loader.loader import choose_device
from alexnet.models.network import Network
from alexnet.plots import compression as chart
from alexnet.training import run as runs
from alexnet.training.constraints import Pruning, TiedCentroids, WeightConstraint
from alexnet.training.logger import append_event
from alexnet.training.retrain import own_recipe, recipe_for, retrain


@dataclass(frozen=True)
class Stage:
    """One row of the table. ``bytes``: of the weights, as a file would hold them; ``memory``: while the network runs.

    ``kept``: share of the weights, biases auxiliary head, that are not 0. ``latency``: images at once -> median
    milliseconds
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
            first, second = latency.interleaved_latency([self.original, network], batch, usual * rounds)
            times[batch] = (first, second)
        memory = sum(p.nbytes for p in network.parameters())
        return Stage(name, what, size, kept(network), memory, self.validation(network), times)

    def validation(self, network: Network) -> Scores | None:
        """Scores on the validation split, in float32."""
        if self.store is None:
            return None
        return predict_split(
            network,
            self.store.split("validation"),
            self.bundle.statistics,
            side=network.image_size,
            channels=network.in_channels,
            device=self.device,
        ).scores()


def kept(network: Network) -> float:
    """Share of the weights, biases auxiliary head, that are not 0."""
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


PAYS = 0.002  # nats of validation loss from which on a stage was worth its time
CLOSE = 0.03  # how far below the wanted size is near enough


@dataclass(frozen=True)
class Effort:
    """How much is tried: epochs of learning again after pruning, and of tuning shared values; bits of their codes."""

    epochs: int = 8
    tune_epochs: int = 1
    lr: float | None = None  # at its highest; None: a third of the run's own
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
    """What a compression with images needs; ``folder`` gets the journals of what is learned again."""

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
        self.bits = file.bits_of(self.bundle.network, self.effort.conv_bits, self.effort.fc_bits)
        self.tell("how much each layer can spare, by validation loss:")
        self.curves = features.curves(
            self.scale.original,
            self.store.split("validation"),
            self.bundle.statistics,
            self.bits,
            device=self.device,
            tell=self.tell,
        )

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
        again = self.train(network, held, self.effort.epochs, self.effort.lr, _left(network, wanted))
        return prune(again, wanted)

    def tuned(self, results: Shrunk, budget: int) -> Shrunk:
        """The shared values tuned, where sharing has cost something and tuning gives some of it back."""
        before, common = results.stages[-2].validation, results.stages[-1].validation
        assert before is not None and common is not None
        if not self.effort.tune_epochs or common.loss <= before.loss + PAYS:
            self.tell(f"sharing cost {common.loss - before.loss:.4f} of loss: nothing to tune")
            return results
        held = TiedCentroids(results.network, list(self.bits))
        base = recipe_for(self.bundle, 1, self.effort.lr, 1.0, self.device).lr
        network = self.train(results.network, held, self.effort.tune_epochs, base / 10, kept(results.network))
        held.settle(network)
        stage = self.scale.stage("tuned", "shared values have learned", network, listed_size(network, self.bits))
        self.said(stage)
        assert stage.validation is not None
        if stage.validation.loss >= common.loss - PAYS or size_of(network, self.bits) > budget:
            self.tell("tuning did not pay: the values stay as they were")
            return results
        return Shrunk(network, results.coding, [*results.stages, stage])

    def train(self, network: Network, held: WeightConstraint, epochs: int, rate: float | None, share: float) -> Network:
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
    file.share(made, bits)
    return made


def size_of(network: Network, bits: Mapping[str, int]) -> int:
    """Bytes of the streams of the layers in ``bits``, whose weights share values."""
    encoded = (codec.encode(as_array(network.get_parameter(name)), "shared") for name in bits)
    return sum(codec.sizes(streams) for _, streams in encoded)


def alive(network: Network, names: Mapping[str, float]) -> dict[str, float]:
    """Share of each layer's weights that are not 0."""
    return {n: int((w := network.get_parameter(n)).count_nonzero()) / w.numel() for n in names}


def _left(network: Network, wanted: Mapping[str, float]) -> float:
    counts = {name: network.get_parameter(name).numel() for name in wanted}
    return sum(counts[name] * part for name, part in wanted.items()) / sum(counts.values())


def too_small(budget: int) -> BundleError:
    """The error for a size that can not be."""
    return BundleError(f"there are {max(budget, 0):,} bytes for the weights", "more", "ask for a larger --target-size")


DEFAULT_MAX_LOSS = 1.0  # points of validation accuracy that may be lost where neither a size nor a loss is asked for
BACK_OFF = (35, 20, 10, 5)  # times smaller, tried then until one keeps the accuracy; 35: Deep Compression's for AlexNet
LADDER = (10, 20, 35, 50, 70, 100)  # what --max-accuracy-drop tries, one after the other
FIRST_IF_NONE = 5  # and this where the first is too much


class Job:
    """One compression, from what was asked for to a network that is small enough."""

    def __init__(
        self,
        run: Path,
        place: Path,
        method: Method,
        target: int | None,
        max_accuracy_drop: float | None,
        effort: Effort,
        options: DataOptions,
    ) -> None:
        if target is not None and max_accuracy_drop is not None:
            raise RecipeError("--target-size and --max-accuracy-drop both say when it is small enough", "one of them")
        if target is not None and target < 1:
            raise RecipeError(f"--target-size is {target} bytes", "at least 1")
        if max_accuracy_drop is not None and not 0 <= max_accuracy_drop < 100:
            raise RecipeError(
                f"--max-accuracy-drop is {max_accuracy_drop}", "points of accuracy, from 0 to less than 100"
            )
        self.run, self.place, self.method, self.effort, self.options = run, place, method, effort, options
        self.target, self.max_accuracy_drop, self.backs_off = (
            target,
            max_accuracy_drop,
            target is None and max_accuracy_drop is None,
        )
        resolved = place.resolve()
        self.name = resolved.parent.name if resolved.name == "bundle" else resolved.name

    def open(self, data: str | Path | None, device: torch.device) -> None:
        """The classifier, its images, and what it weighs and answers before anything is done."""
        self.device, self.classifier = device, Classifier.load(self.place, device)
        self.bundle = self.classifier.bundle
        if self.bundle.coding:
            raise BundleError(f"{self.place} is compressed already", "a network as it was trained", "give the original")
        self.store = self._store(data)
        if self.store is None and self.max_accuracy_drop is not None:
            raise BundleError(
                "--max-accuracy-drop without images: a bundle alone knows none", "", "give the run, or DATA"
            )
        if self.store is not None and self.backs_off:
            self.max_accuracy_drop = DEFAULT_MAX_LOSS
        self.bytes = folder_size(self.place)
        self.rest = self.bytes - (self.place / "model.safetensors").stat().st_size
        self.scale = Scale(self.bundle, self.store, device)
        self.first = self.scale.stage("original", "float32", self.scale.original, plain_size(self.bundle.network))
        self.options.tell(f"original: {self.bytes / 1e6:.1f} MB")

    def _store(self, data: str | Path | None) -> Store | None:
        if data is None and not (self.run / "run.json").is_file():
            return None
        recipe = self.bundle.recipe
        if 0 < int(recipe.get("train_on_val_from_epoch", 0)) < int(recipe.get("epochs", 0)):
            raise BundleError(f"{self.run} was trained on its validation images too", "", "nothing honest can choose")
        store = store_for(self.run, self.classifier, data, self.options)
        self.bundle.same_classes(store.classes, str(store.path))
        refuse_mixed(self.bundle, store)
        for name in ("train", "validation"):
            if not len(store.split(name)):
                raise DataError(f"{store.path} has no {name} images", "both, to learn again and to choose by")
        return store

    def shrink(self, folder: Path, workers: int, quiet: bool) -> Shrunk:
        """The small network, by the method that was asked for."""
        if self.method != "deep":
            return self._checked(self._rounded(self.method))
        if self.store is None or isinstance(self.bundle.network, GraphNetwork):
            why = "no images are at hand" if self.store is None else "a network of layer files has a rule of its own"
            self.options.tell(f"{why}: nothing is pruned, weights are shared and coded only")
            return self._checked(self._shared())
        shrinker = Shrinker(
            self.bundle, self.store, self.scale, self.effort, self.device, folder, self.options.tell, workers, quiet
        )
        if self.target is not None:
            return shrinker.to_size(self.scale.original, self._budget(self.target))
        assert self.max_accuracy_drop is not None
        return self._backed_off(shrinker) if self.backs_off else self._within(shrinker, self.max_accuracy_drop)

    def _budget(self, whole: int) -> int:
        """What of a bundle of ``whole`` bytes is left for the coded weights."""
        coded = file.layers(self.bundle.network).values()
        biases = plain_size(self.bundle.network) - sum(4 * weight.numel() for weight in coded)
        rest = self.rest + biases + 3072 + 512 * len(coded)  # a header, and a card that says more
        left = int(0.995 * whole) - rest
        if left <= 0:
            what = f"reference images, card, biases and header alone take {rest:,} bytes"
            raise BundleError(what, f"less than {whole:,}", "ask for a larger --target-size")
        return left

    def _backed_off(self, shrinker: Shrinker) -> Shrunk:
        """The smallest of a few sizes that keeps the accuracy; weights that are shared only where none does."""
        for ratio in BACK_OFF:
            try:
                result = shrinker.to_size(self.scale.original, self._budget(self.bytes // ratio))
            except BundleError as error:
                self.options.tell(f"{ratio} times smaller is not possible: {error.what}")
                continue
            if self._keeps(result.stages[-1], DEFAULT_MAX_LOSS):
                return result
            lost = self.points_lost(result.stages[-1])
            self.options.tell(f"{ratio} times smaller loses {lost:.1f} points of validation accuracy: not kept")
        return self._checked(self._shared())

    def points_lost(self, stage: Stage) -> float | None:
        """Points of validation accuracy that the original has more; None where there are no images to measure by."""
        if stage.validation is None or self.first.validation is None:
            return None
        return 100 * (self.first.validation.top1 - stage.validation.top1)

    def _within(self, shrinker: Shrinker, points: float) -> Shrunk:
        """The smallest of a ladder of sizes whose validation accuracy is within ``points`` of the original's."""
        best, network = None, self.scale.original
        for ratio in LADDER:
            try:
                result = shrinker.to_size(network, self._budget(self.bytes // ratio))
            except BundleError:  # smaller than the images in the bundle themselves
                break
            if not self._keeps(result.stages[-1], points):
                self.options.tell(f"{ratio} times smaller loses more than {points:g} points: no further")
                break
            best, network = result, result.network
        if best is not None:
            return best
        mild = shrinker.to_size(self.scale.original, self._budget(self.bytes // FIRST_IF_NONE))
        return mild if self._keeps(mild.stages[-1], points) else self._checked(self._shared())

    def _keeps(self, stage: Stage, points: float) -> bool:
        assert stage.validation is not None and self.first.validation is not None
        lost = self.first.validation.correct1 - stage.validation.correct1
        return 100 * lost <= points * stage.validation.count + 1e-9

    def _shared(self) -> Shrunk:
        bits = file.bits_of(self.bundle.network, self.effort.conv_bits, self.effort.fc_bits)
        network = share(self.scale.original, bits)
        stage = self.scale.stage("shared", "weights share values", network, listed_size(network, bits))
        return Shrunk(network, dict.fromkeys(bits, "shared"), [stage])

    def _rounded(self, kind: Literal["int8", "int4"]) -> Shrunk:
        network = copy.deepcopy(self.scale.original)
        coding = file.whole(network, kind)
        weights = sum(w.numel() for w in file.layers(network).values())
        size = plain_size(network) - 4 * weights + weights * int(kind[3:]) // 8
        return Shrunk(network, coding, [self.scale.stage(kind, "integers times a magnitude", network, size)])

    def _checked(self, results: Shrunk) -> Shrunk:
        """Refuse what loses more than was allowed; the size is looked at when it is written."""
        if self.max_accuracy_drop is not None and not self._keeps(results.stages[-1], self.max_accuracy_drop):
            raise BundleError(
                f"{self.method} loses more than {self.max_accuracy_drop:g} points of validation accuracy at any "
                f"size tried (the last one: {self.points_lost(results.stages[-1]):.1f})",
                "",
                "allow a larger --max-accuracy-drop" + (", or more --epochs" if self.method == "deep" else ""),
            )
        return results

    def chosen(self) -> str:
        """What chose what."""
        if self.store is None:
            return "nothing was chosen: there were no images"
        count = len(self.store.split("validation"))
        if self.method != "deep" or isinstance(self.bundle.network, GraphNetwork):
            return f"nothing was chosen but the temperature, by {count} validation images"
        size = "the size was asked for" if self.max_accuracy_drop is None else "the size too"
        return (
            f"what each layer keeps and whether tuning paid, by {count} validation images; {size}; "
            "nothing by the test split"
        )


def folder_size(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Compressed:
    """What came of it. ``test``: original and compressed on the same test images, looked at once, at the end."""

    folder: Path
    original: Path
    method: str
    stages: list[Stage]
    original_bytes: int  # of the whole bundle: weights, reference images, card
    bytes: int
    chosen: str  # what chose what
    test: PairedComparison | None
    test_scores: Scores | None
    layers: dict[str, dict[str, Any]]
    seconds: float
    max_accuracy_drop: float | None = None  # points of validation accuracy that were allowed to be lost; None: any
    points_lost: float | None = None  # that were lost, negative where it has more; None: not measured

    @property
    def ratio(self) -> float:
        """How many times smaller the bundle is."""
        return self.original_bytes / self.bytes

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        words = {"folder": str(self.folder), "original": str(self.original), "ratio": self.ratio}
        weights = {
            "weights_bytes": self.stages[-1].bytes,
            "weights_ratio": self.stages[0].bytes / self.stages[-1].bytes,
        }
        return (
            vars(self)
            | words
            | weights
            | {
                "stages": [stage.to_dict() for stage in self.stages],
                "test": self.test.to_dict() if self.test else None,
                "test_scores": self.test_scores.to_dict() if self.test_scores else None,
            }
        )


def compress(
    run: str | Path,
    output: str | Path | None = None,
    data: str | Path | None = None,
    *,
    method: Method = "deep",
    target_size: int | None = None,
    max_accuracy_drop: float | None = None,
    effort: Effort | None = None,
    device: str = "auto",
    workers: int = 1,
    options: DataOptions | None = None,
    quiet: bool = True,
) -> Compressed:
    """Write a much smaller copy of a run's or bundle's classifier to the new folder ``output``.

    ``target_size``: bytes of the whole bundle, at most; ``max_accuracy_drop``: points of validation accuracy that
    may be lost,
    at most, while it is made as small as that allows. Neither: a 35th,
    or larger, until at most 1 point is lost. ``method`` deep prunes, trains again on the
    run's own images (or ``data``) and shares weights; int8 and int4 only round. Without images nothing is pruned.
    Raises :class:`BundleError` where what is asked for can not be reached; nothing is written then.
    """
    started, options = time.perf_counter(), options or DataOptions()
    job = Job(Path(run), find_bundle(run), method, target_size, max_accuracy_drop, effort or Effort(), options)
    folder = local_path(output) if output is not None else Path(f"{job.name}-compressed")
    runs.refuse_used(folder, "choose another -o, or delete it")
    job.open(data, choose_device(device))
    try:
        with whole_folder(folder) as partial:
            result = job.shrink(partial, workers, quiet)
            made = _finish(job, result, partial, folder, started)
            runs.refuse_used(folder, "choose another -o, or delete it")
            if folder.exists():
                shutil.rmtree(folder)
    except OSError as error:
        raise RunError(f"{folder} can not be written: {error.strerror or error}", "", "choose another -o") from error
    return made


def _finish(job: Job, results: Shrunk, partial: Path, folder: Path, started: float) -> Compressed:
    """Write the bundle, read it back, and measure what was read; only then look at the test split."""
    bundle = dataclasses.replace(job.bundle, network=results.network, coding=results.coding)
    path = _complete(job, bundle, results).save(partial / "bundle")
    read = Classifier.load(path, job.device)  # every number from here on is of the file
    size = folder_size(path)
    if job.target is not None and size > job.target:
        todo = "ask for a larger --target-size" if job.method == "deep" else "take --method deep"
        todo = "pruning needs images: give the run, or DATA" if job.store is None else todo
        raise BundleError(f"it takes {size:,} bytes", f"at most {job.target:,} as --target-size says", todo)
    coded = job.scale.stage(
        "coded", "the file, read back", read.bundle.network, (path / "model.safetensors").stat().st_size, rounds=2
    )
    test, scores = _test(job, read)
    if scores is not None:
        path = dataclasses.replace(read.bundle, metrics=dict(read.bundle.metrics) | {"test": scores.to_dict()}).save(
            path
        )
    made = Compressed(
        folder,
        job.run,
        job.method,
        [job.first, *results.stages, coded],
        job.bytes,
        folder_size(path),
        job.chosen(),
        test,
        scores,
        _layers(read.bundle),
        round(time.perf_counter() - started, 1),
        job.max_accuracy_drop,
        job.points_lost(coded),
    )
    _write(job, made, partial)
    return made


def _complete(job: Job, bundle: Bundle, results: Shrunk) -> Bundle:
    """With the temperature, reference answers, scores and origin of the network as it is now."""
    metrics, calibration = {}, dict(bundle.calibration)
    if job.store is not None:
        predictions = _predictions(job, bundle, "validation")
        made = calibrations.calibrate(predictions.log_probabilities, predictions.labels, predictions.groups)
        calibration = made.to_dict() if made else {}
        metrics = {"validation": predictions.scores().to_dict()}
    about = {
        "from": str(job.run),
        "sha256": sha256_of(job.place / "config.json"),
        "method": job.method,
        "stages": [stage.name for stage in results.stages],
        "kept": results.stages[-1].kept,
        "chosen_by": job.chosen(),
    }
    bundle = dataclasses.replace(
        bundle, metrics=metrics, calibration=calibration, data=dict(bundle.data) | {"compressed": about}
    )
    inference = Classifier(bundle, job.device)
    return dataclasses.replace(bundle, reference_samples=[replayed(inference, one) for one in bundle.reference_samples])


def _predictions(job: Job, bundle: Bundle, split: str) -> SplitPredictions:
    assert job.store is not None
    network = bundle.network
    return predict_split(
        network,
        job.store.split(split),
        bundle.statistics,
        side=network.image_size,
        channels=network.in_channels,
        device=job.device,
    )


def _test(job: Job, read: Classifier) -> tuple[PairedComparison | None, Scores | None]:
    if job.store is None or not len(job.store.split("test")):
        return None, None
    before, after = _predictions(job, job.bundle, "test"), _predictions(job, read.bundle, "test")
    note_test(str(job.run), job.store, "test", "compress", job.options.tell)
    return intervals.compare(before.correct, after.correct, after.groups), after.scores()


def _write(job: Job, made: Compressed, folder: Path) -> None:
    text = json.dumps(made.to_dict(), indent=1, ensure_ascii=False)
    write_file(folder / "compression.json", text.encode())
    chart.draw(
        [
            (
                s.name,
                s.bytes,
                s.validation.top1 if s.validation else None,
                s.validation.top1_interval if s.validation else None,
            )
            for s in made.stages
        ],
        folder / "plots" / "compression.png",
    )
    if job.store is None:
        return
    write_file(folder / "recipe.toml", own_recipe(job.bundle).to_toml().encode())
    append_event(folder / "journal.jsonl", "compressed", ratio=made.ratio)
    write_run_file(folder, {"data": job.store.address, "store": job.store.absolute, "compressed": str(job.run)})


def _layers(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """What is left of each layer, for people: weights, how many are not 0, how many values they take."""
    results = {}
    for name, weight in file.layers(bundle.network).items():
        flat = weight.detach().flatten()
        alive = flat[flat != 0]
        results[name] = {
            "weights": flat.numel(),
            "kept": alive.numel() / flat.numel(),
            "kind": bundle.coding[name],
            "values": torch.unique(alive).numel() if bundle.coding[name] == "shared" else None,
        }
    return results
