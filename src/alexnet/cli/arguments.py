"""What can be typed: a dataclass a command; a field is an option, the comment behind it is its help."""

import os
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from alexnet import recipe as recipes
from alexnet.errors import AlexNetError, RecipeError
from alexnet.recipe import Recipe
from alexnet.terminal import styled_output

if TYPE_CHECKING:
    from alexnet.data.sources.listing import LayoutOptions
    from alexnet.data.sources.options import DataOptions
    from alexnet.training.finetune import PretrainedWeights


@dataclass(frozen=True)
class SourceArguments:
    """Where images come from and which of them count."""

    data_root: Path | None = None
    """where torchvision's sets (cifar10, mnist, …) lie already"""
    download: bool = False
    """may torchvision fetch a set that is not there?"""
    group_column: str | None = None
    """column of a table (patient, camera …) whose images share one split"""
    group_pattern: str | None = None
    """the same from file names: a regular expression, its parenthesis is the group"""
    exclude: Path | None = None
    """images to leave out: a list, as alexnet doctor --exclude-list writes it"""
    classes: Literal["auto", "top", "leaves"] = "auto"
    """of nested folders: the top ones, or each that contains images"""
    ignore: Annotated[tuple[str, ...], UseAppendAction] = ()
    """a folder or file not to read, or a pattern; repeatable"""
    image_column: str | None = None
    """column of a table with the image paths; by default path, file_name, …"""
    label_column: str | None = None
    """column of a table with the classes; by default label, class, …"""
    delimiter: str | None = None
    """between the columns of a table: a character, or tab; by default what fits"""


@dataclass(frozen=True)
class DataArguments(SourceArguments):
    """Where images come from and how they are read."""

    cache: Path | None = None  # where folders are prepared into and shards fetched; by default ~/.cache/alexnet
    cache_gb: float = 32.0  # most that the shards of stores behind an address (s3://…) may take there, gigabytes
    bad: Literal["exclude", "fail"] = "exclude"  # unusable images: left out and listed | the first one ends it
    allow_truncated: bool = False  # use images that were cut off, and list them


@dataclass(frozen=True)
class RecipeArguments(Recipe):
    """The fields of a recipe as options: checked together only when all of them are known."""

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class TrainArguments:
    """Train a classifier.

    Any number of the recipe can be set by its name; the defaults shown are those of the chosen recipe (--recipe, or
    else what fits DATA and --model).
    """

    data: Positional[str | None] = None
    """digits | folder of class folders | store | cifar10, mnist, imagenette, …"""
    output_dir: Path | None = None
    """new folder for everything that is made; by default runs/DATA-MODEL"""
    resume: Path | None = None
    """go on with this run (its folder, or a checkpoint file in it); needs nothing else"""
    init_from: Path | None = None
    """start from the weights of this run or bundle (fine-tuning)"""
    weights: Literal["torchvision"] | None = None
    """start from published weights, fetched by torchvision"""
    store: str | None = None
    """with --resume: where the prepared images lie now, if they were moved"""
    layers: Path | None = None
    """network by a layer file of 2012 instead of --model; needs --layer-params"""
    layer_params: Path | None = None
    """the file's rates, momenta, decay and schedules, instead of the recipe's"""
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    num_workers: int = 1  # threads that make batches; the number never changes a run
    report: bool = True  # end with report.html, in seconds; `alexnet report RUN` makes it with all that takes longer
    parallel: Literal["data", "towers", "hybrid", "hybrid-turns"] = "data"  # how torchrun's processes share the network
    split: int = 0  # `hybrid`: processes among which the fully connected layers are cut; 0: all
    grad_accum_steps: int = (
        1  # pieces in which a process goes through its share of a batch; less memory, the same result
    )
    json: bool = False
    """print the result as one JSON object"""
    quiet: bool = False
    """say nothing while training"""
    source: DataArguments = field(default_factory=DataArguments)
    numbers: RecipeArguments = field(default_factory=RecipeArguments)

    @property
    def recipe(self) -> Recipe:
        """The recipe of these options. Raises :class:`RecipeError` for what can not be."""
        return Recipe(**vars(self.numbers))


@dataclass(frozen=True)
class PrepareArguments:
    """Prepare images into a store: decoded, brought to one size, split, with their statistics.

    Uses all cores, and goes on where an interrupted run of the same command stopped.
    """

    data: Positional[str]  # a folder of class folders | parquet files | digits, cifar10, mnist, imagenette, …
    store: Positional[str]  # new folder for the prepared images, or an address (s3://…) that they are copied to
    size: int = 256  # side of the stored images, pixels
    fit: Literal["crop", "pad", "squash"] = "crop"  # short side and center cut (paper, 2) | letter box | both sides
    validation: float = 0.1
    """fraction of the training images cut out to choose with"""
    test: float = 0.2
    """fraction kept for the test, where the data has no test split of its own"""
    seed: int = 0
    """of the splits"""
    encoding: Literal["raw", "jpeg"] = "raw"
    """pixels as they are | JPEGs: a tenth of the room, decoded in training"""
    quality: int = 88
    """of these JPEGs, 1 to 95"""
    mixed: bool = False
    """store images in a drawn order, not by name: for reading a few shards at a time"""
    engine: Literal["threads", "ray"] = "threads"
    """the cores of this machine | of a Ray cluster with one disk"""
    shard_mb: float = 1024.0
    """about how large a shard gets, megabytes of 2^20 bytes; 64 for object storage"""
    check: bool = False
    """change nothing: compare an existing store and its sources with their recorded SHA-256"""
    source: DataArguments = field(default_factory=DataArguments)


@dataclass(frozen=True)
class EvaluateArguments:
    """Evaluate a trained classifier on a whole split, every image counted once.

    RUN RUN … [DATA]: several runs or bundles are an ensemble, the mean of their probabilities. The last path is DATA
    where it is neither a run nor a bundle.
    """

    runs: Positional[tuple[str, ...]]  # run folders or bundles; then other images (by default the runs' own)
    split: Literal["test", "validation", "train"] = "test"  # which images
    crops: Literal[1, 9, 10] = 1  # the center | 3×3 places, not mirrored (2012, CIFAR) | corners, center and mirrors
    fit_weights: Literal["validation", "train", "test"] | None = None  # ensemble: find its weights on this split
    details: bool = False  # every class with its interval, calibration, risk against coverage
    slices: str | None = None  # top-1 by a column of the CSV that the images came from
    ood_dir: Path | None = None
    """folder with images of no known class: how many are called unknown?"""
    confidence_threshold: float | None = None
    """a first prediction of a lower probability is called unknown: what that does"""
    target_risk: float | None = None
    """the same by the bundle's threshold for this share of wrong answers: 0.02"""
    calibrate: bool = False
    """fit temperature and thresholds on the validation split, and write them into the bundle"""
    include_training_images: bool = False
    """do not leave out images of DATA that were trained on"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N"""
    json: bool = False
    """print one JSON object"""
    source: DataArguments = field(default_factory=DataArguments)


@dataclass(frozen=True)
class PredictArguments:
    """Say what is on images: the classes of a trained classifier, most probable first."""

    run: Positional[Path]  # a run folder, a bundle, or an exported file (FILE.onnx, FILE.xml)
    images: Positional[tuple[str, ...]]  # files, folders (with all below them) and globs
    top: int = 5  # predictions for each image
    crops: Literal[1, 9, 10] = 1  # the center | nine or ten crops, probabilities averaged
    format: Literal["table", "json", "csv"] = "table"  # how they are printed
    confidence_threshold: float | None = None  # "unknown" where the first prediction has a lower probability
    target_risk: float | None = None  # "unknown" so often that at most this share of the predictions is wrong: 0.02
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: weights of half the bytes, faster


@dataclass(frozen=True)
class CompareArguments:
    """Compare two trained classifiers on the same images: is one better, or was it luck? McNemar's exact test."""

    first: Positional[Path]
    """a run folder or a bundle"""
    second: Positional[Path]
    """another one, of the same classes"""
    data: Positional[str | None] = None
    """other images of these classes; by default the runs' own"""
    split: Literal["test", "validation", "train"] = "test"
    """which images"""
    crops: Literal[1, 9, 10] = 1  # the center | 3×3 places, not mirrored (2012, CIFAR) | corners, center and mirrors
    include_training_images: bool = False  # do not leave out images of DATA that were trained on
    device: str = "auto"
    """auto | cpu | cuda | cuda:N"""
    json: bool = False
    """print one JSON object"""
    source: DataArguments = field(default_factory=DataArguments)


@dataclass(frozen=True)
class PlotArguments:
    """Draw an image of a run: what it learned, what it answers, and why.

    IMAGES (files, folders, globs) are for features, saliency and neighbors; by default test images are drawn.
    """

    kind: Positional[
        Literal[
            "filters",
            "curves",
            "confusion",
            "predictions",
            "features",
            "saliency",
            "neighbors",
            "mistakes",
            "embedding",
        ]
    ]
    """first-layer filters by tower | learning curves | confusion matrix | test images with five predictions | a
    layer's maps | where it looks | nearest training images | the surest mistakes | a map of the test images"""
    run: Positional[Path]
    """a run folder (with IMAGES, and for filters, a bundle will do)"""
    images: Positional[tuple[str, ...]] = ()
    """images of your own instead of test images"""
    output: Path | None = None
    """PNG file; by default into the run's folder plots/"""
    count: int | None = None
    """how many test images; by default what fits on a page"""
    layer: str | None = None
    """features: which layer (conv3, relu5, fc7 …); by default the first"""
    target_class: str | None = None
    """saliency: what speaks for this class; by default for the first prediction"""
    method: Literal["auto", "pca", "umap"] = "auto"
    """embedding: UMAP where umap-learn is installed, else PCA"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N"""


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
    """List the recipes, show one with every number's meaning, or compare two: numbers, networks, and their sources."""

    name: Positional[str | None] = None  # which recipe to show
    other: Positional[str | None] = None  # a second one: print where they differ, and where each value is told
    json: bool = False  # print JSON


@dataclass(frozen=True)
class ClaimsArguments:
    """Put a claim of the paper to the test: a plan, its trainings, and whether the claim holds. Without a name: list.

    The same command again finds what it has trained already, and goes on where it was interrupted.
    """

    name: Positional[str | None] = None  # relu, norm, overlap, dropout, augmentation, color-noise, towers, depth, …
    data: str | None = None  # digits | cifar10 (the default) | mnist … | a folder of images or parquet | a store
    quick: bool = False  # small networks and few images: minutes on a processor
    seeds: int | None = None  # trainings of each network; by default 3 (quick) or 5
    epochs: int | None = None  # most epochs of a training
    rates: tuple[float, ...] = ()  # learning rates to choose from, for each network by itself
    images: int | None = None  # most training images; 0: all
    level: float | None = None  # training error, a fraction, to which epochs are counted (relu: 0.25)
    output_dir: Path | None = None  # folder for all trainings; by default runs/claims/NAME-DATA
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    num_workers: int = 1  # threads that make batches; the number never changes a run
    json: bool = False  # print one JSON object; the plan goes to standard error
    source: DataArguments = field(default_factory=DataArguments)


@dataclass(frozen=True)
class LayersArguments:
    """Read a layer file of 2012: a row a layer with the output size worked out, or the errors of the file."""

    file: Positional[Path]  # layers.cfg
    params: Positional[Path | None] = None  # layer-params.cfg: checked too, and its rates are shown
    plot: Path | None = None  # PNG file for a plot of the graph, towers side by side
    image_size: int = 224  # side of the images, pixels
    in_channels: int = 3  # 3 for color, 1 for gray
    num_classes: int | None = None  # classes of the data; by default what the file's last layer tells apart
    json: bool = False  # print JSON


def data_options(args: DataArguments) -> "DataOptions":
    """For the functions behind the command line: the typed options, a progress bar, lines on standard error."""
    from alexnet.cli.output import Progress, say
    from alexnet.data.sources.options import DataOptions

    cache = choose_cache(args.cache, args.cache_gb)
    return DataOptions(
        args.data_root,
        args.download,
        cache,
        args.bad,
        args.allow_truncated,
        Progress("preparing"),
        say,
        args.group_column,
        args.group_pattern,
        args.exclude,
        layout=layout_options(args),
    )


def layout_options(args: SourceArguments) -> "LayoutOptions":
    """How DATA is read where its layout leaves it open."""
    from alexnet.data.sources.listing import LayoutOptions

    return LayoutOptions(args.classes, args.ignore, args.image_column, args.label_column, args.delimiter)


def choose_cache(cache: Path | None = None, gigabytes: float = DataArguments.cache_gb) -> Path:
    """Choose the folder ``cache`` (default: by the environment) for the shards of stores at an address; return it."""
    from alexnet.data.cache import Cache, choose

    if not gigabytes > 0:
        raise RecipeError(f"--cache-gb is {gigabytes}", "above 0")
    own, system = os.environ.get("ALEXNET_CACHE"), os.environ.get("XDG_CACHE_HOME")
    default = Path(own) if own else (Path(system) if system else Path.home() / ".cache") / "alexnet"
    cache = cache or default
    choose(Cache(cache / "remote", int(gigabytes * 1e9)))
    return cache


def parse_train(argv: list[str]) -> "tuple[TrainArguments, PretrainedWeights | None]":
    """Arguments of ``train`` -> their values, and the weights to start from.

    Two passes of one parser: the first tells which recipe is chosen, the second has that recipe's values as defaults.
    """
    unset = TrainArguments(numbers=RecipeArguments(recipe="", model=""))
    without_help = [argument for argument in argv if argument not in ("-h", "--help")]
    args, unknown = parse(TrainArguments, without_help, "train", unset, unknown_too=True)
    if unknown or args.resume is not None:  # no recipe is chosen; the parser reports what it does not know
        return parse(TrainArguments, argv, "train"), None
    start = _start(args)
    defaults = TrainArguments(numbers=RecipeArguments(**vars(_base_recipe(args, start))))
    return parse(TrainArguments, argv, "train", defaults), start


def _start(args: TrainArguments) -> "PretrainedWeights | None":
    """The weights to start from, where --init-from or --weights names some."""
    if args.init_from is None and args.weights is None:
        return None
    if args.init_from is not None and args.weights is not None:
        raise RecipeError("--init-from and --weights both name weights to start from", "one of them")
    from alexnet.training.finetune import from_bundle, from_published

    return from_published("torchvision") if args.init_from is None else from_bundle(args.init_from)


def _base_recipe(args: TrainArguments, start: "PretrainedWeights | None") -> Recipe:
    """The recipe whose values are the defaults of the options that are not set."""
    named, model = args.numbers.recipe, args.numbers.model
    if not (args.data or model or start):  # quick: nothing but the help is wanted
        return recipes.get_recipe(named or ("modern" if args.layers is None else "layer_file"))
    from alexnet.training.defaults import default_recipe

    data_options(args.source)  # where a store behind an address is fetched to
    if args.layers is None:
        return default_recipe(args.data or "", named, model, start)
    recipe = default_recipe(args.data or "", named or "layer_file")
    return recipe.replace(model=model) if model else recipe


def only_resume(args: TrainArguments) -> None:
    """Raise :class:`RecipeError` for an option that has no effect on a run that is continued."""
    unset = TrainArguments()
    kept = ("cache", "cache_gb")  # where shards are fetched to now
    names = {"data": "DATA"}
    fields = ("data", "output_dir", "init_from", "weights", "layers", "layer_params")
    changed = [names.get(name, recipes.option(name)) for name in fields if getattr(args, name) is not None]
    changed += [recipes.option(name) for name in recipes.differences(unset.numbers, args.numbers)]
    changed += [recipes.option(name) for name in recipes.differences(unset.source, args.source) if name not in kept]
    if changed:
        what = changed[0]
        raise RecipeError(f"--resume goes on with the run as it was begun, so {what} has no place", "", "leave it out")


def _path_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """How a ``Path`` is parsed: as it is typed, but never from an address. DATA and stores are of type ``str``."""
    if info.type is not Path:
        return None

    def path(texts: list[str]) -> Path:
        from alexnet.data.remote import local_path

        return local_path(texts[0])

    return PrimitiveConstructorSpec(1, "PATH", path, lambda value: isinstance(value, Path), lambda value: [str(value)])


def parse(kind: Any, arguments: list[str], command: str, default: Any = None, *, unknown_too: bool = False) -> Any:
    """Arguments -> the dataclass ``kind``; on wrong use the process leaves with status 2, as every Unix tool.

    With ``unknown_too``, also the list of the arguments that the parser does not know, ``--help`` among them.
    """
    registry = ConstructorRegistry()
    registry.primitive_rule(_path_rule)
    more: dict[str, Any] = {"return_unknown_args": True, "add_help": False} if unknown_too else {}
    try:
        with styled_output() if all(map(str.isprintable, arguments)) else nullcontext():  # tyro repeats what was typed
            prog, config = f"alexnet {command}", (OmitArgPrefixes,)
            return tyro.cli(kind, prog=prog, args=arguments, default=default, config=config, registry=registry, **more)
    except AlexNetError as error:
        raise RecipeError(error.what, error.must, error.todo) from error
