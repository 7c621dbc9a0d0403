"""The command ``review``."""

import shlex
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.doctor import embedding
from alexnet.cli.parser import Flag, SourceArguments, data_options, option
from alexnet.errors import DataError, RecipeError, ServerError, counted, printable

if TYPE_CHECKING:
    from alexnet.review.session import Session


@dataclass(frozen=True)
class ReviewArguments:
    """Review a data set in a browser: the doctor's findings, and labels that are likely wrong.

    Keep, relabel or exclude images, by mouse or keyboard. The decisions are saved at once in a corrections file beside
    DATA, for --corrections of train, prepare, evaluate and doctor. No image is moved or changed. Only this machine can
    open the page, by the address that is printed. Ctrl-C ends the review; the same command continues it.
    """

    data: Positional[Annotated[str, option("DATA")]]
    """a folder, a CSV or TSV table, tar or parquet files, digits, cifar10, mnist, imagenette, ..."""
    bundle: Positional[Annotated[Path | None, option("[RUN]")]] = None
    """run or bundle whose features find likely wrong labels (default: Fisher vectors)"""
    check_labels: Flag = True
    """do not look for wrong labels"""
    port: Annotated[int, option("PORT")] = 0
    """port of the page (default: any free port)"""
    validation: Annotated[float, option("FRACTION")] = 0.1
    """fraction of the training images for validation, as in train"""
    test: Annotated[float, option("FRACTION")] = 0.2
    """fraction of the images for the test split, as in train"""
    seed: Annotated[int, option("N")] = 0
    """random seed of the splits, as in train"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    source: Annotated[SourceArguments, option(name="data")] = field(default_factory=SourceArguments)


def run(argv: list[str]) -> int:
    """Examine the data and serve the page until Ctrl-C."""
    args: ReviewArguments = parser.parse(ReviewArguments, argv, "review")
    check_server(args.port)
    serve(_session(args), args.port, args.data)
    return 0


def check_server(port: int) -> None:
    """Raise an error for a wrong port, or if a library of the server is missing: before the work begins."""
    if not 0 <= port <= 65535:
        raise RecipeError(f"--port is {port}", "0 to 65535")
    for library in ("starlette", "uvicorn", "prometheus_client"):
        if find_spec(library) is None:
            raise ServerError(f"the page needs {library}", "installed", "pip install 'alexnet[serve]'")


def serve(session: "Session", port: int, data: str = "DATA") -> None:
    """Serve the page of ``session`` until Ctrl-C, then print how its decisions on ``data`` are used."""
    from alexnet.review import server
    from alexnet.serve.run import bind, url

    token, listening = server.new_token(), bind("127.0.0.1", port)
    cases = sum(len(topic.cases) for topic in session.topics)
    with listening:
        print(f"{counted(cases, 'case')} to review at {url(listening)}/{token}/", flush=True)
        print(f"Decisions are saved in {session.path}. Ctrl-C ends the review.", flush=True)
        server.serve(session, listening, token)
    count = len(session.decisions)
    command = f"alexnet train {shlex.quote(data)} --corrections {shlex.quote(str(session.path))}"
    use = f"{counted(count, 'decision')}. To use them: {printable(command)}"
    print(use if count else "no decisions", flush=True)


def _session(args: ReviewArguments) -> "Session":
    from alexnet.data.sources import is_store
    from alexnet.data.sources.corrections import corrections_file
    from alexnet.data.splits import assign_splits
    from alexnet.doctor.examine import examine
    from alexnet.review.session import Session, doctor_topics

    if is_store(args.data):
        raise DataError(f"{args.data} is a prepared store", "images", "review the images that it was prepared from")
    path = args.source.corrections or corrections_file(args.data)
    options = replace(data_options(args.source, quiet=True), corrections=path if path.exists() else None)
    problems: list[DataError] = []
    source = options.open(args.data, problems)
    splits = assign_splits(source, validation=args.validation, test=args.test, seed=args.seed, strict=False)
    embed = embedding(args.bundle, args.device) if args.check_labels else None
    report = examine(source, problems, splits=splits, embed=embed, progress=output.Progress)
    split_of = {image.origin: name for name, images in splits.items() for image in images}
    samples = {
        image.origin: (image, split_of.get(image.origin, "excluded"))
        for images in source.splits.values()
        for image in images
    }
    added = {image.origin: image for image in source.added}
    return Session(source.name, source.classes, samples, added, doctor_topics(report, source), path)
