"""The same picture more than once: in one split, in two, or under two labels."""

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from alexnet.data.doctor.findings import Example, Finding, Severity
from alexnet.data.doctor.looking import SIDE, Look, Progress, Seen, thumbs_of
from alexnet.data.doctor.twins import twins
from alexnet.errors import counted

_KEPT_FIRST = {"test": 0, "validation": 1, "train": 2}  # where a picture is missed most


def check_duplicates(seen: Seen, crowds: list[list[Look]]) -> Iterator[Finding]:
    """Findings about copies, which ``crowds`` are: byte-identical by SHA-256, near-identical by what they show."""
    two_labels = [own for own in crowds if len({look.picture.label for look in own}) > 1]
    rest = [own for own in crowds if len({look.picture.label for look in own}) == 1]
    across = [own for own in rest if len({look.split for look in own}) > 1]
    cut = [own for own in across if seen.validation_drawn and {look.split for look in own} == {"train", "validation"}]
    leaks = [own for own in across if own not in cut]
    if two_labels:
        what = f"{_images(two_labels)} under two labels: what is learned from them, and what they test, is wrong"
        todo = "decide which label is right and remove the others; the exclusion list removes all of them"
        yield _finding("two-labels", "error", what, todo, seen, two_labels, keep=False)
    todo = "leave out the copies: alexnet doctor --exclude-list LIST, then train --exclude LIST"
    if leaks:
        as_drawn = ", as training would draw them" if seen.drawn else ""
        what = f"{_images(leaks)} in two splits{as_drawn}: the test would ask for what was learned by heart"
        yield _finding("leak", "error", what, todo, seen, leaks)
    if cut:
        what = f"{_images(cut)} in train and in validation, made only by the validation cut of training: "
        what += "validation will look better than the test"
        yield _finding("leak-validation", "warning", what, todo, seen, cut)
    yield from _within(seen, [own for own in rest if own not in across])


def same_pictures(looks: list[Look], workers: int = 1, progress: Progress | None = None) -> list[list[Look]]:
    """Crowds of two or more looks at one picture."""
    up = list(range(len(looks)))  # a forest: each look points towards the one that stands for its crowd

    def top(index: int) -> int:
        while up[index] != index:
            up[index] = up[up[index]]
            index = up[index]
        return index

    first: dict[str, int] = {}
    pairs = [(first.setdefault(look.sha256, index), index) for index, look in enumerate(looks)]
    small = np.array([min(look.width, look.height) < SIDE for look in looks], bool)
    pairs += [(int(a), int(b)) for a, b in twins(thumbs_of(looks), small, workers, progress)]
    for a, b in pairs:
        up[max(top(a), top(b))] = min(top(a), top(b))
    crowds: dict[int, list[Look]] = defaultdict(list)
    for index, look in enumerate(looks):
        crowds[top(index)].append(look)
    return [own for own in crowds.values() if len(own) > 1]


def _within(seen: Seen, crowds: list[list[Look]]) -> Iterator[Finding]:
    exact = [own for own in crowds if len({look.sha256 for look in own}) == 1]
    near = [own for own in crowds if len({look.sha256 for look in own}) > 1]
    if exact:
        todo = "leave out the copies: they count double"
        yield _finding("duplicate", "warning", f"{_images(exact)} in one split", todo, seen, exact)
    if near:
        todo = "leave out the copies" + (": another seed may put them into two splits" if seen.drawn else "")
        yield _finding("near-duplicate", "warning", f"{_images(near)} in one split", todo, seen, near)


def _finding(
    check: str, severity: Severity, what: str, todo: str, seen: Seen, crowds: list[list[Look]], keep: bool = True
) -> Finding:
    ordered = [sorted(own, key=lambda look: _KEPT_FIRST[look.split]) for own in crowds]
    examples = tuple(Example(tuple(look.origin for look in own), _why(seen, own)) for own in ordered)
    exclude = tuple(look.origin for own in ordered for look in own[1 if keep else 0 :])
    images, identical = sum(map(len, crowds)), sum(map(_identical, crowds))
    numbers = {"groups": len(crowds), "images": images, "byte_identical": identical}
    numbers["near_identical"] = images - identical
    return Finding(check, severity, what, todo, examples, exclude, numbers)


def _why(seen: Seen, own: list[Look]) -> str:
    kind = "byte-identical" if len({look.sha256 for look in own}) == 1 else "near-identical"
    places = " and ".join(dict.fromkeys(f"{seen.classes[look.picture.label]} in {look.split}" for look in own))
    return f"{kind}: {places}"


def _identical(own: list[Look]) -> int:
    """How many images of a crowd have the bytes of another one in it."""
    counts = Counter(look.sha256 for look in own)
    return sum(count for count in counts.values() if count > 1)


def _images(crowds: list[list[Look]]) -> str:
    """How many images, in how many groups of copies, and of which kind."""
    images, identical = sum(map(len, crowds)), sum(map(_identical, crowds))
    kinds = [f"{identical:,} byte-identical"] * bool(identical)
    kinds += [f"{images - identical:,} near-identical"] * (images > identical)
    return f"{images:,} images ({counted(len(crowds), 'group')} of copies: {', '.join(kinds)})"


def crowd_numbers(looks: list[Look], crowds: list[list[Look]]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """For each look the number of its crowd, its own where it has none: [N]."""
    number = {id(look): len(looks) + index for index, own in enumerate(crowds) for look in own}
    return np.array([number.get(id(look), index) for index, look in enumerate(looks)], np.int64)
