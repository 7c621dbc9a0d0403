import pytest

from alexnet.errors import DataError
from alexnet.evaluation.intervals import Estimate
from alexnet.plots import studies


def bars():
    return [
        studies.ContestBar("AlexNet, two towers", 12.0, 10.1, 14.2, 6.3, 500.0, False),
        studies.ContestBar("SIFT + Fisher vectors", 31.0, 28.2, 34.0, 95.0, 300.0, True),
        studies.ContestBar(
            "a network with $a rather long name$ that nobody could read whole", 0.0, 0.0, 1.1, 1.0, 20.0, False
        ),
    ]


def test_every_contestant_has_its_row(tmp_path):
    drawing = studies.contest_figure("Contest", "few images", bars())
    left, right = drawing.axes
    assert [label.get_text() for label in left.get_yticklabels()][:2] == [
        "AlexNet, two towers",
        "SIFT + Fisher vectors",
    ]
    assert {text.get_text() for text in left.texts} == {"12.0 %", "31.0 %", "0.0 %"}
    assert [text.get_text() for text in right.texts] == ["1", "2", "3"]
    assert "milliseconds" in right.get_xlabel()
    path = studies.draw_contest("Contest", "few images", bars(), tmp_path / "contest.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_milliseconds_the_time_of_learning_is_shown():
    drawing = studies.contest_figure("Contest", "", [bar._replace(milliseconds=0.0) for bar in bars()])
    assert "seconds of training" in drawing.axes[1].get_xlabel()


def test_depth_shows_both_kinds(tmp_path):
    points = [studies.Point(n, kind, [n / 2 + kind, n / 3], [n, n + 1.0]) for n in (8, 20) for kind in (False, True)]
    curves = [studies.Curve(n, kind, [50.0, 20.0, float(n)]) for n in (8, 20) for kind in (False, True)]
    drawing = studies.depth_figure("Depth", "", points, curves)
    assert len(drawing.axes) == 3
    assert [text.get_text() for text in drawing.axes[1].get_legend().get_texts()] == ["plain", "residual"]
    assert studies.draw_depth("Depth", "", points, curves, tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")


def test_many_layers_and_neighboring_sizes_have_upright_labels(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(studies.canvas, "save", lambda figure, path: drawn.append(figure) or path)
    one = Estimate(0.5, 0.4, 0.6, 100)
    studies.draw_probes("probes", [(f"inception_{k}a", one, one) for k in range(24)], tmp_path / "a.png")
    studies.draw_probes("probes", [(f"conv{k}", one, one) for k in range(8)], tmp_path / "b.png")
    for sizes in ((100, 1000, 1500), (100, 300, 1000)):
        studies.draw_data_size("sizes", {"a": [(n, 0.5, 0.4, 0.6) for n in sizes]}, {}, tmp_path / "c.png")
    assert [figure.axes[0].get_xticklabels()[0].get_rotation() for figure in drawn] == [90, 0, 90, 0]


def test_nothing_to_draw():
    with pytest.raises(DataError, match="without contestants cannot be drawn"):
        studies.contest_figure("", "", [])
    with pytest.raises(DataError, match="without networks cannot be drawn"):
        studies.depth_figure("", "", [], [])
