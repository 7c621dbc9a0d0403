"""The module that an exported file computes, pixels in, probabilities out, and its form in ONNX.

It includes the preprocessing, with the same numbers: :func:`alexnet.data.decode.fit` resizes by Pillow, whose bilinear
filter works in integers (weights of 22 bits, an image of 8 bits between its horizontal and its vertical pass). Here
the same integers come out of two matrix multiplications, which every runtime computes alike.

Shapes: N images, H and W their sides, S side of the stored form, s size of the crop, K classes.
"""

import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.bundle import Bundle
from alexnet.cuda_convnet import GraphNetwork
from alexnet.cuda_convnet.modules import Neuron, Pool
from alexnet.data.decode import PAD_GRAY, Fit
from alexnet.errors import BundleError
from alexnet.export.exported_model import missing
from alexnet.kernels.lrn import channel_window
from alexnet.loader.augmentation import LUMA, center_crops
from alexnet.models.layers import Dropout, LocalResponseNorm
from alexnet.models.lenet import Subsampling
from alexnet.models.network import AuxiliaryHead, Network

Input = Literal["images", "decoded"]
OPSET = 18  # of 2022: onnxruntime 1.14 and later, onnxruntime-web included


class ExportModule(nn.Module):
    """A bundle as a function of pixels alone: uint8 -> probabilities float32 [N, K].

    ``input`` "images": one image [H, W, 3] of any size, N = 1. "decoded": images brought to their stored form
    [N, S, S, 3]. RGB in both.
    """

    mean: Tensor
    channel_divide: Tensor | None
    luma: Tensor

    def __init__(self, bundle: Bundle, input: Input = "images", half: bool = False) -> None:
        super().__init__()
        network = bundle.network
        self.stored = bundle.stored_size
        self.fit = Resize(bundle.stored_size, bundle.fit) if input == "images" else None
        stored, self.side = bundle.stored_size, network.image_size
        self.start = (stored - self.side) // 2
        self.enlarge = Enlarge(stored, self.side) if stored < self.side else None
        divide = bundle.normalization.divide.detach().cpu().float()  # a scalar, or [3]
        self.gray, self.divide = network.in_channels == 1, 1.0 if divide.dim() else float(divide)
        self.temperature = bundle.temperature
        mean = bundle.normalization.mean.detach().cpu().float()
        if mean.dim() == 3:
            mean = _mean_crop(mean, self.side)  # [s, s, 3]
        self.register_buffer("mean", mean)
        self.register_buffer("channel_divide", divide if divide.dim() else None)
        self.register_buffer("luma", torch.tensor(LUMA))
        plain = exportable_layers(network)
        self.network = HalfWeights(plain) if half else plain

    def forward(self, images: Tensor) -> Tensor:
        """Pixels uint8 -> probabilities [N, K]."""
        return self.probabilities(self.network(self.inputs(images)))

    def inputs(self, images: Tensor) -> Tensor:
        """Pixels uint8 -> the network's input: float32 [N, C, s, s]."""
        stored = images if self.fit is None else self.fit(images)[None]  # [N, S, S, 3]
        if self.enlarge is not None:
            crop = self.enlarge(stored.float())  # [N, s, s, 3]
        else:
            crop = stored[:, self.start : self.start + self.side, self.start : self.start + self.side].float()
        x = crop - self.mean
        if self.channel_divide is not None:
            x = x / self.channel_divide
        if self.gray:
            x = (x * self.luma).sum(3, keepdim=True)
        inputs: Tensor = (x / self.divide).permute(0, 3, 1, 2)
        return inputs

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [N, K] -> calibrated probabilities [N, K]."""
        return (logits if self.temperature == 1.0 else logits / self.temperature).softmax(1)


class Resize(nn.Module):
    """``pixels.fit`` as arithmetic: uint8 [H, W, 3] -> float32 [S, S, 3] of integers 0 to 255.

    A pixel of the result is Σ weight · pixel over a triangle of 2 · max(scale, 1) source pixels; the weights come from
    integers. Each weight of 22 bits is cut in two halves of 11, so that float32 holds every sum exactly up to
    windows of 64 pixels (images of 8,192 pixels for S = 256); wider ones err by at most one gray level.
    """

    def __init__(self, size: int, fit: Fit) -> None:
        super().__init__()
        self.size, self.fit = size, fit

    def forward(self, image: Tensor) -> Tensor:
        height, width = (_length(image, axis) for axis in (0, 1))
        rows, columns = self._axis(height, width), self._axis(width, height)
        x = image.permute(2, 0, 1).float()  # [3, H, W]
        x = _product(x, *self._weights(torch.arange(image.shape[1]), *columns))  # [3, H, S]
        x = _product(x.transpose(1, 2), *self._weights(torch.arange(image.shape[0]), *rows))  # [3, S, S]
        x = x.permute(2, 1, 0)  # [S, S, 3], rows first
        if self.fit != "pad":
            return x
        inside = self._inside(*rows[2:])[:, None, None] & self._inside(*columns[2:])[:, None]  # [S, S, 1]
        return torch.where(inside, x, x.new_full((), PAD_GRAY))

    def _axis(self, length: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Twice the start of the source box and its extent; sides of the result and where it begins in S."""
        zero, size = torch.zeros_like(length), torch.full_like(length, self.size)
        if self.fit == "crop":
            side = torch.minimum(length, other)
            return length - side, side, size, zero
        if self.fit == "squash":
            return zero, length, size, zero
        scale = self.size / torch.maximum(length, other)
        inner = torch.round(length * scale).clamp(min=1)  # half to even, as Python's round
        return zero, length, inner, torch.floor((size - inner) / 2)

    def _inside(self, inner: Tensor, begin: Tensor) -> Tensor:
        position = torch.arange(self.size)
        return (position >= begin) & (position < begin + inner)

    def _weights(self, x: Tensor, start: Tensor, extent: Tensor, inner: Tensor, begin: Tensor) -> tuple[Tensor, Tensor]:
        """High and low halves of the weights, each float32 [S, W] of integers.

        In units of 1/(2 · inner) source pixels: position *o* looks at the center start · inner + (2·o + 1) · extent,
        pixel *x* lies at (2·x + 1) · inner, and the triangle is max(extent, inner) · 2 wide on each side.
        """
        position = torch.arange(self.size).double() - begin
        center = start * inner + (2 * position + 1) * extent  # [S]
        reach = 2 * torch.maximum(extent, inner)
        far = ((2 * x.double() + 1) * inner - center[:, None]).abs()  # [S, W]
        share = (reach - far).clamp(min=0)
        total = share.sum(1, keepdim=True).clamp(min=1)
        high = torch.floor(share * 2048 / total + 0.5)
        low = torch.floor((share * 2048 - high * total) * 2048 / total + 0.5)
        return high.float(), low.float()


def _length(image: Tensor, axis: int) -> Tensor:
    """A side as a scalar tensor, float64, so that it stays dynamic in the exported graph."""
    return (torch.arange(image.shape[axis])[-1] + 1).double()


def _product(x: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """round(Σ pixel · (2048·high + low) / 2^22) without leaving the integers that float32 has: [..., W] -> S."""
    upper, lower = x @ high.T, x @ low.T
    whole = torch.floor(upper / 2048)
    return whole + torch.floor(((upper - whole * 2048) * 2048 + lower + 2**21) / 2**22)


class Enlarge(nn.Module):
    """:func:`alexnet.loader.augmentation.resize` from S to a larger s, on float32 [N, S, S, 3] of integers.

    PyTorch rounds the weights of a uint8 image to 14 bits and the image between the passes.
    """

    weights: Tensor

    def __init__(self, stored: int, side: int) -> None:
        super().__init__()
        position = (torch.arange(side).double() + 0.5) * stored / side - 0.5  # [s], where it looks in the source
        share = (1 - (torch.arange(stored).double() - position[:, None]).abs()).clamp(min=0)  # [s, S]
        share = share / share.sum(1, keepdim=True)
        self.register_buffer("weights", torch.floor(share * 2**14 + 0.5).float())

    def forward(self, stored: Tensor) -> Tensor:
        x = stored.permute(0, 3, 1, 2)  # [N, 3, S, S]
        for _ in range(2):  # along the rows, then along the columns
            x = torch.floor((x @ self.weights.T + 2**13) / 2**14).clamp(0, 255).transpose(2, 3)
        return x.permute(0, 2, 3, 1)


def _mean_crop(mean: Tensor, side: int) -> Tensor:
    stored = mean.shape[0]
    if stored >= side:
        return center_crops(mean[None], side)[0]
    maps = mean.permute(2, 0, 1)[None]
    return F.interpolate(maps, (side, side), mode="bilinear", antialias=True)[0].permute(1, 2, 0)


class ExportableNorm(nn.Module):
    """:class:`LocalResponseNorm` without its own gradient: the windows as one product a pixel, inside each tower."""

    window: Tensor

    def __init__(self, norm: LocalResponseNorm, channels: int) -> None:
        super().__init__()
        self.towers, self.beta, self.k = norm.towers, norm.beta, norm.k
        window = channel_window(channels // norm.towers, norm.size, norm.alpha / norm.size, torch.device("cpu"))
        self.register_buffer("window", window.T.repeat(norm.towers, 1)[:, :, None, None])  # [C, C/T, 1, 1]

    def forward(self, input: Tensor) -> Tensor:  # [N, C, H, W]
        sums = self.k + F.conv2d(input * input, self.window, groups=self.towers)
        if self.beta != 0.75:
            return input * sums.pow(-self.beta)
        root = sums.sqrt().sqrt()  # runtimes take roots in vectors, powers one by one: half of the time of int8
        return input / (root * root * root)


class ExportableSubsampling(nn.Module):
    """:class:`Subsampling` by means of four pixels, which all formats know; their sum is four times that."""

    def __init__(self, layer: Subsampling) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, input: Tensor) -> Tensor:
        odd = [side % 2 for side in input.shape[-2:]]
        sums = 4 * F.avg_pool2d(F.pad(input, (0, odd[1], 0, odd[0])), 2, 2)
        return sums * self.weight[:, None, None] + self.bias[:, None, None]


class HalfWeights(nn.Module):
    """A network whose weights are stored as float16 and made float32 where they are used."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inner = [network]  # in a list: its own float32 weights are no part of this module
        self.names = {name: name.replace(".", "_") for name, _ in network.named_parameters()}
        for name, parameter in network.named_parameters():
            self.register_buffer(self.names[name], parameter.detach().half())
        self.windows = [name for name, _ in network.named_buffers()]
        for name, buffer in network.named_buffers():
            self.register_buffer(name.replace(".", "_"), buffer)

    def forward(self, input: Tensor) -> Tensor:
        values = {name: getattr(self, own).float() for name, own in self.names.items()}
        values |= {name: getattr(self, name.replace(".", "_")) for name in self.windows}
        result: Tensor = torch.func.functional_call(self.inner[0], values, (input,))
        return result


def exportable_layers(network: Network) -> nn.Sequential:
    """The network's layers in evaluation mode, without those of training alone, with norms that all formats have.

    The network of a layer file is a graph, not a sequence: it is returned as it is. Raises :class:`BundleError` if it
    draws random numbers.
    """
    if isinstance(network, GraphNetwork):
        for name, layer in network.named_children():
            noisy = isinstance(layer, Neuron) and layer.name == "nrelu"
            if noisy or (isinstance(layer, Pool) and layer.kind == "rand"):
                what = f"layer {name!r} draws random numbers (nrelu, pool=rand), which exported files cannot do"
                raise BundleError(what, "", "use alexnet predict or alexnet serve")
        return network.eval()
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = network.in_channels
    for name, layer in network.named_children():
        channels = getattr(layer, "out_channels", channels)
        if isinstance(layer, LocalResponseNorm):
            layers[name] = ExportableNorm(layer, channels)
        elif isinstance(layer, Subsampling):
            layers[name] = ExportableSubsampling(layer)
        elif isinstance(layer, nn.ReLU):
            layers[name] = nn.ReLU()
        elif not isinstance(layer, Dropout | AuxiliaryHead):
            layers[name] = layer
    return nn.Sequential(layers).eval()


def onnx_model(
    program: torch.export.ExportedProgram,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dimensions: Sequence[str],
    path: Path,
) -> Any:
    """An exported program as a checked ``onnx.ModelProto``.

    Args:
        program: The program.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        dimensions: Names of the dynamic dimensions of its first input.
        path: File to write, for messages.

    Raises:
        BundleError: onnx or onnxscript is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - PyTorch writes ONNX with it
    except ImportError as error:
        raise missing("onnx and onnxscript", path, error) from error
    with torch.no_grad(), quiet():
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=inputs,
            output_names=outputs,
            external_data=False,
        )
    model = exported.model_proto
    model.producer_name = "alexnet"
    del model.metadata_props[:]
    _name_dimensions(model, dimensions)
    for node in model.graph.node:  # names of source files and lines, of no use to anyone else
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(model)
    return model


def _name_dimensions(model: Any, names: Sequence[str]) -> None:
    """Rename the dynamic dimensions of the input, wherever they occur."""
    results = [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim if d.dim_param]
    new = dict(zip(results, names, strict=True))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = new.get(dim.dim_param, dim.dim_param)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress lines and warnings of the exporter: the result is compared anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
