"""A claim's image: one curve a training, one bar a thing, the means written."""

import pytest

from alexnet.errors import DataError
from alexnet.plots.studies import ClaimBar, Line, claims_figure, draw_claims

LINES = [Line("ReLU", [60, 30, 20], 0), Line("ReLU", [62, 33, 22], 0), Line("tanh", [70, 60, 50], 1)]
BARS = [ClaimBar("ReLU", [2.4, 2.6]), ClaimBar("tanh", [14.0])]


def test_every_training_is_a_curve_and_every_seed_a_dot():
    left, right = claims_figure("relu: holds", "", LINES, 25.0, BARS, "Epochs").axes
    curves = [line for line in left.lines if len(line.get_ydata()) == 3]
    assert [list(line.get_ydata()) for line in curves] == [line.errors for line in LINES]
    assert [line.get_linestyle() for line in curves] == ["-", "-", "--"]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["ReLU", "tanh"]
    assert any(set(line.get_ydata()) == {25.0} for line in left.lines)
    assert [patch.get_width() for patch in right.patches] == pytest.approx([2.5, 14.0])
    assert [len(line.get_xdata()) for line in right.lines] == [2, 1]
    assert {"2.50", "14.00"} <= {text.get_text() for text in right.texts}
    assert [label.get_text() for label in right.get_yticklabels()] == ["ReLU", "tanh"]


def test_without_a_level_nothing_is_marked():
    left, _ = claims_figure("norm", "", LINES, 0.0, BARS, "Error").axes
    assert len(left.lines) == len(LINES) and not left.texts


def test_the_file(tmp_path):
    path = draw_claims(
        "a $title$", "few", LINES, 25.0, [*BARS, ClaimBar("x" * 60, [1.0])], "Epochs", tmp_path / "new" / "a.png"
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="without trainings"):
        draw_claims("", "", [], 0.0, BARS, "", tmp_path / "b.png")
