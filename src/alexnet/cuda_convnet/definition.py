"""A checked network of a layer file, as plain data: which layers, of which sizes, with which matrices."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

LEARNED = ("conv", "local", "fc", "treefc")


class Data(NamedTuple):
    """What the file leaves to the data: size of the images, number of classes, tree of the classes.

    ``classes`` None: as many as the file's own last layer tells apart. ``tree`` is for ``treefc`` alone.
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

    ``rows`` × ``columns`` is their shape in the file's own layout. ``source`` names (layer, input) whose matrix it is,
    where it is not its own.
    """

    rows: int
    columns: int
    std: float  # initW
    source: tuple[str, int] | None


@dataclass(frozen=True)
class Layer:
    """One layer. ``side`` is the side of its square maps, pixels; 0 where its output is no image.

    ``options`` are the checked values of its section, per-input ones as lists, under the file's own keys.
    """

    name: str
    type: str
    line: int
    inputs: tuple[str, ...]
    outputs: int
    gpu: int
    side: int = 0
    formula: str = ""  # how the output size comes about, worked out
    matrices: tuple[Matrix, ...] = ()
    biases: tuple[int, ...] = ()  # shape
    options: Mapping[str, Any] = field(default_factory=dict)
    learns: bool = False  # has weights, or a layer below it has

    @property
    def channels(self) -> int:
        """Maps of the output; all of it where it is no image."""
        return self.outputs // self.side**2 if self.side else self.outputs

    @property
    def parameters(self) -> int:
        """Learned numbers of its own: shared matrices count with their owner."""
        own = sum(m.rows * m.columns for m in self.matrices if m.source is None)
        return own + (math.prod(self.biases) if self.biases else 0)

    @property
    def is_cost(self) -> bool:
        return self.type.startswith("cost.")


@dataclass(frozen=True)
class Definition:
    """All layers of a file in its order, neurons as layers of their own behind those that have them.

    ``notes`` say what was read leniently or stands on no public source.
    """

    file: str
    layers: Mapping[str, Layer]
    data: Data  # with ``classes`` known
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Learned numbers."""
        return sum(layer.parameters for layer in self.layers.values())

    @property
    def costs(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers.values() if layer.is_cost)

    def readers(self, name: str) -> list[Layer]:
        """The layers that read the output of ``name``."""
        return [layer for layer in self.layers.values() if name in layer.inputs]


@dataclass
class Parts:
    """What the check of a type finds out about a layer, beyond what all layers share."""

    outputs: int
    side: int = 0
    formula: str = ""
    matrices: list[Matrix] = field(default_factory=list)
    biases: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
