"""Images and data sets for the doctor: healthy ones, and one with a fault of every kind planted in it."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet.data.sources import open_source
from alexnet.doctor.examine import examine
from alexnet.doctor.findings import Report

THUMBNAIL_SIZE = 72
KINDS = ("cross", "ring", "stripe")
QUIET = {"no-shortcut", "weak-shortcut", "center-cut", "reading"}  # notes that are no problems


def paint(seed: int, kind: int = 0, size: tuple[int, int] = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)) -> Image.Image:
    """A smooth random background with one of three shapes in the middle."""
    draw = np.random.default_rng(seed)
    field = Image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8)).resize(
        (THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BICUBIC
    )
    pixels = np.array(field)
    y, x = np.mgrid[:THUMBNAIL_SIZE, :THUMBNAIL_SIZE] - THUMBNAIL_SIZE / 2
    far = np.hypot(x, y)
    shape = [(abs(x) < 5) | (abs(y) < 5), (far > 10) & (far < 18), (x + y) % 12 < 5][kind] & (far < 20)
    pixels[shape] = draw.integers(0, 256, 3)
    noise = draw.integers(-draw.integers(1, 7), 7, pixels.shape)  # so that bytes tell nothing of the shape
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).resize(size)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def healthy(root: Path, counts: dict[str, int], kinds: int = 3) -> Path:
    """``counts`` images of each class and split, each of a patient whose images are all in one split."""
    seed = 0
    for place, (split, count) in enumerate(counts.items()):
        for kind in range(kinds):
            for index in range(count):
                seed += 1
                name = f"{split}/{KINDS[kind]}/patient{place}{kind}{index // 3:02d}_{index:03d}.png".lstrip("/")
                write(root / name, saved(paint(seed, kind)))
    return root


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few bytes that claims ``side`` × ``side``."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep_png(seed: int) -> bytes:
    gray = np.asarray(paint(seed).convert("L"), np.uint16) * 257
    return saved(Image.fromarray(gray))


def rotated(seed: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(paint(seed), "JPEG", quality=92, exif=exif)


def plant(root: Path) -> dict[str, set[str]]:
    """A data set of three splits with more than twenty problems; check → the images that it must name."""
    healthy(root, {"train": 30, "val": 12, "test": 12})
    jpeg = saved(paint(900, 1), "JPEG", quality=92)
    frames = [paint(910), paint(911)]
    files = {
        "train/ring/empty.jpg": b"",
        "train/ring/byte.jpg": b"x",
        "train/ring/page.jpg": b"<!DOCTYPE html><html>not found</html>",
        "train/ring/half.jpg": jpeg[: len(jpeg) // 2],
        "train/ring/bomb.png": bomb(),
        "train/cross/moves.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "train/ring/ink.jpg": saved(paint(912, 1).convert("CMYK"), "JPEG", quality=92),
        "train/ring/deep.png": deep_png(913),
        "train/ring/turned.jpg": rotated(914),
        "train/ring/odd.jpg": saved(paint(915, 1), "JPEG", quality=92, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "train/ring/other.jpg": saved(paint(916, 1)),
        "train/stripe/dot.png": saved(Image.fromarray(np.full((1, 1, 3), 9, np.uint8))),
        "train/stripe/long.png": saved(paint(917, 2, (500, 60))),
        "train/cross/once.png": saved(paint(920)),
        "train/cross/twice.png": saved(paint(920)),
        "train/cross/like.png": saved(paint(921)),
        "train/cross/like-small.jpg": saved(paint(921).resize((50, 50)), "JPEG", quality=70),
        "train/cross/leak.png": saved(paint(922)),
        "test/cross/leaked.png": saved(paint(922)),
        "val/stripe/near.png": saved(paint(923, 2, (160, 160))),
        "test/stripe/near-small.jpg": saved(paint(923, 2, (160, 160)).resize((100, 100)), "JPEG", quality=60),
        "train/cross/which.png": saved(paint(924)),
        "train/ring/what.png": saved(paint(924)),
        "train/cross/who.png": saved(paint(925)),
        "val/stripe/whom.jpg": saved(paint(925), "JPEG", quality=50),
        "train/cross/gray.png": saved(paint(926).convert("L")),
    }
    files |= {f"train/rare/rare{index}.png": saved(paint(930 + index, 1)) for index in range(4)}
    for split in ("train", "test"):
        for index in range(2):
            files[f"{split}/ring/patient999_{split}_{index}.png"] = saved(paint(940 + index + 2 * (split == "test"), 1))
    for name, data in files.items():
        write(root / name, data)
    (root / "train/ring/gone.png").symlink_to(root / "nowhere.png")
    (root / "train/hollow").mkdir()
    unreadable = {f"train/ring/{name}" for name in ("empty.jpg", "byte.jpg", "page.jpg", "gone.png")}
    return {
        "unreadable": unreadable,
        "truncated": {"train/ring/half.jpg"},
        "bomb": {"train/ring/bomb.png"},
        "animated": {"train/cross/moves.gif"},
        "cmyk": {"train/ring/ink.jpg"},
        "deep": {"train/ring/deep.png"},
        "rotated": {"train/ring/turned.jpg"},
        "corrupt-exif": {"train/ring/odd.jpg"},
        "misnamed": {"train/ring/other.jpg"},
        "tiny": {"train/stripe/dot.png"},
        "elongated": {"train/stripe/long.png"},
        "duplicate": {"train/cross/once.png", "train/cross/twice.png"},
        "near-duplicate": {"train/cross/like.png", "train/cross/like-small.jpg"},
        "leak": {f"{name}" for name in ("train/cross/leak.png", "test/cross/leaked.png")}
        | {"val/stripe/near.png", "test/stripe/near-small.jpg"},
        "two-labels": {"train/cross/which.png", "train/ring/what.png", "train/cross/who.png", "val/stripe/whom.jpg"},
        "some-gray": {"train/cross/gray.png", "train/ring/deep.png", "train/stripe/dot.png"},
        "group-suspected": {f"{s}/ring/patient999_{s}_{index}.png" for s in ("train", "test") for index in (0, 1)},
        "refused": set(),  # the class folder without an image
        "class-missing": set(),  # rare is only in train
        "few": set(),
        "imbalance": set(),
    }


def contents(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def diagnose(root: Path, **options) -> Report:
    problems: list = []
    return examine(open_source(root, problems=problems), problems, **options)


def found(report: Report) -> dict[str, set[str]]:
    """Check → all the images that it names; notes that are no problems left out."""
    every: dict[str, set[str]] = {}
    for finding in report.findings:
        if finding.check not in QUIET:
            every.setdefault(finding.check, set()).update(o for example in finding.examples for o in example.origins)
    return every
