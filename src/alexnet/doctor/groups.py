"""Check of groups: images of one patient, camera, video or day in two splits let a network recognize the group."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import zip_longest

import numpy as np

from alexnet.data.sources.options import matched_group
from alexnet.doctor.duplicates import unit
from alexnet.doctor.findings import Example, Finding
from alexnet.doctor.images import ImageDataset, ImageInfo, thumbnails_of
from alexnet.errors import counted

_WORDS = "patient|pat|subject|subj|case|person|camera|cam|video|vid|clip|sequence|seq|scene|slide|study|site"
_DAY = r"(?<!\d)((?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01]))(?!\d)"
_WORD_PATTERNS = (  # common words in file names; the parenthesis is the group
    *(rf"(?i)((?<![a-z]){word}[-_ ]?[a-z]?\d+)" for word in _WORDS.split("|")),
    *(rf"(?i)([^/]+/(?:[^/]*?[^a-z/])?{word}[-_ ]?[a-z]?\d+)" for word in _WORDS.split("|")),  # in each folder
    _DAY,
    r"([^/]+)\.rf\.[0-9a-fA-F]{20,}\.\w+$",  # augmented copies of one image, as Roboflow names them
    r"(TCGA-\w\w-\w{4})(?!\w)",  # patients of The Cancer Genome Atlas
)
_LOOSE = (  # a name and a number, and perhaps a word: used only if images of a group are also similar
    r"([^/]+)[-_ ]\d+[^\d/]*\.\w+$",
    r"([^/]+/[^/]+)[-_ ]\d+[^\d/]*\.\w+$",
    r"([^/]*\d)[^\d/]+\d+[^\d/]*\.\w+$",
    r"([^/]+/[^/]*\d)[^\d/]+\d+[^\d/]*\.\w+$",
    r"([^/]+/[^/]+)/[^/]+\.\w+$",
    r"([^/]*\d)[^\d/]+\.\w+$",  # 10_left.jpg, 10_right.jpg
    r"([^/]+/[^/]*\d)[^\d/]+\.\w+$",
    r"(?:^|/)\d+[-_ ]([^/]+)\.\w+$",  # the frame first: 0003_apple7.jpg
    r"([^/]*\d)[^\d/]+\d+[^\d/]+\d+[^\d/]*\.\w+$",  # two numbers after it: 7_x0_y3.png
    r"([^/]+/[^/]*\d)[^\d/]+\d+[^\d/]+\d+[^\d/]*\.\w+$",
    r"([^/]+/)(?:[^/]*\d)?[^\d/]+(\d+)[^\d/]*\.\w+$",  # the number last, in each folder: frame 3 of 7.png, left-7.png
    r"([^/]+/)[^/]+/([^/]+)\.\w+$",  # a folder for each view: left/7.png
    r"([^/]+/[^/]+)/[^/]+/[^/]+\.\w+$",  # 7/left/0003.png
)
PATTERNS = (*_WORD_PATTERNS, *_LOOSE)
ALIKE = 0.85  # median distance of thumbnails within groups, of that between groups of one class


def check_groups(dataset: ImageDataset) -> Iterator[Finding]:
    """Findings about groups in two splits. Without groups in the data, file names may suggest them."""
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
    for pattern in PATTERNS:
        leaks = _leaking(good, _finder(pattern)) if _is_plausible(good, pattern) else {}
        if leaks:
            names = ", ".join(list(leaks)[:3]) + " …" * (len(leaks) > 3)
            of = counted(sum(map(len, leaks.values())), "image")
            what = f"file names suggest groups; {counted(len(leaks), 'group')} ({of}) would be in two splits: {names}"
            todo = f"if these are patients, cameras, videos or days, pass --group-pattern '{pattern}'"
            yield Finding("group-suspected", "warning", what, todo, _examples(leaks), (), {"pattern": pattern})
            return


def group_names(infos: list[ImageInfo]) -> list[str]:
    """The group of each image: that of the data, otherwise the one that its file name suggests; may be empty."""
    if any(info.sample.group for info in infos):
        return [info.sample.group for info in infos]
    pattern = next((pattern for pattern in PATTERNS if _is_plausible(infos, pattern)), None)
    return [""] * len(infos) if pattern is None else [_finder(pattern)(info) for info in infos]


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


def _is_plausible(infos: list[ImageInfo], pattern: str) -> bool:
    """Whether ``pattern`` groups plausibly: most images, several groups a class, no group with over half of all."""
    groups = {name: members for name, members in _by_group(infos, _finder(pattern)).items() if len(members) > 1}
    grouped, classes = sum(map(len, groups.values())), len({info.sample.label for info in infos})
    if len(groups) < max(6, 2 * classes) or 2 * grouped < len(infos):
        return False
    return 2 * max(map(len, groups.values())) <= len(infos) and (pattern not in _LOOSE or _alike(groups))


def _alike(groups: dict[str, list[ImageInfo]], most: int = 400) -> bool:
    """Whether images of one group are more similar to each other than to the rest of their class."""
    draw = np.random.Generator(np.random.PCG64(0))
    infos = [info for members in groups.values() for info in members]
    name = np.array([number for number, members in enumerate(groups.values()) for _ in members])
    label = np.array([info.sample.label for info in infos])
    a, b = draw.integers(0, len(infos), (2, 200 * most))
    inside = np.array([draw.choice(len(members), 2, replace=False) for members in groups.values()])  # [G, 2]
    starts = np.cumsum([0, *map(len, list(groups.values())[:-1])])
    between = np.flatnonzero((label[a] == label[b]) & (name[a] != name[b]))[:most]
    if not len(between):
        return False
    near = _distance(infos, (inside + starts[:, None])[:most])
    return bool(np.median(near) < ALIKE * np.median(_distance(infos, np.stack([a[between], b[between]], axis=1))))


def _distance(infos: list[ImageInfo], pairs: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> np.ndarray:
    left, right = (unit(thumbnails_of([infos[i] for i in column])).shapes for column in pairs.T)
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
