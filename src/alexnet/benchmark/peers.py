"""What a user would pick instead: the same network in PyTorch's own modules, and torchvision's alexnet."""

import torch
from torch import Tensor, nn

from alexnet.benchmark.runner import Skipped
from alexnet.models import create_model
from alexnet.models.layers import AveragePool, Convolution, Dropout, Flatten, LocalResponseNorm, MaxPool, SpatialNorm
from alexnet.models.network import Network

TORCHVISION = "alexnet_owt"  # its network, as it is called here


def torchvision_alexnet() -> nn.Module:
    """torchvision's network of 2014, with fresh weights: 1000 classes, 224 pixels, no norm, one tower."""
    from torchvision.models import alexnet

    network: nn.Module = alexnet(weights=None)
    return network


def plain(network: Network) -> nn.Sequential:
    """``network`` as one would write it with ``torch.nn``, with the same weights. Raises :class:`Skipped`."""
    side = network.image_size
    layers: list[nn.Module] = []
    for layer in network.children():
        window = getattr(layer, "window", None)
        layers += _plain(layer, side)
        side = window.out_size(side) if window is not None else side
    return nn.Sequential(*layers)


class TowerNorm(nn.Module):
    """``torch.nn.LocalResponseNorm`` inside each of the towers."""

    def __init__(self, norm: LocalResponseNorm) -> None:
        super().__init__()
        self.towers = norm.towers
        self.norm = nn.LocalResponseNorm(norm.size, norm.alpha, norm.beta, norm.k)

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([self.norm(tower) for tower in input.chunk(self.towers, 1)], 1)


class PixelNorm(nn.Module):
    """The norm across pixels, as its formula reads."""

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
    window, beyond = layer.window, layer.window.overhang(side)
    made = nn.Conv2d(
        layer.in_channels, layer.out_channels, window.kernel, window.stride, window.padding, groups=layer.groups
    )
    made.load_state_dict(layer.state_dict())
    return [nn.ZeroPad2d((0, beyond, 0, beyond)), made] if beyond else [made]


def same(one: nn.Module, other: nn.Module, input: Tensor) -> float:
    """The largest difference of two networks' answers, as a share of the largest answer."""
    with torch.inference_mode():
        a, b = one.eval()(input), other.eval()(input)
    return float((a - b).abs().max() / b.abs().max())


def shapes(model: str) -> Network:
    """The same without numbers, for what is counted from its shapes."""
    with torch.device("meta"):
        return create_model(model)


def built(model: str) -> Network:
    """One of the house's networks with its own 1000 (or 10) classes, weights drawn from seed 0."""
    return create_model(model, generator=torch.Generator().manual_seed(0))
