"""The native kernels of networks: C files in this folder, compiled on this machine and loaded with ctypes.

:func:`build` compiles them once per machine, in a few seconds; later processes load them from a cache
(:mod:`alexnet.kernels.compiler`). Without a C compiler (GCC or Clang with OpenMP), before :func:`build`, or after
``kernels.use("off")``, PyTorch operations compute the same formulas. Results agree to float32 rounding, not bit for
bit. :data:`alexnet.kernels.KERNELS` lists the kernels, docs/performance.md what each of them saves.
"""

import ctypes
import os

import torch
from torch import Tensor

from alexnet.kernels import backend, compiler
from alexnet.kernels.backend import is_traced_or_compiled
from alexnet.kernels.compiler import NativeLibraries

_FUNCTIONS = {
    "lrn": [f"lrn_{dtype}_{direction}" for dtype in ("f32", "bf16") for direction in ("forward", "backward")],
    "pool_norm": [
        "lrn_max_pool_scratch_size",
        *(
            f"{layer}_{dtype}{direction}"
            for dtype in ("f32", "bf16")
            for layer in ("max_pool", "avg_pool", "spatial_norm", "lrn_max_pool")
            for direction in ("", "_backward")
        ),
    ],
    "winograd": ["winograd_forward", "winograd_backward", "winograd_is_fast"],
    "first_conv": [
        "first_conv_forward",
        "first_conv_backward",
        "first_conv_scratch_size",
        "first_conv_is_fast",
        "blocks_f32",
        "blocks_bf16",
    ],
    "linear_amx": ["linear_amx_weight_gradient", "linear_amx_scratch_size", "linear_amx_is_fast"],
    "optimizer": [f"{rule}_{dtype}" for rule in ("sum_squares", "sgd", "adamw") for dtype in ("f32", "bf16")],
    "linear_f32": [
        "linear_f32_forward",
        "linear_f32_input_gradient",
        "linear_f32_weight_gradient",
        "linear_f32_scratch_size",
        "linear_f32_is_fast",
    ],
    "linear": ["linear_bf16", "linear_few_rows", "linear_scratch_size", "linear_is_fast"],
}
_libraries = NativeLibraries("alexnet.kernels", _FUNCTIONS)
_WORTH_COMPILING = 5e11  # multiply-adds of predictions: 700 images of the two-tower network

DTYPE_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""Data types that the kernels take, and their names in C functions."""

# OpenMP's threads do not exist in the child of a fork, and it would wait for them: it computes in its one thread.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def warm_up_vector_math() -> None:
    """Call each vector function of Intel's MKL once in one thread, before several threads may call it at once.

    MKL selects its code at the first call of a function. If several threads make that call at once, one of them may
    get code of half precision for this call (pytorch/pytorch#188792): ``torch.sqrt`` was seen with errors of 2e-4 in
    one process of twenty, which breaks bit-exact reproducibility.
    """
    for function in (torch.sqrt, torch.exp, torch.log, torch.log1p, torch.tanh, torch.sigmoid, torch.erf):
        for dtype in (torch.float32, torch.float64):
            function(torch.ones(1, dtype=dtype))


def build() -> bool:
    """Load or compile the kernels unless that is done; returns whether they are in use from now on.

    Without precompiled libraries the first call on a machine takes three to five seconds on two cores. See
    :func:`worth_compiling`.
    """
    _libraries.build()
    return in_use()


def load() -> None:
    """Use the kernels if any process of this machine has compiled them already: takes milliseconds."""
    _libraries.load()


def why_not() -> str:
    """After :func:`build`: the reason why no kernel is in use; empty if one is."""
    if built():
        return ""
    if _libraries.built:
        return "turned off"
    level = compiler.supported_level()
    lacking = "this processor" if level is None else f"processors with {level.name}"
    return f"no precompiled kernels for {lacking}, and no working C compiler (GCC or Clang with OpenMP)"


def worth_compiling(multiply_adds: float) -> bool:
    """Whether predictions of so many multiply-adds save more time than :func:`build` takes.

    Measured (docs/performance.md): 700 images one by one, or a thousand together.
    """
    return multiply_adds >= _WORTH_COMPILING


def in_use(name: str = "lrn") -> bool:
    """Whether the kernel ``name`` is compiled, enabled, and not excluded by a PyTorch transformation.

    Winograd convolutions in mode "auto" are used in inference mode only.
    """
    if is_traced_or_compiled() or not _libraries.has(name):
        return False
    return name != "winograd" or backend.mode_of(name) == "always" or torch.is_inference_mode_enabled()


def built() -> list[str]:
    """Names of the kernels that are compiled and enabled."""
    return [name for name in _libraries.built if _libraries.has(name)]


def is_cpu_tensor(tensor: Tensor) -> bool:
    """Whether the tensor is a plain one with values in CPU memory, unlike those that exporters trace with."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu"


def library(name: str) -> ctypes.CDLL:
    """The compiled library of the kernel ``name``."""
    return _libraries.built[name]


def function(name: str, symbol: str) -> "ctypes._NamedFuncPointer":
    """The C function ``symbol`` of the kernel ``name``; it returns nothing."""
    value: ctypes._NamedFuncPointer = _libraries.built[name][symbol]
    value.restype = None
    return value


def is_fast(name: str) -> bool:
    """Whether this processor has the registers that the kernel needs to be faster than PyTorch."""
    return bool(getattr(_libraries.built[name], f"{name}_is_fast")())


def scratch_size(name: str, symbol: str, shape: ctypes.Structure) -> int:
    """float32 values of the working memory that the C function ``symbol`` asks for."""
    size = _libraries.built[name][symbol]
    size.restype = ctypes.c_int64
    return int(size(ctypes.byref(shape)))


class LinearShape(ctypes.Structure):
    """``Shape`` of ``linear.c``, ``linear_amx.c`` and ``linear_f32.c``."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "features", "outputs", "threads")]


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """The address of a tensor's values; NULL for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
