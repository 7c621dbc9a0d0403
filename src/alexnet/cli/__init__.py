"""The ``alexnet`` command: the only room that reads arguments and environment.

Results go to standard output, everything else to standard error. Exit status: 0 done, 1 failed, 2 wrong use,
130 or 143 interrupted.
"""

import errno
import glob
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet import recipe as recipes
from alexnet.cli import arguments, export, import_weights, layers, output, scaling, signals
from alexnet.cli import evaluate as honest
from alexnet.cli.bench import bench
from alexnet.cli.claims import claims
from alexnet.cli.compress import compress
from alexnet.cli.contest import contest, depth
from alexnet.cli.doctor import doctor
from alexnet.cli.report import at_the_end, report
from alexnet.cli.serve import serve
from alexnet.errors import (
    AlexNetError,
    ImageError,
    Interrupted,
    RecipeError,
    did_you_mean,
    no_files,
    no_memory,
    printable,
    reason,
)
from alexnet.recipe import Recipe
from alexnet.terminal import safe_output

if TYPE_CHECKING:
    from alexnet.export.prediction import Prediction


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] != ["serve"]:  # it has handlers of its own
        signals.handle()
    sys.exit(run(argv))


def run(argv: list[str]) -> int:
    """Run a command line; returns the exit status."""
    with safe_output():
        return _run(argv)


def _run(argv: list[str]) -> int:
    try:
        status = _command(argv)
        sys.stdout.flush()  # here, where a reader that has left is no fault
        return status
    except Interrupted as error:
        return _fail(str(error), 128 + error.signal)
    except RecipeError as error:
        return _fail(str(error), 2)
    except AlexNetError as error:
        return _fail(reason(error), 1)
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        return _fail("interrupted; the same command goes on where it can", 128 + number)
    except BrokenPipeError:  # `alexnet … | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        message = reason(error) if no_files(error) else _file_error(error)
        return _fail(message, 1)
    except (MemoryError, RuntimeError) as error:
        if wanted := no_memory(error):
            return _fail(f"{wanted} could not be had; close other programs, or ask for less at a time", 1)
        raise


def _file_error(error: OSError) -> str:
    """What no command has explained: a full disk above all, standard output's too."""
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    place = f"{error.filename}: " if error.filename is not None else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"{place}{error.strerror or error}" + ("; make room, or write to another disk" if full else "")


def _command(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"alexnet {version('alexnet')}")
        return 0
    if argv[0] == "study":
        argv = [" ".join(argv[:2]), *argv[2:]]
    command = _COMMANDS.get(argv[0])
    if command is None:
        return _fail(f"unknown command {argv[0]!r}. {did_you_mean(argv[0], _COMMANDS)}", 2)
    return command(argv[1:])


def _fail(message: str, status: int) -> int:
    output.say(f"alexnet: {printable(message)}")
    return status


def _overview() -> str:
    lines = ["usage: alexnet COMMAND …          alexnet COMMAND --help tells the options of one", ""]
    for name, command in _COMMANDS.items():
        lines.append(f"  {name:<10} {(command.__doc__ or '').splitlines()[0]}")
    lines += ["", "To begin: alexnet train digits"]
    return "\n".join(lines)


def train(argv: list[str]) -> int:
    """learn to tell images apart: digits, a folder, a store, cifar10 …"""
    started = time.perf_counter()  # before the libraries are imported
    values, start = arguments.parse_train(argv)
    from alexnet import api
    from alexnet.training.distributed.sharding import Layout

    layout = Layout(values.parallel, values.split, values.grad_accum_steps)
    again = (
        int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    )  # torchrun starts this command again after a fault
    if again and values.output_dir is None and values.resume is None:
        return _fail("torchrun --max-restarts needs --output-dir FOLDER: what is started again must find its run", 2)
    if values.resume is not None:
        arguments.only_resume(values)
        arguments.data_options(values.source)  # where shards are fetched to
        result = api.resume(
            values.resume,
            store=values.store,
            device=values.device,
            workers=values.num_workers,
            quiet=values.quiet,
            layout=layout,
        )
    elif values.store is not None:
        return _fail("--store tells where the data of a run to --resume is; pass the store as DATA instead", 2)
    elif values.data is None:
        return _fail("train needs DATA: digits, a folder, a store or the name of a set (or --resume RUN)", 2)
    else:
        result = api.train(
            values.data,
            values.recipe,
            values.output_dir,
            start=start,
            options=arguments.data_options(values.source),
            device=values.device,
            workers=values.num_workers,
            quiet=values.quiet,
            layers=values.layers,
            layer_params=values.layer_params,
            layout=layout,
            go_on=again,
        )
    if result.first:
        page, warnings, notes = at_the_end(result.folder, values)
        result = replace(
            result,
            warnings=(*warnings, *result.warnings),
            notes=(*result.notes, *notes),
            seconds=time.perf_counter() - started,
        )
        output.result(result, page, as_json=values.json)
    return 0


def prepare(argv: list[str]) -> int:
    """images on disk -> a store that training reads fast"""
    args: arguments.PrepareArguments = arguments.parse(arguments.PrepareArguments, argv, "prepare")
    from alexnet import api

    if args.check:
        return _check_store(args)
    recipe = Recipe(
        stored_size=args.size,
        fit=args.fit,
        validation=args.validation,
        test=args.test,
        seed=args.seed,
        select_weights="best" if args.validation else "last",
    )
    store = api.prepare(
        args.data,
        args.store,
        recipe,
        arguments.data_options(args.source),
        encoding=args.encoding,
        quality=args.quality,
        mixed=args.mixed,
        shard_bytes=int(args.shard_mb * 2**20),
        engine=args.engine,
    )
    rows = [(name, str(len(store.split(name)))) for name in ("train", "validation", "test")]
    output.table(f"{store.address}: {len(store.classes)} classes, {store.size} pixels", ("split", "images"), rows)
    return 0


def _check_store(args: arguments.PrepareArguments) -> int:
    from alexnet.data.prepare import check
    from alexnet.data.store import Store

    store = Store.open(args.store)
    result = check(arguments.data_options(args.source).open(args.data), store)
    for line in result:
        print(line)
    return _fail(f"{len(result)} differences between {args.data} and {args.store}", 1) if result else 0


def evaluate(argv: list[str]) -> int:
    """top-1 and top-5 of a trained classifier, or of several as an ensemble, on a test split"""
    args: arguments.EvaluateArguments = arguments.parse(arguments.EvaluateArguments, argv, "evaluate")
    if not args.runs:
        return _fail("evaluate needs RUN: a run folder or a bundle; several are an ensemble", 2)
    from alexnet import api

    runs, data = api.members_and_data(args.runs)
    if honest.asked(args):
        return honest.details(args, runs, data)
    scores = api.evaluate(
        runs,
        data,
        split=args.split,
        crops=args.crops,
        device=args.device,
        fit_weights=args.fit_weights,
        options=replace(arguments.data_options(args.source), include_training_images=args.include_training_images),
    )
    output.scores(scores, as_json=args.json, provenance=api.provenance(runs[0]) if len(runs) == 1 else None)
    return 0


def predict(argv: list[str]) -> int:
    """the predictions of a trained classifier for files, folders and globs"""
    args: arguments.PredictArguments = arguments.parse(arguments.PredictArguments, argv, "predict")
    if args.top < 1:
        return _fail(f"--top is {args.top}; must be at least 1", 2)
    if not args.images:
        return _fail("predict needs IMAGES: files, folders or globs", 2)
    paths, failures = _expand(args.images), 0
    answer, below = export.answerer(args, len(paths))
    results: list[dict[str, Any]] = []
    for start in range(0, len(paths), _BATCH):
        for path, prediction in _predictions(answer, paths[start : start + _BATCH]):
            if isinstance(prediction, ImageError):
                failures += 1
                output.say(f"alexnet: {printable(str(prediction))}")
                results.append({"filename": str(path), "error": str(prediction)})
            else:
                results.append(prediction.to_dict())
    output.PREDICTIONS[args.format](results, args.top, below)
    return 1 if failures else 0


_BATCH = 32  # images of one pass through the network


def _predictions(
    predict: "Callable[[Sequence[Path]], list[Prediction]]", paths: Sequence[Path]
) -> "Iterator[tuple[Path, Prediction | ImageError]]":
    """In one pass; one by one where an image cannot be read, so that the others are predicted."""
    try:
        yield from zip(paths, predict(paths), strict=True)
    except ImageError as error:
        if len(paths) == 1:
            yield paths[0], error
        else:
            for path in paths:
                yield from _predictions(predict, [path])


def _expand(argv: Sequence[str]) -> list[Path]:
    """Files as they are, folders with every image below them, globs with what they match; in order, each once."""
    from alexnet.data.remote import local_path
    from alexnet.data.sources.folders import image_files

    results: dict[Path, None] = {}
    for word in argv:
        if local_path(word).is_dir():
            paths = image_files(Path(word))
        elif glob.has_magic(word) and not Path(word).exists():
            paths = [Path(p) for p in sorted(glob.glob(word, recursive=True)) if Path(p).is_file()]  # noqa: PTH207
        else:
            paths = [Path(word)]
        if not paths:
            raise ImageError(f"{word!r} holds no images", "a file, a folder with images, or a glob that matches")
        results |= dict.fromkeys(paths)
    return list(results)


def plot(argv: list[str]) -> int:
    """what a run learned and why it answers so, as a PNG: filters, saliency, neighbors …"""
    args: arguments.PlotArguments = arguments.parse(arguments.PlotArguments, argv, "plot")
    from alexnet import api

    arguments.choose_cache()
    path = api.plot(
        args.kind,
        args.run,
        args.output,
        count=args.count,
        images=_expand(args.images),
        layer=args.layer,
        target_class=args.target_class,
        method=args.method,
        device=args.device,
        say=output.say,
        progress=output.Progress("indexing"),
    )
    print(path)
    return 0


def models(argv: list[str]) -> int:
    """list the networks; with a name, its layers one by one"""
    args: arguments.ModelsArguments = arguments.parse(arguments.ModelsArguments, argv, "models")
    import torch

    from alexnet.models import create_model, describe, list_models, list_peers
    from alexnet.models.summary import summarize

    if args.name is None:
        results = {name: describe(name) for name in (*list_models(), *list_peers())}
        if args.json:
            print(json.dumps(results, indent=1))
        else:
            output.table("", ("network", "what it is"), list(results.items()))
        return 0
    with torch.device("meta"):  # shapes alone: no weights are drawn
        network = create_model(
            args.name,
            num_classes=args.num_classes,
            in_channels=args.in_channels,
            image_size=args.image_size,
        )
    summary = summarize(network)
    if args.json:
        print(json.dumps(summary.as_dict(), indent=1))
    else:
        table = summary.render()
        output.table(table.title, table.columns, [*table.rows, table.totals], right=5)
    return 0


def show_recipes(argv: list[str]) -> int:
    """list the recipes; with a name, its numbers; with two, where they differ"""
    args: arguments.RecipesArguments = arguments.parse(arguments.RecipesArguments, argv, "recipes")
    if args.name is None:
        results = {name: recipes.describe(name) for name in recipes.list_recipes()}
        print(json.dumps(results, indent=1)) if args.json else output.table(
            "", ("recipe", "what it is"), [*results.items()]
        )
    elif args.other is None:
        chosen = recipes.get_recipe(args.name)
        print(json.dumps(chosen.to_dict(), indent=1) if args.json else chosen.to_toml(), end="\n" if args.json else "")
    else:
        output.differences(args.name, args.other, as_json=args.json)
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "doctor": doctor,
    "prepare": prepare,
    "evaluate": evaluate,
    "compare": honest.compare,
    "predict": predict,
    "plot": plot,
    "report": report,
    "import": import_weights.run,
    "export": export.export,
    "compress": compress,
    "verify": export.verify,
    "serve": serve,
    "models": models,
    "layers": layers.run,
    "recipes": show_recipes,
    "study claims": claims,
    "study scaling": scaling.run,
    "study contest": contest,
    "study depth": depth,
    "bench": bench,
}
