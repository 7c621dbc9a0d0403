"""Sets known by name, from small files laid out as torchvision lays them."""

import hashlib
import pickle

import numpy as np
import pytest

from alexnet.data.sources import open_source
from alexnet.errors import DataError
from data.conftest import counts, png_bytes


def test_digits_are_embedded():
    source = open_source("digits")
    assert counts(source) == {"all": 1797} and source.classes == tuple("0123456789") and not source.allow_hflip
    image = source.splits["all"][0].load()
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8
    assert max(sample.load().max() for sample in source.splits["all"]) == 255
    assert len({sample.origin for sample in source.splits["all"]}) == 1797
    assert source.fingerprint == open_source("digits").fingerprint


def write_cifar10(root, monkeypatch):
    """Two images in each of five batches, three in the test batch; torchvision is told their MD5 sums."""
    from torchvision.datasets import CIFAR10

    place, names = root / "cifar-10-batches-py", [f"k{k}" for k in range(10)]
    place.mkdir(parents=True)

    def write(name, value):
        (place / name).write_bytes(pickle.dumps(value))
        return [name, hashlib.md5((place / name).read_bytes()).hexdigest()]

    planes = np.random.default_rng(0).integers(0, 256, (13, 3, 32, 32), np.uint8)  # red, then green, then blue
    rows = planes.reshape(13, 3072)
    train = [write(f"data_batch_{b + 1}", {"data": rows[2 * b :][:2], "labels": [2 * b, 2 * b + 1]}) for b in range(5)]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", {"data": rows[10:], "labels": [9, 0, 9]})])
    _, md5 = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5})
    return planes


def test_cifar10_that_lies_there(tmp_path, monkeypatch):
    planes = write_cifar10(tmp_path, monkeypatch)
    source = open_source("cifar10", data_root=tmp_path)
    assert counts(source) == {"train": 10, "test": 3} and source.classes == tuple(f"k{k}" for k in range(10))
    assert source.allow_hflip and "test has no image of 'k1'" in source.notes
    assert [image.label for image in source.splits["train"]] == list(range(10))
    assert [image.label for image in source.splits["test"]] == [9, 0, 9]
    for index, image in enumerate([*source.splits["train"], *source.splits["test"]]):
        np.testing.assert_array_equal(image.load(), planes[index].transpose(1, 2, 0))  # [32, 32, 3]
    assert source.fingerprint == open_source("cifar10", data_root=tmp_path).fingerprint


def test_cifar10_of_other_bytes_is_refused(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match="cifar10: not found in"):
        open_source("cifar10", data_root=tmp_path)


def write_mnist(root, name="MNIST"):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        head = np.array([0x803, count, 28, 28], ">u4").tobytes()
        images = np.arange(count * 784, dtype=np.uint32).astype(np.uint8).tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images)
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(np.array([0x801, count], ">u4").tobytes() + labels)


def test_mnist_that_lies_there(tmp_path):
    write_mnist(tmp_path)
    source = open_source("mnist", data_root=tmp_path)
    assert (
        counts(source) == {"train": 20, "test": 10} and source.classes == tuple("0123456789") and not source.allow_hflip
    )
    image = source.splits["train"][1].load()
    assert image.shape == (28, 28, 3) and image[0, :3, 0].tolist() == [784 % 256, 785 % 256, 786 % 256]
    write_mnist(tmp_path, "FashionMNIST")
    fashion = open_source("fashion_mnist", data_root=tmp_path)
    assert fashion.allow_hflip and fashion.classes[0] == "T-shirt/top"


def test_imagenette_that_lies_there(tmp_path):
    for split in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            place = tmp_path / "imagenette2-160" / split / wnid
            place.mkdir(parents=True)
            (place / "x.JPEG").write_bytes(png_bytes(1))
    source = open_source("imagenette", data_root=tmp_path)
    assert source.classes == ("tench", "English springer") and counts(source) == {"train": 2, "test": 2}
    assert source.splits["train"][0].load() == png_bytes(1)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "fashion_mnist", "imagenette"])
def test_sets_that_are_absent_or_can_not_be_fetched(tmp_path, monkeypatch, name):
    with pytest.raises(DataError, match=f"{name}: not found in .*pass --download to fetch it, or --data-root"):
        open_source(name, data_root=tmp_path)
    from torchvision import datasets

    nowhere = "http://127.0.0.1:9/"
    monkeypatch.setattr(datasets.CIFAR10, "url", nowhere + "x.tar.gz")
    monkeypatch.setattr(datasets.MNIST, "mirrors", [nowhere])
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [nowhere])
    monkeypatch.setattr(datasets.Imagenette, "_ARCHIVES", {"320px": (nowhere + "imagenette2-320.tgz", None)})
    with pytest.raises(DataError, match=f"{name}: download to .* failed .*check the network"):
        open_source(name, data_root=tmp_path, download=True)
