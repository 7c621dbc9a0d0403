"""Settings of the process before training: memory allocation, denormal numbers, precision, compilation, signals."""

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from alexnet import kernels
from alexnet.errors import Interrupted
from alexnet.kernels import backend, winograd
from alexnet.recipe import Recipe

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


@contextmanager
def cpu_settings(recipe: Recipe | None = None, *, one_thread: bool = False) -> Iterator[None]:
    """Keep freed memory for the next step, treat denormal numbers as zero, and convolve as ``recipe`` says.

    glibc returns the buffers of a step to the system and allocates them again in the next: 28.7 against 41.3 images/s
    (two-tower network, batch 64, float32, 2 cores). Denormal numbers, which gradients of well-learned images are
    full of, make a matrix product up to 140 times slower (4046 against 29 ms). Worker threads take over the setting
    when they are created, at the first parallel operation; in the calling thread it is restored at the end.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    before, threads = float(torch.tensor(1e-40) * 1.0) == 0.0, torch.get_num_threads()
    torch.set_flush_denormal(True)
    if one_thread:
        torch.set_num_threads(1)
    try:
        with _winograd_mode(recipe):
            yield
    finally:
        torch.set_flush_denormal(before)
        torch.set_num_threads(threads)


def _winograd_mode(recipe: Recipe | None) -> AbstractContextManager[None]:
    """Use Winograd convolutions if the recipe selects them, unless the user has turned them off."""
    if not kernels.enabled("winograd"):
        return nullcontext()
    if recipe is None:
        return kernels.using("auto", "winograd")
    return kernels.using("always" if recipe.convolution == "winograd" else "off", "winograd")


def inference_settings() -> AbstractContextManager[None]:
    """Convolve as inference does outside of training, by Winograd where it is faster, whatever the recipe says."""
    return _winograd_mode(None)


def choose_precision(wanted: str, device: torch.device) -> str:
    """The precision that ``auto`` selects: bf16 if the processor or GPU multiplies it faster than float32.

    The type of the processor decides, not a timing, so that a run is repeatable.
    """
    if wanted != "auto":
        return wanted
    return "bf16" if backend.bf16_is_faster(device) else "fp32"


def resolve_auto(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with its ``auto`` values resolved: precision by :func:`choose_precision`, and convolution.

    Winograd convolutions are selected if their kernel is compiled and the precision is float32. They are a quarter to
    a third faster and round more than PyTorch's, far less than bfloat16 (docs/performance.md).
    """
    precision, convolution = choose_precision(recipe.precision, device), recipe.convolution
    if convolution == "auto":
        in_float32 = device.type == "cpu" and (precision == "fp32" or not backend.bf16_is_faster(device))
        fewer = in_float32 and winograd.is_available()
        convolution = "winograd" if fewer else "plain"
    return recipe.replace(precision=precision, convolution=convolution)


def compiled(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """``network`` compiled by ``torch.compile``: operations are fused, and on a GPU run as CUDA graphs.

    Compiling takes a minute before the first step, and again for another batch size or crop size. Kernels of this
    package are not part of it.
    """
    made = torch.compile(network, mode="reduce-overhead" if device.type == "cuda" else None, dynamic=False)

    def answer(images: Tensor) -> Tensor:
        # What the step before has left may be overwritten from here on.
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        logits: Tensor = made(images)
        return logits

    return answer


@dataclass
class Stop:
    """Requests by signals: the ``signal`` to stop (0: none), ``save`` to write a checkpoint and continue."""

    signal: int = 0
    save: bool = False
    before: dict[int, Any] = field(default_factory=dict)  # the handlers that were there

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """The signal handler: stores the first signal; later ones call the handler that was there before, if any."""
        if not self.signal:
            self.signal = number
            os.write(2, b"\nfinishing the step and saving; a second signal stops without saving\n")
        elif callable(handler := self.before.get(number)):
            handler(number, frame)

    def ask_save(self, number: int, frame: FrameType | None = None) -> None:
        """The handler of SIGUSR1: a checkpoint after this step."""
        self.save = True


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGINT, SIGTERM and SIGUSR1 set a flag instead of ending the process; the old handlers are restored at the end.

    A signal that ended nothing, because it came after the last step or beside an error, goes to the old handler then.
    Outside the main thread, where Python allows no handlers, the flags are never set.
    """
    stop = Stop()
    before = stop.before
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop.ask)
        before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, stop.ask_save)
    except ValueError:
        pass
    try:
        yield stop
    except (Interrupted, KeyboardInterrupt):
        stop.signal = 0
        raise
    finally:
        for handled, handler in before.items():
            signal.signal(handled, handler)
        if callable(handler := before.get(stop.signal)):
            handler(stop.signal, None)
