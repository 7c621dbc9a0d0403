"""The graph of a layer file: boxes that do not overlap, towers apart, arrows around boxes."""

import itertools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from layer_examples import EXAMPLES, files

from alexnet.cuda_convnet import Data, define
from alexnet.errors import ModelError
from alexnet.plots import layer_graph


def placed(name: str) -> dict:
    definition = define(files(name).layers, Data(EXAMPLES.get(name, (224, 0))[0]))
    boxes = layer_graph._boxes(definition)
    places, width, height = layer_graph.arrange(definition, boxes)
    return {"definition": definition, "boxes": boxes, "places": places, "width": width, "height": height}


@pytest.mark.parametrize("name", [*EXAMPLES, "net145"])
def test_boxes_stand_apart_inside_the_drawing(name):
    found = placed(name)
    assert set(found["places"]) == set(found["boxes"])
    for a, b in itertools.combinations(found["places"].values(), 2):
        assert abs(a.y - b.y) > layer_graph.BOX or abs(a.x - b.x) >= layer_graph.WIDTH
    for place in found["places"].values():
        assert layer_graph.WIDTH / 2 <= place.x <= found["width"] - layer_graph.WIDTH / 2
        assert 0 < place.y < found["height"]


@pytest.mark.parametrize("name", ["towers", "net145"])
def test_data_flows_down_and_towers_stand_side_by_side(name):
    found = placed(name)
    places, layers = found["places"], found["definition"].layers
    for layer in found["boxes"].values():
        for below in layer.inputs:
            box = layer_graph._box_of(found["definition"], below)
            assert box == layer.name or places[box].y < places[layer.name].y
    columns = [{round(p.x, 6) for n, p in places.items() if layers[n].gpu == gpu} for gpu in (0, 1)]
    assert len(columns[0]) == len(columns[1]) == 1
    assert max(columns[0]) < min(columns[1])


def test_a_neuron_stands_in_its_layers_box():
    found = placed("towers")
    assert "c2a" in found["boxes"]
    assert "c2a_neuron" not in found["boxes"]


def test_an_arrow_goes_around_what_stands_in_its_way():
    places = placed("images")["places"]
    lane = layer_graph._lane(places["data"], places["c1"], places)
    assert lane is not None
    between = [p for p in places.values() if places["data"].y < p.y < places["c1"].y]
    assert len(between) == 2
    assert all(abs(lane - p.x) > layer_graph.WIDTH / 2 for p in between)
    assert layer_graph._lane(places["data"], places["b0"], places) is None


def test_a_drawing_is_a_png_that_says_what_it_shows(tmp_path):
    definition = define(files("towers").layers, Data(32), "towers.cfg")
    path = layer_graph.draw(definition, tmp_path / "graph.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    texts = " ".join(text.get_text() for text in layer_graph.figure(definition).axes[0].texts)
    for part in (
        "towers.cfg: 3·32·32 pixels, 96,074 parameters",
        "gpu 0",
        "gpu 1",
        "c2b: 32·7·7",
        "conv 3×3 + relu, 9,248 learned",
        "pool max 3×3, stride 2",
        "cost.logreg",
    ):
        assert part in texts, part


def test_hundreds_of_layers_are_not_drawn(tmp_path):
    text = "[data]\ntype=data\ndataIdx=0\n[n0]\ntype=neuron\nneuron=relu\ninputs=data\n"
    text += "".join(f"[n{i}]\ntype=neuron\nneuron=relu\ninputs=n{i - 1}\n" for i in range(1, 400))
    definition = define(text + "[c]\ntype=cost.sum2\ninputs=n399\n", Data(4))
    with pytest.raises(ModelError, match="too large to draw: 402 layers"):
        layer_graph.draw(definition, tmp_path / "graph.png")
