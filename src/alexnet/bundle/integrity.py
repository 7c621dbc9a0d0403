"""Reading and checking the files of a bundle: its config, reference samples, tensors, and their SHA-256."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from torch import Tensor

from alexnet.data.atomic_io import sha256_of
from alexnet.errors import BundleError
from alexnet.models.network import nonfinite
from alexnet.schema import (
    Positive,
    Probability,
    ReferenceSample,
    Sha256,
    Size,
    check,
    checksum_of,
    class_fault,
    read_json,
    regular_file,
)

FORMAT, VERSION, COMPRESSED = "alexnet-bundle", 1, 2

_REQUIRED = {"config.json", "model.safetensors", "mean.safetensors", "reference/expected.json"}
REFERENCE_NAME = r"[\w-][\w .-]{0,99}"  # file name of a reference image, without its suffix
Count = Annotated[int, Meta(ge=0)]
FileName = Annotated[
    str,
    Meta(
        pattern=rf"^(c(onfig|ertificate)\.json|README\.md|(model|mean|features)\.safetensors|reference/(expected\.json|{REFERENCE_NAME}\.png))\Z"
    ),
]


class LayerFiles(msgspec.Struct):
    """The layer file and the parameter file of a cuda-convnet network, as text."""

    name: str
    layers: str
    parameters: str
    layers_file: str = "layers.cfg"
    parameters_file: str = "layer-params.cfg"


class Model(msgspec.Struct):
    """Which network the weights belong to."""

    name: str
    num_classes: int
    image_size: Size
    in_channels: Literal[1, 3]
    layer_files: LayerFiles | None = None
    initialization: str = ""
    parameters: Count | None = None


class Preprocessing(msgspec.Struct):
    """How an image becomes the input of the network."""

    stored_size: Size
    fit: Literal["crop", "pad", "squash"]
    subtract: Literal["channel means", "mean image", "center of the mean image"]
    decode: str = ""
    view: Literal["center"] = "center"
    image_size: Size | None = None
    divide: float | list[float] | None = None
    gray: bool | None = None


class Calibration(msgspec.Struct):
    """How logits become probabilities. Without calibration the temperature is 1."""

    temperature: Annotated[float, Meta(ge=1e-3, le=1e3)] = 1.0
    thresholds: dict[str, Probability] = {}
    conformal: dict[str, list[Probability]] = {}
    fitted_on: str = ""
    count: Count = 0


class SplitMetrics(msgspec.Struct):
    """Scores of one split, as reports and the model card print them."""

    top1: Probability | None = None
    top5: Probability | None = None
    loss: float | None = None
    count: Count | None = None
    top1_error: Probability | None = None
    top5_error: Probability | None = None
    images_per_second: float | None = None


class Imported(msgspec.Struct):
    """The file that imported weights come from."""

    kind: str
    file: str
    sha256: str


class Pretrained(msgspec.Struct):
    """The weights that the training started from."""

    name: str
    sha256: str


class Compressed(msgspec.Struct):
    """How the weights were compressed."""

    method: str
    nonzero: Probability
    chosen_by: str


class TrainingData(msgspec.Struct, rename={"init_from": "from"}):
    """What the network was trained on."""

    name: str = ""
    fingerprint: str = ""
    source: str = ""
    grouping: str = ""
    counts: dict[str, Count] = {}
    kept: str = ""
    notes: list[str] = []
    imported: Imported | None = None
    compressed: Compressed | None = None
    init_from: Pretrained | None = None


class Config(msgspec.Struct):
    """The entries of ``config.json`` that decide predictions, and those that pages and reports print."""

    version: Literal[1, 2]
    model: Model
    classes: list[str]
    preprocessing: Preprocessing
    recipe: dict[str, Any]
    metrics: dict[str, SplitMetrics]
    data: TrainingData
    sha256: dict[FileName, Sha256]
    calibration: Calibration = msgspec.field(default_factory=Calibration)
    versions: dict[str, str] = {}


def read_config(path: Path, links_within: Path | None = None) -> tuple[dict[str, Any], Config]:
    """Read and check the config of the bundle ``path``.

    Args:
        path: The bundle.
        links_within: Directory that links may lead into, besides the bundle itself.

    Returns:
        The JSON object as it is in the file, and the checked config.

    Raises:
        BundleError: The config is missing, damaged, or of another format or version.
    """
    file = path / "config.json"
    try:
        config = read_json(path, "config.json", links_within)
    except OSError as error:
        raise BundleError(f"{path} is no bundle: {error.strerror}", "a folder with config.json") from error
    except ValueError as error:
        raise damaged(file, error) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise BundleError(f"{file} is not of format {FORMAT}", "a bundle that training wrote")
    if (version := config.get("version")) not in (VERSION, COMPRESSED) or isinstance(version, bool | float):
        raise BundleError(f"bundle {path} has version {version!r:.20}", "1 or 2", "install a newer alexnet")
    sha256 = config.get("sha256")
    if not isinstance(sha256, dict) or not set(sha256) >= _REQUIRED:
        raise BundleError(f"{file} is damaged: it lacks SHA-256 of the files", "", "use another copy")
    try:
        checked = check(config, Config)
        if fault := class_fault(checked.classes):
            raise ValueError(fault)
        if checked.model.num_classes != len(checked.classes):
            raise ValueError(f"{checked.model.num_classes} outputs for {len(checked.classes)} classes")
        for risk in checked.calibration.thresholds:
            check(_number(risk), Positive)
        for level, limits in checked.calibration.conformal.items():
            if not 0.5 <= _number(level) < 1 or len(limits) != len(checked.classes):
                raise ValueError(f"{len(limits)} thresholds of prediction sets for a coverage of {level!r:.40}")
    except ValueError as error:
        raise damaged(file, error) from error
    return config, checked


def check_hashes(path: Path, config: Mapping[str, Any], links_within: Path | None = None) -> None:
    """Compare the SHA-256 of every file with the config.

    Raises:
        BundleError: A file is missing or has changed; the message names the first one.
    """
    for name, expected in config["sha256"].items():
        try:
            if name == "config.json":
                digest = checksum_of(config, "sha256")
            else:
                digest = sha256_of(regular_file(path, name, links_within))
        except OSError as error:
            raise BundleError(f"bundle {path} lacks {name}: {error.strerror}", "", "use another copy") from error
        except ValueError as error:
            raise BundleError(f"bundle {path}: {error}", "", "use another copy") from error
        if digest != expected:
            raise BundleError(
                f"{path / name} has changed: SHA-256 {digest[:12]}…", f"{str(expected)[:12]}…", "use another copy"
            )


def read_reference(path: Path, config: Config, links_within: Path | None = None) -> list[ReferenceSample]:
    """The reference samples of the bundle ``path``. Raises :class:`BundleError`."""
    classes = len(config.classes)
    row = Annotated[list[Probability], Meta(min_length=classes, max_length=classes)]
    try:
        expected = check(read_json(path, "reference/expected.json", links_within), dict[str, row])
        for name in expected:
            if not re.fullmatch(rf"{REFERENCE_NAME}\.png", name) or f"reference/{name}" not in config.sha256:
                raise BundleError(f"bundle {path} has no SHA-256 of reference/{name!r:.60}", "", "use another copy")
        return [
            ReferenceSample(
                name.removesuffix(".png"),
                regular_file(path, f"reference/{name}", links_within).read_bytes(),
                probabilities,
            )
            for name, probabilities in expected.items()
        ]
    except (OSError, ValueError) as error:
        raise damaged(path / "reference" / "expected.json", error) from error


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in ``folder``, by its path relative to ``folder``."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): sha256_of(p) for p in files}


MAX_TENSORS = 2_000  # of a file; a residual network of 110 layers has about 700


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` to ``path`` as float32 (safetensors)."""
    from safetensors.torch import save

    path.write_bytes(save({name: t.detach().float().cpu().contiguous() for name, t in tensors.items()}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    The tensors are copied one by one, the largest first, and the file is opened again for each. So at most one tensor
    is in memory twice: as a copy and as mapped pages of the file.

    Raises:
        BundleError: The file is damaged, or has values that are NaN or Inf.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:  # the header is read again for each
                raise damaged(path, f"{len(names):,} tensors; must be at most {MAX_TENSORS:,}")
            slices = {name: file.get_slice(name) for name in names}
            if other := next((name for name, one in slices.items() if one.get_dtype() != "F32"), ""):
                raise damaged(path, f"{other} is {slices[other].get_dtype()}, not float32")
            sizes = {name: math.prod(one.get_shape()) for name, one in slices.items()}
        tensors = {}
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            with safe_open(path, "pt") as file:
                tensors[name] = file.get_tensor(name).clone()
    except SafetensorError as error:
        raise BundleError(f"{path} is damaged: {error}", "", "use another copy") from error
    if name := nonfinite(tensors):
        raise BundleError(f"{path} is damaged: {name} has values that are NaN or Inf", "", "use another copy")
    return tensors


def damaged(path: Path, reason: object) -> BundleError:
    """The error for a damaged file of a bundle."""
    return BundleError(f"{path} is damaged: {' '.join(str(reason).split()):.300}", "", "use another copy")


def _number(text: str) -> float:
    try:
        if math.isfinite(number := float(text)):
            return number
    except ValueError:
        pass
    raise ValueError(f"threshold for {text!r:.40}, which is not a finite number")
