"""Answers in int8: the file that ``alexnet export`` writes, and the same network as OpenVINO's own tool makes it."""

import logging
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.bench import peers, steps
from alexnet.bench.arena import Contender, Skipped, Unit, repeated
from alexnet.bench.subject import CALIBRATION, Subject
from alexnet.deploy.export import Format, export
from alexnet.deploy.runtime import Exported
from alexnet.errors import BundleError
from alexnet.temporary import temporary_folder

FORMATS: dict[str, Format] = {".xml": "openvino", ".onnx": "onnx"}


def answering(subject: Subject, batch: int) -> list[Contender]:
    """Answers to a batch in int8, beside the same network in plain modules, in float32."""
    flop, how = steps.forward_flop(subject.shapes()), {"subject": subject, "batch": batch}
    return [
        Contender(f"{steps.OURS}, int8 file, by OpenVINO", our_file, how | {"suffix": ".xml"}, flop, "int8"),
        Contender(f"{steps.OURS}, int8 file, by ONNX Runtime", our_file, how | {"suffix": ".onnx"}, flop, "int8"),
        Contender(f"{steps.OPENVINO}, int8 by NNCF", nncf_answer, how, flop, "int8"),
        Contender(f"{steps.PLAIN}, fp32", steps.plain_answer, how, flop),
    ]


def our_file(subject: Subject, batch: int, suffix: str) -> Unit:
    """``alexnet export --precision int8 --input decoded``, from stored pixels to probabilities."""
    kept = ExitStack()
    folder = kept.enter_context(temporary_folder())
    file, pictures = exported(subject, folder, suffix), list(subject.stored(batch))

    def answer() -> NDArray[np.float32]:
        assert kept  # the folder lives as long as this
        return file.probabilities(pictures, batch_size=batch)

    return repeated(answer, batch)


def exported(subject: Subject, folder: Path, suffix: str) -> Exported:
    """The int8 file, written to ``folder`` and opened. Raises :class:`Skipped`."""
    path, form = folder / f"network{suffix}", FORMATS[suffix]
    try:
        export(
            subject.bundle(), path, format=form, precision="int8", input="decoded", calibration=subject.calibration()
        )
        return Exported.load(path)
    except BundleError as error:
        raise Skipped(str(error)) from error


def nncf_answer(subject: Subject, batch: int) -> Unit:
    """OpenVINO called directly on the plain network, quantized by NNCF as its documentation shows."""
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise Skipped(f"{error.name} is not installed: pip install nncf openvino") from error
    nncf.set_log_level(logging.ERROR)
    network = peers.plain(subject.network()).eval()
    images = subject.batches(CALIBRATION + batch, torch.contiguous_format)[0]
    shape = [-1, *images.shape[1:]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_of: Any = openvino.convert_model(network, example_input=images[:1], input=[shape])
    ranges = nncf.Dataset([image[None].numpy() for image in images[batch:]])
    compiled = openvino.compile_model(nncf.quantize(model_of, ranges, subset_size=CALIBRATION), "CPU")
    request, numbers = compiled.create_infer_request(), images[:batch].numpy()
    return repeated(lambda: request.infer({0: numbers}), batch)


def batches(quick: bool) -> Sequence[int]:
    """Batch sizes of answers; each means four conversions of the network."""
    return (8,) if quick else (1, 32)
