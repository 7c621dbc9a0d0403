"""RandAugment by Pillow against torchvision's on tensors, and its random numbers."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from alexnet.loader import augmentation
from alexnet.loader.augmentation import OPERATIONS, apply_operation

from .test_loader import RECIPE, loader

GEOMETRY = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"}
SIZE = 61


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """A smooth image with edges and all gray levels, uint8 [3, 61, 61]."""
    y, x = np.mgrid[:SIZE, :SIZE] / (SIZE - 1)
    channels = [255 * x, 255 * (1 - y) * x, 40 + 150 * ((x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.1)]
    return torch.from_numpy(np.stack(channels).astype(np.uint8))


def by_torchvision(image, operation, magnitude, negated, monkeypatch):
    """The operation by ``v2.RandAugment``, whose two random choices are made here."""
    reference = v2.RandAugment(num_ops=1, magnitude=magnitude)
    monkeypatch.setattr(reference, "_get_random_item", lambda space: (operation, space[operation]))
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.0 if negated else 1.0))
    return reference(image)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_torchvision_s(operation, image, monkeypatch):
    assert set(OPERATIONS) == set(v2.RandAugment._AUGMENTATION_SPACE)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
    for magnitude in (0, 4, 9, 17, 30):
        for negated in (False, True):
            expected = by_torchvision(image, operation, magnitude, negated, monkeypatch).permute(1, 2, 0).numpy()
            ours = np.asarray(apply_operation(pillow, operation, magnitude, negated=negated))
            difference = np.abs(ours.astype(int) - expected.astype(int)).max(axis=2)  # [s, s]
            if operation in GEOMETRY:  # where two source pixels are equally near, one of them is chosen
                assert (difference > 0).mean() < 0.03, (magnitude, negated)
            else:  # one gray level: the two round differently
                assert difference.max() <= 1, (magnitude, negated)
    assert operation == "Identity" or (ours != np.asarray(pillow)).any() or operation == "AutoContrast"


def test_batches_depend_on_seed_epoch_and_image_alone(digits):
    recipe = RECIPE.replace(randaugment_ops=2, random_erase_prob=0.0, crop="center")
    whole = list(loader(digits, recipe=recipe).epoch(1))
    workers = list(loader(digits, recipe=recipe, workers=3).epoch(1))
    resumed = list(loader(digits, recipe=recipe).epoch(1, 2))
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole, workers, strict=True))
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[2:], resumed, strict=True))
    for other in (recipe.replace(randaugment_ops=0), recipe.replace(randaugment_magnitude=15), recipe.replace(seed=7)):
        assert not torch.equal(next(loader(digits, recipe=other).epoch(1)).images, whole[0].images)


def test_operations_are_drawn_equally_often(monkeypatch):
    drawn: list[tuple[str, bool]] = []

    def record(image, operation, magnitude, *, negated):
        drawn.append((operation, negated))
        return image

    monkeypatch.setattr(augmentation, "apply_operation", record)
    crops = torch.zeros(1400, 2, 2, 3, dtype=torch.uint8)
    augmentation.randaugment(RECIPE.replace(randaugment_ops=2), crops, 3, np.arange(1400))
    counts = [sum(name == operation for name, _ in drawn) for operation in OPERATIONS]
    assert len(drawn) == 2800 and min(counts) > 150 and max(counts) < 250  # 200 of each are expected
    assert sum(negated for _, negated in drawn) == pytest.approx(1400, abs=100)
