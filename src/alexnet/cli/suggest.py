"""The command ``suggest``."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.parser import Flag, option
from alexnet.cli.review import check_server, serve
from alexnet.errors import DataError, RecipeError, counted, printable
from alexnet.review.active_learning import Method
from alexnet.terminal import csv_cell

if TYPE_CHECKING:
    from alexnet.review.suggest import Suggestion

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
    output: Annotated[Path | None, option("FILE", aliases=("-o",))] = None
    """write the list to this CSV file: path, label, score, uncertainty"""
    review: Flag = False
    """label the images in a browser"""
    corrections: Annotated[Path | None, option("FILE")] = None
    """corrections file for the labels (default: that of the run's data)"""
    port: Annotated[int, option("PORT")] = 0
    """port of the page (default: any free port)"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""


def run(argv: list[str]) -> int:
    """Choose the images, print or write the list, and serve the page if it was asked for."""
    args: SuggestArguments = parser.parse(SuggestArguments, argv, "suggest")
    if args.count < 1:
        raise RecipeError(f"--count is {args.count}", "at least 1")
    if args.review:
        check_server(args.port)
    from alexnet import api
    from alexnet.data.sources.corrections import read_corrections
    from alexnet.review.suggest import default_corrections, suggest, unlabeled

    classifier = api.load(args.run, args.device)
    path = args.corrections or default_corrections(args.run, args.folder)
    decided = set(read_corrections(path)) if path.exists() else set()
    samples = unlabeled(args.folder, path.parent, decided)
    suggestions, failures = suggest(
        classifier, samples, args.count, args.method, args.seed, output.Progress("predicting")
    )
    for failure in failures:
        output.log(f"alexnet: {printable(str(failure))}")
    if args.output is not None:
        _write(args.output, suggestions)
    _print(args, suggestions, len(samples))
    if args.review:
        from alexnet.review.suggest import session

        serve(session(classifier.classes, suggestions, path), args.port)
    return 0


def _write(path: Path, suggestions: "list[Suggestion]") -> None:
    from alexnet.data.atomic_io import write_file

    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("path", "label", "score", "uncertainty"))
    for one in suggestions:
        label, score = one.top_k[0]
        writer.writerow((csv_cell(str(one.path)), csv_cell(label), f"{score:.4f}", f"{one.uncertainty:.4f}"))
    try:
        write_file(path, buffer.getvalue().encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise DataError(f"{path}: can not be written ({error.strerror})", "a file in a writable folder") from error


def _print(args: SuggestArguments, suggestions: "list[Suggestion]", total: int) -> None:
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
