"""The health check of the Dockerfile: ``python -m alexnet.cli.container health``."""

import http.client
import sys
from collections.abc import Sequence
from pathlib import Path

from alexnet.cli import parser
from alexnet.cli.serve import ServeArguments

_SECONDS = 5.0  # the Dockerfile stops its health check after 10


def health(command: Sequence[str]) -> str | None:
    """Request ``/healthz`` of the server that ``command`` started, at its own host and port.

    A container that runs another command has no server, and counts as healthy. Returns an error message, or None.
    """
    if "serve" not in command:
        return None
    args: ServeArguments = parser.parse(ServeArguments, list(command[command.index("serve") + 1 :]), "serve")
    target = f"{args.host}, port {args.port}"
    try:  # Linux connects to this machine where the host is 0.0.0.0 or ::
        connection = http.client.HTTPConnection(args.host, args.port, timeout=_SECONDS)
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
        connection.close()
    except (OSError, http.client.HTTPException) as error:
        return f"{target}: {error}"
    return None if status == http.HTTPStatus.OK else f"{target}: status {status}"


if __name__ == "__main__":
    if sys.argv[1:] == ["health"]:  # process 1 is the container's command, or an init with the command behind it
        sys.exit(health(Path("/proc/1/cmdline").read_text("utf-8", "replace").split("\0")[:-1]))
    sys.exit("usage: python -m alexnet.cli.container health")
