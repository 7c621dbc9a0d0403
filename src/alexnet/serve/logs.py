"""A line of JSON an event, on standard error: request ids, sizes and times; never an image, its name or a key."""

import json
import logging
import re
import secrets
import sys
import time
from typing import Any

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LONGEST = 200  # characters of a text that a stranger chose
LOGGER = logging.getLogger("alexnet.server")


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": record.process,
            "event": record.getMessage(),
        }
        line |= getattr(record, "about", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        # ASCII: whatever a stranger sent is escaped, a line stays a line, a terminal obeys nothing.
        return json.dumps(line, ensure_ascii=True, default=str)


def configure() -> None:
    """Send our events and uvicorn's to standard error, as JSON, and to no other place."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it quotes bytes of broken forms
    for name in ("alexnet.server", "uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "alexnet.server" else logging.ERROR)


def event(what: str, level: int = logging.INFO, trace: bool = False, **about: Any) -> None:
    """Log one event; long texts are cut, ``trace`` adds where the current exception came from."""
    short = {k: v[:_LONGEST] if isinstance(v, str) and k != "reason" else v for k, v in about.items()}
    LOGGER.log(level, what, extra={"about": short}, exc_info=trace)


def request_id(sent: str | None) -> str:
    """The id that a client sent, if it is made of letters, digits, dot, dash and underscore; else a new one."""
    return sent if sent and _ID.fullmatch(sent) else secrets.token_hex(8)
