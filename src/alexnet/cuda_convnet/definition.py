"""A checked network of a layer file, as plain data: which layers, of which sizes, with which matrices."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

LEARNED = ("conv", "local", "fc", "treefc")


class Data(NamedTuple):
    """What the data defines: size of the images, number of classes, tree of the classes.

    ``classes`` None: the number of outputs of the file's last layer. ``tree`` is for ``treefc`` only.
    """

    image_size: int = 224
    channels: int = 3
    classes: int | None = None
    tree: "Tree | None" = None


class Tree(NamedTuple):
    """The classes as a tree: ``children[i]`` are the children of node i, leaves are nodes 0 … classes − 1."""

    children: Sequence[Sequence[int]]
    root: int


class Matrix(NamedTuple):
    """The weights of one input of a layer.

    ``rows`` × ``columns`` is their shape in the file's layout. ``source`` is the (layer, input) that owns a shared
    matrix, None for its own matrix.
    """

    rows: int
    columns: int
    std: float  # initW
    source: tuple[str, int] | None


@dataclass(frozen=True)
class Layer:
    """One layer. ``side`` is the size of its square feature maps, pixels; 0 if its output is not an image.

    ``options`` are the checked values of its section under the file's keys; values per input are lists.
    """

    name: str
    type: str
    line: int
    inputs: tuple[str, ...]
    outputs: int
    gpu: int
    side: int = 0
    formula: str = ""  # the output size as a worked formula
    matrices: tuple[Matrix, ...] = ()
    biases: tuple[int, ...] = ()  # shape
    options: Mapping[str, Any] = field(default_factory=dict)
    learns: bool = False  # has weights, or depends on a layer with weights

    @property
    def channels(self) -> int:
        """Feature maps of the output; all outputs if it is not an image."""
        return self.outputs // self.side**2 if self.side else self.outputs

    @property
    def parameters(self) -> int:
        """Number of its own parameters; shared matrices count for their owner."""
        own = sum(m.rows * m.columns for m in self.matrices if m.source is None)
        return own + (math.prod(self.biases) if self.biases else 0)

    @property
    def is_cost(self) -> bool:
        return self.type.startswith("cost.")


@dataclass(frozen=True)
class Definition:
    """All layers of a file in its order; a neuron is a separate layer after the layer that has it.

    ``notes`` list deviations that were accepted, and interpretations without a public source.
    """

    file: str
    layers: Mapping[str, Layer]
    data: Data  # with ``classes`` known
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(layer.parameters for layer in self.layers.values())

    @property
    def costs(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers.values() if layer.is_cost)

    def readers(self, name: str) -> list[Layer]:
        """The layers that read the output of ``name``."""
        return [layer for layer in self.layers.values() if name in layer.inputs]


@dataclass
class Parts:
    """The properties of a layer that depend on its type."""

    outputs: int
    side: int = 0
    formula: str = ""
    matrices: list[Matrix] = field(default_factory=list)
    biases: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
