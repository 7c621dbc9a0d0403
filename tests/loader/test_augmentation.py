"""Views against slow loops, and color noise against the paper's numbers."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alexnet.loader import augmentation
from alexnet.loader.augmentation import Boxes, Colors, Normalization
from alexnet.loader.sampler import uniforms
from alexnet.recipe import Recipe, get_recipe

PLAIN = get_recipe("paper").replace(pca_noise_std=0.0, hflip=0.0, far_edge=True)


def some(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8))


def flat_statistics(mean: torch.Tensor | None = None, divide: float = 1.0) -> Normalization:
    mean = torch.zeros(3) if mean is None else mean
    return Normalization(mean, torch.tensor([3.0, 2.0, 1.0]), torch.eye(3), torch.tensor(divide))


def numbers(count: int, seed: int = 0) -> np.ndarray:
    return uniforms(seed, 0, np.arange(count), 5)


# Where a view lies


def test_all_33_by_33_offsets_are_reached_alike():
    boxes = augmentation.draw_boxes(PLAIN, numbers(33 * 33 * 40), 256, 224)
    assert (boxes.height == 224).all()
    assert (boxes.width == 224).all()
    found = np.zeros((33, 33))
    np.add.at(found, (boxes.top, boxes.left), 1)  # an offset beyond 32 would raise
    assert found.min() > 0
    assert abs(((found - 40) ** 2 / 40).sum() - (33 * 33 - 1)) < 5 * np.sqrt(2 * (33 * 33 - 1))


def test_the_paper_s_2048_crops_are_32_by_32_offsets():
    boxes = augmentation.draw_boxes(PLAIN.replace(far_edge=False), numbers(32 * 32 * 20), 256, 224)
    assert len({(top, left) for top, left in zip(boxes.top, boxes.left, strict=True)}) == 32 * 32
    assert max(boxes.top.max(), boxes.left.max()) == 31
    whole = augmentation.draw_boxes(PLAIN.replace(far_edge=False), numbers(9), 224, 224)
    assert not whole.top.any()


def test_the_ends_are_the_corners():
    ends = np.array([[0.0] * 5, [1 - 2**-53] * 5])
    boxes = augmentation.draw_boxes(PLAIN, ends, 256, 224)
    assert boxes.top.tolist() == boxes.left.tolist() == [0, 32]


def test_half_of_the_crops_are_mirrored():
    n = 40_000
    mirror = augmentation.draw_boxes(PLAIN.replace(hflip=0.5), numbers(n), 256, 224).flip
    assert abs(mirror.mean() - 0.5) < 5 * 0.5 / np.sqrt(n)
    assert not augmentation.draw_boxes(PLAIN, numbers(n), 256, 224).flip.any()


def test_the_center_crop_is_the_test_view():
    boxes = augmentation.draw_boxes(PLAIN.replace(crop="center"), numbers(3), 41, 30)
    assert boxes.top.tolist() == boxes.left.tolist() == [5, 5, 5]
    images = some(3, 41)
    assert torch.equal(augmentation.crop(images, boxes, 30), augmentation.center_crops(images, 30))


@given(st.floats(0.01, 1), st.integers(8, 300), st.integers(0, 2**62))
def test_parts_lie_inside_and_are_as_large_as_asked(smallest, stored, seed):
    recipe = PLAIN.replace(crop="resized", min_crop_scale=smallest)
    boxes = augmentation.draw_boxes(recipe, numbers(50, seed), stored, 224)
    for start, side in ((boxes.top, boxes.height), (boxes.left, boxes.width)):
        assert (start >= 0).all()
        assert (side >= 1).all()
        assert (start + side <= stored).all()
    # Each side is rounded, by half a pixel at most.
    assert ((boxes.height + 0.5) * (boxes.width + 0.5) >= smallest * stored**2 * (1 - 1e-9)).all()
    low, high = (boxes.width - 0.5) / (boxes.height + 0.5), (boxes.width + 0.5) / np.maximum(boxes.height - 0.5, 0.5)
    assert (low <= 4 / 3).all()
    assert (high >= 3 / 4).all()


def test_the_area_of_parts_is_uniform():
    boxes = augmentation.draw_boxes(PLAIN.replace(crop="resized", min_crop_scale=0.2), numbers(20_000), 1000, 224)
    area = boxes.height * boxes.width / 1e6
    assert abs(area.mean() - 0.6) < 5 * 0.8 / np.sqrt(12 * 20_000) + 1e-3  # rounding: a thousandth
    assert abs(area.var() - 0.8**2 / 12) < 0.002


# Cutting


def test_cut_and_mirror_against_a_slow_loop():
    images, n = some(6, 12), 6
    boxes = augmentation.draw_boxes(PLAIN.replace(hflip=0.5), numbers(n, seed=1), 12, 9)
    assert 0 < boxes.flip.sum() < n
    found = augmentation.crop(images, boxes, 9)
    assert found.dtype == torch.uint8
    for i in range(n):
        for y in range(9):
            for x in range(9):
                from_x = boxes.left[i] + (8 - x if boxes.flip[i] else x)
                assert torch.equal(found[i, y, x], images[i, boxes.top[i] + y, from_x])


def triangle(size: int, side: int) -> np.ndarray:
    """Antialiased bilinear weights [side, size]: a triangle as wide as the scale, normalized at the edges."""
    scale = size / side
    support = max(scale, 1)
    weights = np.zeros((side, size))
    for to in range(side):
        center = (to + 0.5) * scale
        for at in range(size):
            weights[to, at] = max(0, 1 - abs(at + 0.5 - center) / support)
        weights[to] /= weights[to].sum()
    return weights


@pytest.mark.parametrize(("size", "side"), [(20, 7), (7, 20), (13, 12)])
def test_resize_against_a_slow_formula(size, side):
    images, weights = some(2, size), triangle(size, side)
    expected = np.einsum("yi,nijc,xj->nyxc", weights, images.numpy(), weights)
    found = augmentation.resize(images, side)
    assert found.shape == (2, side, side, 3)
    # Two passes in fixed point, each rounded: at most a gray level off.
    assert np.abs(found.numpy() - expected).max() <= 1.01


def test_parts_are_resized():
    images = some(4, 20)
    boxes = augmentation.draw_boxes(PLAIN.replace(crop="resized", hflip=0.5), numbers(4, seed=2), 20, 20)
    found = augmentation.crop(images, boxes, 10)
    for i, (top, left, height, width, mirror) in enumerate(zip(*boxes, strict=True)):
        part = images[i, top : top + height, left : left + width]
        whole = np.einsum("yi,ijc,xj->yxc", triangle(height, 10), part.numpy(), triangle(width, 10))
        assert np.abs(found[i].numpy() - (whole[:, ::-1] if mirror else whole)).max() <= 1.01


def test_a_image_smaller_than_the_view_is_enlarged():
    images = some(2, 10)
    boxes = augmentation.draw_boxes(PLAIN, numbers(2), 10, 16)
    assert boxes.height.tolist() == [10, 10]
    enlarged = augmentation.resize(images, 16)
    assert torch.equal(augmentation.crop(images, boxes, 16), enlarged)
    assert torch.equal(augmentation.center_crops(images, 16), enlarged)


def test_ten_crops_pixel_by_pixel():
    images, s = some(3, 11), 6  # far corner at 5, center at 2
    found = augmentation.ten_crops(images, s)
    assert found.shape == (10, 3, s, s, 3)
    for view, (top, left) in enumerate([(0, 0), (0, 5), (5, 0), (5, 5), (2, 2)]):
        for y in range(s):
            for x in range(s):
                pixel = images[:, top + y, left + x]
                assert torch.equal(found[view, :, y, x], pixel)
                assert torch.equal(found[5 + view, :, y, s - 1 - x], pixel)
    assert torch.equal(found[4], augmentation.center_crops(images, s))
    assert len({view.numpy().tobytes() for view in found}) == 10


def test_nine_crops_pixel_by_pixel():
    """Border b = 2: offsets 0, b and 2b each way, none mirrored."""
    images = some(3, 10)
    found = augmentation.nine_crops(images, 6)
    assert found.shape == (9, 3, 6, 6, 3)
    for view, (top, left) in enumerate((y, x) for y in (0, 2, 4) for x in (0, 2, 4)):
        for y in range(6):
            for x in range(6):
                assert torch.equal(found[view, :, y, x], images[:, top + y, left + x])
    assert torch.equal(found[4], augmentation.center_crops(images, 6))


def test_neighbors_with_one_box_are_cut_like_each_alone():
    images = some(12, 16)
    sizes = np.repeat([9, 12, 16, 9], 3)
    boxes = Boxes(np.repeat([1, 2, 0, 1], 3), np.repeat([3, 1, 0, 3], 3), sizes, sizes, np.repeat([True, False], 6))
    mean = flat_statistics(some(1, 16, seed=9)[0].float())
    together = augmentation.crop(images, boxes, 9)
    colored = augmentation.normalize(together, boxes, None, mean, 3)
    for i in range(12):
        one = Boxes(*(part[i : i + 1] for part in boxes))
        alone = augmentation.crop(images[i : i + 1], one, 9)
        assert torch.equal(together[i], alone[0])
        assert torch.equal(colored[i], augmentation.normalize(alone, one, None, mean, 3)[0])
    assert augmentation.crop(images[:0], Boxes(*(part[:0] for part in boxes)), 9).shape == (0, 9, 9, 3)


def test_ten_crops_of_a_image_as_large_as_the_view():
    images = some(2, 6)
    found = augmentation.ten_crops(images, 6)
    assert all(torch.equal(found[i], images if i < 5 else images.flip(2)) for i in range(10))


# Colors


def color_numbers(count: int, seed: int = 0) -> np.ndarray:
    return augmentation.crop_numbers(seed, 0, np.arange(count))[1]


def test_color_noise_has_the_paper_s_size(imagenet):
    n = 60_000
    recipe = get_recipe("paper")
    assert recipe.pca_noise_std == 0.1
    offset = augmentation.draw_colors(recipe, color_numbers(n), imagenet).offset.double()
    along = offset @ torch.linalg.inv(imagenet.color_axes.double()).T  # the printed axes have three digits
    std = along.std(0)
    for found, expected in zip(std.tolist(), (12.178, 3.709, 1.972), strict=True):
        assert found == pytest.approx(expected, rel=5 / np.sqrt(2 * n))  # standard error of a standard deviation
    assert along.mean(0).abs().lt(5 * std / np.sqrt(n)).all()
    correlation = torch.corrcoef(along.T)[~torch.eye(3, dtype=torch.bool)]
    assert correlation.abs().max() < 5 / np.sqrt(n)


def test_color_noise_is_one_offset_a_image(imagenet):
    images = some(5, 9)
    colors = augmentation.draw_colors(get_recipe("paper"), color_numbers(5), imagenet)
    still = augmentation.normalize(images, None, None, imagenet, 3)
    noisy = augmentation.normalize(images, None, colors, imagenet, 3)
    moved = noisy - still  # [N, 3, s, s]
    # float32 of numbers up to 255: steps of 1.5e-5
    assert (moved - colors.offset[:, :, None, None]).abs().max() < 1e-4
    assert len({tuple(row) for row in colors.offset.tolist()}) == 5


def test_color_noise_changes_from_epoch_to_epoch(imagenet):
    a, b = (augmentation.crop_numbers(0, epoch, np.arange(50))[1] for epoch in (0, 1))
    recipe = get_recipe("paper")
    offsets = [augmentation.draw_colors(recipe, numbers, imagenet).offset for numbers in (a, b)]
    assert (offsets[0] != offsets[1]).all()


def test_jitter_against_a_slow_formula(imagenet):
    recipe, images = PLAIN.replace(color_jitter=0.3), some(4, 3)
    draws = color_numbers(4)
    colors = augmentation.draw_colors(recipe, draws, imagenet)
    found = augmentation.normalize(images, None, colors, imagenet, 3)
    mean = imagenet.mean.double().numpy()
    for i in range(4):
        brightness, contrast, saturation = 1 + 0.3 * (2 * draws[i, 6:9] - 1)
        for y in range(3):
            for x in range(3):
                pixel = images[i, y, x].double().numpy() - mean
                pixel = brightness * (pixel + mean) - mean  # all light is dimmed
                # Contrast and saturation turn about the mean of all images; brightness has moved it.
                about = brightness * mean - mean
                pixel = about + contrast * (pixel - about)
                gray = 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
                still = 0.299 * about[0] + 0.587 * about[1] + 0.114 * about[2]
                pixel = about + saturation * (pixel - about) + (1 - saturation) * (gray - still)
                assert found[i, :, y, x].double().numpy() == pytest.approx(pixel, abs=2e-4)  # float32


def test_jitter_stays_in_its_range_and_reaches_its_ends(imagenet):
    recipe = PLAIN.replace(color_jitter=0.3)
    draws = color_numbers(4000)
    matrix = augmentation.draw_colors(recipe, draws, imagenet).matrix
    product = matrix.sum(2)[:, 0]  # gray stays gray: a row's sum is brightness × contrast
    assert (matrix.sum(2) - product[:, None]).abs().max() < 1e-5
    assert product.min() >= 0.7**2 - 1e-6
    assert product.max() <= 1.3**2 + 1e-6
    assert product.max() - product.min() > 0.9


def test_no_colors_change_where_none_are_asked_for(imagenet):
    colors = augmentation.draw_colors(PLAIN, color_numbers(4), imagenet)
    assert colors == Colors(None, None, [])
    images = some(4, 5)
    plain = augmentation.normalize(images, None, None, imagenet, 3)
    assert torch.equal(augmentation.normalize(images, None, colors, imagenet, 3), plain)
    assert torch.equal(plain, (images.double() - imagenet.mean.double()).permute(0, 3, 1, 2).float())
    assert plain.is_contiguous(memory_format=torch.channels_last)


def test_coloring_leaves_the_stored_pixels_and_the_mean_alone(imagenet):
    images, recipe = some(4, 8), Recipe(random_erase_prob=1.0)
    before, mean = images.clone(), imagenet.mean.clone()
    augmentation.normalize(images, None, augmentation.draw_colors(recipe, color_numbers(4), imagenet), imagenet, 3)
    assert torch.equal(images, before)
    assert torch.equal(imagenet.mean, mean)


@pytest.mark.parametrize("hflip", [0.0, 0.5])
def test_the_mean_image_is_cut_like_the_image(hflip):
    """Crops of the mean image leave nothing, whatever the box: the crop of the mean is the mean's crop."""
    mean = some(1, 20)
    normalization = flat_statistics(mean[0].float())
    boxes = augmentation.draw_boxes(PLAIN.replace(hflip=hflip), numbers(30), 20, 13)
    cuts = augmentation.crop(mean.expand(30, -1, -1, -1), boxes, 13)
    assert augmentation.normalize(cuts, boxes, None, normalization, 3).abs().max() == 0
    assert augmentation.normalize(augmentation.center_crops(mean, 13), None, None, normalization, 3).abs().max() == 0


def test_the_mean_of_crops_is_the_crop_of_the_mean():
    images = some(40, 16)
    normalization = flat_statistics(images.double().mean(0).float())
    box = Boxes(*(np.full(40, value) for value in (2, 3, 9, 9)), np.full(40, True))
    left = augmentation.normalize(augmentation.crop(images, box, 9), box, None, normalization, 3)
    assert left.mean(0).abs().max() < 1e-4  # float32 sums of 40 numbers up to 255


def test_the_mean_image_is_resized_like_the_image():
    mean = some(1, 20)
    normalization = flat_statistics(mean[0].float())
    boxes = augmentation.draw_boxes(PLAIN.replace(crop="resized", hflip=0.5), numbers(10), 20, 20)
    left = augmentation.normalize(
        augmentation.crop(mean.expand(10, -1, -1, -1), boxes, 9), boxes, None, normalization, 3
    )
    assert left.abs().max() <= 1.01  # the image's pixels are rounded after each pass, the mean's are not
    large = augmentation.normalize(augmentation.center_crops(mean, 30), None, None, normalization, 3)
    assert large.abs().max() <= 1.01


def test_a_gray_network_sees_the_luma(imagenet):
    images = some(2, 6)
    found = augmentation.normalize(images, None, None, imagenet, 1)
    expected = (images.double() - imagenet.mean.double()) @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    assert found.shape == (2, 1, 6, 6)
    assert (found[:, 0] - expected).abs().max() < 1e-4  # float32
    gray = images[..., :1].expand(-1, -1, -1, 3)
    level = augmentation.normalize(gray, None, None, flat_statistics(), 1)[:, 0]
    assert (level - gray[..., 0]).abs().max() < 1e-4  # the three weights are one together


@pytest.mark.parametrize("channels", [1, 3])
def test_divide(imagenet, channels):
    images = some(2, 6)
    whole = augmentation.normalize(images, None, None, imagenet, channels)
    tenth = augmentation.normalize(
        images, None, None, dataclasses.replace(imagenet, divide=torch.tensor(10.0)), channels
    )
    assert torch.equal(tenth, whole / 10)


@pytest.mark.parametrize("channels", [1, 3])
def test_divided_by_each_channel_s_deviation(imagenet, channels):
    images, deviation = some(2, 6), torch.tensor([50.0, 60.0, 70.0])
    found = augmentation.normalize(images, None, None, dataclasses.replace(imagenet, divide=deviation), channels)
    expected = (images.double() - imagenet.mean.double()) / deviation.double()
    if channels == 1:
        expected = (expected * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)).sum(3, keepdim=True)
    assert (found.permute(0, 2, 3, 1) - expected).abs().max() < 1e-5  # float32


@pytest.mark.parametrize("divide", [torch.tensor(2.0), torch.tensor([2.0, 4.0, 8.0])])
def test_noise_then_divided_by_one_and_a_tenth(imagenet, divide):
    """2012: every number of a noisy view is divided by 1 + 0.1, after the noise; a view without noise is not."""
    images, normalization = some(3, 5), dataclasses.replace(imagenet, divide=divide)
    recipe = get_recipe("paper").replace(pca_noise_rescale=True, pca_noise_until_epoch=5)
    colors = augmentation.draw_colors(recipe, color_numbers(3), imagenet, epoch=4)
    offset = augmentation.draw_colors(get_recipe("paper"), color_numbers(3), imagenet).offset.double()
    found = augmentation.normalize(images, None, colors, normalization, 3).permute(0, 2, 3, 1).double()
    expected = (images.double() - imagenet.mean.double() + offset[:, None, None]) / 1.1 / divide.double()
    assert (found - expected).abs().max() < 1e-4  # float32
    assert augmentation.draw_colors(recipe, color_numbers(3), imagenet, epoch=5) == Colors(None, None, [], 1.0)
    assert augmentation.draw_colors(get_recipe("paper"), color_numbers(3), imagenet).divide == 1


def test_the_2012_mean_is_the_center_s_wherever_the_view_is():
    images, mean = some(8, 12), some(1, 12, seed=5)[0].float()
    center = dataclasses.replace(flat_statistics(mean[2:10, 2:10]), mean_follows_crop=False)
    boxes = augmentation.draw_boxes(PLAIN.replace(hflip=0.5), numbers(8), 12, 8)
    assert boxes.flip.any()
    cuts = augmentation.crop(images, boxes, 8)
    found = augmentation.normalize(cuts, boxes, None, center, 3).permute(0, 2, 3, 1)
    assert torch.equal(found, cuts.float() - mean[2:10, 2:10])  # not mirrored, not moved
    small = augmentation.normalize(augmentation.crop(images, boxes, 4), boxes, None, center, 3)
    assert small.shape == (8, 3, 4, 4)


def test_erased_rectangles():
    n, side = 600, 32
    recipe = PLAIN.replace(random_erase_prob=0.25)
    draws = color_numbers(n)
    colors = augmentation.draw_colors(recipe, draws, flat_statistics())
    images = torch.full((n, side, side, 3), 200, dtype=torch.uint8)
    found = augmentation.normalize(images, None, colors, flat_statistics(), 3)
    erased = 0
    for i in range(n):
        gone = (found[i] == 0).all(0)
        assert torch.equal(gone, (found[i] == 0).any(0))
        if not gone.any():
            assert (found[i] == 200).all()
            assert draws[i, 9] >= 0.25
            continue
        erased += 1
        rows, columns = gone.any(1).nonzero().flatten(), gone.any(0).nonzero().flatten()
        height, width = (int(at[-1] - at[0]) + 1 for at in (rows, columns))
        assert int(gone.sum()) == height * width  # one rectangle
        assert 0.2 * side - 1 <= min(height, width) <= max(height, width) <= side / 2
    assert abs(erased - n / 4) < 5 * np.sqrt(n * 3 / 16)
    often = (found[:, 0] == 0).float().mean(0)  # about 0.25 × 0.5 or more in the middle: no side is longer than half
    assert often[side // 2, side // 2] > 0.06
    assert often.max() < 0.25


def test_noise_and_jitter_add_up(imagenet):
    draws, images = color_numbers(3), some(3, 4)
    both = augmentation.draw_colors(Recipe(pca_noise_std=0.1, color_jitter=0.3), draws, imagenet)
    noise = augmentation.draw_colors(Recipe(pca_noise_std=0.1, color_jitter=0), draws, imagenet)
    jitter = augmentation.draw_colors(Recipe(pca_noise_std=0, color_jitter=0.3), draws, imagenet)
    assert torch.allclose(both.offset, noise.offset + jitter.offset)
    assert torch.equal(both.matrix, jitter.matrix)
    x = images.float() - imagenet.mean
    expected = torch.einsum("nij,nyxj->niyx", jitter.matrix, x) + both.offset[:, :, None, None]
    assert torch.allclose(augmentation.normalize(images, None, both, imagenet, 3), expected, atol=1e-3)


def test_a_view_s_numbers_are_used_once():
    """Box and colors share no number, so where a view lies says nothing about its colors."""
    box, colors = augmentation.crop_numbers(3, 4, np.arange(5))
    assert box.shape == (5, 5)
    assert colors.shape == (5, 14)
    assert np.array_equal(np.hstack([box, colors]), uniforms(3, 4, np.arange(5), 19))
