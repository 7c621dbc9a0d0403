"""A bundle: a trained classifier on disk, with everything that is needed to use it and to verify its files.

A bundle is a directory of format version 1, or 2 if its weights are compressed::

    config.json         network and its arguments, classes in order, preprocessing, recipe, metrics, calibration,
                        versions, SHA-256
    model.safetensors   the weights, float32, by the names of the state dict; version 2: see compressed_weights.py
    mean.safetensors    mean that is subtracted: image [S, S, 3], its center, or channel means [3]; divisor, color axes
    features.safetensors  distribution of the training images' features, for a server's monitor, if they were known
    reference/*.png     a few images; reference/expected.json has the expected probabilities
    certificate.json    what was tested when the bundle was promoted, if it was
    README.md           model card

Nothing is unpickled. ``config.json`` has the SHA-256 of every file, which is checked when a bundle is loaded. Its own
SHA-256 is computed from its other entries, as JSON with sorted keys.
"""

import functools
import json
import platform
import re
import shutil
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
    damaged,
    hashes,
    read_config,
    read_reference,
    read_tensors,
    write_tensors,
)
from alexnet.bundle.model_card import model_card
from alexnet.cuda_convnet import Data, Files, GraphNetwork, build
from alexnet.data.atomic_io import current, exchange, finish_exchange, sha256_of, whole_folder
from alexnet.data.decode import Fit
from alexnet.data.remote import local_path
from alexnet.errors import BundleError, ModelError, reason
from alexnet.evaluation.ood import FeatureReference
from alexnet.loader.augmentation import Normalization
from alexnet.models import create_model, meta_model
from alexnet.models.network import Network
from alexnet.schema import ReferenceSample, check, checksum_of, class_fault, read_json, regular_file
from alexnet.terminal import html_table

MIN_DIVIDE, MAX_DIVIDE = 1e-6, 1e9  # divisors of gray levels; outside this range inputs vanish or overflow
FEATURES = "features.safetensors"
STARTER = "starter"  # name of the pretrained weights that come with the package
STARTER_FOLDER = Path(__file__).parents[1] / STARTER
CENTER = "center of the mean image"  # the same mean for every crop, as in the 2012 code


@dataclass(frozen=True)
class Bundle:
    """A trained classifier in memory.

    Attributes:
        network: The network with its weights.
        classes: Class names in the order of the outputs.
        normalization: Mean and divisor of the inputs, gray levels.
        stored_size: Size to which an image is resized before it is cropped, pixels.
        fit: How an image is fitted to the square stored size.
        recipe: Recipe of the training.
        metrics: Scores by split.
        initialization: How the weights were initialized.
        data: Name, fingerprint and counts of the training data.
        calibration: Temperature and thresholds; empty: temperature 1.
        reference_samples: Images with the probabilities expected of them.
        coding: Kind of compression by name, for weights that are written compressed.
        certificate: What was tested when these weights were promoted; empty if they were not.
        feature_reference: The distance of an image's features from those of the training images; None if unknown.
    """

    network: Network
    classes: tuple[str, ...]
    normalization: Normalization
    stored_size: int
    fit: Fit
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    initialization: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    reference_samples: Sequence[ReferenceSample] = ()
    coding: Mapping[str, str] = field(default_factory=dict)
    certificate: Mapping[str, Any] = field(default_factory=dict)
    feature_reference: FeatureReference | None = None

    @property
    def image_size(self) -> int:
        return self.network.image_size

    def _repr_html_(self) -> str:
        """What the classifier is, as a table, for notebooks."""
        test = self.metrics.get("test", {}).get("top1")
        rows = [
            ("network", self.network.name),
            ("classes", ", ".join(self.classes[:10]) + (" ..." if len(self.classes) > 10 else "")),
            ("image size", f"{self.image_size} of {self.stored_size} pixels"),
            ("data", self.data.get("name", "")),
            ("test accuracy", "" if test is None else f"{100 * test:.1f} %"),
        ]
        return html_table("Bundle", (), [row for row in rows if row[1]])

    @property
    def temperature(self) -> float:
        """Divisor of the logits before the softmax."""
        return float(self.calibration.get("temperature", 1.0))

    @property
    def thresholds(self) -> dict[str, float]:
        """Confidence threshold by target error rate of the accepted predictions (as text)."""
        return dict(self.calibration.get("thresholds", {}))

    @property
    def conformal(self) -> dict[str, list[float]]:
        """Threshold of each class for prediction sets, by coverage (as text)."""
        return dict(self.calibration.get("conformal", {}))

    def save(self, path: Path, *, keep_previous: bool = False, replaces: str | None = None) -> Path:
        """Write the bundle to the new directory ``path``, or replace the bundle there.

        Replacement is atomic: at any time either the old or the new bundle can be loaded. Other files in the directory
        are kept.

        Args:
            path: The directory.
            keep_previous: Keep the replaced bundle in ``path.previous``; :func:`restore_previous` returns to it.
            replaces: The :func:`config_sha256` of the bundle at ``path`` that this one was made from or compared with,
                empty if there was none. Another one there, of another process, is not replaced. None: any.

        Returns:
            The local path of the bundle.

        Raises:
            BundleError: ``path`` exists and is not a bundle, or not the expected one, or cannot be written. Nothing is
                changed.
        """
        path = local_path(path)
        if fault := class_fault(self.classes) or self._reference_fault():
            raise BundleError(f"a bundle cannot be saved with {fault}", "", "rename it and prepare the data again")
        target = path.resolve()  # replaces the target of a link, not the link
        replaced = functools.partial(_replaced_files, target, replaces)
        try:
            finish_exchange(_previous(target), target)
            files = replaced()
            if keep_previous and files:
                _copy_bundle(target, _previous(target), files)
            with whole_folder(target, replaced) as folder:
                self._write(folder)
        except FileExistsError as error:
            name = Path(error.filename2 or error.filename).relative_to(folder)
            message = f"{path} holds {name}, which is not part of the bundle but has the name of one of its files"
            raise BundleError(message, "", "move it away, or save to a new folder") from error
        except OSError as error:
            message = f"bundle {path} could not be written: {error.strerror or error}"
            raise BundleError(message, "", "make room, or choose another folder") from error
        return path

    def _write(self, folder: Path) -> None:
        (folder / "reference").mkdir()
        if self.coding:
            compressed_weights.write(folder / "model.safetensors", self.network.state_dict(), self.coding)
        else:
            write_tensors(folder / "model.safetensors", dict(self.network.state_dict()))
        write_tensors(folder / "mean.safetensors", self.normalization.tensors())
        if self.feature_reference is not None:
            arrays = self.feature_reference.arrays()
            write_tensors(folder / FEATURES, {name: torch.from_numpy(array) for name, array in arrays.items()})
        expected = {}
        for sample in self.reference_samples:
            (folder / "reference" / f"{sample.name}.png").write_bytes(sample.png)
            expected[f"{sample.name}.png"] = sample.probabilities
        (folder / "reference" / "expected.json").write_text(json.dumps(expected, indent=1))
        stored = f"{self.stored_size}×{self.stored_size} ({self.fit})"
        certificate = dict(self.certificate)
        if certificate and certificate.get("weights_sha256") != sha256_of(folder / "model.safetensors"):
            certificate = {}  # of other weights
        if certificate:
            (folder / "certificate.json").write_text(json.dumps(certificate, indent=1, ensure_ascii=False), "utf-8")
        card = model_card(
            self.network, self.classes, self.metrics, self.data, self.recipe, stored, self.calibration, certificate
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        config = self._config()
        config["sha256"] = hashes(folder) | {"config.json": checksum_of(config, "sha256")}
        (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")

    def _reference_fault(self) -> str:
        names = [sample.name for sample in self.reference_samples if not re.fullmatch(REFERENCE_NAME, sample.name)]
        return f"a reference image of the name {names[0]!r:.60}" if names else ""

    @classmethod
    def load(cls, path: Path | str, *, links_within: Path | None = None) -> "Bundle":
        """Load a bundle and check the SHA-256 of every file.

        Args:
            path: The bundle.
            links_within: Directory that links may lead into, besides the bundle itself.

        Raises:
            BundleError: A file is missing, damaged or invalid; the message names it.
        """
        path = local_path(path)
        while True:  # read again if it was replaced in the meantime
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
            network = _create_network(model, classes)
            coding: dict[str, str] = {}
            if config.version == COMPRESSED:
                shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
                weights, coding = compressed_weights.read(weights_file, shapes)
            else:
                weights = read_tensors(weights_file)
            network = _load_weights(network, weights, model, classes)
            normalization = _normalization(regular_file(path, "mean.safetensors", links_within), config)
            features = None
            if FEATURES in config.sha256:
                tensors = read_tensors(regular_file(path, FEATURES, links_within))
                features = FeatureReference.from_arrays({name: tensor.numpy() for name, tensor in tensors.items()})
        except ModelError as error:
            raise BundleError(f"bundle {path}: {error.what}", error.must, "use another copy") from error
        except (KeyError, TypeError, RuntimeError, ValueError, AttributeError, OSError) as error:
            raise BundleError(f"bundle {path} is not consistent: {reason(error)}", "", "use another copy") from error
        bundle = cls(
            network=network.eval(),
            classes=tuple(config.classes),
            normalization=normalization,
            stored_size=config.preprocessing.stored_size,
            fit=config.preprocessing.fit,
            recipe=config.recipe,
            metrics=raw["metrics"],
            initialization=model.initialization,
            data=raw["data"],
            calibration=raw.get("calibration", {}),
            reference_samples=read_reference(path, config, links_within),
            coding=coding,
            certificate=_certificate(path, config, links_within),
            feature_reference=features,
        )
        bundle._check_derived(path / "config.json", raw)
        return bundle

    def _check_derived(self, file: Path, raw: Mapping[str, Any]) -> None:
        """Check the entries of the config ``raw`` that tell of the other files. Raises :class:`BundleError`."""
        for part, entries in self._derived().items():
            for name, value in entries.items():
                if raw[part].get(name, value) != value:
                    raise damaged(file, f"{part}.{name} is {raw[part][name]!r:.60}, the other files say {value!r:.60}")

    def _derived(self) -> dict[str, dict[str, Any]]:
        network = self.network
        return {
            "model": {"parameters": sum(p.numel() for p in network.parameters())},
            "preprocessing": {
                "view": "center",
                "image_size": network.image_size,
                "subtract": self._subtracted(),
                "divide": self.normalization.divide.tolist(),
                "gray": network.in_channels == 1,
            },
        }

    def same_classes(self, classes: Sequence[str], source: str) -> None:
        """Check that ``classes`` of ``source`` are those of this bundle, in the same order.

        Raises:
            BundleError: They differ; the message has the difference.
        """
        if tuple(classes) == self.classes:
            return
        missing, extra = sorted(set(self.classes) - set(classes)), sorted(set(classes) - set(self.classes))
        difference = "; ".join(
            text
            for text in (
                f"it lacks {', '.join(missing[:5])}" if missing else "",
                f"it also has {', '.join(extra[:5])}" if extra else "",
                "the same classes in another order" if not missing and not extra else "",
            )
            if text
        )
        raise BundleError(
            f"the classes of {source} are not those of the classifier: {difference}",
            f"the {len(self.classes)} classes that it was trained on",
            "evaluate on data with the same class folders",
        )

    def _config(self) -> dict[str, Any]:
        from alexnet import __version__

        network, derived = self.network, self._derived()
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
                **derived["model"],
            },
            "classes": list(self.classes),
            "preprocessing": {
                "decode": "RGB, 8 bits, EXIF rotation applied, transparency over white",
                "stored_size": self.stored_size,
                "fit": self.fit,
                **derived["preprocessing"],
            },
            "recipe": dict(self.recipe),
            "metrics": dict(self.metrics),
            "data": dict(self.data),
            **({"calibration": dict(self.calibration)} if self.calibration else {}),
            "versions": {
                "alexnet": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }

    def _subtracted(self) -> str:
        if self.normalization.mean.dim() == 1:
            return "channel means"
        return "mean image" if self.normalization.mean_follows_crop else CENTER


def find_bundle(path: Path | str) -> Path:
    """The bundle of a run directory, or ``path`` itself if it is a bundle; ``starter`` is the one of this package.

    A run or bundle in a folder of the name ``starter`` is found before that. Raises :class:`BundleError`.
    """
    path = local_path(path)
    for candidate in (current(path), current(path / "bundle"), *([STARTER_FOLDER] if str(path) == STARTER else [])):
        if (candidate / "config.json").exists():
            return candidate
    if str(path) == STARTER:
        raise BundleError("this installation has no starter weights", "", "docs/starter.md says how they are made")
    if not path.exists():
        raise BundleError(f"there is no {path}", "a run folder or a bundle")
    unfinished = (path / "checkpoints").is_dir()
    hint = f"finish the run: alexnet train --resume {path}" if unfinished else "give the folder that training made"
    raise BundleError(f"{path} holds no bundle", "a run folder or a bundle", hint)


def restore_previous(path: Path | str) -> Bundle:
    """Return to the bundle that ``save(path, keep_previous=True)`` replaced; the newer one is the previous one then.

    Returns:
        The bundle that is at ``path`` now.

    Raises:
        BundleError: There is no previous bundle, or it is damaged. Nothing is changed.
    """
    target = local_path(path).resolve()
    previous = _previous(target)
    try:
        finish_exchange(previous, target)
    except OSError as error:
        raise _not_replaced(path, error) from error
    if not previous.exists() or not target.exists():
        raise BundleError(f"{path} has no previous bundle", f"{previous}, which a promotion keeps")
    bundle = Bundle.load(previous)
    try:
        exchange(previous, target)
    except OSError as error:
        raise _not_replaced(path, error) from error
    return bundle


def _not_replaced(path: Path | str, error: OSError) -> BundleError:
    return BundleError(f"{path} could not be replaced: {error.strerror or error}", "a folder in a writable folder")


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")


def _copy_bundle(source: Path, target: Path, files: Sequence[str]) -> None:
    """Copy the files of a bundle to the folder ``target``, which is replaced."""
    with whole_folder(target, functools.partial(_replaced_files, target)) as folder:
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy2(source / name, folder / name)


def _certificate(path: Path, config: Config, links_within: Path | None) -> dict[str, Any]:
    """The certificate of the bundle ``path``; empty if it has none. Raises :class:`BundleError`."""
    if "certificate.json" not in config.sha256:
        return {}
    try:
        return check(read_json(path, "certificate.json", links_within), dict[str, Any])
    except (OSError, ValueError) as error:
        raise damaged(path / "certificate.json", error) from error


def weights_sha256(path: Path | str) -> str:
    """The SHA-256 of the weights of the run or bundle ``path``, from its config. Raises :class:`BundleError`."""
    return read_config(find_bundle(path))[1].sha256["model.safetensors"]


def config_sha256(path: Path) -> str:
    """The SHA-256 of the config of the bundle ``path``, which any other bundle there has not; empty if there is none.

    Raises :class:`BundleError` if it is damaged.
    """
    path = current(path)
    return read_config(path)[1].sha256.get("config.json", "") if (path / "config.json").exists() else ""


def is_trained(path: Path) -> bool:
    """Whether ``path`` is a bundle or a run, finished or not."""
    markers = ("config.json", "bundle/config.json", "run.json", "checkpoints")
    return not (path / "dataset.json").is_file() and any((path / marker).exists() for marker in markers)


def _replaced_files(path: Path, replaces: str | None = None) -> list[str]:
    """The files that saving to ``path`` replaces.

    Raises :class:`BundleError` if it is neither new nor a bundle, or not the bundle with the config ``replaces``.
    """
    if replaces is not None and config_sha256(path) != replaces:
        hint = "repeat the command, if it is still needed"
        raise BundleError(f"{path} was replaced by another process meanwhile", "", hint)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return []
    try:
        return ["config.json", *read_config(path)[1].sha256]
    except BundleError as error:
        reason = f"{path} exists and is not a bundle that can be replaced ({error.what})"
        raise BundleError(reason, "a new folder or a bundle", "choose another folder") from error


def _identity(path: Path) -> tuple[int, int]:
    """Device and inode, which change when the directory is replaced; (0, 0) if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def _create_network(model: Model, classes: int) -> Network:
    """The network without weights, by its name in ``config.json`` or by the layer files there."""
    if model.layer_files:
        files = Files(**msgspec.structs.asdict(model.layer_files))
        return build(files, Data(model.image_size, model.in_channels, classes), draw=False)
    return meta_model(model.name, num_classes=classes, in_channels=model.in_channels, image_size=model.image_size)


def _load_weights(network: Network, weights: Mapping[str, Tensor], model: Model, classes: int) -> Network:
    """Assign ``weights`` to the network, without a copy but of counters, which the network has as integers.

    Raises RuntimeError for other names or shapes.
    """
    dtypes = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    weights = {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in weights.items()}
    network.load_state_dict(weights, assign=True)
    if any(buffer.is_meta for buffer in network.buffers()):  # constant tables that are not in the state dict (LeNet-5)
        network = create_model(
            model.name, num_classes=classes, in_channels=model.in_channels, image_size=model.image_size
        )
        network.load_state_dict(weights)
    return network


def _normalization(path: Path, config: Config) -> Normalization:
    """The normalization of the inputs. Raises ValueError for invalid shapes or numbers."""
    tensors = read_tensors(path)
    stored_size, image_size = config.preprocessing.stored_size, config.model.image_size
    mean_follows_crop = config.preprocessing.subtract != CENTER
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    mean = shapes.get("mean", [])
    squares = [[size, size, 3] for size in {stored_size, min(image_size, stored_size)}]
    allowed = (
        [[3]] if config.preprocessing.subtract == "channel means" else squares[:1] if mean_follows_crop else squares
    )
    if set(shapes) != {"mean", "color_std", "color_axes", "divide"}:
        raise ValueError(f"mean.safetensors holds {', '.join(sorted(shapes)):.80}")
    if mean not in allowed or shapes["color_std"] != [3] or shapes["color_axes"] != [3, 3]:
        raise ValueError(f"mean.safetensors has shapes {shapes}, which do not fit the preprocessing")
    if not bool(((tensors["mean"] >= 0) & (tensors["mean"] <= 255)).all()):
        raise ValueError("mean has values that are no gray levels, 0 to 255")
    divide = tensors["divide"]
    if shapes["divide"] not in ([], [3]) or not bool(((divide >= MIN_DIVIDE) & (divide <= MAX_DIVIDE)).all()):
        raise ValueError(f"divide is {divide.tolist()!r:.60}, not 1 or 3 numbers from {MIN_DIVIDE:g} to {MAX_DIVIDE:g}")
    return Normalization(**tensors, mean_follows_crop=mean_follows_crop)
