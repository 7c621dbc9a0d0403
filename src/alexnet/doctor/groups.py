"""Check of groups: images of one patient, camera, video or day in two splits let a network recognize the group."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest

import numpy as np
from numpy.typing import NDArray

from alexnet.data.sources.options import matched_group
from alexnet.doctor.duplicates import unit
from alexnet.doctor.findings import Example, Finding
from alexnet.doctor.images import ImageDataset, ImageInfo, Thumbnails
from alexnet.errors import counted

_WORDS = "patient|pat|subject|subj|case|person|camera|cam|video|vid|clip|sequence|seq|scene|slide|study|site"
_DAY = r"(?<!\d)((?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01]))(?!\d)"
# Patterns of names; what the parentheses match is the group. Each is a tuple: one that looks at names alone, then one
# of names within each folder, for data sets that count anew in each class.
_NAMED = (  # common words
    *(
        (rf"(?i)((?<![a-z]){word}[-_ ]?[a-z]?\d+)", rf"(?i)([^/]+/(?:[^/]*?[^a-z/])?{word}[-_ ]?[a-z]?\d+)")
        for word in _WORDS.split("|")
    ),
    (_DAY,),
    (r"([^/]+)\.rf\.[0-9a-fA-F]{20,}\.\w+$",),  # augmented copies of one image, as Roboflow names them
    (r"(TCGA-\w\w-\w{4})(?!\w)",),  # patients of The Cancer Genome Atlas
)
_LOOSE = (  # used only if images of a group are also similar
    (r"([^/]+?)[-_ .]*\d+[^\d/]*\.\w+$", r"([^/]+/[^/]+?)[-_ .]*\d+[^\d/]*\.\w+$"),  # a name and a number
    (r"([^/]*\d)[^\d/]+\d+[^\d/]*\.\w+$", r"([^/]+/[^/]*\d)[^\d/]+\d+[^\d/]*\.\w+$"),
    (r"([^/]+)/[^/]+\.\w+$", r"([^/]+/[^/]+)/[^/]+\.\w+$"),  # a folder for each
    (r"([^/]*\d)[^\d/]+\.\w+$", r"([^/]+/[^/]*\d)[^\d/]+\.\w+$"),  # 10_left.jpg, 10_right.jpg
    (r"(?:^|/)\d+[-_ ]([^/]+)\.\w+$",),  # the frame first: 0003_apple7.jpg
    (  # two numbers after it: 7_x0_y3.png
        r"([^/]*\d)[^\d/]+\d+[^\d/]+\d+[^\d/]*\.\w+$",
        r"([^/]+/[^/]*\d)[^\d/]+\d+[^\d/]+\d+[^\d/]*\.\w+$",
    ),
    (  # the number last: frame 3 of 7.png, left-7.png
        r"(?:^|/)(?:[^/]*\d)?[^\d/]+(\d+)[^\d/]*\.\w+$",
        r"([^/]+/)(?:[^/]*\d)?[^\d/]+(\d+)[^\d/]*\.\w+$",
    ),
    (r"[^/]+/[^/]+/([^/]+)\.\w+$", r"([^/]+/)[^/]+/([^/]+)\.\w+$"),  # a folder for each view: left/7.png
    (r"([^/]+)/[^/]+/[^/]+\.\w+$", r"([^/]+/[^/]+)/[^/]+/[^/]+\.\w+$"),  # 7/left/0003.png
    (r"(?:^|/)([^-_ ./]+)[-_ .][^/]*\.\w+$", r"([^/]+/[^-_ ./]+)[-_ .][^/]*\.\w+$"),  # the first word: tom_left_1.png
    (r"[-_ .]([^-_ ./]+)\.\w+$", r"([^/]+/)[^/]*[-_ .]([^-_ ./]+)\.\w+$"),  # the last one: left_1_tom.png
)
ALIKE = 0.85  # median distance of thumbnails within groups, of that between groups


def check_groups(dataset: ImageDataset, pattern: str | None = None) -> Iterator[Finding]:
    """Findings about groups in two splits. Without groups in the data, file names may suggest them.

    ``pattern``: that of :func:`find_pattern` for the images that can be used; None: it is looked for.
    """
    good = dataset.good()
    if any(info.sample.group for info in good):
        leaks = _leaking(good, lambda info: info.sample.group)
        if leaks:
            of = counted(sum(map(len, leaks.values())), "image")
            be = "is" if len(leaks) == 1 else "are"
            what = f"{counted(len(leaks), 'group')} ({of}) {be} in two splits: test accuracy will be too high"
            todo = "split by group: remove the column split, or keep each group in one split folder"
            yield Finding("group-leak", "error", what, todo, _examples(leaks), _to_exclude(leaks))
        return
    pattern = find_pattern(good) if pattern is None else pattern
    leaks = _leaking(good, _finder(pattern)) if pattern else {}
    if leaks:
        names = ", ".join(list(leaks)[:3]) + " …" * (len(leaks) > 3)
        of = counted(sum(map(len, leaks.values())), "image")
        what = f"file names suggest groups; {counted(len(leaks), 'group')} ({of}) would be in two splits: {names}"
        todo = f"if these are patients, cameras, videos or days, pass --group-pattern '{pattern}'"
        yield Finding("group-suspected", "warning", what, todo, _examples(leaks), (), {"pattern": pattern})


def group_names(infos: list[ImageInfo], pattern: str | None = None) -> list[str]:
    """The group of each image: that of the data, otherwise the one that its file name suggests; may be empty.

    ``pattern``: that of :func:`find_pattern` for ``infos``; None: it is looked for.
    """
    if any(info.sample.group for info in infos):
        return [info.sample.group for info in infos]
    pattern = find_pattern(infos) if pattern is None else pattern
    find = _finder(pattern)
    return [find(info) if pattern else "" for info in infos]


def find_pattern(infos: list[ImageInfo]) -> str:
    """The pattern that groups the images best by their names; empty if none does, or if the data has groups."""
    if any(info.sample.group for info in infos):
        return ""
    for patterns in _NAMED:
        plausible = {pattern: groups for pattern in patterns if (groups := _plausible_groups(infos, pattern))}
        if plausible:
            return next((pattern for pattern, groups in plausible.items() if _alike(groups)), next(iter(plausible)))
    fitting = {
        pattern: groups
        for pattern in chain(*_LOOSE)
        if (groups := _plausible_groups(infos, pattern)) and _alike(groups)
    }
    if not fitting:
        return ""
    best = max(fitting, key=lambda pattern: sum(map(len, fitting[pattern].values())))  # the first that covers most
    for pattern, groups in fitting.items():
        if _unites(groups, fitting[best]):
            best = pattern
    return best


def _unites(groups: dict[str, list[ImageInfo]], parts: dict[str, list[ImageInfo]]) -> bool:
    """Whether ``groups`` are fewer, and each of the ``parts`` lies within one of them."""
    names = {id(info): name for name, members in groups.items() for info in members}
    return len(groups) < len(parts) and all(
        len({names.get(id(info), id(info)) for info in members}) == 1 for members in parts.values()
    )


def _leaking(infos: list[ImageInfo], find: Callable[[ImageInfo], str]) -> dict[str, list[ImageInfo]]:
    """Groups with images in more than one split."""
    return {
        name: members for name, members in _by_group(infos, find).items() if len({info.split for info in members}) > 1
    }


def _by_group(infos: list[ImageInfo], find: Callable[[ImageInfo], str]) -> dict[str, list[ImageInfo]]:
    result: dict[str, list[ImageInfo]] = defaultdict(list)
    for info in infos:
        if name := find(info):
            result[name].append(info)
    return result


def _finder(pattern: str) -> Callable[[ImageInfo], str]:
    expression = re.compile(pattern)
    return lambda info: matched_group(expression, info.origin)


def _plausible_groups(infos: list[ImageInfo], pattern: str) -> dict[str, list[ImageInfo]]:
    """The groups by ``pattern`` if they hold most images, are several in a class, and none has over half of all."""
    groups = {name: members for name, members in _by_group(infos, _finder(pattern)).items() if len(members) > 1}
    in_classes = {(name, info.sample.label) for name, members in groups.items() for info in members}
    classes = len({info.sample.label for info in infos})
    if len(groups) < 6 or len(in_classes) < 2 * classes or 2 * sum(map(len, groups.values())) < len(infos):
        return {}
    return groups if 2 * max(map(len, groups.values())) <= len(infos) else {}


def _alike(groups: dict[str, list[ImageInfo]], most: int = 400) -> bool:
    """Whether images of one group are more similar to each other than to images of other groups.

    Pairs of both kinds are of two classes where most groups have images of several classes, else of one class.
    """
    draw = np.random.Generator(np.random.PCG64(0))
    infos = [info for members in groups.values() for info in members]
    name = np.array([number for number, members in enumerate(groups.values()) for _ in members])
    label = np.array([info.sample.label for info in infos])
    sizes = np.bincount(name)
    starts = np.cumsum(sizes) - sizes
    across = 2 * len(set(zip(name.tolist(), label.tolist(), strict=True))) >= 3 * len(groups)
    a = draw.integers(0, len(infos), 200 * most)
    inside = starts[name[a]] + draw.integers(0, sizes[name[a]])  # another image of the group
    others = draw.integers(0, len(infos), len(a))

    def pairs(b: NDArray[np.int64], same: bool) -> NDArray[np.int64]:
        fit = ((label[a] != label[b]) == across) & ((name[a] == name[b]) == same) & (a != b)
        return np.stack([a[fit], b[fit]], axis=1)[:most]

    near, far = pairs(inside, True), pairs(others, False)
    if not len(near) or not len(far):
        return False
    return bool(np.median(_distance(infos, near)) < ALIKE * np.median(_distance(infos, far)))


def _distance(infos: list[ImageInfo], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    left, right = (unit(Thumbnails(infos)[column]).shapes for column in pairs.T)
    return np.asarray(np.linalg.norm(left - right, axis=1))


def _examples(leaks: dict[str, list[ImageInfo]]) -> tuple[Example, ...]:
    return tuple(
        Example(tuple(info.origin for info in _mixed(members)), _why(name, members)) for name, members in leaks.items()
    )


def _why(name: str, members: list[ImageInfo]) -> str:
    splits = sorted({info.split for info in members})
    return f"{name}: " + ", ".join(f"{sum(info.split == split for info in members)} in {split}" for split in splits)


def _mixed(members: list[ImageInfo]) -> list[ImageInfo]:
    """The images of a group, alternating between its splits, so that the first few show each split."""
    splits = sorted({info.split for info in members})
    turns = zip_longest(*([info for info in members if info.split == split] for split in splits))
    return [info for turn in turns for info in turn if info is not None]


def _to_exclude(leaks: dict[str, list[ImageInfo]]) -> tuple[str, ...]:
    """The images to exclude so that each group is in one split: test, else validation."""
    order = ("test", "validation", "train")
    kept = {name: min((info.split for info in members), key=order.index) for name, members in leaks.items()}
    return tuple(info.origin for name, members in leaks.items() for info in members if info.split != kept[name])
