"""Plain and residual networks of growing depth, for small images: He, Zhang, Ren, Sun 2015, section 4.2.

A 3×3 convolution with 16 maps, then three stages of n blocks with 16, 32 and 64 maps, the second and third begun at
stride 2, a mean over each map, and a fully connected layer: 6n + 2 layers that learn. A block is two 3×3 convolutions,
each with batch norm and ReLU. In the residual networks a block's input is added to its output before the last ReLU;
where maps become more and smaller, it is every second pixel of them, and zeros for the new ones (their option A). So
both kinds have the same parameters and the same multiply-adds, and differ in nothing but that sum.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.errors import ModelError
from alexnet.models.layers import Flatten
from alexnet.models.network import KaimingNormalInit, Network
from alexnet.models.one_weird_trick import AdaptiveAveragePool

DEPTHS = (8, 14, 20, 32, 44, 56)
LEAST = 5  # pixels: two by two are left for the last batch norms


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm: [N, C, H, W] -> [N, K, ⌈H/stride⌉, ⌈W/stride⌉], plus the input or not."""

    def __init__(self, channels: int, maps: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.stride, self.more, self.shortcut = stride, maps - channels, shortcut
        self.conv1, self.bn1 = _convolution(channels, maps, stride), nn.BatchNorm2d(maps)
        self.conv2, self.bn2 = _convolution(maps, maps), nn.BatchNorm2d(maps)

    def forward(self, input: Tensor) -> Tensor:
        output = F.relu(self.bn1(self.conv1(input)))
        output = self.bn2(self.conv2(output))
        if self.shortcut:
            same = input[:, :, :: self.stride, :: self.stride]
            output = output + F.pad(same, (0, 0, 0, 0, 0, self.more))
        return F.relu(output)


def _convolution(channels: int, maps: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, maps, 3, stride, 1, bias=False)


def deep(
    depth: int, shortcut: bool, name: str, num_classes: int = 10, in_channels: int = 3, image_size: int = 32
) -> Network:
    """``depth`` = 6n + 2 learned layers; ``shortcut``: residual or plain."""
    if image_size < LEAST:
        raise ModelError(f"image_size {image_size} is too small for {name}", f"at least {LEAST} pixels")
    blocks, channels = (depth - 2) // 6, 16
    layers: list[tuple[str, nn.Module]] = [
        ("stem", nn.Sequential(_convolution(in_channels, channels), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)))
    ]
    for stage, maps in enumerate((16, 32, 64), 1):
        for number in range(1, blocks + 1):
            stride = 2 if stage > 1 and number == 1 else 1
            layers.append((f"block{stage}_{number}", Block(channels, maps, stride, shortcut)))
            channels = maps
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


def name_of(depth: int, shortcut: bool) -> str:
    """``residual_20``, ``plain_20``."""
    return f"{'residual' if shortcut else 'plain'}_{depth}"


MODELS: dict[str, tuple[Callable[..., Network], str]] = {
    name_of(depth, shortcut): (
        partial(deep, depth, shortcut, name_of(depth, shortcut)),
        f"{depth} layers for small images, with{'' if shortcut else 'out'} shortcuts (He et al. 2015, section 4.2)",
    )
    for depth in DEPTHS
    for shortcut in (False, True)
}
