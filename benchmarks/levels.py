"""Native kernels against their reference implementations, on each kind of processor that this one can act as.

Each kind runs in a process of its own, in which PyTorch has no better instructions either: ``avx2`` is what a laptop
without AVX-512 gets. One thread; kernel and reference take turns, and the median of the ratios of CPU time counts.

    python benchmarks/levels.py
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROUNDS = 9
SETTINGS = {  # what keeps PyTorch, oneDNN and MKL to the same instructions
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "avx512vnni": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
}


def main() -> None:
    from alexnet.kernels import compiler, levels

    with tempfile.TemporaryDirectory() as folder:
        command = levels.find_compiler() or sys.exit("no C compiler")
        source = Path(levels.__file__).parent
        if failed := levels.precompile(source, Path(folder), command, os.cpu_count() or 1):
            sys.exit(f"not compiled: {', '.join(failed)}")
        print(f"{'level':<12} {'operation':<44} reference ÷ kernel", flush=True)
        for level in levels.levels():
            if level.features <= compiler._processor_features():
                environment = os.environ | {"OMP_NUM_THREADS": "1"} | SETTINGS.get(level.name, {})
                subprocess.run([sys.executable, __file__, level.name, folder], env=environment, check=True)


def measure(name: str, folder: str) -> None:
    """Measure one level in this process."""
    from alexnet import kernels
    from alexnet.data import resize
    from alexnet.kernels import compiler, levels, native_kernels
    from alexnet.training import runtime

    levels.FOLDER = folder
    level = next(level for level in levels.levels() if level.name == name)
    compiler.supported_level = lambda: level
    assert native_kernels.build() and resize.build()
    with runtime.cpu_settings():
        for operation, work in operations():
            ratios = []
            for _ in range(ROUNDS):
                fast = cpu_seconds(work)
                with kernels.disabled():
                    ratios.append(cpu_seconds(work) / fast)
            print(f"{name:<12} {operation:<44} {statistics.median(ratios):.2f}", flush=True)


def operations() -> Iterator[tuple[str, Callable[[], object]]]:
    """What is measured: layers of the network of 2012, eight images where the name has no number, and resizing one."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    from alexnet.data import decode
    from alexnet.kernels import backend, linear, winograd
    from alexnet.models import create_model, fusion
    from alexnet.models.layers import LocalResponseNorm, MaxPool

    def input(channels: int, size: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(8, channels, size, size, generator=generator)
        return values.contiguous(memory_format=torch.channels_last)

    def training(layer: Callable[[Tensor], Tensor], x: Tensor, of_images: bool = False) -> Callable[[], object]:
        x = x.requires_grad_(not of_images)
        return lambda: layer(x).sum().backward()

    def compute(layers: list[nn.Module], x: Tensor) -> Tensor:
        while layers:
            count, x = fusion.forward_fused(layers, x)
            layers = layers[count:]
        return x

    def convolution(weight: Tensor, groups: int) -> Callable[[Tensor], Tensor]:
        def convolve(x: Tensor) -> Tensor:
            padding = weight.shape[2] // 2
            if backend.enabled("winograd"):
                return winograd.convolve(x, weight, None, padding, groups)
            return F.conv2d(x, weight, padding=padding, groups=groups)

        return convolve

    first = list(create_model("alexnet").children())[:4]
    yield (
        "conv1, ReLU, norm, pool, forward and back",
        training(lambda x: compute(first, x), input(3, 224), of_images=True),
    )
    for name, channels, size, pixels, kernels, groups in (("conv2", 96, 5, 27, 256, 2), ("conv3", 256, 3, 13, 384, 1)):
        weight = torch.randn(kernels, channels // groups, size, size).contiguous(memory_format=torch.channels_last)
        yield (
            f"{name}, forward and back",
            training(convolution(weight.requires_grad_(), groups), input(channels, pixels)),
        )
    fc6 = nn.Linear(9216, 4096).requires_grad_(False)
    linear.store_features_first(fc6)
    one, layer = torch.randn(1, 9216).relu(), linear.FewRowsLinear(fc6)
    yield "fc6 of one image, half of the features 0", lambda: layer(one)
    trained, rows = nn.Linear(9216, 4096), torch.randn(32, 9216).requires_grad_()
    yield (
        "fc6 of 32 images, forward and back",
        lambda: torch.autograd.grad(compute([trained], rows).sum(), (rows, trained.weight, trained.bias)),
    )
    yield "response norm, forward and back", training(LocalResponseNorm(2), input(96, 55))
    yield "max pool 3×3, stride 2, forward and back", training(MaxPool(3, 2), input(96, 55))
    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    yield "resize 500×375 to 256×256", lambda: decode.fit(image, 256)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of one call, the mean of as many as take 0.1 s."""
    work()
    count, started = 0, time.process_time()
    while (elapsed := time.process_time() - started) < 0.1:
        work()
        count += 1
    return elapsed / count


if __name__ == "__main__":
    measure(*sys.argv[1:]) if sys.argv[1:] else main()
