"""Checks and sizes of the layers with weights: conv, local, fc, treefc."""

import re
from collections.abc import Callable
from typing import Any

from alexnet.models.cuda_convnet.definition import Data, Layer, Matrix, Parts
from alexnet.models.cuda_convnet.grammar import Section
from alexnet.models.layers import Window

_FUNCTION = re.compile(r"([A-Za-z_][\w.]*\.\w+)\((.*)\)", re.DOTALL)


class Draft:
    """A layer while it is being checked: its section, its inputs, the layers above it in the file, the data."""

    def __init__(
        self, section: Section, kind: str, inputs: list[Layer], earlier: dict[str, Layer], data: Data, gpu: int
    ) -> None:
        self.section, self.type, self.inputs, self.earlier = section, kind, inputs, earlier
        self.data, self.gpu = data, gpu
        self.notes: list[str] = []

    def side(self, channels: int, index: int = 0, key: str = "channels") -> int:
        """Side of input ``index`` seen as ``channels`` square maps, pixels."""
        given = self.inputs[index]
        side = int((given.outputs / channels) ** 0.5 + 0.5) if channels > 0 else 0
        if side < 1 or side * side * channels != given.outputs:
            must = f"such that the {given.outputs} outputs of {given.name!r} are square maps"
            raise self.section.bad(key, must)
        return side


def conv(draft: Draft) -> Parts:
    """Shared filters: F·M² outputs."""
    return _filters(draft, shared=True)


def local(draft: Draft) -> Parts:
    """Own filters at each position."""
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
    given = draft.section.integers("filterChannels", n, least=1)
    return [g if sparse else p for g, p, sparse in zip(given, plain, options["randSparse"], strict=True)]


def _check_filters(draft: Draft, options: dict[str, Any], i: int) -> None:
    section = draft.section
    channels, filters, kernel, padding, stride, groups, sparse, each, side = (
        options[key][i]
        for key in (
            "channels", "filters", "filterSize", "padding", "stride", "groups", "randSparse", "filterChannels", "sides",
        )
    )  # fmt: skip
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
    """All inputs to all outputs."""
    outputs = draft.section.integer("outputs", least=1)
    options = {"initB": draft.section.number("initB", 0.0)}
    matrices = _matrices(draft, options, [(given.outputs, outputs) for given in draft.inputs])
    shapes = " + ".join(str(given.outputs) for given in draft.inputs)
    return Parts(outputs, 0, f"{shapes} → {outputs}", matrices, (outputs,), options)


def treefc(draft: Draft) -> Parts:
    """One output a class; weights are sums of offsets along a tree of the classes."""
    section, data = draft.section, draft.data
    if data.tree is None or data.classes is None:
        raise section.wrong("type treefc needs the tree of the classes", "", "build it from Python with a tree")
    nodes = len(data.tree.children)
    options: dict[str, Any] = {"initB": section.number("initB", 0.0), "leaves": _leaves(draft)}
    matrices = _matrices(draft, options, [(draft.inputs[0].outputs, nodes)])
    formula = f"{draft.inputs[0].outputs} → {data.classes} leaves of {nodes} nodes"
    return Parts(data.classes, 0, formula, matrices, (data.classes,), options)


def _leaves(draft: Draft) -> list[list[int]]:
    """For each node the classes below it; raises where the tree is none."""
    tree, classes = draft.data.tree, draft.data.classes
    assert tree is not None and classes is not None
    found: list[list[int]] = [[] for _ in tree.children]

    def walk(node: int, path: list[int]) -> None:
        if not 0 <= node < len(found) or node in path or (node != tree.root and found[node]):
            raise draft.section.wrong(f"node {node} of the classes' tree", "reached once, from the root")
        if not tree.children[node]:
            for above in [*path, node]:
                found[above].append(node)
        for child in tree.children[node]:
            walk(child, [*path, node])

    walk(tree.root, [])
    if sorted(found[tree.root]) != list(range(classes)) or not all(found):
        raise draft.section.wrong("leaves of the classes' tree", f"the nodes 0 to {classes - 1}, below one root")
    return found


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
    found = re.fullmatch(r"(.+?)\s*(?:\[\s*([0-9]{1,9})\s*\])?", word)
    name, j = (found[1], int(found[2] or 0)) if found else (word, 0)
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
        options["groups"][index], options["filterChannels"][index],
    ):  # fmt: skip
        raise section.bad("weightSource", "a matrix with the same groups and channels a filter")
    return name, j


def _function(section: Section, key: str) -> tuple[str, list[str]]:
    """``module.function(a,b)`` -> its name and arguments; it is never called by name, only where a caller gives it."""
    found = _FUNCTION.fullmatch(section.text(key))
    if not found:
        raise section.bad(key, "module.function(argument,argument)")
    return found[1], [word.strip() for word in found[2].split(",")] if found[2].strip() else []


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


TYPES: dict[str, Callable[[Draft], Parts]] = {"conv": conv, "local": local, "fc": fc, "treefc": treefc}
