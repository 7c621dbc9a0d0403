"""``alexnet report``: everything about a run on one page."""

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from alexnet.cli import arguments, show
from alexnet.errors import AlexNetError


@dataclass(frozen=True)
class ReportArguments:
    """Write report.html: everything about a run on one page that needs no other file and no network.

    What was trained on what, the doctor's findings, numbers with intervals, pictures, mistakes, where it looks, cost,
    and how to make it again.
    """

    run: Positional[Path]  # a run folder
    output: Path | None = None  # where to write it; by default RUN/report.html
    store: str | None = None  # where the prepared images are now, if they were moved: a folder or s3://…
    doctor: bool = True  # examine the pictures themselves, if they are at hand
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    source: arguments.SourceArguments = field(default_factory=arguments.SourceArguments)


def report(words: list[str]) -> int:
    """everything about a run on one page: report.html"""
    given: ReportArguments = arguments.parse(ReportArguments, words, "report")
    from alexnet import api

    options = api.DataOptions(
        given.source.data_root, given.source.download, group_column=given.source.group_column,
        group_pattern=given.source.group_pattern, exclude=given.source.exclude,
        layout=arguments.layout_options(given.source), say=show.say,
    )  # fmt: skip
    arguments.choose_cache()
    print(
        api.report(
            given.run,
            given.output,
            store=given.store,
            doctor=given.doctor,
            device=given.device,
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
