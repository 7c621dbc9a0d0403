"""What all networks here share: a chain of named layers, its sizes, and how its weights start."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from alexnet.errors import ModelError
from alexnet.kernels import tracing
from alexnet.models import fusion


class NormalInit(NamedTuple):
    """How a learned layer starts: weights from N(0, std²), all biases at one value."""

    std: float
    bias: float = 0.0

    def draw(self, layer: nn.Module, generator: torch.Generator | None) -> None:
        """Fill the parameters of ``layer``."""
        for name, parameter in layer.named_parameters():
            if name == "bias":
                parameter.fill_(self.bias)
            else:
                parameter.normal_(0, self.std, generator=generator)


class FanInInit(NamedTuple):
    """As before 2010: weights uniform in ±gain / fan-in, biases 0 (LeCun et al. 1998, appendix A).

    The fan-in of a unit is ``layer.fan_in`` where the layer has one, else the size of one kernel.
    """

    gain: float

    def draw(self, layer: nn.Module, generator: torch.Generator | None) -> None:
        """Fill the parameters of ``layer``."""
        for name, parameter in layer.named_parameters():
            if name == "bias":
                parameter.zero_()
            else:
                fan_in = getattr(layer, "fan_in", parameter[0].numel())
                parameter.uniform_(-1, 1, generator=generator).mul_(self.gain / fan_in)


class RootFanInInit(NamedTuple):
    """As PyTorch's own layers start: weights and biases uniform in ±1 / √fan-in.

    PyTorch calls it Kaiming uniform with a = √5. The fan-in is the size of one kernel.
    """

    def draw(self, layer: nn.Module, generator: torch.Generator | None) -> None:
        """Fill the parameters of ``layer``, its ``weight`` before its ``bias``."""
        parameters = dict(layer.named_parameters())
        limit = 1 / math.sqrt(parameters["weight"][0].numel())
        for parameter in parameters.values():
            parameter.uniform_(-limit, limit, generator=generator)


class KaimingNormalInit(NamedTuple):
    """For layers before ReLUs: weights from N(0, 2 / fan-in), biases 0, batch norms 1 and 0 (He et al. 2015, delving).

    Draws for every convolution and fully connected layer inside a layer.
    """

    def draw(self, layer: nn.Module, generator: torch.Generator | None) -> None:
        """Fill the parameters of ``layer`` and of all inside it."""
        for module in layer.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.normal_(0, math.sqrt(2 / module.weight[0].numel()), generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()


Start = NormalInit | FanInInit | RootFanInInit | KaimingNormalInit
Layers = list[tuple[str, nn.Module]]


class AuxiliaryHead(nn.Module):
    """An auxiliary classifier beside a chain of layers: it passes maps on unchanged, and says what they are already.

    Only training asks it (Szegedy et al. 2014, section 5). Its logits wait until the loss takes them.
    """

    def __init__(self, head: nn.Module, weight: float) -> None:
        super().__init__()
        self.head, self.weight = head, weight  # maps -> logits [N, K]; what its loss counts
        self._logits: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self._logits = self.head(input)
        return input

    def take(self) -> Tensor:
        """The logits of the pass before, [N, K], once."""
        assert self._logits is not None, "no training pass went before"
        logits, self._logits = self._logits, None
        return logits


class Network(nn.Sequential):
    """A chain of named layers, images to logits: [N, C, H, W] -> [N, K].

    Layers are named after the paper (``conv1`` … ``fc8``); a layer's weight, bias and output share its name. In a
    two-tower network dimension 0 of every weight and bias, and the channels of every output, are tower *a* then
    tower *b*, so cutting it in two is halving tensors, never renaming them.

    Attributes: ``name``, ``num_classes``, ``in_channels``, ``image_size`` (side of the square input, pixels),
    ``towers`` (1 or 2), ``features`` (name of the layer whose output describes an image: fc7 in AlexNet),
    ``initial`` (layer name -> how it starts: :class:`NormalInit`, :class:`FanInInit`, :class:`RootFanInInit`).
    """

    def __init__(
        self,
        name: str,
        layers: Layers,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int,
        features: str,
        initial: Mapping[str, Start],
        towers: int = 1,
    ) -> None:
        super().__init__(OrderedDict(layers))
        self.name = name
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.image_size = image_size
        self.features = features
        self.initial: dict[str, Start] = dict(initial)
        self.towers = towers

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, K]: layer after layer, some together in one pass (:mod:`alexnet.models.fusion`)."""
        if tracing.is_traced_or_compiled():  # a compiler sees itself what goes together
            return super().forward(input)  # type: ignore[no-any-return,no-untyped-call]
        layers = list(self)  # a module that stands twice too
        while layers:
            count, input = fusion.forward_fused(layers, input)
            del layers[:count]
        return input

    def __prepare_scriptable__(self) -> nn.Module:
        """``torch.jit.script`` calls this before it compiles a module's source."""
        raise ModelError(f"torch.jit.script cannot compile {self.name}", "", "use torch.jit.trace or torch.export")

    def outputs(self, input: Tensor) -> "OrderedDict[str, Tensor]":
        """The output of every layer by the layer's name, in order. Input [N, C, H, W]."""
        result: OrderedDict[str, Tensor] = OrderedDict()
        for name, layer in self.named_children():
            if getattr(layer, "inplace", False):  # a ReLU that would overwrite the output found before it
                input = input.clone()
            input = layer(input)
            result[name] = input
        return result

    def forward_to(self, input: Tensor, layer: str) -> Tensor:
        """The output of the layer called ``layer``, and nothing computed beyond it. Raises :class:`ModelError`."""
        names = [name for name, _ in self.named_children()]
        if layer not in names:
            raise ModelError(f"layer {layer!r} is not in {self.name}", f"one of {', '.join(names)}")
        for name in names[: names.index(layer) + 1]:
            input = self.get_submodule(name)(input)
        return input

    def auxiliary_heads(self) -> list[AuxiliaryHead]:
        """The auxiliary classifiers beside the chain."""
        return [layer for layer in self if isinstance(layer, AuxiliaryHead)]

    def initialize(self, generator: torch.Generator | None = None) -> "Network":
        """Draw all weights anew from ``generator``, layer by layer, as ``initial`` says; returns itself."""
        for name, layer in self.named_children():
            if next(layer.parameters(), None) is not None:  # a learned layer without a start is a KeyError
                with torch.no_grad():
                    self.initial[name].draw(layer, generator)
        return self


def nonfinite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor with a value that is NaN or Inf in float32; empty if there is none."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            extremes = torch.stack(torch.aminmax(tensor.float()))  # NaN if one is; a tenth of isfinite's time
            if not bool(extremes.isfinite().all()):
                return name
    return ""


def map_side(layers: Layers, size: int) -> int:
    """Side of the maps that come out of ``layers`` for square images of ``size`` pixels; 0 if nothing is left."""
    for _, layer in layers:
        window = getattr(layer, "window", None)
        if window is not None:
            if size + 2 * window.padding < window.kernel:
                return 0
            size = window.out_size(size)
    return size


def usable_side(name: str, layers: Layers, image_size: int) -> int:
    """:func:`map_side`, or a :class:`ModelError` that says the smallest image that leaves something."""
    side = map_side(layers, image_size)
    if side < 1:
        smallest = next(size for size in itertools.count(1) if map_side(layers, size))
        raise ModelError(f"image_size {image_size} is too small for {name}", f"at least {smallest} pixels")
    return side
