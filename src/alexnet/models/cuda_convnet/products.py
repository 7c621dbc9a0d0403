"""The layers with weights as modules: conv, local, fc, treefc, each with one or more inputs.

Inputs and outputs are maps [N, C, S, S] or features [N, D]; an input's features are counted (c·S + y)·S + x, as
PyTorch flattens maps. Weights lie as PyTorch has them: conv [F, c, K, K], fc [out, in], local [M², c·K², F].
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.models.cuda_convnet.definition import Layer
from alexnet.models.layers import Window


class Learned(nn.Module):
    """Parameters of a layer: a weight for each input that has its own matrix, and the biases.

    ``weight`` with one input, ``weight0``, ``weight1``, … with several. A shared matrix is no parameter here: the
    network passes it in. ``connections0`` … are the channels that each group of a random sparse convolution reads.
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
        """Start values as in the file: initW times a standard normal number each, rows by columns; biases initB."""
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
    """What conv and local share: geometry, groups, random sparse connections."""

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
        """Maps as this layer counts them, channels gathered, zeros around: [N, C', S', S']."""
        options = self.layer.options
        side, window = options["sides"][index], self.window(index)
        x = as_maps(x, options["channels"][index], side)
        if connections is not None:
            x = x[:, connections]
        near, far = window.padding, window.padding + window.overhang(side)
        return F.pad(x, (near, far, near, far)) if far else x


class Conv(_Filters):
    """Shared filters. One bias a filter, or one for each filter and position."""

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
    """Own filters at each position."""

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
            columns = columns.view(len(columns), groups, -1, columns.shape[2])  # [N, G, c·K², M²]
            filters = weight.view(*weight.shape[:2], groups, -1)  # [M², c·K², G, F/G]
            part = torch.einsum("ngkl,lkgf->ngfl", columns, filters)  # [N, G, F/G, M²]
            out = out + part.reshape(len(part), *self.bias.shape)
        return out


class FullyConnected(Learned):
    """All inputs to all outputs."""

    def shape(self, index: int) -> tuple[int, ...]:
        return self.layer.matrices[index].columns, self.layer.matrices[index].rows

    def forward(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], lists: Sequence[Tensor | None]) -> Tensor:
        out = F.linear(inputs[0].flatten(1), weights[0], self.bias)
        for x, weight in zip(inputs[1:], weights[1:], strict=True):
            out = out + F.linear(x.flatten(1), weight)
        return out  # [N, D]


class TreeFullyConnected(FullyConnected):
    """One output a class; a class's weights are the sum of the rows [nodes, in] on the way from the root to it."""

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


def as_maps(x: Tensor, channels: int, side: int) -> Tensor:
    """Features or maps counted otherwise -> [N, channels, side, side]."""
    return x if x.shape[1:] == (channels, side, side) else x.reshape(len(x), channels, side, side)


class ScaleGradient(torch.autograd.Function):
    """The identity, with its gradient times a number: a user of a shared matrix learns at its own rate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


KINDS: dict[str, type[Learned]] = {
    "conv": Conv, "local": Local, "fc": FullyConnected, "treefc": TreeFullyConnected,
}  # fmt: skip
