"""Check of groups: images of one patient, camera, video or day in two splits let a network recognize the group."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import zip_longest

import numpy as np

from alexnet.doctor.duplicates import unit
from alexnet.doctor.findings import Example, Finding
from alexnet.doctor.images import ImageInfo, Seen, thumbs_of
from alexnet.errors import counted

_WORDS = "patient|pat|subject|subj|case|person|camera|cam|video|vid|clip|sequence|seq|scene|slide|study|site"
_DAY = r"(?<!\d)((?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01]))(?!\d)"
_WORD_PATTERNS = (  # what names often say; the parenthesis is the group
    *(rf"(?i)((?<![a-z]){word}[-_ ]?[a-z]?\d+)" for word in _WORDS.split("|")),
    *(rf"(?i)([^/]+/(?:[^/]*?[^a-z/])?{word}[-_ ]?[a-z]?\d+)" for word in _WORDS.split("|")),  # anew in each folder
    _DAY,
)
_LOOSE = (  # any name and a number, in all folders or anew in each: believed only if its groups look alike, too
    r"([^/]+)[-_ ]\d+\.\w+$",
    r"([^/]+/[^/]+)[-_ ]\d+\.\w+$",
    r"([^/]*\d)[^\d/]+\d+\.\w+$",
    r"([^/]+/[^/]*\d)[^\d/]+\d+\.\w+$",
    r"([^/]+/[^/]+)/[^/]+\.\w+$",
)
PATTERNS = (*_WORD_PATTERNS, *_LOOSE)
ALIKE = 0.85  # median distance of thumbnails within groups, of that between groups of one class


def check_groups(seen: Seen) -> Iterator[Finding]:
    """Findings about groups: those that the data names, or else those that the names of the files give away."""
    good = seen.good()
    if any(look.image.group for look in good):
        leaks = _leaking(good, lambda look: look.image.group)
        if leaks:
            of = counted(sum(map(len, leaks.values())), "image")
            be = "is" if len(leaks) == 1 else "are"
            what = f"{counted(len(leaks), 'group')} ({of}) {be} in two splits: test accuracy will be too high"
            todo = "split by group: remove the column split, or keep each group in one split folder"
            yield Finding("group-leak", "error", what, todo, _examples(leaks), _to_exclude(leaks))
        return
    for pattern in PATTERNS:
        leaks = _leaking(good, _finder(pattern)) if _believed(good, pattern) else {}
        if leaks:
            names = ", ".join(list(leaks)[:3]) + " …" * (len(leaks) > 3)
            of = counted(sum(map(len, leaks.values())), "image")
            what = f"file names suggest groups; {counted(len(leaks), 'group')} ({of}) would be in two splits: {names}"
            todo = f"if these are patients, cameras, videos or days, pass --group-pattern '{pattern}'"
            yield Finding("group-suspected", "warning", what, todo, _examples(leaks), (), {"pattern": pattern})
            return


def group_names(looks: list[ImageInfo]) -> list[str]:
    """For each image the group that the data names, or else the one that its file name suggests; may be empty."""
    if any(look.image.group for look in looks):
        return [look.image.group for look in looks]
    pattern = next((pattern for pattern in PATTERNS if _believed(looks, pattern)), None)
    return [""] * len(looks) if pattern is None else [_finder(pattern)(look) for look in looks]


def _leaking(looks: list[ImageInfo], find: Callable[[ImageInfo], str]) -> dict[str, list[ImageInfo]]:
    """Groups with images in more than one split."""
    return {name: own for name, own in _by_group(looks, find).items() if len({look.split for look in own}) > 1}


def _by_group(looks: list[ImageInfo], find: Callable[[ImageInfo], str]) -> dict[str, list[ImageInfo]]:
    result: dict[str, list[ImageInfo]] = defaultdict(list)
    for look in looks:
        if name := find(look):
            result[name].append(look)
    return result


def _finder(pattern: str) -> Callable[[ImageInfo], str]:
    expression = re.compile(pattern)

    def find(look: ImageInfo) -> str:
        match = expression.search(look.origin)
        return match[1] if match else ""

    return find


def _believed(looks: list[ImageInfo], pattern: str) -> bool:
    """Does ``pattern`` really seem to group: most images, several groups a class, no group that is half of all?"""
    groups = {name: own for name, own in _by_group(looks, _finder(pattern)).items() if len(own) > 1}
    grouped, classes = sum(map(len, groups.values())), len({look.image.label for look in looks})
    if len(groups) < max(6, 2 * classes) or 2 * grouped < len(looks):
        return False
    return 2 * max(map(len, groups.values())) <= len(looks) and (pattern not in _LOOSE or _alike(groups))


def _alike(groups: dict[str, list[ImageInfo]], most: int = 400) -> bool:
    """Do images of one group look more like each other than like the rest of their class?"""
    draw = np.random.Generator(np.random.PCG64(0))
    looks = [look for own in groups.values() for look in own]
    name = np.array([number for number, own in enumerate(groups.values()) for _ in own])
    label = np.array([look.image.label for look in looks])
    a, b = draw.integers(0, len(looks), (2, 200 * most))
    inside = np.array([draw.choice(len(own), 2, replace=False) for own in groups.values()])  # [G, 2]
    starts = np.cumsum([0, *map(len, list(groups.values())[:-1])])
    between = np.flatnonzero((label[a] == label[b]) & (name[a] != name[b]))[:most]
    if not len(between):
        return False
    near = _distance(looks, (inside + starts[:, None])[:most])
    return bool(np.median(near) < ALIKE * np.median(_distance(looks, np.stack([a[between], b[between]], axis=1))))


def _distance(looks: list[ImageInfo], pairs: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> np.ndarray:
    left, right = (unit(thumbs_of([looks[i] for i in side])).shapes for side in pairs.T)
    return np.asarray(np.linalg.norm(left - right, axis=1))


def _examples(leaks: dict[str, list[ImageInfo]]) -> tuple[Example, ...]:
    return tuple(Example(tuple(look.origin for look in _mixed(own)), _why(name, own)) for name, own in leaks.items())


def _why(name: str, own: list[ImageInfo]) -> str:
    splits = sorted({look.split for look in own})
    return f"{name}: " + ", ".join(f"{sum(look.split == split for look in own)} in {split}" for split in splits)


def _mixed(own: list[ImageInfo]) -> list[ImageInfo]:
    """All of a group, its splits taking turns: the first few show each."""
    splits = sorted({look.split for look in own})
    turns = zip_longest(*([look for look in own if look.split == split] for split in splits))
    return [look for turn in turns for look in turn if look is not None]


def _to_exclude(leaks: dict[str, list[ImageInfo]]) -> tuple[str, ...]:
    """What leaves each group in the split where it is missed most."""
    order = ("test", "validation", "train")
    kept = {name: min((look.split for look in own), key=order.index) for name, own in leaks.items()}
    return tuple(look.origin for name, own in leaks.items() for look in own if look.split != kept[name])
