"""What a training minimizes and how it updates weights: one interface for the two kinds of networks.

:class:`ClassificationTask` is for the networks of :mod:`alexnet.models`: cross-entropy, with the optimizer and the
learning-rate schedule of the recipe. :class:`LayerFileTask` is for a network of 2012's layer files, which define the
loss, the update rule and the learning rates themselves.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.cuda_convnet import Files, GraphNetwork, build
from alexnet.data.store import Store
from alexnet.errors import RecipeError
from alexnet.loader.sampler import step_seed
from alexnet.models import create_model, recipe_fields
from alexnet.models.layers import Dropout, set_generator
from alexnet.models.network import Network
from alexnet.recipe import Recipe, is_overridden, option
from alexnet.training import optim, runtime
from alexnet.training.layer_files import LayerFileOptimizer, data_of
from alexnet.training.schedule import LRSchedule


class Targets(NamedTuple):
    """What the logits of N images are compared with: int64 ``labels`` [N], and with mixup ``mixup_labels`` [N].

    With mixup the loss is ``mixup_weight`` times that of the labels, plus the rest times that of the mixup labels.
    """

    labels: Tensor
    mixup_labels: Tensor | None = None
    mixup_weight: float = 1.0


class Task(ABC):
    """A network in training, with its optimizer and its learning rates."""

    network: Network
    optimizer: torch.optim.Optimizer
    lr: float = 0.0
    """The learning rate of the last :meth:`set_progress`, for logs. Of a layer file: the highest of its weights."""
    layer_file: str = ""
    """The text of the layer file that defines the network; empty for other networks."""
    can_accumulate: bool = True
    """Can a batch be processed in several parts whose gradients are summed?"""

    @abstractmethod
    def loss(self, images: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """The mean loss, a scalar, and the logits [N, K] of ``images`` [N, C, H, W]."""

    @abstractmethod
    def set_progress(self, epoch: int, batch: int, step: int) -> None:
        """Set the learning rates of the next step. All count from 0: epochs, batches of this epoch, all steps."""

    @abstractmethod
    def lr_hint(self, folder: Path) -> str:
        """Where a user lowers the learning rate of the run in ``folder``."""


class ClassificationTask(Task):
    """Cross-entropy of a network's logits, with the optimizer and the schedule of ``recipe``.

    Args:
        network: On its device; its dropout masks come from ``generator``.
        class_weights: Weight of each class in the loss [K], or None.
        processes: Number of processes that train together.

    Raises:
        RecipeError: Where the recipe names layers that the network does not have, or cannot be compiled.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        schedule: LRSchedule,
        generator: torch.Generator,
        class_weights: Tensor | None = None,
        processes: int = 1,
    ) -> None:
        self.network, self.recipe, self.schedule, self.class_weights = network, recipe, schedule, class_weights
        if recipe.compile and processes > 1:
            raise RecipeError("--compile with several processes", "one process", "leave it out")
        self.forward = runtime.compiled(network, next(network.parameters()).device) if recipe.compile else network
        set_generator(network, generator)
        optim.check_layer_names(network, recipe)
        self.optimizer = optim.create_optimizer(network, recipe)

    def loss(self, images: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        logits = self.forward(images)  # [N, K]
        smoothing, weights = self.recipe.label_smoothing, self.class_weights
        loss = cross_entropy(logits.float(), targets, smoothing, weights)
        for head in self.network.auxiliary_heads():
            loss = loss + head.weight * cross_entropy(head.take().float(), targets, smoothing, weights)
        return loss, logits

    def set_progress(self, epoch: int, batch: int, step: int) -> None:
        self.lr, constant_lr = (self.schedule.lr(epoch, batch, scheduled) for scheduled in (True, False))
        optim.set_lr(self.optimizer, self.lr, constant_lr, epoch)

    def lr_hint(self, folder: Path) -> str:
        return f"--lr (now {self.recipe.lr})"


class LayerFileTask(Task):
    """A network of layer files: loss, update rule and learning rates are those of the files.

    Raises:
        RecipeError: For ``--compile``.
        ModelError: Where the files let nothing learn.
    """

    can_accumulate = False

    def __init__(self, network: GraphNetwork, recipe: Recipe, schedule: LRSchedule, generator: torch.Generator) -> None:
        if recipe.compile:
            raise RecipeError("--compile with a network of layer files", "a network by its name", "leave it out")
        self.network: GraphNetwork = network
        self.recipe, self.schedule = recipe, schedule
        self.layer_file = network.files.layers
        network.set_generator(generator)
        self.optimizer: LayerFileOptimizer = LayerFileOptimizer(network)

    def loss(self, images: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        logits, loss = self.network.costs(images, targets.labels)
        return loss, logits

    def set_progress(self, epoch: int, batch: int, step: int) -> None:
        steps = self.schedule.steps_per_epoch
        self.optimizer.generator.manual_seed(step_seed(self.recipe.seed, step, stream=3))
        self.optimizer.set_progress((epoch * steps + batch) / (self.recipe.epochs * steps))
        self.lr = self.optimizer.max_lr()

    def lr_hint(self, folder: Path) -> str:
        return f"the rates in {folder / 'layer-params.cfg'}"


def create_task(
    network: Network,
    recipe: Recipe,
    schedule: LRSchedule,
    generator: torch.Generator,
    class_weights: Tensor | None = None,
    processes: int = 1,
) -> Task:
    """The task of a network: see :class:`ClassificationTask` for the arguments."""
    if isinstance(network, GraphNetwork):
        if processes > 1:  # random layers would draw for the part of a batch, not for the whole batch
            raise RecipeError(f"--layers with {processes} processes", "one process", "start it without torchrun")
        return LayerFileTask(network, recipe, schedule, generator)
    return ClassificationTask(network, recipe, schedule, generator, class_weights, processes)


def cross_entropy(
    logits: Tensor, targets: Targets, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of logits [N, K], a scalar; ``class_weights`` [K].

    With class weights the sum is divided by N. PyTorch divides it by the sum of the weights in the batch, so that a
    batch of one class would ignore its weight.
    """

    def mean_loss(labels: Tensor) -> Tensor:
        if class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        losses = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")  # [N]
        return (class_weights[labels] * losses).mean()

    loss = mean_loss(targets.labels)
    if targets.mixup_labels is None:
        return loss
    return targets.mixup_weight * loss + (1 - targets.mixup_weight) * mean_loss(targets.mixup_labels)


def balanced_class_weights(store: Store) -> Tensor:
    """N / (K · images of the class) for each class [K], so that an image counts 1 on average."""
    labels = torch.from_numpy(store.split("train").labels)
    counts = labels.bincount(minlength=len(store.classes)).clamp(min=1)
    return (len(labels) / (len(store.classes) * counts)).float()


def build_network(recipe: Recipe, num_classes: int, files: Files | None = None) -> Network:
    """The network of the recipe, or of layer files, its weights drawn from the recipe's seed."""
    generator = torch.Generator().manual_seed(step_seed(recipe.seed, 0, stream=1))
    if files is not None:
        return build(files, data_of(recipe, num_classes), generator=generator)
    only = recipe_fields(recipe.model).get("initialization", recipe.initialization)
    if recipe.initialization != only:
        raise RecipeError(f"--initialization is {recipe.initialization!r}", f"{only!r}: {recipe.model} has no other")
    network = create_model(
        recipe.model,
        num_classes=num_classes,
        in_channels=recipe.in_channels or None,
        image_size=recipe.image_size or None,
        generator=generator,
        initialization=None if recipe.initialization == "own" else recipe.initialization,
    )
    for module in network.modules():
        if type(module) is Dropout:  # subclasses keep their own probability
            module.p = recipe.dropout
    return network


def check_network(recipe: Recipe) -> None:
    """Check a recipe's network before images are prepared.

    Raises:
        ModelError: Where the network cannot be built.
        RecipeError: Where a field that was set by hand has no effect on the network.
    """
    network = build_network(recipe, 2)
    optim.check_layer_names(network, recipe)
    size, small = network.image_size, recipe.progressive_size
    no_effect = {"dropout": not any(type(module) is Dropout for module in network.modules())}
    no_effect |= {"progressive_size": small > size, "progressive_fraction": small >= size}
    reasons = {"dropout": f"{recipe.model}, which has no dropout that can be set"}
    for name in (name for name, idle in no_effect.items() if idle and is_overridden(recipe, name)):
        reason = reasons.get(name, f"{recipe.model}, whose input has {size} pixels")
        raise RecipeError(f"{option(name)} has no effect on {reason}", "", "leave it out")
