"""Everything that a run is at a moment: what a checkpoint writes down and a resume puts back."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alexnet.cuda_convnet import Files, GraphNetwork, build
from alexnet.data.store import Store
from alexnet.errors import CheckpointError, RecipeError, printable
from alexnet.loader.sampler import step_seed
from alexnet.models import create_model, recipe_fields
from alexnet.models.layers import Dropout, set_generator
from alexnet.models.network import Network, nonfinite
from alexnet.recipe import Recipe, differences, from_dict, is_overridden, option
from alexnet.training import checkpoint, optim, runtime
from alexnet.training.constraints import WeightConstraint
from alexnet.training.distributed.sharding import SINGLE_PROCESS, Layout, ModelSharding
from alexnet.training.distributed.world import World
from alexnet.training.finetune import PretrainedWeights
from alexnet.training.layer_files import data_of
from alexnet.training.layer_rule import LayerRule
from alexnet.training.schedule import Schedule

AVERAGE_EVERY = 4  # steps; ema_decay each step costs 4 % more time and changes nothing that was seen


@dataclass
class Position:
    """How far a run is. ``epoch`` and ``batch`` count from 0 and name what comes next; sums are of this epoch."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss: float = 0.0  # summed over images
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    nonfinite_steps: int = 0  # batches in a row whose loss was no number


@dataclass
class Best:
    """The best validation result so far; ``weights`` wait in memory until a checkpoint writes ``file``."""

    epoch: int = -1
    error: float = float("inf")
    loss: float = float("inf")
    file: str = ""
    weights: dict[str, Tensor] = field(default_factory=dict)


class State:
    """A run in memory: network, average, optimizer, schedule, position, results so far, the best.

    With ``files`` the network and its rule are those of a layer file, else the recipe's.
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
        self.world, self.accumulate = world or World(device), layout.accumulate
        self.recipe, self.store, self.device = recipe, store, device
        self.network = build_network(recipe, len(store.classes), files)
        if start is not None:
            start.give(self.network, store.classes)
        self.shown = start.shown if start else {}  # of the statistics, what belongs to the weights
        self.source = start.about(store.classes) if start else {}
        self.cut = ModelSharding(self.network, layout, self.world)
        self.network = self.cut.network.to(device).to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.network).eval() if recipe.ema_decay else None
        self.answer = self._compiled() if recipe.compile else self.network  # of images, in training
        self.averages = 0
        self.masks = torch.Generator(device)
        self.optimizer: torch.optim.Optimizer
        if isinstance(self.network, GraphNetwork):
            self.network.set_generator(self.masks)
            self.optimizer = LayerRule(self.network)
        else:
            set_generator(self.network, self.masks)
            optim.check(self.network, recipe)
            self.optimizer = optim.build(self.network, recipe)
        self.held: WeightConstraint | None = None  # what may not change: a network that is being compressed
        self.class_weights = _class_weights(recipe, store, device)
        self.world.alike(list(self.network.parameters()))
        self.world.watch(self.network, self.cut.across)
        counts = [len(store.split("train")), len(store.split("train")) + len(store.split("validation"))]
        steps, joined = (-(-count // recipe.batch_size) for count in counts)
        self.schedule = Schedule(recipe, steps, steps_joined=joined)
        self.position, self.best = Position(), Best()
        self.rows: list[dict[str, float]] = []
        self._whole: tuple[int, Network] | None = None

    @property
    def eval_model(self) -> Network:
        """The network that validation, the bundle and the test see: the average where there is one.

        Of a network that is cut among processes a whole one, put together when a step was made since. All take part.
        """
        eval_model = self.averaged or self.network
        if not self.cut.pieces:
            return eval_model
        if self._whole is None or self._whole[0] != self.position.step:
            network = self._whole[1] if self._whole else self._whole_network()
            network.load_state_dict(self.cut.joined(eval_model.state_dict()))
            self._whole = self.position.step, network
        return self._whole[1]

    def _whole_network(self) -> Network:
        network = build_network(self.recipe, len(self.store.classes))
        return network.to(self.device).to(memory_format=torch.channels_last).eval()

    def _compiled(self) -> Callable[[torch.Tensor], torch.Tensor]:
        if isinstance(self.network, GraphNetwork) or self.world.size > 1:
            who = "a network of layer files" if isinstance(self.network, GraphNetwork) else "several processes"
            raise RecipeError(f"--compile with {who}", "one process and a network by its name", "leave it out")
        return runtime.compiled(self.network, self.device)

    @property
    def finished(self) -> bool:
        """Is the schedule over, or the training error as low as the recipe asked for?"""
        wanted = self.recipe.stop_train_error
        learned = wanted > 0 and bool(self.rows) and 1 - self.rows[-1]["train_top1"] <= wanted
        return learned or self.schedule.finished(self.position.epoch)

    def begin_step(self) -> None:
        """Rates of the step at hand; what is drawn in it is a function of (seed, step) alone."""
        seed, position = self.recipe.seed, self.position
        self.begin_piece()
        if isinstance(self.optimizer, LayerRule):
            self.optimizer.generator.manual_seed(step_seed(seed, position.step, stream=3))
            steps = self.schedule.steps_per_epoch
            self.optimizer.begin((position.epoch * steps + position.batch) / (self.recipe.epochs * steps))
        else:
            rate, unlowered = (self.schedule.rate(position.epoch, position.batch, lowered) for lowered in (True, False))
            optim.set_rate(self.optimizer, rate, unlowered, position.epoch)
        if self.held is not None:
            done = position.step / (self.recipe.epochs * self.schedule.steps_per_epoch)
            self.held.begin(self.network, [self.averaged] if self.averaged else [], self.optimizer, done)

    def begin_piece(self) -> None:
        """The masks of the step, from their beginning: each piece of a batch takes its rows of the same ones."""
        self.masks.manual_seed(seed := step_seed(self.recipe.seed, self.position.step))
        if self.recipe.compile:  # compiled layers draw from PyTorch's own generator
            torch.manual_seed(seed)

    def rate(self) -> float:
        """The learning rate of the step before, for people; of a layer file, the highest of its weights."""
        if isinstance(self.optimizer, LayerRule):
            return self.optimizer.largest()
        return self.schedule.rate(self.position.epoch, max(self.position.batch - 1, 0))

    def together(self, messages: Tensor) -> tuple[float, int]:
        """[loss times weight, right] of each process -> the loss and the count of the whole batch, on all."""
        if self.world.size == 1:
            return float(messages[0]), int(messages[1])
        sums = self.world.exchange(messages.tolist())[:: self.world.parts].sum(0)  # one of each row
        return float(sums[0]), int(sums[1])

    def clip(self) -> Tensor:
        """Shorten the gradient as the recipe says; returns its norm before, that of the whole network."""
        return optim.clip(list(self.network.parameters()), self.recipe.clip_grad_norm, self.cut.norm(self.network))

    @torch.no_grad()
    def average(self) -> None:
        """Move the running average towards the weights; faster at first, when they still change a lot."""
        if self.averaged is None or self.position.step % AVERAGE_EVERY:
            return
        self.averages += 1
        keep = min(self.recipe.ema_decay**AVERAGE_EVERY, (1 + self.averages) / (10 + self.averages))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), 1 - keep)
        for mean, now in zip(self.averaged.buffers(), self.network.buffers(), strict=True):  # batch norm's statistics
            mean.lerp_(now, 1 - keep) if mean.is_floating_point() else mean.copy_(now)

    def note_best(self, error: float, loss: float) -> None:
        """Keep these weights if no earlier epoch had a lower validation error (of equal errors, a lower loss)."""
        if (error, loss) < (self.best.error, self.best.loss):
            weights = {name: t.detach().cpu().clone() for name, t in self.eval_model.state_dict().items()}
            self.best = Best(self.position.epoch, error, loss, weights=weights)

    def snapshot(self, journal_bytes: int, *, copied: bool) -> dict[str, Any]:
        """What a checkpoint holds. ``copied``: tensors of its own in main memory, so that training can go on."""
        if self.best.weights and not self.best.file:
            self.best.file = f"best-epoch-{self.best.epoch + 1:04d}.pt"
        content = self._content(journal_bytes)
        return _copy(content) if copied else content

    def _content(self, journal_bytes: int) -> dict[str, Any]:
        best = self.best
        return {
            "recipe": self.recipe.to_dict(),
            "layers": self.network.files.layers if isinstance(self.network, GraphNetwork) else "",
            "store": {"fingerprint": self.store.fingerprint, "classes": list(self.store.classes)},
            "network": self.cut.joined(self.network.state_dict()),
            "averaged": self.cut.joined(self.averaged.state_dict()) if self.averaged else None,
            "averages": self.averages,
            "optimizer": self.cut.joined_optimizer(self.optimizer, self.network),
            "schedule": {"errors": self.schedule.errors, "lr_milestones": self.schedule.drops},
            "position": asdict(self.position),
            "rows": self.rows,
            "best": {"epoch": best.epoch, "error": best.error, "loss": best.loss, "file": best.file},
            "journal_bytes": journal_bytes,
            "start": {"shown": self.shown, "source": self.source},
        }

    def restore(self, path: Path, content: dict[str, Any]) -> None:
        """Put back what ``path`` holds; raises :class:`CheckpointError` if it belongs to another run, does not hold
        together, or has weights that are not finite."""
        try:
            self._restore(path, content)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = printable(" ".join(str(error).split()))
            raise CheckpointError(
                f"checkpoint {path} does not hold together: {reason:.300}", "", "resume from an earlier one"
            ) from error
        for network in filter(None, (self.network, self.averaged)):
            if name := nonfinite(network.state_dict()):
                raise CheckpointError(
                    f"checkpoint {path} has NaN or Inf in {name}", "finite weights", "resume from an earlier one"
                )
        if name := nonfinite(self.best.weights or {}):
            raise CheckpointError(f"{self.best.file} has NaN or Inf in {name}", "finite weights", "start the run anew")

    def _restore(self, path: Path, content: dict[str, Any]) -> None:
        _same_run(path, content, self.recipe, self.store)
        if isinstance(self.network, GraphNetwork) and content["layers"] != self.network.files.layers:
            what = f"{path} was made with another layer file than layers.cfg of the run"
            raise CheckpointError(what, "", "put it back as it was; the parameter file may be changed")
        self.network.load_state_dict(self.cut.cut(content["network"]))
        if self.averaged is not None:
            self.averaged.load_state_dict(self.cut.cut(content["averaged"]))
        self.averages = content["averages"]
        start = content.get("start", {"shown": {}, "source": {}})  # a checkpoint of before there was fine-tuning
        self.shown, self.source = dict(start["shown"]), dict(start["source"])
        optim.load(self.optimizer, self.cut.cut_optimizer(content["optimizer"], self.optimizer, self.network))
        self.schedule.errors = list(content["schedule"]["errors"])
        self.schedule.drops = list(content["schedule"]["lr_milestones"])
        self.position = Position(**content["position"])
        self.rows = [dict(row) for row in content["rows"]]
        self.best = Best(**content["best"])
        if self.best.file:
            self.best.weights = checkpoint.load(path.with_name(self.best.file))["network"]


def _class_weights(recipe: Recipe, store: Store, device: torch.device) -> Tensor | None:
    """What an image of each class counts in the loss, [K]: N / (K · images of the class), 1 on average."""
    if recipe.class_weights == "none":
        return None
    labels = torch.from_numpy(store.split("train").labels)
    counts = labels.bincount(minlength=len(store.classes)).clamp(min=1)
    return (len(labels) / (len(store.classes) * counts)).float().to(device)


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
        if type(module) is Dropout:  # others have a probability of their own
            module.p = recipe.dropout
    return network


def check_network(recipe: Recipe) -> None:
    """Raise :class:`ModelError` or :class:`RecipeError` for a network that can not be, or that a field that was set by
    hand has no effect on, before images are prepared."""
    network = build_network(recipe, 2)
    optim.check(network, recipe)
    side, small = network.image_size, recipe.progressive_size
    idle = {"dropout": not any(type(module) is Dropout for module in network.modules())}
    idle |= {"progressive_size": small > side, "progressive_fraction": small >= side}
    reasons = {"dropout": f"{recipe.model}, which has none that can be set"}
    for name in (name for name, without in idle.items() if without and is_overridden(recipe, name)):
        reason = reasons.get(name, f"{recipe.model}, which sees {side} pixels")
        raise RecipeError(f"{option(name)} has no effect on {reason}", "", "leave it out")


def _copy(value: Any) -> Any:
    """``value`` with every tensor copied to main memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _copy(item) for name, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _same_run(path: Path, content: dict[str, Any], recipe: Recipe, store: Store) -> None:
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
