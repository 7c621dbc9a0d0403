"""A trained classifier on disk: everything that someone else needs to use the result, and the proof that it is whole.

A bundle is a folder, format version 1, or 2 where its weights are compressed::

    config.json         network and its arguments, classes in order, preprocessing, recipe, metrics, calibration,
                        versions, SHA-256
    model.safetensors   the weights, float32, by the network's own names; version 2: see compressed_weights.py
    mean.safetensors    what is subtracted: mean image [S, S, 3], its center or channel means [3]; divisor, color axes
    reference/*.png        a few images, with the probabilities expected of them in reference/expected.json
    README.md           model card

Nothing here is ever unpickled. Every file's SHA-256 is in ``config.json`` and is checked when a bundle is opened;
that of ``config.json`` is of its other entries, as JSON with sorted keys.
"""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from alexnet.bundle import compressed_weights
from alexnet.bundle.integrity import (
    COMPRESSED,
    FORMAT,
    REFERENCE_NAME,
    VERSION,
    Config,
    Model,
    check_hashes,
    hashes,
    read_config,
    read_reference,
    read_tensors,
    write_tensors,
)
from alexnet.bundle.model_card import model_card
from alexnet.cuda_convnet import Data, Files, GraphNetwork, build
from alexnet.data.atomic_io import current, whole_folder
from alexnet.data.decode import Fit
from alexnet.data.remote import local_path
from alexnet.errors import BundleError, ModelError
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model, meta_model
from alexnet.models.network import Network, nonfinite
from alexnet.schema import ReferenceSample, checksum_of, class_fault, regular_file

MIN_DIVIDE, MAX_DIVIDE = 1e-6, 1e9  # of gray levels: beyond, the network sees nothing or overflows
CENTER = "center of the mean image"  # the same for every view, as in the 2012 code


@dataclass(frozen=True)
class Bundle:
    """A trained classifier in memory.

    ``stored_size`` and ``fit`` say how an image is brought to its stored form, ``image_size`` is the side of the
    view that the network sees, pixels.
    """

    network: Network
    classes: tuple[str, ...]
    normalization: Normalization
    stored_size: int
    fit: Fit
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    initialization: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)  # name, fingerprint and counts of what it was trained on
    calibration: Mapping[str, Any] = field(default_factory=dict)  # temperature and thresholds; empty: temperature 1
    reference_samples: Sequence[ReferenceSample] = ()
    coding: Mapping[str, str] = field(default_factory=dict)  # weights that are written compressed: name -> kind

    @property
    def image_size(self) -> int:
        return self.network.image_size

    @property
    def temperature(self) -> float:
        """What logits are divided by before the softmax, wherever probabilities leave the system."""
        return float(self.calibration.get("temperature", 1.0))

    @property
    def thresholds(self) -> dict[str, float]:
        """Target error among answers, as text -> the least probability of a first prediction that keeps it."""
        return dict(self.calibration.get("thresholds", {}))

    def save(self, path: Path) -> Path:
        """Write the bundle to the new folder ``path``, or replace the bundle there; whole or not at all.

        At every instant one whole bundle can be opened, the old one or the new one. Files of others in a bundle's
        folder stay. Raises :class:`BundleError`, and changes nothing, where ``path`` is anything else than a bundle or
        cannot be written.
        """
        path = local_path(path)
        if fault := class_fault(self.classes) or self._reference_fault():
            raise BundleError(f"a bundle can not be saved with {fault}", "", "rename it and prepare the data again")
        target = path.resolve()  # what a link leads to is replaced, not the link
        try:
            with whole_folder(target, _replaced(target)) as folder:
                self._write(folder)
        except FileExistsError as error:
            name = Path(error.filename2 or error.filename).relative_to(folder)
            what = f"{path} holds {name}, which is not part of the bundle but has the name of one of its files"
            raise BundleError(what, "", "move it away, or save to a new folder") from error
        except OSError as error:
            what = f"bundle {path} could not be written: {error.strerror or error}"
            raise BundleError(what, "", "make room, or choose another folder") from error
        return path

    def _write(self, folder: Path) -> None:
        (folder / "reference").mkdir()
        if self.coding:
            compressed_weights.write(folder / "model.safetensors", self.network.state_dict(), self.coding)
        else:
            write_tensors(folder / "model.safetensors", dict(self.network.state_dict()))
        write_tensors(folder / "mean.safetensors", self.normalization.tensors())
        expected = {}
        for sample in self.reference_samples:
            (folder / "reference" / f"{sample.name}.png").write_bytes(sample.png)
            expected[f"{sample.name}.png"] = sample.probabilities
        (folder / "reference" / "expected.json").write_text(json.dumps(expected, indent=1))
        stored = f"{self.stored_size}×{self.stored_size} ({self.fit})"
        card = model_card(self.network, self.classes, self.metrics, self.data, self.recipe, stored, self.calibration)
        (folder / "README.md").write_text(card, encoding="utf-8")
        config = self._config()
        config["sha256"] = hashes(folder) | {"config.json": checksum_of(config, "sha256")}
        (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")

    def _reference_fault(self) -> str:
        names = [sample.name for sample in self.reference_samples if not re.fullmatch(REFERENCE_NAME, sample.name)]
        return f"a reference image of the name {names[0]!r:.60}" if names else ""

    @classmethod
    def load(cls, path: Path | str, *, links_within: Path | None = None) -> "Bundle":
        """Open a bundle and check every byte of it; raises :class:`BundleError` naming the file that differs.

        Links may lead only to files inside the folder, or inside ``links_within``.
        """
        path = local_path(path)
        while True:  # again where it was replaced while it was read
            folder = current(path)
            before = _identity(folder)
            try:
                bundle = cls._load(folder, links_within)
            except BundleError:
                if _identity(current(path)) == before:
                    raise
            else:
                if _identity(current(path)) == before:
                    return bundle

    @classmethod
    def _load(cls, path: Path, links_within: Path | None) -> "Bundle":
        raw, config = read_config(path, links_within)
        check_hashes(path, raw, links_within)
        model, classes = config.model, len(config.classes)
        try:
            weights_file = regular_file(path, "model.safetensors", links_within)
            network = _blank(model, classes)
            coding: dict[str, str] = {}
            if config.version == COMPRESSED:
                shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
                weights, coding = compressed_weights.read(weights_file, shapes)
            else:
                weights = read_tensors(weights_file)
            network = _filled(network, weights, model, classes)
            normalization = _statistics(regular_file(path, "mean.safetensors", links_within), config)
        except ModelError as error:
            raise BundleError(f"bundle {path}: {error.what}", error.must, "use another copy") from error
        except (KeyError, TypeError, RuntimeError, ValueError, AttributeError, OSError) as error:
            reason = " ".join(str(error).split())  # PyTorch's has several lines
            raise BundleError(f"bundle {path} does not hold together: {reason}", "", "use another copy") from error
        return cls(
            network=network.eval(),
            classes=tuple(config.classes),
            normalization=normalization,
            stored_size=config.preprocessing.stored_size,
            fit=config.preprocessing.fit,
            recipe=config.recipe,
            metrics=config.metrics,
            initialization=model.initialization,
            data=config.data,
            calibration=raw.get("calibration", {}),
            reference_samples=read_reference(path, config, links_within),
            coding=coding,
        )

    def same_classes(self, classes: Sequence[str], where: str) -> None:
        """Raise :class:`BundleError` with the difference unless ``classes`` are this bundle's, in this order."""
        if tuple(classes) == self.classes:
            return
        missing, extra = sorted(set(self.classes) - set(classes)), sorted(set(classes) - set(self.classes))
        difference = "; ".join(
            text
            for text in (
                f"it lacks {', '.join(missing[:5])}" if missing else "",
                f"it has {', '.join(extra[:5])} besides" if extra else "",
                "the same classes in another order" if not missing and not extra else "",
            )
            if text
        )
        raise BundleError(
            f"the classes of {where} are not those of the classifier: {difference}",
            f"the {len(self.classes)} classes that it was trained on",
            "evaluate on data with the same class folders",
        )

    def _config(self) -> dict[str, Any]:
        from importlib.metadata import version

        network = self.network
        return {
            "format": FORMAT,
            "version": COMPRESSED if self.coding else VERSION,
            "model": {
                "name": network.name,
                "num_classes": network.num_classes,
                "in_channels": network.in_channels,
                "image_size": network.image_size,
                "initialization": self.initialization,
                "layer_files": vars(network.files) if isinstance(network, GraphNetwork) else None,
                "parameters": sum(p.numel() for p in network.parameters()),
            },
            "classes": list(self.classes),
            "preprocessing": {
                "decode": "RGB, 8 bits, EXIF rotation applied, transparency over white",
                "stored_size": self.stored_size,
                "fit": self.fit,
                "view": "center",
                "image_size": network.image_size,
                "subtract": self._subtracted(),
                "divide": self.normalization.divide.tolist(),
                "gray": network.in_channels == 1,
            },
            "recipe": dict(self.recipe),
            "metrics": dict(self.metrics),
            "data": dict(self.data),
            **({"calibration": dict(self.calibration)} if self.calibration else {}),
            "versions": {
                "alexnet": version("alexnet"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }

    def _subtracted(self) -> str:
        if self.normalization.mean.dim() == 1:
            return "channel means"
        return "mean image" if self.normalization.mean_follows_crop else CENTER


def find_bundle(path: Path | str) -> Path:
    """The bundle in a run folder, or the path itself where it is one; raises :class:`BundleError`."""
    path = local_path(path)
    for candidate in (current(path), current(path / "bundle")):
        if (candidate / "config.json").exists():
            return candidate
    if not path.exists():
        raise BundleError(f"there is no {path}", "a run folder or a bundle")
    unfinished = (path / "checkpoints").is_dir()
    todo = f"finish the run: alexnet train --resume {path}" if unfinished else "give the folder that training made"
    raise BundleError(f"{path} holds no bundle", "a run folder or a bundle", todo)


def weights_sha256(path: Path | str) -> str:
    """The SHA-256 of the weights of the run or bundle ``path``, as its config says. Raises :class:`BundleError`."""
    return read_config(find_bundle(path))[1].sha256["model.safetensors"]


def is_trained(path: Path) -> bool:
    """Is there a bundle, or a run, finished or not?"""
    marks = ("config.json", "bundle/config.json", "run.json", "checkpoints")
    return not (path / "dataset.json").is_file() and any((path / mark).exists() for mark in marks)


def _replaced(path: Path) -> list[str]:
    """The files of the bundle ``path``, which saving replaces. Raises :class:`BundleError` for another folder."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return []
    try:
        return ["config.json", *read_config(path)[1].sha256]
    except BundleError as error:
        reason = f"{path} exists and is not a bundle that can be replaced ({error.what})"
        raise BundleError(reason, "a new folder or a bundle", "choose another folder") from error


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def _blank(model: Model, classes: int) -> Network:
    """The network that ``config.json`` names, or whose layer files it carries, ready to take its weights."""
    if model.layer_files:
        files = Files(**msgspec.structs.asdict(model.layer_files))
        return build(files, Data(model.image_size, model.in_channels, classes), draw=False)
    return meta_model(model.name, num_classes=classes, in_channels=model.in_channels, image_size=model.image_size)


def _filled(network: Network, weights: Mapping[str, Tensor], model: Model, classes: int) -> Network:
    """With ``weights`` for its own: themselves, in its own precision. RuntimeError where names or shapes differ."""
    own = network.state_dict()
    weights = {name: tensor.to(own[name].dtype) if name in own else tensor for name, tensor in weights.items()}
    if name := nonfinite(weights):
        raise ValueError(f"{name} has values that are too large for its precision")
    network.load_state_dict(weights, assign=True)
    if any(buffer.is_meta for buffer in network.buffers()):  # tables that are no weights: LeNet-5's
        network = create_model(
            model.name, num_classes=classes, in_channels=model.in_channels, image_size=model.image_size
        )
        network.load_state_dict(weights)
    return network


def _statistics(path: Path, config: Config) -> Normalization:
    """What is subtracted and divided by. Raises ValueError for shapes and numbers that are none."""
    tensors = {name: tensor.float() for name, tensor in read_tensors(path).items()}
    stored, view = config.preprocessing.stored_size, config.model.image_size
    follows = config.preprocessing.subtract != CENTER
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    mean = shapes.get("mean", [])
    squares = [[side, side, 3] for side in {stored, min(view, stored)}]
    allowed = [[3]] if config.preprocessing.subtract == "channel means" else squares[:1] if follows else squares
    if set(shapes) != {"mean", "color_std", "color_axes", "divide"}:
        raise ValueError(f"mean.safetensors holds {', '.join(sorted(shapes)):.80}")
    if mean not in allowed or shapes["color_std"] != [3] or shapes["color_axes"] != [3, 3]:
        raise ValueError(f"mean.safetensors has shapes {shapes}, which do not fit the preprocessing")
    divide = tensors["divide"]
    if shapes["divide"] not in ([], [3]) or not bool(((divide >= MIN_DIVIDE) & (divide <= MAX_DIVIDE)).all()):
        raise ValueError(f"divide is {divide.tolist()!r:.60}, not 1 or 3 numbers from {MIN_DIVIDE:g} to {MAX_DIVIDE:g}")
    return Normalization(**tensors, mean_follows_crop=follows)
