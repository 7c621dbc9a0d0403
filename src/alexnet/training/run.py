"""Lines to read beside a run's numbers: what so many images can teach and show, and what is wrong with the numbers.

A run and its folder: who may write there, what is in it, how it begins, resumes and ends.

recipe.toml  run.json  journal.jsonl  results.csv  checkpoints/  bundle/  plots/  tensorboard/  .lock
and, where a layer file of 2012 is trained, layers.cfg  layer-params.cfg
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from alexnet.bundle import Bundle, ReferenceSample
from alexnet.cuda_convnet import Files
from alexnet.data.atomic_io import final_name, write_file
from alexnet.data.decode import encode_png
from alexnet.data.run_file import read_run_file, write_run_file
from alexnet.data.store import Store
from alexnet.errors import BundleError, CheckpointError, DataError, RecipeError, RunError
from alexnet.evaluation.calibration import FEWEST, calibrate
from alexnet.evaluation.evaluate import calibrated, log_probabilities, predict_split
from alexnet.evaluation.metrics import Scores
from alexnet.kernels import native_kernels
from alexnet.loader.augmentation import Normalization, center_crops
from alexnet.loader.loader import Loader, Shard, to_device
from alexnet.recipe import Recipe, from_toml, to_toml
from alexnet.training import checkpoint, loop, runtime
from alexnet.training.async_checkpoint import AsyncCheckpointer
from alexnet.training.distributed.sharding import SINGLE_PROCESS, Layout
from alexnet.training.distributed.world import World
from alexnet.training.finetune import PretrainedWeights
from alexnet.training.logger import NullLogger, RunLogger, damage
from alexnet.training.loop import Training
from alexnet.training.state import State

FEW = 100  # training images a class under which a network that starts from nothing is told to expect little


def data_size_warnings(store: Store, scores: dict[str, Scores]) -> tuple[str, ...]:
    """What so many images can teach and show, honestly."""
    train, result = store.split("train"), []
    each = np.bincount(train.labels, minlength=len(store.classes))
    if each.min() < FEW:
        rare = store.classes[int(each.argmin())]
        result.append(
            f"{len(train)} images taught {len(store.classes)} classes, {each.min()} of {rare!r}: few for a network "
            f"that starts from nothing. More images, at least {FEW} a class, will help more than any option."
        )
    if "test" in scores:
        often = np.bincount(store.split("test").labels).max() / scores["test"].count
        over = f"; {len(scores['test'].groups)} groups of images" if scores["test"].groups else ""
        result.append(
            f"top-1 of {scores['test'].count} test images{over}: {_with_interval(scores['test'])}; "
            f"always predicting the most frequent class would reach {100 * often:.1f} %."
        )
    return tuple(result)


def warnings(store: Store, scores: dict[str, Scores]) -> tuple[str, ...]:
    """What makes the numbers of a run worthless, or shows that they are: to be read before them."""
    result, validation, test = [], scores.get("validation"), scores.get("test")
    if validation and test and test.top1_interval[1] < validation.top1_interval[0]:
        result.append(
            f"test top-1 is {_with_interval(test)}, validation top-1 is {_with_interval(validation)}: the validation "
            "images are more like the training images than the test images are. Copies or groups in both splits do "
            "this, and test images of another kind: alexnet doctor DATA, then --exclude or --group-pattern"
        )
    if last := test or validation:
        often = float(np.bincount(store.split(last.split).labels).max()) / last.count
        if last.top1_interval[0] <= often:
            result.append(
                f"{last.split} top-1 is {_with_interval(last)}; always predicting the most frequent class has "
                f"{100 * often:.1f} %: this does not show that the network learned anything"
            )
    return tuple(result)


def _with_interval(scores: Scores) -> str:
    low, high = scores.top1_interval
    return f"{100 * scores.top1:.1f} % (95 % CI {100 * low:.1f} to {100 * high:.1f} %)"


_BEGUN = {".lock", "checkpoints", "recipe.toml", "layers.cfg", "layer-params.cfg", "run.json"}  # before the first step
GOLDEN = 5  # images in a bundle by which a copy of it can prove itself


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder; raises :class:`RunError` if another process does, or if it can not be written."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()  # with the rights that the umask leaves: filelock would take 0644
        lock.acquire()
    except Timeout:
        raise RunError(
            f"run folder {folder} is in use by another process", "", "wait for it or choose another --output-dir"
        ) from None
    except OSError as error:
        raise RunError(
            f"run folder {folder} can not be written: {error.strerror}", "", "choose another --output-dir"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def new(folder: Path) -> Iterator[None]:
    """Hold a new run folder. Where what follows fails before the training has started, no folder is left behind."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with locked(folder):
            refuse_used(folder)
            try:
                yield
            except BaseException:
                if not (folder / "journal.jsonl").exists():
                    _remove_start(folder)
                raise
    except BaseException:
        for path in absent:
            with suppress(OSError):  # it contains something
                path.rmdir()
        raise


def _remove_start(folder: Path) -> None:
    """Remove what :func:`locked` and :func:`write_start` have made."""
    with suppress(OSError):
        (folder / "checkpoints").rmdir()
        for name in sorted(_BEGUN - {"checkpoints"}, reverse=True):  # run.json first, .lock last
            (folder / name).unlink(missing_ok=True)


def refuse_used(folder: Path, hint: str = "") -> None:
    """Raise :class:`RunError` with ``hint`` if ``folder`` holds anything: a run never mixes with another.

    What is left of a start that was killed before run.json counts as nothing.
    """
    if folder.exists() and (not folder.is_dir() or (folder / "run.json").exists() or _strange(folder)):
        hint = hint or f"or go on with it: --resume {folder}"
        raise RunError(f"run folder {folder} exists already", "a new folder", hint)


def _strange(folder: Path) -> bool:
    results = {final_name(path.name) for path in folder.iterdir()}
    return not results <= _BEGUN or _saved(folder)


def write_start(folder: Path, recipe: Recipe, about: dict[str, Any], files: Files | None = None) -> None:
    """The files that say what a run is, before its first step: recipe.toml, run.json, and its layer files."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    if files is not None:
        about = about | {"layers": files.name}
        write_file(folder / "layers.cfg", files.layers.encode())
        write_file(folder / "layer-params.cfg", files.parameters.encode())
    write_file(folder / "recipe.toml", to_toml(recipe).encode())
    write_run_file(folder, about)  # last: a folder that has it can be gone on with


def read_start(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """What :func:`write_start` wrote; raises :class:`RunError` where any of it has changed since."""
    about = read_run_file(folder)
    try:
        text = (folder / "recipe.toml").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} is no run folder: {error}", "a folder that `alexnet train` made") from error
    return from_toml(text, str(folder / "recipe.toml")), about


def layer_files(folder: Path) -> Files | None:
    """The layer files of a run that has some. The parameter file may have been changed since: 2012's way to go on
    with other rates. Raises :class:`RunError`."""
    about = read_start(folder)[1]
    if "layers" not in about:
        return None
    try:
        texts = [(folder / name).read_text(encoding="utf-8") for name in ("layers.cfg", "layer-params.cfg")]
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder} lacks what it was begun with: {error}", "a folder that `alexnet train` made"
        ) from error
    return Files(about["layers"], *texts)


def begun_only(folder: Path) -> bool:
    """Was a run stopped before its first checkpoint? It goes on from its first step: a recipe tells all of it, but for
    weights that it started from."""
    return not _saved(folder) and "from" not in read_start(folder)[1]


def _saved(folder: Path) -> bool:
    return bool(checkpoint.list_all(folder / "checkpoints"))


def discard(folder: Path) -> None:
    """Forget what a run said before its first checkpoint: it will say it again."""
    for name in ("journal.jsonl", "results.csv"):
        (folder / name).unlink(missing_ok=True)


def statistics_of(store: Store, recipe: Recipe, side: int) -> Normalization:
    """The store's statistics as the recipe uses them, for crops of ``side`` pixels: what is subtracted, and divided by.

    A channel's variance is that along the color axes, turned back: the diagonal of axes · σ² · axesᵀ.
    """
    mean = torch.tensor(store.channel_means) if recipe.mean == "channel" else torch.from_numpy(store.mean_image)
    divide = torch.tensor(recipe.divide)
    if recipe.mean == "center" and side < store.size:
        mean = center_crops(mean[None], side)[0]  # [s, s, 3]
    if recipe.divide_std:
        deviation = torch.from_numpy((store.color_axes**2 @ store.color_std**2) ** 0.5).float()  # [3]
        divide = divide * torch.where(deviation > 0, deviation, 1.0)
    return Normalization(
        mean.float(),
        torch.tensor(store.color_std).float(),
        torch.tensor(store.color_axes).float(),
        divide,
        mean_follows_crop=recipe.mean != "center",
    )


def run(
    recipe: Recipe,
    store: Store,
    folder: Path,
    *,
    device: torch.device,
    workers: int = 1,
    resume: bool = False,
    resume_from: Path | None = None,
    quiet: bool = False,
    start: PretrainedWeights | None = None,
    world: World | None = None,
    layout: Layout = SINGLE_PROCESS,
) -> tuple[Path, dict[str, Scores], float]:
    """Train in a locked folder from the start or from a checkpoint (the newest, or ``resume_from``).

    ``start`` are weights to begin with; ``world`` the processes that train together, ``layout`` how they share it.

    Returns the bundle's path, its scores by split, and the images a second of training.
    """
    check_store(recipe, store)
    world = world or World(device)
    state = State(recipe, store, device, start, layer_files(folder), world, layout)
    content: dict[str, Any] = {"journal_bytes": 0}
    if resume and (resume_from or not (begun_only(folder) or (start and not _saved(folder)))):
        path, content = _checkpoint(folder, resume_from)
        state.restore(path, content)
    elif resume and world.is_main:
        discard(folder)
    network = state.network
    statistics = dataclasses.replace(statistics_of(store, recipe, network.image_size), **state.preprocessing)
    loader = Loader(
        store.split("train"),
        recipe,
        statistics,
        image_size=network.image_size,
        channels=network.in_channels,
        device=device,
        num_workers=workers,
        validation=store.split("validation"),
        shard=lambda total: Shard(images=world.image_rows(total), labels=world.label_rows(total)),
    )
    step = state.position.step
    faults = damage(folder) if resume and world.is_main else []
    with (
        _journal(world, folder, quiet=quiet, resume_at=content["journal_bytes"], resume_step=step) as journal,
        runtime.stop_on_signals() as stop,
        AsyncCheckpointer(state, journal, folder) as saver,
    ):
        for fault in faults:
            journal.say(f"warning: {fault}")
        journal.write_rows(state.rows)
        computed = {
            "torch": torch.__version__,
            "device": str(device),
            "lrn": "native" if native_kernels.build() else "pytorch",
            **({"processes": world.size} if world.size > 1 else {}),
        }
        journal.event("resumed" if resume else "started", step=step, **computed)
        loop.train(Training(state, loader, statistics, journal, folder, stop, saver))
        bundle, scores = _finish(state, statistics, folder)
        journal.event("finished", bundle=str(bundle.name), **{name: s.to_dict() for name, s in scores.items()})
    seconds = sum(row["seconds"] for row in state.rows)
    seen = sum(len(loader.split_of(epoch)) for epoch in range(len(state.rows)))
    return bundle, scores, seen / max(seconds, 1e-9)


def _journal(world: World, folder: Path, **how: Any) -> RunLogger:
    return RunLogger(folder, **how) if world.is_main else NullLogger(folder)


def _checkpoint(folder: Path, path: Path | None) -> tuple[Path, dict[str, Any]]:
    if path is None:
        return checkpoint.load_latest(folder / "checkpoints")
    content = checkpoint.load(path)
    for later in checkpoint.list_all(folder / "checkpoints"):
        if later.name > path.name:  # going back on purpose: what came after it is another future
            later.unlink(missing_ok=True)  # by another process of this run
    return path, content


def check_store(recipe: Recipe, store: Store) -> None:
    """Raise an :class:`alexnet.errors.AlexNetError` for a store that a run with this recipe cannot train on."""
    if not len(store.split("train")):
        raise DataError(f"store {store.address} has no training images", "", "prepare one with a training split")
    chooses = (
        "--select-weights best"
        if recipe.select_weights == "best"
        else "--schedule plateau"
        if recipe.schedule == "plateau"
        else ""
    )
    if chooses and not len(store.split("validation")):
        raise DataError(
            f"store {store.address} has no validation split, by which {chooses} chooses", "", "choose another"
        )
    if store.size != recipe.stored_size or store.fit != recipe.fit:
        raise RecipeError(
            f"store {store.address} holds images of {store.size} pixels ({store.fit})",
            f"{recipe.stored_size} ({recipe.fit}) as the recipe says",
            f"give --stored-size {store.size} --fit {store.fit}, or prepare another store",
        )


def _finish(state: State, statistics: Normalization, folder: Path) -> tuple[Path, dict[str, Scores]]:
    """The kept weights, scored on validation (unless it was trained on) and, once, on test; written as a bundle."""
    network = state.eval_model
    joined = state.recipe.trains_on_val(len(state.rows) - 1)
    if state.recipe.select_weights == "best" and state.best.weights:
        network.load_state_dict(state.best.weights)
    network.eval()
    scores = {
        split: loop.score(state, statistics, split, crops=1)
        for split in (("test",) if joined else ("validation", "test"))
        if len(state.store.split(split))
    }
    if not state.world.is_main:
        return folder / "bundle", scores
    store = state.store
    calibration = {} if joined else _calibration(state, statistics)
    bundle = Bundle(
        network=network,
        classes=tuple(store.classes),
        statistics=statistics,
        stored_size=store.size,
        fit=state.recipe.fit,
        recipe=state.recipe.to_dict(),
        metrics={name: s.to_dict() for name, s in scores.items()},
        initialization=state.recipe.initialization,
        data={
            "name": store.name,
            "fingerprint": store.fingerprint,
            "source": store.metadata.get("source_fingerprint", ""),
            "grouping": store.metadata["settings"].get("grouping", ""),
            "counts": {name: len(store.split(name)) for name in ("train", "validation", "test")},
            "kept": _kept(state),
            **({"from": state.init_from} if state.init_from else {}),
        },
        calibration=calibration,
        reference_samples=_reference(state, statistics, calibration.get("temperature", 1.0)),
    )
    try:
        return bundle.save(folder / "bundle"), scores
    except BundleError as error:
        raise CheckpointError(error.what, "", f"make room, then: alexnet train --resume {folder}") from error


def _kept(state: State) -> str:
    if state.recipe.select_weights == "best" and state.best.epoch >= 0:
        return f"epoch {state.best.epoch + 1}, the lowest validation error of {len(state.rows)} epochs"
    return f"the last of {len(state.rows)} epochs"


def _calibration(state: State, statistics: Normalization) -> dict[str, Any]:
    """Temperature and thresholds by the validation split, never the test; nothing where it has too few images.

    In float32, as the bundle will answer, whatever precision trained.
    """
    split, network = state.store.split("validation"), state.eval_model
    if len(split) < FEWEST:
        return {}
    predictions = predict_split(
        network, split, statistics, image_size=network.image_size, channels=network.in_channels, device=state.device
    )
    made = calibrate(predictions.log_probabilities, predictions.labels, predictions.groups)
    return made.to_dict() if made else {}


def _reference(state: State, statistics: Normalization, temperature: float) -> list[ReferenceSample]:
    split = next(s for s in (state.store.split(n) for n in ("test", "validation", "train")) if len(s))
    network = state.eval_model
    indices = torch.linspace(0, len(split) - 1, min(GOLDEN, len(split))).long().numpy()
    images = torch.from_numpy(split.gather(indices))
    result = log_probabilities(
        network,
        images.to(state.device),
        to_device(statistics, state.device),
        image_size=network.image_size,
        channels=network.in_channels,
    )
    return [
        ReferenceSample(f"{i:02d}", encode_png(image.numpy()), row.exp().tolist())
        for i, (image, row) in enumerate(zip(images, calibrated(result.cpu(), temperature), strict=True))
    ]
