"""What is wrong with single files: unreadable, cut short, of a kind that is converted, too small, of extreme shape."""

from collections.abc import Callable, Iterator

import numpy as np

from alexnet.data.doctor.findings import Example, Finding, Severity
from alexnet.data.doctor.looking import Look, Seen
from alexnet.errors import counted

TINY = 16  # pixels: a shorter side below this shows nothing, unless all pictures of the set are like that
LONG = 4.0  # times as long as wide
CUT = 0.3  # mean share of the pictures that a center cut may throw away before it is worth a warning

# What the decoder noted → check, what of the pictures, what to do.
_NOTED = (
    ("truncated", "truncated", "warning", "are cut short and will be left out", "get them again, or --allow-truncated"),
    ("animation", "animated", "warning", "are animations or have pages: only the first is used", "split or remove"),
    ("CMYK", "cmyk", "note", "are CMYK, for print: converted by a plain formula", "compare the colors on the page"),
    ("over 8 bits", "deep", "note", "have over 8 bits a channel: scaled to 8", "fine, unless the detail is fainter"),
    ("EXIF rotation applied", "rotated", "note", "are rotated by their EXIF: used upright", "nothing"),
    ("corrupt EXIF", "corrupt-exif", "note", "have damaged EXIF: used as stored", "check that they stand upright"),
    ("wholly transparent", "transparent", "note", "are wholly transparent: read without alpha", "look at each"),
    ("named", "misnamed", "note", "are of another format than their name says: read by content", "rename them"),
)  # fmt: skip


def check_files(seen: Seen) -> Iterator[Finding]:
    """Findings about files."""
    yield from _unreadable(seen)
    for mark, check, severity, what, todo in _NOTED:
        own = [look for look in seen.looks if not look.error and any(mark in note for note in look.notes)]
        if own and check == "truncated" and seen.allow_truncated:
            what, todo = "are cut short and used as far as they go", "get them again"
        if own:
            examples = tuple(Example((look.origin,), ", ".join(n for n in look.notes if mark in n)) for look in own)
            exclude = tuple(look.origin for look in own) if check == "truncated" and not seen.allow_truncated else ()
            yield Finding(check, _severity(severity), _sentence(own, what), todo, examples, exclude)


def check_shapes(seen: Seen) -> Iterator[Finding]:
    """Findings about sizes and shapes, and what the center cut loses."""
    good = seen.good()
    if not good:
        return
    short = np.array([min(look.width, look.height) for look in good])
    ratio = np.array([max(look.width, look.height) for look in good]) / short
    usual = float(np.median(short))
    tiny = short < min(TINY, usual / 2)
    if tiny.any():
        what = f"have less than {TINY} pixels on a side where {usual:.0f} is usual"
        yield _some("tiny", good, tiny, what, "remove them: nothing can be seen", _size, exclude=True)
    if usual < 64:
        what = f"the pictures are small: {usual:.0f} pixels on the shorter side"
        yield Finding("small", "note", what, "a network for small pictures learns faster: alexnet models")
    if (ratio > LONG).any():
        what = f"are more than {LONG:.0f} times as long as wide"
        yield _some("elongated", good, ratio > LONG, what, "crop them, or use --fit pad", _size)
    yield from _center_cut(good, 1 - 1 / ratio)


def _unreadable(seen: Seen) -> Iterator[Finding]:
    bad = [look for look in seen.looks if look.error]
    large = [look for look in bad if "megapixels" in look.error]
    broken = [look for look in bad if "megapixels" not in look.error]
    for check, own, what in (
        ("unreadable", broken, "can not be read and will be left out"),
        ("bomb", large, "claim more pixels than any picture should and will be left out, undecoded"),
    ):
        if own:
            examples = tuple(Example((look.origin,), look.error.removeprefix(f"{look.origin}: ")) for look in own)
            exclude = tuple(look.origin for look in own)
            yield Finding(check, "warning", _sentence(own, what), "replace or remove them", examples, exclude)


def _center_cut(good: list[Look], lost: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Iterator[Finding]:
    """How much of each picture lies outside of the central square."""
    mean, half = float(lost.mean()), int((lost > 0.5).sum())
    if mean < 0.01:
        return
    over = counted(half, "picture")
    what = f"the center cut throws away {100 * mean:.0f} % of a picture on average, over half of {over}"
    todo = "see that the subject is in the middle; else --fit pad keeps all"
    order = np.argsort(-lost, kind="stable")[:12]
    examples = tuple(Example((good[i].origin,), f"{100 * lost[i]:.0f} % lost") for i in order)
    numbers = {"mean": mean, "over_half": half, "percentiles": np.percentile(lost, [5, 25, 50, 75, 95]).tolist()}
    yield Finding("center-cut", "warning" if mean > CUT else "note", what, todo, examples, (), numbers)


def _some(
    check: str,
    good: list[Look],
    mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    what: str,
    todo: str,
    why: Callable[[Look], str],
    exclude: bool = False,
) -> Finding:
    own = [good[i] for i in np.flatnonzero(mask)]
    examples = tuple(Example((look.origin,), why(look)) for look in own)
    names = tuple(look.origin for look in own) if exclude else ()
    return Finding(check, "warning", _sentence(own, what), todo, examples, names)


def _size(look: Look) -> str:
    return f"{look.width} × {look.height}"


def _sentence(own: list[Look], what: str) -> str:
    """``what`` begins with the verb of several images."""
    verb, rest = what.split(" ", 1)
    single = {"are": "is", "have": "has", "claim": "claims", "can": "can"}
    return f"{counted(len(own), 'picture')} {single[verb] if len(own) == 1 else verb} {rest}"


def _severity(word: str) -> Severity:
    return "error" if word == "error" else "warning" if word == "warning" else "note"
