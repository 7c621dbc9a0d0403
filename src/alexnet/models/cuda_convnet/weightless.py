"""Checks and sizes of the layers without weights: pools, norms, image layers, sums, neurons, softmax."""

import math
import re
from collections.abc import Callable
from typing import Any

from alexnet.models.cuda_convnet.definition import Layer, Parts
from alexnet.models.cuda_convnet.grammar import Section
from alexnet.models.cuda_convnet.weighted import Draft

# Neurons and how many numbers stand in their brackets.
NEURONS = {
    "ident": 0, "logistic": 0, "relu": 0, "tanh": 2, "linear": 2, "softrelu": 0, "square": 0, "sqrt": 0, "abs": 0,
    "brelu": 1, "drelu": 1, "nrelu": 0,
}  # fmt: skip
_NEURON = re.compile(r"([a-z]+)(?:\[(.*)\])?", re.DOTALL)
_DECIMAL = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)")


def pool(draft: Draft) -> Parts:
    """Windows of a map to one value each: max, maxabs, avg, rand."""
    section = draft.section
    channels = section.integer("channels", least=1)
    side = draft.side(channels)
    kind = section.choice("pool", ("max", "maxabs", "avg", "rand"))
    size, stride = section.integer("sizeX", least=1), section.integer("stride", least=1)
    start, given = section.integer("start", 0), section.integer("outputsX", 0, least=0)
    if size > side:
        raise section.bad("sizeX", f"at most {side}, the side of the input")
    if stride > size:
        raise section.bad("stride", f"at most sizeX = {size}")
    if draft.inputs[0].learns and channels % 16:
        raise section.bad("channels", "a multiple of 16 above layers with weights")
    out = given or math.ceil((side - start - size) / stride) + 1
    if out < 1 or start + size <= 0 or start + (out - 1) * stride >= side:
        key = "outputsX" if given else "start"
        raise section.bad(key, f"such that every window holds a pixel of the {side}×{side} input")
    options = {"channels": channels, "pool": kind, "sizeX": size, "stride": stride, "start": start}
    moved = f" {'−' if start > 0 else '+'} {abs(start)}" if start else ""
    inside = f"({side}{moved} − {size}) / {stride}"
    inside = f"⌈{inside}⌉" if (side - start - size) % stride else inside
    formula = f"outputsX = {out}" if given else f"{inside} + 1 = {out}"
    return Parts(channels * out * out, out, formula, options=options)


def norm(draft: Draft) -> Parts:
    """cmrnorm (across maps), rnorm and cnorm (inside a map)."""
    section, kind = draft.section, draft.type
    channels = section.integer("channels", least=1)
    side = draft.side(channels)
    key = "size"
    if not section.has("size") and section.has("sizeX"):  # the dialect of two files of 2011
        key = "sizeX"
        draft.notes.append(f"layer {section.name!r}: sizeX read as size, scale and pow as the parameter file's (guess)")
    size = section.integer(key, least=2 if kind == "cmrnorm" else 1)
    if kind == "cmrnorm" and channels % 16:
        raise section.bad("channels", "a multiple of 16")
    if kind != "cmrnorm" and channels > 3 and channels % 4:
        raise section.bad("channels", "under 4 or a multiple of 4")
    most, what = (channels, "channels") if kind == "cmrnorm" else (side, "the side of the input")
    if size > most:
        raise section.bad(key, f"at most {most}, {what}")
    options: dict[str, Any] = {"channels": channels, "size": size, "blocked": section.boolean("blocked", False)}
    if key == "sizeX" and section.has("scale") and section.has("pow"):
        options |= {"scale": section.number("scale"), "pow": section.number("pow")}
    return Parts(draft.inputs[0].outputs, side, "", options=options)


def blur(draft: Draft) -> Parts:
    """A Gaussian blur, zeros outside."""
    section = draft.section
    channels = section.integer("channels", least=1)
    side, size = draft.side(channels), section.integer("filterSize")
    if size not in (3, 5, 7, 9) or size > side:
        raise section.bad("filterSize", f"3, 5, 7 or 9 and at most {side}, the side of the input")
    deviation = section.number("stdev")
    if deviation <= 0:
        raise section.bad("stdev", "above 0")
    return Parts(channels * side**2, side, options={"channels": channels, "filterSize": size, "stdev": deviation})


def nailbed(draft: Draft) -> Parts:
    """Every stride-th pixel."""
    section = draft.section
    channels = section.integer("channels", least=1)
    side, stride = draft.side(channels), section.integer("stride", least=2)
    out = -(-side // stride)
    start = (side - stride * (out - 1)) // 2
    formula = f"⌈{side} / {stride}⌉ = {out}" if side % stride else f"{side} / {stride} = {out}"
    return Parts(channels * out**2, out, formula, options={"channels": channels, "stride": stride, "start": start})


def href(draft: Draft) -> Parts:
    """Left and right exchanged."""
    channels = draft.section.integer("channels", least=1)
    if channels > 3:
        raise draft.section.bad("channels", "from 1 to 3")
    side = draft.side(channels)
    return Parts(channels * side**2, side, options={"channels": channels})


def resize(draft: Draft) -> Parts:
    """Pictures brought to another size, bilinear."""
    section = _over_data(draft)
    channels = section.integer("channels", least=1)
    side, scale = draft.side(channels), section.number("scale")
    if not 0.5 <= scale <= 2:
        raise section.bad("scale", "from 0.5 to 2")
    out = math.floor(side / scale)
    if out < 1:
        raise section.bad("scale", "such that a pixel is left")
    formula = f"⌊{side} / {scale:g}⌋ = {out}"
    return Parts(channels * out**2, out, formula, options={"channels": channels, "scale": scale})


def rscale(draft: Draft) -> Parts:
    """Pictures scaled down at random in training, their center in a test."""
    section = _over_data(draft)
    channels = section.integer("channels", least=1)
    side, most, target = draft.side(channels), section.number("maxScale"), section.integer("tgtSize", least=1)
    if not 1 <= most <= 2:
        raise section.bad("maxScale", "from 1 to 2")
    if not math.floor(side / most) <= target <= side:
        raise section.bad("tgtSize", f"from {math.floor(side / most)} to {side}")
    return Parts(channels * target**2, target, f"tgtSize = {target}", options={"channels": channels, "maxScale": most})


def colors(draft: Draft) -> Parts:
    """rgb2yuv and rgb2lab: three maps to three maps."""
    section = _over_data(draft)
    side = draft.side(3, key="type")
    center = draft.type == "rgb2lab" and section.boolean("center", False)
    return Parts(3 * side**2, side, options={"center": center})


def _over_data(draft: Draft) -> Section:
    """These pass no gradient on, so nothing that learns may lie below them."""
    if draft.inputs[0].learns:
        what = f"type {draft.type} stands above layers with weights"
        raise draft.section.wrong(what, "above data alone: it passes no gradient", key="type")
    return draft.section


def hs(draft: Draft) -> Parts:
    """Dropout of 2012: ``keep`` is the probability of keeping."""
    keep = draft.section.number("keep")
    if not 0 <= keep <= 1:
        raise draft.section.bad("keep", "from 0 to 1")
    return _same(draft.inputs[0], {"keep": keep})


def concat(draft: Draft) -> Parts:
    """Inputs one after the other; maps of one size stay maps."""
    outputs = sum(given.outputs for given in draft.inputs)
    sides = {given.side for given in draft.inputs}
    formula = " + ".join(str(given.outputs) for given in draft.inputs) + f" = {outputs}"
    return Parts(outputs, sides.pop() if len(sides) == 1 else 0, formula)


def elements(draft: Draft) -> Parts:
    """eltsum and eltmax."""
    section, n = draft.section, len(draft.inputs)
    sizes = [given.outputs for given in draft.inputs]
    if len(set(sizes)) > 1:
        raise section.bad("inputs", f"layers with the same number of outputs, not {', '.join(map(str, sizes))}")
    options = {"coeffs": section.numbers("coeffs", n, default=1.0)} if draft.type == "eltsum" else {}
    return _same(draft.inputs[0], options)


def neuron(draft: Draft) -> Parts:
    """A layer of neurons."""
    return _same(draft.inputs[0], neuron_options(draft.section))


def neuron_options(section: Section) -> dict[str, Any]:
    """``name`` or ``name[a,b]`` -> {"neuron": name, "numbers": [a, b]}."""
    found = _NEURON.fullmatch(section.text("neuron"))
    words = [word.strip() for word in found[2].split(",")] if found and found[2] is not None else []
    if not found or found[1] not in NEURONS:
        raise section.bad("neuron", "one of " + ", ".join(NEURONS))
    count = NEURONS[found[1]]
    if len(words) != count or not all(_DECIMAL.fullmatch(word) for word in words):
        form = f"{found[1]}[{','.join('ab'[:count])}] with plain decimals" if count else f"{found[1]} alone"
        raise section.bad("neuron", form)
    numbers = [float(word) for word in words]
    if found[1] == "drelu" and numbers[0] == 0:
        raise section.bad("neuron", "drelu[a] with a other than 0")
    if not all(map(math.isfinite, numbers)):
        raise section.bad("neuron", "of finite numbers")
    return {"neuron": found[1], "numbers": numbers}


def softmax(draft: Draft) -> Parts:
    """Probabilities over all outputs."""
    return Parts(draft.inputs[0].outputs)


def _same(given: Layer, options: dict[str, Any]) -> Parts:
    return Parts(given.outputs, given.side, options=options)


def cost(draft: Draft) -> Parts:
    """A cost: checks that its inputs are what it compares."""
    section, kind, inputs = draft.section, draft.type, draft.inputs
    classes = draft.data.classes
    if kind == "cost.tica":
        raise section.bad("type", "another cost: no public source has the kernels of this one")
    if kind in ("cost.logreg", "cost.crossent") and inputs[1].type != "softmax":
        raise section.bad("inputs", f"with a softmax layer second, not a {inputs[1].type} layer")
    if kind in ("cost.logreg", "cost.msm", "cost.gsum2") and inputs[0].outputs != 1:
        raise section.bad("inputs", f"with one row first, not the {inputs[0].outputs} of {inputs[0].name!r}")
    if kind in ("cost.logreg", "cost.msm"):
        _width(section, inputs[1], classes)
    elif kind in ("cost.crossent", "cost.crossent2", "cost.rflickr"):
        for given in inputs:
            _width(section, given, classes)
    return Parts(1)


def _width(section: Section, given: Layer, classes: int | None) -> None:
    if classes is None:
        raise section.wrong("the number of classes can not be told from the file", "", "give --num-classes")
    if given.outputs != classes:
        must = f"a layer of {classes} outputs, one for each class, not {given.name!r} with {given.outputs}"
        raise section.bad("inputs", must)


TYPES: dict[str, Callable[[Draft], Parts]] = {
    "pool": pool, "cmrnorm": norm, "rnorm": norm, "cnorm": norm, "blur": blur, "nailbed": nailbed, "href": href,
    "resize": resize, "rscale": rscale, "rgb2yuv": colors, "rgb2lab": colors, "hs": hs, "concat": concat,
    "eltsum": elements, "eltmax": elements, "neuron": neuron, "softmax": softmax, "cost.logreg": cost,
    "cost.crossent": cost, "cost.crossent2": cost, "cost.sum2": cost, "cost.rflickr": cost, "cost.gsum2": cost,
    "cost.msm": cost, "cost.tica": cost,
}  # fmt: skip
