"""Norms and image layers of the 2012 files that PyTorch has not, or has with another arithmetic: maps to maps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.cuda_convnet.definition import Layer
from alexnet.cuda_convnet.modules import as_maps
from alexnet.cuda_convnet.parameters import LayerParameters
from alexnet.kernels import tracing
from alexnet.models.layers import LocalResponseNorm, SpatialNorm


class Maps(nn.Module):
    """A layer over square maps: [N, C, S, S] -> what :meth:`change` makes of it."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.channels, self.side = channels, side

    def forward(self, input: Tensor) -> Tensor:
        return self.change(as_maps(input, self.channels, self.side))

    def change(self, maps: Tensor) -> Tensor:
        raise NotImplementedError


def norm(layer: Layer, parameters: LayerParameters) -> Maps:
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


class Wrapped(Maps):
    """A layer of the house, given maps as this file counts them."""

    def __init__(self, module: nn.Module, channels: int, side: int) -> None:
        super().__init__(channels, side)
        self.module = module

    def change(self, maps: Tensor) -> Tensor:
        out: Tensor = self.module(maps)
        return out


class BlockedNorm(Maps):
    """y = x · (minDiv + scale/size · Σ x²)^−pow, the sum over the block of ``size`` maps that x is in."""

    def __init__(self, channels: int, side: int, size: int, scale: float, power: float, divisor: float) -> None:
        super().__init__(channels, side)
        self.size, self.scale, self.power, self.divisor = size, scale, power, divisor

    def change(self, maps: Tensor) -> Tensor:
        missing = -self.channels % self.size
        squares = F.pad(maps.square(), (0, 0, 0, 0, 0, missing))
        blocks = squares.reshape(len(maps), -1, self.size, self.side, self.side).sum(2)  # [N, B, S, S]
        sums = blocks.repeat_interleave(self.size, 1)[:, : self.channels]
        return maps * (self.divisor + self.scale / self.size * sums).pow(-self.power)


class ContrastNorm(Maps):
    """y = x · (1 + scale/size² · Σ d²)^−pow with d = x − the mean of its window's pixels that exist.

    The gradient is the 2012 code's: it takes the mean for a constant, which the true one does not.
    """

    def __init__(self, channels: int, side: int, size: int, scale: float, power: float) -> None:
        super().__init__(channels, side)
        self.size, self.scale, self.power = size, scale, power

    def change(self, maps: Tensor) -> Tensor:
        count = self._sums(torch.ones_like(maps[:1, :1]))
        difference = maps - (self._sums(maps) / count).detach()
        divisor = 1 + self.scale / self.size**2 * self._sums(difference.square())
        return maps * divisor.pow(-self.power)

    def _sums(self, maps: Tensor) -> Tensor:
        """Sums over [i − size//2, + size) in both directions."""
        if tracing.is_jit_tracing():  # ONNX has no divisor
            sums = F.avg_pool2d(maps, self.size, 1, self.size // 2) * self.size**2
        else:
            sums = F.avg_pool2d(maps, self.size, 1, self.size // 2, divisor_override=1)
        return sums[..., : self.side, : self.side]


class Blur(Maps):
    """A Gaussian of ``size`` taps that sum to 1, first along rows, then along columns; what lies outside is 0."""

    taps: Tensor

    def __init__(self, channels: int, side: int, size: int, deviation: float) -> None:
        super().__init__(channels, side)
        offsets = torch.arange(size, dtype=torch.float64) - size // 2
        taps = torch.exp(-offsets.square() / (2 * deviation**2))
        self.register_buffer("taps", (taps / taps.sum()).float(), persistent=False)

    def change(self, maps: Tensor) -> Tensor:
        radius, flat = len(self.taps) // 2, maps.flatten(0, 1)[:, None]  # [N·C, 1, S, S]
        flat = F.conv2d(flat, self.taps.view(1, 1, 1, -1).to(maps.dtype), padding=(0, radius))
        flat = F.conv2d(flat, self.taps.view(1, 1, -1, 1).to(maps.dtype), padding=(radius, 0))
        return flat.view_as(maps.contiguous())


class NailBed(Maps):
    """Pixels start, start + stride, … in both directions."""

    def __init__(self, channels: int, side: int, start: int, stride: int) -> None:
        super().__init__(channels, side)
        self.start, self.stride = start, stride

    def change(self, maps: Tensor) -> Tensor:
        return maps[:, :, self.start :: self.stride, self.start :: self.stride]


class Mirror(Maps):
    """Left and right exchanged."""

    def change(self, maps: Tensor) -> Tensor:
        return maps.flip(3)


class Resize(Maps):
    """Bilinear: target pixel t reads source t·scale + (S − T·scale)/2, kept within [0, S − 1.01]. No gradient."""

    def __init__(self, channels: int, side: int, scale: float, out: int) -> None:
        super().__init__(channels, side)
        self.scale, self.out = scale, out

    def change(self, maps: Tensor) -> Tensor:
        steps = torch.arange(self.out, device=maps.device, dtype=torch.float32)
        at = steps * self.scale + (self.side - self.out * self.scale) / 2
        at = at.clamp(0, max(self.side - 1.01, 0))
        return bilinear(maps.detach(), at, at)


class RandomScale(Maps):
    """Training: each batch brought to one random size and cut at one random place to ``out`` pixels; else the center.

    With L = S − ⌊S/most⌋ + 1 the sizes are out + s for s = 0 … L − 1, each as likely as it has places to cut at: with
    probability (s + 1)² / Σ (s + 1)². The scale is uniform between S/(size + 1), at least 1, and S/size. Images of
    size S are cut as they are. No gradient.
    """

    squares: Tensor

    def __init__(self, channels: int, side: int, most: float, out: int) -> None:
        super().__init__(channels, side)
        self.most, self.out = most, out
        self.generator: torch.Generator | None = None
        squares = torch.arange(1, side - int(side / most) + 2, dtype=torch.float64).square()
        self.register_buffer("squares", (squares.cumsum(0) / squares.sum()).float(), persistent=False)

    def change(self, maps: Tensor) -> Tensor:
        if not self.training:
            start = (self.side - self.out) // 2
            return maps[:, :, start : start + self.out, start : start + self.out].detach()
        which, between, *places = torch.empty(4, device=maps.device).uniform_(generator=self.generator)
        larger = (which > self.squares[:-1]).sum()  # pixels by which the size is above out
        size = self.out + larger
        least = (self.side / (size + 1)).clamp(min=1)
        scale = least + between * (self.side / size - least)
        steps = torch.arange(self.out, device=maps.device, dtype=torch.float32)
        last = torch.where(size == self.side, self.side - 1.0, self.side - 1.01)
        rows, columns = (
            ((steps + torch.floor(u * (larger + 1))) * scale + (self.side - size * scale) / 2)
            .clamp(min=0)
            .minimum(last)
            for u in places
        )
        return bilinear(maps.detach(), rows, columns)


def bilinear(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[N, C, S, S] read at ``rows`` × ``columns`` (each [T], pixels, 0 … S − 1)."""
    for dim, at in ((2, rows), (3, columns)):
        low = at.floor().long()
        share = (at - low).to(maps.dtype).view([-1 if d == dim else 1 for d in range(4)])
        near = maps.index_select(dim, low)
        far = maps.index_select(dim, (low + 1).clamp(max=maps.shape[dim] - 1))
        maps = near + (far - near) * share
    return maps


class Yuv(Maps):
    """RGB -> YUV. No gradient."""

    MATRIX = ((0.2126, 0.7152, 0.0722), (-0.09991, -0.33609, 0.436), (0.615, -0.55861, -0.05639))

    def change(self, maps: Tensor) -> Tensor:
        return mix(self.MATRIX, maps.detach())


class Lab(Maps):
    """RGB in 0 … 1 -> L*a*b*; ``center`` takes 50 from L. No gradient."""

    MATRIX = ((0.49, 0.31, 0.2), (0.17697, 0.8124, 0.01063), (0.0, 0.01, 0.99))

    def __init__(self, channels: int, side: int, center: bool) -> None:
        super().__init__(channels, side)
        self.center = center

    def change(self, maps: Tensor) -> Tensor:
        t = mix(self.MATRIX, maps.detach())
        root = t.clamp(min=1e-12).pow(0.3333)
        x, y, z = torch.where(t > 0.0088564517, root, 7.787037 * t + 0.13793103).unbind(1)
        light = 116 * y - 16 - (50 if self.center else 0)
        return torch.stack([light, 500 * (x - y), 200 * (y - z)], 1)


def mix(matrix: tuple[tuple[float, ...], ...], maps: Tensor) -> Tensor:
    """Each pixel's three colors times a 3×3 matrix."""
    return torch.einsum("oc,nchw->nohw", maps.new_tensor(matrix), maps)
