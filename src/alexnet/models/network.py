"""What all networks share: a sequence of named layers, its sizes, and the initialization of its weights."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor, nn

from alexnet.errors import ModelError
from alexnet.kernels import backend
from alexnet.models import fusion
from alexnet.terminal import html_table


class NormalInit(NamedTuple):
    """Weights from N(0, std²), all biases at one value."""

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
    """Weights uniform in ±gain / fan-in, biases 0 (LeCun et al. 1998, appendix A), usual before 2010.

    The fan-in is ``layer.fan_in`` if the layer has this attribute, else the size of one kernel.
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
    """Weights and biases uniform in ±1 / √fan-in, as PyTorch's own layers are initialized.

    PyTorch calls it Kaiming uniform with a = √5. The fan-in is the size of one kernel.
    """

    def draw(self, layer: nn.Module, generator: torch.Generator | None) -> None:
        """Fill the parameters of ``layer``, its ``weight`` before its ``bias``."""
        parameters = dict(layer.named_parameters())
        limit = 1 / math.sqrt(parameters["weight"][0].numel())
        for parameter in parameters.values():
            parameter.uniform_(-limit, limit, generator=generator)


class KaimingNormalInit(NamedTuple):
    """Weights from N(0, 2 / fan-in), biases 0, batch norms 1 and 0, for ReLU networks (He et al. 2015, "Delving Deep").

    Initializes every convolution and fully connected layer inside a layer.
    """

    def draw(self, layer: nn.Module, generator: torch.Generator | None) -> None:
        """Fill the parameters of ``layer`` and of all layers inside it."""
        for module in layer.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.normal_(0, math.sqrt(2 / module.weight[0].numel()), generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()


Initializer = NormalInit | FanInInit | RootFanInInit | KaimingNormalInit
Layers = list[tuple[str, nn.Module]]


class AuxiliaryHead(nn.Module):
    """An auxiliary classifier on the feature maps between two layers, which it passes on unchanged.

    It computes logits in training only (Szegedy et al. 2014, section 5), and stores them until the loss takes them.

    Args:
        head: Feature maps -> logits [N, K].
        weight: Weight of its loss in the total loss.
    """

    def __init__(self, head: nn.Module, weight: float) -> None:
        super().__init__()
        self.head, self.weight = head, weight
        self._logits: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self._logits = self.head(input)
        return input

    def take(self) -> Tensor:
        """Return the logits [N, K] of the last forward pass and clear them."""
        assert self._logits is not None, "no forward pass in training mode"
        logits, self._logits = self._logits, None
        return logits


class Network(nn.Sequential):
    """A sequence of named layers, images to logits: [N, C, H, W] -> [N, K].

    Layers are named after the paper (``conv1`` … ``fc8``); a layer's weight, bias and output share its name. In a
    two-tower network, tower *a* comes before tower *b* in dimension 0 of every weight and bias and in the channels of
    every output, so that splitting the network in two means halving tensors, without renaming them.

    Attributes:
        name: Name of the network.
        num_classes: K.
        in_channels: C.
        image_size: Size of the square input, pixels.
        features: Name of the layer whose output describes an image: fc7 with its ReLU in AlexNet.
        initial: Layer name -> its :data:`Initializer`.
        towers: 1 or 2.
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
        initial: Mapping[str, Initializer],
        towers: int = 1,
    ) -> None:
        super().__init__(OrderedDict(layers))
        self.name = name
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.image_size = image_size
        self.features = features
        self.initial: dict[str, Initializer] = dict(initial)
        self.towers = towers

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, K]: layer by layer, some fused into one pass (:mod:`alexnet.models.fusion`)."""
        if isinstance(input, torch.fx.Proxy):
            return self._as_fx_nodes(input)
        return self._forward_range(input, 0, len(self))

    def _as_fx_nodes(self, output: Any) -> Any:
        """A node of ``torch.fx`` for each layer, named like it. A layer's own code depends on the size of its input."""
        for layer in self:
            tracer = output.tracer
            output = tracer.create_proxy("call_module", tracer.path_of_module(layer), (output,), {})
        return output

    def __prepare_scriptable__(self) -> nn.Module:
        """``torch.jit.script`` calls this before it compiles a module."""
        raise ModelError(f"torch.jit.script cannot compile {self.name}", "", "use torch.jit.trace or torch.export")

    def outputs(self, input: Tensor) -> "OrderedDict[str, Tensor]":
        """The output of every layer by the layer's name, in order. Input [N, C, H, W]."""
        outputs: OrderedDict[str, Tensor] = OrderedDict()
        for name, layer in self.named_children():
            if getattr(layer, "inplace", False):  # a ReLU would overwrite the output before it
                input = input.clone()
            input = layer(input)
            outputs[name] = input
        return outputs

    def forward_to(self, input: Tensor, layer: str) -> Tensor:
        """Compute the layers up to ``layer`` and return its output. Raises :class:`ModelError` for an unknown layer."""
        names = [name for name, _ in self.named_children()]
        if layer not in names:
            raise ModelError(f"layer {layer!r} is not in {self.name}", f"one of {', '.join(names)}")
        return self._forward_range(input, 0, names.index(layer) + 1)

    def forward_features(self, input: Tensor) -> Tensor:
        """Feature maps before global pooling and the head, as timm's: [N, C, H, W] -> [N, C', H', W'].

        ``forward_head(forward_features(input))`` is ``forward(input)``.
        """
        return self._forward_range(input, 0, self._head_start())

    def forward_head(self, input: Tensor, pre_logits: bool = False) -> Tensor:
        """The other layers: output of :meth:`forward_features` -> [N, K]; ``pre_logits``: input of the classifier."""
        return self._forward_range(input, self._head_start(), len(self) - 1 if pre_logits else len(self))

    def _forward_range(self, input: Tensor, start: int, stop: int) -> Tensor:
        layers = list(self)[start:stop]  # a list, since a module may occur twice
        fuse = not backend.is_traced_or_compiled()  # compilers fuse layers themselves
        while layers:
            count, input = fusion.forward_fused(layers, input) if fuse else (1, layers[0](input))
            del layers[:count]
        return input

    def _head_start(self) -> int:
        """Position of the first layer of the head: ``flatten``, or the average pool before it."""
        names = [name for name, _ in self.named_children()]
        if "flatten" not in names:
            raise ModelError(f"{self.name} has no layer 'flatten'", "", "use forward_to(input, LAYER)")
        start = names.index("flatten")
        return start - 1 if names[start - 1] == "avgpool" else start

    @property
    def num_features(self) -> int:
        """C', the number of feature maps of :meth:`forward_features`; no attribute of a network without ``flatten``."""
        try:
            return FeatureExtractor(self).feature_info.channels()[-1]
        except ModelError as error:  # PyTorch asks for every attribute when it traces a module
            raise AttributeError(str(error)) from None

    @property
    def head_hidden_size(self) -> int:
        """Size of the input of the last layer."""
        last: Any = self.get_classifier()
        return int(last.in_features)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self[-1]

    def reset_classifier(self, num_classes: int, generator: torch.Generator | None = None) -> None:
        """Replace the last layer by a new one with random weights.

        Args:
            num_classes: K; 0 removes the classifier, so that the network returns its input.
            generator: Source of the weights; None is PyTorch's default generator.

        Raises:
            ModelError: If ``num_classes`` is negative or 1, or the last layer is not fully connected.
        """
        if num_classes < 0 or num_classes == 1:
            raise ModelError(f"num_classes {num_classes}", "at least 2, or 0 for no classifier")
        name, last = list(self.named_children())[-1]
        size = getattr(last, "in_features", None)
        if size is None:
            raise ModelError(f"the last layer of {self.name}, {name}, is {type(last).__name__}", "fully connected")
        layer: nn.Module = _NoClassifier(size)
        if num_classes:
            weight = next(self.parameters())
            with torch.random.fork_rng(devices=[]):  # PyTorch draws weights that are replaced below
                layer = nn.Linear(size, num_classes)
            with torch.no_grad():
                self.initial.get(name, RootFanInInit()).draw(layer, generator)
            layer = layer.to(weight.device, weight.dtype)
        setattr(self, name, layer.train(self.training))
        self.num_classes = num_classes

    def _repr_html_(self) -> str:
        """The layers with their output sizes and parameters, for notebooks. An image of zeros passes the network."""
        image, training = torch.zeros(1, self.in_channels, self.image_size, self.image_size), self.training
        with torch.no_grad():
            outputs = self.eval().outputs(image.to(next(self.parameters()).device))
        self.train(training)
        rows = [
            (
                name,
                type(layer).__name__,
                "×".join(map(str, outputs[name].shape[1:])),
                f"{sum(parameter.numel() for parameter in layer.parameters()):,}",
            )
            for name, layer in self.named_children()
        ]
        count = sum(parameter.numel() for parameter in self.parameters())
        return html_table(f"{self.name}: {count:,} parameters", ("layer", "type", "output", "parameters"), rows)

    def auxiliary_heads(self) -> list[AuxiliaryHead]:
        """The auxiliary classifiers."""
        return [layer for layer in self if isinstance(layer, AuxiliaryHead)]

    def initialize(self, generator: torch.Generator | None = None) -> "Network":
        """Draw all weights from ``generator``, layer by layer, with the initializers of ``initial``; returns itself."""
        for name, layer in self.named_children():
            if next(layer.parameters(), None) is not None:  # a learned layer without an initializer is a KeyError
                with torch.no_grad():
                    self.initial[name].draw(layer, generator)
        return self


class _NoClassifier(nn.Identity):
    """In place of a classifier that was removed; it keeps the size of the classifier's input."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = in_features


class FeatureInfo(list[dict[str, Any]]):
    """The resolutions of a :class:`FeatureExtractor`, with the methods of timm's ``feature_info``."""

    def channels(self) -> list[int]:
        """The number of feature maps of each."""
        return [int(info["num_chs"]) for info in self]

    def reduction(self) -> list[int]:
        """Size of the image divided by size of the feature maps of each, rounded."""
        return [int(info["reduction"]) for info in self]

    def module_name(self) -> list[str]:
        """The layer of each."""
        return [str(info["module"]) for info in self]


class FeatureExtractor(nn.Module):
    """The feature maps of a network at each resolution, as timm's ``features_only``: [N, C, H, W] -> [N, c, h, w], ...

    Args:
        network: The network; its layers are used, and those of its head are dropped.
        out_indices: The resolutions to return, by position in ``feature_info``; None: all.

    Attributes:
        feature_info: For each resolution that is returned: ``module`` (the layer's name), ``num_chs`` (its feature
            maps) and ``reduction`` (size of the image divided by size of the feature maps, rounded). As in timm,
            ``feature_info.channels()`` lists one of them; so do ``reduction()`` and ``module_name()``.

    Raises:
        ModelError: If an index does not exist.
    """

    def __init__(self, network: Network, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        layers = list(network.named_children())[: network._head_start()]
        self.layers = nn.Sequential(OrderedDict(layers))
        size, channels, width = network.image_size, network.in_channels, 0
        sizes: list[tuple[str, int, int]] = []  # layer, channels, size
        with torch.no_grad():
            maps = torch.zeros(1, channels, size, size, device=next(network.parameters()).device)
            for name, layer in layers:
                maps = layer.eval()(maps)
                width, size = maps.shape[1], maps.shape[-1]
                if sizes and sizes[-1][2] == size:
                    sizes.pop()
                sizes.append((name, width, size))
        self.layers.train(network.training)
        info: list[dict[str, Any]] = [
            {"module": name, "num_chs": width, "reduction": round(network.image_size / size)}
            for name, width, size in sizes
        ]
        indices = range(len(info)) if out_indices is None else out_indices
        if bad := [index for index in indices if not -len(info) <= index < len(info)]:
            raise ModelError(f"out_indices {bad[0]} of {network.name}", f"from 0 to {len(info) - 1}")
        self.feature_info = FeatureInfo(info[index] for index in indices)

    def forward(self, input: Tensor) -> list[Tensor]:
        names, features = self.feature_info.module_name(), {}
        for name, layer in self.layers.named_children():
            input = layer(input)
            if name in names:
                features[name] = input
        return [features[name] for name in names]


def nonfinite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor with a value that is NaN or Inf in float32; empty if there is none."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            extremes = torch.stack(torch.aminmax(tensor.float()))  # NaN if any value is; ten times as fast as isfinite
            if not bool(extremes.isfinite().all()):
                return name
    return ""


def output_size(layers: Layers, size: int) -> int:
    """Size of the feature maps after ``layers`` for square images of ``size`` pixels; 0 if the images are too small."""
    for _, layer in layers:
        window = getattr(layer, "window", None)
        if window is not None:
            if size + 2 * window.padding < window.kernel:
                return 0
            size = window.out_size(size)
    return size


def checked_output_size(name: str, layers: Layers, image_size: int) -> int:
    """As :func:`output_size`. Raises :class:`ModelError` with the minimum size if the images are too small."""
    size = output_size(layers, image_size)
    if size < 1:
        minimum = next(pixels for pixels in itertools.count(1) if output_size(layers, pixels))
        raise ModelError(f"image_size {image_size} is too small for {name}", f"at least {minimum} pixels")
    return size
