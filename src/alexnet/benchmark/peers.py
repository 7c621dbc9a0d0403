"""The peers of the benchmark: the same network in ``torch.nn`` modules, and torchvision's alexnet, in several forms."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from alexnet.benchmark.runner import Skipped
from alexnet.models import create_model
from alexnet.models.alexnet_variants import AdaptiveAveragePool
from alexnet.models.layers import AveragePool, Convolution, Dropout, Flatten, LocalResponseNorm, MaxPool, SpatialNorm
from alexnet.models.network import Network

TORCHVISION = "alexnet_owt"  # name of torchvision's alexnet in this project


@dataclass(frozen=True)
class Form:
    """A way in which PyTorch can compute a network of ``torch.nn`` modules."""

    arithmetic: Literal["fp32", "bf16 autocast", "bf16 weights"]
    channels_last: bool = True
    compiled: bool = False

    @property
    def name(self) -> str:
        """What the tables print after the peer's name."""
        words = [self.arithmetic, "channels-last" if self.channels_last else "contiguous"]
        return ", ".join(words + ["torch.compile"] * self.compiled)

    @property
    def precision(self) -> str:
        """``fp32`` or ``bf16``."""
        return self.arithmetic.split()[0]

    def network(self, network: nn.Module) -> nn.Module:
        """``network`` with this form's weights and memory layout, changed in place."""
        dtype = torch.bfloat16 if self.arithmetic == "bf16 weights" else torch.float32
        return network.to(dtype=dtype).to(memory_format=self._layout)

    def input(self, images: Tensor) -> Tensor:
        """``images`` with this form's type and memory layout."""
        dtype = torch.bfloat16 if self.arithmetic == "bf16 weights" else torch.float32
        return images.to(dtype).contiguous(memory_format=self._layout)

    def function(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        """``network`` as a function, compiled and under autocast if this form is. Weights of inference are packed."""
        call = network
        if self.compiled:
            call = torch.compile(network, dynamic=False, options={"freezing": not network.training})  # type: ignore

        def output(images: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.arithmetic == "bf16 autocast"):
                out: Tensor = call(images)
            return out

        return output

    @property
    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


FORMS = (
    Form("fp32", channels_last=False),
    Form("fp32"),
    Form("bf16 autocast"),
    Form("bf16 weights"),
    Form("fp32", compiled=True),
    Form("bf16 autocast", compiled=True),
    Form("bf16 weights", compiled=True),
)
"""The forms that a peer in PyTorch is tried in. Not among them: bfloat16 in contiguous memory, which was slower."""


def torchvision_alexnet() -> nn.Module:
    """torchvision's alexnet (2014) with random weights: 1000 classes, 224 pixels, no norm, one tower."""
    from torchvision.models import alexnet

    network: nn.Module = alexnet(weights=None)
    return network


def plain(network: Network) -> nn.Sequential:
    """Return ``network`` in ``torch.nn`` modules with the same weights.

    Raises:
        Skipped: ``torch.nn`` lacks one of its layers.
    """
    side = network.image_size
    layers: list[nn.Module] = []
    for layer in network.children():
        window = getattr(layer, "window", None)
        layers += _plain(layer, side)
        side = window.out_size(side) if window is not None else side
    return nn.Sequential(*layers)


class TowerNorm(nn.Module):
    """``torch.nn.LocalResponseNorm`` in each tower."""

    def __init__(self, norm: LocalResponseNorm) -> None:
        super().__init__()
        self.towers = norm.towers
        self.norm = nn.LocalResponseNorm(norm.size, norm.alpha, norm.beta, norm.k)

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([self.norm(tower) for tower in input.chunk(self.towers, 1)], 1)


class PixelNorm(nn.Module):
    """The norm across pixels, written as its formula."""

    def __init__(self, norm: SpatialNorm) -> None:
        super().__init__()
        self.scale, self.beta, self.k = norm.scale, norm.beta, norm.k
        self.mean = nn.AvgPool2d(norm.size, 1, norm.size // 2)

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = input * (self.k + self.scale * self.mean(input.square())).pow(-self.beta)
        return out


def _plain(layer: nn.Module, side: int) -> list[nn.Module]:
    if isinstance(layer, Convolution):
        return _convolution(layer, side)
    if isinstance(layer, MaxPool):
        return [nn.MaxPool2d(layer.window.kernel, layer.window.stride, ceil_mode=layer.window.ceil)]
    if isinstance(layer, AveragePool):
        size, stride = layer.window.kernel, layer.window.stride
        return [nn.AvgPool2d(size, stride, ceil_mode=True, count_include_pad=False)]
    if isinstance(layer, AdaptiveAveragePool):
        return [nn.AdaptiveAvgPool2d(layer.side)]
    if isinstance(layer, LocalResponseNorm):
        return [TowerNorm(layer) if layer.towers > 1 else TowerNorm(layer).norm]
    if isinstance(layer, SpatialNorm) and layer.size % 2:
        return [PixelNorm(layer)]
    kinds: dict[type, nn.Module] = {Flatten: nn.Flatten(), Dropout: nn.Dropout(getattr(layer, "p", 0.5))}
    if isinstance(layer, nn.Linear | nn.ReLU):
        return [layer]
    if type(layer) not in kinds:
        raise Skipped(f"torch.nn has no {type(layer).__name__}")
    return [kinds[type(layer)]]


def _convolution(layer: Convolution, side: int) -> list[nn.Module]:
    window, overhang = layer.window, layer.window.overhang(side)
    convolution = nn.Conv2d(
        layer.in_channels, layer.out_channels, window.kernel, window.stride, window.padding, groups=layer.groups
    )
    convolution.load_state_dict(layer.state_dict())
    return [nn.ZeroPad2d((0, overhang, 0, overhang)), convolution] if overhang else [convolution]


def max_relative_diff(one: nn.Module, other: nn.Module, input: Tensor) -> float:
    """Largest difference between the outputs of two networks, relative to the largest output."""
    with torch.inference_mode():
        a, b = one.eval()(input), other.eval()(input)
    return float((a - b).abs().max() / b.abs().max())


def build_on_meta(model: str) -> Network:
    """The network on the meta device, for counts that need only shapes."""
    with torch.device("meta"):
        return create_model(model)


def build(model: str) -> Network:
    """A network of this project with its own number of classes and weights from seed 0."""
    return create_model(model, generator=torch.Generator().manual_seed(0))
