"""The ``alexnet`` command and ``python -m alexnet``."""

import os
import sys


def main() -> None:
    """Run the command line; refuse a system without POSIX in one line, before anything that needs it is imported."""
    if os.name != "posix":
        sys.exit(f"alexnet: operating system {os.name!r} is not supported; use Linux, on Windows by WSL 2")
    from alexnet.cli import main as run

    run()


if __name__ == "__main__":  # the worker processes of a server import it too
    main()
