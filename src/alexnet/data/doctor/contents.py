"""Images that show nothing: of one color, too dark, over-exposed, of few gray levels, out of focus.

Each measure is compared with a limit that no photograph of 1,400 reached (docs/doctor.md), and with what is usual in
the data set: where all images are dark or smooth, that is their kind and no fault.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data.doctor.findings import Example, Finding
from alexnet.data.doctor.looking import Look, Seen
from alexnet.errors import counted

BLANK = 8.0  # gray levels between the darkest and the lightest pixel
DARK = 64.0  # gray level that 99 % of the pixels stay below
LIGHT = 55.0  # distance from white that 99 % of the pixels stay below
BITS = 1.5  # entropy of the gray levels
DETAIL = 0.08  # deviation of the Laplacian, of that of the gray levels
FOCUS = 32  # pixels: the focus of an image with a shorter side is not judged


class _Kind(NamedTuple):
    check: str
    what: str
    todo: str


_KINDS = (
    _Kind("blank", "of one color", "remove what shows nothing"),
    _Kind("dark", "almost black", "look at each: remove what nobody can recognize, or brighten it"),
    _Kind("overexposed", "almost white", "look at each: remove what nobody can recognize"),
    _Kind("low-information", "of few gray levels", "look at each: remove what nobody can recognize"),
    _Kind("blurred", "out of focus, or enlarged from a few pixels", "look at each: remove what nobody can recognize"),
)


def check_contents(seen: Seen) -> Iterator[Finding]:
    """Findings about images that show nothing; each image is in one of them at most."""
    looks = [look for look in seen.good() if look.content is not None]
    if not looks:
        return
    values = np.array([look.content for look in looks])  # [N, 5]
    kinds = kind_of(values, np.array([min(look.width, look.height) for look in looks]))
    for number, kind in enumerate(_KINDS):
        own = [look for look, one in zip(looks, kinds, strict=True) if one == number]
        if own:
            what = f"{counted(len(own), 'image')} {'is' if len(own) == 1 else 'are'} {kind.what}"
            exclude = tuple(look.origin for look in own) if kind.check == "blank" else ()
            yield Finding(kind.check, "warning", what, kind.todo, tuple(map(_example, own)), exclude)


def _example(look: Look) -> Example:
    content = look.content
    assert content is not None
    why = f"gray levels {content.low:.0f} to {content.high:.0f}, {content.bits:.1f} bits, detail {content.detail:.2f}"
    return Example((look.origin,), why)


def kind_of(values: NDArray[np.float64], sides: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row of contents [N, 5] the number of its kind, −1 where there is nothing to say: [N]."""
    low, high, spread, bits, detail = values.T
    usual = np.median(values, axis=0)
    tests = (
        spread < BLANK,
        high < min(DARK, usual[1] / 2),
        255 - low < min(LIGHT, (255 - usual[0]) / 2),
        bits < min(BITS, usual[3] / 3),
        (detail < min(DETAIL, usual[4] / 3)) & (sides >= FOCUS),
    )
    kinds = np.full(len(values), -1, np.int64)
    for number, mask in reversed(list(enumerate(tests))):
        kinds[mask] = number
    return kinds
