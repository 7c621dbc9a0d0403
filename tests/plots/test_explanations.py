"""Drawings that explain: what is shown where, in which color, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from alexnet.errors import DataError, ModelError
from alexnet.evaluation.calibration import at_threshold, risk_coverage
from alexnet.evaluation.calibration import reliability as measure
from alexnet.evaluation.one_vs_rest import shown_curves
from alexnet.plots import embedding, evaluation, explanations, filters
from alexnet.plots import evaluation as risks

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 24, 3)).astype(np.uint8)


def texts(drawing):
    return [text.get_text() for text in drawing.texts]


def test_feature_maps_share_one_scale():
    values = np.zeros((3, 4, 4))
    values[0], values[1, 0, 0] = 2.0, -1.0
    tiles = filters.map_shades(values)
    assert (tiles[0] == [0xD5, 0x5E, 0x00]).all()  # the strongest: vermilion
    assert (tiles[2] == 235).all() and tiles[1, 0, 0].tolist() == [118, 174, 206]  # half the way to blue
    words = texts(filters.feature_maps_figure(IMAGE, values, "conv9"))[0]
    assert words == "Output of conv9 for this image\n3 feature maps of 4×4\n1 of them are 0 everywhere"


@pytest.mark.parametrize("shape", [(1, 2, 2), (600, 3, 3), (5, 200, 200), (4096,)])
def test_any_layer_has_a_drawing(shape, tmp_path):
    values = np.random.default_rng(1).normal(size=shape)
    with Image.open(filters.draw_feature_maps(IMAGE, values, "x", tmp_path / "maps.png")) as image:
        assert 900 <= image.width <= 1500 and image.height <= 2500
    if shape[0] == 600:
        assert "the 512 strongest are shown" in texts(filters.feature_maps_figure(IMAGE, values, "x"))[0]
        assert filters.strongest(np.arange(4.0).reshape(4, 1, 1), 2).tolist() == [2, 3]


def test_a_layer_that_is_not_finite_is_refused():
    with pytest.raises(ModelError, match=r"outputs \[2, 3, 3\] of layer x"):
        filters.feature_maps_figure(IMAGE, np.full((2, 3, 3), np.nan), "x")


def looked(**change):
    values = {"gradient": np.zeros((24, 24)), "grad_cam": np.zeros((24, 24)), "occlusion": np.zeros((24, 24))}
    return explanations.SaliencyRow(IMAGE, **{**values, **change}, title="a title")


def test_maps_of_saliency_are_scaled_to_themselves_and_signed_by_color():
    row = np.zeros((24, 24))
    row[0, 0], row[1, 1] = 4.0, -2.0
    _, gradient, cam, hidden = explanations.panels(
        looked(gradient=np.abs(row) * 9, grad_cam=np.maximum(row, 0), occlusion=row)
    )
    assert gradient[0, 0].tolist() == [255] * 3 and gradient[5, 5].tolist() == [0] * 3
    assert cam[0, 0, 0] > cam[0, 0, 2] + 60  # yellow
    assert hidden[0, 0, 0] > hidden[0, 0, 2] and hidden[1, 1, 2] > hidden[1, 1, 0]  # orange above 0, blue below
    dark = 0.55 * IMAGE[5, 5].mean() + 20
    assert cam[5, 5] == pytest.approx(dark, abs=1) and hidden[5, 5] == pytest.approx(dark, abs=1)


def test_rows_of_saliency(tmp_path):
    drawing = explanations.saliency_figure([looked(), looked()])
    assert len(drawing.axes) == 8 and set(explanations.COLUMNS) <= set(texts(drawing)) and "a title" in texts(drawing)
    assert explanations.draw_saliency([looked()], tmp_path / "s.png").is_file()
    with pytest.raises(DataError, match="13 images on one page"):
        explanations.saliency_figure([looked()] * 13)


def test_neighbors_of_another_class_are_red():
    near = [embedding.Neighbor(IMAGE, "cat", 1.25), embedding.Neighbor(IMAGE, "dog", 2.5)]
    drawing = embedding.neighbors_figure(
        [embedding.NeighborRow(IMAGE, "cat", "cat", near), embedding.NeighborRow(IMAGE, "cat", "dog", near)]
    )
    found = {text.get_text(): text.get_color() for text in drawing.texts}
    assert found["1.25 · cat"] == embedding.canvas.GRAY and found["2.50 · dog"] == embedding.canvas.VERMILION
    assert {"✓ predicted: cat", "✗ predicted: dog", "true: cat"} <= found.keys()
    unknown = texts(embedding.neighbors_figure([embedding.NeighborRow(IMAGE, None, "dog", near)]))
    assert "predicted: dog" in unknown and len(drawing.axes) == 6
    with pytest.raises(DataError, match="0 images"):
        embedding.neighbors_figure([])


def test_a_map_of_images_names_its_classes():
    points = np.array([[0.0, 0], [1, 1], [5, 5], [6, 6]])
    drawing = embedding.embedding_figure(points, np.array([0, 0, 2, 2]), ["a$b", "none", "c"], "title", "note")
    axes = drawing.axes[0]
    assert [text.get_text() for text in axes.get_legend().texts] == ["a$b", "c"] and len(axes.collections) == 2
    with pytest.raises(DataError, match="with 3 labels"):
        embedding.embedding_figure(points, np.array([0, 1, 2]), ["a", "b", "c"], "", "")


@pytest.mark.parametrize("classes", [2, 12, 40, 200])
def test_each_class_of_a_map_has_its_own_look_and_every_name_is_inside(classes):
    assert len({embedding.style(k) for k in range(classes)}) == classes
    assert len({embedding.style(k)[:2] for k in range(min(classes, 100))}) == min(classes, 100)
    draw = np.random.default_rng(0)
    names = [f"a class with a long name, the one of number {k}" for k in range(classes)]
    note = "Of each image's ten nearest in feature space, 19 % are among its ten nearest here (by chance 1.0 %). " * 2
    drawing = embedding.embedding_figure(
        draw.normal(size=(2 * classes, 2)), np.arange(2 * classes) % classes, names, "t", note
    )
    drawing.canvas.draw()
    width, height = drawing.get_size_inches() * drawing.dpi
    axes = drawing.axes[0]
    legend = axes.get_legend()
    assert len(legend.texts) == min(classes, 40)
    assert (legend.get_title().get_text() == "every 5th class is named") == (classes == 200)
    for text in (*legend.texts, axes.xaxis.label, axes.title):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()


def test_numbers_side_by_side_have_one_format():
    assert [*map(embedding.canvas.decimals([1.81, 1.9, 2]), (1.81, 1.9, 2, 0.152))] == ["1.81", "1.90", "2.00", "0.15"]
    assert [*map(embedding.canvas.decimals([131.4, 9.0]), (131.4, 9.0))] == ["131", "9"]
    assert [*map(embedding.canvas.decimals([0.0]), (0.0,))] == ["0.00"]


def test_a_map_without_anything_to_show_says_so_on_its_panel():
    def remarks(drawing):
        return [[text.get_text() for text in axes.texts] for axes in drawing.axes]

    some = np.eye(24)
    drawing = explanations.saliency_figure([looked(gradient=some, occlusion=some), looked(grad_cam=some)])
    assert remarks(drawing)[:4] == [[], [], ["all 0: no evidence for the class\nin the last feature maps"], []]
    assert [bool(own) for own in remarks(drawing)[4:]] == [False, True, False, True]


def test_reliability_and_risk_have_a_point_for_each_bin_and_threshold(tmp_path):
    generator = np.random.default_rng(0)
    rows = generator.dirichlet(np.ones(3), 200)
    labels = generator.integers(0, 3, 200)
    found = measure(rows, labels)
    drawing = evaluation.reliability_figure(found.bins)
    dots = next(line for line in drawing.axes[0].lines if line.get_marker() == "o")
    full = [one for one in found.bins if one.count]
    assert dots.get_xdata() == pytest.approx([100 * one.confidence for one in full])
    assert dots.get_ydata() == pytest.approx([100 * one.accuracy for one in full])
    assert [bar.get_height() for bar in drawing.axes[1].patches] == [one.count for one in full]
    sure, right = rows.max(1), rows.argmax(1) == labels
    curve, mark = risk_coverage(sure, right), at_threshold(sure, right, 0.6)
    chart = risks.risk_coverage_figure(curve, [mark, at_threshold(sure, right, 2.0)]).axes[0]
    assert chart.lines[0].get_ydata()[-1] == pytest.approx(100 * (~right).mean())
    assert [text.get_text() for text in chart.texts] == ["p ≥ 0.60"]  # one that answers nothing has no point
    assert risks.draw_risk_coverage(curve, [], tmp_path / "r.png").is_file()


def test_roc_and_precision_recall_curves(tmp_path):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 200)
    rows = generator.dirichlet(np.ones(6), 200) + np.eye(6)[labels] * generator.random((200, 1))
    aurocs = [0.9, 0.5, 0.8, 0.7, np.nan, 0.6]
    shown = shown_curves("abcdef", aurocs, rows / rows.sum(1, keepdims=True), labels)
    assert [one.name for one in shown] == ["b", "f", "d", "c"]  # the lowest areas first
    figure = risks.roc_figure(shown, 6)
    assert "4 of 6 classes with the lowest AUROC" in figure.get_supxlabel()
    roc, precision = figure.axes
    dashed = [line.get_ydata()[0] for line in precision.lines if line.get_linestyle() == "--"]
    assert dashed == pytest.approx([100 * one.prevalence for one in shown])  # each class has a chance of its own
    texts = [text.get_text() for text in roc.get_legend().get_texts()]
    assert len(texts) == 4 and texts[0].startswith(f"b: AUROC {100 * shown[0].roc.area.value:.1f} % (")
    assert roc.lines[0].get_ydata() == pytest.approx([100 * y for y in shown[0].roc.y])
    assert precision.lines[0].get_xdata() == pytest.approx([100 * x for x in shown[0].precision_recall.x])
    assert risks.draw_roc(shown[:1], tmp_path / "roc.png").is_file()
    assert [one.name for one in shown_curves("xy", [0.5, 0.5], rows[:, :2], labels % 2)] == ["y"]
    with pytest.raises(DataError, match="ROC curves of no class"):
        risks.roc_figure(())
    with pytest.raises(DataError, match="no images"):
        evaluation.reliability_figure([])
