"""What can be typed: a dataclass a command; a field is an option, the comment behind it is its help."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from alexnet import recipe as recipes
from alexnet.errors import AlexNetError, RecipeError
from alexnet.recipe import Recipe

if TYPE_CHECKING:
    from alexnet.api import DataOptions


@dataclass(frozen=True)
class DataArguments:
    """Where pictures come from and how they are read."""

    data_root: Path | None = None  # where torchvision's sets (cifar10, mnist, …) lie already
    download: bool = False  # may torchvision fetch a set that is not there?
    cache: Path | None = None  # where folders are prepared into; by default ~/.cache/alexnet
    bad: Literal["exclude", "fail"] = "exclude"  # unusable pictures: left out and listed | the first one ends it
    allow_truncated: bool = False  # use pictures that were cut off, and list them


@dataclass(frozen=True)
class TrainArguments:
    """Train a classifier.

    Any number of the recipe can be set by its name; the defaults shown are those of the chosen recipe (--recipe, or
    else what fits DATA and --model).
    """

    data: Positional[str | None] = None  # digits | folder of class folders | store | cifar10, mnist, imagenette, …
    run: Path | None = None  # new folder for everything that is made; by default runs/DATA-MODEL
    resume: Path | None = None  # go on with this run (its folder, or a checkpoint file in it); needs nothing else
    store: Path | None = None  # with --resume: where the prepared pictures lie now, if they were moved
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    workers: int = 1  # threads that make batches; the number never changes a run
    json: bool = False  # print the result as one JSON object
    quiet: bool = False  # say nothing while training
    source: DataArguments = field(default_factory=DataArguments)
    numbers: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True)
class PrepareArguments:
    """Prepare pictures into a store: decoded, brought to one size, split, with their statistics.

    Uses all cores, and goes on where an interrupted run of the same command stopped.
    """

    data: Positional[str]  # a folder of class folders | parquet files | digits, cifar10, mnist, imagenette, …
    store: Positional[Path]  # new folder for the prepared pictures
    size: int = 256  # side of the stored pictures, pixels
    fit: Literal["crop", "pad", "squash"] = "crop"  # short side and center cut (paper, 2) | letter box | both sides
    validation: float = 0.1  # fraction of the training pictures cut out to choose with
    test: float = 0.2  # fraction kept for the test, where the data has no test split of its own
    seed: int = 0  # of the splits
    check: bool = False  # change nothing: compare an existing store and its sources with their recorded SHA-256
    source: DataArguments = field(default_factory=DataArguments)


@dataclass(frozen=True)
class EvaluateArguments:
    """Evaluate a trained classifier on a whole split, every picture counted once."""

    run: Positional[Path]  # a run folder or a bundle
    data: Positional[str | None] = None  # other pictures of the same classes; by default the run's own
    split: Literal["test", "validation", "train"] = "test"  # which pictures
    views: Literal[1, 10] = 1  # the center | four corners, center and their mirrors, probabilities averaged
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    json: bool = False  # print one JSON object
    source: DataArguments = field(default_factory=DataArguments)


@dataclass(frozen=True)
class PredictArguments:
    """Say what is on pictures: the classes of a trained classifier, most probable first."""

    run: Positional[Path]  # a run folder, a bundle, or an exported file (FILE.onnx, FILE.xml)
    pictures: Positional[tuple[str, ...]]  # files, folders (with all below them) and globs
    top: int = 5  # guesses for each picture
    views: Literal[1, 10] = 1  # the center | ten views, probabilities averaged
    format: Literal["table", "json", "csv"] = "table"  # how they are printed
    device: str = "auto"  # auto | cpu | cuda | cuda:N


@dataclass(frozen=True)
class DrawArguments:
    """Draw a picture of a run: its first-layer filters by tower, learning curves, confusion matrix, predictions."""

    what: Positional[Literal["filters", "curves", "confusion", "predictions"]]  # which picture
    run: Positional[Path]  # a run folder (for filters a bundle will do)
    output: Path | None = None  # PNG file; by default into the run's folder pictures/
    count: int = 16  # predictions: how many test pictures


@dataclass(frozen=True)
class ModelsArguments:
    """List the networks, or show one: a row a layer with the output size worked out, and totals."""

    name: Positional[str | None] = None  # which network to show
    num_classes: int | None = None  # classes it tells apart; by default the network's own number
    in_channels: int | None = None  # 3 for color, 1 for gray
    image_size: int | None = None  # side of its input, pixels
    json: bool = False  # print JSON


@dataclass(frozen=True)
class RecipesArguments:
    """List the recipes, show one with every number's meaning, or compare two."""

    name: Positional[str | None] = None  # which recipe to show
    other: Positional[str | None] = None  # a second one: print where they differ
    json: bool = False  # print JSON


def data_options(given: DataArguments) -> "DataOptions":
    """For the functions behind the command line: the typed options, a progress bar, lines on standard error."""
    from alexnet.api import DataOptions
    from alexnet.cli.show import Progress, say

    cache = given.cache or _cache()
    return DataOptions(
        given.data_root, given.download, cache, given.bad, given.allow_truncated, Progress("preparing"), say
    )


def _cache() -> Path:
    own, system = os.environ.get("ALEXNET_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(system) if system else Path.home() / ".cache") / "alexnet"


def base_recipe(arguments: list[str]) -> Recipe:
    """The recipe whose numbers are the defaults: looked up before the arguments are parsed, since --help shows them."""
    named, model = _value(arguments, "--recipe"), _value(arguments, "--model")
    if named:
        recipe = recipes.named(named)
        return recipe.replace(model=model) if model else recipe
    data = next((a for i, a in enumerate(arguments) if not a.startswith("-") and not _takes(arguments, i)), "")
    return recipes.default_for(data, model)


def _takes(arguments: list[str], index: int) -> bool:
    """Is this word the value of the option before it?"""
    before = arguments[index - 1] if index else ""
    flags = {"--json", "--quiet", "--download", "--allow-truncated", "--mirror", "--bias-decay"}
    return before.startswith("--") and "=" not in before and before not in flags and not before.startswith("--no-")


def _value(arguments: list[str], name: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == name and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(name + "="):
            return argument.partition("=")[2]
    return None


def only_resume(given: TrainArguments, base: Recipe) -> None:
    changed = recipes.differences(base, given.numbers)
    if changed or given.data is not None or given.run is not None:
        what = recipes.option(next(iter(changed))) if changed else "DATA" if given.data is not None else "--run"
        raise RecipeError(f"--resume goes on with the run as it was begun, so {what} has no place", "", "leave it out")


def parse(kind: Any, arguments: list[str], verb: str, default: Any = None) -> Any:
    """Arguments -> the dataclass ``kind``; on wrong use the process leaves with status 2, as every Unix tool."""
    try:
        return tyro.cli(kind, prog=f"alexnet {verb}", args=arguments, default=default, config=(OmitArgPrefixes,))
    except AlexNetError as error:
        raise RecipeError(error.what, error.must, error.todo) from error
