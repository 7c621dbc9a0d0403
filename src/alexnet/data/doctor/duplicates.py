"""The same picture more than once: in one split, in two, or under two labels."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from alexnet.data.doctor.findings import Example, Finding
from alexnet.data.doctor.looking import SIDE, Look, Seen, thumbs_of
from alexnet.data.doctor.twins import twins

_KEPT_FIRST = {"test": 0, "validation": 1, "train": 2}  # where a picture is missed most


def check_duplicates(seen: Seen, workers: int = 1) -> Iterator[Finding]:
    """Findings about copies; exact ones by SHA-256, near ones by what they show."""
    crowds = same_pictures(seen.good(), workers)
    two_labels = [own for own in crowds if len({look.picture.label for look in own}) > 1]
    rest = [own for own in crowds if len({look.picture.label for look in own}) == 1]
    leaks = [own for own in rest if len({look.split for look in own}) > 1]
    if two_labels:
        what = f"{_pictures(two_labels)} under two labels: what is learned from them, and what they test, is wrong"
        todo = "decide which label is right and remove the others; the exclusion list removes all of them"
        yield _finding("two-labels", "error", what, todo, seen, two_labels, keep=False)
    if leaks:
        as_drawn = ", as training would draw them" if seen.drawn else ""
        what = f"{_pictures(leaks)} in two splits{as_drawn}: the test would ask for what was learned by heart"
        todo = "leave out the copies: alexnet doctor --exclude-list LIST, then train --exclude LIST"
        yield _finding("leak", "error", what, todo, seen, leaks)
    yield from _within(seen, [own for own in rest if len({look.split for look in own}) == 1])


def same_pictures(looks: list[Look], workers: int = 1) -> list[list[Look]]:
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
    pairs += [(int(a), int(b)) for a, b in twins(thumbs_of(looks), small, workers)]
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
        yield _finding("duplicate", "warning", f"{_pictures(exact)} more than once in a split", todo, seen, exact)
    if near:
        what = f"{_pictures(near)} more than once in a split, encoded otherwise"
        todo = "leave out the copies" + (": another seed may put them into two splits" if seen.drawn else "")
        yield _finding("near-duplicate", "warning", what, todo, seen, near)


def _finding(
    check: str, severity: str, what: str, todo: str, seen: Seen, crowds: list[list[Look]], keep: bool = True
) -> Finding:
    ordered = [sorted(own, key=lambda look: _KEPT_FIRST[look.split]) for own in crowds]
    examples = tuple(Example(tuple(look.origin for look in own), _why(seen, own)) for own in ordered)
    exclude = tuple(look.origin for own in ordered for look in own[1 if keep else 0 :])
    numbers = {"crowds": len(crowds), "pictures": sum(map(len, crowds))}
    return Finding(check, "error" if severity == "error" else "warning", what, todo, examples, exclude, numbers)


def _why(seen: Seen, own: list[Look]) -> str:
    same = len({look.sha256 for look in own}) == 1
    places = " and ".join(dict.fromkeys(f"{seen.classes[look.picture.label]} in {look.split}" for look in own))
    return f"{'the same file' if same else 'the same picture, another file'}: {places}"


def _pictures(crowds: list[list[Look]]) -> str:
    return f"{len(crowds):,} picture{'s stand' if len(crowds) != 1 else ' stands'}"


def crowd_numbers(looks: list[Look], crowds: list[list[Look]]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """For each look the number of its crowd, its own where it has none: [N]."""
    number = {id(look): len(looks) + index for index, own in enumerate(crowds) for look in own}
    return np.array([number.get(id(look), index) for index, look in enumerate(looks)], np.int64)
