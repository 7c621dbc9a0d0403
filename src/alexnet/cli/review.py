"""The commands ``review`` and ``suggest``: a person corrects the labels of images, or gives new ones."""

import csv
import io
import shlex
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.data import embedding
from alexnet.cli.parser import Flag, SourceArguments, data_options, option
from alexnet.errors import DataError, RecipeError, ServerError, counted, printable
from alexnet.review.active_learning import Method
from alexnet.terminal import csv_cell

if TYPE_CHECKING:
    from alexnet.review.session import Session
    from alexnet.review.suggest import Suggestion


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
    """run or bundle whose features find likely wrong labels (default: the starter)"""
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


def review_command(argv: list[str]) -> int:
    """Examine the data and serve the page until Ctrl-C."""
    args: ReviewArguments = parser.parse(ReviewArguments, argv, "review")
    check_server(args.port)
    serve_review(_session(args), args.port, args.data)
    return 0


def check_server(port: int) -> None:
    """Raise an error for a wrong port, or if a library of the server is missing: before the work begins."""
    if not 0 <= port <= 65535:
        raise RecipeError(f"--port is {port}", "0 to 65535")
    for library in ("starlette", "uvicorn", "prometheus_client"):
        if find_spec(library) is None:
            raise ServerError(f"the page needs {library}", "installed", "pip install 'alexnet[serve]'")


def serve_review(session: "Session", port: int, data: str) -> None:
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


_SHOWN = 20  # rows on the terminal


@dataclass(frozen=True)
class SuggestArguments:
    """Choose the unlabeled images to label next: the classifier is uncertain of them, and they differ from each other.

    With --review a page opens in which they are labeled. The labels are saved in the corrections file of the run's
    data, and alexnet train DATA --corrections FILE adds the images to the training images.
    """

    run: Positional[Annotated[Path, option("RUN")]]
    """a run directory or a bundle"""
    folder: Positional[Annotated[Path, option("FOLDER")]]
    """folder of unlabeled images, with its subfolders"""
    count: Annotated[int, option("N")] = 50
    """number of images to choose"""
    method: Method = "uncertain-diverse"
    """uncertain-diverse: uncertain images that differ in their features; uncertain: the most uncertain; random"""
    seed: Annotated[int, option("N")] = 0
    """random seed of --method random"""
    output: Annotated[Path | None, option("FILE", aliases=("-o",)), parser.SUGGESTIONS] = None
    """write the list to this CSV file: path, label, score, uncertainty"""
    review: Flag = False
    """label the images in a browser"""
    corrections: Annotated[Path | None, option("FILE")] = None
    """corrections file for the labels (default: that of the run's data)"""
    port: Annotated[int, option("PORT")] = 0
    """port of the page (default: any free port)"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""


def suggest_command(argv: list[str]) -> int:
    """Choose the images, print or write the list, and serve the page if it was asked for."""
    args: SuggestArguments = parser.parse(SuggestArguments, argv, "suggest")
    if args.count < 1:
        raise RecipeError(f"--count is {args.count}", "at least 1")
    if args.review:
        check_server(args.port)
    from alexnet import api
    from alexnet.data.sources.corrections import corrections_file, read_corrections
    from alexnet.review.suggest import suggest, training_data, unlabeled

    classifier = api.load(args.run, args.device)
    data = training_data(args.run)
    path = args.corrections or corrections_file(data or args.folder)
    decided = set(read_corrections(path)) if path.exists() else set()
    samples = unlabeled(args.folder, path.parent, decided)
    suggestions, failures = suggest(
        classifier, samples, args.count, args.method, args.seed, output.Progress("predicting")
    )
    for failure in failures:
        output.log(f"alexnet: {printable(str(failure))}")
    if args.output is not None:
        _write(args.output, suggestions)
    _print_suggestions(args, suggestions, len(samples))
    if args.review:
        from alexnet.review.suggest import session

        serve_review(session(classifier.classes, suggestions, path), args.port, data or "DATA")
    return 0


def _write(path: Path, suggestions: "list[Suggestion]") -> None:
    from alexnet.data.atomic_io import write_file, written

    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("path", "label", "score", "uncertainty"))
    for one in suggestions:
        label, score = one.top_k[0]
        writer.writerow((csv_cell(str(one.path)), csv_cell(label), f"{score:.4f}", f"{one.uncertainty:.4f}"))
    with written(path, DataError):
        write_file(path, buffer.getvalue().encode("utf-8", "surrogateescape"))


def _print_suggestions(args: SuggestArguments, suggestions: "list[Suggestion]", total: int) -> None:
    rows = [
        (str(one.path), one.top_k[0][0], output.percent(one.top_k[0][1], 1), f"{one.uncertainty:.3f}")
        for one in suggestions[:_SHOWN]
    ]
    title = f"{counted(len(suggestions), 'image')} to label next, of {total:,} in {args.folder}"
    output.table(title, ("image", "prediction", "score", "uncertainty"), rows, right=2)
    if len(suggestions) > _SHOWN:
        where = f" in {args.output}" if args.output else " on the page" if args.review else "; see --output"
        print(f"and {len(suggestions) - _SHOWN:,} more{where}")
    if not args.review:
        print("Label them in a browser: the same command with --review")
