"""``alexnet serve``: a classifier behind HTTP, with a page."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction

from alexnet.cli import parser
from alexnet.errors import RecipeError, ServerError
from alexnet.serve.limits import Limits
from alexnet.system import temporary_folder


@dataclass(frozen=True)
class ServeArguments:
    """Answer over HTTP: POST /v1/predict, and a page at /. Verifies its classifier before it is ready.

    SIGTERM and Ctrl-C answer what was accepted, then end; SIGHUP takes a new bundle without losing a request.
    """

    run: Positional[Path]
    """a run folder, a bundle, or an exported file (FILE.onnx, FILE.xml)"""
    host: str = "127.0.0.1"
    """address to listen at; by default this machine alone"""
    port: int = 8000
    """0: any free one"""
    workers: int = 1
    """that answer, each with its own copy of the network"""
    threads: int = 0
    """of the network in a process; 0: one a processor core, shared out among processes"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: weights of half the bytes, faster"""
    top: int = 5
    """predictions an image, where a request does not say"""
    confidence_threshold: float | None = None
    """probability under which the answer says unknown"""
    key_file: Path | None = None
    """API keys, one a line; else the environment's ALEXNET_API_KEY; else none is asked"""
    share_images: bool = False
    """give out images of the data set: reference images, nearest training images"""
    allow_host: Annotated[tuple[str, ...], UseAppendAction] = ()
    """name of this server, as in Host headers; repeatable"""
    allow_origin: Annotated[tuple[str, ...], UseAppendAction] = ()
    """whose pages may send requests (CORS); repeatable"""
    reload_interval: float = 0.0
    """seconds between looks whether RUN has changed, to take it as at SIGHUP; 0: never"""
    drain_delay: float = 0.0
    """seconds between "not ready" and the end of listening, for load balancers"""
    limits: Limits = field(default_factory=Limits)


def run(argv: list[str]) -> int:
    """a server with a page, and JSON for programs"""
    args: ServeArguments = parser.parse(ServeArguments, argv, "serve")
    _check(args)
    for library in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        if find_spec(library) is None:
            raise ServerError(f"serve needs {library}", "installed", "pip install 'alexnet[serve]'")
    with _shared_metrics(args.workers > 1) as shared:
        _serve(args, shared)
    return 0


def _check(args: ServeArguments) -> None:
    for name, value, good, must in (
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
        if not good:
            raise RecipeError(f"{name} is {value}", must)


def _serve(args: ServeArguments, shared: bool) -> None:
    from alexnet.serve import run, service, supervisor
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
    )
    if not value and not local:
        print(
            f"alexnet: warning: {run.url(listening)} can be reached from other machines, and no key is asked: anyone "
            "there may use this server; give --key-file, or --host 127.0.0.1",
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
    """A folder in which several processes count together; prometheus_client finds it in the environment."""
    if not several:
        yield False
        return
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder())
        except OSError as error:
            raise ServerError(
                f"no temporary folder for the metrics of several processes: {error.strerror}",
                "a writable one",
                "set TMPDIR, or --workers 1",
            ) from error
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        stack.callback(os.environ.pop, "PROMETHEUS_MULTIPROC_DIR", None)
        yield True
