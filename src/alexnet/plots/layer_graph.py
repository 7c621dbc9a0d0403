"""The graph of a layer file: data at the top, towers side by side, connections between towers."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alexnet.cuda_convnet.grammar import Definition, Layer
from alexnet.cuda_convnet.network import kind
from alexnet.errors import ModelError
from alexnet.plots import canvas
from alexnet.terminal import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW, BOX = 0.74, 0.44  # inches from one row to the next, height of a box
WIDTH, GAP = 2.35, 0.35  # inches: a box, and between boxes
TITLE = 0.45
LARGEST = 200  # inches of a drawing: 30,000 pixels
COLORS = {
    "conv": canvas.BLUE,
    "local": canvas.BLUE,
    "fc": canvas.GREEN,
    "treefc": canvas.GREEN,
    "data": canvas.GRAY,
    "softmax": canvas.VERMILION,
}


class Place(NamedTuple):
    """Where a box stands: its middle, inches from the left and from the top."""

    x: float
    y: float


def draw(definition: Definition, path: Path | str) -> Path:
    """Draw the graph to a PNG; raises :class:`ModelError` for one of hundreds of layers."""
    return canvas.save(figure(definition), path)


def figure(definition: Definition) -> "Figure":
    """The figure, before it is saved. Neurons stand in the box of the layer that they belong to."""
    boxes = _boxes(definition)
    places, width, height = arrange(definition, boxes)
    if max(width, height) > LARGEST:
        raise ModelError(f"{definition.file} is too large to draw: {len(boxes)} layers", "a smaller network")
    drawing = canvas.new_figure(width, height + TITLE, constrained=False)
    axes = drawing.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, -TITLE)
    axes.axis("off")
    data = definition.data
    title = (
        f"{definition.file}: {data.channels}·{data.image_size}·{data.image_size} pixels, "
        f"{definition.parameters:,} parameters"
    )
    axes.text(width / 2, -TITLE / 2, shorten(title, int(width * 11)), ha="center", va="center", fontsize=11)
    _towers(axes, definition, boxes, places, height)
    for name, layer in boxes.items():
        for below in dict.fromkeys(layer.inputs):
            _arrow(axes, definition, _box_of(definition, below), name, places)
    for name, layer in boxes.items():
        _draw_box(axes, definition, layer, places[name])
    return drawing


def _boxes(definition: Definition) -> dict[str, Layer]:
    return {name: layer for name, layer in definition.layers.items() if _box_of(definition, name) == name}


def _box_of(definition: Definition, name: str) -> str:
    """A neuron that alone reads its layer has no box of its own."""
    layer = definition.layers[name]
    alone = layer.type == "neuron" and name.startswith(f"{layer.inputs[0]}_neuron")
    return layer.inputs[0] if alone else name


def arrange(definition: Definition, boxes: dict[str, Layer]) -> tuple[dict[str, Place], float, float]:
    """Places of the boxes, and the width and height that they need. A row is the longest way from the data."""
    rows: dict[str, int] = {}
    for name, layer in boxes.items():
        rows[name] = 1 + max((rows[_box_of(definition, below)] for below in layer.inputs), default=-1)
    for name in reversed(boxes):  # labels and images stand right above their first reader
        readers = [rows[_box_of(definition, reader.name)] for reader in definition.readers(name)]
        if not boxes[name].inputs and readers:
            rows[name] = min(readers) - 1
    towers = sorted({layer.gpu for layer in boxes.values() if layer.gpu >= 0}) or [0]
    cells: dict[tuple[int, int], list[str]] = {}
    for name in boxes:
        cells.setdefault((rows[name], _column(boxes[name], towers)), []).append(name)
    widths = [
        max(len(result) for (_, c), result in cells.items() if c == column) if any(c == column for _, c in cells) else 1
        for column in range(len(towers))
    ]
    starts = [GAP + sum(widths[:column]) * (WIDTH + GAP) + column * GAP for column in range(len(towers))]
    total = starts[-1] + widths[-1] * (WIDTH + GAP)
    places = {}
    for (row, column), result in cells.items():
        middle = total / 2 if column < 0 else starts[column] + (widths[column] * (WIDTH + GAP) - GAP) / 2
        left = middle - (len(result) * (WIDTH + GAP) - GAP) / 2
        for i, name in enumerate(result):
            places[name] = Place(left + i * (WIDTH + GAP) + WIDTH / 2, row * ROW + ROW / 2)
    for row in set(rows.values()):  # the middle may stand on a tower: it moves to the right of it
        taken = [places[name].x for name in boxes if rows[name] == row and boxes[name].gpu >= 0]
        for name in (name for name in boxes if rows[name] == row and boxes[name].gpu < 0):
            if any(abs(x - places[name].x) < WIDTH + GAP / 2 for x in taken):
                places[name] = Place(max(taken) + WIDTH + GAP * 1.5, places[name].y)
            taken.append(places[name].x)
    wide = max(place.x for place in places.values()) + WIDTH / 2 + GAP
    return places, max(total, wide), (max(rows.values()) + 1) * ROW + 0.15


def _column(layer: Layer, towers: list[int]) -> int:
    """The place of a layer's tower; −1, the middle, for data, which belong to none."""
    return -1 if layer.gpu < 0 else towers.index(layer.gpu)


def _towers(axes: "Axes", definition: Definition, boxes: dict[str, Layer], places: dict[str, Place], h: float) -> None:
    """A pale ground behind each tower."""
    from matplotlib.patches import Rectangle

    towers = sorted({layer.gpu for layer in boxes.values() if layer.gpu >= 0})
    for tower in towers if len(towers) > 1 else []:
        results = [places[name] for name, layer in boxes.items() if layer.gpu == tower]
        left = min(p.x for p in results) - WIDTH / 2 - GAP / 2
        right = max(p.x for p in results) + WIDTH / 2 + GAP / 2
        top, bottom = min(p.y for p in results) - ROW / 2 - 0.03, max(p.y for p in results) + ROW / 2 - 0.08
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, color="#F4F4F4", zorder=0, linewidth=0))
        axes.text(left + 0.08, top + 0.03, f"gpu {tower}", fontsize=7, color=canvas.GRAY, ha="left", va="top")


def _arrow(axes: "Axes", definition: Definition, below: str, name: str, places: dict[str, Place]) -> None:
    start, end = places[below], places[name]
    auxiliary_head = max(
        -0.35, min(0.35, (end.x - start.x) / 4)
    )  # arrows to and from one side do not hide those straight down
    layers = definition.layers
    crosses = layers[below].gpu >= 0 and layers[below].gpu != layers[name].gpu
    color = canvas.VERMILION if crosses else canvas.GRAY
    corner = (start.x + auxiliary_head, start.y + BOX / 2)
    lane = _lane(start, end, places)
    if lane is not None:  # around what is in the way
        way = [corner, (lane, start.y + ROW / 2 + 0.06), (lane, end.y - ROW / 2 - 0.06)]
        axes.plot(*zip(*way, strict=True), color=color, linewidth=0.9, zorder=1)
        corner, auxiliary_head = way[-1], -0.3 if lane > end.x else 0.3
    axes.annotate(
        "",
        xy=(end.x - auxiliary_head, end.y - BOX / 2),
        xytext=corner,
        zorder=1,
        arrowprops={
            "arrowstyle": "-|>",
            "color": color,
            "linewidth": 0.9,
            "mutation_scale": 7,
            "shrinkA": 0,
            "shrinkB": 0,
        },
    )


def _lane(start: Place, end: Place, places: dict[str, Place]) -> float | None:
    """Where an arrow goes down beside the boxes that a straight one would run through, inches; None: straight."""
    between = [p for p in places.values() if start.y + ROW / 2 < p.y < end.y - ROW / 2]
    slope = (end.x - start.x) / (end.y - start.y)
    if not any(abs(start.x + slope * (p.y - start.y) - p.x) < WIDTH / 2 for p in between):
        return None
    near = [p.x for p in between if min(start.x, end.x) - WIDTH < p.x < max(start.x, end.x) + WIDTH]
    sides = (max(near) + WIDTH / 2 + GAP / 3, min(near) - WIDTH / 2 - GAP / 3)
    return min(sides, key=lambda x: abs(x - (start.x + end.x) / 2))


def _draw_box(axes: "Axes", definition: Definition, layer: Layer, place: Place) -> None:
    from matplotlib.patches import FancyBboxPatch

    color = COLORS.get(layer.type, canvas.VERMILION if layer.is_cost else canvas.SKY)
    left, top = place.x - WIDTH / 2, place.y - BOX / 2
    axes.add_patch(
        FancyBboxPatch(
            (left + 0.03, top + 0.03),
            WIDTH - 0.06,
            BOX - 0.06,
            boxstyle="round,pad=0.03,rounding_size=0.06",
            facecolor="white",
            edgecolor=color,
            linewidth=1.4,
            zorder=2,
        )
    )
    neurons = [n for n in definition.readers(layer.name) if _box_of(definition, n.name) == layer.name]
    what = " + ".join([kind(layer), *(kind(n).removeprefix("neuron ") for n in neurons)])
    size = f"{layer.channels}·{layer.side}·{layer.side}" if layer.side else f"{layer.outputs:,}"
    number = f"{layer.parameters:,} learned" if layer.parameters else ""
    if len(what) > 34:
        number = ""
    lines = (
        (-0.11, layer.name if layer.is_cost else f"{layer.name}:  {size}", 8.5, canvas.INK),
        (0.09, ", ".join(filter(None, [what, number])), 6.5, canvas.GRAY),
    )
    for offset, text, size_of_text, ink in lines:
        label = axes.text(
            place.x, place.y + offset, text, fontsize=size_of_text, color=ink, ha="center", va="center", zorder=3
        )
        canvas.fit(label, WIDTH - 0.12)
