"""From the bytes of an image to probabilities: bundle, ONNX, OpenVINO and a running server say the same.

Two hundred made-up images of odd sizes, in every mode and format that people have, through AlexNet at its own size.
"""

import copy
import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.bundle import Bundle, find_bundle
from alexnet.compression import stages
from alexnet.export.classifier import Classifier
from alexnet.export.export import export
from alexnet.export.exported_model import ExportedModel
from alexnet.export.verify import verify

from .conftest import threaded

LIMIT = 1e-4
KNOWN = (".jpg", ".jpeg", ".png")
SIDES = (1, 2, 3, 5, 17, 31, 64, 97, 127, 200, 255, 256, 257, 301, 400, 513, 777, 1201)


def painted(random, height: int, width: int) -> np.ndarray:
    """Blobs of color with an edge or two and some noise: uint8 [height, width, 3]."""
    small = random.integers(0, 256, (4, 5, 3), np.uint8)
    image = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    image[height // 3 :, : width // 2] += 60
    image += random.integers(-20, 21, image.shape, np.int16)
    return np.clip(image, 0, 255).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated(image: Image.Image, random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = int(random.integers(2, 9))
    return saved(image, "JPEG", quality=90, exif=exif)


def deep(pixels: np.ndarray, kind: str) -> bytes:
    """Gray levels of 16 bits."""
    gray = pixels.astype(np.uint16).sum(2) * 85 + 7
    return saved(Image.fromarray(gray.astype(np.uint16)), kind)


def half_transparent(image: Image.Image) -> Image.Image:
    made = image.convert("RGBA")
    made.putalpha(image.convert("L"))
    return made


def palette_with_hole(image: Image.Image) -> bytes:
    return saved(image.quantize(32), "PNG", transparency=3)


KINDS = {
    "jpeg": lambda p, r: saved(Image.fromarray(p), "JPEG", quality=int(r.integers(30, 96))),
    "png": lambda p, r: saved(Image.fromarray(p), "PNG"),
    "gray jpeg": lambda p, r: saved(Image.fromarray(p).convert("L"), "JPEG"),
    "gray png": lambda p, r: saved(Image.fromarray(p).convert("L"), "PNG"),
    "black and white": lambda p, r: saved(Image.fromarray(p).convert("1"), "PNG"),
    "palette": lambda p, r: saved(Image.fromarray(p).quantize(64), "PNG"),
    "palette with a hole": lambda p, r: palette_with_hole(Image.fromarray(p)),
    "gif": lambda p, r: saved(Image.fromarray(p), "GIF"),
    "cmyk jpeg": lambda p, r: saved(Image.fromarray(p).convert("CMYK"), "JPEG"),
    "cmyk tiff": lambda p, r: saved(Image.fromarray(p).convert("CMYK"), "TIFF"),
    "rgba": lambda p, r: saved(half_transparent(Image.fromarray(p)), "PNG"),
    "gray and alpha": lambda p, r: saved(half_transparent(Image.fromarray(p)).convert("LA"), "PNG"),
    "webp": lambda p, r: saved(half_transparent(Image.fromarray(p)), "WEBP", quality=80),
    "16 bit png": lambda p, r: deep(p, "PNG"),
    "16 bit tiff": lambda p, r: deep(p, "TIFF"),
    "turned by exif": lambda p, r: rotated(Image.fromarray(p), r),
    "bmp": lambda p, r: saved(Image.fromarray(p), "BMP"),
    "ppm": lambda p, r: saved(Image.fromarray(p), "PPM"),
    "progressive jpeg": lambda p, r: saved(Image.fromarray(p), "JPEG", progressive=True, subsampling=2),
    "animation": lambda p, r: saved(
        Image.fromarray(p), "PNG", save_all=True, append_images=[Image.fromarray(p[::-1].copy())]
    ),
}


def images(count: int) -> list[tuple[str, bytes]]:
    """(what it is, its bytes): every kind equally often."""
    random, names = np.random.default_rng(0), list(KINDS)
    found = []
    for i in range(count):
        kind = names[i % len(names)]
        height, width = (int(random.choice(SIDES)) for _ in range(2))
        if height * width > 600_000:
            width = 31
        found.append((f"{kind}, {width}x{height}", KINDS[kind](painted(random, height, width), random)))
    return found


def asked(server, classes, data: bytes) -> np.ndarray:
    response = server.files(("image", data), query=f"?top={len(classes)}")
    assert response.status == 200, response.body
    predictions = {g["label"]: g["score"] for g in response.json["predictions"][0]["top_k"]}
    return np.array([predictions[name] for name in classes])


def opinionated(bundle: Bundle, sent: list[tuple[str, bytes]]) -> Bundle:
    """The untrained network with a last layer that tells ``sent`` apart: logits around 0, with a spread of 2."""
    responseing = Classifier(bundle)
    logits = torch.from_numpy(np.log(np.concatenate([responseing.probabilities(data) for _, data in sent])))
    scale, last = 2 / (logits - logits.mean(0)).std(), bundle.network.get_submodule("fc8")
    with torch.no_grad():
        last.weight.mul_(scale)
        last.bias.sub_(logits.mean(0)).mul_(scale)
    rows = responseing.probabilities([reference.png for reference in bundle.reference_samples]).tolist()
    reference = [
        dataclasses.replace(g, probabilities=row) for g, row in zip(bundle.reference_samples, rows, strict=True)
    ]
    return dataclasses.replace(bundle, reference_samples=reference)


def compared(made: Bundle, sent: list[tuple[str, bytes]], folder: Path) -> dict[str, tuple[float, str]]:
    """Way -> the largest difference of a probability from the bundle's, and of which image."""
    bundle = made.save(folder / "bundle")
    classifier = Classifier.load(bundle)
    for format, name in (("onnx", "net.onnx"), ("openvino", "net.xml")):
        export(made, folder / name, format=format)
    files = [ExportedModel.load(folder / name) for name in ("net.onnx", "net.xml")]
    worst = {"onnx": (0.0, ""), "openvino": (0.0, ""), "server": (0.0, "")}
    spread = []
    with threaded(bundle) as server:
        for what, data in sent:
            expected = classifier.probabilities(data)[0].astype(np.float64)
            spread.append(expected)
            ways = [file.probabilities(data)[0] for file in files] + [asked(server, classifier.classes, data)]
            for way, row in zip(worst, ways, strict=True):
                worst[way] = max(worst[way], (float(np.abs(row - expected).max()), what))
    print(json.dumps({"images": len(sent), "worst": worst}))
    assert np.std(spread, axis=0).max() > 0.05, "the network says the same of every image: nothing was compared"
    return worst


@pytest.mark.slow
def test_four_interfaces_agree(whole_alexnet, tmp_path):
    sent = images(200)
    assert len({what.split(",")[0] for what, _ in sent}) == len(KINDS) == 20
    worst = compared(opinionated(whole_alexnet(), sent[:60]), sent, tmp_path)
    assert all(difference <= LIMIT for difference, _ in worst.values()), worst


@pytest.mark.slow
@pytest.mark.skipif("ALEXNET_AGREE_RUN" not in os.environ, reason="needs ALEXNET_AGREE_RUN and ALEXNET_AGREE_IMAGES")
def test_four_interfaces_agree_on_own_images(tmp_path):
    """ALEXNET_AGREE_RUN: a run or bundle; ALEXNET_AGREE_IMAGES: a folder, of which every so n-th, 200 in all."""
    found = sorted(p for p in Path(os.environ["ALEXNET_AGREE_IMAGES"]).rglob("*") if p.suffix.lower() in KNOWN)
    sent = [(path.name, path.read_bytes()) for path in found[:: max(1, len(found) // 200)][:200]]
    worst = compared(Bundle.load(find_bundle(os.environ["ALEXNET_AGREE_RUN"])), sent, tmp_path)
    assert all(difference <= LIMIT for difference, _ in worst.values()), worst


def test_a_compressed_bundle_is_served_like_any_other(cifar, tmp_path):
    network = copy.deepcopy(cifar.network)
    small = dataclasses.replace(cifar, network=network, coding=stages.share_weights(network, {"fc10.weight": 3}))
    responses = Classifier(small).probabilities([reference.png for reference in cifar.reference_samples]).tolist()
    reference = [
        dataclasses.replace(g, probabilities=row) for g, row in zip(cifar.reference_samples, responses, strict=True)
    ]
    path = dataclasses.replace(small, reference_samples=reference).save(tmp_path / "bundle")
    with threaded(path) as server:
        assert verify(server.url, against=path).max_abs_diff <= LIMIT
