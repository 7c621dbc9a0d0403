"""Layers that see every number by itself: neurons, dropout of 2012, sums and maxima of layers, softmax."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.models import kernel
from alexnet.models.layers import Dropout


class Neuron(nn.Module):
    """f by its name in the file, with its derivative there: relu 0 at 0, abs −1 at 0, brelu 0 at its limit."""

    def __init__(self, name: str, numbers: Sequence[float]) -> None:
        super().__init__()
        self.name, self.numbers = name, tuple(numbers)
        self.generator: torch.Generator | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.name == "nrelu":
            return self._noisy(input)
        return _NEURONS[self.name](input, *self.numbers)

    def _noisy(self, x: Tensor) -> Tensor:
        """relu(relu(x) + n), n normal with deviation relu(x); in a test one fixed draw serves all pictures."""
        x = F.relu(x)
        shape = x.shape if self.training else (1, *map(int, x.shape[1:]))
        generator = self.generator if self.training else torch.Generator(x.device).manual_seed(0)
        with unrecorded(not self.training):
            drawn = torch.empty(shape, dtype=x.dtype, device=x.device).normal_(generator=generator)
        return F.relu(x + drawn * x.detach())

    def extra_repr(self) -> str:
        return f"{self.name}{list(self.numbers) or ''}"


@contextmanager
def unrecorded(constant: bool) -> Iterator[None]:
    """What is computed inside is a constant for torch.jit.trace, which would draw it anew without the generator."""
    state = torch._C._get_tracing_state()
    if constant:
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def _brelu(x: Tensor, a: float) -> Tensor:
    return torch.where(F.relu(x) >= a, torch.full_like(x, a), F.relu(x))


def _softrelu(x: Tensor) -> Tensor:
    # masked_fill and not clamp(max=4), whose gradient at 4 is 0 or 1, whichever of PyTorch's loops sees the number.
    return torch.where(x > 4, x, torch.log1p(torch.exp(x.masked_fill(x > 4, 0))))


_NEURONS: dict[str, Callable[..., Tensor]] = {
    "ident": lambda x: x,
    "logistic": torch.sigmoid,
    "relu": F.relu,
    "tanh": lambda x, a, b: a * torch.tanh(b * x),
    "linear": lambda x, a, b: a * x + b,
    "softrelu": _softrelu,
    "square": torch.square,
    "sqrt": torch.sqrt,
    "abs": lambda x: torch.where(x > 0, x, -x),
    "brelu": _brelu,
    "drelu": lambda x, a: x - a * torch.tanh(x / a),
}


class Keep(Dropout):
    """Dropout as in the files (``hs``): kept with probability ``keep`` and not scaled; × ``keep`` where not training.

    ``enable`` false: × ``keep`` in training too.
    """

    def __init__(self, keep: float, enable: bool) -> None:
        super().__init__(1 - keep)
        self.keep, self.enable = keep, enable

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and self.enable):
            return input * self.keep
        return input * torch.empty_like(input).bernoulli_(self.keep, generator=self.generator)

    def extra_repr(self) -> str:
        return f"keep={self.keep}, enable={self.enable}"


class Sum(nn.Module):
    """Σ coefficient · input."""

    def __init__(self, coefficients: Sequence[float]) -> None:
        super().__init__()
        self.coefficients = tuple(coefficients)

    def forward(self, *inputs: Tensor) -> Tensor:
        terms = [c * x for c, x in zip(self.coefficients, alike(inputs), strict=True)]
        return torch.stack(terms).sum(0)


class Maximum(nn.Module):
    """The largest of the inputs; its gradient goes to every input that equals it."""

    def forward(self, *inputs: Tensor) -> Tensor:
        if kernel.jit_tracing():
            return torch.stack(alike(inputs)).amax(0)
        out: Tensor = _Maximum.apply(*alike(inputs))
        return out


class _Maximum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        out = torch.stack(inputs).amax(0)
        ctx.save_for_backward(out, *inputs)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        out, *inputs = ctx.saved_tensors
        return tuple(grads[0] * (x == out) for x in inputs)


class Concatenation(nn.Module):
    """Features one input after the other; maps of one size stay maps: [N, ΣC, S, S]."""

    def __init__(self, maps: bool) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, *inputs: Tensor) -> Tensor:
        maps = self.maps and len({x.shape[2:] for x in inputs}) == 1
        return torch.cat(list(inputs) if maps else [x.flatten(1) for x in inputs], 1)


class Softmax(nn.Module):
    """Probabilities over all features of a picture: [N, D]."""

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(1).softmax(1)


def alike(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Inputs of one number of features, brought to one shape."""
    if len({x.shape for x in inputs}) == 1:
        return list(inputs)
    return [x.flatten(1) for x in inputs]
