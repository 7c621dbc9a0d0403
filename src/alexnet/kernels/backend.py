"""The switchboard of the fast implementations: what each computes, when it is used, and its on/off switch.

Every fast implementation has a reference implementation (PyTorch, NumPy or Pillow) that computes the same.
"""

import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from alexnet.errors import ModelError, RecipeError, did_you_mean

if TYPE_CHECKING:  # the switches are used by processes that need no PyTorch, which takes 300 MB and seconds to import
    import torch
    from torch import Tensor, nn


_Filters = TypeVar("_Filters")


def is_jit_tracing() -> bool:
    """Whether torch.jit.trace, or an ONNX export by it, records operations."""
    import torch

    return torch._C._get_tracing_state() is not None


def is_traced() -> bool:
    """Whether PyTorch records or transforms operations one by one, which excludes our autograd functions.

    torch.jit.trace, ONNX exports by it and make_fx record operations for another program, dispatch modes count or log
    them; torch.func and forward-mode differentiation take derivatives that our autograd functions do not define.
    """
    import torch
    from torch.autograd import forward_ad

    if torch.compiler.is_compiling():
        return False
    if is_jit_tracing() or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        return True
    if torch._C._len_torch_dispatch_stack() > 0:  # such as torch.utils.flop_counter.FlopCounterMode
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_traced_or_compiled() -> bool:
    """Whether :func:`is_traced`, or torch.compile or torch.export reads the code: no native kernel can be used."""
    import torch

    return torch.compiler.is_compiling() or is_traced()


def has_hooks(module: "nn.Module") -> bool:
    """Whether a hook is registered for this module or for all modules, or its ``forward`` is replaced."""
    from torch import nn

    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    of_all = nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return any(hooks) or of_all or "forward" in vars(module)


def is_differentiated_again() -> bool:
    """Within a backward pass: whether its gradient is to be differentiated (``create_graph=True``)."""
    import torch

    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the ``backward`` of a kernel: a backward pass that will be differentiated itself is refused.

    PyTorch's ``once_differentiable`` leaves out what goes through the kernel, without an error, where
    ``torch.autograd.grad`` or ``torch.autograd.functional`` asks for the derivatives of certain tensors.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:
        if is_differentiated_again():
            problem = "the fast implementations have no second derivatives (create_graph=True)"
            raise ModelError(problem, "", "compute inside of `with alexnet.kernels.disabled():`")
        return backward(ctx, *grads)

    return checked


def bf16_is_faster(device: "torch.device") -> bool:
    """Whether the device multiplies bfloat16 faster than float32, by its capabilities and without measuring time.

    GPUs: wherever they support it. CPUs: with AMX, or AMD's AVX-512 (measured: 2.0 times float32). Intel's AVX-512
    bf16 without AMX is slower than float32 (measured: 27 against 43 images/s).
    """
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    cpu = torch.cpu.get_capabilities()
    return bool(cpu.get("amx_bf16") or (cpu.get("avx512_bf16") and str(cpu.get("cpu_name", "")).startswith("AMD")))


def has_amx() -> bool:
    """Whether the CPU multiplies tiles of bfloat16 (AMX)."""
    import torch

    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def computes_in_float32(*tensors: "Tensor") -> bool:
    """Whether these tensors are to be multiplied in float32: as float32, or under an autocast to bfloat16.

    Autocast rounds a layer's inputs, weights and outputs to bfloat16. Products of bfloat16 numbers are exact in
    float32, and both ways sum in float32, so the native convolutions can compute what autocast defines with float32
    instructions. PyTorch's own bfloat16 multiplications are the reference implementation.
    """
    import torch

    if not torch.is_autocast_enabled("cpu"):
        return all(tensor.dtype == torch.float32 for tensor in tensors)
    if torch.get_autocast_dtype("cpu") != torch.bfloat16 or bf16_is_faster(torch.device("cpu")):
        return False
    return all(tensor.dtype in (torch.float32, torch.bfloat16) for tensor in tensors)


def apply(
    function: "Callable[..., Tensor]", input: "Tensor", weight: "Tensor", bias: "Tensor | None", *args: Any
) -> "Tensor":
    """``function(input, weight, bias, *args)``; under autocast with rounded tensors, and a bfloat16 result."""
    import torch

    if not torch.is_autocast_enabled("cpu"):
        return function(input, weight, bias, *args)
    with torch.autocast("cpu", enabled=False):
        rounded_bias = None if bias is None else _rounded(bias)
        return function(_rounded(input), _rounded(weight), rounded_bias, *args).to(torch.bfloat16)


class FilterCache:
    """The reordered weights of a layer in inference, kept between calls.

    They are reordered again when PyTorch counts a change of the weights, or when the weights are another tensor. A
    change through ``weight.data`` is not noticed, so networks in training must not use a cache. A copy of a cache is
    empty.
    """

    _MAX_FORMS = 16

    def __init__(self) -> None:
        self._filters: dict[Hashable, tuple[Tensor, tuple[int, int], Any]] = {}

    def get(self, weight: "Tensor", form: Hashable, reorder: "Callable[[Tensor], _Filters]") -> "_Filters":
        """``reorder(weight)``, computed once for each ``form``; the oldest of many forms are forgotten."""
        version = weight.data_ptr(), 0 if weight.is_inference() else weight._version
        entry = self._filters.get(form)
        if entry is None or entry[0] is not weight or entry[1] != version:  # a race of two threads is harmless
            if len(self._filters) >= self._MAX_FORMS:
                self._filters.pop(next(iter(list(self._filters))), None)
            entry = self._filters[form] = weight, version, reorder(weight)
        filters: _Filters = entry[2]
        return filters

    def __reduce__(self) -> "tuple[type[FilterCache], tuple[()]]":
        return FilterCache, ()


def _rounded(tensor: "Tensor") -> "Tensor":
    import torch

    return tensor.to(torch.bfloat16).float()


Mode = Literal["auto", "always", "off"]


@dataclass(frozen=True)
class Kernel:
    """One fast implementation."""

    name: str
    file: str
    """where it is implemented, relative to the package ``alexnet``"""
    computes: str
    used_when: str
    """the condition under which mode "auto" uses it (``--convolution winograd`` sets the mode "always")"""
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
            f"{_NATIVE}, with AVX2 or AVX-512; the input needs no gradient",
            "torch.nn.functional.conv2d",
        ),
        Kernel(
            "winograd",
            "kernels/winograd.c",
            "3×3 and 5×5 convolutions of stride 1 by Winograd's algorithm",
            f"{_NATIVE}, with AVX2 or AVX-512: in inference mode, and in training with --convolution winograd",
            "torch.nn.functional.conv2d",
        ),
        Kernel(
            "linear",
            "kernels/linear.c",
            "fully connected layers for inference: bfloat16 weights, or up to 4 rows with float32 weights",
            f"{_NATIVE}, with AVX2 or AVX-512; no gradient",
            "torch.nn.functional.linear",
        ),
        Kernel(
            "linear_f32",
            "kernels/linear_f32.c",
            "large fully connected layers in float32, from 5 rows on, and their gradients",
            f"{_NATIVE}, with AVX2 and without AVX-512",
            "torch.nn.functional.linear",
        ),
        Kernel(
            "linear_amx",
            "kernels/linear_amx.c",
            "gradients of fully connected weights in bfloat16 training, and no cast of the weights per step",
            f"{_NATIVE}, with AMX, precision bf16",
            "torch.nn.functional.linear",
        ),
        Kernel(
            "optimizer",
            "kernels/optimizer.c",
            "gradient norm, clipping, update and bfloat16 copy of the weights in one pass (SGD, AdamW)",
            f"{_NATIVE}, precision bf16",
            "torch.optim",
        ),
        Kernel(
            "space_to_depth",
            "kernels/first_conv.py",
            "a first convolution with a stride, as a convolution of stride 1 on blocks of pixels",
            "GPU, and bfloat16 on a CPU with AMX; the input needs no gradient",
            "torch.nn.functional.conv2d",
        ),
        Kernel(
            "onednn",
            "kernels/onednn.py",
            "convolutions and fully connected layers in bfloat16 for inference, with weights that are reordered once",
            "CPU with AMX; no gradient",
            "torch.nn.functional.conv2d and linear: the same bits",
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
            "loader/loader.py",
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
            raise RecipeError(f"unknown kernel {name!r}", todo=did_you_mean(name, KERNELS))
    return names or tuple(KERNELS)
