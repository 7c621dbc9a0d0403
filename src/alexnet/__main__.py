"""``python -m alexnet``: the same as the ``alexnet`` command."""

from alexnet.cli import main

if __name__ == "__main__":  # the worker processes of a server import it too
    main()
