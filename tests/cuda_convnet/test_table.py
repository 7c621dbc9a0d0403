"""The table of a layer file, and the command that prints it."""

import json

from layer_examples import HERE, files

from alexnet import cli
from alexnet.cuda_convnet import Data, define, network, parameters


def test_a_row_a_layer_with_its_size_worked_out():
    definition = define(files("towers").layers, Data(32), "towers.cfg")
    shown = network.render(definition, None)
    assert shown.title == "towers.cfg, images 3·32·32"
    rows = {row[0]: row[1:] for row in shown.rows}
    formula = "⌈(32 − 5 + 2·0) / 2⌉ + 1 = 15"
    assert rows["c1b"] == ("conv 5×5, stride 2", "data", "16·15·15", formula, "1,216", "1", "22")
    assert rows["p1a"][:4] == ("pool max 3×3, stride 2", "n1a", "16·7·7", "(15 − 3) / 2 + 1 = 7")
    assert rows["f1b"][1:5] == ("p2b, p2a", "64", "288 + 288 → 64", "36,928")
    assert shown.totals[5] == "96,074"
    assert {len(row) for row in (shown.columns, *shown.rows, shown.totals)} == {8}


def test_the_parameter_file_adds_a_column():
    for name, side, layer, text in (
        ("shared", 8, "f1", "0.01, momentum 0.9, dexp to 1/250; biases 0.02, momentum 0.9, dexp to 1/10"),
        ("images", 32, "c1", "0.001, momentum 0.9, decay 0.0005 | 0.0001, momentum 0.5; biases 0.002, momentum 0.9"),
        ("local", 16, "l1", "0.001, momentum 0.9, wball 0.005; biases 0.002, momentum 0.9"),
        ("shared", 8, "h2", "not enabled"),
        ("sparse", 16, "p1", "drawn"),
        ("towers", 32, "cost", "coeff 1, topk 5"),
        ("towers", 32, "n1a", "scale 0.0001, pow 0.75, minDiv 2"),
    ):
        definition = define(files(name).layers, Data(side))
        shown = network.render(definition, parameters.read(files(name).parameters, definition))
        assert {row[0]: row[-1] for row in shown.rows}[layer] == text
        assert {len(row) for row in (shown.columns, *shown.rows, shown.totals)} == {9}


def test_a_shared_matrix_says_whose_it_is():
    definition = define(files("shared").layers, Data(8))
    rows = {row[0]: row for row in network.render(definition, None).rows}
    assert rows["f3"][5] == "64 = f2[0]"


def test_the_verb(tmp_path, capsys):
    words = ["layers", str(HERE / "sparse.cfg"), str(HERE / "sparse-params.cfg"), "--image-size", "16"]
    assert cli.run(words) == 0
    out = capsys.readouterr().out
    assert "conv 3×3, 4 random groups" in out
    assert "39,914" in out
    assert cli.run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 39_914 == sum(layer["parameters"] for layer in found["layers"])
    assert cli.run([*words, "--plot", str(tmp_path / "g.png")]) == 0
    assert (tmp_path / "g.png").exists()
    capsys.readouterr()
    assert cli.run(["layers", str(HERE / "towers.cfg"), "--image-size", "36"]) == 1
    assert "towers.cfg, line 73, layer 'c2a': parameter partialSum is '7'" in capsys.readouterr().err
    assert cli.run(["layers", str(tmp_path / "none.cfg")]) == 1
    assert "cannot be read" in capsys.readouterr().err
