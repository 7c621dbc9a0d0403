"""The state of a training run, which a checkpoint holds and a resumed run restores, and the EMA of the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from alexnet.cuda_convnet import Files
from alexnet.data.store import Store
from alexnet.errors import CheckpointError, RecipeError, counted, printable
from alexnet.loader.sampler import step_seed
from alexnet.models.network import Network, nonfinite
from alexnet.recipe import Recipe, differences, from_dict
from alexnet.schema import Count, check
from alexnet.training import checkpoint, optim
from alexnet.training.distributed.fixed_order import check_fixed_order
from alexnet.training.distributed.sharding import SINGLE_PROCESS, Layout, ModelSharding
from alexnet.training.distributed.world import World
from alexnet.training.finetune import PretrainedWeights
from alexnet.training.optim import WeightConstraint
from alexnet.training.schedule import LRSchedule
from alexnet.training.task import balanced_class_weights, build_network, create_task

BEFORE_THE_FIRST = -1  # the epoch of weights that were not trained yet
UPDATE_INTERVAL = 4  # steps; an update at each step costs 4 % more time and showed no difference in accuracy


class EMA(AveragedModel):
    """``module`` is a copy of ``network`` that follows it; call :meth:`update` after each step.

    An update computes ``ema ← d·ema + (1 − d)·weights``, with d = ``decay`` to the power of :data:`UPDATE_INTERVAL`;
    at update n, d is at most (1 + n) / (10 + n), since the weights change fast at first. Floating-point buffers (the
    statistics of batch norm) are averaged too; integer buffers are copied.
    """

    module: Network

    def __init__(self, network: Network, decay: float) -> None:
        super().__init__(network, multi_avg_fn=self._average, use_buffers=True)
        self.decay = decay
        self.updates = 0
        self.n_averaged.fill_(1)  # at 0 the first update would copy the weights in place of averaging
        self.eval()

    def update(self, network: Network, step: int) -> None:
        """Include the weights of ``network`` after ``step`` steps, every :data:`UPDATE_INTERVAL` steps."""
        if step % UPDATE_INTERVAL == 0:
            self.updates += 1
            with torch.no_grad():
                self.update_parameters(network)

    def _average(self, averages: Sequence[Tensor], values: Sequence[Tensor], _: Any) -> None:
        """In place, tensors of one device and data type at a time."""
        if not averages[0].is_floating_point():
            torch._foreach_copy_(list(averages), list(values))
            return
        decay = min(self.decay**UPDATE_INTERVAL, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(averages), list(values), 1 - decay)


@dataclass
class Position:
    """The progress of a run: the next ``epoch``, ``batch`` and ``step``, counted from 0, and sums over this epoch."""

    epoch: Count = 0
    batch: Count = 0
    step: Count = 0
    loss: float = 0.0  # summed over images
    correct: Count = 0
    seen: Count = 0
    seconds: float = 0.0
    nonfinite_steps: Count = 0  # consecutive batches whose loss was NaN or Inf

    def add(self, loss: float, correct: int, images: int) -> None:
        """Count a batch of ``images`` with a mean ``loss``."""
        self.nonfinite_steps = 0
        self.loss += loss * images
        self.correct += correct
        self.seen += images

    def next_epoch(self) -> None:
        """Move to the beginning of the next epoch."""
        self.epoch, self.batch, self.loss, self.correct, self.seen, self.seconds = self.epoch + 1, 0, 0.0, 0, 0, 0.0


@dataclass
class Best:
    """The best validation result so far. ``weights`` stay in memory until a checkpoint writes them to ``file``."""

    epoch: int = BEFORE_THE_FIRST
    error: float = float("inf")
    loss: float = float("inf")
    file: str = ""
    weights: dict[str, Tensor] = field(default_factory=dict)  # of eval_model


@dataclass
class _Best:
    """What a checkpoint has of :class:`Best`; the weights are in ``file``."""

    epoch: int
    error: float
    loss: float
    file: str


@dataclass
class _Row:
    """A row of ``rows``, which may have more columns."""

    epoch: float
    steps: float
    train_loss: float
    train_top1: float
    seconds: float
    images_per_second: float


@dataclass
class _Schedule:
    errors: list[float]
    drops: list[Count]


@dataclass
class _Values:
    """The entries of a checkpoint that are plain values."""

    position: Position
    best: _Best
    rows: list[_Row]
    schedule: _Schedule
    init_from: dict[str, str]
    journal_bytes: Count
    ema_updates: Count


class State:
    """A run in memory: network, EMA, optimizer, schedule, position, results so far, the best weights.

    Args:
        recipe: The hyperparameters.
        store: The data set.
        device: Where the network trains.
        start: Weights to begin with, in place of random ones.
        files: Layer files that define the network, in place of the recipe's network.
        world: The processes that train together.
        layout: How these processes share the work.

    Attributes:
        network: The network that trains, on this process.
        ema: The moving average of its weights, or None.
        task: Its loss, optimizer and learning rates.
        constraint: What compression has fixed in the weights, or None.
    """

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        device: torch.device,
        start: PretrainedWeights | None = None,
        files: Files | None = None,
        world: World | None = None,
        layout: Layout = SINGLE_PROCESS,
    ) -> None:
        self.world, self.grad_accum_steps = world or World(device), layout.grad_accum_steps
        self.deterministic = layout.deterministic
        self.recipe, self.store, self.device = recipe, store, device
        network = build_network(recipe, len(store.classes), files)
        if start is not None:
            start.load_into(network, store.classes)
        self.preprocessing = start.preprocessing if start else {}  # fields of Normalization
        self.init_from = start.about(store.classes) if start else {}
        self.sharding = ModelSharding(network, layout, self.world)
        self.network = self.sharding.network.to(device).to(memory_format=torch.channels_last)
        self.ema = EMA(self.network, recipe.ema_decay) if recipe.ema_decay else None
        self.generator = torch.Generator(device)  # of dropout masks
        counts = [len(store.split("train")), len(store.split("train")) + len(store.split("validation"))]
        steps, joined = (-(-count // recipe.batch_size) for count in counts)
        self.schedule = LRSchedule(recipe, steps, steps_joined=joined)
        weights = balanced_class_weights(store).to(device) if recipe.class_weights == "balanced" else None
        self.task = create_task(self.network, recipe, self.schedule, self.generator, weights, self.world.size)
        self.optimizer = self.task.optimizer
        if isinstance(self.optimizer, optim.OnePass):
            self.optimizer.one_pass = recipe.precision == "bf16" and device.type == "cpu"
        self.constraint: WeightConstraint | None = None
        self.world.broadcast_parameters(list(self.network.parameters()))
        if self.deterministic:
            check_fixed_order(self.network, self.world)
        else:
            self.world.register_grad_hooks(self.network, self.sharding.gradient_group)
        self.position, self.best = Position(), Best()
        self.rows: list[dict[str, float]] = []
        self._gathered: tuple[int, Network] | None = None  # step, the whole network of a sharded one

    @property
    def eval_model(self) -> Network:
        """The network that validation, the bundle and the test use: the EMA if there is one.

        Of a sharded network the whole one, gathered once a step; all processes must take part.
        """
        eval_model = self.ema.module if self.ema else self.network
        if not self.sharding.specs:
            return eval_model
        if self._gathered is None or self._gathered[0] != self.position.step:
            network = self._gathered[1] if self._gathered else build_network(self.recipe, len(self.store.classes))
            network = network.to(self.device).to(memory_format=torch.channels_last).eval()
            network.load_state_dict(self.sharding.gather_state(eval_model.state_dict()))
            self._gathered = self.position.step, network
        return self._gathered[1]

    @property
    def finished(self) -> bool:
        """Is the schedule over, or is there a reason to end the run before?"""
        return bool(self.early_end) or self.schedule.finished(self.position.epoch)

    @property
    def early_end(self) -> str:
        """Why the run ends before its last epoch; empty if it does not. From what a checkpoint restores alone."""
        recipe, epochs = self.recipe, len(self.rows)
        if recipe.stop_train_error and self.rows and 1 - self.rows[-1]["train_top1"] <= recipe.stop_train_error:
            return f"the training error is at most {recipe.stop_train_error:g}"
        accuracies = [row["validation_top1"] for row in self.rows if "validation_top1" in row]
        if (
            recipe.patience
            and accuracies
            and len(accuracies) - 1 - accuracies.index(max(accuracies)) >= recipe.patience
        ):
            return f"no lower validation error for {counted(recipe.patience, 'epoch')}"
        fraction, full = recipe.early_stop_fraction, self.network.image_size
        waited = sum(recipe.crop_size(epoch, full) == full for epoch in range(self.best.epoch + 1, epochs))
        if fraction and self.best.epoch >= 0 and waited >= fraction * recipe.epochs > 0:
            return f"no better validation result for {counted(waited, 'epoch')}"
        return ""

    def set_weights(self, values: Mapping[str, Tensor]) -> None:
        """Set weights by their names in the state dict, in the network and in its moving average, in all processes."""
        for network in (self.network, *([self.ema.module] if self.ema else [])):
            network.load_state_dict(self.sharding.shard_state(values), strict=False)
            self.world.broadcast_parameters(list(network.parameters()))
        self._gathered = None

    def set_progress(self) -> None:
        """Set the learning rates of the next step. All that is random in it is a function of (seed, step)."""
        position = self.position
        self.task.set_progress(position.epoch, position.batch, position.step)
        if self.constraint is not None:
            progress = position.step / (self.recipe.epochs * self.schedule.steps_per_epoch)
            self.constraint.begin(self.network, [self.ema.module] if self.ema else [], self.optimizer, progress)

    def choose_gradient_types(self) -> None:
        """Keep gradients of large weights in bfloat16 where they are computed in it and nothing is added to them."""
        one_pass = isinstance(self.optimizer, optim.OnePass) and self.optimizer.one_pass
        alone = self.world.size == self.grad_accum_steps == 1 and self.constraint is None and not self.deterministic
        optim.use_bf16_gradients(self.network, one_pass and alone)

    def seed_dropout(self) -> None:
        """Restart the generator of dropout masks: each part of a batch takes its rows of the same masks."""
        seed = step_seed(self.recipe.seed, self.position.step)
        self.generator.manual_seed(seed)
        if self.recipe.compile:  # compiled layers draw from PyTorch's global generator
            torch.manual_seed(seed)

    def reduce_loss_and_correct(self, sums: Tensor) -> tuple[float, int]:
        """Add [weighted loss, correct predictions] of all processes: the mean loss and the count of the batch."""
        if self.world.size == 1:
            return float(sums[0]), int(sums[1])
        total = self.world.all_gather_scalars(sums.tolist())[:: self.world.tp_size].sum(
            0
        )  # one process of each TP group
        return float(total[0]), int(total[1])

    def clip_gradients(self) -> Tensor:
        """Clip the gradient to ``clip_grad_norm``; returns its norm before, that of the whole network."""
        norm = self.sharding.gradient_norm(self.network)
        if isinstance(self.optimizer, optim.OnePass) and self.optimizer.one_pass:
            return self.optimizer.clip_grad_norm(self.recipe.clip_grad_norm, norm)
        return optim.clip_grad_norm(list(self.network.parameters()), self.recipe.clip_grad_norm, norm)

    def update_ema(self) -> None:
        """Include the weights of the step just made in the moving average."""
        if self.ema is not None:
            self.ema.update(self.network, self.position.step)

    def update_best(self, error: float, loss: float, epoch: int | None = None) -> None:
        """Keep the weights of ``epoch``, the current one if it is None, if no earlier one was better on validation.

        Better is a lower error and at equal errors a lower loss; with ``select_weights`` ``best-loss`` a lower loss.
        """
        by_loss, best = self.recipe.select_weights == "best-loss", self.best
        if (loss < best.loss) if by_loss else ((error, loss) < (best.error, best.loss)):
            weights = {name: t.detach().cpu().clone() for name, t in self.eval_model.state_dict().items()}
            self.best = Best(self.position.epoch if epoch is None else epoch, error, loss, weights=weights)

    def snapshot(self, journal_bytes: int, *, copied: bool) -> dict[str, Any]:
        """The content of a checkpoint. ``copied``: its tensors are copied to main memory, so that training goes on."""
        best = self.best
        if best.weights and not best.file:
            best.file = f"best-epoch-{best.epoch + 1:04d}.pt"
        content = {
            "recipe": self.recipe.to_dict(),
            "layers": self.task.layer_file,
            "store": {"fingerprint": self.store.fingerprint, "classes": list(self.store.classes)},
            "network": self.sharding.gather_state(self.network.state_dict()),
            "ema": self.sharding.gather_state(self.ema.module.state_dict()) if self.ema else None,
            "ema_updates": self.ema.updates if self.ema else 0,
            "optimizer": self.sharding.gather_optimizer(self.optimizer, self.network),
            "schedule": {"errors": self.schedule.errors, "drops": self.schedule.drops},
            "position": asdict(self.position),
            "rows": self.rows,
            "best": {"epoch": best.epoch, "error": best.error, "loss": best.loss, "file": best.file},
            "journal_bytes": journal_bytes,
            "start": {"preprocessing": self.preprocessing, "init_from": self.init_from},
        }
        return _copy(content) if copied else content

    def restore(self, path: Path, content: dict[str, Any]) -> None:
        """Restore the content of the checkpoint ``path``.

        Raises:
            CheckpointError: Where it belongs to another run, is inconsistent, or has weights that are NaN or Inf.
        """
        try:
            self._restore(path, content)
        except (
            RecipeError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            ArithmeticError,
            RuntimeError,
        ) as error:
            reason = printable(" ".join(str(error).split()))
            raise CheckpointError(
                f"checkpoint {path} is inconsistent: {reason:.300}", "", "resume from an earlier one"
            ) from error
        for network in (self.network, *([self.ema.module] if self.ema else [])):
            if name := nonfinite(network.state_dict()):
                raise CheckpointError(
                    f"checkpoint {path} has NaN or Inf in {name}", "finite weights", "resume from an earlier one"
                )
        if name := nonfinite(self.best.weights or {}):
            raise CheckpointError(f"{self.best.file} has NaN or Inf in {name}", "finite weights", "start the run anew")

    def _restore(self, path: Path, content: dict[str, Any]) -> None:
        _check_same_run(path, content, self.recipe, self.store)
        start, rows = content["start"], check(content["rows"], list[dict[str, float]])
        values = check({**content, "rows": rows, "init_from": start["init_from"]}, _Values)
        self._check_position(values)
        if self.task.layer_file and content["layers"] != self.task.layer_file:
            raise CheckpointError(
                f"{path} was made with another layer file than layers.cfg of the run",
                "",
                "restore layers.cfg; only the parameter file may be changed",
            )
        self.network.load_state_dict(self.sharding.shard_state(content["network"]))
        if self.ema is not None:
            self.ema.module.load_state_dict(self.sharding.shard_state(content["ema"]))
            self.ema.updates = values.ema_updates
        self.preprocessing, self.init_from = _checked_preprocessing(start["preprocessing"]), values.init_from
        optim.load_state(
            self.optimizer, self.sharding.shard_optimizer(content["optimizer"], self.optimizer, self.network)
        )
        self.schedule.errors, self.schedule.drops = values.schedule.errors, values.schedule.drops
        self.position = values.position
        self.rows = [dict(row) for row in content["rows"]]
        self.best = Best(**vars(values.best))
        if self.best.file:
            self.best.weights = checkpoint.load(path.with_name(self.best.file))["eval_model"]
            _check_same_form(self.best.weights, content["ema" if self.ema else "network"], self.best.file)

    def _check_position(self, values: _Values) -> None:
        """Raise ValueError for a position that this run cannot have."""
        position, steps = values.position, max(self.schedule.steps_per_epoch, self.schedule.steps_joined)
        if position.epoch != len(values.rows) or position.epoch > self.recipe.epochs or position.batch >= steps:
            raise ValueError(
                f"epoch {position.epoch}, batch {position.batch} with {counted(len(values.rows), 'row')} of results"
            )


def _checked_preprocessing(entries: dict[str, Any]) -> dict[str, Any]:
    """``entries`` as fields of Normalization; raises ValueError if they are not."""
    for name, value in entries.items():
        shapes = {"mean": (1, 3), "divide": (0, 1)}.get(name, ())
        is_numbers = isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() in shapes
        if not (is_numbers and not nonfinite({name: value})) and not (name == "mean_follows_crop" and value in (0, 1)):
            raise ValueError(f"{name} of the preprocessing is {value!r:.60}")
    return entries


def _check_same_form(tensors: Any, expected: Mapping[str, Tensor], label: str) -> None:
    """Raise ValueError unless ``tensors`` have the names, shapes and data types of ``expected``."""
    forms = ({name: (one.shape, one.dtype) for name, one in part.items()} for part in (tensors, expected))
    if len({str(sorted(form.items())) for form in forms}) > 1:
        raise ValueError(f"{label} has tensors of other names, shapes or types")


def _copy(value: Any) -> Any:
    """``value`` with every tensor copied to main memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _copy(item) for name, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _check_same_run(path: Path, content: dict[str, Any], recipe: Recipe, store: Store) -> None:
    changed = differences(from_dict(content["recipe"]), recipe)
    if changed:
        name, (before, now) = next(iter(changed.items()))
        raise CheckpointError(f"{path} was made with {name} = {before}, not {now}", "", "resume with the run's recipe")
    if tuple(content["store"]["classes"]) != tuple(store.classes):
        raise CheckpointError(f"{path} was made with other classes", ", ".join(content["store"]["classes"][:8]))
    if content["store"]["fingerprint"] != store.fingerprint:
        raise CheckpointError(
            f"{path} was made with other data: store {store.address} has fingerprint {store.fingerprint[:12]}",
            content["store"]["fingerprint"][:12],
            "resume with the data as it was, or start a new run",
        )
