"""Tensors of a bundle's files, float32 by name."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from alexnet.errors import BundleError
from alexnet.models.network import nonfinite


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` to ``path`` as float32 (safetensors)."""
    from safetensors.torch import save

    path.write_bytes(save({name: t.detach().float().cpu().contiguous() for name, t in tensors.items()}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors, each copied and its pages of the file let go before the next, the largest first.

    Raises :class:`BundleError` for a damaged file, and for one with values that are not finite.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            sizes = {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        found = {}
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            with safe_open(path, "pt") as file:
                found[name] = file.get_tensor(name).clone()
    except SafetensorError as error:
        raise BundleError(f"{path} is damaged: {error}", "", "use another copy") from error
    if name := nonfinite(found):
        raise BundleError(f"{path} is damaged: {name} has values that are NaN or Inf", "", "use another copy")
    return found
