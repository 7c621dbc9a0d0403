"""Locally connected layers: convolutions whose filters differ from place to place (the 2012 code's ``local``).

The layers of 2012 that PyTorch does not have, or has with another arithmetic.

Every module here knows its own geometry: ``out_size(size)`` is the formula that the summary prints and the
network's construction uses, so the table can not disagree with the network.

Source: Krizhevsky, Sutskever, Hinton 2012, section 3, and the 2012 code where the paper is silent.
"""

import copy
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.kernels import first_conv, linear, native_kernels, space_to_depth, winograd
from alexnet.kernels import native_kernels as kernels
from alexnet.kernels import pool as maps
from alexnet.kernels.lrn import (
    NormalizeRows,
    NormalizeRowsCompiled,
    channel_window,
    channels_last_rows,
    normalize_rows,
    rows_to_maps,
)


class LocallyConnected(nn.Module):
    """A layer with the windows of a convolution, and filters and biases of their own at every position.

    Input [N, C, side, side], output [N, K, H', W'] with H' = W' = ``window.out_size(side)``; windows that stick out
    read zeros. ``weight`` [K, C, kernel, kernel, H', W']: ``weight[..., y, x]`` is what a convolution would have at
    every position. ``bias`` [K, H', W']. Maps of another size (training on smaller crops) are stretched to ``side``.
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


class Window(NamedTuple):
    """A square window that slides over a map: its geometry in the arithmetic of the 2012 code."""

    kernel: int  # side of the window, pixels
    stride: int
    padding: int  # zeros on every side, pixels
    ceil: bool = True  # a last window that sticks out is kept (2012) or dropped (Caffe's convolutions, PyTorch)

    def out_size(self, size: int) -> int:
        """Output side for an input side of ``size`` pixels: 1 + ceil((2·padding + size − kernel) / stride)."""
        steps = (2 * self.padding + size - self.kernel) / self.stride
        return 1 + (math.ceil(steps) if self.ceil else math.floor(steps))

    def overhang(self, size: int) -> int:
        """Pixels that the last window reads past the right and bottom edge, padding included."""
        last = (self.out_size(size) - 1) * self.stride + self.kernel
        return max(0, last - size - 2 * self.padding)

    def pooled(self, height: int, width: int, relu: bool = False) -> maps.Pool:
        """The pool of maps of this size, for the kernels."""
        return maps.Pool(self.kernel, self.stride, self.out_size(height), self.out_size(width), relu)

    def formula(self, size: int) -> str:
        """The output size worked out, for people: ``⌈(224 − 11 + 2·0) / 4⌉ + 1 = 55``."""
        inside = f"({size} − {self.kernel} + 2·{self.padding}) / {self.stride}"
        if (2 * self.padding + size - self.kernel) % self.stride:
            inside = f"⌈{inside}⌉" if self.ceil else f"⌊{inside}⌋"
        return f"{inside} + 1 = {self.out_size(size)}"


class Convolution(nn.Conv2d):
    """2-D convolution with the output size of the 2012 code: windows that stick out read zeros.

    Input [N, C, H, W], output [N, K, H', W'] with H' = ``window.out_size(H)``. With ``groups=2`` the first half of
    the kernels is tower *a* and sees the first half of the channels, the second half is tower *b*. ``ceil=False``
    drops the windows that stick out, as Caffe and PyTorch do.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        ceil: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding, groups=groups)
        self.window = Window(kernel, stride, padding, ceil)
        self.kept: winograd.Kept | None = None  # see :func:`keep`

    def forward(
        self,
        input: Tensor,
        relu: bool = False,
        pool: "MaxPool | None" = None,
        norm: "LocalResponseNorm | None" = None,
    ) -> Tensor:
        """With ``relu``, ``norm`` or ``pool``, those that follow are done too, in the same pass where a kernel can.

        A ``norm`` is only given where :meth:`pools` says that a kernel can.
        """
        if first_conv.fits(input, self.weight, filters := self._filters(input), self.groups):
            pooled = None if pool is None else pool.window.pooled(filters.out_height, filters.out_width)
            between = None if norm is None else norm.numbers()
            return first_conv.convolve(input, self.weight, self.bias, filters, pooled, relu, between)
        assert norm is None, "pools() was not asked"
        if winograd.fits(input, self.weight, self.window.stride, self.window.padding, self.groups, self.kept):
            out = winograd.convolve(input, self.weight, self.bias, self.window.padding, self.groups, relu, self.kept)
        else:
            blocks = space_to_depth.fits(input, self.weight, filters, self.groups)
            plain = space_to_depth.convolve(input, self.weight, self.bias, filters) if blocks else self._plain(input)
            out = F.relu_(plain) if relu else plain
        return out if pool is None else pool(out)

    def _plain(self, input: Tensor) -> Tensor:
        bottom, right = (self.window.overhang(size) for size in input.shape[-2:])
        if bottom or right:  # 224 pixels: the last of 55 windows reads 3 pixels past the edge
            input = F.pad(input, (0, right, 0, bottom))
        return super().forward(input)

    def pools(self, input: Tensor, norm: "LocalResponseNorm | None" = None) -> bool:
        """Is a max pool behind this convolution, or behind a norm between them, best done with it?"""
        if norm is not None and not maps.fits_channels(norm.numbers(), self.out_channels, norm.beta):
            return False
        return first_conv.fits(input, self.weight, self._filters(input), self.groups)

    def _filters(self, input: Tensor) -> first_conv.Filters:
        return first_conv.Filters(self.window.stride, self.window.padding, *map(self.window.out_size, input.shape[-2:]))


class MaxPool(nn.Module):
    """Maximum over windows, output size by ceil; a window that sticks out looks at the pixels that exist.

    ``ceil=False`` drops the windows that stick out (PyTorch; Caffe pools by ceil). With ``relu``, what is negative
    becomes 0, before or after: it is the same.
    """

    def __init__(self, kernel: int, stride: int, ceil: bool = True) -> None:
        super().__init__()
        self.window = Window(kernel, stride, 0, ceil)

    def forward(  # [N, C, H, W] -> [N, C, H', W']
        self, input: Tensor, relu: bool = False, norm: "LocalResponseNorm | None" = None
    ) -> Tensor:
        """With ``norm``, the one before it is done too: only given where :meth:`follows` says so."""
        if norm is not None:
            return maps.norm_max_pool(input, norm.numbers(), self.window.pooled(input.shape[2], input.shape[3]))
        if maps.fits_pool(input, self.window.kernel, self.window.stride):
            return maps.max_pool(input, self.window.pooled(input.shape[2], input.shape[3], relu))
        out = F.max_pool2d(input, self.window.kernel, self.window.stride, ceil_mode=self.window.ceil)
        return F.relu_(out) if relu else out

    def follows(self, input: Tensor, norm: "LocalResponseNorm") -> bool:
        """Can a norm of these maps [N, C, H, W] be done in the same pass?"""
        if input.dtype != torch.float32 or not maps.fits_pool(input, self.window.kernel, self.window.stride):
            return False
        return maps.fits_channels(norm.numbers(), input.shape[1], norm.beta)

    def extra_repr(self) -> str:
        return f"{self.window.kernel}, stride={self.window.stride}" + ("" if self.window.ceil else ", ceil=False")


class AveragePool(nn.Module):
    """Mean over windows, output size by ceil; divides by the number of pixels that exist (2012 code).

    With ``relu``, what is negative in the input counts as 0.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.window = Window(kernel, stride, 0)

    def forward(self, input: Tensor, relu: bool = False) -> Tensor:  # [N, C, H, W] -> [N, C, H', W']
        if maps.fits_pool(input, self.window.kernel, self.window.stride):
            return maps.mean(input, self.window.pooled(input.shape[2], input.shape[3], relu))
        input, (size, stride, _, _) = F.relu(input) if relu else input, self.window
        return F.avg_pool2d(input, size, stride, ceil_mode=True, count_include_pad=False)

    def extra_repr(self) -> str:
        return f"{self.window.kernel}, stride={self.window.stride}"


class LocalResponseNorm(nn.Module):
    """Local response normalization across channels, inside each tower (paper, section 3.3).

    out_i = in_i · (k + α/size · Σ_j in_j²)^−β, the sum over the ``size`` channels around *i* that lie in the same
    tower. α is divided by the window size, as in the 2012 code (and as ``torch.nn.LocalResponseNorm`` does); the
    paper's printed formula does not divide. The sums are computed in float32 whatever the input's type.

    Input and output [N, C, H, W], C divisible by ``towers``.
    """

    def __init__(self, towers: int = 1, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__()
        self.towers, self.size, self.alpha, self.beta, self.k = towers, size, alpha, beta, k

    def forward(self, input: Tensor) -> Tensor:
        rows = channels_last_rows(input, self.towers)  # [N·H·W·T, C/T]
        weight = self.alpha / self.size
        if native_kernels.traced() or torch.compiler.is_exporting():
            window = channel_window(rows.shape[1], self.size, weight, input.device)
            out = normalize_rows(rows, window, self.beta, self.k)
        elif native_kernels.fits(rows):
            out = NormalizeRowsCompiled.apply(rows, self.size, weight, self.beta, self.k)
        elif native_kernels.fits_gpu(rows):
            from alexnet.kernels.lrn_triton import NormalizeRowsTriton

            out = NormalizeRowsTriton.apply(rows, self.size, weight, self.beta, self.k)
        else:
            window = channel_window(rows.shape[1], self.size, weight, input.device)
            out = NormalizeRows.apply(rows, window, self.beta, self.k)
        return rows_to_maps(out, input)

    def numbers(self) -> maps.Norm:
        """What it computes, for the kernel."""
        return maps.Norm(self.towers, self.size, self.alpha / self.size, self.k)

    def extra_repr(self) -> str:
        return f"towers={self.towers}, size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class SpatialNorm(nn.Module):
    """Response normalization over a size×size window in the same map (2012 code, ``rnorm``; the CIFAR-10 nets).

    out = in · (k + scale/size² · Σ in²)^−β, the sum over the pixels around each pixel that exist.
    Input and output [N, C, H, W].
    """

    def __init__(self, size: int, scale: float, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size, self.scale, self.beta, self.k = size, scale, beta, k

    def forward(self, input: Tensor) -> Tensor:
        if maps.fits_norm(input, self.beta):
            return maps.normalize(input, self.size, self.scale / self.size**2, self.k)
        mean = F.avg_pool2d(input.float().square(), self.size, 1, self.size // 2)  # zeros outside count: sum / size²
        mean = mean[..., : input.shape[-2], : input.shape[-1]]  # an even window gives one row and column too many
        return (input * (self.k + self.scale * mean).pow(-self.beta)).to(input.dtype)

    def extra_repr(self) -> str:
        return f"size={self.size}, scale={self.scale}, beta={self.beta}, k={self.k}"


class Flatten(nn.Module):
    """Maps to features: [N, C, H, W] -> [N, C·H·W], channels outermost, so that tower *a* comes before tower *b*.

    ``side`` is the map's side that the following layer was built for. Training may show the network smaller images
    for a while (recipe: ``progressive_size``): smaller maps, stretched to ``side`` first.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, input: Tensor) -> Tensor:
        return stretched(input, self.side).flatten(1)

    def extra_repr(self) -> str:
        return f"side={self.side}"


def stretched(input: Tensor, side: int) -> Tensor:
    """Maps brought to ``side`` pixels, bilinearly, where they are not: [N, C, H, W] -> [N, C, side, side]."""
    if tuple(input.shape[-2:]) == (side, side):
        return input
    return F.interpolate(input, (side, side), mode="bilinear", align_corners=False)


class Dropout(nn.Module):
    """Zeroes each output with probability ``p`` in training and scales the rest by 1/(1 − p) (inverted dropout).

    Equivalent to the paper's form (outputs × (1 − p) at test time). The masks come from ``generator`` where one is
    set (:func:`set_generator`), so that a run can repeat them; PyTorch's default generator otherwise.

    ``rows`` and ``columns``, both (first, of how many), say that the input is a part of a larger one: the mask is drawn
    for all of that, and the part of it taken. So a part gets what it would get in the whole.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None
        self.rows: tuple[int, int] | None = None
        self.columns: tuple[int, int] | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return input
        generator = None if native_kernels.transformed() else self.generator  # it knows PyTorch's own alone
        keep = self._whole(input).bernoulli_(1 - self.p, generator=generator)
        if self.rows:
            keep = keep.narrow(0, self.rows[0], input.shape[0])
        if self.columns:
            keep = keep.narrow(1, self.columns[0], input.shape[1])
        return input * keep.div_(1 - self.p)

    def _whole(self, input: Tensor) -> Tensor:
        """An empty tensor like all of that of which ``input`` is a part, in the same order of memory."""
        if not self.rows and not self.columns:
            return torch.empty_like(input)
        rows, columns = self.rows or (0, input.shape[0]), self.columns or (0, input.shape[1])
        maps = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if maps else torch.contiguous_format
        shape = (rows[1], columns[1], *input.shape[2:])
        return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=order)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def set_generator(model: nn.Module, generator: torch.Generator | None) -> None:
    """Make every :class:`Dropout` of ``model`` draw its masks from ``generator``."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator = generator


def set_rows(model: nn.Module, rows: tuple[int, int] | None) -> None:
    """Tell every :class:`Dropout` of ``model`` which rows of a larger batch come next: (first, of how many)."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.rows = rows


def inference(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for answers alone, of the same weights in memory: see :func:`keep` and :func:`thin.lay`."""
    made: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    made |= {id(layer): linear.FewRows(layer) for layer in linear.large(model)}
    return keep(copied(model, made).eval())


def copied(model: nn.Module, made: dict[int, Any]) -> nn.Module:
    """A copy of ``model`` with ``made`` (id of an original -> what stands for it) in the place of copies."""
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # what pruning computes before each pass
                made.setdefault(id(value), value.detach())
    return copy.deepcopy(model, made)


def keep(model: nn.Module) -> nn.Module:
    """Let the convolutions of ``model`` keep what they make of their weights (:class:`winograd.Kept`); returns it."""
    for module in model.modules():
        if isinstance(module, Convolution):
            module.kept = winograd.Kept()
    return model
