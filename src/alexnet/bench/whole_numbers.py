"""Answers in int8: the file that ``alexnet export`` writes, and the same network as OpenVINO's own tool makes it."""

import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.batches.transforms import Statistics
from alexnet.bench import peers, steps
from alexnet.bench.arena import Contender, Skipped, Unit
from alexnet.bundle import Bundle
from alexnet.deploy.export import Format, export
from alexnet.deploy.runtime import Exported
from alexnet.errors import BundleError

FORMATS: dict[str, Format] = {".xml": "openvino", ".onnx": "onnx"}
CALIBRATION = 32  # painted pictures; ranges of real ones cost the same time


def answering(model: str, batch: int) -> list[Contender]:
    """Answers to a batch in int8, beside the same network in plain modules, in float32."""
    flop, how = steps.forward_flop(peers.shapes(model)), {"model": model, "batch": batch}
    return [
        Contender(f"{steps.OURS}, int8 file, by OpenVINO", our_file, how | {"suffix": ".xml"}, flop, "int8"),
        Contender(f"{steps.OURS}, int8 file, by ONNX Runtime", our_file, how | {"suffix": ".onnx"}, flop, "int8"),
        Contender(f"{steps.OPENVINO}, int8 by NNCF", nncf_answer, how, flop, "int8"),
        Contender(f"{steps.PLAIN}, fp32", steps.plain_answer, how, flop),
    ]


def our_file(model: str, batch: int, suffix: str) -> Unit:
    """``alexnet export --precision int8 --input decoded``, from stored pixels to probabilities."""
    bundle = _bundle(model)
    kept = tempfile.TemporaryDirectory(prefix="alexnet-bench-")
    path, form = Path(kept.name, f"network{suffix}"), FORMATS[suffix]
    try:
        export(bundle, path, format=form, precision="int8", input="decoded", calibration=_pixels(bundle, CALIBRATION))
        file = Exported.load(path)
    except BundleError as error:
        raise Skipped(str(error)) from error
    pictures = list(_pixels(bundle, batch))

    def answer() -> NDArray[np.float32]:
        assert kept.name  # the folder lives as long as this
        return file.probabilities(pictures, batch_size=batch)

    return steps.repeated(answer, batch)


def nncf_answer(model: str, batch: int) -> Unit:
    """OpenVINO called directly on the plain network, quantized by NNCF as its documentation shows."""
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise Skipped(f"{error.name} is not installed: pip install nncf openvino") from error
    nncf.set_log_level(logging.ERROR)
    bundle = _bundle(model)
    network = peers.plain(bundle.network).eval()
    side, channels = bundle.network.image_size, bundle.network.in_channels
    images = torch.randn(CALIBRATION + batch, channels, side, side, generator=torch.Generator().manual_seed(1)) * 60
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_of: Any = openvino.convert_model(network, example_input=images[:1], input=[[-1, channels, side, side]])
    ranges = nncf.Dataset([image[None].numpy() for image in images[batch:]])
    compiled = openvino.compile_model(nncf.quantize(model_of, ranges, subset_size=CALIBRATION), "CPU")
    request, numbers = compiled.create_infer_request(), images[:batch].numpy()
    return steps.repeated(lambda: request.infer({0: numbers}), batch)


def _bundle(model: str) -> Bundle:
    network = peers.built(model).eval()
    gray = Statistics(torch.full((3,), 128.0), torch.zeros(3), torch.eye(3), torch.tensor(1.0))
    classes = tuple(f"class {number}" for number in range(network.num_classes))
    stored = network.image_size if network.image_size < 200 else 256
    return Bundle(network=network, classes=classes, statistics=gray, stored_size=stored, fit="crop")


def _pixels(bundle: Bundle, count: int) -> NDArray[np.uint8]:
    size = bundle.stored_size
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def batches(quick: bool) -> Sequence[int]:
    """Batch sizes of answers; each means four conversions of the network."""
    return (8,) if quick else (1, 32)
