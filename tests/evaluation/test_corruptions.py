"""Corruptions: repeatable, stronger with each severity, and equal to slow formulas; the mean corruption error."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from alexnet.data import decode
from alexnet.errors import DataError
from alexnet.evaluation import corruptions
from alexnet.evaluation.corruptions import CORRUPTIONS, CorruptionErrors, corrupt, corruption_errors
from alexnet.loader.augmentation import Normalization, center_crops
from alexnet.models import create_model


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Colored waves with a sharp square."""
    y, x = np.mgrid[0:64, 0:64] / 64
    waves = 0.5 + 0.3 * np.stack([np.sin(9 * x), np.sin(7 * y + 1), np.cos(5 * (x + y))], -1)
    waves[20:40, 15:45] = (0.9, 0.2, 0.1)
    return np.rint(255 * waves).astype(np.uint8)


def test_there_are_the_fifteen_of_the_paper():
    assert len(CORRUPTIONS) == 15
    groups = [corruption.group for corruption in CORRUPTIONS.values()]
    assert {name: groups.count(name) for name in groups} == {"noise": 3, "blur": 4, "weather": 4, "digital": 4}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_repeatable_and_stronger_with_severity(name, image):
    results = [corrupt(image, name, severity) for severity in range(1, 6)]
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)
    assert np.array_equal(results[2], corrupt(image, name, 3))
    changes = [float(np.abs(result.astype(float) - image).mean()) for result in results]
    assert changes[0] > 0.5
    if name not in ("elastic_transform", "frost"):  # severities that change the kind of motion, and random clouds
        assert changes[4] > changes[0]
    random = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog"}
    assert (not np.array_equal(results[2], corrupt(image, name, 3, seed=1))) == (name in random | {"elastic_transform"})


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [8, 33])
def test_any_image_size(name, size):
    for color in (0, 255):
        flat = np.full((size, size, 3), color, np.uint8)
        assert corrupt(flat, name, 5).shape == (size, size, 3)


def test_against_slow_formulas(image):
    x = image / 255.0
    contrast = x.mean((0, 1)) + 0.1 * (x - x.mean((0, 1)))
    assert np.array_equal(corrupt(image, "contrast", 4), np.rint(255 * contrast))
    kernel = np.random.default_rng(0).random((7, 7))
    expected = [ndimage.convolve(x[..., c], kernel / kernel.sum(), mode="reflect") for c in range(3)]
    assert np.allclose(corruptions._convolve(x, kernel), np.stack(expected, -1), atol=1e-12)
    jpeg = decode.decode(decode.encode_jpeg(image, 10))
    assert np.array_equal(corrupt(image, "jpeg_compression", 4), jpeg)
    pixels = corrupt(image, "pixelate", 2)  # half the size, each pixel four times: means of 2×2
    means = x.reshape(32, 2, 32, 2, 3).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    assert np.array_equal(pixels, np.rint(255 * means))


def test_what_is_no_corruption():
    with pytest.raises(DataError, match=r"corruption 'rain' of severity 1; must be gaussian_noise, .*; 1 to 5"):
        corrupt(np.zeros((8, 8, 3), np.uint8), "rain", 1)
    with pytest.raises(DataError, match="severity 6"):
        corrupt(np.zeros((8, 8, 3), np.uint8), "fog", 6)


def test_mean_corruption_error_by_hand():
    """Two images; the baseline is wrong on both everywhere but under the first corruption, where it is never wrong."""
    own, other = np.zeros((2, 15, 5), bool), np.ones((2, 15, 5), bool)
    own[0] = True
    other[:, 0] = False
    errors, baseline = (CorruptionErrors(np.zeros(2, bool), wrong) for wrong in (own, other))
    ratios, mce = errors.mce(baseline)
    assert np.isnan(ratios[0])
    assert ratios[1:] == pytest.approx(0.5)
    assert mce.value == pytest.approx(0.5)
    assert errors.mean_error().value == pytest.approx(0.5)
    assert errors.error().value == 0
    with pytest.raises(DataError, match="the baseline has 1 images; must be the same 2 images"):
        errors.mce(CorruptionErrors(np.zeros(1, bool), other[:1]))


def test_errors_of_a_network_against_one_image_at_a_time(digits):
    network = create_model("lenet5").initialize(torch.Generator().manual_seed(1)).eval()
    ones = torch.ones(3)
    normalization = Normalization(100 * ones, ones, torch.eye(3), torch.tensor(80.0))
    split, steps = digits.split("test"), []
    result = corruption_errors(
        network, split, normalization, count=2, device=torch.device("cpu"), progress=lambda *step: steps.append(step)
    )
    assert steps == [(1, 2), (2, 2)]
    assert (result.clean.shape, result.corrupted.shape) == ((2,), (2, 15, 5))
    index = int(np.sort(np.random.default_rng(0).permutation(len(split))[:2])[1])
    crop = center_crops(torch.from_numpy(split.gather(np.array([index]))), 32)[0].numpy()
    for k, name in enumerate(CORRUPTIONS):
        gray = corrupt(crop, name, 4, seed=index).astype(np.float64) @ (0.299, 0.587, 0.114)
        with torch.inference_mode():
            logits = network(torch.tensor((gray - 100) / 80, dtype=torch.float32)[None, None])
        assert result.corrupted[1, k, 3] == (int(logits.argmax()) != split.labels[index]), name
