"""The ``alexnet`` command and ``python -m alexnet``."""

import os
import sys


def main() -> None:
    """Run the command line. A system without POSIX is refused before any module that needs POSIX is imported."""
    if os.name != "posix":
        sys.exit(f"alexnet: operating system {os.name!r} is not supported; use Linux, on Windows by WSL 2")
    from alexnet.cli import main as run

    run()


if __name__ == "__main__":  # worker processes of the server import this module
    main()
