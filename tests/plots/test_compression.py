"""The drawing of the stages: a bar each, with its size; accuracy where it is known."""

import pytest

from alexnet.errors import DataError
from alexnet.plots import studies

ROWS = [
    ("original", 244_000_000, 0.60, (0.55, 0.65)),
    ("pruned", 30_000_000, 0.2, (0.15, 0.25)),
    ("coded", 6_900_000, 0.601, (0.551, 0.651)),
]


def test_bars_and_points(tmp_path):
    drawing = studies.compression_figure(ROWS)
    sizes, below = drawing.axes
    assert [bar.get_height() for bar in sizes.patches] == pytest.approx([244, 30, 6.9])
    assert [text.get_text() for text in sizes.texts] == ["244 MB\n1 ×", "30 MB\n8.13 ×", "6.9 MB\n35.4 ×"]
    assert [text.get_text() for text in below.texts] == ["60.0", "20.0", "60.1"]
    assert [label.get_text() for label in below.get_xticklabels()] == ["original", "pruned", "coded"]
    drawing.canvas.draw()
    assert {"10", "100"} <= {label.get_text() for label in sizes.get_yticklabels()}
    path = studies.draw_compression(ROWS, tmp_path / "stages.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_without_images_there_is_no_accuracy():
    assert len(studies.compression_figure([(name, size, None, None) for name, size, _, _ in ROWS]).axes) == 1
    with pytest.raises(DataError, match="a compression without stages"):
        studies.compression_figure([])
