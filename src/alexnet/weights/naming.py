"""Names out of strangers' files, made fit for one line of a message: no control characters, not too long."""

MOST = 200  # characters


def readable(name: object) -> str:
    """``name`` as printable text of at most 200 characters; what a terminal would obey becomes ``\\x1b``."""
    text = str(name)[:MOST].encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
