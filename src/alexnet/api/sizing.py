"""How small, and by which method: the size or the loss that was asked for, and the network that keeps to it."""

import copy
from pathlib import Path
from typing import Literal

import torch

from alexnet.api.evaluating import store_for
from alexnet.api.honest import refuse_mixed
from alexnet.api.shrinking import Effort, Shrinker, Shrunk, share
from alexnet.api.stages import Scale, Stage, listed_size, plain_size
from alexnet.compression import quantizing
from alexnet.compression.quantizing import Method
from alexnet.data.options import DataOptions
from alexnet.data.store import Store
from alexnet.deploy.classifier import Classifier
from alexnet.errors import BundleError, DataError, RecipeError
from alexnet.models.cuda_convnet import GraphNetwork

DEFAULT_MAX_LOSS = 1.0  # points of validation accuracy that may be lost where neither a size nor a loss is asked for
BACK_OFF = (35, 20, 10, 5)  # times smaller, tried then until one keeps the accuracy; 35: Deep Compression's for AlexNet
LADDER = (10, 20, 35, 50, 70, 100)  # what --max-loss tries, one after the other
FIRST_IF_NONE = 5  # and this where the first is too much


class Job:
    """One compression, from what was asked for to a network that is small enough."""

    def __init__(
        self, run: Path, place: Path, method: Method, target: int | None, max_loss: float | None, effort: Effort,
        options: DataOptions,
    ) -> None:  # fmt: skip
        if target is not None and max_loss is not None:
            raise RecipeError("--target-size and --max-loss both say when it is small enough", "one of them")
        if target is not None and target < 1:
            raise RecipeError(f"--target-size is {target} bytes", "at least 1")
        if max_loss is not None and not 0 <= max_loss < 100:
            raise RecipeError(f"--max-loss is {max_loss}", "points of accuracy, from 0 to less than 100")
        self.run, self.place, self.method, self.effort, self.options = run, place, method, effort, options
        self.target, self.max_loss, self.backs_off = target, max_loss, target is None and max_loss is None
        resolved = place.resolve()
        self.name = resolved.parent.name if resolved.name == "bundle" else resolved.name

    def open(self, data: str | Path | None, device: torch.device) -> None:
        """The classifier, its pictures, and what it weighs and answers before anything is done."""
        self.device, self.classifier = device, Classifier.load(self.place, device)
        self.bundle = self.classifier.bundle
        if self.bundle.coding:
            raise BundleError(f"{self.place} is compressed already", "a network as it was trained", "give the original")
        self.store = self._store(data)
        if self.store is None and self.max_loss is not None:
            raise BundleError("--max-loss without pictures: a bundle alone knows none", "", "give the run, or DATA")
        if self.store is not None and self.backs_off:
            self.max_loss = DEFAULT_MAX_LOSS
        self.bytes = folder_size(self.place)
        self.rest = self.bytes - (self.place / "model.safetensors").stat().st_size
        self.scale = Scale(self.bundle, self.store, device)
        self.first = self.scale.stage("original", "float32", self.scale.original, plain_size(self.bundle.network))
        self.options.tell(f"original: {self.bytes / 1e6:.1f} MB")

    def _store(self, data: str | Path | None) -> Store | None:
        if data is None and not (self.run / "run.json").is_file():
            return None
        recipe = self.bundle.recipe
        if 0 < int(recipe.get("join_from", 0)) < int(recipe.get("epochs", 0)):
            raise BundleError(f"{self.run} was trained on its validation pictures too", "", "nothing honest can choose")
        store = store_for(self.run, self.classifier, data, self.options)
        self.bundle.same_classes(store.classes, str(store.path))
        refuse_mixed(self.bundle, store)
        for name in ("train", "validation"):
            if not len(store.split(name)):
                raise DataError(f"{store.path} has no {name} pictures", "both, to learn again and to choose by")
        return store

    def shrink(self, folder: Path, workers: int, quiet: bool) -> Shrunk:
        """The small network, by the method that was asked for."""
        if self.method != "deep":
            return self._checked(self._rounded(self.method))
        if self.store is None or isinstance(self.bundle.network, GraphNetwork):
            why = "no pictures are at hand" if self.store is None else "a network of layer files has a rule of its own"
            self.options.tell(f"{why}: nothing is pruned, weights are shared and coded only")
            return self._checked(self._shared())
        shrinker = Shrinker(
            self.bundle, self.store, self.scale, self.effort, self.device, folder, self.options.tell, workers, quiet
        )
        if self.target is not None:
            return shrinker.to_size(self.scale.original, self._budget(self.target))
        assert self.max_loss is not None
        return self._backed_off(shrinker) if self.backs_off else self._within(shrinker, self.max_loss)

    def _budget(self, whole: int) -> int:
        """What of a bundle of ``whole`` bytes is left for the coded weights."""
        coded = quantizing.layers(self.bundle.network).values()
        biases = plain_size(self.bundle.network) - sum(4 * weight.numel() for weight in coded)
        rest = self.rest + biases + 3072 + 512 * len(coded)  # a header, and a card that says more
        left = int(0.995 * whole) - rest
        if left <= 0:
            what = f"golden pictures, card, biases and header alone take {rest:,} bytes"
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
                found = shrinker.to_size(network, self._budget(self.bytes // ratio))
            except BundleError:  # smaller than the pictures in the bundle themselves
                break
            if not self._keeps(found.stages[-1], points):
                self.options.tell(f"{ratio} times smaller loses more than {points:g} points: no further")
                break
            best, network = found, found.network
        if best is not None:
            return best
        mild = shrinker.to_size(self.scale.original, self._budget(self.bytes // FIRST_IF_NONE))
        return mild if self._keeps(mild.stages[-1], points) else self._checked(self._shared())

    def _keeps(self, stage: Stage, points: float) -> bool:
        assert stage.validation is not None and self.first.validation is not None
        lost = self.first.validation.correct1 - stage.validation.correct1
        return 100 * lost <= points * stage.validation.count + 1e-9

    def _shared(self) -> Shrunk:
        bits = quantizing.bits_of(self.bundle.network, self.effort.conv_bits, self.effort.fc_bits)
        network = share(self.scale.original, bits)
        stage = self.scale.stage("shared", "weights share values", network, listed_size(network, bits))
        return Shrunk(network, dict.fromkeys(bits, "shared"), [stage])

    def _rounded(self, kind: Literal["int8", "int4"]) -> Shrunk:
        network = copy.deepcopy(self.scale.original)
        coding = quantizing.whole(network, kind)
        weights = sum(w.numel() for w in quantizing.layers(network).values())
        size = plain_size(network) - 4 * weights + weights * int(kind[3:]) // 8
        return Shrunk(network, coding, [self.scale.stage(kind, "whole numbers times a magnitude", network, size)])

    def _checked(self, found: Shrunk) -> Shrunk:
        """Refuse what loses more than was allowed; the size is looked at when it is written."""
        if self.max_loss is not None and not self._keeps(found.stages[-1], self.max_loss):
            raise BundleError(
                f"{self.method} loses more than {self.max_loss:g} points of validation accuracy at any size tried "
                f"(the last one: {self.points_lost(found.stages[-1]):.1f})", "",
                "allow a larger --max-loss" + (", or more --epochs" if self.method == "deep" else ""),
            )  # fmt: skip
        return found

    def chosen(self) -> str:
        """What chose what."""
        if self.store is None:
            return "nothing was chosen: there were no pictures"
        count = len(self.store.split("validation"))
        if self.method != "deep" or isinstance(self.bundle.network, GraphNetwork):
            return f"nothing was chosen but the temperature, by {count} validation pictures"
        size = "the size was asked for" if self.max_loss is None else "the size too"
        return (
            f"what each layer keeps and whether tuning paid, by {count} validation pictures; {size}; "
            "nothing by the test split"
        )


def folder_size(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
