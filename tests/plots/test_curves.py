import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from alexnet.errors import DataError
from alexnet.plots import canvas, curves


def results(count=9, best=6):
    return [
        {
            "epoch": float(epoch),
            "train_loss": 3.0 / epoch,
            "train_top1": 1 - 0.5 / epoch,
            "validation_loss": 3.5 / epoch,
            "validation_top1": 0.8 - 0.01 * abs(epoch - best),
            "validation_top5": 0.9,
            "lr": 0.01 if epoch < 5 else 0.001,
        }
        for epoch in range(1, count + 1)
    ]


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def vermilion(path):
    with Image.open(path) as image:
        away = np.abs(np.array(image.convert("RGB")) - 255 * np.array(to_rgb(canvas.VERMILION)))
    return int((away.max(axis=2) < 3).sum())


def test_errors_are_drawn_and_the_best_epoch_is_marked():
    loss, error, rate = curves.figure(results()).axes
    drawn = lines(error)
    assert drawn["validation"].get_ydata()[5] == pytest.approx(20)
    assert drawn["validation, top-5"].get_ydata()[0] == pytest.approx(10)
    assert drawn["train"].get_ydata()[0] == pytest.approx(50)
    assert drawn["best epoch"].get_xydata().tolist() == [[6, pytest.approx(20)]]
    assert error.get_ylim()[0] == 0
    assert lines(loss)["train"].get_ydata()[2] == pytest.approx(1)
    assert rate.get_yscale() == "log"
    assert curves.headline(results()) == "Best validation epoch: 6 of 9, error 20.00 %, accuracy 80.00 %"


def test_the_epoch_with_the_lowest_loss_is_marked_where_it_is_the_one_kept():
    figure = curves.figure(results(), by_loss=True)  # the loss falls to the end, the error only to epoch 6
    assert lines(figure.axes[1])["best epoch"].get_xydata().tolist() == [[9, pytest.approx(23)]]
    assert curves.headline(results(), by_loss=True).startswith("Lowest validation loss: epoch 9 of 9, error 23.00 %")


@pytest.mark.parametrize("rates", [(1e-4, 3e-4), (2e-4, 1e-4, 1.5e-4), (1e-4, 1e-10), (0.01, 0.001)])
def test_learning_rates_have_one_format_on_an_axis(rates):
    rows = [row | {"lr": rate} for row, rate in zip(results(len(rates), 1), rates, strict=True)]
    figure = curves.figure(rows)
    figure.draw_without_rendering()
    axes = figure.axes[2]
    low, high = axes.get_ylim()  # older versions of matplotlib have ticks outside, which are not drawn
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    labels = [label.get_text() for value, label in ticks if low <= value <= high]
    assert len({"e" in label for label in labels if label not in ("", "0")}) == 1, labels


def test_the_mark_is_seen_in_the_image(tmp_path):
    marked = curves.draw(results(), tmp_path / "a.png")
    rows = [{name: value for name, value in row.items() if "validation" not in name} for row in results()]
    plain = curves.draw(rows, tmp_path / "b.png")
    assert vermilion(marked) > 100
    assert vermilion(plain) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.png"]
    with Image.open(marked) as image:
        assert image.size == (13 * canvas.DPI, round(4.4 * canvas.DPI))


def test_best_is_the_earliest_of_equals_and_passes_over_what_is_missing():
    rows = [{"epoch": n, "validation_top1": top1} for n, top1 in enumerate([math.nan, 0.5, 0.7, 0.7], 1)]
    assert curves.best([{"epoch": 0}, *rows])["epoch"] == 3
    assert curves.best(rows[:1]) is None


def test_one_row_is_a_image(tmp_path):
    assert curves.draw(results(1), tmp_path / "a.png").stat().st_size > 1000
    assert curves.draw([{"epoch": 1}], tmp_path / "b.png").stat().st_size > 1000
    assert curves.headline([{"epoch": 1}]) == "1 epoch, not validated"


def test_missing_numbers_are_passed_over():
    rows = results()
    for row in rows[::2]:
        row["validation_top1"] = math.nan
        del row["validation_loss"]
    rows[3]["train_loss"] = math.inf
    loss, error, _ = curves.figure(rows).axes
    assert lines(error)["validation"].get_xdata().tolist() == [2, 4, 6, 8]
    assert lines(loss)["validation"].get_xdata().tolist() == [2, 4, 6, 8]
    assert 4 not in lines(loss)["train"].get_xdata()


@pytest.mark.parametrize("rates", [[0.01, 0.01], [0.01, 0.005], [0.0, 0.0], [0.1, 0.0]])
def test_a_learning_rate_of_one_decade_is_drawn_from_zero(rates):
    rate = curves.figure([{"epoch": n, "lr": value} for n, value in enumerate(rates)]).axes[2]
    assert rate.get_yscale() == "linear"
    assert rate.get_ylim()[0] == 0
    assert rate.get_ylim()[1] > max(rates)


@pytest.mark.parametrize("rates", [[1e-2, 1e-3, 1e-4, 1e-5], [0.00025, 0.00005], [0.1, 0.01, 0.001]])
def test_learning_rates_have_one_format(rates):
    drawing = curves.figure([{"epoch": n, "lr": value} for n, value in enumerate(rates, 1)])
    drawing.canvas.draw()
    labels = {label.get_text() for label in drawing.axes[2].get_yticklabels()} - {"", "0"}
    assert len({len(label.partition("e")[0]) for label in labels if "e" in label}) <= 1
    assert all("e" in label for label in labels) == (min(rates) < 1e-4) and labels


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the results have no rows; must be one for each epoch; train for one epoch first"),
        ([{"train_loss": 1.0}], "a row of the results has no epoch; must be a number in the column 'epoch'"),
        ([{"epoch": math.nan}], "a row of the results has no epoch"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        curves.draw(rows, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
