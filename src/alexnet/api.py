"""The verbs, from Python: the command line calls these and prints what they return."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from alexnet import recipe as recipes
from alexnet.bundle import Bundle
from alexnet.data.prepare import prepare as prepare_store
from alexnet.data.sources import Source, is_store, open_source
from alexnet.data.splits import whole
from alexnet.data.store import Store
from alexnet.deploy.classifier import Classifier
from alexnet.errors import BundleError, DataError, RunError
from alexnet.evaluation import evaluate as evaluation
from alexnet.evaluation.metrics import Scores
from alexnet.recipe import Recipe
from alexnet.training import machine
from alexnet.training import run as runs

Progress = Callable[[int, int], None]
DRAWINGS = ("filters", "curves", "confusion", "predictions")


@dataclass(frozen=True)
class Result:
    """What training made: its folder, the bundle in it, scores by split, and how fast it was."""

    folder: Path
    bundle: Path
    scores: dict[str, Scores]
    images_per_second: float
    seconds: float
    recipe: Recipe
    pictures: tuple[Path, ...]
    notes: tuple[str, ...] = ()  # what to keep in mind about these numbers

    def classifier(self) -> Classifier:
        """The trained classifier, ready to predict."""
        return Classifier.load(self.bundle)


@dataclass(frozen=True)
class DataOptions:
    """How pictures are found and read, beyond what the recipe says."""

    data_root: Path | None = None
    download: bool = False
    cache: Path | None = None
    bad: Literal["exclude", "fail"] = "exclude"
    allow_truncated: bool = False
    progress: Progress | None = None
    say: Callable[[str], None] | None = None

    def tell(self, text: str) -> None:
        """A line for the person, if anyone listens."""
        if self.say is not None:
            self.say(text)


def train(
    data: str | Path,
    recipe: Recipe | str | None = None,
    run: str | Path | None = None,
    *,
    options: DataOptions | None = None,
    device: str = "auto",
    workers: int = 1,
    quiet: bool = True,
    **changes: Any,
) -> Result:
    """Train a classifier on ``data`` (a name, a folder, a store) and return what became of it.

    ``recipe`` is a :class:`Recipe` or the name of one; without it the data and ``model=`` choose. Any number of it can
    be changed by name: ``train("digits", epochs=3)``. ``run`` is a new folder for everything that is made.
    """
    options = options or DataOptions()
    if recipe is None:
        recipe = recipes.default_for(str(data), changes.get("model"))
    elif isinstance(recipe, str):
        recipe = recipes.named(recipe)
    chosen = torch_device(device)
    recipe = recipe.replace(**changes)
    recipe = recipe.replace(precision=machine.choose_precision(recipe.precision, chosen))  # what auto means here
    folder = Path(run) if run is not None else _new_folder(data, recipe)
    runs.refuse_used(folder)
    store = open_store(data, recipe, options)
    with runs.locked(folder):
        runs.refuse_used(folder)
        runs.write_start(folder, recipe, {"data": str(data), "store": str(store.path.resolve())})
        return _run(recipe, store, folder, chosen, workers, quiet)


def resume(
    run: str | Path, *, store: str | Path | None = None, device: str = "auto", workers: int = 1, quiet: bool = True
) -> Result:
    """Go on with a run from its newest checkpoint, or from the checkpoint file that ``run`` names."""
    given = Path(run)
    folder = given.parent.parent if given.suffix == ".pt" else given
    recipe, about = runs.read_start(folder)
    chosen = torch_device(device)
    with runs.locked(folder):
        opened = Store.open(Path(store or about["store"]))
        checkpoint = given if given.suffix == ".pt" else None
        return _run(recipe, opened, folder, chosen, workers, quiet, resume=True, resume_from=checkpoint)


def _run(
    recipe: Recipe, store: Store, folder: Path, device: torch.device, workers: int, quiet: bool, **how: Any
) -> Result:
    started = time.perf_counter()
    with machine.tuned():
        bundle, scores, rate = runs.run(recipe, store, folder, device=device, workers=workers, quiet=quiet, **how)
    pictures = tuple(draw(what, folder) for what in DRAWINGS)
    seconds = time.perf_counter() - started
    return Result(folder, bundle, scores, rate, seconds, recipe, pictures, _notes(store, scores))


FEW = 100  # training pictures a class under which a network that starts from nothing is told to expect little


def _notes(store: Store, scores: dict[str, Scores]) -> tuple[str, ...]:
    """What so many pictures can teach and show, honestly."""
    train, notes = store.split("train"), []
    each = np.bincount(train.labels, minlength=len(store.classes))
    if each.min() < FEW:
        rare = store.classes[int(each.argmin())]
        notes.append(
            f"{len(train)} pictures taught {len(store.classes)} classes, {each.min()} of {rare!r}: few for a network "
            f"that starts from nothing. More pictures, at least {FEW} a class, will help more than any option."
        )
    if "test" in scores:
        low, high = scores["test"].top1_interval
        often = np.bincount(store.split("test").labels).max() / scores["test"].count
        notes.append(
            f"{scores['test'].count} test pictures put the true top-1 between {100 * low:.1f} and {100 * high:.1f} % "
            f"(95 % sure); always guessing the most frequent class would reach {100 * often:.1f} %."
        )
    return tuple(notes)


def torch_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` -> device; raises :class:`alexnet.errors.RecipeError`."""
    return machine.choose_device(name)


def _new_folder(data: str | Path, recipe: Recipe) -> Path:
    stem = f"{Path(data).resolve().name if Path(data).exists() else data}-{recipe.model}"
    number = 1
    while (folder := Path("runs") / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return folder


def open_store(data: str | Path, recipe: Recipe, options: DataOptions) -> Store:
    """The store of ``data``: opened where it is one, else prepared into the cache (or found there)."""
    if is_store(Path(data)):
        return Store.open(Path(data))
    return _cached(_open_source(data, options), recipe, options)


def _open_source(data: str | Path, options: DataOptions) -> Source:
    source = open_source(data, data_root=options.data_root, download=options.download)
    for note in source.notes:
        options.tell(note)
    return source


def _cached(source: Source, recipe: Recipe, options: DataOptions) -> Store:
    cache = options.cache or Path.home() / ".cache" / "alexnet"
    path = cache / _store_name(source, recipe, options)
    options.tell(f"{'found prepared in' if is_store(path) else 'preparing into'} {path}")
    return prepare(source, path, recipe, options)


def prepare(
    data: Source | str | Path, path: str | Path, recipe: Recipe | None = None, options: DataOptions | None = None
) -> Store:
    """Prepare pictures into a store at ``path``: sizes, fit, splits and seed are the recipe's."""
    recipe, options = recipe or Recipe(), options or DataOptions()
    store = prepare_store(
        data if isinstance(data, Source) else _open_source(data, options), Path(path),
        size=recipe.stored_size, fit=recipe.fit, validation=recipe.validation, test=recipe.test, seed=recipe.seed,
        bad=options.bad, allow_truncated=options.allow_truncated, progress=options.progress, say=options.say,
    )  # fmt: skip
    if store.skipped:
        options.tell(f"{store.skipped} unusable pictures were left out; {store.path / 'skipped.jsonl'} lists them")
    return store


def _store_name(source: Source, recipe: Recipe, options: DataOptions) -> str:
    settings = (
        source.fingerprint, sorted(source.splits), recipe.stored_size, recipe.fit, recipe.validation, recipe.test,
        recipe.seed, options.bad, options.allow_truncated,
    )  # fmt: skip
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    return f"{source.name}-{recipe.stored_size}-{digest}"


def evaluate(
    run: str | Path | Classifier,
    data: str | Path | None = None,
    *,
    split: str = "test",
    views: int = 1,
    device: str = "auto",
    options: DataOptions | None = None,
) -> Scores:
    """Scores of a run or bundle on a split: of the run's own data, or of ``data`` with the same classes.

    A folder without splits that is not the run's own is evaluated whole, every picture of it. Raises
    :class:`BundleError` where the classes differ or the split does not exist.
    """
    chosen = torch_device(device)
    classifier = run if isinstance(run, Classifier) else Classifier.load(run, chosen)
    bundle = classifier.bundle
    store = _store_to_evaluate(run, bundle, data, options or DataOptions())
    bundle.same_classes(store.classes, str(data or store.path))
    if views == 10 and bundle.recipe.get("mirror") is False and options is not None:
        options.tell("trained without mirrors: half of the ten views are mirrored pictures, which it has never seen")
    return evaluation.evaluate(
        bundle.network, store.split(split), bundle.statistics, classes=len(bundle.classes), side=bundle.image_size,
        channels=bundle.network.in_channels, views=views, device=classifier.device,
    )  # fmt: skip


def _store_to_evaluate(run: Any, bundle: Bundle, data: str | Path | None, options: DataOptions) -> Store:
    if data is None:
        about = Path("" if isinstance(run, Classifier) else run) / "run.json"
        if not about.is_file():
            raise BundleError("a bundle alone knows no data", "a run folder, or data to evaluate on", "give DATA too")
        return Store.open(_store_of(about.parent))
    store = Store.open(Path(data)) if is_store(Path(data)) else _prepared_alike(data, bundle, options)
    if (store.size, store.fit) != (bundle.stored_size, bundle.fit):
        raise DataError(
            f"store {store.path} holds pictures of {store.size} pixels ({store.fit})",
            f"{bundle.stored_size} ({bundle.fit}), as the classifier was trained on",
            "evaluate on the pictures themselves",
        )
    return store


def _prepared_alike(data: str | Path, bundle: Bundle, options: DataOptions) -> Store:
    """Pictures in the bundle's stored form. Its own training pictures are split as they were for training, so that
    none of them is tested on; others without a test split are a test split as a whole."""
    recipe = recipes.from_dict(bundle.recipe).replace(stored_size=bundle.stored_size, fit=bundle.fit)
    source = _open_source(data, options)
    own = source.fingerprint == bundle.data.get("source")
    if not own and "test" not in source.splits:
        options.tell(f"{data} has no splits and is not what the classifier was trained on: all of it is the test")
        source = whole(source)
    return _cached(source, recipe, options)


def _store_of(run: Path) -> Path:
    """Where the prepared pictures of a run lie."""
    return Path(runs.read_start(run)[1]["store"])


def load(run: str | Path, device: str = "auto") -> Classifier:
    """The classifier of a run folder or bundle, ready to ``predict`` and ``embed``."""
    return Classifier.load(run, torch_device(device))


def draw(what: str, run: str | Path, path: str | Path | None = None, *, count: int = 16) -> Path:
    """Draw ``filters``, ``curves``, ``confusion`` or ``predictions`` of a run (filters of a bundle too) as a PNG.

    Without ``path`` it goes into the run's ``pictures`` folder. ``count`` is for predictions: how many test pictures.
    """
    if what not in DRAWINGS:
        raise RunError(f"there is no drawing {what!r}", recipes.nearest(what, list(DRAWINGS)))
    run = Path(run)
    target = Path(path) if path else run / "pictures" / f"{what}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    if what == "curves":
        return _draw_curves(run, target)
    classifier = Classifier.load(run)
    if what == "filters":
        return _draw_filters(classifier, target)
    if what == "confusion":
        return _draw_confusion(run, classifier, target)
    return _draw_predictions(run, classifier, target, count)


def _draw_curves(run: Path, target: Path) -> Path:
    import csv

    from alexnet.visualize import curves

    try:
        with (run / "results.csv").open(newline="", encoding="utf-8") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    except OSError as error:
        raise RunError(f"{run} has no results.csv: {error.strerror}", "a run folder") from error
    return curves.draw(rows, target)


def _draw_filters(classifier: Classifier, target: Path) -> Path:
    from alexnet.visualize import filters

    network = classifier.network
    first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    weights = first.weight.detach().float().cpu().contiguous().numpy()
    return filters.draw(weights, network.towers, target)


def _draw_confusion(run: Path, classifier: Classifier, target: Path) -> Path:
    from alexnet.visualize import confusion

    return confusion.draw(evaluate(classifier, _store_of(run)).confusion.numpy(), list(classifier.classes), target)


def _draw_predictions(run: Path, classifier: Classifier, target: Path, count: int) -> Path:
    from alexnet.visualize import predictions

    store = Store.open(_store_of(run))
    split = store.split("test")
    chosen = np.random.default_rng(0).permutation(len(split))[:count].astype(np.int64)
    images = split.gather(chosen)
    guesses = [list(p.guesses) for p in classifier.predict(list(images))]
    truths: Sequence[str | None] = [store.classes[k] for k in split.labels[chosen]]
    return predictions.draw(list(images), list(truths), guesses, target)
