"""Plain and residual networks of growing depth, for small images: He, Zhang, Ren, Sun 2015, section 4.2.

A 3×3 convolution with 16 feature maps, then three stages of n blocks with 16, 32 and 64 feature maps, the second and
third starting at stride 2, a global average pool, and a fully connected layer: 6n + 2 learned layers. A block is two
3×3 convolutions, each with batch norm and ReLU. In residual networks a block's input is added to its output before the
last ReLU; where the resolution is halved, the shortcut takes every second pixel and pads the new channels with zeros
(option A of the paper). So plain and residual networks have the same parameters and multiply-adds, and differ in that
sum only.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.errors import ModelError
from alexnet.models.layers import Flatten
from alexnet.models.network import KaimingNormalInit, Network
from alexnet.models.one_weird_trick import AdaptiveAveragePool

DEPTHS = (8, 14, 20, 32, 44, 56)
MIN_SIZE = 5  # pixels: leaves 2×2 feature maps for the last batch norms


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm, plus the input if ``shortcut``: [N, C, H, W] -> [N, K, ⌈H/s⌉, ⌈W/s⌉]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.stride, self.new_channels, self.shortcut = stride, out_channels - in_channels, shortcut
        self.conv1, self.bn1 = _convolution(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels)
        self.conv2, self.bn2 = _convolution(out_channels, out_channels), nn.BatchNorm2d(out_channels)

    def forward(self, input: Tensor) -> Tensor:
        output = F.relu(self.bn1(self.conv1(input)))
        output = self.bn2(self.conv2(output))
        if self.shortcut:
            identity = input[:, :, :: self.stride, :: self.stride]
            output = output + F.pad(identity, (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(output)


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)


def residual_network(
    depth: int, shortcut: bool, name: str, num_classes: int = 10, in_channels: int = 3, image_size: int = 32
) -> Network:
    """The network of ``depth`` = 6n + 2 learned layers; ``shortcut`` makes it residual, else it is plain."""
    if image_size < MIN_SIZE:
        raise ModelError(f"image_size {image_size} is too small for {name}", f"at least {MIN_SIZE} pixels")
    blocks, channels = (depth - 2) // 6, 16
    layers: list[tuple[str, nn.Module]] = [
        ("stem", nn.Sequential(_convolution(in_channels, channels), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)))
    ]
    for stage, width in enumerate((16, 32, 64), 1):
        for number in range(1, blocks + 1):
            stride = 2 if stage > 1 and number == 1 else 1
            layers.append((f"block{stage}_{number}", Block(channels, width, stride, shortcut)))
            channels = width
    layers += [("pool", AdaptiveAveragePool(1)), ("flatten", Flatten(1)), ("fc", nn.Linear(channels, num_classes))]
    return Network(
        name,
        layers,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features="flatten",
        initial={key: KaimingNormalInit() for key, layer in layers if next(layer.parameters(), None) is not None},
    )


def model_name(depth: int, shortcut: bool) -> str:
    """``residual_20`` or ``plain_20``."""
    return f"{'residual' if shortcut else 'plain'}_{depth}"
