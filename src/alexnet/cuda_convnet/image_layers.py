"""Norms and image layers of the 2012 files that PyTorch does not have, or defines with another arithmetic."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.cuda_convnet.grammar import Layer
from alexnet.cuda_convnet.modules import as_feature_maps, is_recorded
from alexnet.cuda_convnet.parameters import LayerParameters
from alexnet.models.layers import LocalResponseNorm, SpatialNorm


class FeatureMapLayer(nn.Module):
    """Base of layers over square feature maps [N, C, S, S]; subclasses implement :meth:`change`."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.channels, self.side = channels, side

    def forward(self, input: Tensor) -> Tensor:
        return self.change(as_feature_maps(input, self.channels, self.side))

    def change(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def norm(layer: Layer, parameters: LayerParameters) -> FeatureMapLayer:
    """cmrnorm, rnorm or cnorm with the constants of the parameter file (an old dialect has them in the layer)."""
    options = layer.options
    channels, size = options["channels"], options["size"]
    scale, power = options.get("scale", parameters.scale), options.get("pow", parameters.pow)
    if layer.type == "cnorm":
        return ContrastNorm(channels, layer.side, size, scale, power)
    if layer.type == "cmrnorm" and options["blocked"]:
        return BlockedNorm(channels, layer.side, size, scale, power, parameters.min_div)
    if layer.type == "cmrnorm":
        return Wrapped(LocalResponseNorm(1, size, scale, power, parameters.min_div), channels, layer.side)
    return Wrapped(SpatialNorm(size, scale, power, 1.0), channels, layer.side)


class Wrapped(FeatureMapLayer):
    """A layer of :mod:`alexnet.models.layers` on feature maps in the file's shape."""

    def __init__(self, module: nn.Module, channels: int, side: int) -> None:
        super().__init__(channels, side)
        self.module = module

    def change(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x)
        return out


class BlockedNorm(FeatureMapLayer):
    """y = x · (minDiv + scale/size · Σ x²)^−pow, the sum over the block of ``size`` channels of x."""

    def __init__(self, channels: int, side: int, size: int, scale: float, power: float, divisor: float) -> None:
        super().__init__(channels, side)
        self.size, self.scale, self.power, self.divisor = size, scale, power, divisor

    def change(self, x: Tensor) -> Tensor:
        missing = -self.channels % self.size
        squares = F.pad(x.square(), (0, 0, 0, 0, 0, missing))
        blocks = squares.reshape(x.shape[0], -1, self.size, self.side, self.side).sum(2)  # [N, B, S, S]
        sums = blocks.repeat_interleave(self.size, 1)[:, : self.channels]
        return x * (self.divisor + self.scale / self.size * sums).pow(-self.power)


class ContrastNorm(FeatureMapLayer):
    """y = x · (1 + scale/size² · Σ d²)^−pow with d = x − mean over the window's pixels that exist.

    The gradient is that of the 2012 code, which treats the mean as a constant.
    """

    def __init__(self, channels: int, side: int, size: int, scale: float, power: float) -> None:
        super().__init__(channels, side)
        self.size, self.scale, self.power = size, scale, power

    def change(self, x: Tensor) -> Tensor:
        count = self._sums(torch.ones_like(x[:1, :1]))
        difference = x - (self._sums(x) / count).detach()
        divisor = 1 + self.scale / self.size**2 * self._sums(difference.square())
        return x * divisor.pow(-self.power)

    def _sums(self, x: Tensor) -> Tensor:
        """Sums over [i − size//2, + size) in both directions."""
        if is_recorded():  # ONNX has no divisor
            sums = F.avg_pool2d(x, self.size, 1, self.size // 2) * self.size**2
        else:
            sums = F.avg_pool2d(x, self.size, 1, self.size // 2, divisor_override=1)
        return sums[..., : self.side, : self.side]


class Blur(FeatureMapLayer):
    """A Gaussian blur of ``size`` taps that sum to 1, first along rows, then along columns, with zeros outside."""

    taps: Tensor

    def __init__(self, channels: int, side: int, size: int, deviation: float) -> None:
        super().__init__(channels, side)
        offsets = torch.arange(size, dtype=torch.float64) - size // 2
        taps = torch.exp(-offsets.square() / (2 * deviation**2))
        self.register_buffer("taps", (taps / taps.sum()).float(), persistent=False)

    def change(self, x: Tensor) -> Tensor:
        radius, flat = len(self.taps) // 2, x.flatten(0, 1)[:, None]  # [N·C, 1, S, S]
        flat = F.conv2d(flat, self.taps.view(1, 1, 1, -1).to(x.dtype), padding=(0, radius))
        flat = F.conv2d(flat, self.taps.view(1, 1, -1, 1).to(x.dtype), padding=(radius, 0))
        return flat.view_as(x.contiguous())


class NailBed(FeatureMapLayer):
    """Pixels start, start + stride, … in both directions."""

    def __init__(self, channels: int, side: int, start: int, stride: int) -> None:
        super().__init__(channels, side)
        self.start, self.stride = start, stride

    def change(self, x: Tensor) -> Tensor:
        return x[:, :, self.start :: self.stride, self.start :: self.stride]


class Mirror(FeatureMapLayer):
    """Horizontal flip."""

    def change(self, x: Tensor) -> Tensor:
        return x.flip(3)


class Resize(FeatureMapLayer):
    """Bilinear resizing: pixel t reads input t·scale + (S − T·scale)/2, clipped to [0, S − 1.01]. No gradient."""

    def __init__(self, channels: int, side: int, scale: float, out: int) -> None:
        super().__init__(channels, side)
        self.scale, self.out = scale, out

    def change(self, x: Tensor) -> Tensor:
        steps = torch.arange(self.out, device=x.device, dtype=torch.float32)
        at = steps * self.scale + (self.side - self.out * self.scale) / 2
        at = at.clamp(0, max(self.side - 1.01, 0))
        return bilinear(x.detach(), at, at)


class RandomScale(FeatureMapLayer):
    """Random scale and crop to ``out`` pixels, the same for the whole batch, in training; the center crop otherwise.

    With L = S − ⌊S/max_scale⌋ + 1 the sizes are out + s for s = 0 … L − 1, each with a probability proportional to its
    number of crop positions, (s + 1)². The scale is uniform between S/(size + 1), at least 1, and S/size. Images of
    size S are cropped without scaling. No gradient.
    """

    squares: Tensor

    def __init__(self, channels: int, side: int, max_scale: float, out: int) -> None:
        super().__init__(channels, side)
        self.max_scale, self.out = max_scale, out
        self.generator: torch.Generator | None = None
        squares = torch.arange(1, side - int(side / max_scale) + 2, dtype=torch.float64).square()
        self.register_buffer("squares", (squares.cumsum(0) / squares.sum()).float(), persistent=False)

    def change(self, x: Tensor) -> Tensor:
        if not self.training:
            start = (self.side - self.out) // 2
            return x[:, :, start : start + self.out, start : start + self.out].detach()
        which, between, *positions = torch.empty(4, device=x.device).uniform_(generator=self.generator)
        larger = (which > self.squares[:-1]).sum()  # size − out, pixels
        size = self.out + larger
        min_scale = (self.side / (size + 1)).clamp(min=1)
        scale = min_scale + between * (self.side / size - min_scale)
        steps = torch.arange(self.out, device=x.device, dtype=torch.float32)
        last = torch.where(size == self.side, self.side - 1.0, self.side - 1.01)
        rows, columns = (
            ((steps + torch.floor(u * (larger + 1))) * scale + (self.side - size * scale) / 2)
            .clamp(min=0)
            .minimum(last)
            for u in positions
        )
        return bilinear(x.detach(), rows, columns)


def bilinear(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[N, C, S, S] -> [N, C, T, T]: bilinear samples at ``rows`` × ``columns`` (each [T], pixels, 0 … S − 1)."""
    for dim, at in ((2, rows), (3, columns)):
        low = at.floor().long()
        fraction = (at - low).to(x.dtype).view([-1 if d == dim else 1 for d in range(4)])
        first = x.index_select(dim, low)
        second = x.index_select(dim, (low + 1).clamp(max=x.shape[dim] - 1))
        x = first + (second - first) * fraction
    return x


class Yuv(FeatureMapLayer):
    """RGB -> YUV. No gradient."""

    MATRIX = ((0.2126, 0.7152, 0.0722), (-0.09991, -0.33609, 0.436), (0.615, -0.55861, -0.05639))

    def change(self, x: Tensor) -> Tensor:
        return mix(self.MATRIX, x.detach())


class Lab(FeatureMapLayer):
    """RGB in 0 … 1 -> L*a*b*; ``center`` subtracts 50 from L. No gradient."""

    MATRIX = ((0.49, 0.31, 0.2), (0.17697, 0.8124, 0.01063), (0.0, 0.01, 0.99))

    def __init__(self, channels: int, side: int, center: bool) -> None:
        super().__init__(channels, side)
        self.center = center

    def change(self, x: Tensor) -> Tensor:
        t = mix(self.MATRIX, x.detach())
        root = t.clamp(min=1e-12).pow(0.3333)
        x, y, z = torch.where(t > 0.0088564517, root, 7.787037 * t + 0.13793103).unbind(1)
        light = 116 * y - 16 - (50 if self.center else 0)
        return torch.stack([light, 500 * (x - y), 200 * (y - z)], 1)


def mix(matrix: tuple[tuple[float, ...], ...], x: Tensor) -> Tensor:
    """Each pixel's three colors times a 3×3 matrix."""
    return torch.einsum("oc,nchw->nohw", x.new_tensor(matrix), x)
