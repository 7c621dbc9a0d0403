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
from alexnet.models.alexnet_variants import AdaptiveAveragePool
from alexnet.models.layers import Convolution, Flatten, Window
from alexnet.models.network import FanInInit, Network, checked_output_size

# Table I: the maps of S2 that each of the 16 maps of C3 reads; 60 connections break the symmetry between the maps.
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
    """LeNet-5 for gray 32×32 images; with more channels, every feature map of C1 reads all of them.

    Sizes that are multiples of 4, from 32, fit without a remainder; with other sizes from 29, windows stick out.
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
        ("c5", Convolution(16, 120, 5)),  # 1×1 pixels for images of 32 pixels
        ("squash5", ScaledTanh()),
    ]
    size = checked_output_size("lenet5", layers, image_size)
    layers += [
        ("flatten", Flatten(size)),
        ("f6", nn.Linear(120 * size * size, 84)),
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


SIZE = 32  # pixels: the input of LeNet-5


def lenet5_shrunk(num_classes: int = 10, in_channels: int = 1, image_size: int = 224) -> Network:
    """LeNet-5 on images of any size, averaged to 32×32 pixels.

    So it can be trained on the same crops as larger networks: with 224 pixels, each of its pixels is a mean of 7×7.
    """
    if image_size < SIZE:
        raise ModelError(f"image_size {image_size} is too small for lenet5_shrunk", f"at least {SIZE} pixels")
    inner = lenet5(num_classes, in_channels, SIZE)
    return Network(
        "lenet5_shrunk",
        [("shrink", AdaptiveAveragePool(SIZE)), *inner.named_children()],
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
    """Sum of each 2×2 window times a trainable coefficient plus a trainable bias, one of each per feature map.

    [N, C, H, W] -> [N, C, ⌈H/2⌉, ⌈W/2⌉]; ``weight`` and ``bias`` [C]. For an odd size the last window sums the pixels
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
    """Convolution in which each output feature map reads the input feature maps that ``table`` lists for it.

    Input [N, C, H, W], output [N, K, H', W'] with K = ``len(table)``. ``weight`` [connections, kernel, kernel] in the
    table's order, ``bias`` [K]: missing connections are no parameters, so they are neither counted nor decayed.
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
