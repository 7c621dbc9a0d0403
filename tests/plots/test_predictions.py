import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from sklearn.datasets import load_digits

from alexnet import terminal
from alexnet.errors import DataError
from alexnet.plots import canvas, predictions

CAT_DOG = [("cat", 0.25), ("dog", 0.75)]


def digits(count):
    shades = np.rint(load_digits().images[:count] * 255 / 16).astype(np.uint8)
    return np.repeat(shades[..., None], 3, axis=3)  # [N, 8, 8, 3]


def bar_colors(axes):
    """The colors of the bars, without the pale rail behind each."""
    return [to_hex(bar.get_facecolor()).upper() for bar in axes.patches[1::2]]


def test_the_likeliest_first_the_true_class_marked_and_right_or_wrong_told():
    drawing = predictions.figure(digits(3), ["dog", "cat", None], [CAT_DOG] * 3)
    right, bars, wrong, wrong_bars, unknown, unknown_bars = drawing.axes
    assert [right.get_title(), wrong.get_title(), unknown.get_title()] == [
        "✓ true: dog",
        "✗ true: cat",
        "true: unknown",
    ]
    assert [axes.texts[0].get_text() for axes in (right, wrong, unknown)] == ["predicted: dog"] * 3
    assert [text.get_text() for text in bars.texts] == ["✓ dog", "75.0 %", "cat", "25.0 %"]
    assert [text.get_text() for text in wrong_bars.texts] == ["dog", "75.0 %", "✓ cat", "25.0 %"]
    assert bar_colors(bars) == [canvas.SKY, "#CCCCCC"]
    assert bar_colors(wrong_bars) == ["#CCCCCC", canvas.SKY]
    assert bar_colors(unknown_bars) == ["#CCCCCC", "#CCCCCC"]
    assert [bar.get_width() for bar in bars.patches[1::2]] == [0.75, 0.25]


def test_the_image_itself_is_seen(tmp_path):
    magenta = np.zeros((300, 200, 3), np.uint8) + np.array([250, 0, 200], np.uint8)
    path = predictions.draw([magenta], ["dog"], [CAT_DOG], tmp_path / "p.png")
    with Image.open(path) as image:
        seen = np.argwhere((np.array(image.convert("RGB")) == [250, 0, 200]).all(axis=2))
    tall, wide = np.ptp(seen, axis=0) + 1
    assert tall == pytest.approx(predictions.SIDE * canvas.DPI, abs=4)
    assert wide / tall == pytest.approx(200 / 300, abs=0.02)
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize("count", [1, 2, 5, 8, 17, 30])
def test_any_number_of_images_fits(tmp_path, count):
    rankings = [[(str(n), (10 - n) / 55) for n in range(10)]] * count
    drawing = predictions.figure(digits(count), ["0"] * count, rankings)
    assert len(drawing.axes) == 2 * count
    for axes in drawing.axes:
        place = axes.get_position()
        assert place.x0 > 0
        assert place.y0 > 0
        assert place.x1 < 1
        assert place.y1 < 1
    assert len(drawing.axes[1].patches) == 2 * predictions.SHOWN
    canvas.save(drawing, tmp_path / "p.png")


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 4), (5, 3), (6, 3), (8, 4), (9, 3), (20, 5), (30, 5)])
def test_columns(count, columns):
    assert predictions.grid_columns(count) == columns


def test_long_and_odd_names_stay_beside_their_percentage(tmp_path):
    names = ["Madagascar cat, ring-tailed cat, Lemur catta", "M" * 99, "中文类别" * 9, "$\\frac{1}$", "bad\udcff\nname"]
    drawing = predictions.figure(digits(1), [names[0]], [[(name, 0.2) for name in names]])
    texts = drawing.axes[1].texts
    for label, value in zip(texts[::2], texts[1::2], strict=True):
        with canvas._quiet():
            assert label.get_window_extent().x1 < value.get_window_extent().x0
    assert drawing.axes[0].get_title().startswith("✓ true: Madagascar")
    canvas.save(drawing, tmp_path / "p.png")


def test_near_identical_images_are_counted_on_the_one_that_is_shown():
    drawing = predictions.figure(digits(2), ["dog", "cat"], [CAT_DOG] * 2, [0, 3])
    assert [len(drawing.axes[0].texts), drawing.axes[2].texts[1].get_text()] == [1, "+3 near-duplicates"]


@pytest.mark.parametrize(
    ("probability", "words"),
    [(0.9712, "97.1 %"), (1.0, "100.0 %"), (0.99997, ">99.9 %"), (0.0001, "<0.1 %"), (0.0, "0.0 %")],
)
def test_percent(probability, words):
    assert terminal.probability(probability) == words


@pytest.mark.parametrize(
    ("images", "truths", "rankings", "message"),
    [
        ([], [], [], "0 images on one page; must be 1 to 30"),
        (digits(31), ["0"] * 31, [CAT_DOG] * 31, "31 images on one page"),
        (digits(2), ["0"], [CAT_DOG] * 2, "2 images with 1 truths and 2 lists of predictions; must be the same number"),
        ([np.zeros((8, 8), np.uint8)], ["0"], [CAT_DOG], r"image 0 is uint8 \[8, 8\]; must be uint8 \[H, W, 3\]"),
        ([np.zeros((8, 8, 3))], ["0"], [CAT_DOG], r"image 0 is float64 \[8, 8, 3\]"),
        (digits(1), ["0"], [[]], r"the predictions of image 0 are \[\]; must be"),
        (digits(1), ["0"], [[("cat", 97.1)]], r"the predictions of image 0 are \[\('cat', 97.1\)\]"),
        (digits(1), ["0"], [[("cat", float("nan"))]], "probabilities from 0 to 1"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, images, truths, rankings, message):
    with pytest.raises(DataError, match=message) as caught:
        predictions.draw(images, truths, rankings, tmp_path / "p.png")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
