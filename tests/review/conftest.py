"""A small data set with a wrong label, copies, a broken and a blank file, its review, and a server in a thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from export.conftest import cifar, saved_bundle  # noqa: F401
from PIL import Image

from alexnet.data import decode
from alexnet.data.sources.options import DataOptions
from alexnet.data.splits import assign_splits
from alexnet.doctor.examine import examine
from alexnet.review import server
from alexnet.review.session import Session, doctor_topics
from alexnet.serve.run import bind, url

KINDS = ("cats", "dogs", "owls")


def paint(kind: int, seed: int) -> Image.Image:
    """A smooth random image in which the kind decides the color of the center."""
    draw = np.random.default_rng(seed)
    field = Image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    pixels = np.array(field)
    pixels[16:48, 16:48, kind] = 255
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def faulty_images(tmp_path_factory) -> Path:
    """36 images of three classes; ``cats/wrong.png`` is a dog."""
    root = tmp_path_factory.mktemp("review") / "images"
    for number in range(36):
        path = root / KINDS[number % 3] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        paint(number % 3, number).save(path)
    paint(1, 101).save(root / "cats" / "wrong.png")
    paint(2, 102).save(root / "owls" / "copy-a.png")
    paint(2, 102).save(root / "owls" / "copy-b.png")
    (root / "dogs" / "broken.png").write_bytes(b"<html>not an image</html>")
    Image.new("RGB", (64, 64), (120, 255, 120)).save(root / "dogs" / "blank.png")
    return root


def center_colors(samples):
    """The mean color of the center of each image: features that tell the kind."""
    rows = []
    for sample in samples:
        pixels = decode.decode(sample.load(), sample.origin)
        rows.append(pixels[20:44, 20:44].reshape(-1, 3).mean(axis=0) / 255)
    return np.array(rows, np.float32)


def examined(images: Path, path: Path) -> tuple:
    """The source of ``images`` with the corrections at ``path``, its images with their splits, and the topics."""
    problems: list = []
    source = DataOptions(corrections=path if path.exists() else None).open(images, problems)
    splits = assign_splits(source, validation=0.1, test=0.2, seed=0, strict=False)
    report = examine(source, problems, splits=splits, embed=center_colors)
    split_of = {image.origin: name for name, part in splits.items() for image in part}
    samples = {i.origin: (i, split_of.get(i.origin, "excluded")) for part in source.splits.values() for i in part}
    return source, samples, doctor_topics(report, source)


def review_of(images: Path, path: Path) -> Session:
    """The review of ``images``, as the command makes it."""
    source, samples, topics = examined(images, path)
    return Session(source.name, source.classes, samples, {}, topics, path)


@pytest.fixture(scope="session")
def examined_once(faulty_images) -> tuple:
    """The data set without corrections; the tests that only read it share it."""
    return examined(faulty_images, faulty_images / "none.csv")


@pytest.fixture
def review(examined_once, tmp_path) -> Session:
    source, samples, topics = examined_once
    return Session(source.name, source.classes, samples, {}, topics, tmp_path / "images.labels.csv")


@contextmanager
def served(session: Session) -> Iterator[str]:
    """The address of the page of ``session``."""
    listening, token = bind("127.0.0.1", 0), "test-token"
    web = server.server(session, listening, token)
    thread = threading.Thread(target=lambda: web.run(sockets=[listening]))
    thread.start()
    try:
        yield f"{url(listening)}/{token}/"
    finally:
        web.should_exit = True
        thread.join(30)
        listening.close()
