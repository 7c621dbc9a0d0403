"""Pools and their gradients as the 2012 kernels have them: every pixel of a window that equals the output gets all.

So a maximum that stands twice in a window gets its gradient twice, where PyTorch's goes to the first one alone.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.models import kernel
from alexnet.models.cuda_convnet.definition import Layer
from alexnet.models.cuda_convnet.pointwise import unrecorded
from alexnet.models.cuda_convnet.products import as_maps

LOWEST = -2e38  # what the 2012 kernel begins a maximum with


class Frame:
    """Windows of side ``size`` over maps of ``side`` pixels: window o covers [start + o·stride, + size), clipped."""

    def __init__(self, side: int, size: int, stride: int, start: int, out: int) -> None:
        self.size, self.stride, self.out = size, stride, out
        end = start + (out - 1) * stride + size
        self.around = (-start, end - side)  # pixels added (or cut off, where negative) before and behind

    def pad(self, maps: Tensor, value: float) -> Tensor:
        """Exactly what the windows cover."""
        before, behind = self.around
        return F.pad(maps, (before, behind, before, behind), value=value)

    def pixels(self, padded: Tensor) -> Iterator[Tensor]:
        """The k-th pixel of all windows, for every k in raster order: views [N, C, O, O]."""
        span = self.stride * (self.out - 1) + 1
        for y in range(self.size):
            for x in range(self.size):
                yield padded[:, :, y : y + span : self.stride, x : x + span : self.stride]

    def unpad(self, padded: Tensor, side: int) -> Tensor:
        """The inverse of :meth:`pad` for a gradient: pixels that no window covers get 0."""
        before, behind = self.around
        return F.pad(padded, (-before, -behind, -before, -behind))


class Selected(torch.autograd.Function):
    """Windows -> ``chosen``, one of their pixels each; backward to every pixel of the window that equals it."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, chosen: Tensor, frame: Frame, outside: float) -> Tensor:
        ctx.save_for_backward(maps, chosen)
        ctx.frame, ctx.outside = frame, outside
        return chosen.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        maps, chosen = ctx.saved_tensors
        frame: Frame = ctx.frame
        padded = frame.pad(maps, ctx.outside)
        gradient = torch.zeros_like(padded)
        for pixel, into in zip(frame.pixels(padded), frame.pixels(gradient), strict=True):
            into.add_((pixel == chosen) * grads[0])
        return frame.unpad(gradient, maps.shape[-1]), None, None, None


class Pool(nn.Module):
    """[N, C, S, S] -> [N, C, O, O]: ``max``, ``maxabs``, ``avg`` (over the pixels that exist) or ``rand``.

    ``rand`` draws one pixel of each window in every pass. No public source tells by which law; here every pixel of
    the window is as likely. Where the network is not training all pictures share one fixed draw, so that an answer
    does not depend on when, and beside whom, a picture was asked about.
    """

    counts: Tensor

    def __init__(self, layer: Layer, side: int, do_max: bool) -> None:
        super().__init__()
        options = layer.options
        self.kind = "max" if options["pool"] == "rand" and do_max else options["pool"]
        self.channels, self.side = options["channels"], side
        self.frame = Frame(side, options["sizeX"], options["stride"], options["start"], layer.side)
        self.generator: torch.Generator | None = None
        ones = self.frame.pad(torch.ones(1, 1, side, side), 0.0)
        counts = torch.zeros(1, 1, layer.side, layer.side)
        for pixel in self.frame.pixels(ones):
            counts += pixel
        self.register_buffer("counts", counts, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        maps = as_maps(input, self.channels, self.side)
        if self.kind == "avg":
            size = self.frame.size
            if kernel.jit_tracing():  # ONNX has no divisor
                return F.avg_pool2d(self.frame.pad(maps, 0.0), size, self.frame.stride) * (size**2 / self.counts)
            return F.avg_pool2d(self.frame.pad(maps, 0.0), size, self.frame.stride, divisor_override=1) / self.counts
        choose = {"max": self._max, "maxabs": self._maxabs, "rand": self._rand}[self.kind]
        if kernel.jit_tracing():
            return choose(maps)
        chosen: Tensor = choose(maps.detach())
        outside = LOWEST if self.kind == "max" else float("nan")  # NaN equals nothing
        found: Tensor = Selected.apply(maps, chosen, self.frame, outside)
        return found

    def _max(self, maps: Tensor) -> Tensor:
        padded = self.frame.pad(maps, LOWEST)
        return F.max_pool2d(padded, self.frame.size, self.frame.stride)

    def _maxabs(self, maps: Tensor) -> Tensor:
        chosen = maps.new_zeros(*maps.shape[:2], self.frame.out, self.frame.out)
        for pixel in self.frame.pixels(self.frame.pad(maps, 0.0)):
            chosen = torch.where(pixel.abs() >= chosen.abs(), pixel, chosen)
        return chosen

    def _rand(self, maps: Tensor) -> Tensor:
        """Reservoir sampling in raster order: the k-th pixel that exists replaces the choice with probability 1/k."""
        shape = (len(maps) if self.training else 1, self.channels, self.frame.out, self.frame.out)
        generator = self.generator if self.training else torch.Generator(maps.device).manual_seed(0)
        inside = self.frame.pad(torch.ones_like(maps[:1, :1]), 0.0)
        chosen, met = maps.new_zeros(len(maps), *shape[1:]), torch.zeros_like(self.counts)
        for pixel, exists in zip(self.frame.pixels(self.frame.pad(maps, 0.0)), self.frame.pixels(inside), strict=True):
            met = met + exists
            with unrecorded(not self.training):
                drawn = torch.empty(shape, dtype=maps.dtype, device=maps.device)
                drawn.uniform_(generator=generator)
            chosen = torch.where((drawn * met < 1) & (exists > 0), pixel, chosen)
        return chosen
