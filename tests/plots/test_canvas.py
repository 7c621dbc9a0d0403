import subprocess
import sys

import pytest
from PIL import Image

from alexnet.errors import RunError
from alexnet.plots import canvas
from alexnet.terminal import shorten


def test_save_writes_a_whole_png_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "images" / "a.png"
    assert canvas.save(canvas.new_figure(2, 1), path) == path
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (2 * canvas.DPI, canvas.DPI)


def test_save_replaces_an_older_image(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"older")
    canvas.save(canvas.new_figure(1, 1), str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_save_that_fails_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunError, match=r"taken: cannot be written \(.+\); must be a file in a writable folder"):
        canvas.save(canvas.new_figure(1, 1), tmp_path / "taken")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match="cannot be written"):
        canvas.save(canvas.new_figure(1, 1), tmp_path / "file" / "a.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "taken"]


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("tench", 5, "tench"),
        ("tench, Tinca", 7, "tench…"),
        ("two\n  lines", 20, "two lines"),
        ("中文类别", 8, "中文类别"),
        ("中文类别", 6, "中文…"),
        ("bad\udcff", 9, "bad?"),
        ("", 3, ""),
        ("abc", 1, "…"),
    ],
)
def test_shorten(text, limit, expected):
    assert shorten(text, limit) == expected


@pytest.mark.parametrize("name", ["M" * 500, "$\\frac{1}{$", "中文" * 40, "bad\udcff name\n" * 9, "x"])
def test_fit_keeps_any_name_inside_its_room(name):
    label = canvas.new_figure(4, 1).text(0, 0, name)
    assert 0 < canvas.fit(label, 1.5) <= 1.5
    assert label.get_text() == name or label.get_text().endswith("…")


def test_names_that_would_look_alike_keep_their_ends():
    names = [
        "Tomato, leaf with yellow curl virus",
        "Tomato, leaf with mosaic virus",
        "Potato",
        "Tomato, leaf with mold",
    ]
    short = canvas.short_names(names, 20)
    assert short == ["Tomato, leaf with y…", "Tomato, le…aic virus", "Potato", "Tomato, le…with mold"]
    assert canvas.short_names(["Tomato, leaf with mold", "Potato"], 20) == ["Tomato, leaf with m…", "Potato"]
    assert all(len(name) <= 20 for name in canvas.short_names(["a\n" * 10_000 + "b", "a " * 10_000 + "c"], 20))


def test_headings_with_a_long_path_stay_inside():
    figure = canvas.new_figure(11, 4)
    canvas.headings(figure, "test error of all on /home/someone/" + "folder/" * 30, "words of a subtitle " * 30)
    figure.subplots().set_title("x")
    figure.draw_without_rendering()
    for text in (figure._suptitle, figure._supxlabel):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= 11 * canvas.DPI and box.y0 >= 0 and box.y1 <= 4 * canvas.DPI


def test_neither_pyplot_nor_a_changed_setting_nor_an_early_import(tmp_path):
    code = f"""
import sys
import numpy as np
from alexnet.plots import canvas, curves, evaluation, filters, predictions
assert "matplotlib" not in sys.modules, "imported too early"
import matplotlib
before = matplotlib.rcParams.copy()
out = {str(tmp_path)!r}
filters.draw_filters(np.ones((2, 3, 3, 3)), 1, out + "/f.png")
curves.draw([{{"epoch": 1, "validation_top1": 0.5, "lr": 0.1}}], out + "/c.png")
evaluation.draw_confusion(np.eye(2, dtype=int), ["a", "b"], out + "/m.png")
predictions.draw([np.zeros((8, 8, 3), np.uint8)], ["a"], [[("a", 1.0)]], out + "/p.png")
assert "matplotlib.pyplot" not in sys.modules, "pyplot"
assert matplotlib.rcParams.copy() == before, "settings"
"""
    # pyparsing deprecates what matplotlib before 3.10.8 calls
    subprocess.run([sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", code], check=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c.png", "f.png", "m.png", "p.png"]
