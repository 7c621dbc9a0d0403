"""A training run from its first step to its bundle, or the rest of one from a checkpoint; warnings on its result."""

import copy
import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexnet.bundle import Bundle, ReferenceSample
from alexnet.data.decode import encode_png
from alexnet.data.store import Store
from alexnet.errors import BundleError, CheckpointError, DataError, RecipeError, counted
from alexnet.evaluation.calibration import MIN_IMAGES, calibrate
from alexnet.evaluation.evaluate import SplitPredictions, calibrated, log_probabilities, predict_split
from alexnet.evaluation.metrics import Scores
from alexnet.evaluation.ood import LEAST_IMAGES, FeatureSample, fit_reference, sample_training_images
from alexnet.kernels import native_kernels
from alexnet.loader.augmentation import Normalization, center_crops
from alexnet.loader.loader import Loader, Shard, to_device
from alexnet.models.network import Network
from alexnet.recipe import Recipe
from alexnet.training import checkpoint, loop, runtime
from alexnet.training.async_checkpoint import AsyncCheckpointer
from alexnet.training.callbacks import Callbacks, RunStart
from alexnet.training.distributed.sharding import SINGLE_PROCESS, Layout
from alexnet.training.distributed.world import World
from alexnet.training.finetune import PretrainedWeights
from alexnet.training.last_layer import fit_last_layer
from alexnet.training.logger import NullLogger, RunLogger, damage
from alexnet.training.loop import Training
from alexnet.training.run_folder import discard_record, has_checkpoint, is_unsaved, layer_files
from alexnet.training.state import BEFORE_THE_FIRST, State
from alexnet.weights.matching import last_layer

MIN_IMAGES_PER_CLASS = 100  # training images per class below which a run has a note


def data_size_warnings(store: Store, scores: dict[str, Scores]) -> tuple[str, ...]:
    """What to expect from so few images, and how certain the test accuracy is: a sentence each."""
    train, result = store.split("train"), []
    each = np.bincount(train.labels, minlength=len(store.classes))
    if each.min() < MIN_IMAGES_PER_CLASS:
        rare = store.classes[int(each.argmin())]
        result.append(
            f"{len(train)} training images for {len(store.classes)} classes, {each.min()} of {rare!r}, are few. "
            f"More images, at least {MIN_IMAGES_PER_CLASS} per class, help more than any option."
        )
    if "test" in scores:
        over = f"; {len(scores['test'].groups)} groups of images" if scores["test"].groups else ""
        result.append(
            f"top-1 of {scores['test'].count} test images{over}: {scores['test'].top1_text}; "
            f"always predicting the most frequent class would reach {100 * scores['test'].majority:.1f} %."
        )
    return tuple(result)


def score_warnings(scores: dict[str, Scores]) -> tuple[str, ...]:
    """What makes the scores of a run unreliable: a sentence each. Print them before the scores."""
    result, validation, test = [], scores.get("validation"), scores.get("test")
    if validation and test and test.top1_interval[1] < validation.top1_interval[0]:
        result.append(
            f"test top-1 is {test.top1_text}, validation top-1 is {validation.top1_text}: the validation "
            "images are more like the training images than the test images are. Copies or groups in both splits do "
            "this, and test images of another kind: alexnet doctor DATA, then --exclude or --group-pattern"
        )
    if (last := test or validation) and last.chance_warning:
        result.append(last.chance_warning)
    return tuple(result)


@dataclass(frozen=True)
class TrainedRun:
    """The result of :func:`train_run`.

    Attributes:
        bundle: The trained classifier.
        predictions: Its predictions for ``validation`` (unless that was trained on) and ``test``, in float32.
        images_per_second: Speed of the training steps.
        sample: Features of training images; None without :data:`~alexnet.evaluation.ood.LEAST_IMAGES` of them, and for
            the processes but the first.
    """

    bundle: Path
    predictions: dict[str, SplitPredictions]
    images_per_second: float
    sample: FeatureSample | None

    @property
    def scores(self) -> dict[str, Scores]:
        """The scores by split."""
        return {split: predictions.scores() for split, predictions in self.predictions.items()}


REFERENCE_SAMPLES = 5  # images in a bundle, by which a copy of it is verified


def normalization_for(store: Store, recipe: Recipe, image_size: int) -> Normalization:
    """The normalization of a recipe: what is subtracted from the pixels of a store, and what they are divided by.

    The variance of a channel is computed from that along the color axes: the diagonal of axes · σ² · axesᵀ.

    Args:
        store: The data set.
        recipe: The hyperparameters.
        image_size: Height and width of the network's input, in pixels.
    """
    mean = torch.tensor(store.channel_means) if recipe.mean == "channel" else torch.from_numpy(store.mean_image)
    divide = torch.tensor(recipe.divide)
    if recipe.mean == "center" and image_size < store.size:
        mean = center_crops(mean[None], image_size)[0]  # [s, s, 3]
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


def training_loader(state: State, store: Store, workers: int = 1, **options: Any) -> tuple[Loader, Normalization]:
    """The loader of the training split for the network of ``state``, and the normalization that its weights expect.

    Args:
        state: The training, with its recipe and device.
        store: The data set.
        workers: Data-loading threads.
        **options: Further arguments of :class:`Loader`.
    """
    network = state.network
    normalization = normalization_for(store, state.recipe, network.image_size)
    normalization = dataclasses.replace(normalization, **state.preprocessing)
    loader = Loader(
        store.split("train"),
        state.recipe,
        normalization,
        image_size=network.image_size,
        channels=network.in_channels,
        device=state.device,
        num_workers=workers,
        **options,
    )
    return loader, normalization


def train_run(
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
    callbacks: Callbacks | None = None,
) -> TrainedRun:
    """Train the run of a locked folder, from its first step or from a checkpoint.

    Args:
        recipe: The hyperparameters.
        store: The data set.
        folder: The run folder; :func:`alexnet.training.run_folder.write_start` has written its first files.
        device: Where the network trains.
        workers: Data-loading threads.
        resume: Continue from a checkpoint.
        resume_from: This checkpoint; None: the newest.
        quiet: Print only warnings on the terminal.
        start: Weights to begin with, in place of random ones.
        world: The processes that train together.
        layout: How these processes share the work.
        callbacks: Observe the run. ``run_end`` is the caller's to call.

    Returns:
        The path of the bundle, and what was computed for it.
    """
    check_store(recipe, store)
    world = world or World(device)
    state = State(recipe, store, device, start, layer_files(folder), world, layout)
    content: dict[str, Any] = {"journal_bytes": 0}
    if resume and (resume_from or not (is_unsaved(folder) or (start and not has_checkpoint(folder)))):
        path, content = _checkpoint(folder, resume_from)
        state.restore(path, content)
        if world.is_main:
            checkpoint.prune(folder / "checkpoints")  # what a kill between saving and deleting has left
    elif resume and world.is_main:
        discard_record(folder)
    loader, normalization = training_loader(
        state,
        store,
        workers,
        validation=store.split("validation"),
        shard=lambda total: Shard(images=world.image_rows(total), labels=world.label_rows(total)),
    )
    step = state.position.step
    problems = damage(folder) if resume and world.is_main else []
    environment: dict[str, str | int] = {
        "torch": torch.__version__,
        "device": str(device),
        "native_kernels": bool(native_kernels.build()),
        **({"processes": world.size} if world.size > 1 else {}),
    }
    callbacks = callbacks or Callbacks()
    if world.is_main:
        images = {name: len(store.split(name)) for name in ("train", "validation", "test")}
        callbacks.run_start(RunStart(folder, recipe, store.name, tuple(store.classes), images, step, environment))
    at = {"resume_at": content["journal_bytes"], "resume_step": step}
    with (
        _logger(world, folder, quiet=quiet, callbacks=callbacks, **at) as logger,
        runtime.stop_on_signals() as stop,
        AsyncCheckpointer(state, logger, folder) as checkpointer,
    ):
        if device.type == "cpu" and (reason := native_kernels.why_not()) not in ("", "turned off"):
            logger.log(f"note: PyTorch computes everything, two to three times slower: {reason}")
        for problem in problems:
            logger.warn(problem)
        logger.write_rows(state.rows)
        logger.event("resumed" if resume else "started", step=step, **environment)
        training = Training(state, loader, normalization, logger, folder, stop, checkpointer)
        if recipe.fit_last_layer and state.init_from.get("fresh") and not state.position.step:
            _fit_last_layer(training)
        loop.train(training)
        with runtime.inference_settings():
            predictions, sample = _finish(training)
        scores = {split: result.scores().to_dict() for split, result in predictions.items()}
        logger.event("finished", bundle="bundle", **scores)
    seconds = sum(row["seconds"] for row in state.rows)
    seen = sum(len(loader.split_of(epoch)) for epoch in range(len(state.rows)))
    return TrainedRun(folder / "bundle", predictions, seen / max(seconds, 1e-9), sample)


def _fit_last_layer(training: Training) -> None:
    """Fit the new last layer of a run that begins. With it the weights may already be the best of the run.

    This is so where no label is smoothed or mixed, which raises the loss of later weights even if they are better.
    """
    state, logger, recipe = training.state, training.logger, training.state.recipe
    normalization = to_device(training.normalization, state.device)
    progress = functools.partial(logger.scored, "features")
    with runtime.inference_settings():
        fitted = fit_last_layer(state.eval_model, state.store, normalization, recipe, progress)
    if not fitted:  # no linear layer
        return
    state.set_weights(fitted)
    text = f"{last_layer(state.network)} is fitted to the features of the training images"
    scores = loop.validate(training)
    if scores is not None:
        text += f": validation loss {scores.loss:.3f}, top-1 {100 * scores.top1:.1f} %"
        if not (recipe.label_smoothing or recipe.mixup_prob or recipe.cutmix_prob):
            state.update_best(1 - scores.top1, scores.loss, BEFORE_THE_FIRST)
    logger.log(text)


def _logger(world: World, folder: Path, **kwargs: Any) -> RunLogger:
    return RunLogger(folder, **kwargs) if world.is_main else NullLogger(folder)


def _checkpoint(folder: Path, path: Path | None) -> tuple[Path, dict[str, Any]]:
    if path is None:
        return checkpoint.load_latest(folder / "checkpoints")
    content = checkpoint.load(path)
    for later in checkpoint.list_all(folder / "checkpoints"):
        if later.name > path.name:  # they are of the history that is given up
            later.unlink(missing_ok=True)  # by another process of this run
    return path, content


def check_store(recipe: Recipe, store: Store) -> None:
    """Raise :class:`DataError` or :class:`RecipeError` for a store that a run with this recipe cannot train on."""
    if not len(store.split("train")):
        raise DataError(f"store {store.address} has no training images", "", "prepare one with a training split")
    criterion = (
        f"--select-weights {recipe.select_weights}"
        if recipe.select_weights != "last"
        else "--schedule plateau"
        if recipe.schedule == "plateau"
        else "--patience"
        if recipe.patience
        else ""
    )
    if criterion and not len(store.split("validation")):
        raise DataError(
            f"store {store.address} has no validation split, which {criterion} needs",
            "",
            "add images (4 of a class give one), or prepare the data with --validation 0.1",
        )
    if store.size != recipe.stored_size or store.fit != recipe.fit:
        raise RecipeError(
            f"store {store.address} holds images of {store.size} pixels ({store.fit})",
            f"{recipe.stored_size} ({recipe.fit}) as the recipe says",
            f"give --stored-size {store.size} --fit {store.fit}, or prepare another store",
        )


def _finish(training: Training) -> tuple[dict[str, SplitPredictions], FeatureSample | None]:
    """Write the bundle of the selected weights, once they are scored and the last checkpoint is on disk.

    They predict each image of validation (unless it was trained on) and of test once.

    Returns:
        These predictions by split, and features of training images.
    """
    state, store = training.state, training.state.store
    network, val_trained = _selected_network(state), state.recipe.trains_on_val(len(state.rows) - 1)
    predictions = {
        split: _predictions(training, network, split)
        for split in (("test",) if val_trained else ("validation", "test"))
        if len(store.split(split))
    }
    if not state.world.is_main:
        return predictions, None
    normalization = to_device(training.normalization, state.device)
    calibration, sample = {}, None
    if "validation" in predictions:
        calibration = _calibration(predictions["validation"])
    if len(store.split("train")) >= LEAST_IMAGES:
        sample = sample_training_images(network, store, normalization)
    bundle = Bundle(
        network=network,
        classes=tuple(store.classes),
        normalization=training.normalization,
        stored_size=store.size,
        fit=state.recipe.fit,
        recipe=state.recipe.to_dict(),
        metrics={name: result.scores().to_dict() for name, result in predictions.items()},
        initialization=state.recipe.initialization,
        data={
            "name": store.name,
            "fingerprint": store.fingerprint,
            "source": store.metadata.get("source_fingerprint", ""),
            "grouping": store.metadata["settings"].get("grouping", ""),
            "counts": {name: len(store.split(name)) for name in ("train", "validation", "test")},
            "kept": _selected_weights(state),
            **({"from": state.init_from} if state.init_from else {}),
        },
        calibration=calibration,
        reference_samples=_reference_samples(
            network, store, normalization, state.device, calibration.get("temperature", 1.0)
        ),
        feature_reference=fit_reference(
            network, store, normalization, "train" if val_trained else "validation", sample
        ),
    )
    training.checkpointer.finish()
    try:
        bundle.save(training.folder / "bundle")
    except BundleError as error:
        hint = f"make room, then: alexnet train --resume {training.folder}"
        raise CheckpointError(error.what, "", hint) from error
    return predictions, sample


def _selected_network(state: State) -> Network:
    """The network with the selected weights, in evaluation mode. The state does not change: it may be being saved."""
    network = state.eval_model
    if state.recipe.select_weights != "last" and state.best.weights and state.best.epoch != len(state.rows) - 1:
        state.optimizer.zero_grad()  # gradients would be copied
        network = copy.deepcopy(network)
        network.load_state_dict(state.best.weights)
    return network.eval()


def _predictions(training: Training, network: Network, split: str) -> SplitPredictions:
    """The predictions for a split, in float32 as ``alexnet evaluate`` has them; all processes take part."""
    state = training.state
    return predict_split(
        network,
        state.store.split(split),
        training.normalization,
        image_size=network.image_size,
        channels=network.in_channels,
        device=state.device,
        num_classes=network.num_classes,
        shard=(state.world.rank, state.world.size),
        all_reduce=state.world.all_reduce_,
        progress=functools.partial(training.logger.scored, split),
    )


def _selected_weights(state: State) -> str:
    if state.recipe.select_weights != "last" and state.best.weights:
        lowest = "loss" if state.recipe.select_weights == "best-loss" else "error"
        if state.best.epoch == BEFORE_THE_FIRST:
            return f"the fitted last layer, since {counted(len(state.rows), 'epoch')} gave no lower validation {lowest}"
        return f"epoch {state.best.epoch + 1}, the lowest validation {lowest} of {len(state.rows)} epochs"
    return f"the last of {len(state.rows)} epochs"


def _calibration(predictions: SplitPredictions) -> dict[str, Any]:
    """Temperature and thresholds fitted on the validation split; empty where it has too few images."""
    if len(predictions) < MIN_IMAGES:
        return {}
    calibration = calibrate(predictions.log_probabilities, predictions.labels, predictions.groups)
    return calibration.to_dict() if calibration else {}


def _reference_samples(
    network: Network, store: Store, normalization: Normalization, device: torch.device, temperature: float
) -> list[ReferenceSample]:
    split = next(s for s in (store.split(n) for n in ("test", "validation", "train")) if len(s))
    indices = torch.linspace(0, len(split) - 1, min(REFERENCE_SAMPLES, len(split))).long().numpy()
    images = torch.from_numpy(split.gather(indices))
    log_probs = log_probabilities(
        network,
        images.to(device),
        normalization,
        image_size=network.image_size,
        channels=network.in_channels,
    )
    return [
        ReferenceSample(f"{i:02d}", encode_png(image.numpy()), row.exp().tolist())
        for i, (image, row) in enumerate(zip(images, calibrated(log_probs.cpu(), temperature), strict=True))
    ]
