"""The layers of a cuda-convnet checkpoint as a graph: what each of them is, and what it reads.

Checkpoints of 2012 hold layers by name in no order, those of 2011 a list in which inputs are numbers. ReLUs, pools,
norms and dropout are layers of their own; neurons, too.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import BundleError
from alexnet.weights.fitting import Step
from alexnet.weights.naming import readable
from alexnet.weights.pickles import Array

LEARNED = {"conv": "convolution", "fc": "fully connected", "local": "local"}
_MOST_LAYERS = 500
_SCALED = ("hs", "dropout2")  # outputs times `keep` in the test; cuda-convnet2's `dropout` scales in training, as ours


@dataclass
class Input:
    """One input of a learned layer: the learned layer it comes from, what lies between, and what it is scaled by."""

    source: str  # name of a learned layer, or of the data
    between: list[Step]
    keep: float


class Checkpoint:
    """The layers of a checkpoint by name, and questions to them. Raises :class:`BundleError`."""

    def __init__(self, content: Any, file: str) -> None:
        self.file = file
        state = content.get("model_state") if isinstance(content, dict) else None
        layers: Any = state.get("layers") if isinstance(state, dict) else None
        self.numbered: list[Any] = []
        if isinstance(layers, list):  # 2011: in order, and inputs are numbers
            self.numbered = [layer.get("name") if isinstance(layer, dict) else None for layer in layers]
            layers = {str(name): layer for name, layer in zip(self.numbered, layers, strict=True)}
        if not isinstance(layers, dict) or not all(
            isinstance(name, str) and name == readable(name) and isinstance(layer, dict)
            for name, layer in layers.items()
        ):
            raise BundleError(f"{file} has no model_state with layers", "a checkpoint of cuda-convnet")
        self.layers: dict[str, dict[Any, Any]] = layers
        if len(self.layers) > _MOST_LAYERS:
            raise BundleError(f"{file} has {len(self.layers)} layers", f"at most {_MOST_LAYERS}")
        self.learned = [name for name in self.layers if self.get(name, "type", str) in LEARNED]

    def get(self, name: str, key: str, kind: type | tuple[type, ...]) -> Any:
        found = self.layers[name].get(key)
        if not isinstance(found, kind) or isinstance(found, bool):
            raise BundleError(f"{self.file}: layer {name} has no {key}", "a whole checkpoint of cuda-convnet")
        return found

    def number(self, name: str, key: str, default: float | None = None) -> float:
        """A number, or the first of a list of them."""
        found = self.layers[name].get(key, default)
        found = found[0] if isinstance(found, list) and found else found
        if not isinstance(found, int | float) or not abs(found) <= 1e9:  # nor what is no number
            raise BundleError(f"{self.file}: layer {name} has no number {key}", "a whole checkpoint of cuda-convnet")
        return float(found)

    def inputs(self, name: str) -> list[str]:
        found = self.get(name, "inputs", list)
        if self.numbered:
            found = [self.numbered[i] if isinstance(i, int) and 0 <= i < len(self.numbered) else i for i in found]
        for other in found:
            if not isinstance(other, str) or other not in self.layers:
                raise BundleError(
                    f"{self.file}: layer {name} reads {readable(other)[:50]!r}", "a layer of the checkpoint"
                )
        return list(found)

    def array(self, name: str, key: str, at: int | None = None) -> NDArray[Any]:
        found = self.layers[name].get(key)
        if at is not None and isinstance(found, list) and at < len(found):
            found = found[at]
        if not isinstance(found, Array) or not isinstance(found.values, np.ndarray) or found.values.ndim != 2:
            raise BundleError(f"{self.file}: layer {name} has no {key}", "a matrix an input")
        return found.values

    def step(self, name: str, towers: int) -> Step:
        """What a layer that does not learn does, in the words of :class:`Step`."""
        kind = self.get(name, "type", str)
        if kind == "neuron":
            neuron = self.get(name, "neuron", dict).get("type")
            return Step(readable(neuron)[:20], name)
        if kind == "pool":
            pool = {"max": "max pool", "avg": "average pool"}.get(self.get(name, "pool", str), "other pool")
            return Step(pool, name, {"kernel": self.number(name, "sizeX"), "stride": self.number(name, "stride")})
        if kind in ("cmrnorm", "rnorm"):
            size = self.number(name, "size")
            scale = self.number(name, "scale") * (size if kind == "cmrnorm" else size**2)  # stored divided
            numbers = {"size": size, "alpha": scale, "beta": self.number(name, "pow")}
            numbers["k"] = self.number(name, "minDiv", 1.0)
            if kind == "rnorm":
                return Step("spatial norm", name, numbers)
            return Step("norm", name, numbers | {"towers": towers})
        return Step("dropout" if kind in (*_SCALED, "dropout") else readable(kind), name)

    def trace(self, name: str, towers: int = 1) -> Input:
        """From an input back to the learned layer, or the data, that it comes from."""
        between: list[Step] = []
        keep, reader = 1.0, name
        while (kind := self.get(name, "type", str)) not in LEARNED and kind != "data":
            between.insert(0, self.step(name, towers))
            if kind in _SCALED:
                keep *= self.number(name, "keep")
            inputs = self.inputs(name)
            if len(inputs) != 1 or len(between) > _MOST_LAYERS:
                what = "reads itself" if len(inputs) == 1 else f"reads {len(inputs)} layers"
                raise BundleError(
                    f"{self.file}: layer {name}, {readable(kind)}, {what}",
                    "one input, of another layer",
                    f"{reader} can not be imported",
                )
            name = inputs[0]
        return Input(name, between, keep)
