"""``alexnet report``: everything about a run on one page."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.parser import Flag, SourceArguments, data_options, option


@dataclass(frozen=True)
class ReportArguments:
    """Write report.html: a run on one self-contained page.

    It shows the data, the doctor's findings, metrics with confidence intervals, plots, mistakes, saliency, cost, and
    the commands that reproduce the run.
    """

    run: Positional[Annotated[Path, option("RUN")]]
    """a run directory"""
    output: Annotated[Path | None, option("FILE", aliases=("-o",))] = None
    """HTML file (default: RUN/report.html)"""
    store: Annotated[str | None, option("STORE")] = None
    """where the prepared images are now, if they were moved: a directory or s3://..."""
    doctor: Flag = True
    """do not examine the source images"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    source: Annotated[SourceArguments, option(name="data")] = field(default_factory=SourceArguments)


def run(argv: list[str]) -> int:
    """Write the report and print its path."""
    args: ReportArguments = parser.parse(ReportArguments, argv, "report")
    from alexnet import api

    path = api.write_report(
        args.run,
        args.output,
        store=args.store,
        doctor=args.doctor,
        device=args.device,
        options=replace(data_options(args.source), progress=None),
        progress=output.Progress,
    )
    print(path)
    return 0
