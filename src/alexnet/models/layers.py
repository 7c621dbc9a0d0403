"""The layers of 2012 that PyTorch does not have, or defines with another arithmetic.

Each layer knows its own geometry: ``window.out_size(size)`` is the formula that the summary prints and that the
construction of networks uses, so the printed table cannot disagree with the network.

Source: Krizhevsky, Sutskever, Hinton 2012, section 3, and the 2012 code where the paper gives no detail.
"""

import copy
import functools
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.kernels import backend, first_conv, linear, lrn, onednn, pool_norm, winograd
from alexnet.kernels.backend import FilterCache


class Window(NamedTuple):
    """A square window that slides over a feature map: its geometry in the arithmetic of the 2012 code."""

    kernel: int  # size of the window, pixels
    stride: int
    padding: int  # zeros on every side, pixels
    ceil: bool = True  # a last window that sticks out is kept (2012) or dropped (Caffe's convolutions, PyTorch)

    def out_size(self, size: int) -> int:
        """Output size for an input size of ``size`` pixels: 1 + ceil((2·padding + size − kernel) / stride)."""
        steps = (2 * self.padding + size - self.kernel) / self.stride
        return 1 + (math.ceil(steps) if self.ceil else math.floor(steps))

    def overhang(self, size: int) -> int:
        """Pixels that the last window reads past the right and bottom edge, padding included."""
        end = (self.out_size(size) - 1) * self.stride + self.kernel
        return max(0, end - size - 2 * self.padding)

    def pool_geometry(self, height: int, width: int, relu: bool = False) -> pool_norm.PoolGeometry:
        """The pooling of feature maps of this size, for the kernels."""
        return pool_norm.PoolGeometry(self.kernel, self.stride, self.out_size(height), self.out_size(width), relu)

    def formula(self, size: int) -> str:
        """The output size as a worked formula: ``⌈(224 − 11 + 2·0) / 4⌉ + 1 = 55``."""
        inside = f"({size} − {self.kernel} + 2·{self.padding}) / {self.stride}"
        if (2 * self.padding + size - self.kernel) % self.stride:
            inside = f"⌈{inside}⌉" if self.ceil else f"⌊{inside}⌋"
        return f"{inside} + 1 = {self.out_size(size)}"


class Convolution(nn.Conv2d):
    """2-D convolution with the output size of the 2012 code: windows that stick out read zeros.

    Input [N, C, H, W], output [N, K, H', W'] with H' = ``window.out_size(H)``.

    Args:
        in_channels: C.
        out_channels: K, the number of filters.
        kernel: Size of a filter, pixels.
        stride: Pixels between two windows.
        padding: Zeros on every side, pixels.
        groups: With 2, the first half of the filters is tower *a* and reads the first half of the channels; the second
            half is tower *b*.
        ceil: False drops the windows that stick out, as Caffe and PyTorch do.
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
        self.filter_cache: FilterCache | None = None  # set by :func:`cache_filters`

    def forward(
        self,
        input: Tensor,
        relu: bool = False,
        pool: "MaxPool | None" = None,
        norm: "LocalResponseNorm | None" = None,
    ) -> Tensor:
        """The convolution, and the ``relu``, ``norm`` and ``pool`` after it, in one pass where a kernel can.

        Pass ``norm`` only if :meth:`fuses_pool` is true for it.
        """
        geometry = self._geometry(input)
        if first_conv.fits(input, self.weight, geometry, self.groups):
            pooling = None if pool is None else pool.window.pool_geometry(geometry.out_height, geometry.out_width)
            channel_norm = None if norm is None else norm.channel_norm()
            return first_conv.convolve(input, self.weight, self.bias, geometry, pooling, relu, channel_norm)
        assert norm is None, "norm without fuses_pool()"
        _, stride, padding, _ = self.window
        if winograd.fits(input, self.weight, stride, padding, self.groups, self.filter_cache):
            out = winograd.convolve(input, self.weight, self.bias, padding, self.groups, relu, self.filter_cache)
        else:
            out = self._by_pytorch(input, geometry, relu)
        return out if pool is None else pool(out)

    def _by_pytorch(self, input: Tensor, geometry: first_conv.ConvGeometry, relu: bool) -> Tensor:
        weight, cache = self.weight, self.filter_cache
        _, stride, padding, _ = self.window
        if first_conv.fits_space_to_depth(input, weight, geometry, self.groups):
            input = first_conv.blocks(input, weight, geometry)
            reorder = functools.partial(first_conv.block_filters, stride=stride)
            weight = reorder(weight) if cache is None else cache.get(weight, "blocks", reorder)
            stride, padding = 1, 0
        elif any(overhangs := [self.window.overhang(size) for size in input.shape[-2:]]):
            bottom, right = overhangs  # 224 pixels: the last of 55 windows reads 3 pixels past the edge
            input = F.pad(input, (0, right, 0, bottom))
        if cache is not None and onednn.fits(input, weight):
            return onednn.convolve(input, weight, self.bias, (stride, padding, self.groups), relu, cache)
        out = F.conv2d(input, weight, self.bias, stride, padding, 1, self.groups)
        return F.relu_(out) if relu else out

    def fuses_pool(self, input: Tensor, norm: "LocalResponseNorm | None" = None) -> bool:
        """Whether a kernel computes this convolution, ``norm`` (if not None) and the max pool after it in one pass."""
        if norm is not None and not pool_norm.fits_lrn(norm.channel_norm(), self.out_channels, norm.beta):
            return False
        return first_conv.fits(input, self.weight, self._geometry(input), self.groups)

    def _geometry(self, input: Tensor) -> first_conv.ConvGeometry:
        out_height, out_width = map(self.window.out_size, input.shape[-2:])
        return first_conv.ConvGeometry(self.window.stride, self.window.padding, out_height, out_width)


class LocallyConnected(nn.Module):
    """A locally connected layer: the windows of a convolution, with separate filters and biases at every position.

    Input [N, C, side, side], output [N, K, H', W'] with H' = W' = ``window.out_size(side)``; windows that stick out
    read zeros. ``weight`` [K, C, kernel, kernel, H', W']: ``weight[..., y, x]`` are the filters of one position.
    ``bias`` [K, H', W']. Feature maps of another size (training on smaller crops) are resized to ``side``. Called
    ``local`` in the 2012 code.
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
        padded = F.pad(resized(input, self.side), (padding, after, padding, after))
        if backend.is_traced() or type(padded) is not Tensor:
            return self._by_unfold(padded)
        windows = _Windows.apply(padded.permute(2, 3, 0, 1), kernel, stride)  # [H', W', N, k·k·C]
        filters = self.weight.permute(4, 5, 2, 3, 1, 0).reshape(-1, windows.shape[-1], self.weight.shape[0])
        out = torch.bmm(windows.flatten(0, 1), filters)  # [H'·W', N, K], one matrix product per position
        out = out.view(*windows.shape[:3], -1) + self.bias.permute(1, 2, 0)[:, :, None]
        return out.permute(2, 3, 0, 1)

    def _by_unfold(self, padded: Tensor) -> Tensor:
        """The same in operations that all export formats have."""
        patches = F.unfold(padded, self.window.kernel, stride=self.window.stride)  # [N, C·k·k, H'·W']
        filters = self.weight.flatten(4).flatten(1, 3)  # [K, C·k·k, H'·W']
        out = torch.einsum("ndp,kdp->nkp", patches, filters)  # [N, K, H'·W']
        return out.view(-1, *self.bias.shape) + self.bias

    def extra_repr(self) -> str:
        kernel, stride, padding, _ = self.window
        return f"{self.in_channels}, {self.out_channels}, side={self.side}, {kernel}, {stride=}, {padding=}"


class _Windows(torch.autograd.Function):
    """Windows of feature maps, position by position: [H, W, N, C] -> [H', W', N, k·k·C].

    It copies (and adds, in the gradient) whole rows of channels, several times as fast as ``unfold``.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, kernel: int, stride: int) -> Tensor:
        windows = input.unfold(0, kernel, stride).unfold(1, kernel, stride)  # [H', W', N, C, k, k], a view
        ctx.shape, ctx.kernel, ctx.stride = input.shape, kernel, stride
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


class MaxPool(nn.Module):
    """Maximum over windows, output size by ceil; a window that sticks out covers the pixels that exist.

    ``ceil=False`` drops the windows that stick out, as PyTorch does by default (Caffe pools by ceil).
    """

    def __init__(self, kernel: int, stride: int, ceil: bool = True) -> None:
        super().__init__()
        self.window = Window(kernel, stride, 0, ceil)

    def forward(  # [N, C, H, W] -> [N, C, H', W']
        self, input: Tensor, relu: bool = False, norm: "LocalResponseNorm | None" = None
    ) -> Tensor:
        """The pool, and with ``relu`` a ReLU before or after it, which is the same.

        ``norm``, the LRN before the pool, is computed in the same pass; the ReLU is then before the LRN. Pass it only
        if :meth:`fuses_norm` is true.
        """
        if norm is not None:
            geometry = self.window.pool_geometry(input.shape[2], input.shape[3], relu)
            return pool_norm.lrn_max_pool(input, norm.channel_norm(), geometry)
        if pool_norm.fits_pool(input, self.window.kernel, self.window.stride):
            return pool_norm.max_pool(input, self.window.pool_geometry(input.shape[2], input.shape[3], relu))
        out = F.max_pool2d(input, self.window.kernel, self.window.stride, ceil_mode=self.window.ceil)
        return F.relu_(out) if relu else out

    def fuses_norm(self, input: Tensor, norm: "LocalResponseNorm", relu: bool = False) -> bool:
        """Whether a kernel computes ``norm`` of these feature maps [N, C, H, W] and this pool in one pass.

        ``relu``: with a ReLU before the norm, in bfloat16 only: float32 convolutions include their ReLU.
        """
        if relu and input.dtype != torch.bfloat16:
            return False
        if not pool_norm.fits_pool(input, self.window.kernel, self.window.stride):
            return False
        return pool_norm.fits_lrn(norm.channel_norm(), input.shape[1], norm.beta)

    def extra_repr(self) -> str:
        return f"{self.window.kernel}, stride={self.window.stride}" + ("" if self.window.ceil else ", ceil=False")


class AveragePool(nn.Module):
    """Mean over windows, output size by ceil; divides by the number of pixels that exist (2012 code)."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.window = Window(kernel, stride, 0)

    def forward(self, input: Tensor, relu: bool = False) -> Tensor:  # [N, C, H, W] -> [N, C, H', W']
        """The pool, and with ``relu`` a ReLU before it."""
        if pool_norm.fits_pool(input, self.window.kernel, self.window.stride):
            return pool_norm.avg_pool(input, self.window.pool_geometry(input.shape[2], input.shape[3], relu))
        input, (kernel, stride, _, _) = F.relu(input) if relu else input, self.window
        return F.avg_pool2d(input, kernel, stride, ceil_mode=True, count_include_pad=False)

    def extra_repr(self) -> str:
        return f"{self.window.kernel}, stride={self.window.stride}"


class LocalResponseNorm(nn.Module):
    """Local response normalization (LRN) across channels, inside each tower (paper, section 3.3).

    out_i = in_i · (k + α/size · Σ_j in_j²)^−β, the sum over the ``size`` channels around *i* that are in the same
    tower. α is divided by the window size, as in the 2012 code (and in ``torch.nn.LocalResponseNorm``); the paper's
    printed formula does not divide. The sums are computed in float32 for every input type.

    Input and output [N, C, H, W], C divisible by ``towers``.

    Where it is computed, the first condition that holds; all give the same values to float32 rounding:

    ====================================================  =====================  ==========================
    Condition                                             File in ``kernels/``   Function
    ====================================================  =====================  ==========================
    traced (jit, make_fx), exported or under torch.func   lrn.py                 ``differentiable_lrn``
    under torch.compile                                   lrn.py                 ``TorchLRN``
    between a fused first convolution and its max pool    first_conv.c, lrn.h    ``first_conv_forward``
    before a fused max pool                               pool_norm.c, lrn.h     ``lrn_max_pool``
    CPU, kernel ``lrn`` in use                            lrn.c                  ``NativeLRN`` (lrn.py)
    GPU, Triton installed, kernel ``lrn_triton`` in use   lrn_triton.py          ``TritonLRN``
    otherwise                                             lrn.py                 ``TorchLRN``
    ====================================================  =====================  ==========================

    ``Network.forward`` fuses layers without hooks (models/fusion.py), when ``Convolution.fuses_pool`` or
    ``MaxPool.fuses_norm`` is true; both list their conditions. Second derivatives are those of
    ``differentiable_lrn``. Exported ONNX files contain ``ExportableNorm`` (export/export_module.py), the browser page
    computes the norm in JavaScript (export/page/).

    Args:
        towers: Groups of channels that are normalized separately.
        size: Channels in a window.
        alpha: α.
        beta: β.
        k: k.
    """

    def __init__(self, towers: int = 1, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__()
        self.towers, self.size, self.alpha, self.beta, self.k = towers, size, alpha, beta, k

    def forward(self, input: Tensor) -> Tensor:
        rows = lrn.channels_last_rows(input, self.towers)  # [N·H·W·T, C/T]
        weight = self.alpha / self.size
        if backend.is_traced() or torch.compiler.is_exporting():
            window = lrn.channel_window(rows.shape[1], self.size, weight, input.device)
            out = lrn.differentiable_lrn(rows, window, self.beta, self.k)
        elif lrn.fits(rows):
            out = lrn.NativeLRN.apply(rows, self.size, weight, self.beta, self.k)
        elif lrn.fits_triton(rows):
            from alexnet.kernels.lrn_triton import TritonLRN

            out = TritonLRN.apply(rows, self.size, weight, self.beta, self.k)
        else:
            window = lrn.channel_window(rows.shape[1], self.size, weight, input.device)
            out = lrn.TorchLRN.apply(rows, window, self.beta, self.k)
        return lrn.rows_to_feature_maps(out, input)

    def channel_norm(self) -> pool_norm.ChannelNorm:
        """Its hyperparameters for the kernels that fuse it."""
        return pool_norm.ChannelNorm(self.towers, self.size, self.alpha / self.size, self.k)

    def extra_repr(self) -> str:
        return f"towers={self.towers}, size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class SpatialNorm(nn.Module):
    """Response normalization over size×size pixels of the same feature map (``rnorm`` of the 2012 code).

    out = in · (k + scale/size² · Σ in²)^−β, the sum over the pixels around each pixel that exist.
    Input and output [N, C, H, W].
    """

    def __init__(self, size: int, scale: float, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size, self.scale, self.beta, self.k = size, scale, beta, k

    def forward(self, input: Tensor) -> Tensor:
        if pool_norm.fits_spatial_norm(input, self.beta):
            return pool_norm.spatial_norm(input, self.size, self.scale / self.size**2, self.k)
        mean = F.avg_pool2d(input.float().square(), self.size, 1, self.size // 2)  # with zeros outside: sum / size²
        mean = mean[..., : input.shape[-2], : input.shape[-1]]  # an even window gives one row and column too many
        return (input * (self.k + self.scale * mean).pow(-self.beta)).to(input.dtype)

    def extra_repr(self) -> str:
        return f"size={self.size}, scale={self.scale}, beta={self.beta}, k={self.k}"


class Flatten(nn.Module):
    """Feature maps to features: [N, C, H, W] -> [N, C·H·W], channels outermost: tower *a* comes before tower *b*.

    ``side`` is the size of the feature maps that the following layer was built for. Training may use smaller images
    for some epochs (recipe: ``progressive_size``); their feature maps are resized to ``side`` first.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, input: Tensor) -> Tensor:
        return resized(input, self.side).flatten(1)

    def extra_repr(self) -> str:
        return f"side={self.side}"


def resized(input: Tensor, size: int) -> Tensor:
    """Feature maps resized bilinearly, if they have another size: [N, C, H, W] -> [N, C, size, size]."""
    if tuple(input.shape[-2:]) == (size, size):
        return input
    return F.interpolate(input, (size, size), mode="bilinear", align_corners=False)


class Dropout(nn.Module):
    """Zeroes each value with probability ``p`` in training and scales the rest by 1/(1 − p) (inverted dropout).

    Equivalent to the paper's form (outputs × (1 − p) at test time).

    Attributes:
        generator: Source of the masks (:func:`set_generator`), so that a run is reproducible; None is PyTorch's
            default generator.
        rows: (first, total): the input is these rows of a larger batch. The mask is drawn for the total and sliced, so
            that a part of a batch gets the same mask as in the whole batch.
        columns: The same for features or channels.
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
        generator = None if backend.is_traced_or_compiled() else self.generator  # compilers know the default one only
        mask = self._empty_mask(input).bernoulli_(1 - self.p, generator=generator)
        if self.rows:
            mask = mask.narrow(0, self.rows[0], input.shape[0])
        if self.columns:
            mask = mask.narrow(1, self.columns[0], input.shape[1])
        return input * mask.div_(1 - self.p)

    def _empty_mask(self, input: Tensor) -> Tensor:
        """An empty tensor like the whole batch that ``input`` is a part of, with the same memory format."""
        if not self.rows and not self.columns:
            return torch.empty_like(input)
        rows, columns = self.rows or (0, input.shape[0]), self.columns or (0, input.shape[1])
        channels_last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        shape = (rows[1], columns[1], *input.shape[2:])
        return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def set_generator(model: nn.Module, generator: torch.Generator | None) -> None:
    """Make every :class:`Dropout` of ``model`` draw its masks from ``generator``."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator = generator


def set_rows(model: nn.Module, rows: tuple[int, int] | None) -> None:
    """Set ``rows``, (first, total) of a larger batch, of every :class:`Dropout` of ``model``."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.rows = rows


def inference_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference that shares its weights in memory.

    Its convolutions cache transformed filters (:func:`cache_filters`), and its large fully connected layers are
    :class:`~alexnet.kernels.linear.FewRowsLinear`.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    shared |= {id(layer): linear.FewRowsLinear(layer) for layer in linear.large_layers(model)}
    return cache_filters(copy_with(model, shared).eval())


def copy_with(model: nn.Module, replacements: dict[int, Any]) -> nn.Module:
    """A deep copy of ``model`` in which ``replacements`` (id of an object -> its replacement) are used as they are."""
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # weights that pruning computes before each pass
                replacements.setdefault(id(value), value.detach())
    return copy.deepcopy(model, replacements)


def cache_filters(model: nn.Module) -> nn.Module:
    """Give each convolution of ``model`` a :class:`~alexnet.kernels.backend.FilterCache`; returns ``model``."""
    for module in model.modules():
        if isinstance(module, Convolution):
            module.filter_cache = FilterCache()
    return model
