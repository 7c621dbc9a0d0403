"""Checks and output sizes of each layer type: first types with weights, then types without."""

import math
import re
from collections.abc import Callable
from typing import Any

from alexnet.cuda_convnet.grammar import Data, Layer, Matrix, Parts, Section
from alexnet.models.layers import Window

_FUNCTION = re.compile(r"([A-Za-z_][\w.]*\.\w+)\((.*)\)", re.DOTALL)


class Draft:
    """A layer that is being checked: its section, its inputs, the earlier layers of the file, and the data."""

    def __init__(
        self, section: Section, kind: str, inputs: list[Layer], earlier: dict[str, Layer], data: Data, gpu: int
    ) -> None:
        self.section, self.type, self.inputs, self.earlier = section, kind, inputs, earlier
        self.data, self.gpu = data, gpu
        self.notes: list[str] = []

    def side(self, channels: int, index: int = 0, key: str = "channels") -> int:
        """Size in pixels of input ``index`` as ``channels`` square feature maps."""
        values = self.inputs[index]
        side = int((values.outputs / channels) ** 0.5 + 0.5) if channels > 0 else 0
        if side < 1 or side * side * channels != values.outputs:
            must = f"such that the {values.outputs} outputs of {values.name!r} are square maps"
            raise self.section.bad(key, must)
        return side


def conv(draft: Draft) -> Parts:
    """Convolution: F·M² outputs."""
    return _filters(draft, shared=True)


def local(draft: Draft) -> Parts:
    """Locally connected layer: separate filters at each position."""
    return _filters(draft, shared=False)


def _filters(draft: Draft, shared: bool) -> Parts:
    section, n = draft.section, len(draft.inputs)
    options: dict[str, Any] = {
        "channels": section.integers("channels", n, least=1),
        "filters": section.integers("filters", n, least=1),
        "filterSize": section.integers("filterSize", n, least=1),
        "padding": section.integers("padding", n, default=0, least=0),
        "stride": section.integers("stride", n, default=1, least=1),
        "groups": section.integers("groups", n, default=1, least=1),
        "randSparse": section.booleans("randSparse", n),
    }
    options["filterChannels"] = _filter_channels(draft, options)
    options["sides"] = [draft.side(c, i) for i, c in enumerate(options["channels"])]
    for i in range(n):
        _check_filters(draft, options, i)
    windows = [
        Window(k, s, p) for k, s, p in zip(options["filterSize"], options["stride"], options["padding"], strict=True)
    ]
    sizes = [window.out_size(side) for window, side in zip(windows, options["sides"], strict=True)]
    totals = [f * g for f, g in zip(options["filters"], options["groups"], strict=True)]
    if len(set(sizes)) > 1:
        raise section.bad("filterSize", f"such that all inputs give maps of one side, not {_list(sizes)}")
    if len(set(totals)) > 1:
        raise section.bad("filters", f"such that filters times groups is equal for all inputs, not {_list(totals)}")
    side, total = sizes[0], totals[0]
    options |= {"initB": section.number("initB", 0.0), "sharedBiases": shared and section.boolean("sharedBiases", True)}
    if shared:
        _check_partial_sum(section, side)
    positions = 1 if shared else side * side
    rows = [positions * c * k * k for c, k in zip(options["filterChannels"], options["filterSize"], strict=True)]
    matrices = _matrices(draft, options, [(r, total) for r in rows])
    biases = (total,) if options["sharedBiases"] else (total, side, side)
    formula = " and ".join(dict.fromkeys(w.formula(s) for w, s in zip(windows, options["sides"], strict=True)))
    return Parts(total * side * side, side, formula, matrices, biases, options)


def _filter_channels(draft: Draft, options: dict[str, Any]) -> list[int]:
    n = len(draft.inputs)
    plain = [c // g for c, g in zip(options["channels"], options["groups"], strict=True)]
    if not any(options["randSparse"]) or not draft.section.has("filterChannels"):
        return plain
    values = draft.section.integers("filterChannels", n, least=1)
    return [g if sparse else p for g, p, sparse in zip(values, plain, options["randSparse"], strict=True)]


def _check_filters(draft: Draft, options: dict[str, Any], i: int) -> None:
    section = draft.section
    channels, filters, kernel, padding, stride, groups, sparse, each, side = (
        options[key][i]
        for key in (
            "channels",
            "filters",
            "filterSize",
            "padding",
            "stride",
            "groups",
            "randSparse",
            "filterChannels",
            "sides",
        )
    )
    if channels > 3 and channels % 4:
        raise section.bad("channels", "1, 2, 3 or a multiple of 4")
    if filters % 16:
        raise section.bad("filters", "a multiple of 16")
    if groups > 1 and not sparse and channels % (4 * groups):
        raise section.bad("channels", f"a multiple of 4·groups = {4 * groups}")
    if kernel > side + 2 * padding:
        raise section.bad("filterSize", f"at most {side + 2 * padding}, the side of the input and its padding")
    if stride > kernel:
        raise section.bad("stride", f"at most filterSize = {kernel}")
    if sparse:
        if groups == 1:
            raise section.bad("groups", "at least 2 where randSparse is true")
        if each % 4 or channels % each or groups * each % channels:
            must = f"a multiple of 4 that divides channels = {channels} and of which groups = {groups} make a multiple"
            raise section.bad("filterChannels", f"{must} of channels")


def _check_partial_sum(section: Section, side: int) -> None:
    partial = section.integer("partialSum", least=0)
    if partial and side * side % partial:
        raise section.bad("partialSum", f"0 or a divisor of {side * side}, the output's pixels")


def fc(draft: Draft) -> Parts:
    """Fully connected layer."""
    outputs = draft.section.integer("outputs", least=1)
    options = {"initB": draft.section.number("initB", 0.0)}
    matrices = _matrices(draft, options, [(values.outputs, outputs) for values in draft.inputs])
    shapes = " + ".join(str(values.outputs) for values in draft.inputs)
    return Parts(outputs, 0, f"{shapes} → {outputs}", matrices, (outputs,), options)


def treefc(draft: Draft) -> Parts:
    """One output per class; weights are sums along the path in a tree of the classes."""
    section, data = draft.section, draft.data
    if data.tree is None or data.classes is None:
        raise section.wrong("type treefc needs the tree of the classes", "", "build it from Python with a tree")
    nodes = len(data.tree.children)
    options: dict[str, Any] = {"initB": section.number("initB", 0.0), "leaves": _leaves(draft)}
    matrices = _matrices(draft, options, [(draft.inputs[0].outputs, nodes)])
    formula = f"{draft.inputs[0].outputs} → {data.classes} leaves of {nodes} nodes"
    return Parts(data.classes, 0, formula, matrices, (data.classes,), options)


def _leaves(draft: Draft) -> list[list[int]]:
    """The classes below each node. Raises :class:`ModelError` if the graph is not a tree."""
    tree, classes = draft.data.tree, draft.data.classes
    assert tree is not None and classes is not None
    results: list[list[int]] = [[] for _ in tree.children]

    def walk(node: int, path: list[int]) -> None:
        if not 0 <= node < len(results) or node in path or (node != tree.root and results[node]):
            raise draft.section.wrong(f"node {node} of the classes' tree", "reached once, from the root")
        if not tree.children[node]:
            for above in [*path, node]:
                results[above].append(node)
        for child in tree.children[node]:
            walk(child, [*path, node])

    walk(tree.root, [])
    if sorted(results[tree.root]) != list(range(classes)) or not all(results):
        raise draft.section.wrong("leaves of the classes' tree", f"the nodes 0 to {classes - 1}, below one root")
    return results


def _matrices(draft: Draft, options: dict[str, Any], shapes: list[tuple[int, int]]) -> list[Matrix]:
    section, n = draft.section, len(draft.inputs)
    stds = section.numbers("initW", n)
    sources = section.words("weightSource", "," * (n - 1))
    if len(sources) != n:
        raise section.bad("weightSource", f"a list with one item for each input: {n}, not {len(sources)}")
    for key in ("initWFunc", "initBFunc", "initCFunc"):
        if section.has(key):
            options[key] = _function(section, key)
    matrices: list[Matrix] = []
    for i, ((rows, columns), std, word) in enumerate(zip(shapes, stds, sources, strict=True)):
        source = _source(draft, word, i, options, matrices) if word and "initWFunc" not in options else None
        if source is not None:
            name, j = source
            there = matrices[j] if name == section.name else draft.earlier[name].matrices[j]
            if (there.rows, there.columns) != (rows, columns):
                must = f"a source of shape {rows}×{columns}, not {there.rows}×{there.columns}"
                raise section.bad("weightSource", must)
            source = there.source or source
        matrices.append(Matrix(rows, columns, std, source))
    return matrices


def _source(draft: Draft, word: str, index: int, options: dict[str, Any], own: list[Matrix]) -> tuple[str, int]:
    """``layer[j]`` or ``layer`` -> (layer, j)."""
    section = draft.section
    match = re.fullmatch(r"(.+?)\s*(?:\[\s*([0-9]{1,9})\s*\])?", word)
    name, j = (match[1], int(match[2] or 0)) if match else (word, 0)
    if name == section.name:
        if j >= index:
            raise section.bad("weightSource", "an earlier layer, or an earlier input of this one")
        there_groups, there_channels = options.get("groups"), options.get("filterChannels")
    else:
        source = draft.earlier.get(name)
        if source is None:
            raise section.bad("weightSource", f"an earlier layer: there is none called {name!r} above")
        if source.type != draft.type or source.gpu != draft.gpu or j >= len(source.matrices):
            raise section.bad("weightSource", f"a matrix of a {draft.type} layer on gpu {draft.gpu}")
        there_groups, there_channels = source.options.get("groups"), source.options.get("filterChannels")
    if options.get("groups") and (there_groups[j], there_channels[j]) != (  # type: ignore[index]
        options["groups"][index],
        options["filterChannels"][index],
    ):
        raise section.bad("weightSource", "a matrix with the same groups and channels a filter")
    return name, j


def _function(section: Section, key: str) -> tuple[str, list[str]]:
    """``module.function(a,b)`` -> its name and arguments; only a function that the caller passes is called."""
    match = _FUNCTION.fullmatch(section.text(key))
    if not match:
        raise section.bad(key, "module.function(argument,argument)")
    return match[1], [word.strip() for word in match[2].split(",")] if match[2].strip() else []


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


WEIGHTED_TYPES: dict[str, Callable[[Draft], Parts]] = {"conv": conv, "local": local, "fc": fc, "treefc": treefc}


# Neurons, and the number of values in their brackets.
NEURONS = {
    "ident": 0,
    "logistic": 0,
    "relu": 0,
    "tanh": 2,
    "linear": 2,
    "softrelu": 0,
    "square": 0,
    "sqrt": 0,
    "abs": 0,
    "brelu": 1,
    "drelu": 1,
    "nrelu": 0,
}
_NEURON = re.compile(r"([a-z]+)(?:\[(.*)\])?", re.DOTALL)
_DECIMAL = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)")


def pool(draft: Draft) -> Parts:
    """Pooling: max, maxabs, avg or rand of each window."""
    section = draft.section
    channels = section.integer("channels", least=1)
    side = draft.side(channels)
    kind = section.choice("pool", ("max", "maxabs", "avg", "rand"))
    size, stride = section.integer("sizeX", least=1), section.integer("stride", least=1)
    start, values = section.integer("start", 0), section.integer("outputsX", 0, least=0)
    if size > side:
        raise section.bad("sizeX", f"at most {side}, the side of the input")
    if stride > size:
        raise section.bad("stride", f"at most sizeX = {size}")
    if draft.inputs[0].learns and channels % 16:
        raise section.bad("channels", "a multiple of 16 above layers with weights")
    out = values or math.ceil((side - start - size) / stride) + 1
    if out < 1 or start + size <= 0 or start + (out - 1) * stride >= side:
        key = "outputsX" if values else "start"
        raise section.bad(key, f"such that every window holds a pixel of the {side}×{side} input")
    options = {"channels": channels, "pool": kind, "sizeX": size, "stride": stride, "start": start}
    moved = f" {'−' if start > 0 else '+'} {abs(start)}" if start else ""
    inside = f"({side}{moved} − {size}) / {stride}"
    inside = f"⌈{inside}⌉" if (side - start - size) % stride else inside
    formula = f"outputsX = {out}" if values else f"{inside} + 1 = {out}"
    return Parts(channels * out * out, out, formula, options=options)


def norm(draft: Draft) -> Parts:
    """cmrnorm (across channels), rnorm and cnorm (inside a channel)."""
    section, kind = draft.section, draft.type
    channels = section.integer("channels", least=1)
    side = draft.side(channels)
    key = "size"
    if not section.has("size") and section.has("sizeX"):  # the dialect of two files of 2011
        key = "sizeX"
        draft.notes.append(
            f"layer {section.name!r}: sizeX read as size, scale and pow as the parameter file's (assumed)"
        )
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
    """Gaussian blur with zeros outside."""
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
    """Horizontal flip."""
    channels = draft.section.integer("channels", least=1)
    if channels > 3:
        raise draft.section.bad("channels", "from 1 to 3")
    side = draft.side(channels)
    return Parts(channels * side**2, side, options={"channels": channels})


def resize(draft: Draft) -> Parts:
    """Bilinear resizing of images."""
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
    """Random scale and crop in training, center crop in evaluation."""
    section = _over_data(draft)
    channels = section.integer("channels", least=1)
    side, most, target = draft.side(channels), section.number("maxScale"), section.integer("tgtSize", least=1)
    if not 1 <= most <= 2:
        raise section.bad("maxScale", "from 1 to 2")
    if not math.floor(side / most) <= target <= side:
        raise section.bad("tgtSize", f"from {math.floor(side / most)} to {side}")
    return Parts(channels * target**2, target, f"tgtSize = {target}", options={"channels": channels, "maxScale": most})


def colors(draft: Draft) -> Parts:
    """rgb2yuv and rgb2lab."""
    section = _over_data(draft)
    side = draft.side(3, key="type")
    center = draft.type == "rgb2lab" and section.boolean("center", False)
    return Parts(3 * side**2, side, options={"center": center})


def _over_data(draft: Draft) -> Section:
    """Check that no input has weights: these layers pass no gradient."""
    if draft.inputs[0].learns:
        what = f"type {draft.type} stands above layers with weights"
        raise draft.section.wrong(what, "above data alone: it passes no gradient", key="type")
    return draft.section


def hs(draft: Draft) -> Parts:
    """The dropout of the 2012 code: ``keep`` is the probability of keeping a value."""
    keep = draft.section.number("keep")
    if not 0 <= keep <= 1:
        raise draft.section.bad("keep", "from 0 to 1")
    return _same(draft.inputs[0], {"keep": keep})


def concat(draft: Draft) -> Parts:
    """Concatenation; feature maps of one size stay feature maps."""
    outputs = sum(values.outputs for values in draft.inputs)
    sides = {values.side for values in draft.inputs}
    formula = " + ".join(str(values.outputs) for values in draft.inputs) + f" = {outputs}"
    return Parts(outputs, sides.pop() if len(sides) == 1 else 0, formula)


def elements(draft: Draft) -> Parts:
    """eltsum and eltmax."""
    section, n = draft.section, len(draft.inputs)
    sizes = [values.outputs for values in draft.inputs]
    if len(set(sizes)) > 1:
        raise section.bad("inputs", f"layers with the same number of outputs, not {', '.join(map(str, sizes))}")
    options = {"coeffs": section.numbers("coeffs", n, default=1.0)} if draft.type == "eltsum" else {}
    return _same(draft.inputs[0], options)


def neuron(draft: Draft) -> Parts:
    """Activation function as a layer."""
    return _same(draft.inputs[0], neuron_options(draft.section))


def neuron_options(section: Section) -> dict[str, Any]:
    """``name`` or ``name[a,b]`` -> {"neuron": name, "numbers": [a, b]}."""
    match = _NEURON.fullmatch(section.text("neuron"))
    words = [word.strip() for word in match[2].split(",")] if match and match[2] is not None else []
    if not match or match[1] not in NEURONS:
        raise section.bad("neuron", "one of " + ", ".join(NEURONS))
    count = NEURONS[match[1]]
    if len(words) != count or not all(_DECIMAL.fullmatch(word) for word in words):
        form = f"{match[1]}[{','.join('ab'[:count])}] with plain decimals" if count else f"{match[1]} alone"
        raise section.bad("neuron", form)
    numbers = [float(word) for word in words]
    if match[1] == "drelu" and numbers[0] == 0:
        raise section.bad("neuron", "drelu[a] with a other than 0")
    if not all(map(math.isfinite, numbers)):
        raise section.bad("neuron", "of finite numbers")
    return {"neuron": match[1], "numbers": numbers}


def softmax(draft: Draft) -> Parts:
    """Softmax over all outputs."""
    return Parts(draft.inputs[0].outputs)


def _same(source: Layer, options: dict[str, Any]) -> Parts:
    return Parts(source.outputs, source.side, options=options)


def cost(draft: Draft) -> Parts:
    """A cost: checks the types and widths of its inputs."""
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
        for values in inputs:
            _width(section, values, classes)
    return Parts(1)


def _width(section: Section, source: Layer, classes: int | None) -> None:
    if classes is None:
        raise section.wrong("the number of classes cannot be told from the file", "", "give --num-classes")
    if source.outputs != classes:
        must = f"a layer of {classes} outputs, one for each class, not {source.name!r} with {source.outputs}"
        raise section.bad("inputs", must)


WEIGHTLESS_TYPES: dict[str, Callable[[Draft], Parts]] = {
    "pool": pool,
    "cmrnorm": norm,
    "rnorm": norm,
    "cnorm": norm,
    "blur": blur,
    "nailbed": nailbed,
    "href": href,
    "resize": resize,
    "rscale": rscale,
    "rgb2yuv": colors,
    "rgb2lab": colors,
    "hs": hs,
    "concat": concat,
    "eltsum": elements,
    "eltmax": elements,
    "neuron": neuron,
    "softmax": softmax,
    "cost.logreg": cost,
    "cost.crossent": cost,
    "cost.crossent2": cost,
    "cost.sum2": cost,
    "cost.rflickr": cost,
    "cost.gsum2": cost,
    "cost.msm": cost,
    "cost.tica": cost,
}
