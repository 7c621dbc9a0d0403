"""The compression of a trained classifier: the search for a size or an accuracy, and the folder that holds the result.

:func:`alexnet.api.compress` is the public entry.
"""

import copy
import dataclasses
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from alexnet.bundle import Bundle, find_bundle
from alexnet.compression.deep import CompressedNetwork, CompressionOptions, DeepCompression, share
from alexnet.compression.stages import (
    Method,
    Stage,
    StageMeter,
    code_bits,
    float32_size,
    own_recipe,
    round_to_integers,
    sparse_size,
    weight_tensors,
)
from alexnet.cuda_convnet import GraphNetwork
from alexnet.data.atomic_io import has_other_writer, sha256_of, whole_folder, write_file
from alexnet.data.run_file import write_run_file
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store
from alexnet.errors import BundleError, DataError, RecipeError, RunError
from alexnet.evaluation import calibration as calibrations
from alexnet.evaluation import intervals
from alexnet.evaluation.intervals import PairedComparison
from alexnet.evaluation.metrics import Scores
from alexnet.evaluation.ood import fit_reference
from alexnet.export.classifier import Classifier
from alexnet.plots import studies as compression_plot
from alexnet.recipe import to_toml
from alexnet.system import choose_device
from alexnet.training import run_folder
from alexnet.training.logger import append_event
from alexnet.training.run_data import evaluation_store, refuse_resplit
from alexnet.training.run_folder import note_test

DEFAULT_MAX_DROP = 1.0  # points of validation accuracy that may be lost where neither a size nor a drop is given
DEFAULT_RATIOS = (35, 20, 10, 5)  # compression ratios tried by default, until one keeps the accuracy; 35: the paper's
MAX_DROP_RATIOS = (10, 20, 35, 50, 70, 100)  # compression ratios that --max-accuracy-drop tries, in this order
FALLBACK_RATIO = 5  # tried if the first of MAX_DROP_RATIOS loses too much


@dataclass(frozen=True)
class CompressionResult:
    """The result of a compression, as ``compression.json`` holds it.

    Attributes:
        folder: The folder that was written.
        original: The run or bundle that was compressed.
        method: ``deep``, ``int8`` or ``int4``.
        stages: Measurements after each stage, from the original to the file as it was read back.
        original_bytes: Size of the original bundle: weights, reference images, card.
        bytes: Size of the compressed bundle.
        chosen: What was chosen on which split, as a sentence.
        test: Original and compressed network on the same test images, evaluated once, at the end; None without images.
        test_scores: Test scores of the compressed network; None without images.
        layers: Parameter name -> its number of weights, nonzero fraction, coding and number of distinct values.
        seconds: Duration of the call.
        max_accuracy_drop: Points of validation accuracy that were allowed to be lost; None: no limit.
        points_lost: Points that were lost, negative where accuracy rose; None without images.
    """

    folder: Path
    original: Path
    method: str
    stages: list[Stage]
    original_bytes: int
    bytes: int
    chosen: str
    test: PairedComparison | None
    test_scores: Scores | None
    layers: dict[str, dict[str, Any]]
    seconds: float
    max_accuracy_drop: float | None = None
    points_lost: float | None = None

    @property
    def ratio(self) -> float:
        """Compression ratio of the whole bundle."""
        return self.original_bytes / self.bytes

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return vars(self) | {
            "folder": str(self.folder),
            "original": str(self.original),
            "ratio": self.ratio,
            "weights_bytes": self.stages[-1].bytes,
            "weights_ratio": self.stages[0].bytes / self.stages[-1].bytes,
            "stages": [stage.to_dict() for stage in self.stages],
            "test": self.test.to_dict() if self.test else None,
            "test_scores": self.test_scores.to_dict() if self.test_scores else None,
        }


def compress(
    run: Path,
    folder: Path | None,
    data: str | Path | None,
    *,
    method: Method,
    target_size: int | None,
    max_accuracy_drop: float | None,
    compression: CompressionOptions,
    device: str,
    workers: int,
    options: DataOptions,
    quiet: bool,
) -> CompressionResult:
    """Compress a classifier into a new folder; :func:`alexnet.api.compress` describes the arguments."""
    started = time.perf_counter()
    job = CompressionJob(run, find_bundle(run), method, target_size, max_accuracy_drop, compression, options)
    folder = folder or Path(f"{job.name}-compressed")
    run_folder.refuse_used(folder, "choose another -o, or delete it")
    job.open(data, choose_device(device))
    try:
        with whole_folder(folder) as partial:
            if has_other_writer(folder, partial):
                raise RunError(f"another process is writing {folder}", "", "wait for it, or choose another -o")
            network = job.compress(partial, workers, quiet)
            result = _finish(job, network, partial, folder, started)
            run_folder.refuse_used(folder, "choose another -o, or delete it")
            if folder.exists():
                shutil.rmtree(folder)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}", "", "choose another -o") from error
    return result


class CompressionJob:
    """One compression: the checked request, the opened classifier with its images, and the search for the network."""

    def __init__(
        self,
        run: Path,
        bundle_path: Path,
        method: Method,
        target_size: int | None,
        max_accuracy_drop: float | None,
        compression: CompressionOptions,
        options: DataOptions,
    ) -> None:
        if target_size is not None and max_accuracy_drop is not None:
            raise RecipeError("--target-size and --max-accuracy-drop exclude each other", "", "leave one out")
        if target_size is not None and target_size < 1:
            raise RecipeError(f"--target-size is {target_size} bytes", "at least 1")
        if max_accuracy_drop is not None and not 0 <= max_accuracy_drop < 100:
            raise RecipeError(
                f"--max-accuracy-drop is {max_accuracy_drop}", "points of accuracy, from 0 to less than 100"
            )
        if method != "deep":
            compression.refuse_changed(method)
        self.run, self.bundle_path, self.method = run, bundle_path, method
        self.compression, self.options = compression, options
        self.target_size, self.max_accuracy_drop = target_size, max_accuracy_drop
        self.uses_default_limit = target_size is None and max_accuracy_drop is None
        resolved = bundle_path.resolve()
        self.name = resolved.parent.name if resolved.name == "bundle" else resolved.name

    def open(self, data: str | Path | None, device: torch.device) -> None:
        """Open the classifier and its images, and measure the original."""
        self.device = device
        self.bundle = Classifier.load(self.bundle_path, device).bundle
        if self.bundle.coding:
            raise BundleError(f"{self.bundle_path} is compressed already", "a trained network", "give the original")
        self.store = self._open_store(data)
        if self.store is None and self.max_accuracy_drop is not None:
            raise BundleError(
                "--max-accuracy-drop without images: a bundle has no data of its own", "", "give the run, or DATA"
            )
        if self.store is not None and self.uses_default_limit:
            self.max_accuracy_drop = DEFAULT_MAX_DROP
        self.original_bytes = folder_size(self.bundle_path)
        self.bytes_without_weights = self.original_bytes - (self.bundle_path / "model.safetensors").stat().st_size
        self.meter = StageMeter(self.bundle, self.store, device)
        self.original = self.meter.measure(
            "original", "float32", self.meter.original, float32_size(self.bundle.network)
        )
        self.options.log_line(f"original: {self.original_bytes / 1e6:.1f} MB")

    def _open_store(self, data: str | Path | None) -> Store | None:
        """The images for retraining and for choices; None for a bundle without data."""
        if data is None and not (self.run / "run.json").is_file():
            return None
        recipe = self.bundle.recipe
        if 0 < int(recipe.get("train_on_val_from_epoch", 0)) < int(recipe.get("epochs", 0)):
            raise BundleError(
                f"{self.run} was trained on its validation images too", "", "no images are left to choose by"
            )
        store = evaluation_store(self.run, self.bundle, data, self.options)
        self.bundle.same_classes(store.classes, str(store.path))
        refuse_resplit(self.bundle, store)
        for name in ("train", "validation"):
            if not len(store.split(name)):
                raise DataError(
                    f"{store.path} has no {name} images",
                    "images to retrain on and to choose by",
                )
        return store

    def compress(self, folder: Path, workers: int, quiet: bool) -> CompressedNetwork:
        """The compressed network, by the requested method."""
        if self.method != "deep":
            return self._checked(self._rounded(self.method))
        if self.store is None or isinstance(self.bundle.network, GraphNetwork):
            reason = "there are no images" if self.store is None else "networks of layer files are not retrained"
            self.options.log_line(f"{reason}: nothing is pruned, weights are only shared and coded")
            return self._checked(self._shared())
        deep = DeepCompression(
            self.bundle,
            self.store,
            self.meter,
            self.compression,
            self.device,
            folder,
            self.options.log_line,
            workers,
            quiet,
        )
        if self.target_size is not None:
            return deep.to_size(self.meter.original, self._weights_budget(self.target_size))
        assert self.max_accuracy_drop is not None
        return self._by_default(deep) if self.uses_default_limit else self._within(deep, self.max_accuracy_drop)

    def _weights_budget(self, bundle_size: int) -> int:
        """Bytes for the coded weights in a bundle of ``bundle_size`` bytes."""
        coded = weight_tensors(self.bundle.network).values()
        biases = float32_size(self.bundle.network) - sum(4 * weight.numel() for weight in coded)
        rest = self.bytes_without_weights + biases + 3072 + 512 * len(coded)  # a header, and a longer card
        budget = int(0.995 * bundle_size) - rest
        if budget <= 0:
            problem = f"reference images, card, biases and header alone take {rest:,} bytes"
            raise BundleError(problem, f"less than {bundle_size:,}", "ask for a larger --target-size")
        return budget

    def _by_default(self, deep: DeepCompression) -> CompressedNetwork:
        """The highest of the default ratios that keeps the accuracy; if none does, weights are only shared."""
        for ratio in DEFAULT_RATIOS:
            try:
                result = deep.to_size(self.meter.original, self._weights_budget(self.original_bytes // ratio))
            except BundleError as error:
                self.options.log_line(f"{ratio} times smaller is not possible: {error.what}")
                continue
            if self._within_limit(result.stages[-1], DEFAULT_MAX_DROP):
                return result
            lost = self.points_lost(result.stages[-1])
            self.options.log_line(f"{ratio} times smaller loses {lost:.1f} points of validation accuracy: discarded")
        return self._checked(self._shared())

    def points_lost(self, stage: Stage) -> float | None:
        """Points of validation accuracy lost since the original; None without images."""
        if stage.validation is None or self.original.validation is None:
            return None
        return 100 * (self.original.validation.top1 - stage.validation.top1)

    def _within(self, deep: DeepCompression, points: float) -> CompressedNetwork:
        """The highest ratio of MAX_DROP_RATIOS that loses at most ``points`` of validation accuracy."""
        best, network = None, self.meter.original
        for ratio in MAX_DROP_RATIOS:
            try:
                result = deep.to_size(network, self._weights_budget(self.original_bytes // ratio))
            except BundleError:  # less than the reference images take
                break
            if not self._within_limit(result.stages[-1], points):
                self.options.log_line(f"{ratio} times smaller loses more than {points:g} points: the search ends")
                break
            best, network = result, result.network
        if best is not None:
            return best
        fallback = deep.to_size(self.meter.original, self._weights_budget(self.original_bytes // FALLBACK_RATIO))
        return fallback if self._within_limit(fallback.stages[-1], points) else self._checked(self._shared())

    def _within_limit(self, stage: Stage, points: float) -> bool:
        """Does ``stage`` lose at most ``points`` of validation accuracy?"""
        assert stage.validation is not None and self.original.validation is not None
        lost = self.original.validation.correct1 - stage.validation.correct1
        return 100 * lost <= points * stage.validation.count + 1e-9

    def _shared(self) -> CompressedNetwork:
        bits = code_bits(self.bundle.network, self.compression.conv_bits, self.compression.fc_bits)
        network = share(self.meter.original, bits)
        stage = self.meter.measure("shared", "weights share values", network, sparse_size(network, bits))
        return CompressedNetwork(network, dict.fromkeys(bits, "shared"), [stage])

    def _rounded(self, kind: Literal["int8", "int4"]) -> CompressedNetwork:
        network = copy.deepcopy(self.meter.original)
        coding = round_to_integers(network, kind)
        weights = sum(w.numel() for w in weight_tensors(network).values())
        size = float32_size(network) - 4 * weights + weights * int(kind[3:]) // 8
        return CompressedNetwork(network, coding, [self.meter.measure(kind, "integers times a scale", network, size)])

    def _checked(self, network: CompressedNetwork) -> CompressedNetwork:
        """``network``, if it keeps the accuracy; the size is checked after it is written."""
        if self.max_accuracy_drop is not None and not self._within_limit(network.stages[-1], self.max_accuracy_drop):
            lost = self.points_lost(network.stages[-1])
            raise BundleError(
                f"{self.method} loses more than {self.max_accuracy_drop:g} points of validation accuracy at any "
                f"size tried (the last one: {lost:.1f})",
                "",
                "allow a larger --max-accuracy-drop" + (", or more --epochs" if self.method == "deep" else ""),
            )
        return network

    def chosen(self) -> str:
        """What was chosen on which split, as a sentence."""
        if self.store is None:
            return "nothing was chosen: there were no images"
        count = len(self.store.split("validation"))
        if self.method != "deep" or isinstance(self.bundle.network, GraphNetwork):
            return f"only the temperature was chosen, on {count} validation images"
        size = "the size was given" if self.max_accuracy_drop is None else "so was the size"
        return (
            f"the pruning of each layer and whether to keep fine-tuning were chosen on {count} validation images; "
            f"{size}; nothing by the test split"
        )


def folder_size(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _finish(
    job: CompressionJob, network: CompressedNetwork, partial: Path, folder: Path, started: float
) -> CompressionResult:
    """Write the bundle, read it back, measure the network that was read, and then evaluate the test split."""
    bundle = dataclasses.replace(job.bundle, network=network.network, coding=network.coding)
    path = _complete(job, bundle, network).save(partial / "bundle")
    read = Classifier.load(path, job.device)  # every measurement from here on is of the file
    size = folder_size(path)
    if job.target_size is not None and size > job.target_size:
        hint = "ask for a larger --target-size" if job.method == "deep" else "take --method deep"
        hint = "pruning needs images: give the run, or DATA" if job.store is None else hint
        raise BundleError(
            f"the compressed bundle takes {size:,} bytes", f"at most {job.target_size:,} as --target-size says", hint
        )
    weights_size = (path / "model.safetensors").stat().st_size
    coded = job.meter.measure("coded", "the file, read back", read.bundle.network, weights_size, rounds=2)
    test, scores = _evaluate_test(job, read)
    if scores is not None:
        metrics = dict(read.bundle.metrics) | {"test": scores.to_dict()}
        path = dataclasses.replace(read.bundle, metrics=metrics).save(path)
    result = CompressionResult(
        folder=folder,
        original=job.run,
        method=job.method,
        stages=[job.original, *network.stages, coded],
        original_bytes=job.original_bytes,
        bytes=folder_size(path),
        chosen=job.chosen(),
        test=test,
        test_scores=scores,
        layers=_layers(read.bundle),
        seconds=round(time.perf_counter() - started, 1),
        max_accuracy_drop=job.max_accuracy_drop,
        points_lost=job.points_lost(coded),
    )
    _write(job, result, partial)
    return result


def _complete(job: CompressionJob, bundle: Bundle, network: CompressedNetwork) -> Bundle:
    """``bundle`` with the temperature, reference predictions, scores and origin of its compressed network."""
    metrics, calibration = {}, dict(bundle.calibration)
    if job.store is not None:
        predictions = Classifier(bundle, job.device).predict_split(job.store.split("validation"))
        fitted = calibrations.calibrate(predictions.log_probabilities, predictions.labels, predictions.groups)
        calibration = fitted.to_dict() if fitted else {}
        metrics = {"validation": predictions.scores().to_dict()}
    origin = {
        "from": str(job.run),
        "sha256": sha256_of(job.bundle_path / "config.json"),
        "method": job.method,
        "stages": [stage.name for stage in network.stages],
        "nonzero": network.stages[-1].nonzero,
        "chosen_by": job.chosen(),
    }
    bundle = dataclasses.replace(
        bundle, metrics=metrics, calibration=calibration, data=dict(bundle.data) | {"compressed": origin}
    )
    classifier = Classifier(bundle, job.device)
    return dataclasses.replace(
        bundle,
        reference_samples=[classifier.predict_reference(one) for one in bundle.reference_samples],
        feature_reference=fit_reference(classifier.network, job.store, classifier.normalization)
        if job.store and job.bundle.feature_reference  # the size of the bundle counts it
        else None,
    )


def _evaluate_test(job: CompressionJob, read: Classifier) -> tuple[PairedComparison | None, Scores | None]:
    """Original and compressed network on the same test images; the run's journal records the evaluation."""
    if job.store is None or not len(job.store.split("test")):
        return None, None
    original = Classifier(job.bundle, job.device)
    before, after = (classifier.predict_split(job.store.split("test")) for classifier in (original, read))
    note_test(str(job.run), job.store, "test", "compress", job.options.log or _warn)
    return intervals.compare(before.correct, after.correct, after.groups), after.scores()


def _warn(text: str) -> None:
    """Print a warning, even if quiet."""
    print(text, file=sys.stderr)


def _write(job: CompressionJob, result: CompressionResult, folder: Path) -> None:
    """Write everything but the bundle: the result, its plot, and the files that make ``folder`` a run."""
    text = json.dumps(result.to_dict(), indent=1, ensure_ascii=False)
    write_file(folder / "compression.json", text.encode())
    rows = [
        (stage.name, stage.bytes, *((scores.top1, scores.top1_interval) if scores else (None, None)))
        for stage in result.stages
        for scores in [stage.validation]
    ]
    compression_plot.draw_compression(rows, folder / "plots" / "compression.png")
    if job.store is None:
        return
    write_file(folder / "recipe.toml", to_toml(own_recipe(job.bundle)).encode())
    append_event(folder / "journal.jsonl", "compressed", ratio=result.ratio)
    write_run_file(folder, {"data": job.store.address, "store": job.store.absolute, "compressed": str(job.run)})


def _layers(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Parameter name -> number of weights, nonzero fraction, coding, and distinct values where they are shared."""
    layers = {}
    for name, weight in weight_tensors(bundle.network).items():
        flat = weight.detach().flatten()
        nonzero = flat[flat != 0]
        layers[name] = {
            "weights": flat.numel(),
            "nonzero": nonzero.numel() / flat.numel(),
            "coding": bundle.coding[name],
            "values": torch.unique(nonzero).numel() if bundle.coding[name] == "shared" else None,
        }
    return layers
