"""The switchboard of the fast implementations: what each computes, when it is used, and its on/off switch.

Every fast implementation has a reference implementation (PyTorch, NumPy or Pillow) that computes the same.
"""

import difflib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

from alexnet.errors import RecipeError

Mode = Literal["auto", "always", "off"]


@dataclass(frozen=True)
class Kernel:
    """One fast implementation."""

    name: str
    file: str
    """where it is implemented, relative to the package ``alexnet``"""
    computes: str
    used_when: str
    """the condition under which mode "auto" uses it"""
    reference: str
    """what computes the same without it"""


_NATIVE = "CPU, once compiled"

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Kernel(
            "lrn",
            "kernels/lrn.c",
            "local response normalization across channels",
            _NATIVE,
            "PyTorch operations (kernels/lrn.py)",
        ),
        Kernel(
            "lrn_triton",
            "kernels/lrn_triton.py",
            "local response normalization across channels",
            "GPU, where Triton is installed",
            "PyTorch operations (kernels/lrn.py)",
        ),
        Kernel(
            "pool_norm",
            "kernels/pool_norm.c",
            "max and average pooling, normalization across pixels, LRN fused with the max pool after it",
            f"{_NATIVE}; channels a multiple of 16",
            "PyTorch operations (models/layers.py)",
        ),
        Kernel(
            "first_conv",
            "kernels/first_conv.c",
            "a convolution of up to 4 input channels, fused with the ReLU, LRN and max pool after it",
            f"{_NATIVE}, with AVX-512; the input needs no gradient",
            "torch.nn.functional.conv2d",
        ),
        Kernel(
            "winograd",
            "kernels/winograd.c",
            "3×3 and 5×5 convolutions of stride 1 by Winograd's algorithm",
            f"{_NATIVE}, with AVX-512: in inference mode, and in training with --convolution winograd",
            "torch.nn.functional.conv2d",
        ),
        Kernel(
            "linear",
            "kernels/linear.c",
            "fully connected layers for inference: bfloat16 weights, or up to 4 rows with float32 weights",
            f"{_NATIVE}, with AVX-512; no gradient",
            "torch.nn.functional.linear",
        ),
        Kernel(
            "space_to_depth",
            "kernels/space_to_depth.py",
            "a first convolution with a stride, as a convolution of stride 1 on blocks of pixels",
            "GPU; the input needs no gradient",
            "torch.nn.functional.conv2d",
        ),
        Kernel(
            "resize",
            "kernels/resize.c",
            "bilinear resizing with antialiasing",
            f"{_NATIVE}: from 64 images on",
            "Pillow: the same bits",
        ),
        Kernel(
            "simplejpeg",
            "data/simplejpeg_decoder.py",
            "JPEG decoding",
            "CPU, where simplejpeg is installed and its first images equal Pillow's",
            "Pillow: the same bits",
        ),
        Kernel(
            "gpu_cache",
            "loader/gpu_cache.py",
            "random crops and mirrors, cut on the GPU from a split that is stored there",
            "GPU, where the split fits into 40 % of the free memory",
            "the data loader on the CPU: the same bits",
        ),
    )
}
"""Every fast implementation by name."""

_modes: dict[str, Mode] = {}  # "auto" where a name is missing


def use(mode: Mode, *names: str) -> None:
    """Set the mode of the named fast implementations, or of all.

    Args:
        mode: "auto": use it under its own condition (``Kernel.used_when``); "off": never; "always": wherever the
            hardware and the input allow it, which differs from "auto" for ``winograd`` and ``space_to_depth`` only.
        names: Keys of :data:`KERNELS`; none means all of them.

    Raises:
        RecipeError: A name is unknown.
    """
    for name in _checked(names):
        _modes[name] = mode


@contextmanager
def using(mode: Mode, *names: str) -> Iterator[None]:
    """As :func:`use`, inside a ``with`` block. The modes of before are restored at its end."""
    before = {name: mode_of(name) for name in _checked(names)}
    use(mode, *names)
    try:
        yield
    finally:
        _modes.update(before)


def disabled(*names: str) -> AbstractContextManager[None]:
    """``with disabled():`` computes by the reference implementations; with names, by those of the named ones."""
    return using("off", *names)


def mode_of(name: str) -> Mode:
    """The mode of one fast implementation."""
    _checked((name,))
    return _modes.get(name, "auto")


def enabled(name: str) -> bool:
    """Whether one fast implementation is not off."""
    return mode_of(name) != "off"


def _checked(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in KERNELS:
            close = difflib.get_close_matches(name, KERNELS, 1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known kernels: {', '.join(KERNELS)}"
            raise RecipeError(f"unknown kernel {name!r}", todo=hint)
    return names or tuple(KERNELS)
