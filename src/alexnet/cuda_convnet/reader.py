"""A layer file -> :class:`Definition`: layers are checked in the file's order, sizes inferred, neurons separated."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from alexnet.cuda_convnet import layer_types
from alexnet.cuda_convnet.grammar import LEARNED, Data, Definition, Layer, Parts, Section, parse
from alexnet.cuda_convnet.layer_types import Draft
from alexnet.errors import ModelError

MAX_LAYERS = 1000  # neurons not counted; the longest published file has under 60
MAX_VALUES = 1 << 31  # parameters of a network, and outputs of a layer: 8 GiB of float32
GPUS = 64
_TYPES: dict[str, Callable[[Draft], Parts]] = layer_types.WEIGHTED_TYPES | layer_types.WEIGHTLESS_TYPES
_TWO = ("cost.logreg", "cost.crossent", "cost.crossent2", "cost.rflickr", "cost.msm", "cost.gsum2")
_ANY = ("conv", "local", "fc", "concat", "eltsum", "eltmax")
_INDICATORS = ("cost.crossent", "cost.crossent2", "cost.rflickr")  # costs that compare with a row for each class
_ELEMENTS = ("eltsum", "eltmax")  # as wide as each of their inputs, labels included


def read(text: str, data: Data, file: str = "layers.cfg") -> Definition:
    """The network that ``text`` defines over ``data``. Raises :class:`ModelError` with file, line and layer."""
    sections = parse(text, file)
    if not sections:
        raise ModelError(f"{file} defines no layers", "a layer file with [name] and type=… for each layer")
    if len(sections) > MAX_LAYERS:
        raise ModelError(f"{file} defines {len(sections)} layers", f"at most {MAX_LAYERS}")
    if data.classes is None:
        data = data._replace(classes=_classes(sections, data, file))
    reading = _Reading(sections, data, file)
    for section in sections.values():
        reading.add(section)
    reading.check_readers()
    definition = Definition(file, reading.layers, data, tuple(reading.notes))
    if definition.parameters > MAX_VALUES:
        raise ModelError(f"{file} defines {definition.parameters:,} learned numbers", f"at most {MAX_VALUES:,}")
    return definition


class _Reading:
    """The layers read so far; ``output_names`` maps a layer to the layer that its readers read (its neuron, if any)."""

    def __init__(self, sections: dict[str, Section], data: Data, file: str) -> None:
        self.sections, self.data, self.file = sections, data, file
        self.layers: dict[str, Layer] = {}
        self.output_names: dict[str, str] = {}
        self.notes: list[str] = []

    def add(self, section: Section) -> None:
        """Check one section and append its layer, and its neuron's."""
        kind = section.text("type")
        if kind == "data":
            layer = self._data_layer(section)
        elif kind in _TYPES:
            layer = self._layer(section, kind)
        else:
            raise section.bad("type", "one of data, " + ", ".join(_TYPES))
        if layer.outputs > MAX_VALUES:
            raise section.wrong(f"{layer.outputs:,} outputs", f"at most {MAX_VALUES:,}")
        self.layers[section.name], self.output_names[section.name] = layer, section.name
        if section.has("neuron") and kind not in ("data", "neuron") and not layer.is_cost:
            self._neuron(section, layer)

    def check_readers(self) -> None:
        """Every layer but a cost must be read by another; a network has a cost."""
        read = {name for layer in self.layers.values() for name in layer.inputs}
        for layer in self.layers.values():
            if not layer.is_cost and layer.name not in read:
                section = self.sections.get(layer.name, self.sections.get(layer.inputs[0] if layer.inputs else ""))
                assert section is not None
                raise section.wrong("no layer reads it", "read by another layer", "take it out or use it")

    def _data_layer(self, section: Section) -> Layer:
        index = section.integer("dataIdx", least=0)
        if index > 2:
            raise section.bad("dataIdx", "0 (pixels), 1 (class) or 2 (one row for each class)")
        side = self.data.image_size if index == 0 else 0
        outputs = self.data.channels * side**2 if index == 0 else 1
        if index == 2 or (index == 1 and self._indicators(section.name)):
            outputs = self._known_classes(section)
            index = 2
        formula = f"{self.data.channels}·{side}·{side}" if index == 0 else ""
        return Layer(section.name, "data", section.line, (), outputs, -1, side, formula, options={"dataIdx": index})

    def _indicators(self, name: str) -> bool:
        """Whether data matrix 1 is read as indicators of tags, with one row per class, as in the Flickr networks.

        Its readers are costs that compare with indicators, or eltsum and eltmax, which are as wide as their inputs.
        """
        kinds = self._kinds_of_readers.get(name, set())
        return bool(kinds) and kinds <= {*_INDICATORS, *_ELEMENTS}

    @cached_property
    def _kinds_of_readers(self) -> dict[str, set[str]]:
        """The types of the sections that read each name."""
        kinds: defaultdict[str, set[str]] = defaultdict(set)
        for section in self.sections.values():
            for name in section.words("inputs") if section.has("inputs") else []:
                kinds[name].add(section.text("type", ""))
        return kinds

    def _known_classes(self, section: Section) -> int:
        if self.data.classes is None:
            raise section.wrong("the number of classes cannot be told from the file", "", "give --num-classes")
        return self.data.classes

    def _layer(self, section: Section, kind: str) -> Layer:
        inputs = self._inputs(section, kind)
        gpu = self._gpu(section, inputs)
        draft = Draft(section, kind, inputs, self.layers, self.data, gpu)
        parts = _TYPES[kind](draft)
        self.notes += draft.notes
        learns = kind in LEARNED or any(values.learns for values in inputs)
        return Layer(
            section.name,
            kind,
            section.line,
            tuple(values.name for values in inputs),
            parts.outputs,
            gpu,
            parts.side,
            parts.formula,
            tuple(parts.matrices),
            parts.biases,
            parts.options,
            learns,
        )

    def _inputs(self, section: Section, kind: str) -> list[Layer]:
        names = section.words("inputs")
        least, most = (2, 2) if kind in _TWO else (2 if kind == "eltmax" else 1, MAX_LAYERS if kind in _ANY else 1)
        if not least <= len(names) <= most:
            count = str(least) if least == most else f"at least {least}"
            raise section.bad("inputs", f"{count} layer{'s' * (count != '1')} for type {kind}")
        return [self._input(section, name) for name in names]

    def output(self, section: Section, name: str) -> int:
        """Outputs of a layer that ``section`` reads."""
        return self._input(section, name).outputs

    def _input(self, section: Section, name: str) -> Layer:
        if name in self.output_names:
            layer = self.layers[self.output_names[name]]
            if layer.is_cost:
                raise section.bad("inputs", f"layers that are no costs: {name!r} is one")
            return layer
        if name in self.sections:
            cycle = self._cycle(section.name, name)
            if cycle:
                raise section.bad("inputs", "free of cycles: " + " → ".join(cycle))
            must = f"layers defined earlier: {name!r} is in line {self.sections[name].line}"
            raise section.bad("inputs", must)
        raise section.bad("inputs", f"names of layers: there is none called {name!r}")

    def _cycle(self, start: str, first: str) -> list[str]:
        """A path from ``first`` through its inputs back to ``start``, in the order of the data flow; empty if none."""
        successor: dict[str, str] = {first: start}
        todo = [first]
        while todo:
            name = todo.pop()
            if name == start:
                break
            section = self.sections[name]
            for below in section.words("inputs") if section.has("inputs") else []:
                if below in self.sections and below not in successor:
                    successor[below] = name
                    todo.append(below)
        if start not in successor:
            return []
        path = [start]
        while len(path) == 1 or path[-1] != start:
            path.append(successor[path[-1]])
        return path

    def _gpu(self, section: Section, inputs: list[Layer]) -> int:
        if section.has("gpu"):
            gpu = section.integer("gpu", least=0)
            if gpu >= GPUS:
                raise section.bad("gpu", f"from 0 to {GPUS - 1}")
            return gpu
        if inputs[0].gpu < 0:  # the 2012 parser refuses this; six published files have it
            self.notes.append(f"layer {section.name!r} (line {section.line}): gpu is missing above data, taken as 0")
        return max(inputs[0].gpu, 0)

    def _neuron(self, section: Section, layer: Layer) -> None:
        """Add the neuron as a layer, which all readers of the section read instead."""
        options = layer_types.neuron_options(section)
        endings = ("", *(f".{i}" for i in range(1, 100)))
        taken = self.sections.keys() | self.layers.keys()
        name = next((n for n in (f"{layer.name}_neuron{end}" for end in endings) if n not in taken), "")
        if not name:
            raise section.wrong("its neuron finds no free name", "", f"rename the layers {layer.name}_neuron…")
        self.output_names[layer.name] = name
        line = section.values["neuron"].line if "neuron" in section.values else section.line
        self.layers[name] = replace(
            layer,
            name=name,
            type="neuron",
            line=line,
            inputs=(layer.name,),
            formula="",
            matrices=(),
            biases=(),
            options=options,
        )


def _classes(sections: dict[str, Section], data: Data, file: str) -> int | None:
    """Outputs of the first layer that a file compares with labels; None if there is none.

    All layers that do not depend on labels are read first, so that their sizes are known.
    """
    if data.tree is not None:
        return sum(not children for children in data.tree.children)
    reading, labeled = _Reading(sections, data, file), set[str]()
    for section in sections.values():
        kind = section.text("type")
        inputs = section.words("inputs") if section.has("inputs") and kind != "data" else []
        if kind == "data" and section.integer("dataIdx", least=0):
            labeled.add(section.name)
        elif labeled.isdisjoint(inputs):
            reading.add(section)
        else:
            labeled.add(section.name)
            compared = [name for name in inputs if name not in labeled]
            if compared and (kind in _TWO or kind in _ELEMENTS) and kind != "cost.gsum2":
                return reading.output(section, compared[-1])
    return None
