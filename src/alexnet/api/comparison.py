"""``compare``, ``promote`` and ``promote_back`` from Python: a new classifier beside an old one, and in its place."""

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from alexnet import pages
from alexnet.api.evaluation import member, store_for
from alexnet.bundle import Bundle, config_sha256, find_bundle, restore_previous, weights_sha256
from alexnet.data.atomic_io import write_file, written
from alexnet.data.remote import local_path
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Split
from alexnet.errors import AlexNetError, BundleError, RecipeError, did_you_mean, reason
from alexnet.evaluation import detailed, intervals
from alexnet.evaluation.calibration import probabilities
from alexnet.evaluation.comparison import Equivalence, SubsetComparison, compare_subsets, equivalence
from alexnet.evaluation.ensemble import same_images
from alexnet.evaluation.evaluate import SplitPredictions
from alexnet.evaluation.intervals import Estimate, PairedComparison, proportion_ci
from alexnet.export.classifier import Classifier
from alexnet.export.verify import Verified, verify
from alexnet.system import choose_device
from alexnet.terminal import interval, short_percent
from alexnet.training.run_data import run_folder, training_images
from alexnet.training.run_folder import Provenance, note_test, of_bundle, own_store

SHOWN, IMAGE_SIZE = 60, 150  # flipped images of each kind on the page, and pixels of their longer side
MARGIN = 1.0  # points of accuracy; the default of promote


@dataclass(frozen=True)
class Flip:
    """An image that one of two classifiers alone has right.

    Attributes:
        index: Its index in the split.
        origin: Its name in the data.
        true_class: Its class.
        old: The old classifier's prediction and probability.
        new: The new one's.
    """

    index: int
    origin: str
    true_class: str
    old: tuple[str, float]
    new: tuple[str, float]

    @property
    def fixed(self) -> bool:
        """Is the new prediction the right one?"""
        return self.new[0] == self.true_class

    def to_dict(self) -> dict[str, Any]:
        """The flip as JSON values."""
        names = {"origin": self.origin, "true_class": self.true_class, "fixed": self.fixed}
        return names | {
            name: {"label": label, "score": score} for name, (label, score) in (("old", self.old), ("new", self.new))
        }


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images of a split.

    Attributes:
        new: The new run or bundle.
        old: The old run or bundle.
        split: The split.
        crops: Crops of each image, 1 or 10.
        paired: Accuracies, their difference with its 95 % CI, and McNemar's exact test.
        provenances: What was chosen on which split, for the new and the old one.
        classes: The comparison of each class, with p-values adjusted for all classes.
        flips: The images that only one of the two has right, the new one's mistakes first, most confident first.
        images: The images of the split.
        equivalence: Tests against the margin, if there is one.
        slice_by: The column of ``slices``.
        slices: The comparison of the images with each value of a column.
        training_images_left_out: Images of the split that one of the two was trained on.
        training_images_included: The same, where they were compared on request.
    """

    new: str
    old: str
    split: str
    crops: int
    paired: PairedComparison
    provenances: tuple[Provenance, Provenance]
    classes: tuple[SubsetComparison, ...]
    flips: tuple[Flip, ...]
    images: Split = field(repr=False, compare=False)
    equivalence: Equivalence | None = None
    slice_by: str = ""
    slices: tuple[SubsetComparison, ...] = ()
    training_images_left_out: int = 0
    training_images_included: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        names = {"runs": {"new": self.new, "old": self.old}, "split": self.split, "crops": self.crops}
        parts: dict[str, Any] = {"equivalence": self.equivalence and self.equivalence.to_dict()}
        parts["classes"] = [one.to_dict() for one in self.classes]
        parts |= {"slices": [one.to_dict() for one in self.slices]} if self.slices else {}
        parts["flips"] = [one.to_dict() for one in self.flips]
        counts = {
            "training_images_left_out": self.training_images_left_out,
            "training_images_included": self.training_images_included,
        }
        tested = {"test_evaluations": [one.tested for one in self.provenances]}
        return names | self.paired.to_dict() | parts | counts | tested


def compare(
    new: str | Path,
    old: str | Path,
    data: str | Path | None = None,
    *,
    margin: float | None = None,
    slice_by: str | None = None,
    split: str = "test",
    crops: int = 1,
    device: str = "auto",
    options: DataOptions | None = None,
) -> Comparison:
    """Compare a new classifier with an old one on the same images.

    Args:
        new: A run folder or a bundle.
        old: A run folder or a bundle with the same classes.
        data: Images with the same classes; by default the runs' own data, which must be the same, or that of the one
            that is a run if the other is a bundle alone.
        margin: The acceptable difference in points of accuracy, for tests of non-inferiority and equivalence.
        slice_by: A column of the data; the images of each of its values are compared.
        split: ``test``, ``validation`` or ``train``.
        crops: 1 (center crop), 9 (3×3 crops without flips) or 10 (corners, center, and their mirror images).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        options: How ``data`` is read.

    Returns:
        Both accuracies, their difference with its 95 % CI, McNemar's p-value, the tests against the margin, the
        classes, and the images that flip.

    Raises:
        BundleError: If the classes differ.
        DataError: If the two would be evaluated on different images.
        RecipeError: If the margin is not between 0 and 100.

    Example:
        >>> comparison = alexnet.api.compare("new-run", "old-run", margin=1.0)
        >>> print(comparison.paired.difference, comparison.equivalence.noninferior)
    """
    options, target = (options or DataOptions()).log_once(), choose_device(device)
    if margin is not None and not 0 < margin < 100:
        raise RecipeError(f"--margin is {margin}", "points of accuracy between 0 and 100, such as 1.0")
    runs = (new, old)
    classifiers = [Classifier.load(run, target) for run in runs]
    bundles = [classifier.bundle for classifier in classifiers]
    bundles[0].same_classes(bundles[1].classes, str(old))
    with_data = [run for run in runs if (Path(run) / "run.json").is_file()]
    if data is None and len(with_data) == 1:  # a bundle has no data of its own
        data = own_store(Path(with_data[0])).address
    stores = [store_for(run, c, data, options) for run, c in zip(runs, classifiers, strict=True)]
    trained = training_images(runs, bundles, stores, options)
    splits: list[Split] = [trained.select(store, split) for store in stores]
    members = [member(str(run), c, images) for run, c, images in zip(runs, classifiers, splits, strict=True)]
    same_images(members, "train both on one prepared store, or give DATA", "the same for both classifiers")
    values = detailed.column(splits[0], slice_by) if slice_by else ()
    newer, older = (c.predict_split(images, crops) for c, images in zip(classifiers, splits, strict=True))
    for run, store in zip(runs, stores, strict=True):
        note_test(run, store, split, "compare", options.log_line)
    is_right, was_right, groups = newer.correct, older.correct, newer.groups
    fraction, classes = None if margin is None else margin / 100, bundles[0].classes
    names = [classes[label] for label in newer.labels.tolist()]
    return Comparison(
        str(new),
        str(old),
        split,
        crops,
        intervals.compare(was_right, is_right, groups),
        (of_bundle(bundles[0], new), of_bundle(bundles[1], old)),
        compare_subsets(was_right, is_right, names, fraction, groups),
        _flips(splits[0], classes, (newer, older), (bundles[0].temperature, bundles[1].temperature)),
        splits[0],
        None if fraction is None else equivalence(was_right, is_right, fraction, groups),
        slice_by or "",
        compare_subsets(was_right, is_right, values, fraction, groups) if values else (),
        *trained.counts(stores[0], split),
    )


def _flips(
    images: Split,
    classes: Sequence[str],
    predictions: tuple[SplitPredictions, SplitPredictions],
    temperatures: tuple[float, float],
) -> tuple[Flip, ...]:
    rows = [probabilities(p.log_probabilities, t) for p, t in zip(predictions, temperatures, strict=True)]
    places = np.flatnonzero(predictions[0].correct != predictions[1].correct).tolist()
    origins = images.origins()
    results = []
    for i in places:
        new, old = ((classes[int(row[i].argmax())], float(row[i].max())) for row in rows)
        results.append(Flip(i, str(origins[i]["origin"]), classes[int(images.labels[i])], old, new))
    return tuple(sorted(results, key=lambda one: (one.fixed, -max(one.new[1], one.old[1]), one.origin)))


def write_page(comparison: Comparison, path: Path) -> None:
    """Write a comparison as an HTML page, with the images that flip. Raises :class:`RunError`."""
    pair, tested = comparison.paired, comparison.equivalence
    facts = [
        ("new", f"{comparison.new}: {short_percent(pair.new.value)} ({interval(pair.new.low, pair.new.high)})"),
        ("old", f"{comparison.old}: {short_percent(pair.old.value)} ({interval(pair.old.low, pair.old.high)})"),
        ("difference", f"{_points(pair.difference)} (95 % CI {_range(pair.difference.low, pair.difference.high)})"),
        (
            "McNemar's test",
            f"p = {pair.p_value:.2g}; right with new only: {pair.only_new}, with old only: {pair.only_old}",
        ),
    ]
    if tested is not None:
        margin = f"margin {100 * tested.margin:g} points, 90 % CI {_range(tested.low, tested.high)}"
        facts.append(
            ("not worse", f"{'shown' if tested.noninferior else 'not shown'}: p = {tested.p_noninferior:.2g}; {margin}")
        )
        facts.append(
            ("equivalent", f"{'shown' if tested.equivalent else 'not shown'}: p = {tested.p_equivalent:.2g} (TOST)")
        )
    tables = [("Classes", "class", comparison.classes)]
    tables += [(f"By {comparison.slice_by}", comparison.slice_by, comparison.slices)] if comparison.slices else []
    broken = [one for one in comparison.flips if not one.fixed]
    fixed = [one for one in comparison.flips if one.fixed]
    values = {
        "title": f"{comparison.new} compared with {comparison.old}",
        "subtitle": f"{pair.count:,} {comparison.split} images. Difference: new − old.",
        "facts": facts,
        "tables": [(title, column, [_subset_cells(one) for one in subsets]) for title, column, subsets in tables],
        "with_margin": tested is not None,
        "flips": [
            ("Right with the old classifier only", len(broken), _cards(comparison.images, broken[:SHOWN])),
            ("Right with the new classifier only", len(fixed), _cards(comparison.images, fixed[:SHOWN])),
        ],
        "size": IMAGE_SIZE,
    }
    with written(path):
        write_file(path, pages.render("compare.html", **values).encode("utf-8", "replace"))


def _points(one: Estimate) -> str:
    return f"{100 * one.value:+.1f} points"


def _range(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def _subset_cells(one: SubsetComparison) -> list[str]:
    accuracies = [short_percent(one.old.value), short_percent(one.new.value)]
    difference = [f"{100 * one.difference.value:+.1f}", _range(one.difference.low, one.difference.high)]
    against = [] if one.p_noninferior is None else [f"{one.p_noninferior:.2g}"]
    return [one.name, f"{one.images:,}", *accuracies, *difference, f"{one.p_value:.2g}", *against, one.verdict]


def _cards(images: Split, flips: Sequence[Flip]) -> list[dict[str, str]]:
    pixels = images.gather(np.array([one.index for one in flips], np.int64))  # [M, S, S, 3]
    return [
        {
            "image": pages.image_url(image, IMAGE_SIZE),
            "name": one.origin,
            "true_class": one.true_class,
            "text": f"new: {one.new[0]} ({short_percent(one.new[1])}); old: {one.old[0]} ({short_percent(one.old[1])})",
        }
        for one, image in zip(flips, pixels, strict=True)
    ]


# Promotion


@dataclass(frozen=True)
class Check:
    """One condition of a promotion: what it is about, whether it holds, and the numbers."""

    name: str
    holds: bool
    text: str


@dataclass(frozen=True)
class Promotion:
    """The result of :func:`promote`.

    Attributes:
        checks: All conditions.
        certificate: What was tested, as in ``certificate.json`` of the promoted bundle.
        comparison: The comparison with the served bundle; None if there was none.
    """

    checks: tuple[Check, ...]
    certificate: dict[str, Any]
    comparison: Comparison | None

    @property
    def promoted(self) -> bool:
        """Do all checks hold? Then the served bundle was replaced."""
        return all(check.holds for check in self.checks)


def promote(
    new: str | Path,
    served: str | Path,
    data: str | Path | None = None,
    *,
    margin: float = MARGIN,
    min_recall: Mapping[str, float] | float = 0.0,
    split: str = "test",
    device: str = "auto",
    options: DataOptions | None = None,
) -> Promotion:
    """Replace the served bundle by a new one if all checks hold.

    The checks: the new bundle verifies, it is not worse than the served one by the margin (at 5 %), no class is
    significantly worse (after Holm's correction), and each class has its minimum recall. The replaced bundle is kept
    beside the served one; :func:`promote_back` returns to it. The new bundle gets a dated certificate.

    Args:
        new: A run folder or a bundle.
        served: The served bundle, or the path of the first one.
        data: Images to test on; by default those of ``new``.
        margin: The acceptable loss of accuracy, in points.
        min_recall: The minimum recall of each class, or of the named classes; fractions.
        split: The split to test on.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        options: How ``data`` is read.

    Raises:
        BundleError: If ``served`` is a run folder or no bundle, or has other classes.
        RecipeError: If the margin or a minimum recall is out of range, or a class unknown.
    """
    path, bundle_path = local_path(served), find_bundle(new)
    if (path / "bundle").exists() or (path / "run.json").exists():
        raise BundleError(
            f"{path} is a run folder", "the folder of a served bundle", "alexnet promote RUN FOLDER makes one"
        )
    if path.exists() and path.resolve() == bundle_path.resolve():
        raise BundleError(f"{new} is the served bundle itself", "another run or bundle")
    bundle, compared = Bundle.load(bundle_path), config_sha256(path)
    floors = _floors(min_recall, bundle.classes)
    try:
        verified = verify(bundle_path)
        checks = [
            Check(
                "verified", True, f"{verified.images} reference images, largest difference {verified.max_abs_diff:.1e}"
            )
        ]
    except AlexNetError as error:
        verified, checks = None, [Check("verified", False, reason(error))]
    comparison = None
    if path.exists():
        comparison = compare(new, served, data, margin=margin, split=split, device=device, options=options)
        checks += _against_old(comparison)
        classes = [(one.name, one.images, one.new) for one in comparison.classes]
        top1 = comparison.paired.new
    else:
        top1, classes = _alone(new, data, split, device, options or DataOptions())
    checks += [
        Check(
            f"recall of {name}",
            not np.isnan(one.value) and one.value >= floors[name],
            f"{100 * one.value:.1f} % of {images} images (at least {100 * floors[name]:g} %)",
        )
        for name, images, one in classes
        if floors.get(name, 0) > 0
    ]
    absent = [name for name, floor in floors.items() if floor > 0 and name not in {row[0] for row in classes}]
    checks += [Check(f"recall of {name}", False, f"{split} has no images of the class") for name in absent]
    certificate = _certificate(new, bundle_path, bundle, split, top1, classes, comparison, verified, checks)
    result = Promotion(tuple(checks), certificate, comparison)
    if result.promoted:
        dataclasses.replace(bundle, certificate=certificate).save(path, keep_previous=True, replaces=compared)
    return result


def promote_back(served: str | Path) -> Bundle:
    """Return to the bundle that the last promotion replaced. Called again, it returns to the newer one.

    Raises:
        BundleError: If there is none, or it is damaged; nothing is changed.
    """
    return restore_previous(served)


def _floors(min_recall: Mapping[str, float] | float, classes: Sequence[str]) -> dict[str, float]:
    floors = dict(min_recall) if isinstance(min_recall, Mapping) else dict.fromkeys(classes, min_recall)
    for name, floor in floors.items():
        if name not in classes:
            raise RecipeError(f"--min-recall names {name!r}, which is no class. {did_you_mean(name, classes)}")
        if not 0 <= floor <= 1:
            raise RecipeError(f"--min-recall of {name} is {floor}", "a fraction from 0 to 1")
    return floors


def _against_old(comparison: Comparison) -> list[Check]:
    """Non-inferiority, and no class that is significantly worse."""
    tested, difference = comparison.equivalence, comparison.paired.difference
    assert tested is not None, "promote compares with a margin"
    text = (
        f"difference {100 * difference.value:+.1f} points on {comparison.paired.count} images, "
        f"90 % CI {100 * tested.low:+.1f} to {100 * tested.high:+.1f}, margin {100 * tested.margin:g}, "
        f"p = {tested.p_noninferior:.2g}"
    )
    worse = [one for one in comparison.classes if one.verdict == "worse"]
    listed = ", ".join(f"{one.name} ({100 * one.difference.value:+.1f} points, p = {one.p_value:.2g})" for one in worse)
    return [
        Check("not worse", tested.noninferior, text),
        Check("no class worse", not worse, listed or f"{len(comparison.classes)} classes, Holm's correction"),
    ]


def _alone(
    new: str | Path, data: str | Path | None, split: str, device: str, options: DataOptions
) -> tuple[Estimate, list[tuple[str, int, Estimate]]]:
    """Accuracy and recalls of a first bundle, which has no predecessor."""
    classifier = Classifier.load(new, choose_device(device))
    store = store_for(new, classifier, data, options)
    images = training_images([new], [classifier.bundle], [store], options).select(store, split)
    predictions = classifier.predict_split(images)
    note_test(new, store, split, "promote", options.log_line)
    rows = []
    for k, name in enumerate(classifier.classes):
        own = np.flatnonzero(predictions.labels == k)
        if len(own):
            groups = [predictions.groups[i] for i in own.tolist()] if predictions.groups else ()
            rows.append((name, len(own), proportion_ci(predictions.correct[own], groups)))
    return proportion_ci(predictions.correct, predictions.groups), rows


def _certificate(
    new: str | Path,
    path: Path,
    bundle: Bundle,
    split: str,
    top1: Estimate,
    classes: Sequence[tuple[str, int, Estimate]],
    comparison: Comparison | None,
    verified: Verified | None,
    checks: Sequence[Check],
) -> dict[str, Any]:
    from alexnet import __version__

    folder = run_folder(new)
    replaced = None
    if comparison is not None:
        paired = comparison.paired
        replaced = {
            "weights_sha256": weights_sha256(comparison.old),
            "top1": paired.old.to_dict(),
            "difference": paired.difference.to_dict(),
            "mcnemar_p": paired.p_value,
            "equivalence": comparison.equivalence and comparison.equivalence.to_dict(),
            "classes": [one.to_dict() for one in comparison.classes],
        }
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "weights_sha256": weights_sha256(path),
        "run": folder.resolve().name if folder else "",
        "network": bundle.network.name,
        "split": split,
        "images": top1.count if comparison is None else comparison.paired.count,
        "data_fingerprint": str(bundle.data.get("fingerprint", "")),
        "top1": top1.to_dict(),
        "recall": {name: {"images": images} | one.to_dict() for name, images, one in classes},
        "replaced": replaced,
        "max_abs_diff": verified.max_abs_diff if verified else None,
        "checks": [vars(check) for check in checks],
        "versions": {"alexnet": __version__, "python": platform.python_version()},
    }
