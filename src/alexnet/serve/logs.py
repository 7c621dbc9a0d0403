"""Logs of the server: one JSON object per line on standard error, without images, file names or API keys."""

import json
import logging
import re
import secrets
import sys
import time
from typing import Any

LOGGER = logging.getLogger("alexnet.server")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_TEXT = 200  # characters of a text that a client chose


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": record.process,
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        # ASCII escapes line breaks and control characters that a client sent.
        return json.dumps(line, ensure_ascii=True, default=str)


def configure() -> None:
    """Send the events of this package, and errors of uvicorn and asyncio, to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it quotes bytes of broken forms
    for name in ("alexnet.server", "uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "alexnet.server" else logging.ERROR)


def event(name: str, level: int = logging.INFO, trace: bool = False, **fields: Any) -> None:
    """Log one event.

    Args:
        name: What happened, such as "request".
        level: A level of :mod:`logging`.
        trace: Add the traceback of the current exception.
        **fields: Further entries of the JSON object. Texts other than ``reason`` are cut at 200 characters.
    """
    fields = {k: v[:_MAX_TEXT] if isinstance(v, str) and k != "reason" else v for k, v in fields.items()}
    LOGGER.log(level, name, extra={"fields": fields}, exc_info=trace)


def request_id(header: str | None) -> str:
    """The client's ``X-Request-ID`` if it is 1 to 64 letters, digits, dots, dashes and underscores; else a new id."""
    return header if header and _REQUEST_ID.fullmatch(header) else secrets.token_hex(8)
