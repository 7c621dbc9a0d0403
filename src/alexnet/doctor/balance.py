"""Checks of classes: missing in a split, too few images to train or to test, class imbalance."""

from collections.abc import Iterator

import numpy as np

from alexnet.data.sources.source import group_similar, summarize
from alexnet.doctor.findings import Example, Finding
from alexnet.doctor.images import Seen
from alexnet.errors import DataError, counted

FEW_TRAIN, FEW_TEST = 20, 10  # images of a class
UNEQUAL = 5.0  # times as many images in the largest class as in the smallest


def counts_of(seen: Seen) -> dict[str, tuple[int, ...]]:
    """Usable images of each class in each split."""
    results = {split: np.zeros(len(seen.classes), int) for split in ("train", "validation", "test")}
    for look in seen.good():
        results[look.split][look.image.label] += 1
    return {split: tuple(int(count) for count in counts) for split, counts in results.items()}


def check_classes(seen: Seen, problems: list[DataError]) -> Iterator[Finding]:
    """Findings about classes; ``problems`` are what the reader of the source collected."""
    for own in group_similar([fault.what + (f"; must be {fault.must}" if fault.must else "") for fault in problems]):
        todo = next(fault.todo for fault in problems if own[0].startswith(fault.what))
        yield Finding("refused", "error", summarize(own), todo, tuple(Example((), line) for line in own[1:]))
    counts = counts_of(seen)
    train, test = np.array(counts["train"]), np.array(counts["test"])
    refused = " ".join(fault.what for fault in problems)
    without = [title for title in _titles(seen, train == 0) if repr(title) not in refused]
    if without:
        what = f"{counted(len(without), 'class has', 'classes have')} no usable training image: {_list(without)}"
        yield Finding("class-missing", "error", what, "add images, or remove the class")
    for split in ("validation", "test"):
        gone = _titles(seen, (np.array(counts[split]) == 0) & (train > 0)) if sum(counts[split]) else []
        if gone:
            what = f"{split} has no image of {_list(gone)}: their accuracy can not be measured"
            yield Finding("class-missing", "warning", what, f"move some of their images to {split}")
    yield from _few(seen, train, test)
    yield from _unequal(seen, train)


def _few(seen: Seen, train: np.ndarray, test: np.ndarray) -> Iterator[Finding]:
    few = (train > 0) & (train < FEW_TRAIN)
    if few.any():
        what = f"fewer than {FEW_TRAIN} training images of {_list(_titles(seen, few), train[few])}"
        yield Finding("few", "warning", what, "collect more images: 100 a class is little, 1,000 is good")
    unsure = (test > 0) & (test < FEW_TEST) & ~few
    if unsure.any():
        what = f"fewer than {FEW_TEST} test images of {_list(_titles(seen, unsure), test[unsure])}"
        yield Finding("few-test", "note", what, "the accuracy of these classes will be uncertain: test on more images")


def _unequal(seen: Seen, train: np.ndarray) -> Iterator[Finding]:
    there = train[train > 0]
    if len(there) < 2 or there.max() < UNEQUAL * there.min():
        return
    most, least = seen.classes[int(train.argmax())], seen.classes[int(np.where(train > 0, train, train.max()).argmin())]
    share = train.max() / train.sum()
    what = (
        f"{there.max():,} training images of {most!r} and {there.min():,} of {least!r}: "
        f"predicting always {most!r} has {100 * share:.0f} % accuracy"
    )
    todo = "collect more images of the rare classes; look at the accuracy of each class, not only at top-1"
    numbers = {"counts": train.tolist(), "ratio": float(there.max() / there.min())}
    yield Finding("imbalance", "warning", what, todo, (), (), numbers)


def _titles(seen: Seen, mask: np.ndarray) -> list[str]:
    return [seen.classes[i] for i in np.flatnonzero(mask)]


def _list(titles: list[str], counts: np.ndarray | None = None) -> str:
    items = [f"{t!r}" + (f" ({counts[i]})" if counts is not None else "") for i, t in enumerate(titles[:8])]
    return ", ".join(items) + (f" and {len(titles) - 8} more classes" if len(titles) > 8 else "")
