"""The layers and costs of the 2012 files as PyTorch modules: weights, pools, elementwise layers, costs.

Inputs and outputs are feature maps [N, C, S, S] or features [N, D], flattened in PyTorch's order. Weights have
PyTorch's layout: conv [F, c, K, K], fc [out, in], local [M², c·K², F]. The gradient of a pool is that of the 2012
kernels: every pixel of a window that equals the output gets the full gradient, where PyTorch's goes to the first only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.cuda_convnet.grammar import Layer
from alexnet.kernels import backend
from alexnet.models.layers import Dropout, Window

_LOG_ZERO = -1e30  # log of an empty sum; finite, so that gradients are finite
_MIN_LOG = -50.0  # log of a probability of 0 or less


def logreg(labels: Tensor, scores: Tensor) -> Tensor:
    """−Σ log p(label). ``labels`` int64 [N], ``scores`` [N, K] before the softmax."""
    return F.cross_entropy(scores, labels, reduction="sum")


def msm(labels: Tensor, scores: Tensor, size: int) -> Tensor:
    """−Σ log P(a random set of ``size`` classes contains the label), P(set) ∝ exp(sum of the set's scores).

    ``labels`` int64 [N], ``scores`` [N, K]. With ``size`` 1 it is :func:`logreg`. The sums over sets are elementary
    symmetric polynomials, computed in logarithms, class by class: sets of s members from those of s and s − 1.
    """
    scores = scores - scores.detach().amax(1, keepdim=True)
    label = labels[:, None]
    others = scores.scatter(1, label, _LOG_ZERO)  # sets with the label: size − 1 members of the other classes
    terms = torch.cat([scores, others])  # [2N, K]
    sums = terms.new_full((len(terms), size + 1), _LOG_ZERO)
    sums[:, 0] = 0
    for term in terms.unbind(1):
        longer = torch.logaddexp(sums[:, 1:], sums[:, :-1] + term[:, None])
        sums = torch.cat([sums[:, :1], longer], 1)
    all_sets, without = sums.chunk(2)
    return (all_sets[:, size] - scores.gather(1, label)[:, 0] - without[:, size - 1]).sum()


def crossent(targets: Tensor, scores: Tensor) -> Tensor:
    """−Σ t · log p over images and classes. ``targets`` [N, K], ``scores`` [N, K] before the softmax."""
    return -(targets * scores.log_softmax(1)).sum()


def crossent2(targets: Tensor, values: Tensor, logistic: bool) -> Tensor:
    """−Σ (t · log y + (1 − t) · log(1 − y)); ``values`` are y, or with ``logistic`` the input of y = sigmoid."""
    out: Tensor = _CrossEntropy.apply(targets, values, logistic)
    return out


class _CrossEntropy(torch.autograd.Function):
    """The gradient is y − t for the input of a logistic neuron, and −t/y + (1 − t)/(1 − y) for any other y.

    The 2012 code has the wrong sign before the second term of the latter.
    """

    @staticmethod
    def forward(ctx: Any, targets: Tensor, values: Tensor, logistic: bool) -> Tensor:
        y = values.sigmoid() if logistic else values
        ctx.save_for_backward(targets, y)
        ctx.logistic = logistic
        return -(targets * _log(y) + (1 - targets) * _log(1 - y)).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        t, y = ctx.saved_tensors
        gradient = y - t if ctx.logistic else (1 - t) / (1 - y) - t / y
        return None, gradient * grads[0], None


def _log(y: Tensor) -> Tensor:
    return torch.where(y > 0, y.clamp(min=torch.finfo(y.dtype).tiny).log(), y.new_full((), _MIN_LOG))


def sum2(values: Tensor) -> Tensor:
    """Σ x²."""
    return values.square().sum()


def rflickr(targets: Tensor, values: Tensor) -> Tensor:
    """Σ log(1 + (y − t)²)."""
    return torch.log1p((values - targets).square()).sum()


def gsum2(gate: Tensor, values: Tensor) -> Tensor:
    """Σ g · x²: ``gate`` [N, 1], ``values`` [N, D]."""
    return (gate * values.square()).sum()


def errors(labels: Tensor, probabilities: Tensor, k: int) -> float:
    """Number of images whose label is not among the top ``k``; ties count in fractions.

    ``labels`` int64 [N], ``probabilities`` [N, K]. If n classes share the label's probability, and m of them fit into
    the top k, the prediction counts as m/n correct (at k = 1: 1/n).
    """
    label_probability = probabilities.gather(1, labels[:, None])
    above = (probabilities > label_probability).sum(1)  # [N]
    equal = (probabilities == label_probability).sum(1)
    correct = ((k - above) / equal).clamp(0, 1)
    return float((1 - correct.double()).sum())


class Learned(nn.Module):
    """A layer with weights: one weight for each input that has its own matrix, and the biases.

    The parameter is ``weight`` with one input, ``weight0``, ``weight1``, … with several. A shared matrix is no
    parameter of this module; the network passes it in. ``connections0`` … are the channels that each group of a random
    sparse convolution reads.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        for i, matrix in enumerate(layer.matrices):
            if matrix.source is None:
                self.register_parameter(weight_name(layer, i), nn.Parameter(torch.zeros(self.shape(i))))
        self.bias = nn.Parameter(torch.zeros(layer.biases))

    def shape(self, index: int) -> tuple[int, ...]:
        """PyTorch's shape of the weights of an input."""
        raise NotImplementedError

    def from_file(self, index: int, matrix: Tensor) -> Tensor:
        """A matrix in the file's layout (rows × columns) -> the weights of an input in PyTorch's."""
        return matrix.T.reshape(self.shape(index))

    def draw(self, generator: torch.Generator | None) -> None:
        """Initialize as the file defines: weights initW times standard normal numbers, row by row; biases initB."""
        for i, matrix in enumerate(self.layer.matrices):
            if matrix.source is None:
                weight = self.get_parameter(weight_name(self.layer, i))
                drawn = torch.empty(matrix.rows, matrix.columns).normal_(0, 1, generator=generator)
                weight.copy_(self.from_file(i, drawn.mul_(matrix.std)))
        self.bias.fill_(self.layer.options["initB"])


def weight_name(layer: Layer, index: int) -> str:
    """Name of the parameter that holds the weights of an input."""
    return "weight" if len(layer.matrices) == 1 else f"weight{index}"


class _Filters(Learned):
    """Base of conv and local: geometry, groups, random sparse connections."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        for i, sparse in enumerate(layer.options["randSparse"]):
            if sparse and layer.matrices[i].source is None:
                count = layer.options["groups"][i] * layer.options["filterChannels"][i]
                start = torch.arange(count) % layer.options["channels"][i]
                self.register_buffer(f"connections{i}", start)

    def draw(self, generator: torch.Generator | None) -> None:
        for i in range(len(self.layer.inputs)):
            if f"connections{i}" in self._buffers:
                channels, connections = self.layer.options["channels"][i], self.get_buffer(f"connections{i}")
                runs = len(connections) // channels
                drawn = [torch.randperm(channels, generator=generator) for _ in range(runs)]
                connections.copy_(torch.cat(drawn))
        super().draw(generator)

    def window(self, index: int) -> Window:
        """Geometry of an input."""
        options = self.layer.options
        return Window(options["filterSize"][index], options["stride"][index], options["padding"][index])

    def _input(self, x: Tensor, index: int, connections: Tensor | None) -> Tensor:
        """The input as feature maps, with sparse channels gathered and zero padding: [N, C', S', S']."""
        options = self.layer.options
        side, window = options["sides"][index], self.window(index)
        x = as_feature_maps(x, options["channels"][index], side)
        if connections is not None:
            x = x[:, connections]
        before, after = window.padding, window.padding + window.overhang(side)
        return F.pad(x, (before, after, before, after)) if after else x


class Conv(_Filters):
    """Convolution. One bias per filter, or one for each filter and position."""

    def shape(self, index: int) -> tuple[int, ...]:
        options, matrix = self.layer.options, self.layer.matrices[index]
        kernel = options["filterSize"][index]
        return matrix.columns, options["filterChannels"][index], kernel, kernel

    def forward(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], lists: Sequence[Tensor | None]) -> Tensor:
        options, shared = self.layer.options, self.layer.options["sharedBiases"]
        out: Tensor | None = None
        for i, (x, weight, connections) in enumerate(zip(inputs, weights, lists, strict=True)):
            bias = self.bias if shared and i == 0 else None
            x = self._input(x, i, connections)
            part = F.conv2d(x, weight, bias, options["stride"][i], groups=options["groups"][i])
            out = part if out is None else out + part
        assert out is not None
        return out if shared else out + self.bias  # [N, F, M, M]


class Local(_Filters):
    """Locally connected layer: separate filters at each position."""

    def shape(self, index: int) -> tuple[int, ...]:
        positions, matrix = self.layer.side**2, self.layer.matrices[index]
        return positions, matrix.rows // positions, matrix.columns

    def from_file(self, index: int, matrix: Tensor) -> Tensor:
        return matrix.reshape(self.shape(index))

    def forward(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], lists: Sequence[Tensor | None]) -> Tensor:
        out: Tensor = self.bias[None]
        for i, (x, weight, connections) in enumerate(zip(inputs, weights, lists, strict=True)):
            window, groups = self.window(i), self.layer.options["groups"][i]
            columns = F.unfold(self._input(x, i, connections), window.kernel, stride=window.stride)
            columns = columns.view(columns.shape[0], groups, -1, columns.shape[2])  # [N, G, c·K², M²]
            filters = weight.view(*weight.shape[:2], groups, -1)  # [M², c·K², G, F/G]
            part = torch.einsum("ngkl,lkgf->ngfl", columns, filters)  # [N, G, F/G, M²]
            out = out + part.reshape(part.shape[0], *self.bias.shape)
        return out


class FullyConnected(Learned):
    """Fully connected layer."""

    def shape(self, index: int) -> tuple[int, ...]:
        return self.layer.matrices[index].columns, self.layer.matrices[index].rows

    def forward(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], lists: Sequence[Tensor | None]) -> Tensor:
        out = F.linear(inputs[0].flatten(1), weights[0], self.bias)
        for x, weight in zip(inputs[1:], weights[1:], strict=True):
            out = out + F.linear(x.flatten(1), weight)
        return out  # [N, D]


class TreeFullyConnected(FullyConnected):
    """One output per class; its weights are the sum of the rows [nodes, in] on the path from the root to the class."""

    paths: Tensor

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        paths = torch.zeros(layer.outputs, layer.matrices[0].columns)
        for node, classes in enumerate(layer.options["leaves"]):
            paths[classes, node] = 1
        self.register_buffer("paths", paths, persistent=False)

    def draw(self, generator: torch.Generator | None) -> None:
        super().draw(generator)
        self.get_parameter("weight")[self.layer.outputs :] = 0  # inner nodes start at 0

    def forward(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], lists: Sequence[Tensor | None]) -> Tensor:
        return F.linear(inputs[0].flatten(1), self.paths @ weights[0], self.bias)


def is_recorded() -> bool:
    """Whether an exporter records the operations (torch.jit.trace, torch.export, ONNX): it needs no gradients."""
    return backend.is_jit_tracing() or torch.compiler.is_exporting()


def as_feature_maps(x: Tensor, channels: int, side: int) -> Tensor:
    """Features, or feature maps of another shape -> [N, channels, side, side]."""
    return x if x.shape[1:] == (channels, side, side) else x.reshape(x.shape[0], channels, side, side)


class ScaleGradient(torch.autograd.Function):
    """The identity with a scaled gradient: each user of a shared matrix has its own learning rate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


KINDS: dict[str, type[Learned]] = {
    "conv": Conv,
    "local": Local,
    "fc": FullyConnected,
    "treefc": TreeFullyConnected,
}


LOWEST = -2e38  # initial value of a maximum in the 2012 kernel


class Frame:
    """Windows of ``size`` pixels over ``side`` pixels: window o covers [start + o·stride, + size), clipped."""

    def __init__(self, side: int, size: int, stride: int, start: int, out: int) -> None:
        self.size, self.stride, self.out = size, stride, out
        end = start + (out - 1) * stride + size
        self.margins = (-start, end - side)  # pixels to add (to cut off, if negative) before and after

    def pad(self, feature_maps: Tensor, value: float) -> Tensor:
        """Exactly the area that the windows cover."""
        before, after = self.margins
        return F.pad(feature_maps, (before, after, before, after), value=value)

    def pixels(self, padded: Tensor) -> Iterator[Tensor]:
        """The k-th pixel of all windows, for every k in raster order: [N, C, O, O] each."""
        span = self.stride * (self.out - 1) + 1
        for y in range(self.size):
            for x in range(self.size):
                yield padded[:, :, y : y + span : self.stride, x : x + span : self.stride]

    def unpad(self, padded: Tensor, side: int) -> Tensor:
        """The inverse of :meth:`pad` for a gradient: pixels that no window covers get 0."""
        before, after = self.margins
        return F.pad(padded, (-before, -after, -before, -after))


class Selected(torch.autograd.Function):
    """Returns ``chosen``, one pixel of each window; the gradient goes to every pixel of the window that equals it."""

    @staticmethod
    def forward(ctx: Any, feature_maps: Tensor, chosen: Tensor, frame: Frame, outside: float) -> Tensor:
        ctx.save_for_backward(feature_maps, chosen)
        ctx.frame, ctx.outside = frame, outside
        return chosen.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        feature_maps, chosen = ctx.saved_tensors
        frame: Frame = ctx.frame
        padded = frame.pad(feature_maps, ctx.outside)
        gradient = torch.zeros_like(padded)
        for pixel, into in zip(frame.pixels(padded), frame.pixels(gradient), strict=True):
            into.add_((pixel == chosen) * grads[0])
        return frame.unpad(gradient, feature_maps.shape[-1]), None, None, None


class Pool(nn.Module):
    """[N, C, S, S] -> [N, C, O, O]: ``max``, ``maxabs``, ``avg`` (over the pixels that exist) or ``rand``.

    ``rand`` draws one pixel of each window in every pass. No public source defines its distribution; here all pixels of
    a window are equally likely. In evaluation all images share one fixed draw, so that a prediction does not depend on
    the batch.
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
        feature_maps = as_feature_maps(input, self.channels, self.side)
        if self.kind == "avg":
            size = self.frame.size
            if is_recorded():  # ONNX has no divisor
                return F.avg_pool2d(self.frame.pad(feature_maps, 0.0), size, self.frame.stride) * (
                    size**2 / self.counts
                )
            return (
                F.avg_pool2d(self.frame.pad(feature_maps, 0.0), size, self.frame.stride, divisor_override=1)
                / self.counts
            )
        choose = {"max": self._max, "maxabs": self._maxabs, "rand": self._rand}[self.kind]
        if is_recorded():
            return choose(feature_maps)
        chosen: Tensor = choose(feature_maps.detach())
        outside = LOWEST if self.kind == "max" else float("nan")  # NaN equals nothing
        out: Tensor = Selected.apply(feature_maps, chosen, self.frame, outside)
        return out

    def _max(self, feature_maps: Tensor) -> Tensor:
        padded = self.frame.pad(feature_maps, LOWEST)
        return F.max_pool2d(padded, self.frame.size, self.frame.stride)

    def _maxabs(self, feature_maps: Tensor) -> Tensor:
        chosen = feature_maps.new_zeros(*feature_maps.shape[:2], self.frame.out, self.frame.out)
        for pixel in self.frame.pixels(self.frame.pad(feature_maps, 0.0)):
            chosen = torch.where(pixel.abs() >= chosen.abs(), pixel, chosen)
        return chosen

    def _rand(self, feature_maps: Tensor) -> Tensor:
        """Reservoir sampling in raster order: the k-th pixel that exists replaces the choice with probability 1/k."""
        shape = (len(feature_maps) if self.training else 1, self.channels, self.frame.out, self.frame.out)
        generator = self.generator if self.training else torch.Generator(feature_maps.device).manual_seed(0)
        inside = self.frame.pad(torch.ones_like(feature_maps[:1, :1]), 0.0)
        chosen, count = feature_maps.new_zeros(len(feature_maps), *shape[1:]), torch.zeros_like(self.counts)
        for pixel, exists in zip(
            self.frame.pixels(self.frame.pad(feature_maps, 0.0)), self.frame.pixels(inside), strict=True
        ):
            count = count + exists
            with unrecorded(not self.training):
                drawn = torch.empty(shape, dtype=feature_maps.dtype, device=feature_maps.device)
                drawn.uniform_(generator=generator)
            chosen = torch.where((drawn * count < 1) & (exists > 0), pixel, chosen)
        return chosen


class Neuron(nn.Module):
    """An activation function by its name in the file. Derivatives: relu 0 at 0, abs −1 at 0, brelu 0 at its limit."""

    def __init__(self, name: str, numbers: Sequence[float]) -> None:
        super().__init__()
        self.name, self.numbers = name, tuple(numbers)
        self.generator: torch.Generator | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.name == "nrelu":
            return self._noisy(input)
        return _NEURONS[self.name](input, *self.numbers)

    def _noisy(self, x: Tensor) -> Tensor:
        """relu(relu(x) + n), n normal with standard deviation relu(x); in evaluation one fixed draw for all images."""
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
    """If ``constant``, torch.jit.trace records the values computed inside as constants, not as new draws."""
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
    # masked_fill, not clamp(max=4): the gradient of clamp at 4 is 0 or 1, depending on the loop that PyTorch runs.
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


class UnscaledDropout(Dropout):
    """Dropout of the files (``hs``): keeps values unscaled with probability ``keep``; × ``keep`` in evaluation.

    With ``enable`` false, × ``keep`` in training too.
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
        terms = [c * x for c, x in zip(self.coefficients, same_shape(inputs), strict=True)]
        return torch.stack(terms).sum(0)


class Maximum(nn.Module):
    """Elementwise maximum of the inputs; the gradient goes to every input that equals it."""

    def forward(self, *inputs: Tensor) -> Tensor:
        if is_recorded():
            return torch.stack(same_shape(inputs)).amax(0)
        out: Tensor = _Maximum.apply(*same_shape(inputs))
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
    """Concatenates features; feature maps of one size stay feature maps: [N, ΣC, S, S]."""

    def __init__(self, keep_shape: bool) -> None:
        super().__init__()
        self.keep_shape = keep_shape

    def forward(self, *inputs: Tensor) -> Tensor:
        same_size = self.keep_shape and len({x.shape[2:] for x in inputs}) == 1
        return torch.cat(list(inputs) if same_size else [x.flatten(1) for x in inputs], 1)


class Softmax(nn.Module):
    """Probabilities over all features of an image: [N, D]."""

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(1).softmax(1)


def same_shape(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs, which have the same number of features, in one shape."""
    if all(x.shape[1:] == inputs[0].shape[1:] for x in inputs):
        return list(inputs)
    return [x.flatten(1) for x in inputs]
