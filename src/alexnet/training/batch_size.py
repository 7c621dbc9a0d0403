"""The batch size that fits: ``--batch-size auto`` takes the largest power of two that memory and data allow."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from alexnet.cuda_convnet import Files
from alexnet.data.store import Store
from alexnet.errors import RecipeError, counted
from alexnet.evaluation.evaluate import autocast
from alexnet.recipe import Recipe
from alexnet.training import runtime
from alexnet.training.finetune import PretrainedWeights
from alexnet.training.state import State
from alexnet.training.task import Targets

AUTO = "auto"
MAX_BATCH_SIZE = 1024  # linear scaling of the learning rate holds up to about here (docs/training.md)
MIN_STEPS = 20  # of an epoch
_MEMORY_FRACTION = 0.8  # of the free memory, for weights, gradients, the optimizer and the batch
_PASSES = 2.0  # memory of a step, as a multiple of what the forward pass keeps for the backward pass
_STATE = 6  # numbers for each weight: weights, gradients, two moments, average, and the copy of a checkpoint
_PROBES = (2, 6)  # images of the two measured forward passes


def choose_batch_size(
    recipe: Recipe,
    store: Store,
    device: torch.device,
    *,
    keep_lr: bool,
    start: PretrainedWeights | None = None,
    files: Files | None = None,
    log: Callable[[str], None],
) -> Recipe:
    """Return ``recipe`` with the batch size for this device and data, and a learning rate that fits it.

    It is the largest power of two up to :data:`MAX_BATCH_SIZE` that fits into the free memory and leaves
    :data:`MIN_STEPS` steps in an epoch. Few images alone do not make it smaller than the recipe's.

    The learning rate is multiplied by the square root of the ratio of the batch sizes for AdamW (Malladi et al. 2022),
    by the ratio for the other rules (Goyal et al. 2017), unless the user set it or the recipe scales it by
    ``lr_base_size``.

    Args:
        recipe: The hyperparameters; its batch size is what the learning rate is meant for.
        store: The data.
        device: Where the network trains.
        keep_lr: Do not change the learning rate.
        start: The weights that the training starts from, if not random ones.
        files: The layer files that define the network, if it is not the recipe's.
        log: Receives one line about the choice.

    Raises:
        RecipeError: Not even one image fits into the memory.
    """
    state_bytes, image_bytes = step_memory(recipe, store, device, start, files)
    free = free_memory(device)
    fitting = math.floor((_MEMORY_FRACTION * free - state_bytes) / image_bytes)
    if fitting < 1:
        raise RecipeError(
            f"a training step of one image of {recipe.model} needs about {_size(state_bytes + image_bytes)}, and "
            f"{_size(free)} of memory are free",
            "",
            "close other programs, or take smaller crops (--image-size)",
        )
    images = len(store.split("train"))
    wanted = min(MAX_BATCH_SIZE, max(recipe.batch_size, images // MIN_STEPS))
    chosen = 1 << (min(wanted, fitting).bit_length() - 1)
    ratio = chosen / recipe.batch_size
    lr = recipe.lr
    if not (keep_lr or recipe.lr_base_size):
        lr = float(f"{recipe.lr * (math.sqrt(ratio) if recipe.optimizer == 'adamw' else ratio):.3g}")
    limit = f"{_size(free)} of free memory" if fitting < wanted else counted(images, "training image")
    log(f"batch size: {chosen}, for {limit} (recipe: {recipe.batch_size}); learning rate {lr:g} ({recipe.lr:g})")
    return recipe.replace(batch_size=chosen, lr=lr)


def step_memory(
    recipe: Recipe,
    store: Store,
    device: torch.device,
    start: PretrainedWeights | None = None,
    files: Files | None = None,
) -> tuple[float, float]:
    """Bytes of memory of a training step: those of any batch size, and those of each image.

    Two forward passes are run, and the tensors that they keep for the backward pass are counted.
    Arguments as in :func:`choose_batch_size`.
    """
    few, many = (_kept_bytes(recipe, store, device, start, files, count) for count in _PROBES)
    per_image = max(1.0, (many - few) / (_PROBES[1] - _PROBES[0]))
    return few - _PROBES[0] * per_image, _PASSES * per_image


def _kept_bytes(
    recipe: Recipe,
    store: Store,
    device: torch.device,
    start: PretrainedWeights | None,
    files: Files | None,
    count: int,
) -> float:
    """Bytes of a training with its optimizer, and of what it keeps between both passes of a batch of ``count``."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    recipe = recipe.replace(batch_size=count, epochs=1, warmup_epochs=0.0, shuffle_window=0)
    with runtime.cpu_settings(recipe):
        state = State(recipe, store, device, start, files)
        network = state.network.train()
        images = torch.zeros(count, network.in_channels, network.image_size, network.image_size, device=device)
        targets = Targets(torch.zeros(count, dtype=torch.int64, device=device), None, 1.0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            state.seed_dropout()
            with autocast(images.device, recipe.precision):
                state.task.loss(images, targets)
    for parameter in network.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(kept.values()) + _STATE * 4 * sum(parameter.numel() for parameter in network.parameters())


def free_memory(device: torch.device) -> float:
    """Bytes that a training on ``device`` can use, limits of the container included."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):  # with the page cache, which gives way
            free = 1024.0 * int(line.split()[1])
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        numbers = [line for path in (limit, used) for line in _lines(path)]
        if len(numbers) == 2 and all(number.isdigit() for number in numbers):
            free = min(free, float(int(numbers[0]) - int(numbers[1])))
    return free


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []


def _size(count: float) -> str:
    return f"{count / 2**30:.3g} GiB"
