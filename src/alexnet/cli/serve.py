"""The commands ``serve`` and ``monitor``, and the health check of the Dockerfile:
``python -m alexnet.cli.serve health``."""

import http.client
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction

from alexnet.cli import output, parser
from alexnet.cli.parser import Flag, option
from alexnet.errors import RecipeError, ServerError
from alexnet.serve.limits import Limits
from alexnet.system import temporary_folder

if TYPE_CHECKING:
    from alexnet.evaluation.drift import Day


@dataclass(frozen=True)
class ServeArguments:
    """Serve a classifier over HTTP: POST /v1/predict, and a web page at /. It is verified before it is ready.

    SIGTERM and Ctrl-C finish the accepted requests and exit; SIGHUP reloads the bundle without losing a request.
    """

    run: Positional[Annotated[Path, option("RUN")]]
    """a run directory, a bundle, or an exported file (FILE.onnx, FILE.xml)"""
    host: Annotated[str, option("HOST")] = "127.0.0.1"
    """address to listen on; the default accepts this machine only"""
    port: Annotated[int, option("PORT")] = 8000
    """port to listen on; 0: any free port"""
    workers: Annotated[int, option("N")] = 1
    """worker processes, each with its own copy of the network"""
    threads: Annotated[int, option("N")] = 0
    """threads of the network per worker; 0: the cores divided among the workers"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: usually faster, with two to three correct digits; takes more memory"""
    top: Annotated[int, option("N")] = 5
    """predictions per image, unless the request sets it"""
    confidence_threshold: Annotated[float | None, option("P")] = None
    """predict "unknown" below this probability"""
    key_file: Annotated[Path | None, option("FILE")] = None
    """API keys, one per line (default: the environment variable ALEXNET_API_KEY; without either, no key is required)"""
    share_images: Flag = False
    """publish images of the data set: reference images, nearest training images"""
    allow_host: Annotated[UseAppendAction[tuple[str, ...]], option("HOST")] = ()
    """name of this server in Host headers; can be repeated"""
    allow_origin: Annotated[UseAppendAction[tuple[str, ...]], option("ORIGIN")] = ()
    """origin whose pages may send requests (CORS); can be repeated"""
    reload_interval: Annotated[float, option("SECONDS")] = 0.0
    """check RUN for changes at this interval and reload it; 0: never"""
    drain_delay: Annotated[float, option("SECONDS")] = 0.0
    """wait between "not ready" and the end of listening, for load balancers"""
    monitor: Annotated[Path | None, option("FOLDER")] = None
    """write daily counts of predictions, confidence, brightness and sizes to this folder, for alexnet monitor"""
    limits: Annotated[Limits, option(name="request and queue")] = field(default_factory=Limits)


def serve_command(argv: list[str]) -> int:
    """Check the options and serve until a signal ends the server."""
    args: ServeArguments = parser.parse(ServeArguments, argv, "serve")
    _check(args)
    for library in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        if find_spec(library) is None:
            raise ServerError(f"serve needs {library}", "installed", "pip install 'alexnet[serve]'")
    with _shared_metrics(args.workers > 1) as shared:
        _serve(args, shared)
    return 0


def _check(args: ServeArguments) -> None:
    for name, value, is_valid, must in (
        ("--port", args.port, 0 <= args.port <= 65535, "0 to 65535"),
        ("--workers", args.workers, 1 <= args.workers <= 256, "1 to 256"),
        ("--threads", args.threads, args.threads >= 0, "0 or more"),
        ("--top", args.top, args.top >= 1, "at least 1"),
        (
            "--confidence-threshold",
            args.confidence_threshold,
            0 <= (args.confidence_threshold or 0) <= 1,
            "a probability, 0 to 1",
        ),
        ("--reload-interval", args.reload_interval, 0 <= args.reload_interval < float("inf"), "0 or more seconds"),
        ("--drain-delay", args.drain_delay, 0 <= args.drain_delay < float("inf"), "0 or more seconds"),
    ):
        if not is_valid:
            raise RecipeError(f"{name} is {value}", must)


def _serve(args: ServeArguments, shared: bool) -> None:
    from alexnet.serve import run, service
    from alexnet.serve import run as supervisor
    from alexnet.serve.service import Settings

    hosts, origins = _hosts(args.allow_host), _origins(args.allow_origin)
    value = service.read_keys(args.key_file, os.environ.get("ALEXNET_API_KEY", ""))
    listening = run.bind(args.host, args.port)
    local = run.is_loopback(listening)
    settings = Settings(
        path=args.run,
        limits=args.limits,
        device=_device(args.device),
        threads=args.threads,
        top=args.top,
        confidence_threshold=args.confidence_threshold,
        share_images=args.share_images,
        hosts=(*hosts, args.host.lower()) if local or hosts else None,
        origins=origins,
        keys=value,
        key_file=args.key_file,
        reload_interval=args.reload_interval,
        drain_delay=args.drain_delay,
        workers=args.workers,
        shared_metrics=shared,
        precision=args.precision,
        monitor=args.monitor,
    )
    if not value and not local:
        print(
            f"alexnet: warning: {run.url(listening)} is reachable from other machines and requires no key. "
            "Pass --key-file FILE, or --host 127.0.0.1",
            file=sys.stderr,
            flush=True,
        )

    print(f"Loading {args.run}, to be served at {run.url(listening)}", flush=True)

    def ready() -> None:
        print(f"{args.run} is served at {run.url(listening)}", flush=True)

    with listening:
        (run.serve if args.workers == 1 else supervisor.supervise)(settings, listening, ready)


def _hosts(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name != "*" and (not name or set(name) & set("/:@ ")):
            raise RecipeError(f"--allow-host is {name!r}", "a name without scheme, port and path: images.example.org")
    return tuple(name.lower().removesuffix(".") for name in names)


def _origins(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name != "*" and not re.fullmatch(r"https?://[^/?#@\s]+", name):
            raise RecipeError(f"--allow-origin is {name!r}", "* or scheme://host[:port]: https://app.example.org")
    return tuple(name.lower() for name in names)


def _device(name: str) -> str:
    if name == "cpu":
        return name
    from alexnet import api

    return str(api.torch_device(name))


@contextmanager
def _shared_metrics(several: bool) -> Iterator[bool]:
    """The folder in which several workers share their metrics; prometheus_client reads it from the environment."""
    if not several:
        yield False
        return
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder())
        except OSError as error:
            raise ServerError(
                f"no temporary folder for the metrics of several processes: {error.strerror}",
                "writable",
                "set TMPDIR, or --workers 1",
            ) from error
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        stack.callback(os.environ.pop, "PROMETHEUS_MULTIPROC_DIR", None)
        yield True


@dataclass(frozen=True)
class MonitorArguments:
    """Compare each day of a server, and the last days together, with its first days, and report what has changed.

    Exit status: 0; with --exit-code 1 if the last day has an alarm.
    """

    folder: Positional[Annotated[Path, option("FOLDER")]]
    """the folder of alexnet serve RUN --monitor FOLDER"""
    baseline_days: Annotated[int, option("N")] = 7
    """number of first days of a model, which later days are compared with"""
    false_alarms: Annotated[float, option("FRACTION")] = 0.01
    """fraction of days that raise an alarm although nothing has changed"""
    html: Annotated[Path | None, option("FILE"), parser.HTML] = None
    """write the days to this HTML file"""
    exit_code: Flag = False
    """exit with 1 if the last day has an alarm"""
    json: Flag = False
    """print one JSON list of days"""


def monitor_command(argv: list[str]) -> int:
    """Read the counts, test each day, and print the days."""
    args: MonitorArguments = parser.parse(MonitorArguments, argv, "monitor")
    if args.baseline_days < 1:
        raise RecipeError(f"--baseline-days is {args.baseline_days}", "at least 1")
    if not 0 < args.false_alarms < 1:
        raise RecipeError(f"--false-alarms is {args.false_alarms}", "a fraction between 0 and 1, such as 0.01")
    from alexnet.evaluation import drift

    days = drift.examine(drift.read_days(args.folder), args.baseline_days, args.false_alarms)
    columns, rows = (
        ("day", "model", "images", "abstained", "unreadable", "confidence", "brightness", "distance", "changed"),
        _day_rows(days),
    )
    note = (
        f"Each day, and the last {args.baseline_days} days together, are compared with the first {args.baseline_days} "
        "days of their model: chi-squared tests with Holm's correction; if nothing has changed, at most "
        f"{100 * args.false_alarms:g} % of days raise an alarm."
    )
    if args.html is not None:
        from alexnet import pages
        from alexnet.data.atomic_io import write_file, written

        classes = [(one, _shares(one, days)) for one in days if any(name.startswith("classes") for name in one.alarms)]
        tables = [(one.counts.date, lines) for one, lines in classes]
        page = pages.render(
            "monitor.html", folder=str(args.folder), columns=columns, rows=rows, note=note, tables=tables
        )
        with written(args.html):
            write_file(args.html, page.encode("utf-8", "replace"))
    if args.json:
        print(json.dumps([one.to_dict() for one in days]))
    else:
        output.table(str(args.folder), columns, rows)
        print(note)
    return int(args.exit_code and bool(days[-1].alarms))


def _day_rows(days: "Sequence[Day]") -> list[tuple[str, ...]]:
    from alexnet.evaluation.drift import BRIGHTNESS, CONFIDENCE, DISTANCE, FEW, mean_of

    rows: list[tuple[str, ...]] = []
    for day in days:
        one = day.counts
        changed = ", ".join(f"{name} (p = {day.p_values[name]:.1g})" for name in day.alarms)
        if day.baseline:
            changed = "first days"
        elif not day.p_values:
            changed = f"fewer than {FEW} images: not tested"
        confidence, brightness = mean_of(one.confidence, CONFIDENCE, 1.0), mean_of(one.brightness, BRIGHTNESS, 256.0)
        distance = mean_of(one.distance, DISTANCE, 1.0)
        rows.append(
            (
                one.date,
                one.model_sha256[:12],
                str(one.images),
                str(one.abstained),
                str(one.failed),
                output.percent(confidence, 1),
                f"{brightness:.0f}" if one.images else "",
                f"{distance:.2f}" if sum(one.distance) else "",
                changed or "–",
            )
        )
    return rows


def _shares(day: "Day", days: "Sequence[Day]") -> list[tuple[str, str, str]]:
    """The fraction of each class on a day, and on the first days of its model; the largest change first."""
    from alexnet.evaluation.drift import merge

    model = day.counts.model_sha256
    first = merge([one.counts for one in days if one.baseline and one.counts.model_sha256 == model])
    shares = [[count / max(1, one.images) for count in one.predicted] for one in (first, day.counts)]
    rows = sorted(zip(day.counts.classes, *shares, strict=True), key=lambda row: -abs(row[1] - row[2]))
    return [(name, output.percent(before, 1), output.percent(now, 1)) for name, before, now in rows[:20]]


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
    sys.exit("usage: python -m alexnet.cli.serve health")
