"""Images that show nothing, by the decoder's pixels; photographs and unusual data sets are no false alarm."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from alexnet.data.sources.source import Sample
from alexnet.doctor.images import ImageDataset, check_contents, inspect_image

from .faulty_data import paint, saved


def looks_of(images):
    """The images as PNG files, seen by the doctor."""
    files = [image if isinstance(image, bytes) else saved(image) for image in images]
    return [inspect_image(Sample(0, f"{i}.png", lambda data=data: data), "train") for i, data in enumerate(files)]


def kinds(images):
    """Check → places of the images that it names."""
    findings = check_contents(ImageDataset("set", ("a", "b"), looks_of(images), False))
    return {one.check: [int(case.origins[0].removesuffix(".png")) for case in one.examples] for one in findings}


def usual(count=12):
    return [paint(seed, seed % 3, (160, 120)) for seed in range(count)]


def scaled(image, factor, shift=0.0):
    return Image.fromarray((np.asarray(image) * factor + shift).clip(0, 255).astype(np.uint8))


def transparent(image):
    layers = image.convert("RGBA")
    layers.putpixel((0, 0), (*image.getpixel((0, 0)), 9))
    alpha = np.zeros((image.height, image.width), np.uint8)
    alpha[0, 0] = 9
    layers.putalpha(Image.fromarray(alpha))
    return layers


FAULTS = {
    "blank": lambda: [Image.new("RGB", (90, 90), color) for color in ("black", "white", (90, 20, 200))],
    "dark": lambda: [scaled(paint(40), 0.15)],
    "overexposed": lambda: [scaled(paint(41), 0.15, 216)],
    "low-information": lambda: [Image.fromarray(120 + np.eye(100, dtype=np.uint8) * 90)],
    "blurred": lambda: [
        paint(42, 0, (160, 120)).filter(ImageFilter.GaussianBlur(6)),
        paint(43).resize((5, 5)).resize((200, 200)),
    ],
}


@pytest.mark.parametrize("check", FAULTS)
def test_an_image_that_shows_nothing_is_found_as_what_it_is(check):
    images = FAULTS[check]()
    assert kinds([*usual(), *images]) == {check: list(range(12, 12 + len(images)))}


def test_transparent_images_are_blank_and_only_blank_ones_are_left_out():
    images = [*usual(), transparent(paint(44)), scaled(paint(45), 0.1)]
    findings = {one.check: one for one in check_contents(ImageDataset("set", ("a", "b"), looks_of(images), False))}
    assert findings.keys() == {"blank", "dark"}
    assert findings["blank"].exclude == ("12.png",) and findings["dark"].exclude == ()
    assert findings["blank"].what == "1 image is of one color"


def test_what_is_usual_in_a_data_set_is_no_fault():
    assert kinds(usual()) == {}
    assert kinds([scaled(image, 0.15) for image in usual()]) == {}
    assert kinds([image.filter(ImageFilter.GaussianBlur(6)) for image in usual()]) == {}
    strokes = np.zeros((20, 28, 28), np.uint8)
    for index, one in enumerate(strokes):
        one[6:22, 10 : 12 + index % 5] = 255
    assert kinds([Image.fromarray(one) for one in strokes]) == {}


def test_digits_are_no_false_alarm(digits):
    images = digits.split("train").gather(np.arange(160))
    assert kinds([Image.fromarray(image) for image in images]) == {}
