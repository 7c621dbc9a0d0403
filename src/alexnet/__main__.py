"""The ``alexnet`` command and ``python -m alexnet``."""

import os
import sys

# How often a thread of GCC's OpenMP looks for work before it sleeps, unless a person has chosen. GCC's own default is
# milliseconds of it, in which processes take the cores from each other: of two that predicted on two cores each had 13
# to 37 % of the rate of one, with this value 64 to 73 % (docs/performance.md).
_SPINS = "1000"


def main() -> None:
    """Run the command line. A system without POSIX is refused before any module that needs POSIX is imported."""
    if os.name != "posix":
        sys.exit(f"alexnet: operating system {os.name!r} is not supported; use Linux, on Windows by WSL 2")
    # OpenMP reads it when PyTorch is imported. `bench` compares all candidates with the default.
    if sys.argv[1:2] != ["bench"] and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    from alexnet.cli import main as run

    run()


if __name__ == "__main__":  # worker processes of the server import this module
    main()
