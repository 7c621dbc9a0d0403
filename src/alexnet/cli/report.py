"""``alexnet report``: everything about a run on one page."""

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from alexnet.cli import output, parser
from alexnet.cli.options import SourceArguments, choose_cache, layout_options


@dataclass(frozen=True)
class ReportArguments:
    """Write report.html: everything about a run on one page that needs no other file and no network.

    What was trained on what, the doctor's findings, numbers with intervals, images, mistakes, where it looks, cost,
    and how to make it again.
    """

    run: Positional[Path]
    """a run folder"""
    output: Path | None = None
    """where to write it; by default RUN/report.html"""
    store: str | None = None
    """where the prepared images are now, if they were moved: a folder or s3://…"""
    doctor: bool = True
    """examine the images themselves, if they are at hand"""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N"""
    source: SourceArguments = field(default_factory=SourceArguments)


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
        say=output.say,
    )
    choose_cache()
    print(
        api.report(
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
