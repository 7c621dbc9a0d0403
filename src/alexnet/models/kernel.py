"""The compiled response norm: built from ``norm.c`` where a C compiler is there, absent where not.

One pass over memory instead of some ten: what it saves is in docs/log.md. Nothing is kept on disk: a process that
has much to compute builds it (:func:`build`), in about half a second. Before that, without a compiler (GCC or Clang
with OpenMP), or after ``use(False)``, :class:`alexnet.models.layers.ResponseNorm` computes the same formula by
PyTorch's operations; the two agree to float32's rounding, not bit for bit.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

_FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC", "-lm"]
_MOST_CHANNELS = 8192  # of a row; its buffers lie on the stack
_wanted = True
_built: list[ctypes.CDLL] = []  # one, once :func:`build` succeeded


def settle_vector_math() -> None:
    """Call each vector function of Intel's MKL once, in one thread, before threads may do it together.

    MKL chooses its code at a function's first call. Where several threads make that call at once, one of them may get
    code for half of the digits, for this call only (pytorch/pytorch#188792): ``torch.sqrt`` was seen with errors of
    2e-4 in one process of twenty. What is random like that can not be repeated bit for bit.
    """
    for function in (torch.sqrt, torch.exp, torch.log, torch.log1p, torch.tanh, torch.sigmoid, torch.erf):
        for dtype in (torch.float32, torch.float64):
            function(torch.ones(1, dtype=dtype))


def use(wanted: bool) -> None:
    """Turn the compiled norm off, or on again where it was built."""
    global _wanted
    _wanted = wanted


def build() -> bool:
    """Compile the kernel if that was not done; returns whether norms will be computed by it from now on.

    For those who have much to compute: it takes about half a second.
    """
    library = _compiled()
    if library is not None and not _built:
        _built.append(library)
    return in_use()


def in_use() -> bool:
    """Are norms on this processor computed by the compiled kernel?"""
    return _wanted and bool(_built)


def fits(rows: Tensor) -> bool:
    """Will the kernel compute these rows? Float32 or bfloat16 in a processor's memory, and it is in use."""
    return in_use() and rows.device.type == "cpu" and rows.dtype in _NAMES and rows.shape[1] <= _MOST_CHANNELS


def forward(rows: Tensor, size: int, weight: float, k: float, beta: float) -> tuple[Tensor, Tensor]:
    """Rows [R, C] -> normalized rows and the sums in float32, both [R, C]. See ``norm.c``."""
    rows = rows.contiguous()
    out, sums = torch.empty_like(rows), torch.empty_like(rows, dtype=torch.float32)
    _function(rows, "forward")(
        _at(rows), _at(out), _at(sums), ctypes.c_int64(rows.shape[0]), rows.shape[1], size,
        ctypes.c_float(weight), ctypes.c_float(k), ctypes.c_float(beta),
    )  # fmt: skip
    return out, sums


def backward(rows: Tensor, sums: Tensor, grad: Tensor, size: int, weight: float, beta: float) -> Tensor:
    """The gradient by the rows [R, C], from the one by the normalized rows."""
    rows, grad = rows.contiguous(), grad.to(rows.dtype).contiguous()
    out = torch.empty_like(rows)
    _function(rows, "backward")(
        _at(rows), _at(sums), _at(grad), _at(out), ctypes.c_int64(rows.shape[0]), rows.shape[1], size,
        ctypes.c_float(weight), ctypes.c_float(beta),
    )  # fmt: skip
    return out


_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def _function(rows: Tensor, direction: str) -> "ctypes._NamedFuncPointer":
    function: ctypes._NamedFuncPointer = _built[0][f"{_NAMES[rows.dtype]}_{direction}"]
    function.restype = None
    return function


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@functools.cache
def _compiled() -> ctypes.CDLL | None:
    """``norm.c`` compiled and loaded; None where that fails, for whatever reason."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    source = resources.files("alexnet.models").joinpath("norm.c").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="alexnet-") as folder:
        built = Path(folder, "norm.so")
        command = [compiler, "-x", "c", "-", *_FLAGS, "-o", str(built)]
        try:
            subprocess.run(command, input=source.encode(), capture_output=True, timeout=60, check=True)
            return ctypes.CDLL(str(built))
        except (OSError, subprocess.SubprocessError):
            return None
