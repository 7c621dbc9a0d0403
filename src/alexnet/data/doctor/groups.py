"""Pictures of one patient, camera, video or day in two splits: a network may learn the group in place of the class."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np

from alexnet.data.doctor.findings import Example, Finding
from alexnet.data.doctor.looking import Look, Seen, thumbs_of
from alexnet.data.doctor.twins import unit

_WORDS = "patient|pat|subject|subj|case|person|camera|cam|video|vid|clip|sequence|seq|scene|slide|study|site"
_DAY = r"(?<!\d)((?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01]))(?!\d)"
PATTERNS = (  # what names often say; the parenthesis is the group
    *(rf"(?i)((?<![a-z]){word}[-_ ]?[a-z]?\d+)" for word in _WORDS.split("|")),
    _DAY,
    r"([^/]+)[-_ ]\d+\.\w+$",
)
_LOOSE = PATTERNS[-1]  # any name and a number: believed only if its groups look alike, too
ALIKE = 0.85  # median distance of thumbnails within groups, of that between groups of one class
_SHOWN = 6  # pictures of a group in an example


def check_groups(seen: Seen) -> Iterator[Finding]:
    """Findings about groups: those that the data names, or else those that the names of the files give away."""
    good = seen.good()
    if any(look.picture.group for look in good):
        leaks = _leaking(good, lambda look: look.picture.group)
        if leaks:
            what = f"{len(leaks):,} group{'s' * (len(leaks) > 1)} in two splits: a network may know the group again"
            todo = "draw the splits by group: leave out the column split, or keep each group in one folder"
            yield Finding("group-leak", "error", what, todo, _examples(leaks), _to_exclude(leaks))
        return
    for pattern in PATTERNS:
        leaks = _guess(good, pattern)
        if leaks:
            names = ", ".join(list(leaks)[:3]) + " …" * (len(leaks) > 3)
            what = f"file names look like groups, and of these {len(leaks):,} would be in two splits: {names}"
            todo = f"if that is a patient, a camera, a video or a day: --group-pattern '{pattern}'"
            yield Finding("group-guess", "warning", what, todo, _examples(leaks), (), {"pattern": pattern})
            return


def _leaking(looks: list[Look], find: Callable[[Look], str]) -> dict[str, list[Look]]:
    """Groups with pictures in more than one split."""
    return {name: own for name, own in _by_group(looks, find).items() if len({look.split for look in own}) > 1}


def _by_group(looks: list[Look], find: Callable[[Look], str]) -> dict[str, list[Look]]:
    found: dict[str, list[Look]] = defaultdict(list)
    for look in looks:
        if name := find(look):
            found[name].append(look)
    return found


def _guess(looks: list[Look], pattern: str) -> dict[str, list[Look]]:
    """Groups by ``pattern`` in two splits; none unless it really seems to group: most pictures, several groups a class,
    no group that is half of everything."""
    expression = re.compile(pattern)

    def find(look: Look) -> str:
        found = expression.search(look.origin)
        return found[1] if found else ""

    groups = {name: own for name, own in _by_group(looks, find).items() if len(own) > 1}
    grouped, classes = sum(map(len, groups.values())), len({look.picture.label for look in looks})
    if len(groups) < max(6, 2 * classes) or 2 * grouped < len(looks):
        return {}
    if 2 * max(map(len, groups.values())) > len(looks) or (pattern == _LOOSE and not _alike(groups)):
        return {}
    return _leaking([look for own in groups.values() for look in own], find)


def _alike(groups: dict[str, list[Look]], most: int = 400) -> bool:
    """Do pictures of one group look more like each other than like the rest of their class?"""
    draw = np.random.Generator(np.random.PCG64(0))
    looks = [look for own in groups.values() for look in own]
    name = np.array([number for number, own in enumerate(groups.values()) for _ in own])
    label = np.array([look.picture.label for look in looks])
    a, b = draw.integers(0, len(looks), (2, 200 * most))
    inside = np.array([draw.choice(len(own), 2, replace=False) for own in groups.values()])  # [G, 2]
    starts = np.cumsum([0, *map(len, list(groups.values())[:-1])])
    between = np.flatnonzero((label[a] == label[b]) & (name[a] != name[b]))[:most]
    if not len(between):
        return False
    near = _distance(looks, (inside + starts[:, None])[:most])
    return bool(np.median(near) < ALIKE * np.median(_distance(looks, np.stack([a[between], b[between]], axis=1))))


def _distance(looks: list[Look], pairs: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> np.ndarray:
    left, right = (unit(thumbs_of([looks[i] for i in side])).shapes for side in pairs.T)
    return np.asarray(np.linalg.norm(left - right, axis=1))


def _examples(leaks: dict[str, list[Look]]) -> tuple[Example, ...]:
    return tuple(Example(tuple(look.origin for look in _mixed(own)), _why(name, own)) for name, own in leaks.items())


def _why(name: str, own: list[Look]) -> str:
    splits = sorted({look.split for look in own})
    return f"{name}: " + ", ".join(f"{sum(look.split == split for look in own)} in {split}" for split in splits)


def _mixed(own: list[Look]) -> list[Look]:
    """A few of a group, from each of its splits."""
    splits = sorted({look.split for look in own})
    each = [[look for look in own if look.split == split][: _SHOWN // len(splits)] for split in splits]
    return [look for part in each for look in part]


def _to_exclude(leaks: dict[str, list[Look]]) -> tuple[str, ...]:
    """What leaves each group in the split where it is missed most."""
    order = ("test", "validation", "train")
    kept = {name: min((look.split for look in own), key=order.index) for name, own in leaks.items()}
    return tuple(look.origin for name, own in leaks.items() for look in own if look.split != kept[name])
