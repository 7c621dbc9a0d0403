"""Whether PyTorch records, transforms or observes operations, so that kernels and fused layers must not be used."""

import torch
from torch import nn
from torch.autograd import forward_ad


def is_jit_tracing() -> bool:
    """Whether torch.jit.trace, or an ONNX export by it, records operations."""
    return torch._C._get_tracing_state() is not None


def is_traced() -> bool:
    """Whether PyTorch records or transforms operations one by one, which excludes our autograd functions.

    torch.jit.trace and ONNX exports by it record operations for another program; torch.func and forward-mode
    differentiation take derivatives that our autograd functions do not define.
    """
    if torch.compiler.is_compiling():
        return False
    if is_jit_tracing():
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_traced_or_compiled() -> bool:
    """Whether :func:`is_traced`, or torch.compile or torch.export reads the code: no native kernel can be used."""
    return torch.compiler.is_compiling() or is_traced()


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook is registered for this module or for all modules, or its ``forward`` is replaced."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    of_all = nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return any(hooks) or of_all or "forward" in vars(module)
