"""Locally connected layers: convolutions whose filters differ from place to place (the 2012 code's ``local``)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.models import kernel as kernels
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
        if kernels.traced() or type(padded) is not Tensor:
            return self._unfolded(padded)
        windows = _Windows.apply(padded.permute(2, 3, 0, 1), kernel, stride)  # [H', W', N, k·k·C]
        filters = self.weight.permute(4, 5, 2, 3, 1, 0).reshape(-1, windows.shape[-1], self.weight.shape[0])
        out = torch.bmm(windows.flatten(0, 1), filters)  # [H'·W', N, K], a matrix product a position
        maps = out.view(*windows.shape[:3], -1) + self.bias.permute(1, 2, 0)[:, :, None]
        return maps.permute(2, 3, 0, 1)

    def _unfolded(self, padded: Tensor) -> Tensor:
        """The same of operations that every format for exports has."""
        patches = F.unfold(padded, self.window.kernel, stride=self.window.stride)  # [N, C·k·k, H'·W']
        filters = self.weight.flatten(4).flatten(1, 3)  # [K, C·k·k, H'·W']
        out = torch.einsum("ndp,kdp->nkp", patches, filters)  # [N, K, H'·W']
        return out.view(-1, *self.bias.shape) + self.bias

    def extra_repr(self) -> str:
        kernel, stride, padding, _ = self.window
        return f"{self.in_channels}, {self.out_channels}, side={self.side}, {kernel}, {stride=}, {padding=}"


class _Windows(torch.autograd.Function):
    """Windows of maps that lie position by position: [H, W, N, C] -> [H', W', N, k·k·C].

    Whole rows of channels are copied and, in the gradient, added: several times as fast as ``unfold``.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernel: int, stride: int) -> Tensor:
        windows = maps.unfold(0, kernel, stride).unfold(1, kernel, stride)  # [H', W', N, C, k, k], nothing copied
        ctx.shape, ctx.kernel, ctx.stride = maps.shape, kernel, stride
        return windows.permute(0, 1, 2, 4, 5, 3).flatten(3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        height, width, batch, _ = grad.shape
        parts = grad.view(height, width, batch, ctx.kernel, ctx.kernel, -1)
        out = grad.new_zeros(ctx.shape)
        for row in range(ctx.kernel):
            for column in range(ctx.kernel):
                rows = slice(row, row + ctx.stride * height, ctx.stride)
                columns = slice(column, column + ctx.stride * width, ctx.stride)
                out[rows, columns] += parts[..., row, column, :]
        return out, None, None
