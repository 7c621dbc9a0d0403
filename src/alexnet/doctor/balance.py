"""Checks of classes: missing in a split, too few images to train or to test, class imbalance."""

from collections.abc import Iterator

import numpy as np

from alexnet.data.sources.source import group_similar, summarize
from alexnet.doctor.findings import Example, Finding
from alexnet.doctor.images import ImageDataset
from alexnet.errors import DataError, counted

MIN_TRAIN, MIN_TEST = 20, 10  # images of a class
MAX_RATIO = 5.0  # times as many images in the largest class as in the smallest


def counts_of(dataset: ImageDataset) -> dict[str, tuple[int, ...]]:
    """Usable images of each class in each split."""
    results = {split: np.zeros(len(dataset.classes), int) for split in ("train", "validation", "test")}
    for info in dataset.good():
        results[info.split][info.sample.label] += 1
    return {split: tuple(int(count) for count in counts) for split, counts in results.items()}


def check_classes(dataset: ImageDataset, problems: list[DataError]) -> Iterator[Finding]:
    """Findings about classes; ``problems`` are those that were found while the source was read."""
    for lines in group_similar([fault.what + (f"; must be {fault.must}" if fault.must else "") for fault in problems]):
        todo = next(fault.todo for fault in problems if lines[0].startswith(fault.what))
        yield Finding("refused", "error", summarize(lines), todo, tuple(Example((), line) for line in lines[1:]))
    counts = counts_of(dataset)
    train, test = np.array(counts["train"]), np.array(counts["test"])
    refused = " ".join(fault.what for fault in problems)
    missing = [title for title in _titles(dataset, train == 0) if repr(title) not in refused]
    if missing:
        what = f"{counted(len(missing), 'class has', 'classes have')} no usable training image: {_list(missing)}"
        yield Finding("class-missing", "error", what, "add images, or remove the class")
    for split in ("validation", "test"):
        missing = _titles(dataset, (np.array(counts[split]) == 0) & (train > 0)) if sum(counts[split]) else []
        if missing:
            what = f"{split} has no image of {_list(missing)}: their accuracy can not be measured"
            yield Finding("class-missing", "warning", what, f"move some of their images to {split}")
    yield from _small_classes(dataset, train, test)
    yield from _imbalance(dataset, train)


def _small_classes(dataset: ImageDataset, train: np.ndarray, test: np.ndarray) -> Iterator[Finding]:
    too_few = (train > 0) & (train < MIN_TRAIN)
    if too_few.any():
        what = f"fewer than {MIN_TRAIN} training images of {_list(_titles(dataset, too_few), train[too_few])}"
        yield Finding("few", "warning", what, "collect more images: 100 a class is little, 1,000 is good")
    uncertain = (test > 0) & (test < MIN_TEST) & ~too_few
    if uncertain.any():
        what = f"fewer than {MIN_TEST} test images of {_list(_titles(dataset, uncertain), test[uncertain])}"
        yield Finding("few-test", "note", what, "the accuracy of these classes will be uncertain: test on more images")


def _imbalance(dataset: ImageDataset, train: np.ndarray) -> Iterator[Finding]:
    counts = train[train > 0]
    if len(counts) < 2 or counts.max() < MAX_RATIO * counts.min():
        return
    most, least = (
        dataset.classes[int(train.argmax())],
        dataset.classes[int(np.where(train > 0, train, train.max()).argmin())],
    )
    share = train.max() / train.sum()
    what = (
        f"{counts.max():,} training images of {most!r} and {counts.min():,} of {least!r}: "
        f"predicting always {most!r} has {100 * share:.0f} % accuracy"
    )
    todo = "collect more images of the rare classes; look at the accuracy of each class, not only at top-1"
    numbers = {"counts": train.tolist(), "ratio": float(counts.max() / counts.min())}
    yield Finding("imbalance", "warning", what, todo, (), (), numbers)


def _titles(dataset: ImageDataset, mask: np.ndarray) -> list[str]:
    return [dataset.classes[i] for i in np.flatnonzero(mask)]


def _list(titles: list[str], counts: np.ndarray | None = None) -> str:
    items = [f"{t!r}" + (f" ({counts[i]})" if counts is not None else "") for i, t in enumerate(titles[:8])]
    return ", ".join(items) + (f" and {len(titles) - 8} more classes" if len(titles) > 8 else "")
