"""``alexnet report``: everything about a run on one page."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.options import SourceArguments, choose_cache, layout_options
from alexnet.cli.parser import Flag, option


@dataclass(frozen=True)
class ReportArguments:
    """Write report.html: a run on one self-contained page.

    It shows the data, the doctor's findings, metrics with confidence intervals, plots, mistakes, saliency, cost, and
    the commands that reproduce the run.
    """

    run: Positional[Annotated[Path, option("RUN")]]
    """a run directory"""
    output: Annotated[Path | None, option("FILE")] = None
    """HTML file (default: RUN/report.html)"""
    store: Annotated[str | None, option("STORE")] = None
    """where the prepared images are now, if they were moved: a directory or s3://..."""
    doctor: Flag = True
    """do not examine the source images"""
    device: Annotated[str, option("DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    source: Annotated[SourceArguments, option(name="data")] = field(default_factory=SourceArguments)


def run(argv: list[str]) -> int:
    """everything about a run on one page: report.html"""
    args: ReportArguments = parser.parse(ReportArguments, argv, "report")
    from alexnet import api

    options = api.DataOptions(
        args.source.data_root,
        args.source.download,
        group_column=args.source.group_column,
        group_pattern=args.source.group_pattern,
        exclude=args.source.exclude,
        layout=layout_options(args.source),
        log=output.log,
    )
    choose_cache()
    print(
        api.write_report(
            args.run,
            args.output,
            store=args.store,
            doctor=args.doctor,
            device=args.device,
            options=options,
            progress=output.Progress,
        )
    )
    return 0
