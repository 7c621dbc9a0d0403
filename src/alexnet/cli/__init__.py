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
from alexnet.cli import arguments, honest, import_weights, layers, scaling, ship, show, signals
from alexnet.cli.bench import bench
from alexnet.cli.claims import claims
from alexnet.cli.compress import compress
from alexnet.cli.contest import contest, depth
from alexnet.cli.doctor import doctor
from alexnet.cli.report import at_the_end, report
from alexnet.cli.serve import serve
from alexnet.errors import AlexNetError, Interrupted, PictureError, RecipeError, no_files, no_memory, printable, reason
from alexnet.recipe import Recipe
from alexnet.terminal import safe_output

if TYPE_CHECKING:
    from alexnet.deploy.answers import Prediction


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status."""
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] != ["serve"]:  # it has handlers of its own
        signals.handle()
    sys.exit(run(words))


def run(words: list[str]) -> int:
    """Run a command line; returns the exit status."""
    with safe_output():
        return _run(words)


def _run(words: list[str]) -> int:
    try:
        status = _command(words)
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


def _command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"alexnet {version('alexnet')}")
        return 0
    verb = _VERBS.get(words[0])
    if verb is None:
        return _fail(f"there is no command {words[0]!r}; must be {recipes.nearest(words[0], list(_VERBS))}", 2)
    return verb(words[1:])


def _fail(message: str, status: int) -> int:
    show.say(f"alexnet: {printable(message)}")
    return status


def _overview() -> str:
    lines = ["usage: alexnet COMMAND …          alexnet COMMAND --help tells the options of one", ""]
    for name, verb in _VERBS.items():
        lines.append(f"  {name:<10} {(verb.__doc__ or '').splitlines()[0]}")
    lines += ["", "To begin: alexnet train digits"]
    return "\n".join(lines)


def train(words: list[str]) -> int:
    """learn to tell pictures apart: digits, a folder, a store, cifar10 …"""
    started = time.perf_counter()  # before the libraries are imported
    given, start = arguments.parse_train(words)
    from alexnet import api
    from alexnet.training.parallel import Layout

    layout = Layout(given.parallel, given.split, given.accumulate)
    again = (
        int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    )  # torchrun starts this command again after a fault
    if again and given.run is None and given.resume is None:
        return _fail("torchrun --max-restarts needs --run FOLDER: what is started again must find its run", 2)
    if given.resume is not None:
        arguments.only_resume(given)
        arguments.data_options(given.source)  # where shards are fetched to
        result = api.resume(
            given.resume, store=given.store, device=given.device, workers=given.workers, quiet=given.quiet,
            layout=layout,
        )  # fmt: skip
    elif given.store is not None:
        return _fail("--store tells where the data of a run to --resume is; pass the store as DATA instead", 2)
    elif given.data is None:
        return _fail("train needs DATA: digits, a folder, a store or the name of a set (or --resume RUN)", 2)
    else:
        result = api.train(
            given.data, given.recipe, given.run, start=start,
            options=arguments.data_options(given.source), device=given.device, workers=given.workers, quiet=given.quiet,
            layers=given.layers, layer_params=given.layer_params, layout=layout, go_on=again,
        )  # fmt: skip
    if result.first:
        page, warnings, notes = at_the_end(result.folder, given)
        result = replace(
            result, warnings=(*warnings, *result.warnings), notes=(*result.notes, *notes),
            seconds=time.perf_counter() - started,
        )  # fmt: skip
        show.result(result, page, as_json=given.json)
    return 0


def prepare(words: list[str]) -> int:
    """pictures on disk -> a store that training reads fast"""
    given: arguments.PrepareArguments = arguments.parse(arguments.PrepareArguments, words, "prepare")
    from alexnet import api

    if given.check:
        return _check_store(given)
    recipe = Recipe(
        stored_size=given.size, fit=given.fit, validation=given.validation, test=given.test, seed=given.seed,
        keep="best" if given.validation else "last",
    )  # fmt: skip
    store = api.prepare(
        given.data, given.store, recipe, arguments.data_options(given.source), encoding=given.encoding,
        quality=given.quality, mixed=given.mixed, shard_bytes=int(given.shard_mb * 2**20), engine=given.engine,
    )  # fmt: skip
    rows = [(name, str(len(store.split(name)))) for name in ("train", "validation", "test")]
    show.table(f"{store.address}: {len(store.classes)} classes, {store.size} pixels", ("split", "pictures"), rows)
    return 0


def _check_store(given: arguments.PrepareArguments) -> int:
    from alexnet.data.prepare import check
    from alexnet.data.store import Store

    store = Store.open(given.store)
    found = check(arguments.data_options(given.source).open(given.data), store)
    for line in found:
        print(line)
    return _fail(f"{len(found)} differences between {given.data} and {given.store}", 1) if found else 0


def evaluate(words: list[str]) -> int:
    """top-1 and top-5 of a trained classifier, or of several as an ensemble, on a test split"""
    given: arguments.EvaluateArguments = arguments.parse(arguments.EvaluateArguments, words, "evaluate")
    if not given.runs:
        return _fail("evaluate needs RUN: a run folder or a bundle; several are an ensemble", 2)
    from alexnet import api

    runs, data = api.members_and_data(given.runs)
    if honest.asked(given):
        return honest.details(given, runs, data)
    scores = api.evaluate(
        runs, data, split=given.split, views=given.views, device=given.device, fit_weights=given.fit_weights,
        options=replace(
            arguments.data_options(given.source), include_training_images=given.include_training_images
        ),
    )  # fmt: skip
    show.scores(scores, as_json=given.json, provenance=api.provenance(runs[0]) if len(runs) == 1 else None)
    return 0


def predict(words: list[str]) -> int:
    """the guesses of a trained classifier for files, folders and globs"""
    given: arguments.PredictArguments = arguments.parse(arguments.PredictArguments, words, "predict")
    if given.top < 1:
        return _fail(f"--top is {given.top}; must be at least 1", 2)
    if not given.pictures:
        return _fail("predict needs PICTURES: files, folders or globs", 2)
    paths, failures = _expand(given.pictures), 0
    answer, below = ship.answerer(given, len(paths))
    found: list[dict[str, Any]] = []
    for start in range(0, len(paths), _BATCH):
        for path, prediction in _predictions(answer, paths[start : start + _BATCH]):
            if isinstance(prediction, PictureError):
                failures += 1
                show.say(f"alexnet: {printable(str(prediction))}")
                found.append({"picture": str(path), "error": str(prediction)})
            else:
                found.append(prediction.to_dict())
    show.PREDICTIONS[given.format](found, given.top, below)
    return 1 if failures else 0


_BATCH = 32  # images of one pass through the network


def _predictions(
    predict: "Callable[[Sequence[Path]], list[Prediction]]", paths: Sequence[Path]
) -> "Iterator[tuple[Path, Prediction | PictureError]]":
    """In one pass; one by one where an image cannot be read, so that the others are predicted."""
    try:
        yield from zip(paths, predict(paths), strict=True)
    except PictureError as error:
        if len(paths) == 1:
            yield paths[0], error
        else:
            for path in paths:
                yield from _predictions(predict, [path])


def _expand(words: Sequence[str]) -> list[Path]:
    """Files as they are, folders with every picture below them, globs with what they match; in order, each once."""
    from alexnet.data.folders import image_files
    from alexnet.data.remote import local_path

    found: dict[Path, None] = {}
    for word in words:
        if local_path(word).is_dir():
            paths = image_files(Path(word))
        elif glob.has_magic(word) and not Path(word).exists():
            paths = [Path(p) for p in sorted(glob.glob(word, recursive=True)) if Path(p).is_file()]  # noqa: PTH207
        else:
            paths = [Path(word)]
        if not paths:
            raise PictureError(f"{word!r} holds no pictures", "a file, a folder with pictures, or a glob that matches")
        found |= dict.fromkeys(paths)
    return list(found)


def draw(words: list[str]) -> int:
    """what a run learned and why it answers so, as a PNG: filters, saliency, neighbors …"""
    given: arguments.DrawArguments = arguments.parse(arguments.DrawArguments, words, "draw")
    from alexnet import api

    arguments.choose_cache()
    path = api.draw(
        given.what, given.run, given.output, count=given.count, pictures=_expand(given.pictures), layer=given.layer,
        of=given.of, method=given.method, device=given.device, say=show.say, progress=show.Progress("indexing"),
    )  # fmt: skip
    print(path)
    return 0


def models(words: list[str]) -> int:
    """list the networks; with a name, its layers one by one"""
    given: arguments.ModelsArguments = arguments.parse(arguments.ModelsArguments, words, "models")
    import torch

    from alexnet.models import create_model, describe, list_models, list_peers
    from alexnet.models.summary import summarize

    if given.name is None:
        found = {name: describe(name) for name in (*list_models(), *list_peers())}
        if given.json:
            print(json.dumps(found, indent=1))
        else:
            show.table("", ("network", "what it is"), list(found.items()))
        return 0
    with torch.device("meta"):  # shapes alone: no weights are drawn
        network = create_model(
            given.name,
            num_classes=given.num_classes,
            in_channels=given.in_channels,
            image_size=given.image_size,
        )
    summary = summarize(network)
    if given.json:
        print(json.dumps(summary.as_dict(), indent=1))
    else:
        table = summary.render()
        show.table(table.title, table.columns, [*table.rows, table.totals], right=5)
    return 0


def show_recipes(words: list[str]) -> int:
    """list the recipes; with a name, its numbers; with two, where they differ"""
    given: arguments.RecipesArguments = arguments.parse(arguments.RecipesArguments, words, "recipes")
    if given.name is None:
        found = {name: recipes.describe(name) for name in recipes.list_recipes()}
        print(json.dumps(found, indent=1)) if given.json else show.table("", ("recipe", "what it is"), [*found.items()])
    elif given.other is None:
        chosen = recipes.named(given.name)
        print(
            json.dumps(chosen.to_dict(), indent=1) if given.json else chosen.to_toml(), end="\n" if given.json else ""
        )
    else:
        show.differences(given.name, given.other, as_json=given.json)
    return 0


_VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "doctor": doctor,
    "prepare": prepare,
    "evaluate": evaluate,
    "compare": honest.compare,
    "predict": predict,
    "draw": draw,
    "report": report,
    "import": import_weights.run,
    "export": ship.export,
    "compress": compress,
    "verify": ship.verify,
    "serve": serve,
    "models": models,
    "layers": layers.run,
    "recipes": show_recipes,
    "claims": claims,
    "scaling": scaling.run,
    "contest": contest,
    "depth": depth,
    "bench": bench,
}
