import numpy as np
import pytest
from PIL import Image

from alexnet.errors import ModelError
from alexnet.plots import filters


def pixels(path):
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def places(image, color):
    """Rows and columns of the pixels of exactly this color."""
    return np.nonzero((image == color).all(axis=2))


def test_each_filter_has_its_own_range_around_mid_gray():
    weights = np.zeros((3, 3, 2, 2))
    weights[0, :, 0, 0] = [4, -2, 0]
    weights[1, :, 1, 1] = [0.001, -0.0005, 0]
    shades = filters.shades(weights)  # [3, 2, 2, 3]
    assert shades[0, 0, 0].tolist() == [255, 64, 128]
    assert shades[1, 1, 1].tolist() == [255, 64, 128]
    assert (shades[2] == 128).all()


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_than_three_channels_come_out_as_their_mean_in_gray(channels):
    weights = np.random.default_rng(0).normal(size=(5, channels, 3, 3))
    mean = weights.mean(axis=1)
    expected = 128 + 127 * mean / np.abs(mean).max(axis=(1, 2), keepdims=True)
    shades = filters.shades(weights)
    assert (shades == shades[..., :1]).all()
    assert np.abs(shades[..., 0] - expected).max() <= 0.5


def test_a_known_color_lies_in_its_tower_with_every_weight_a_square(tmp_path):
    weights = np.zeros((96, 3, 11, 11), np.float32)
    weights[0, :, 5, 5] = [1, -1, 0]  # tower a: (255, 1, 128)
    weights[95, :, 5, 5] = [-1, 1, 0]  # tower b: (1, 255, 128)
    path = filters.draw_filters(weights, 2, tmp_path / "filters.png")
    image = pixels(path)
    first, last = places(image, [255, 1, 128]), places(image, [1, 255, 128])
    zoom = round(len(first[0]) ** 0.5)
    assert len(first[0]) == len(last[0]) == zoom**2 > 1
    assert np.ptp(first[0]) == np.ptp(first[1]) == zoom - 1
    assert first[0].max() < image.shape[0] / 2 < last[0].min()
    assert first[1].max() < image.shape[1] / 2 < last[1].min()
    assert [file.name for file in tmp_path.iterdir()] == ["filters.png"]


@pytest.mark.parametrize(("count", "towers", "columns"), [(96, 2, 16), (96, 1, 16), (64, 1, 16), (6, 1, 3), (1, 1, 1)])
def test_columns(count, towers, columns):
    assert filters.grid_columns(count, towers) == columns


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (97, 3, 11, 11), (6, 3, 5, 5), (2048, 3, 3, 3), (4, 3, 2, 40)])
def test_every_filter_of_any_count_and_size_is_inside_the_image(tmp_path, shape):
    weights = np.ones(shape) * np.array([1, -1, 0])[:, None, None]
    found = len(places(pixels(filters.draw_filters(weights, 1, tmp_path / "f.png")), [255, 1, 128])[0])
    zoom = round((found / np.prod(shape) * 3) ** 0.5)
    assert found == shape[0] * shape[2] * shape[3] * zoom**2 > 0


def test_labels_and_caption():
    def words(channels, towers):
        return " ".join(text.get_text() for text in filters.filters_figure(np.ones((4, channels, 2, 2)), towers).texts)

    assert "4 filters of the first layer, 2×2×3" in words(3, 2)
    assert "tower a" in words(3, 2)
    assert "tower b" in words(3, 2)
    assert "tower" not in words(3, 1)
    assert "own range; mid-gray" in words(3, 1)
    assert "mean over 5 channels" in words(5, 1)


@pytest.mark.parametrize(
    ("shape", "towers"), [((24, 3, 5, 5), 2), ((96, 3, 11, 11), 2), ((6, 1, 5, 5), 1), ((1, 3, 3, 3), 1)]
)
def test_no_caption_is_cut(shape, towers):
    note = "Energy that answers color alone: tower a 67 %, tower b 66 % (untrained: 67 % each); as far apart by chance"
    drawing = filters.filters_figure(np.ones(shape), towers, note)
    drawing.canvas.draw()
    width, height = drawing.get_size_inches() * drawing.dpi
    boxes = [text.get_window_extent() for text in drawing.texts]
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    caption = drawing.texts[-1].get_window_extent()
    assert caption.y1 <= min(image.oy for image in drawing.images), "it does not lie on the filters"


@pytest.mark.parametrize(
    ("weights", "towers", "message"),
    [
        (np.ones((4, 3, 3)), 1, r"filters have the shape \[4, 3, 3\]; must be \[K, C, H, W\]"),
        (np.ones((0, 3, 3, 3)), 1, r"filters have the shape \[0, 3, 3, 3\]"),
        (np.ones((5, 3, 3, 3)), 2, "5 filters in 2 towers; must be the same number in each tower"),
        (np.ones((5, 3, 3, 3)), 0, "5 filters in 0 towers"),
        (np.full((2, 3, 3, 3), np.nan), 1, "not finite; the training went wrong"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, weights, towers, message):
    with pytest.raises(ModelError, match=message) as caught:
        filters.draw_filters(weights, towers, tmp_path / "f.png")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
