import json

import pytest
import torch
from torch import nn

from alexnet.errors import ModelError
from alexnet.models import create_model, list_models
from alexnet.models.network import Network
from alexnet.models.summary import KINDS, summarize


def shapes_only(name: str, **options) -> Network:
    with torch.device("meta"):
        return create_model(name, **options)


# The full AlexNet takes a second to draw; the others are shown smaller, where windows stick out.
SMALLER = {"image_size": 131, "num_classes": 10}
CASES = [(name, SMALLER if name[:8] in ("alexnet_", "caffenet") else {}) for name in list_models()] + [
    ("alexnet", {"image_size": 67, "num_classes": 5, "in_channels": 1}),
    ("lenet5", {"image_size": 33, "in_channels": 3}),
    ("cifar_18pct", {"image_size": 25}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_table_is_what_a_forward_pass_does(name, options):
    network = create_model(name, generator=torch.Generator().manual_seed(0), **options).eval()
    summary = summarize(network)
    side = network.image_size
    with torch.no_grad():
        outputs = network.outputs(torch.zeros(1, network.in_channels, side, side))
    assert [row.layer for row in summary.rows] == list(outputs)
    for row, (layer, output) in zip(summary.rows, outputs.items(), strict=True):
        assert row.output == tuple(output.shape[1:])
        in_place = layer.startswith("relu")
        assert row.activation_bytes == (0 if in_place else output.numel() * output.element_size())
        assert row.parameters == sum(p.numel() for p in network.get_submodule(layer).parameters())
    assert summary.parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("alexnet", 60_965_224, 724_406_816),
        ("alexnet_single", 62_378_344, 1_135_256_096),
        ("cifar_18pct", 89_578, 12_298_240),
        ("lenet5", 60_850, 328_096),
        ("alexnet_2012", 60_965_224, 724_406_816),
        ("alexnet_caffe", 60_965_224, 724_406_816),
        ("caffenet", 60_965_224, 724_406_816),
        ("alexnet_half", 59_798_312, 391_514_384),
        ("alexnet_no_overlap", 60_965_224, 686_891_552),
        ("alexnet_owt", 61_100_840, 714_188_480),
        ("alexnet_separate", 60_714_408, 724_323_872),
        ("cifar_80sec", 145_578, 12_354_176),
        ("cifar_13pct", 1_116_490, 18_517_248),
        ("cifar_11pct", 2_112_970, 19_512_576),
    ],
)
def test_totals(name, parameters, multiply_adds):
    summary = summarize(shapes_only(name))
    assert (summary.parameters, summary.multiply_adds) == (parameters, multiply_adds)


def test_multiply_adds_by_hand():
    rows = {row.layer: row.multiply_adds for row in summarize(shapes_only("alexnet")).rows}
    assert rows["conv1"] == 55 * 55 * 96 * 11 * 11 * 3
    assert rows["conv2"] == 27 * 27 * 256 * 5 * 5 * 48
    assert rows["fc6"] == 9216 * 4096 and rows["norm1"] == rows["pool1"] == rows["flatten"] == 0
    rows = {row.layer: row.multiply_adds for row in summarize(shapes_only("alexnet_separate")).rows}
    assert rows["fc6"] == 2 * 4608 * 4096 and rows["fc7"] == 2 * 4096 * 2048
    rows = {row.layer: row.multiply_adds for row in summarize(shapes_only("cifar_13pct")).rows}
    assert rows["local3"] == 6 * 6 * 32 * 3 * 3 * 64 and rows["local4"] == 6 * 6 * 32 * 3 * 3 * 32
    rows = {row.layer: row.multiply_adds for row in summarize(shapes_only("lenet5")).rows}
    assert rows["c3"] == 60 * 25 * 10 * 10 and rows["s2"] == 6 * 14 * 14


def test_formulas():
    rows = {row.layer: row for row in summarize(shapes_only("alexnet")).rows}
    assert rows["conv1"].formula == "⌈(224 − 11 + 2·0) / 4⌉ + 1 = 55"
    assert rows["conv1"].kernel == "96 of 11×11×3, stride 4"
    assert rows["conv2"].kernel == "256 of 5×5×48, stride 1, padding 2, 2 towers"
    assert rows["pool1"].formula == "(55 − 3 + 2·0) / 2 + 1 = 27" and rows["pool1"].kernel == "3×3, stride 2"
    assert rows["flatten"].formula == "256·6·6 = 9216" and rows["fc6"].formula == "256·6·6 → 4096"
    assert rows["fc7"].formula == "4096 → 4096" and rows["relu1"].formula == ""
    assert rows["norm1"].kernel == "towers=2, size=5, alpha=0.0001, beta=0.75, k=2.0"
    single = {row.layer: row for row in summarize(shapes_only("alexnet_single")).rows}
    assert single["conv1"].formula == "(227 − 11 + 2·0) / 4 + 1 = 55"
    lenet = {row.layer: row for row in summarize(shapes_only("lenet5")).rows}
    assert lenet["c3"].kernel == "60 of 5×5, 16 maps by a table, stride 1"


def test_formulas_of_the_others():
    rows = {row.layer: row for row in summarize(shapes_only("alexnet_caffe", image_size=105)).rows}
    assert rows["conv1"].formula == "⌊(105 − 11 + 2·0) / 4⌋ + 1 = 24"
    assert rows["pool1"].formula == "⌈(24 − 3 + 2·0) / 2⌉ + 1 = 12"
    assert rows["conv2"].kernel == "256 of 5×5×48, stride 1, padding 2, 2 groups"  # no towers: norms see all
    rows = {row.layer: row for row in summarize(shapes_only("alexnet_owt", image_size=300)).rows}
    assert (rows["avgpool"].formula, rows["avgpool"].kernel) == ("6 from any size", "⌊8·i / 6⌋ to ⌈8·(i + 1) / 6⌉")
    assert rows["avgpool"].output == (256, 6, 6)
    rows = {row.layer: row for row in summarize(shapes_only("alexnet_separate")).rows}
    assert rows["fc6"].formula == "256·6·6 → 8192" and rows["fc6"].kernel == "2 towers, 4608 → 4096 each"
    rows = {row.layer: row for row in summarize(shapes_only("cifar_13pct")).rows}
    assert rows["local3"].kernel == "32 of 3×3×64 a pixel, stride 1, padding 1"
    rows = {row.layer: row for row in summarize(shapes_only("alexnet_2012")).rows}
    assert rows["spatial2"].kernel == "size=5, scale=0.001, beta=0.75, k=1.0"


@pytest.mark.parametrize("name", list_models())
def test_as_dict_survives_json(name):
    summary = summarize(shapes_only(name))
    found = json.loads(json.dumps(summary.as_dict()))
    assert found == summary.as_dict()
    assert found["name"] == name and found["parameters"] == summary.parameters
    assert [layer["layer"] for layer in found["layers"]] == [row.layer for row in summary.rows]
    assert sum(layer["activation_bytes"] for layer in found["layers"]) == found["activation_bytes"]


@pytest.mark.parametrize("name", list_models())
def test_rendered_rows_fit_their_columns(name):
    table = summarize(shapes_only(name)).render()
    assert all(len(row) == len(table.columns) for row in [*table.rows, table.totals])
    assert table.title.startswith(f"{name}, input ")
    sizes = ("receptive field", "parameters", "multiply-adds", "memory")
    assert table.columns == ("layer", "kind", "output", "size", "kernel", *sizes)


def test_rendered_text():
    table = summarize(shapes_only("alexnet")).render()
    assert table.title == "alexnet, input 3·224·224"
    assert table.rows[0] == (
        "conv1",
        "convolution",
        "96·55·55",
        "⌈(224 − 11 + 2·0) / 4⌉ + 1 = 55",
        "96 of 11×11×3, stride 4",
        "11×11",
        "34,944",
        "105,415,200",
        "1,134.4 KiB",
    )
    assert table.rows[1] == ("relu1", "ReLU", "96·55·55", "", "", "11×11", "", "", "")
    assert table.totals[0] == "total" and table.totals[6:8] == ("60,965,224", "724,406,816")


def test_a_layer_it_does_not_know():
    network = shapes_only("lenet5")
    network.squash1 = nn.Softplus()
    with pytest.raises(ModelError) as caught:
        summarize(network)
    assert str(caught.value) == ("layer 'squash1' is a Softplus; must be of a kind that alexnet.models.summary knows")


def test_every_kind_is_used():
    used = {type(layer) for name in list_models() for layer in shapes_only(name).children()}
    assert set(KINDS) <= used
