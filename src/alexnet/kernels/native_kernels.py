"""Compiled kernels: built from the C files beside this one where a C compiler is there, absent where not.

A process that has much to compute builds them (:func:`build`): once on a machine, in some seconds, then they come from
a cache (:mod:`alexnet.kernels.compiler`). Before that, without a compiler (GCC or Clang with OpenMP), or after
``use(False)``,
PyTorch's operations compute the same formulas; the two agree to float32's rounding, not bit for bit. What each saves is
in docs/log.md.

``norm.c`` is the response norm across channels, called from here (on a GPU :mod:`alexnet.kernels.lrn_triton`);
``maps.c`` are pools and the norm across pixels (:mod:`alexnet.kernels.pool`); ``winograd.c`` and ``stem.c`` are
convolutions (:mod:`alexnet.kernels.winograd`, :mod:`alexnet.kernels.first_conv`); ``thin.c`` are fully connected
layers with
weights in bfloat16 (:mod:`alexnet.kernels.linear`). ``lanes.h`` and ``norm.h`` are what they share, ``points.h`` are
the
transforms of ``winograd.c``.
"""

import ctypes
import functools
import importlib.util
import os

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from alexnet.kernels.compiler import Native

_FUNCTIONS = {
    "norm": [f"{dtype}_{way}" for dtype in ("f32", "bf16") for way in ("forward", "backward")],
    "maps": [
        "normed_largest",
        "normed_largest_backward",
        "normed_room",
        *(
            f"{dtype}_{layer}{way}"
            for dtype in ("f32", "bf16")
            for layer in ("largest", "mean", "norm")
            for way in ("", "_backward")
        ),
    ],
    "winograd": ["winograd_forward", "winograd_backward", "winograd_pays"],
    "stem": ["stem_forward", "stem_backward", "stem_room", "stem_pays"],
    "thin": ["thin_product", "thin_long", "thin_room", "thin_pays"],
}
_native = Native("alexnet.kernels", _FUNCTIONS, ("lanes.h", "norm.h", "points.h"))
_MUCH = 5e11  # multiply-adds of answers: those of 700 images of the two-tower network
_MOST_CHANNELS = 8192  # of a row; its buffers lie on the stack
_fewer: bool | None = None

# OpenMP's threads do not exist in the child of a fork, and it would wait for them: it computes in its one thread.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


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
    """Turn the compiled kernels off, or on again where they were built."""
    _native.wanted = wanted


def wanted() -> bool:
    """Has nobody turned the kernels off?"""
    return _native.wanted


def set_winograd(wanted: bool | None) -> bool | None:
    """Compute convolutions by minimal filtering (``winograd.c``) or by PyTorch: a third of the multiplications for a
    few times
    the rounding. None, as at first: in inference mode alone, and where a training's recipe says so. Returns what was
    wanted before."""
    global _fewer
    before, _fewer = _fewer, wanted
    return before


def build() -> bool:
    """Compile the kernels if that was not done; returns whether norms will be computed by them from now on.

    For those who have much to compute (:func:`pays`): the first time on a machine it takes three to five seconds on
    two cores.
    """
    _native.build()
    return in_use()


def load() -> None:
    """Use the kernels if they are compiled already, by any process of this machine: some milliseconds."""
    _native.load()


def worth_compiling(multiply_adds: float) -> bool:
    """Does :func:`build` pay where so many are to be computed for answers?

    Measured (docs/log.md): answers to 700 images one by one, to a thousand together, win back what compiling takes.
    """
    return multiply_adds >= _MUCH


def jit_tracing() -> bool:
    """Does torch.jit.trace, or an ONNX export by it, record operations?"""
    return torch._C._get_tracing_state() is not None


def traced() -> bool:
    """Does PyTorch record or transform operations one by one? Then no autograd function of ours can take part.

    torch.jit.trace and ONNX exports by it record for another program; torch.func and forward mode take derivatives that
    those functions do not have.
    """
    if torch.compiler.is_compiling():
        return False
    if jit_tracing():
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def transformed() -> bool:
    """Is this :func:`traced`, or compiled by torch.compile or torch.export? Then no kernel can take part."""
    return torch.compiler.is_compiling() or traced()


def hooked(module: nn.Module) -> bool:
    """Has somebody registered a hook, of this module or of all, or replaced its ``forward``?"""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    of_all = nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return any(hooks) or of_all or "forward" in vars(module)


def in_use(source: str = "norm") -> bool:
    """Is what ``source`` has computed by it, on this processor? Not where PyTorch records (:func:`transformed`)."""
    if transformed():
        return False
    if source == "winograd":
        return _native.has(source) and (torch.is_inference_mode_enabled() if _fewer is None else _fewer)
    return _native.has(source)


def sources() -> list[str]:
    """What was compiled, by name; nothing after ``use(False)``."""
    return [name for name in _native.built if _native.has(name)]


def plain(tensor: Tensor) -> bool:
    """Has this tensor numbers in a processor's memory? Those that an exporter traces with have none."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu"


def fits(rows: Tensor) -> bool:
    """Will the kernel compute these rows? Float32 or bfloat16 in a processor's memory, and it is in use."""
    return in_use() and plain(rows) and rows.dtype in NAMES and rows.shape[1] <= _MOST_CHANNELS


def fits_gpu(rows: Tensor) -> bool:
    """Will Triton compute these rows? In a GPU's memory, where PyTorch brought Triton along."""
    ours = type(rows) is Tensor and rows.device.type == "cuda" and rows.dtype in (*NAMES, torch.float16)
    return _native.wanted and ours and _triton_is_there() and not transformed()


@functools.cache
def _triton_is_there() -> bool:
    return importlib.util.find_spec("triton") is not None


def forward(rows: Tensor, size: int, weight: float, k: float, beta: float) -> tuple[Tensor, Tensor]:
    """Rows [R, C] -> normalized rows and the sums in float32, both [R, C]. See ``norm.c``."""
    rows = rows.contiguous()
    out, sums = torch.empty_like(rows), torch.empty_like(rows, dtype=torch.float32)
    function("norm", f"{NAMES[rows.dtype]}_forward")(
        at(rows),
        at(out),
        at(sums),
        ctypes.c_int64(rows.shape[0]),
        rows.shape[1],
        size,
        ctypes.c_float(weight),
        ctypes.c_float(k),
        ctypes.c_float(beta),
    )
    return out, sums


def backward(rows: Tensor, sums: Tensor, grad: Tensor, size: int, weight: float, beta: float) -> Tensor:
    """The gradient by the rows [R, C], from the one by the normalized rows."""
    rows, grad = rows.contiguous(), grad.to(rows.dtype).contiguous()
    out = torch.empty_like(rows)
    function("norm", f"{NAMES[rows.dtype]}_backward")(
        at(rows),
        at(sums),
        at(grad),
        at(out),
        ctypes.c_int64(rows.shape[0]),
        rows.shape[1],
        size,
        ctypes.c_float(weight),
        ctypes.c_float(beta),
    )
    return out


NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def library(source: str) -> ctypes.CDLL:
    """What ``source`` was compiled to."""
    return _native.built[source]


def function(source: str, name: str) -> "ctypes._NamedFuncPointer":
    """The function ``name`` of ``source``, which returns nothing."""
    value: ctypes._NamedFuncPointer = _native.built[source][name]
    value.restype = None
    return value


def at(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's numbers lie; C's NULL for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
