"""Whole numbers in place of float32: static quantization of an ONNX model by onnxruntime.

Convolutions and fully connected layers get weights of 8 bits (a scale for each output channel) and activations of 8
bits; their ranges are measured on pictures of the training split. Preprocessing, response normalization and softmax
stay in float32. OpenVINO reads the result's scales and runs the same layers in its own int8.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.deploy.runtime import missing

CALIBRATION = 128  # pictures: ranges are of millions of activations, more changed nothing in the second digit


def quantized(body: bytes, path: Path, calibration: NDArray[np.uint8]) -> bytes:
    """The serialized ONNX model ``body`` in int8. ``calibration`` uint8 [n, S, S, 3]; files arise beside ``path``."""
    try:
        import onnx
        from onnxruntime import quantization
    except ImportError as error:
        raise missing("onnx and onnxruntime", path, error) from error
    source, target = (path.with_name(f"{path.stem}.{name}.onnx") for name in ("float", "int8"))
    source.write_bytes(body)
    model = onnx.load_from_string(body)
    entry = model.graph.input[0]
    single = len(entry.type.tensor_type.shape.dim) == 3
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends its own preprocessing, which this model has no need of
    try:
        quantization.quantize_static(
            source, target, _Pictures(entry.name, calibration, single),
            quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            reduce_range=True,  # weights of 7 bits: processors without VNNI add pairs of products in 16 bits
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MaxPool", "Relu"], nodes_to_exclude=_kept(model),
        )  # fmt: skip
    finally:
        logging.disable(before)
    result = onnx.load(target)
    del result.metadata_props[:]
    return bytes(result.SerializeToString(deterministic=True))


def _kept(model: Any) -> list[str]:
    """Nodes that stay in float32: the windows of response normalization are no weights."""
    return [node.name for node in model.graph.node if any("window" in name for name in node.input)]


class _Pictures:
    """Calibration pictures as onnxruntime asks for them: one input after the other, then None."""

    def __init__(self, name: str, pictures: NDArray[np.uint8], single: bool) -> None:
        self.name = name
        self.rows: Iterator[NDArray[np.uint8]] = iter(pictures if single else pictures[:, None])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        row = next(self.rows, None)
        return None if row is None else {self.name: np.ascontiguousarray(row)}
