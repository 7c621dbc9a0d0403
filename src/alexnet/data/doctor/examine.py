"""The doctor: every check on one data set, in the order in which a person should read them."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from alexnet.data.doctor.balance import check_classes, counts_of
from alexnet.data.doctor.duplicates import check_duplicates, same_pictures
from alexnet.data.doctor.files import check_files, check_shapes
from alexnet.data.doctor.findings import Finding, Report, in_order
from alexnet.data.doctor.groups import check_groups
from alexnet.data.doctor.labels import check_labels
from alexnet.data.doctor.looking import Progress, Seen, look_at_all
from alexnet.data.doctor.shortcuts import check_colors, check_shortcuts
from alexnet.data.listing import Picture, Source
from alexnet.data.splits import assign
from alexnet.errors import DataError

Embed = Callable[[list[Picture]], NDArray[np.float32]]  # pictures → what a trained network sees in them, [N, D]


def examine(
    source: Source,
    faults: list[DataError] | None = None,
    *,
    splits: Mapping[str, tuple[Picture, ...]] | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    allow_truncated: bool = False,
    embed: Embed | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Look at every picture of ``source`` and say what is wrong. Nothing is changed.

    ``faults`` are what ``open_source`` collected while it read; ``validation``, ``test`` and ``seed`` as training would
    be given them: where the data brings no splits, those that it would draw are judged; or ``splits``, those that a
    run was trained on. With ``embed`` labels are checked by neighbors, too. Raises DataError only for wrong arguments.
    """
    splits = splits or assign(source, validation=validation, test=test, seed=seed, strict=False)
    looks = look_at_all(splits, workers, progress)
    seen = Seen(source.name, source.classes, looks, "all" in source.splits, allow_truncated)
    found = [*check_classes(seen, faults or []), *check_duplicates(seen, workers or 1), *check_groups(seen)]
    found += [*check_files(seen), *check_shapes(seen), *check_shortcuts(seen), *check_colors(seen)]
    if embed is not None:
        good = seen.good()
        found += check_labels(seen, good, same_pictures(good), embed([look.picture for look in good]))
    found += [Finding("reading", "note", note) for note in source.notes]
    return Report(source.name, source.classes, counts_of(seen), seen.drawn, in_order(found))
