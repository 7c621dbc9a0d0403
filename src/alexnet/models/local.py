"""Locally connected layers: convolutions whose filters differ from place to place (the 2012 code's ``local``)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.models.layers import Window, stretched


class LocallyConnected(nn.Module):
    """A layer with the windows of a convolution, and filters and biases of their own at every position.

    Input [N, C, side, side], output [N, K, H', W'] with H' = W' = ``window.out_size(side)``; windows that stick out
    read zeros. ``weight`` [K, C, kernel, kernel, H', W']: ``weight[..., y, x]`` is what a convolution would have at
    every position. ``bias`` [K, H', W']. Maps of another size (training on smaller views) are stretched to ``side``.
    """

    def __init__(
        self, in_channels: int, out_channels: int, side: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.side = in_channels, out_channels, side
        self.window = Window(kernel, stride, padding)
        out = self.window.out_size(side)
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, kernel, kernel, out, out))
        self.bias = nn.Parameter(torch.zeros(out_channels, out, out))

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride, padding, _ = self.window
        after = padding + self.window.overhang(self.side)
        padded = F.pad(stretched(input, self.side), (padding, after, padding, after))
        patches = F.unfold(padded, kernel, stride=stride)  # [N, C·k·k, H'·W']
        filters = self.weight.flatten(4).flatten(1, 3)  # [K, C·k·k, H'·W']
        out = torch.einsum("ndp,kdp->nkp", patches, filters)  # [N, K, H'·W'], a matrix product a position
        return out.view(-1, *self.bias.shape) + self.bias

    def extra_repr(self) -> str:
        kernel, stride, padding, _ = self.window
        return f"{self.in_channels}, {self.out_channels}, side={self.side}, {kernel}, {stride=}, {padding=}"
