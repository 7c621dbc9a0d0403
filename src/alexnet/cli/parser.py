"""Command lines: parsing, one line for every mistake, and the options that several commands share.

tyro parses; this module changes what it prints. Options without a value of their own show no default, and a mistake
raises :class:`RecipeError` with one line instead of printing a box.
"""

import ast
import dataclasses
import io
import os
import re
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from alexnet.errors import AlexNetError, RecipeError, did_you_mean
from alexnet.recipe import GROUPS, Recipe, help_text
from alexnet.recipe.fields import (
    AugmentationFields,
    DataFields,
    ModelFields,
    OptimizerFields,
    RegularizationFields,
    RuntimeFields,
    ScheduleFields,
)
from alexnet.terminal import styled_output


def _default_hint(default: str) -> str:
    return "" if default in ("None", "False", "True", "", "''") else f"(default: {default})"


def option(
    metavar: str | None = None, *, aliases: tuple[str, ...] = (), name: str | None = None, help: str | None = None
) -> Any:
    """The annotation of an option or argument: the placeholder of its value in the help text, and other names.

    Without ``metavar`` the help text shows the choices. The ``name`` of a nested dataclass is the title of its group.
    """
    return arg(metavar=metavar, aliases=aliases or None, name=name, help=help, help_behavior_hint=_default_hint)


@dataclass(frozen=True)
class Output:
    """Marks an option as the name of a file that is written: an existing file must have been written by alexnet.

    Attributes:
        mark: text in the first kilobyte of every such file.
    """

    mark: str

    def check(self, path: Path) -> None:
        """Raise RecipeError if ``path`` is no regular file, or one that alexnet did not write."""
        try:
            if path.is_dir():
                raise RecipeError(f"{path}: cannot be written (Is a directory)", "a file in a writable folder")
            if not path.exists() or (path.stat().st_size == 0 and path.is_file() and not path.is_symlink()):
                return
            if path.is_file():
                with path.open("rb") as file:
                    if self.mark.encode() in file.read(1024):
                        return
        except OSError as error:
            raise RecipeError(f"{path}: cannot be read ({error.strerror})", "a readable file, or a new one") from error
        raise RecipeError(
            f"{path} exists, and alexnet did not write it as such a file", "a new file", "choose another name"
        )


HTML = Output('<meta name="generator" content="alexnet">')
PNG = Output("Software\0alexnet")
SUGGESTIONS = Output("path,label,score,uncertainty\n")
EXCLUDE_LIST = Output("images that alexnet doctor suggests to exclude")

Flag = Annotated[FlagCreatePairsOff[bool], arg(help_behavior_hint=_default_hint)]  # one option: --x, or --no-x if True


def parse(kind: Any, argv: list[str], command: str, default: Any = None, *, add_help: bool = True) -> Any:
    """Parse ``argv`` into the dataclass ``kind``.

    Args:
        kind: dataclass; its fields are the options, the docstrings of the fields their help.
        argv: arguments behind the name of the command.
        command: the command's name, for the help text and messages.
        default: instance of ``kind`` with the default values.
        add_help: whether ``--help`` prints the help text and exits.

    Raises:
        RecipeError: an option is unknown, or a value is missing or invalid, or an output file is not ours.
        SystemExit: after ``--help``.
    """
    registry = ConstructorRegistry()
    registry.primitive_rule(_path_rule)
    registry.primitive_rule(_number_rule)
    registry.primitive_rule(_text_rule)
    box = io.StringIO()
    try:
        is_printable = all(map(str.isprintable, argv))  # tyro repeats the arguments in its output
        with styled_output() if is_printable else nullcontext(), redirect_stderr(box):
            args, unknown = tyro.cli(
                kind,
                prog=f"alexnet {command}",
                args=argv,
                default=default,
                config=(OmitArgPrefixes, DisallowNone),
                registry=registry,
                return_unknown_args=True,
                add_help=add_help,
            )
    except AlexNetError as error:
        raise RecipeError(error.what, error.must, error.todo) from error
    except SystemExit as error:
        if not error.code:
            raise
        raise RecipeError(_one_line(box.getvalue(), command)) from None
    if unknown:
        raise RecipeError(_unknown_argument(unknown, kind, command))
    for name, hint in get_type_hints(type(args), include_extras=True).items():
        for output in get_args(hint)[1:]:
            if isinstance(output, Output) and (path := getattr(args, name)) is not None:
                output.check(path)
    return args


def _unknown_argument(unknown: list[str], kind: Any, command: str) -> str:
    options = [text for text in unknown if text.startswith("--")]
    if not options:
        return f"unexpected argument {unknown[0]!r}. Run 'alexnet {command} --help' for the arguments"
    name = options[0].partition("=")[0].replace("_", "-")
    hint = did_you_mean(name, list(_option_names(kind)))
    return f"unknown option {name}. " + (
        hint.replace("'", "") if hint.startswith("Did") else f"Run 'alexnet {command} --help' for the options"
    )


def _option_names(kind: Any) -> Iterator[str]:
    """All options of a dataclass, such as --weight-decay, including those of nested dataclasses."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint, extras = hints[field.name], ()
        while get_origin(hint) is Annotated:
            hint, extras = get_args(hint)[0], extras + get_args(hint)[1:]
        if is_dataclass(hint):
            yield from _option_names(hint)
        elif _POSITIONAL not in extras:
            name = field.name.replace("_", "-")
            is_pair = hint is bool and _NO_PAIR not in extras
            if is_pair or not (hint is bool and field.default):
                yield f"--{name}"
            if is_pair or (hint is bool and field.default):
                yield f"--no-{name}"


_POSITIONAL = get_args(Positional[int])[1]
_NO_PAIR = get_args(FlagCreatePairsOff[bool])[1]


def _one_line(box: str, command: str) -> str:
    """The message in the box that tyro prints for a mistake, as one line with a hint."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in box.splitlines()]
    framed = [line.strip("│")[1:].rstrip() for line in lines if line.startswith("│")]
    lines = framed or [line[2:] for line in lines[2:]]  # a stream without UTF-8 gets a title, a rule and indented text
    end = next((i for i, line in enumerate(lines) if line and not line.strip("─- ")), len(lines))
    text = " ".join(" ".join(lines[:end]).split())
    if lines and lines[0].startswith("Missing from"):
        names = [line.strip() for line in lines[1:end] if re.match(r" {4}\S", line)]
        return f"{command} needs {' and '.join(names)}. Run 'alexnet {command} --help' for the arguments"
    if match := re.fullmatch(r"Missing value for argument '(.+?)'.*", text):
        return f"{match[1]} needs a value"
    if match := re.fullmatch(r"invalid choice '(.*)' for argument '(.+?)'. Expected one of (\(.*\)).*", text):
        choices = [str(choice) for choice in ast.literal_eval(match[3]) if choice != "None"]
        name = match[2] if match[2].startswith("-") else match[2].upper()
        return f"{name} is {match[1]!r}. {did_you_mean(match[1], choices)}"
    if match := re.fullmatch(r"Error parsing (\S+): Could not find valid parse for arguments: (\[.*\])", text):
        values = ast.literal_eval(match[2])
        separated = " ".join(" ".join(values).replace(",", " ").split())
        hint = f"Separate the values by spaces: {match[1]} {separated}" if "," in "".join(values) else "Write numbers"
        return f"{match[1]} is {' '.join(values)!r}. {hint}"
    if match := re.fullmatch(r"Error parsing (\S+): no type matching N\|\{auto\} .*? from \['(.*?)'\].*", text):
        return f"{match[1]} is {match[2]!r}: must be an integer or auto"
    if match := re.fullmatch(r"Error parsing (\S+): (.*)", text):
        return f"{match[1]}: {match[2]}"
    return text


def _path_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """``Path``: a local path. An address such as s3://... raises; DATA and stores, which may be one, are ``str``."""
    if info.type is not Path:
        return None

    def parse_path(texts: list[str]) -> Path:
        from alexnet.data.remote import local_path

        return local_path(texts[0])

    return PrimitiveConstructorSpec(
        1, "PATH", parse_path, lambda value: isinstance(value, Path), lambda value: [str(value)]
    )


def _number_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """``int`` and ``float``: N and X in the help text."""
    if info.type not in (int, float):
        return None
    number: type[int] | type[float] = info.type
    article, metavar = ("an integer", "N") if number is int else ("a number", "X")

    def parse_number(texts: list[str]) -> int | float:
        try:
            return number(texts[0])
        except ValueError:
            raise ValueError(f"{texts[0]!r} is not {article}") from None

    def is_instance(value: Any) -> bool:
        return isinstance(value, int if number is int else (int, float)) and not isinstance(value, bool)

    return PrimitiveConstructorSpec(1, metavar, parse_number, is_instance, lambda value: [str(value)])


def _text_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[str] | None:
    """``str``: TEXT in the help text."""
    if info.type is not str:
        return None
    return PrimitiveConstructorSpec(
        1, "TEXT", lambda texts: texts[0], lambda value: isinstance(value, str), lambda value: [value]
    )


if TYPE_CHECKING:
    from alexnet.data.sources.options import DataOptions

KernelMode = Literal["auto", "off"]


@dataclass(frozen=True)
class SourceArguments:
    """Which images are read, and how their classes and groups are found."""

    data_root: Annotated[Path | None, option("DIR")] = None
    """directory with torchvision's data sets (cifar10, mnist, ...)"""
    download: Flag = False
    """download a missing data set of torchvision, or hf:OWNER/NAME"""
    group_column: Annotated[str | None, option("COLUMN")] = None
    """table column (patient, camera, ...) whose images stay in one split"""
    group_pattern: Annotated[str | None, option("REGEX")] = None
    """the same by file name: a regular expression whose parentheses capture the group"""
    exclude: Annotated[Path | None, option("FILE")] = None
    """list of images to leave out, as written by doctor --exclude-list"""
    corrections: Annotated[Path | None, option("FILE")] = None
    """corrected labels, and images to leave out or to add, as written by review"""
    classes: Literal["auto", "top", "leaves"] = "auto"
    """classes of nested folders: the top folders, or every folder that contains images"""
    ignore: Annotated[UseAppendAction[tuple[str, ...]], option("PATTERN")] = ()
    """file or folder to skip, by name or pattern; can be repeated"""
    image_column: Annotated[str | None, option("COLUMN")] = None
    """table column with the image paths (default: path, file_name, ...)"""
    label_column: Annotated[str | None, option("COLUMN")] = None
    """table column with the classes (default: label, class, ...)"""
    delimiter: Annotated[str | None, option("CHAR")] = None
    """column separator of a table: a character, or tab (default: detected)"""


@dataclass(frozen=True)
class DataArguments(SourceArguments):
    """Which images are read, how, and where they are cached."""

    cache: Annotated[Path | None, option("DIR")] = None
    """directory for prepared images and fetched shards (default: ~/.cache/alexnet)"""
    cache_gb: Annotated[float, option("GB")] = 32.0
    """maximum size of the fetched shards of remote stores (s3://...) in the cache"""
    bad: Literal["exclude", "fail"] = "exclude"
    """unusable images: leave them out and list them, or stop at the first"""
    allow_truncated: Flag = False
    """use truncated images, and list them"""


@dataclass(frozen=True)
class ExperimentArguments:
    """Where the results of an experiment are written, and what computes them."""

    output_dir: Annotated[Path | None, option("DIR")] = None
    """directory for all files of the experiment (default: below runs/, named after the command and DATA)"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    json: Flag = False
    """print one JSON object; a plan goes to standard error"""


@dataclass(frozen=True)
class TrainingExperimentArguments(ExperimentArguments):
    """Where the results of an experiment are written, and what computes them."""

    num_workers: Annotated[int, option("N")] = 1
    """data-loading threads (does not affect results)"""


def data_options(args: SourceArguments, *, quiet: bool = False) -> "DataOptions":
    """The data options of a command. Unless ``quiet``, progress and messages go to standard error.

    Also sets the cache directory of remote stores.
    """
    from alexnet.cli.output import Progress, log
    from alexnet.data.sources.layout import LayoutOptions
    from alexnet.data.sources.options import DataOptions

    options = DataOptions(
        data_root=args.data_root,
        download=args.download,
        progress=None if quiet else Progress("preparing"),
        log=None if quiet else log,
        group_column=args.group_column,
        group_pattern=args.group_pattern,
        exclude=args.exclude,
        corrections=args.corrections,
        layout=LayoutOptions(args.classes, args.ignore, args.image_column, args.label_column, args.delimiter),
    )
    if not isinstance(args, DataArguments):
        choose_cache()
        return options
    cache = choose_cache(args.cache, args.cache_gb)
    return replace(options, cache=cache, bad=args.bad, allow_truncated=args.allow_truncated)


def choose_cache(cache: Path | None = None, gigabytes: float = DataArguments.cache_gb) -> Path:
    """Set the cache directory of remote stores to a folder in ``cache``, and return ``cache``.

    The default is ALEXNET_CACHE, else XDG_CACHE_HOME/alexnet, else ~/.cache/alexnet.
    """
    from alexnet.data.cache import Cache, set_default_cache
    from alexnet.system import cache_folder

    if not gigabytes > 0:
        raise RecipeError(f"--cache-gb is {gigabytes}", "above 0")
    if cache is None and (directory := os.environ.get("ALEXNET_CACHE")):
        cache = Path(directory)
    cache = cache or cache_folder()
    set_default_cache(Cache(cache / "remote", int(gigabytes * 1e9)))
    return cache


def no_data(command: str) -> RecipeError:
    """The error for a command without its DATA."""
    return RecipeError(f"{command} needs DATA", "", "pass digits, cifar10, a folder, a table or a store")


_ALIASES = {"lr": ("--learning-rate",)}
# Fields that can be "auto", and what alexnet.train takes then.
_AUTO = {"batch_size": "the largest power of two that memory and data allow"}


def _options(fields: type) -> Any:
    """A dataclass with the fields of a recipe group as options; their help texts are the fields' docstrings."""
    options = []
    for field in dataclasses.fields(fields):
        kind, text, metavar = field.type, help_text()[field.name], None
        if field.name in _AUTO:
            kind, text, metavar = int | Literal["auto"], f"{text}; auto: {_AUTO[field.name]}", "N|auto"
        settings = option(metavar, help=text, aliases=_ALIASES.get(field.name, ()))
        options.append((field.name, Annotated[kind, settings], dataclasses.field(default=field.default)))
    namespace = {"__doc__": fields.__doc__}  # the description below the title
    return dataclasses.make_dataclass(fields.__name__, options, bases=(fields,), namespace=namespace, frozen=True)


if TYPE_CHECKING:
    DataGroup = DataFields
    ModelGroup = ModelFields
    AugmentationGroup = AugmentationFields
    OptimizerGroup = OptimizerFields
    ScheduleGroup = ScheduleFields
    RegularizationGroup = RegularizationFields
    RuntimeGroup = RuntimeFields
else:
    DataGroup, ModelGroup, AugmentationGroup, OptimizerGroup, ScheduleGroup, RegularizationGroup, RuntimeGroup = map(
        _options, GROUPS.values()
    )


@dataclasses.dataclass(frozen=True)
class RecipeOptions:
    """All fields of a recipe but ``recipe``, in their groups. They are checked together by :class:`Recipe` only."""

    data: DataGroup = dataclasses.field(default_factory=DataGroup)
    model: ModelGroup = dataclasses.field(default_factory=ModelGroup)
    augmentation: AugmentationGroup = dataclasses.field(default_factory=AugmentationGroup)
    optimizer: OptimizerGroup = dataclasses.field(default_factory=OptimizerGroup)
    schedule: ScheduleGroup = dataclasses.field(default_factory=ScheduleGroup)
    regularization: RegularizationGroup = dataclasses.field(default_factory=RegularizationGroup)
    runtime: RuntimeGroup = dataclasses.field(default_factory=RuntimeGroup)

    @staticmethod
    def of(recipe: Recipe, **changes: Any) -> "RecipeOptions":
        """The options with the values of ``recipe``; ``changes`` need not be valid values."""
        values, groups = vars(recipe) | changes, vars(RecipeOptions())
        return RecipeOptions(
            **{
                name: dataclasses.replace(group, **{field: values[field] for field in vars(group)})
                for name, group in groups.items()
            }
        )

    def changes(self, base: Recipe) -> dict[str, Any]:
        """The fields whose value differs from ``base``, with that value."""
        values = {name: value for group in vars(self).values() for name, value in vars(group).items()}
        return {name: value for name, value in values.items() if value != getattr(base, name)}
