"""Builds a wheel that carries the compiled kernels: ``py3-none-PLATFORM``; all metadata is in pyproject.toml.

The environment variable ``ALEXNET_KERNELS`` is ``auto`` (the default: without a C compiler the wheel has no kernels,
and PyTorch computes everything), ``required`` (a kernel that cannot be compiled is an error; for wheels that are
published) or ``off``. Editable installs compile at first use instead.
"""

import os
import runpy
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

KERNELS = Path("alexnet", "kernels")


class BuildWithKernels(build_py):
    """Copies the package, and compiles its C files for several kinds of processors."""

    def run(self) -> None:
        super().run()
        mode = os.environ.get("ALEXNET_KERNELS", "auto")
        if mode not in ("auto", "required", "off"):
            sys.exit(f"ALEXNET_KERNELS is {mode!r}: it must be auto, required or off")
        if self.editable_mode or mode == "off":
            return
        levels = runpy.run_path(str("src" / KERNELS / "levels.py"))
        compiler, target = levels["find_compiler"](), Path(self.build_lib) / KERNELS / levels["FOLDER"]
        failed = ["no C compiler was found"]
        if compiler is not None:
            failed = levels["precompile"]("src" / KERNELS, target, compiler, os.cpu_count() or 1)
        if failed:
            message = f"alexnet: kernels are not compiled: {', '.join(failed)}. Install GCC or Clang with OpenMP"
            if mode == "required":
                sys.exit(message)
            print(f"{message}, or PyTorch computes everything, two to three times slower", file=sys.stderr)


class PlatformWheel(bdist_wheel):
    """A wheel with libraries serves every Python 3 of one platform; a wheel without them serves all platforms."""

    def get_tag(self) -> tuple[str, str, str]:
        if not any((Path(self.bdist_dir) / KERNELS).glob("*/*.so")):
            return super().get_tag()
        self.root_is_pure = False
        return "py3", "none", sysconfig.get_platform().replace("-", "_").replace(".", "_")


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
