"""Names out of strangers' files, made fit for one line of a message: no control characters, not too long."""

from alexnet.errors import printable

MOST = 200  # characters


def readable(name: object) -> str:
    """``name`` as printable text of at most 200 characters; what a terminal would obey becomes ``\\x1b``."""
    return printable(str(name)[:MOST])
