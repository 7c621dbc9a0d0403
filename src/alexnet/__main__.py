"""The ``alexnet`` command and ``python -m alexnet``."""

import sys


def main() -> None:
    """Run the command line. Other systems than Linux are refused before a module that needs Linux is imported."""
    if not sys.platform.startswith("linux"):
        sys.exit(f"alexnet: operating system {sys.platform!r} is not supported: use Linux, WSL 2 or a Linux container")
    from alexnet.cli import main as run

    run()


if __name__ == "__main__":  # worker processes of the server import this module
    main()
