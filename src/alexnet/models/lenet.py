"""LeNet-5: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998.

Section II.B of that paper, layer by layer, with one exception: **the output layer is linear** and gives logits for
cross-entropy. The original's ten Euclidean radial basis units compare F6 with hand-drawn 7×12 bitmaps of the
characters and are trained with another loss. Up to F6 the network has the paper's 60,000 trainable parameters; the
linear output adds 850 at ten classes.

Inputs in the paper: 28-pixel digits centered in 32×32, white −0.1 and black 1.175, so mean about 0 and variance
about 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.errors import ModelError
from alexnet.models.layers import Convolution, Flatten, Window
from alexnet.models.network import FanInInit, Network, usable_side
from alexnet.models.one_weird_trick import AdaptiveAveragePool

# Table I: the maps of S2 that each of the 16 maps of C3 sees; 60 connections break the symmetry between the maps.
TABLE_I = (
    (0, 1, 2),
    (1, 2, 3),
    (2, 3, 4),
    (3, 4, 5),
    (0, 4, 5),
    (0, 1, 5),
    (0, 1, 2, 3),
    (1, 2, 3, 4),
    (2, 3, 4, 5),
    (0, 3, 4, 5),
    (0, 1, 4, 5),
    (0, 1, 2, 5),
    (0, 1, 3, 4),
    (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)


def lenet5(num_classes: int = 10, in_channels: int = 1, image_size: int = 32) -> Network:
    """LeNet-5 for gray 32×32 images; with more channels every map of C1 sees all of them.

    Multiples of 4 from 32 fit without a remainder; other sizes from 29 leave windows that stick out.
    """
    layers: list[tuple[str, nn.Module]] = [
        ("c1", Convolution(in_channels, 6, 5)),
        ("squash1", ScaledTanh()),
        ("s2", Subsampling(6)),
        ("squash2", ScaledTanh()),
        ("c3", TableConvolution(6, TABLE_I, 5)),
        ("squash3", ScaledTanh()),
        ("s4", Subsampling(16)),
        ("squash4", ScaledTanh()),
        ("c5", Convolution(16, 120, 5)),  # 1×1 maps from 32 pixels; larger images give larger maps
        ("squash5", ScaledTanh()),
    ]
    side = usable_side("lenet5", layers, image_size)
    layers += [
        ("flatten", Flatten(side)),
        ("f6", nn.Linear(120 * side * side, 84)),
        ("squash6", ScaledTanh()),
        ("output", nn.Linear(84, num_classes)),
    ]
    return Network(
        "lenet5",
        layers,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features="squash6",
        initial=dict.fromkeys(["c1", "s2", "c3", "s4", "c5", "f6", "output"], INITIAL),
    )


SIDE = 32  # pixels a side of what LeNet-5 was made for


def lenet5_shrunk(num_classes: int = 10, in_channels: int = 1, image_size: int = 224) -> Network:
    """LeNet-5 behind a mean over pixels that brings crops of any size to its 32×32.

    So it can see the same crops as larger networks: of 224 pixels each of its own is the mean of 7×7.
    """
    if image_size < SIDE:
        raise ModelError(f"image_size {image_size} is too small for lenet5_shrunk", f"at least {SIDE} pixels")
    inner = lenet5(num_classes, in_channels, SIDE)
    return Network(
        "lenet5_shrunk",
        [("shrink", AdaptiveAveragePool(SIDE)), *inner.named_children()],
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features=inner.features,
        initial=inner.initial,
    )


INITIAL = FanInInit(2.4)  # appendix A: uniform between −2.4/fan-in and 2.4/fan-in


class ScaledTanh(nn.Module):
    """1.7159 · tanh(2/3 · x): f(1) = 1, f(−1) = −1, and the curvature is largest there (appendix A)."""

    def forward(self, input: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(input * (2 / 3))


class Subsampling(nn.Module):
    """Sum of each 2×2 window times a trainable coefficient plus a trainable bias, one of each per map.

    [N, C, H, W] -> [N, C, ⌈H/2⌉, ⌈W/2⌉]; ``weight`` and ``bias`` [C]. At an odd side the last window sums the pixels
    that exist.
    """

    fan_in = 4  # inputs of a unit

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.window = Window(2, 2, 0)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, input: Tensor) -> Tensor:
        height, width = input.shape[-2:]
        sums = 4 * F.avg_pool2d(F.pad(input, (0, width % 2, 0, height % 2)), 2, 2)  # exact: 4 is a power of 2
        return sums * self.weight[:, None, None] + self.bias[:, None, None]

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}"


class TableConvolution(nn.Module):
    """Convolution in which each output map sees the input maps that ``table`` lists for it.

    Input [N, C, H, W], output [N, K, H', W'] with K = ``len(table)``. ``weight`` [connections, kernel, kernel] in the
    table's order, ``bias`` [K]: connections that do not exist are no parameters, so nothing counts or decays them.
    """

    sources: Tensor
    targets: Tensor
    fan_in: Tensor

    def __init__(self, in_channels: int, table: tuple[tuple[int, ...], ...], kernel: int) -> None:
        super().__init__()
        self.window = Window(kernel, 1, 0)
        self.in_channels, self.out_channels = in_channels, len(table)
        pairs = [(target, source) for target, sources in enumerate(table) for source in sources]
        targets, sources = torch.tensor(pairs).unbind(1)
        fan_in = torch.tensor([len(table[target]) * kernel * kernel for target, _ in pairs])[:, None, None]
        for name, value in (("targets", targets), ("sources", sources), ("fan_in", fan_in)):
            self.register_buffer(name, value, persistent=False)
        self.weight = nn.Parameter(torch.zeros(len(pairs), kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(self.out_channels))

    def forward(self, input: Tensor) -> Tensor:
        dense = self.weight.new_zeros(self.out_channels, self.in_channels, *self.weight.shape[1:])  # [K, C, k, k]
        dense = dense.index_put((self.targets, self.sources), self.weight)
        return F.conv2d(input, dense, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, connections={len(self.weight)}"
