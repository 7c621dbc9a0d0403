"""The facts of a report: what was trained, on which data, at what cost, and how to reproduce it."""

import platform
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from alexnet import recipe as recipes
from alexnet.bundle import Bundle, find_bundle, weights_sha256
from alexnet.bundle.integrity import read_config
from alexnet.data.remote import local_path
from alexnet.data.sources import is_store
from alexnet.data.sources.options import DataOptions, regroup_images
from alexnet.data.store import Store
from alexnet.doctor.findings import Report as Diagnosis
from alexnet.doctor.images import Phases
from alexnet.errors import AlexNetError, DataError, counted
from alexnet.evaluation.calibration import NO_TEMPERATURE
from alexnet.recipe import Recipe
from alexnet.terminal import format_duration
from alexnet.training.logger import read_events, read_rows
from alexnet.training.run_data import data_of_run, options_of_run
from alexnet.training.run_folder import Provenance, own_store

Row = tuple[str, str]  # a name and its value

# Warnings of the doctor about data that makes a result look better than it is.
_INFLATING = {"leak-validation", "group-suspected", "shortcut"}


def diagnose(
    metadata: Mapping[str, Any], store: Store, grouping: str, options: DataOptions, progress: Phases | None = None
) -> tuple[Diagnosis | None, str]:
    """The doctor's report on the training data of a run.

    The doctor examines the images and splits of the run's store, read with the options of its training. The images
    must still exist under their names; their dates may have changed.

    Args:
        metadata: The contents of the run's run.json.
        store: The store of the run.
        grouping: How the images of the run were grouped, as its bundle says.
        options: How the images are read; options that the run recorded complete them.
        progress: Makes the progress bar of each phase.

    Returns:
        The report, or None and the reason why there is none.
    """
    from alexnet.doctor.examine import examine

    data = data_of_run(metadata)
    if is_store(data):
        return None, f"the run was trained from a prepared store, {data}; the doctor needs the original images"
    problems: list[DataError] = []
    # The store has no image that was excluded, so the exclusion list itself may be gone.
    recorded = options_of_run(metadata, options)
    corrections = recorded.corrections if recorded.corrections and recorded.corrections.exists() else None
    options = replace(recorded, exclude=options.exclude, corrections=corrections, bad="exclude")
    try:
        source = regroup_images(options.open(data, problems), grouping)
    except (AlexNetError, OSError) as error:
        return None, f"the images are not available ({error})"
    known = {image.origin: image for part in (*source.splits.values(), source.added) for image in part}
    used = {
        name: [(str(row["origin"]), int(label)) for row, label in zip(part.origins(), part.labels, strict=True)]
        for name, part in store.splits.items()
    }
    total = sum(map(len, used.values()))
    missing = sum(origin not in known for images in used.values() for origin, _ in images)
    if missing:
        return None, f"{missing:,} of the {total:,} images that the run used are no longer in {data}"
    for row in store.left_out():
        if (origin := str(row["origin"])) in known:
            used[str(row["split"])].append((origin, known[origin].label))
    splits = {
        name: tuple(replace(known[origin], label=label) for origin, label in images if origin not in source.excluded)
        for name, images in used.items()
    }
    truncated = options.allow_truncated
    return examine(source, problems, splits=splits, allow_truncated=truncated, progress=progress), ""


def data_warnings(
    run: str | Path, diagnosis: Diagnosis | None, *, store: Store | str | Path | None = None
) -> list[str]:
    """Warnings about the data of a run, one line each.

    Args:
        run: A run folder.
        diagnosis: The doctor's report; without it only identical files across splits are searched, in the store.
        store: The run's store, or where it is now, if it was moved.
    """
    if diagnosis is None:
        run = local_path(run)
        copies = copies_across_splits(own_store(run, store))
        leak = f"leak: {counted(copies, 'validation and test image')} identical to a training image"
        return [leak] * bool(copies)
    severe = [one for one in diagnosis.findings if one.severity == "error" or one.check in _INFLATING]
    others = sum(one.severity == "warning" and one not in severe for one in diagnosis.findings)
    lines = [f"{one.check}: {one.what}" + (f"; {one.todo}" if one.todo else "") for one in severe]
    if others:
        lines.append(f"{counted(others, 'more warning')} about the data: see the report, or run alexnet doctor")
    return lines


def copies_across_splits(store: Store) -> int:
    """Number of validation and test images whose file is identical (by SHA-256) to that of a training image."""
    train = {row["sha256"] for row in store.split("train").origins()}
    return sum(row["sha256"] in train for name in ("validation", "test") for row in store.split(name).origins())


def training_facts(metadata: dict[str, Any], bundle: Bundle, recipe: Recipe, store: Store) -> list[Row]:
    """What was trained on which data."""
    network, data = bundle.network, bundle.data
    parameters, names = sum(p.numel() for p in network.parameters()), ", ".join(bundle.classes[:30])
    size = network.image_size
    counts = ", ".join(f"{count:,} {split}" for split, count in data.get("counts", {}).items())
    source = data.get("from")
    return [
        ("images", f"{data.get('name', 'unknown')}, from {metadata.get('data', 'unknown')}"),
        ("split", counts),
        ("groups", f"kept together by {data['grouping']}" if data.get("grouping") else "none: images are independent"),
        ("left out", f"{store.skipped:,} images that are unusable or were excluded"),
        ("classes", f"{len(bundle.classes)}: {names}{' …' if len(bundle.classes) > 30 else ''}"),
        ("network", f"{network.name}, {parameters:,} parameters, input {size}×{size} pixels"),
        ("initial weights", f"{source['name']} (SHA-256 {source['sha256']})" if source else "random"),
        ("recipe", f"{recipe.recipe}, {recipe.epochs} epochs, batch size {recipe.batch_size}, seed {recipe.seed}"),
    ]


def choices(provenance: Provenance) -> list[str]:
    """What was chosen on which split, as sentences."""
    lines = [f"The weights are those of {provenance.epoch}."]
    if provenance.temperature_by:
        targets = ", ".join(f"{100 * float(target):g} %" for target in provenance.thresholds)
        thresholds = (
            f", and so were the thresholds for an error of {targets}" if targets else "; too few for thresholds"
        )
        images = f"{provenance.count:,} {provenance.temperature_by} images"
        if provenance.temperature == 1.0:
            lines.append(f"{NO_TEMPERATURE} The split has {images}{thresholds}.")
        else:
            lines.append(f"The temperature {provenance.temperature:.3f} was fitted on {images}{thresholds}.")
    else:
        lines.append("Probabilities are uncalibrated: no temperature was fitted, and there are no thresholds.")
    lines.append("Nothing was chosen by the test images.")
    if provenance.tested:
        times = "once more" if provenance.tested == 1 else f"{provenance.tested} times"
        lines.append(f"They were evaluated {times} since training: later changes may be selected by them.")
    return lines


def cost(run: Path, events: list[dict[str, Any]], epochs: list[dict[str, float]], bundle: Bundle) -> list[Row]:
    """Time, speed and size."""
    seconds = sum(row.get("seconds", 0.0) for row in epochs)
    images = sum(row.get("seconds", 0.0) * row.get("images_per_second", 0.0) for row in epochs)
    started = next((e for e in events if e.get("event") == "started"), {})
    inference = bundle.metrics.get("test", {}).get("images_per_second")
    return [
        ("training time", f"{format_duration(seconds)} for {len(epochs)} epochs" if epochs else "no record"),
        ("training speed", f"{images / seconds:,.0f} images per second" if seconds else "no record"),
        ("inference speed", f"{inference:,.0f} images per second, in batches" if inference else "no record"),
        ("device", str(started.get("device", "no record"))),
        ("size on disk", f"{_size(find_bundle(run)) / 1e6:,.2f} MB"),
    ]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def reproduction(run: Path, metadata: dict[str, Any], bundle: Bundle, recipe: Recipe, store: Store) -> dict[str, Any]:
    """How to reproduce the run: commands, versions, seed, checksums."""
    from alexnet import __version__

    versions = read_config(find_bundle(run))[0].get("versions", {})
    return {
        "commands": [train_command(metadata, recipe), f"alexnet evaluate {run}", f"alexnet report {run}"],
        "facts": [
            ("trained with", ", ".join(f"{name} {number}" for name, number in versions.items()) or "unknown"),
            (
                "reported with",
                f"alexnet {__version__}, python {platform.python_version()}, {platform.machine()}",
            ),
            ("seed", str(recipe.seed)),
            ("weights, SHA-256", weights_sha256(run)),
            ("prepared images, SHA-256", store.fingerprint),
            ("original images, SHA-256", str(bundle.data.get("source", "unknown"))),
        ],
    }


def train_command(metadata: dict[str, Any], recipe: Recipe) -> str:
    """The command that trains the run again: its data, its recipe, and every option that differs from the recipe."""
    argv = ["alexnet", "train", str(metadata.get("data", "DATA")), "--recipe", recipe.recipe]
    base = recipes.get_recipe(recipe.recipe)
    for name in recipes.differences(base, recipe):
        value = getattr(recipe, name)
        if isinstance(value, bool):
            argv.append(recipes.option(name) if value else recipes.option(name).replace("--", "--no-", 1))
        else:
            argv += [recipes.option(name), *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    argv += metadata.get("options", [])
    if "from" in metadata:
        argv += ["--init-from", str(metadata["from"].get("name", "RUN"))]
    if "layers" in metadata:
        argv += ["--layers", "layers.cfg", "--layer-params", "layer-params.cfg"]
    return shlex.join(argv)


def events_of(run: Path) -> list[dict[str, Any]]:
    """The readable lines of the run's journal."""
    try:
        return read_events(run)[0]
    except OSError:
        return []


def epochs_of(run: Path) -> list[dict[str, float]]:
    """The rows of results.csv; none if there is no such file. Raises :class:`RunError` for a damaged one."""
    return read_rows(run) if (run / "results.csv").exists() else []
