"""A trained classifier on disk: everything that someone else needs to use the result, and the proof that it is whole.

A bundle is a folder, format version 1, or 2 where its weights are compressed::

    config.json         network and its arguments, classes in order, preprocessing, recipe, metrics, calibration,
                        versions, SHA-256
    model.safetensors   the weights, float32, by the network's own names; version 2: see alexnet.compression.file
    mean.safetensors    what is subtracted: mean image [S, S, 3], its center or channel means [3]; divisor, color axes
    golden/*.png        a few pictures, with the probabilities expected of them in golden/expected.json
    README.md           model card

Nothing here is ever unpickled. Every file's SHA-256 stands in ``config.json`` and is checked when a bundle is opened;
that of ``config.json`` is of its other entries, as JSON with sorted keys.
"""

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alexnet.batches.transforms import Statistics
from alexnet.bundle.seal import COMPRESSED, FORMAT, VERSION, check_hashes, config_sha256, hashes, read_config, sync
from alexnet.bundle.tensors import read_tensors, write_tensors
from alexnet.card import model_card
from alexnet.compression import file as compressed
from alexnet.data.pixels import Fit
from alexnet.errors import BundleError
from alexnet.models import blank_model, create_model
from alexnet.models.cuda_convnet import Data, Files, GraphNetwork, build
from alexnet.models.network import Network

CENTER = "center of the mean image"  # the same for every view, as in the 2012 code


@dataclass(frozen=True)
class Golden:
    """A picture that every copy of the classifier must answer alike: PNG bytes, center-view probabilities [K]."""

    name: str
    png: bytes
    probabilities: list[float]


@dataclass(frozen=True)
class Bundle:
    """A trained classifier in memory.

    ``stored_size`` and ``fit`` say how a picture is brought to its stored form, ``image_size`` is the side of the
    view that the network sees, pixels.
    """

    network: Network
    classes: tuple[str, ...]
    statistics: Statistics
    stored_size: int
    fit: Fit
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    initialization: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)  # name, fingerprint and counts of what it was trained on
    calibration: Mapping[str, Any] = field(default_factory=dict)  # temperature and thresholds; empty: temperature 1
    golden: Sequence[Golden] = ()
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
        """Target error among answers, as text -> the least probability of a first guess that keeps it."""
        return dict(self.calibration.get("thresholds", {}))

    def save(self, path: Path) -> Path:
        """Write the bundle to ``path``, whole or not at all: under a temporary name first, renamed last."""
        partial = path.with_name(path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "golden").mkdir(parents=True)
        if self.coding:
            compressed.write(partial / "model.safetensors", self.network.state_dict(), self.coding)
        else:
            write_tensors(partial / "model.safetensors", dict(self.network.state_dict()))
        write_tensors(partial / "mean.safetensors", self.statistics.tensors())
        expected = {}
        for golden in self.golden:
            (partial / "golden" / f"{golden.name}.png").write_bytes(golden.png)
            expected[f"{golden.name}.png"] = golden.probabilities
        (partial / "golden" / "expected.json").write_text(json.dumps(expected, indent=1))
        stored = f"{self.stored_size}×{self.stored_size} ({self.fit})"
        card = model_card(self.network, self.classes, self.metrics, self.data, self.recipe, stored, self.calibration)
        (partial / "README.md").write_text(card, encoding="utf-8")
        config = self._config()
        config["sha256"] = hashes(partial) | {"config.json": config_sha256(config)}
        (partial / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
        sync(partial)
        old = path.with_name(path.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        partial.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        return path

    @classmethod
    def load(cls, path: Path | str) -> "Bundle":
        """Open a bundle and check every byte of it; raises :class:`BundleError` naming the file that differs."""
        path = Path(path)
        config = read_config(path)
        check_hashes(path, config)
        try:
            model, classes = config["model"], len(config["classes"])
            network = _blank(model, classes)
            coding: dict[str, str] = {}
            if config["version"] == COMPRESSED:
                shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
                weights, coding = compressed.read(path / "model.safetensors", shapes)
            else:
                weights = read_tensors(path / "model.safetensors")
            network = _filled(network, weights, model, classes)
            preprocessing = config["preprocessing"]
            follows = preprocessing.get("subtract") != CENTER
            statistics = Statistics(**read_tensors(path / "mean.safetensors"), follows=follows)
            expected = json.loads((path / "golden" / "expected.json").read_text())
            for name in expected:
                if f"golden/{name}" not in config["sha256"]:
                    raise BundleError(f"bundle {path} has no SHA-256 of golden/{name}", "", "use another copy")
            return cls(
                network=network.eval(),
                classes=tuple(config["classes"]),
                statistics=statistics,
                stored_size=preprocessing["stored_size"],
                fit=preprocessing["fit"],
                recipe=config["recipe"],
                metrics=config["metrics"],
                initialization=config["model"].get("initialization", ""),
                data=config["data"],
                calibration=_checked(config.get("calibration", {})),
                golden=[
                    Golden(Path(name).stem, (path / "golden" / name).read_bytes(), probabilities)
                    for name, probabilities in expected.items()
                ],
                coding=coding,
            )
        except (KeyError, TypeError, RuntimeError, ValueError, AttributeError, OSError) as error:
            reason = " ".join(str(error).split())  # PyTorch's has several lines
            raise BundleError(f"bundle {path} does not hold together: {reason}", "", "use another copy") from error

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
                "divide": self.statistics.divide.tolist(),
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
        if self.statistics.mean.dim() == 1:
            return "channel means"
        return "mean image" if self.statistics.follows else CENTER


def find(path: Path | str) -> Path:
    """The bundle in a run folder, or the path itself where it is one; raises :class:`BundleError`."""
    path = Path(path)
    for candidate in (path, path / "bundle"):
        if (candidate / "config.json").is_file():
            return candidate
    if not path.exists():
        raise BundleError(f"there is no {path}", "a run folder or a bundle")
    unfinished = (path / "checkpoints").is_dir()
    todo = f"finish the run: alexnet train --resume {path}" if unfinished else "give the folder that training made"
    raise BundleError(f"{path} holds no bundle", "a run folder or a bundle", todo)


def weights_sha256(path: Path | str) -> str:
    """The SHA-256 of the weights of the run or bundle ``path``, as its config says. Raises :class:`BundleError`."""
    return str(read_config(find(path)).get("sha256", {}).get("model.safetensors", ""))


def is_trained(path: Path) -> bool:
    """Is there a bundle, or a run, finished or not?"""
    marks = ("config.json", "bundle/config.json", "run.json", "checkpoints")
    return not (path / "dataset.json").is_file() and any((path / mark).exists() for mark in marks)


def _blank(model: Mapping[str, Any], classes: int) -> Network:
    """The network that ``config.json`` names, or whose layer files it carries, ready to take its weights."""
    if model.get("layer_files"):
        data = Data(model["image_size"], model["in_channels"], classes)
        return build(Files(**model["layer_files"]), data, draw=False)
    return blank_model(
        model["name"], num_classes=classes, in_channels=model["in_channels"], image_size=model["image_size"]
    )


def _filled(network: Network, weights: Mapping[str, Tensor], model: Mapping[str, Any], classes: int) -> Network:
    """With ``weights`` for its own: themselves, in its own precision. RuntimeError where names or shapes differ."""
    own = network.state_dict()
    weights = {name: tensor.to(own[name].dtype) if name in own else tensor for name, tensor in weights.items()}
    network.load_state_dict(weights, assign=True)
    if any(buffer.is_meta for buffer in network.buffers()):  # tables that are no weights: LeNet-5's
        network = create_model(
            model["name"], num_classes=classes, in_channels=model["in_channels"], image_size=model["image_size"]
        )
        network.load_state_dict(weights)
    return network


def _checked(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """A calibration that can be used: a missing one is temperature 1; raises ValueError for what is none."""
    temperature, thresholds = calibration.get("temperature", 1.0), calibration.get("thresholds", {})
    if not (isinstance(temperature, int | float) and 1e-3 <= temperature <= 1e3):
        raise ValueError(f"temperature {temperature!r:.40}")
    if not all(isinstance(p, int | float) and 0 <= p <= 1 and float(t) > 0 for t, p in thresholds.items()):
        raise ValueError(f"thresholds {thresholds!r:.80}")
    return dict(calibration)
