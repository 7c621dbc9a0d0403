"""The AlexNet of 2012, trained on any images.

Importing this package is fast: a public name is imported when it is first used. ``__init__.pyi`` lists the names.
"""

import os
from typing import Any

import lazy_loader

_getattr, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if os.name != "posix":
        raise ImportError(f"operating system {os.name!r} is not supported; use Linux, on Windows by WSL 2")
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("alexnet")
        except PackageNotFoundError:  # the source on Python's path, not installed
            return "unknown"
    return _getattr(name)
