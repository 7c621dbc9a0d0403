"""Views cut on the device that trains: bit for bit those that the processor cuts."""

import numpy as np
import pytest
import torch

from alexnet import kernels
from alexnet.loader import augmentation
from alexnet.loader import loader as gpu_cache
from alexnet.loader.augmentation import Boxes
from alexnet.loader.loader import Loader

from .test_loader import CPU, RECIPE, same, statistics_of

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def boxes(random, count, stored, side):
    top, left = random.integers(0, stored - side + 1, (2, count))
    whole = np.full(count, side)
    return Boxes(top, left, whole, whole, random.random(count) < 0.5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize(("stored", "side"), [(9, 5), (9, 9), (32, 24), (9, 1)])
def test_one_gather_is_image_by_image(stored, side, device):
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (50, stored, stored, 3), np.uint8))
    which, where = random.integers(0, 50, 40), boxes(random, 40, stored, side)
    found = gpu_cache.crop_on_device(images.to(device), which, where, side)
    assert found.device.type == device and torch.equal(found.cpu(), augmentation.crop(images[which], where, side))


def test_what_would_have_to_be_resized_is_left_to_the_processor():
    random = np.random.default_rng(0)
    where = boxes(random, 4, 9, 5)
    images = torch.zeros(4, 9, 9, 3, dtype=torch.uint8)
    assert gpu_cache.crop_on_device(images, np.arange(4), where, 5) is not None
    assert gpu_cache.crop_on_device(images, np.arange(4), where, 4) is None
    assert gpu_cache.crop_on_device(images, np.arange(4), where._replace(width=np.array([5, 5, 6, 5])), 5) is None


def of(digits, cache_on_device, device=CPU, **changes):
    recipe = RECIPE.replace(**({"crop": "random", "select_weights": "last"} | changes))
    return Loader(
        digits.split("train"),
        recipe,
        statistics_of(digits),
        image_size=28,
        channels=3,
        device=device,
        num_workers=2,
        validation=digits.split("validation"),
        cache_on_device=cache_on_device,
    )


CHANGES = [
    {},
    {"crop": "center"},
    {"crop_group_size": 4},
    {"sampling": "balanced"},
    {"train_on_val_from_epoch": 1},
    {"random_erase_prob": 1.0},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_batches_are_the_same(digits, changes, monkeypatch):
    apart = of(digits, False, **changes)
    monkeypatch.setattr(gpu_cache, "COPY_IMAGES", 37)
    kept = of(digits, True, **changes)
    for epoch in (0, 2):
        right = list(apart.epoch(epoch))
        with monkeypatch.context() as without:
            without.setattr(augmentation, "crop", lambda *how: pytest.fail("it was cut on the processor"))
            assert same(list(kept.epoch(epoch)), right)
        assert same(list(kept.epoch(epoch, 2)), right[2:])
    assert same(list(kept.epoch(0, size=20)), list(apart.epoch(0, size=20)))


def test_resized_parts_are_cut_on_the_processor(digits):
    kept = of(digits, True, crop="resized")
    assert same(list(kept.epoch(0)), list(of(digits, False, crop="resized").epoch(0))) and kept.cached_images is None


@pytest.mark.parametrize("place", ["empty", "__setitem__", "__getitem__"])
def test_without_memory_for_all_images_the_processor_cuts(digits, monkeypatch, place):
    """When it is allocated, while images are copied into it, and at a later batch."""
    right, calls = [list(of(digits, False).epoch(epoch)) for epoch in (0, 1)], []

    def failing(original, size):
        def call(*arguments, **options):
            if size(arguments) and options.get("dtype", torch.uint8) == torch.uint8:
                calls.append(place)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return original(*arguments, **options)

        return call

    sizes = {
        "empty": lambda arguments: len(arguments) == 4,
        "__setitem__": lambda arguments: arguments[0].dim() == 4 and arguments[0].dtype == torch.uint8,
        "__getitem__": lambda arguments: arguments[0].dim() == 4 and isinstance(arguments[1], tuple),
    }
    holder = torch if place == "empty" else torch.Tensor
    loader = of(digits, True)
    with monkeypatch.context() as patch:
        patch.setattr(holder, place, failing(getattr(holder, place), sizes[place]))
        patch.setattr(augmentation, "crop", whole_copies(augmentation.crop))
        assert same(list(loader.epoch(0)), right[0])
    assert calls and loader.cached_images is None
    assert same(list(loader.epoch(1)), right[1]) and loader.cached_images is None


def whole_copies(cut):
    """The processor's own cut, which indexes too: of NumPy's memory, so that only the device's calls fail."""
    del cut

    def by_numpy(images, boxes, side):
        parts = []
        for image, top, left, mirror in zip(images.numpy(), boxes.top, boxes.left, boxes.flip, strict=True):
            part = image[top : top + side, left : left + side]
            parts.append(part[:, ::-1] if mirror else part)
        return torch.from_numpy(np.stack(parts))

    return by_numpy


def test_another_error_is_not_taken_for_missing_memory(digits, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("device-side assert triggered")

    loader = of(digits, True)
    monkeypatch.setattr(torch, "empty", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        next(loader.epoch(0))


def test_it_must_fit_a_gpu(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert (
        gpu_cache.fits_device(8, 4, gpu)
        and not gpu_cache.fits_device(9, 4, gpu)
        and not gpu_cache.fits_device(1, 4, CPU)
    )
    kernels.use("off", "gpu_cache")
    try:
        assert not gpu_cache.fits_device(8, 4, gpu)
    finally:
        kernels.use("auto", "gpu_cache")


@GPU
def test_on_a_gpu_too(digits):
    right = list(of(digits, False, torch.device("cuda")).epoch(0))
    assert same(list(of(digits, True, torch.device("cuda")).epoch(0)), right)
