"""``alexnet report``: everything about a run on one page."""

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from alexnet.cli import arguments
from alexnet.cli import output as show
from alexnet.errors import AlexNetError


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
    source: arguments.SourceArguments = field(default_factory=arguments.SourceArguments)


def report(argv: list[str]) -> int:
    """everything about a run on one page: report.html"""
    args: ReportArguments = arguments.parse(ReportArguments, argv, "report")
    from alexnet import api

    options = api.DataOptions(
        args.source.data_root,
        args.source.download,
        group_column=args.source.group_column,
        group_pattern=args.source.group_pattern,
        exclude=args.source.exclude,
        layout=arguments.layout_options(args.source),
        say=show.say,
    )
    arguments.choose_cache()
    print(
        api.report(
            args.run,
            args.output,
            store=args.store,
            doctor=args.doctor,
            device=args.device,
            options=options,
            progress=show.Progress,
        )
    )
    return 0


def at_the_end(run: Path, args: arguments.TrainArguments) -> tuple[Path | None, list[str], list[str]]:
    """The report of a training that has just ended, in seconds; warnings and notes about its data.

    None where there is no report: the training is done and saved, so that is no failure.
    """
    from alexnet import api

    page, warnings, notes = None, [], []
    try:
        diagnosis, why = None, f"alexnet report {run} examines it"
        if args.report:
            diagnosis, why = api.diagnose(run, store=args.store, quick=True)
        if diagnosis is None:
            notes = [f"the data was not examined for near-identical images, groups and other faults: {why}"]
        warnings = api.data_warnings(run, diagnosis, store=args.store)
        if args.report:
            page = api.report(run, store=args.store, quick=True, device=args.device, diagnosis=(diagnosis, why))
    except AlexNetError as error:
        show.say(f"no report: {error}")
    return page, warnings, notes
