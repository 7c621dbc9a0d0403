"""Fast implementations in C and Triton with their Python wrappers, and the switchboard that turns them on and off.

``kernels.use("off")`` and ``with kernels.disabled():`` compute by the reference implementations;
:data:`KERNELS` lists all fast implementations.
"""

from alexnet.kernels.backend import KERNELS, Kernel, Mode, disabled, enabled, mode_of, use, using

__all__ = ["KERNELS", "Kernel", "Mode", "disabled", "enabled", "mode_of", "use", "using"]
