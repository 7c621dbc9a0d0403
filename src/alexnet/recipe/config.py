"""The recipe of a run: all hyperparameters, checked together. A recipe is frozen."""

import ast
import dataclasses
import functools
import inspect
import itertools
import pkgutil
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from alexnet.errors import RecipeError, did_you_mean
from alexnet.recipe.fields import (
    GROUPS,
    OPTIMIZERS,
    SCHEDULES,
    AugmentationFields,
    DataFields,
    ModelFields,
    OptimizerFields,
    Range,
    RegularizationFields,
    RuntimeFields,
    ScheduleFields,
    help_lines,
    parse_interval,
    parse_layer_ranges,
    parse_layer_values,
)


@dataclass(frozen=True)
class Recipe(  # dataclasses take the fields of the last base first
    RuntimeFields,
    RegularizationFields,
    ScheduleFields,
    OptimizerFields,
    AugmentationFields,
    ModelFields,
    DataFields,
):
    """All hyperparameters of a run; the defaults are those of the recipe ``modern``.

    Raises :class:`RecipeError` for a value of a wrong type or out of its range, and for values that contradict each
    other.
    """

    recipe: str = "modern"
    """named recipe that these values started from"""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_value(field.name, getattr(self, field.name), option(field.name))
        _check_together(self)

    def replace(self, **changes: Any) -> "Recipe":
        """A copy with ``changes``. An unknown name raises :class:`RecipeError` with the most similar known one."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                hint = did_you_mean(name, known, synonyms={"learning_rate": "lr"})
                raise RecipeError(f"unknown hyperparameter {name!r:.60}. {hint}")
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_file(cls, path: str | Path) -> "Recipe":
        """The recipe in a TOML file: one that ``alexnet recipes NAME`` prints, or the ``recipe.toml`` of a run.

        Fields that the file leaves out are those of the named recipe in its key ``recipe``, by default ``modern``.
        Raises :class:`RecipeError` with the file and the key for an unknown key or a wrong value.
        """
        load = pkgutil.resolve_name("alexnet.recipe.presets:load_recipe")  # presets consist of recipes
        recipe: Recipe = load(Path(path))
        return recipe

    @property
    def peak_lr(self) -> float:
        """The highest learning rate: ``lr``, scaled by the batch size where ``lr_base_size`` is set."""
        return self.lr * (self.batch_size / self.lr_base_size if self.lr_base_size else 1.0)

    def crop_size(self, epoch: int, full_size: int) -> int:
        """Height and width of the crops in an epoch (from 0), pixels.

        ``full_size`` is the network's input size. The last epoch always has crops of that size.
        """
        progressive = epoch < min(round(self.progressive_fraction * self.epochs), self.epochs - 1)
        return self.progressive_size if progressive and 0 < self.progressive_size < full_size else full_size

    def trains_on_val(self, epoch: int) -> bool:
        """True where the validation images are trained on in an epoch (from 0). Nothing is validated then."""
        return 0 < self.train_on_val_from_epoch <= epoch

    def to_dict(self) -> dict[str, Any]:
        """The values by name, as JSON can hold them. :func:`from_dict` is the inverse."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """The recipe with these values, as :meth:`Recipe.to_dict` returns them. Raises :class:`RecipeError`."""
    return Recipe().replace(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def differences(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Fields in which two recipes (or two objects of another dataclass) differ, with both values."""
    pairs = {f.name: (getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def option(field: str) -> str:
    """The command line option of a field: ``--lr`` for ``lr``."""
    return "--" + field.replace("_", "-")


@functools.cache
def group_of() -> dict[str, str]:
    """Field name -> the name of its group."""
    return {field.name: group for group, fields in GROUPS.items() for field in dataclasses.fields(fields)}


@functools.cache
def help_text() -> dict[str, str]:
    """Field name -> its attribute docstring on one line; for an optimizer or schedule with all choices."""
    texts = {name: text for owner in (Recipe, *GROUPS.values()) for name, text in _attribute_docstrings(owner).items()}
    for name, registry in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        texts[name] += f"; {help_lines(registry)}"
    return texts


@functools.cache
def _classes(module: ModuleType) -> dict[str, ast.ClassDef]:
    """The classes of a module by name. One parse serves all: ``inspect.getsource`` of a class parses the module too."""
    body = ast.parse(inspect.getsource(module)).body
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}


def _attribute_docstrings(owner: type) -> dict[str, str]:
    definition = _classes(sys.modules[owner.__module__])[owner.__name__]
    return {
        ast.unparse(field.target): " ".join(ast.literal_eval(text.value).split())
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


class _Rule(typing.NamedTuple):
    """What a value of a field must be."""

    type: type
    range: Range | None
    choices: tuple[str, ...]


@functools.cache
def rules() -> dict[str, _Rule]:
    """Field name -> the type, range and choices that its annotation gives."""
    results = {}
    for field in dataclasses.fields(Recipe):
        metadata = typing.get_args(field.type)[1:] if typing.get_origin(field.type) is Annotated else ()
        choices = typing.get_args(field.type) if typing.get_origin(field.type) is Literal else ()
        limits = next((item for item in metadata if isinstance(item, Range)), None)
        results[field.name] = _Rule(type(field.default), limits, choices)
    return results


_TYPES: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    tuple: "integers",
}


def check_value(name: str, value: Any, label: str) -> None:
    """Raise :class:`RecipeError` about ``label`` if ``value`` has the wrong type or is out of range for a field."""
    rule = rules()[name]
    if not _is_instance(rule.type, value):
        raise RecipeError(f"{label} is {value!r}", _TYPES[rule.type])
    if rule.range is not None and not rule.range.low <= value <= rule.range.high:
        raise RecipeError(f"{label} is {value}", f"from {rule.range.low} to {rule.range.high}")
    if rule.choices and value not in rule.choices:
        raise RecipeError(f"{label} is {value!r}", " or ".join(rule.choices))
    if name == "in_channels" and value == 2:
        raise RecipeError(f"{label} is 2", "3 for color, 1 for gray, or 0 for the network's own")


def _is_instance(expected: type, value: Any) -> bool:
    """True if ``value`` has the expected type. An integer is also a number; true and false are not numbers."""
    if expected is tuple:
        return isinstance(value, tuple) and all(_is_instance(int, item) for item in value)
    allowed = (int, float) if expected is float else expected
    return isinstance(value, allowed) and (expected is bool or not isinstance(value, bool))


def _check_together(recipe: Recipe) -> None:
    """Raise :class:`RecipeError` for values that contradict each other, and for text of a wrong form."""
    if recipe.validation + recipe.test >= 1:
        problem = f"--validation {recipe.validation} and --test {recipe.test} leave no training images"
        raise RecipeError(problem, "under 1 together")
    _check_validation(recipe)
    if recipe.sampling == "balanced" and recipe.shuffle_window:
        raise RecipeError("--sampling balanced and --shuffle-window exclude each other", "", "leave one out")
    if recipe.sampling == recipe.class_weights == "balanced":
        raise RecipeError(
            "--sampling balanced and --class-weights balanced both correct class frequencies", "", "leave one out"
        )
    _check_schedule(recipe)
    parse_interval(recipe.checkpoint_every, "--checkpoint-every")
    parse_layer_ranges(recipe.freeze, "--freeze")
    for name in ("layer_lr_mult", "layer_weight_decay", "layer_lr_milestones"):
        parse_layer_values(getattr(recipe, name), option(name))


def _check_validation(recipe: Recipe) -> None:
    """Raise :class:`RecipeError` if the validation error is needed and there is no validation split."""
    if recipe.schedule == "plateau":
        needed_by, alternative = "--schedule plateau", ""
    elif recipe.select_weights != "last":
        needed_by, alternative = f"--select-weights {recipe.select_weights}", ", or --select-weights last"
    elif recipe.patience:
        needed_by, alternative = "--patience", ", or --patience 0"
    elif recipe.early_stop_fraction:
        needed_by, alternative = "--early-stop-fraction", ", or --early-stop-fraction 0"
    else:
        return
    if recipe.validation == 0:
        raise RecipeError(f"{needed_by} needs a validation split", "", f"pass --validation above 0{alternative}")
    if recipe.train_on_val_from_epoch:
        problem = f"{needed_by} needs a validation split in all epochs"
        raise RecipeError(problem, "", f"pass --train-on-val-from-epoch 0{alternative}")


def _check_schedule(recipe: Recipe) -> None:
    """Raise :class:`RecipeError` for milestones and a warm-up that do not lie within the epochs of the run."""
    milestones, multistep = recipe.lr_milestones, recipe.schedule == "multistep"
    if multistep and not milestones:
        raise RecipeError("--schedule multistep needs --lr-milestones", "", "pass epochs, or --schedule constant")
    last = recipe.epochs - 1 if multistep and recipe.epochs else 1_000_000
    if milestones != tuple(sorted(set(milestones))) or not all(1 <= epoch <= last for epoch in milestones):
        expected = f"ascending and different, from 1 to {last}" if last else "before the last epoch"
        context = f" (--epochs is {recipe.epochs})" if multistep else ""
        problem = f"--lr-milestones is {' '.join(map(str, milestones))}"
        raise RecipeError(problem, expected + context, "pass others, or --schedule constant")
    # One epoch may be all warm-up, so that `--epochs 1` needs no other option: most recipes warm up for 1 epoch.
    if recipe.epochs and (recipe.warmup_epochs > recipe.epochs or recipe.warmup_epochs == recipe.epochs > 1):
        more = f" to {recipe.epochs - 1}, or more --epochs" if recipe.epochs > 1 else ""
        problem = f"--warmup-epochs is {recipe.warmup_epochs:g}"
        raise RecipeError(problem, f"below --epochs, {recipe.epochs}", f"pass --warmup-epochs 0{more}")
