"""Whatever a file holds, a look at it says why it is no use, and nothing falls over."""

import gc
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alexnet.data.sources import open_source
from alexnet.data.sources.source import Sample
from alexnet.doctor import images
from alexnet.doctor.images import THUMBNAIL_SIZE, Thumbnails, inspect_all, inspect_image
from alexnet.errors import DataError

from .faulty_data import bomb, deep_png, paint, rotated, saved

JPEG = saved(paint(1), "JPEG", quality=90)
PNG = saved(paint(1))
WEBP = saved(paint(1), "WEBP")


def dataset(data, name="a/x.jpg"):
    return inspect_image(Sample(0, name, lambda: data), "train")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"x", "has only 1 byte"),
        (b"<html>gone</html>", "looks like HTML"),
        (bomb(), "megapixels"),
        (b"\0" * 500, "no known image format"),
    ],
)
def test_what_is_no_image(data, reason):
    info = dataset(data)
    assert reason in info.error and info.thumbnail is None and len(info.sha256) == 64


def test_what_is_cut_short_is_seen_but_of_no_use():
    for data in (JPEG[: len(JPEG) // 2], JPEG[:-2], PNG[:-12]):
        info = dataset(data)
        assert info.truncated and not info.error


def test_what_is_converted_is_noted():
    assert dataset(saved(paint(1).convert("CMYK"), "JPEG")).notes == ("CMYK to RGB",)
    assert dataset(deep_png(1), "a/x.png").notes == ("over 8 bits a channel to 8",)
    assert dataset(rotated(1)).notes == ("EXIF rotation applied",)
    assert dataset(PNG).notes == ("PNG named .jpg",)
    assert dataset(JPEG).notes == ()
    tiff = Image.fromarray(np.zeros((20, 20), np.uint16))
    assert dataset(saved(tiff, "TIFF"), "x.tif").notes == ("over 8 bits a channel to 8",)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes(size):
    info = dataset(saved(paint(1).resize(size)), "x.png")
    assert (
        not info.error
        and (info.width, info.height) == size
        and info.thumbnail.shape == (THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3)
    )


@given(st.sampled_from([JPEG, PNG, WEBP]), st.integers(0, 2**32), st.integers(1, 30), st.booleans())
def test_damaged_files_never_stop_it(data, seed, count, cut):
    draw, damaged = random.Random(seed), bytearray(data)
    for _ in range(count):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    info = dataset(bytes(damaged[: draw.randrange(len(damaged))] if cut else damaged))
    assert bool(info.error) == (info.thumbnail is None) and "\n" not in info.error


def test_arrays_and_order_and_progress():
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
    samples = tuple(Sample(i % 2, f"#{i}", lambda i=i: images[i]) for i in range(9))
    steps = []
    infos = inspect_all({"train": samples[:6], "test": samples[6:]}, 2, lambda done, all_: steps.append((done, all_)))
    assert [info.origin for info in infos] == [f"#{i}" for i in range(9)] and steps[-1] == (9, 9)
    assert [info.split for info in infos] == ["train"] * 6 + ["test"] * 3
    shape = (THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3)
    assert {info.format for info in infos} == {"array"} and Thumbnails(infos)[:].shape == (9, *shape)
    assert Thumbnails([])[:].shape == (0, *shape)


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_thumbnails_in_memory_or_in_a_file(memory, monkeypatch):
    monkeypatch.setattr(images, "_MEMORY", memory)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 30, 40, 3), np.uint8)
    samples = tuple(Sample(0, str(n), lambda n=n: pixels[n]) for n in range(5))
    infos = inspect_all({"train": samples[:3], "test": samples[3:]}, workers=2)
    expected = np.stack([inspect_image(sample, "train").thumbnail for sample in samples])
    assert isinstance(infos[0].table.thumbnails, np.ndarray) == bool(memory)
    assert np.array_equal(Thumbnails(infos)[:], expected) and len(Thumbnails(infos)) == 5
    assert np.array_equal(Thumbnails(infos[::-1])[1:3], expected[::-1][1:3])
    assert np.array_equal(Thumbnails(infos)[np.array([4, 0, 4])], expected[[4, 0, 4]])
    single = [inspect_image(sample, "train") for sample in samples]
    facts = ("width", "height", "size", "sha256", "content", "error", "format", "notes")
    assert all(getattr(a, name) == getattr(b, name) for a, b in zip(infos, single, strict=True) for name in facts)


def test_no_space_for_thumbnails_is_no_fault_of_an_image(monkeypatch):
    monkeypatch.setattr(images, "_MEMORY", 0)
    with Path("/dev/full").open("r+b", buffering=0) as full:
        monkeypatch.setattr(images.tempfile, "TemporaryFile", lambda **_: full)
        with pytest.raises(DataError, match=r"No space left.*TMPDIR"):
            inspect_all({"train": (Sample(0, "x", lambda: JPEG),)})


def test_a_million_images_fit_into_a_gigabyte(tmp_path, monkeypatch):
    """An image takes under 700 bytes; what programs and libraries take is not counted."""
    for number in range(1000):
        folder = tmp_path / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        (folder / f"image-{number:07d}.jpg").touch()
    monkeypatch.setattr(images, "_MEMORY", 0)
    monkeypatch.setattr(images.decode, "decode_with_notes", lambda *_, **__: (np.zeros((9, 9, 3), np.uint8), "PNG", ()))
    examined = inspect_all(open_source(tmp_path).splits)[:9]  # what is made once
    gc.collect()
    tracemalloc.start()
    try:
        source = open_source(tmp_path)
        examined = inspect_all(source.splits)
        assert len(examined) == 1000 and not any(info.error for info in examined)
        assert tracemalloc.get_traced_memory()[1] < 700 * len(examined)
    finally:
        tracemalloc.stop()


def test_a_file_that_can_not_be_read():
    def load():
        raise PermissionError(13, "Permission denied")

    assert "Permission denied" in inspect_image(Sample(0, "x", load), "train").error
