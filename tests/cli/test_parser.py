"""An address (``s3://…``) on the command line: taken as it is typed where a store may be, refused as it is typed
elsewhere."""

import dataclasses
import importlib
import os
import pkgutil
import re
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import pytest
from tyro.conf import Positional

from alexnet import cli
from alexnet.cli import parser
from alexnet.cli import parser as options
from alexnet.cli.review import _write
from alexnet.doctor.findings import Report, page
from alexnet.errors import RecipeError
from alexnet.plots import canvas

ADDRESS = "s3://bucket/folder/x"
MODULES = [importlib.import_module(one.name) for one in pkgutil.walk_packages(cli.__path__, "alexnet.cli.")]
PARTS = (
    options.SourceArguments,
    options.DataArguments,
    options.ExperimentArguments,
    options.TrainingExperimentArguments,
)
POSITIONAL = get_args(Positional[int])[1]
KINDS = {
    kind
    for module in MODULES
    for name, kind in vars(module).items()
    if name.endswith("Arguments") and dataclasses.is_dataclass(kind) and kind not in PARTS
}


def leaves(kind):
    """(name on the command line, plain type, positional, required) of every field, those of nested dataclasses too."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, extras = hints[field.name], ()
        while get_origin(hint) is Annotated:
            hint, extras = get_args(hint)[0], extras + get_args(hint)[1:]
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint)
        else:
            required = field.default is field.default_factory is dataclasses.MISSING
            name = next((extra.name for extra in extras if getattr(extra, "name", None)), field.name)
            yield name, hint, POSITIONAL in extras, required


def mentions(hint, kind):
    return hint is kind or any(mentions(part, kind) for part in get_args(hint) if get_origin(hint) is not Literal)


def argv(kind, name):
    """A command line with the address as the value of ``name``, and something for all that is required."""
    before, after = [], []
    for one, hint, positional, required in leaves(kind):
        value = get_args(hint)[0] if get_origin(hint) is Literal else "x"
        if one == name:
            after += [] if positional else [f"--{name.replace('_', '-')}", ADDRESS]
            before += [ADDRESS] if positional else []
        elif positional and required:
            before.append(value)
    return [*before, *after]


def values(args):
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        yield from values(value) if dataclasses.is_dataclass(value) else [value]


CASES = [
    pytest.param(kind, name, hint, id=f"{kind.__name__}-{name}")
    for kind in sorted(KINDS, key=lambda kind: kind.__name__)
    for name, hint, _, _ in leaves(kind)
    if mentions(hint, str) or mentions(hint, Path)
]


def test_every_command_with_paths_is_here():
    assert len(KINDS) >= 20 and len(CASES) > 100


@pytest.mark.parametrize(("kind", "name", "hint"), CASES)
def test_an_address_is_taken_or_refused_as_it_is_typed(kind, name, hint):
    words = argv(kind, name)
    if mentions(hint, Path):
        assert name not in ("data", "store"), "DATA and stores may be at an address: type str"
        with pytest.raises(RecipeError, match=f"{re.escape(ADDRESS)}: is an address"):
            parser.parse(kind, words, "command")
    else:
        args = parser.parse(kind, words, "command")
        assert any(value == ADDRESS or value == (ADDRESS,) for value in values(args)), args
    if mentions(hint, Path):
        words[words.index(ADDRESS)] = "here/x"
        args = parser.parse(kind, words, "command")
        assert any(value in (Path("here/x"), (Path("here/x"),)) for value in values(args)), args


OUTPUTS = [
    (kind, field.name, mark)
    for kind in sorted(KINDS, key=lambda kind: kind.__name__)
    for field in dataclasses.fields(kind)
    for mark in get_args(get_type_hints(kind, include_extras=True)[field.name])[1:]
    if isinstance(mark, parser.Output)
]


@pytest.mark.parametrize(("kind", "name", "mark"), OUTPUTS)
def test_an_output_replaces_only_files_of_the_same_kind_by_alexnet(kind, name, mark, tmp_path):
    def parse(path):
        words = argv(kind, name)
        words[words.index(ADDRESS)] = str(path)
        return parser.parse(kind, words, "command")

    thesis, link, fifo, page = (tmp_path / one for one in ("thesis", "link", "fifo", "page"))
    thesis.write_text("path,label\na.png,cat\n")
    link.symlink_to("/dev/null")
    os.mkfifo(fifo)
    for path in (thesis, link, fifo, Path("/dev/null")):
        with pytest.raises(RecipeError, match="alexnet did not write it"):
            parse(path)
    with pytest.raises(RecipeError, match="Is a directory"):
        parse(tmp_path)
    for text in ("", f"<!doctype html>{mark.mark}and more"):
        page.write_text(text)
        parse(page)
    parse(tmp_path / "new")


def test_every_output_file_has_a_mark():
    assert {(kind.__name__.removesuffix("Arguments"), name) for kind, name, _ in OUTPUTS} == {
        ("Bench", "chart"),
        ("Compare", "html"),
        ("Doctor", "exclude_list"),
        ("Doctor", "html"),
        ("Layers", "plot"),
        ("LRFind", "output"),
        ("Monitor", "html"),
        ("Plot", "output"),
        ("Report", "output"),
        ("Suggest", "output"),
    }


def test_the_files_of_alexnet_have_their_marks(tmp_path):
    report = Report("x" * 200, ("a", "b"), {}, False, ())
    _write(tmp_path / "list.csv", [])
    path = canvas.save(canvas.new_figure(1, 1), tmp_path / "plot.png")
    assert parser.HTML.mark in page(report, {})[:1024]
    assert parser.EXCLUDE_LIST.mark in report.exclusion_list()[:1024]
    assert parser.SUGGESTIONS.mark == (tmp_path / "list.csv").read_text()
    assert parser.PNG.mark.encode() in path.read_bytes()[:1024]
