import numpy as np
import pytest
from PIL import Image

from alexnet.errors import DataError
from alexnet.plots import evaluation

THREE = np.array([[8, 2, 0], [0, 5, 0], [1, 0, 3]])


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_cells_hold_count_and_row_percent_at_their_place():
    axes = evaluation.confusion_figure(THREE, ["a", "b", "c"]).axes[0]
    found = {(round(text.xy[0]), round(text.xy[1]), text.get_text()) for text in axes.texts}
    assert (1, 0, "2") in found  # predicted b, truly a: second column, first row
    assert (1, 0, "20.0 %") in found
    assert (0, 2, "25.0 %") in found
    assert len(found) == 2 * 5  # the four cells without images stay empty
    assert axes.get_xlabel() == "predicted class"
    assert axes.get_ylabel() == "true class"
    assert axes.get_title() == "Accuracy 84.21 %, error 15.79 %\n16 of 19 images"


def test_shares_of_a_class_without_images_are_zero():
    shares = evaluation.shares(np.array([[1, 3], [0, 0]]))
    assert shares.tolist() == [[25, 75], [0, 0]]


def test_a_heat_map_alone_above_twenty_classes():
    many = evaluation.confusion_figure(np.eye(21, dtype=int), [f"class {n}" for n in range(21)])
    assert words(many.axes[0]) == []
    assert len(many.axes) == 2  # and its scale
    few = evaluation.confusion_figure(np.eye(20, dtype=int), [f"class {n}" for n in range(20)])
    assert len(words(few.axes[0])) == 40
    assert len(few.axes) == 1


@pytest.mark.parametrize(("classes", "step"), [(1, 1), (40, 1), (41, 2), (100, 5), (200, 5), (1000, 50), (21841, 1000)])
def test_tick_step(classes, step):
    assert evaluation.tick_step(classes) == step


def test_a_thousand_classes(tmp_path):
    matrix = 50 * np.eye(1000, dtype=np.int64)
    path = evaluation.draw_confusion(
        matrix, [f"n{n:08d} tench, Tinca tinca, and more words" for n in range(1000)], tmp_path / "m.png"
    )
    with Image.open(path) as image:
        assert min(image.size) > 1000  # a class is a pixel or more
        pixels = np.array(image.convert("RGB"))
    assert (pixels.max(axis=2) < 140).sum() > 1000  # the diagonal is dark
    axes = evaluation.confusion_figure(matrix, [str(n) for n in range(1000)]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()][:3] == ["0", "50", "100"]
    assert "every 50th is named" in axes.get_xlabel()
    assert [file.name for file in tmp_path.iterdir()] == ["m.png"]


def test_dark_cells_are_where_the_counts_are(tmp_path):
    with Image.open(evaluation.draw_confusion(np.array([[0, 9], [9, 0]]), ["a", "b"], tmp_path / "m.png")) as image:
        dark = np.argwhere(np.array(image.convert("RGB")).sum(axis=2) == 8 + 48 + 107)  # the darkest blue
    middle = dark.mean(axis=0)
    upper, lower = dark[dark[:, 0] < middle[0]], dark[dark[:, 0] > middle[0]]
    assert upper[:, 1].min() > middle[1] > lower[:, 1].max()


@pytest.mark.parametrize("names", [["$5 or $10", "\\frac{"], ["long " * 50, "中文" * 30], ["", "\udcff"]])
def test_any_name_is_drawn_and_shortened(tmp_path, names):
    assert evaluation.draw_confusion(np.eye(2, dtype=int), names, tmp_path / "m.png").stat().st_size > 1000
    axes = evaluation.confusion_figure(np.eye(2, dtype=int), names).axes[0]
    assert max(len(label.get_text()) for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]) < 40


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((2, 3), int), r"a confusion matrix has the shape \[2, 3\]; must be \[2, 2\], one row a class"),
        (np.eye(3, dtype=int), r"the shape \[3, 3\]; must be \[2, 2\]"),
        (np.eye(2), "a confusion matrix of float64, lowest 0.0; must be counts"),
        (np.array([[1, -1], [0, 0]]), "a confusion matrix of int64, lowest -1"),
        (np.zeros((2, 2), int), "a confusion matrix without images; evaluate a split that has some"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, matrix, message):
    with pytest.raises(DataError, match=message):
        evaluation.draw_confusion(matrix, ["a", "b"], tmp_path / "m.png")
    assert not list(tmp_path.iterdir())


def test_a_cell_is_of_several_classes_where_there_are_more_than_pixels(monkeypatch):
    monkeypatch.setattr(evaluation, "LARGEST", 100)
    matrix = np.diag(np.arange(1, 251))
    matrix[0, 249] = 1
    axes = evaluation.confusion_figure(matrix, [str(n) for n in range(250)]).axes[0]
    (image,) = axes.get_images()
    assert image.get_array().shape == (84, 84) and image.get_extent() == [-0.5, 251.5, 251.5, -0.5]
    assert image.get_array()[0, 0] == 100 * 6 / 7 and image.get_array()[0, 83] == 100 / 7  # 1 + 2 + 3, and the mistake
    assert axes.get_title().endswith("a cell is of 3 × 3 classes")
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["0", "10"]
