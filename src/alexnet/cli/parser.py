"""Parsing of command lines: arguments to a dataclass of options."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from alexnet.errors import AlexNetError, RecipeError
from alexnet.terminal import styled_output


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


def _path_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """How a ``Path`` is parsed: as it is typed, but never from an address. DATA and stores are of type ``str``."""
    if info.type is not Path:
        return None

    def path(texts: list[str]) -> Path:
        from alexnet.data.remote import local_path

        return local_path(texts[0])

    return PrimitiveConstructorSpec(1, "PATH", path, lambda value: isinstance(value, Path), lambda value: [str(value)])
