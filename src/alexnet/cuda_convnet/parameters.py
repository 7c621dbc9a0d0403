"""A parameter file -> plain data: learning rate, momentum, weight decay, limits and schedule of each matrix."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from alexnet.cuda_convnet.grammar import LEARNED, Definition, Layer, Section, parse
from alexnet.errors import ModelError

NORMS = ("cmrnorm", "rnorm", "cnorm")
_SCHEDULE = re.compile(r"([a-z]+)(?:\[(.*)\])?", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_NAMES = {
    "linear": ("tgtFactor", "noiseStdev"),
    "exp": ("tgtFactor", "noiseStdev"),
    "dexp": ("tgtFactor", "noiseStdev", "numSteps"),
    "jdexp": ("tgtFactor", "noiseStdev", "numSteps"),
}


class Schedule(NamedTuple):
    """How a learning rate changes over a run, to base / target; ``noise`` and ``steps`` as in the file."""

    kind: str = "default"
    target: float = 1.0
    noise: float = 0.0
    steps: int = 1

    def rate(self, base: float, progress: float) -> float:
        """The rate at ``progress`` (0 … 1), before noise."""
        if self.kind == "linear":
            return base * (1 - progress) + progress * base / self.target
        if self.kind == "exp":
            # Bases 0 and 1 are constant: the 2012 code raises the base to a power instead of multiplying it.
            return base if base in (0, 1) else base * self.target**-progress
        if self.kind in ("dexp", "jdexp"):
            return self._in_steps(base, progress)
        return base

    def _in_steps(self, base: float, progress: float) -> float:
        # All but the last by the 2012 code's formula of `exp`, so a base of 1 stays until the last step; that one is
        # base / target, and with numSteps=1 the only one.
        n, between = self.steps, Schedule("exp", self.target)
        rates = [*(between.rate(base, i / (n - 1)) for i in range(n - 1)), base / self.target]
        step = next((i for i in range(n) if progress <= (i + 1) / n), n - 1)
        later = progress > (step + 0.5) / n
        if self.kind == "jdexp" and step > 0 and later and 0.2 < progress < 0.9:
            return math.sqrt(rates[step] * rates[step - 1])
        return rates[step]


class Rates(NamedTuple):
    """Hyperparameters of one matrix, or of the biases of a layer. A ``base`` of 0 freezes it."""

    base: float  # epsW or epsB
    momentum: float
    schedule: Schedule = Schedule()
    decay: float = 0.0  # wc
    ball: float = 0.0  # wball; 0: no limit
    norm_min: float = 0.0
    norm_max: float = 0.0  # 0: no limit
    super_eps: float = 0.0  # above 0: the rule with running averages


@dataclass(frozen=True)
class LayerParameters:
    """The parameter file's values for one layer."""

    weights: tuple[Rates, ...] = ()
    bias: Rates | None = None
    scale: float = 0.0
    pow: float = 0.0
    min_div: float = 1.0
    coeff: float = 0.0
    topk: int = 1
    set_size: int = 1
    enable: bool = False
    do_max: bool = False


@dataclass(frozen=True)
class Parameters:
    """The parameter file of a definition. ``notes`` say what was ignored or stands on no public source."""

    file: str
    layers: Mapping[str, LayerParameters]
    notes: tuple[str, ...] = ()


def read(text: str, definition: Definition, file: str = "layer-params.cfg") -> Parameters:
    """Parameters of all layers of ``definition`` that need some. Raises :class:`ModelError` with file and line."""
    sections, notes = parse(text, file), list[str]()
    results = {
        layer.name: _layer(layer, _section(layer, sections, file), definition, notes)
        for layer in definition.layers.values()
        if _needs(layer)
    }
    ignored = [name for name in sections if name not in definition.layers]
    if ignored:
        notes.append(f"sections for layers that do not exist, ignored: {', '.join(ignored[:8])}")
    return Parameters(file, results, tuple(notes))


def _needs(layer: Layer) -> bool:
    if layer.type in NORMS:
        return "scale" not in layer.options
    rand = layer.type == "pool" and layer.options["pool"] == "rand"
    return layer.type in LEARNED or layer.type == "hs" or layer.is_cost or rand


def _section(layer: Layer, sections: Mapping[str, Section], file: str) -> Section:
    if layer.name not in sections:
        what = f"{file} has no section for layer {layer.name!r} ({layer.type}, line {layer.line} of the layer file)"
        raise ModelError(what, "one section for each layer that learns, drops out, normalizes or costs")
    return sections[layer.name]


def _layer(layer: Layer, section: Section, definition: Definition, notes: list[str]) -> LayerParameters:
    if layer.type in LEARNED:
        return _learned(layer, section, notes)
    if layer.type in NORMS:
        divisor = section.number("minDiv", 1.0) if layer.type == "cmrnorm" else 1.0
        return LayerParameters(scale=section.number("scale"), pow=section.number("pow"), min_div=divisor)
    if layer.type == "hs":
        return LayerParameters(enable=section.boolean("enable"))
    if layer.type == "pool":
        return LayerParameters(do_max=section.boolean("doMax", False))
    topk = section.integer("topk", 1, least=1) if layer.type == "cost.logreg" else 1
    if layer.type == "cost.logreg" and topk > definition.layers[layer.inputs[1]].outputs:
        raise section.bad("topk", f"at most {definition.layers[layer.inputs[1]].outputs}, the classes")
    set_size = _set_size(section, definition.layers[layer.inputs[1]].outputs) if layer.type == "cost.msm" else 1
    return LayerParameters(coeff=section.number("coeff"), topk=topk, set_size=set_size)


def _set_size(section: Section, classes: int) -> int:
    size, threads = section.integer("setSize", least=1), section.integer("threads", least=1)
    if size >= classes:
        raise section.bad("setSize", f"from 1 to {classes - 1}, below the number of classes")
    if threads > 32:
        raise section.bad("threads", "from 1 to 32")
    return size


def _learned(layer: Layer, section: Section, notes: list[str]) -> LayerParameters:
    n = len(layer.inputs)
    zero = [0.0] * n
    conv, tree = layer.type == "conv", layer.type == "treefc"
    least = section.numbers("wcNormMin", n, 0.0) if conv else zero
    most = section.numbers("wcNormMax", n, 0.0) if conv else zero
    if any(low > high for low, high in zip(least, most, strict=True)):
        raise section.bad("wcNormMin", "at most wcNormMax")
    weights_schedule = Schedule() if tree else _schedule(section, "schedW", notes)
    bias_schedule = Schedule() if tree else _schedule(section, "schedB", notes)
    if section.has("sched"):
        notes.append(f"layer {layer.name!r}: the key sched of an older program is ignored, as in 2012; use schedW")
    super_eps = section.number("superEps", 0.0)
    columns = (
        _rates(section, "epsW", n),
        section.numbers("momW", n),
        section.numbers("wc", n, 0.0),
        zero if tree else section.numbers("wball", n, 0.0),
        least,
        most,
    )
    weights = tuple(
        Rates(base, momentum, weights_schedule, decay, ball, low, high, super_eps)
        for base, momentum, decay, ball, low, high in zip(*columns, strict=True)
    )
    bias = Rates(_rates(section, "epsB", 1)[0], section.number("momB"), bias_schedule, super_eps=super_eps)
    return LayerParameters(weights, bias)


def _rates(section: Section, key: str, count: int) -> list[float]:
    result = section.numbers(key, count)
    if min(result) < 0:
        raise section.bad(key, "at least 0")
    return result


def _schedule(section: Section, key: str, notes: list[str]) -> Schedule:
    if not section.has(key):
        return Schedule()
    forms = "default, linear[tgtFactor=T,noiseStdev=s] (or exp), dexp[tgtFactor=T,noiseStdev=s,numSteps=n] (or jdexp)"
    match = _SCHEDULE.fullmatch(section.text(key))
    kind = match[1].lower() if match else ""
    if match and kind == "default" and match[2] is None:
        return Schedule()
    if not match or kind not in _NAMES or match[2] is None:
        raise section.bad(key, forms)
    items = [tuple(part.strip() for part in item.split("=")) for item in match[2].split(",")]
    names = tuple(name.lower() for name in _NAMES[kind])
    if all(len(item) == 1 for item in items):
        values = _by_position(kind, [item[0] for item in items])
        notes.append(f"layer {section.name!r}: {key} has numbers without names, read as {', '.join(values)} (assumed)")
    elif all(len(item) == 2 for item in items) and tuple(item[0].lower() for item in items) == names:
        values = dict(zip(_NAMES[kind], (item[1] for item in items), strict=True))
    else:
        values = {}
    if not values or not all(_NUMBER.fullmatch(text) for text in values.values()):
        raise section.bad(key, forms)
    target, noise = float(values["tgtFactor"]), float(values.get("noiseStdev", "0"))
    steps = values.get("numSteps", "1")
    if not (0 < target < math.inf and 0 <= noise < math.inf):
        raise section.bad(key, "a schedule with tgtFactor above 0 and noiseStdev of at least 0")
    if not steps.isdigit() or not 1 <= int(steps) <= 10_000:
        raise section.bad(key, "a schedule with numSteps from 1 to 10000")
    return Schedule(kind, target, noise, int(steps))


def _by_position(kind: str, numbers: list[str]) -> dict[str, str]:
    """An older form: [T] or [T,s] for linear and exp, [T,n] or [T,s,n] for dexp and jdexp. Empty for other forms."""
    names: dict[int, tuple[str, ...]] = {1: ("tgtFactor",), 2: ("tgtFactor", "noiseStdev")}
    if kind in ("dexp", "jdexp"):
        names = {2: ("tgtFactor", "numSteps"), 3: ("tgtFactor", "noiseStdev", "numSteps")}
    return dict(zip(names.get(len(numbers), ()), numbers, strict=False))
