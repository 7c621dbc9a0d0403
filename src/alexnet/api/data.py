"""From what a person named to prepared images: opened, found in the cache, or prepared into it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexnet.data.prepare import prepare as prepare_store
from alexnet.data.remote import Remote, is_address
from alexnet.data.sources import Source, is_store
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store
from alexnet.errors import RecipeError, counted
from alexnet.recipe import Recipe, is_overridden, option
from alexnet.training.run import check_store


def open_store(data: str | Path, recipe: Recipe, options: DataOptions) -> Store:
    """The store of ``data``: opened where it is one, else prepared into the cache (or found there).

    Raises :class:`alexnet.errors.AlexNetError` for a store that a run with this recipe cannot use, and for an option
    that has no effect on this data.
    """
    if is_store(data):
        store = Store.open(data)
        check_store(recipe, store)
        refuse_on_store(options)
        for name in ("validation", "test"):
            own = store.about["settings"].get(name)
            if is_overridden(recipe, name) and getattr(recipe, name) != own:
                _refuse(option(name), f"store {store.address}, which has its splits", "prepare another store with it")
        return store
    source = options.open(data)
    for name in ("validation", "test"):
        if name in source.splits and is_overridden(recipe, name):
            _refuse(option(name), f"{data}, which has a {name} split of its own", "give images without splits")
    return cached(source, recipe, options)


def refuse_on_store(options: DataOptions) -> None:
    """Raise :class:`RecipeError` for an option about images that a store does not read any more."""
    words = options.words() + ["--download"] * options.download
    if words:
        _refuse(words[0], "a prepared store", "give the images themselves as DATA")


def _refuse(name: str, what: str, todo: str) -> None:
    raise RecipeError(f"{name} has no effect on {what}", "", f"leave it out, or {todo}")


def data_of_run(about: Mapping[str, Any]) -> str:
    """What run.json names as the data, as a path that holds in any folder if it is one."""
    path = Path(about.get("directory", "")) / about["data"]
    return str(path) if path.exists() else str(about["data"])


def options_of_run(about: Mapping[str, Any], options: DataOptions, data: str | Path | None = None) -> DataOptions:
    """The options to read ``data`` (default: what the run was trained on) with, from its run.json.

    What ``options`` leave at its default is as it was in training: everything for the data of the run; for other data
    how its layout is read, since a list of images or a column with groups belongs to one data set.
    """
    own = data is None or str(data) == about["data"] or Path(data).resolve() == Path(data_of_run(about)).resolve()
    return options.completed(about.get("options", ()), Path(about.get("directory", "")), only_layout=not own)


WINDOW = 16  # shards mixed at a time where a store lies behind an address and the recipe leaves it open


def shuffle_window(data: str | Path, recipe: Recipe) -> int:
    """The recipe's window, or what 0 means for this data: written into the run's recipe, so that it never changes."""
    return recipe.shuffle_window or (WINDOW if is_address(data) and recipe.sampling == "natural" else 0)


def cached(source: Source, recipe: Recipe, options: DataOptions) -> Store:
    cache = options.cache or Path.home() / ".cache" / "alexnet"
    path = cache / _store_name(source, recipe, options)
    options.tell(f"{'found prepared in' if is_store(path) else 'preparing into'} {path}")
    return prepare(source, path, recipe, options)


def prepare(
    data: Source | str | Path,
    path: str | Path,
    recipe: Recipe | None = None,
    options: DataOptions | None = None,
    **how: Any,
) -> Store:
    """Prepare images into a store at ``path``: sizes, fit, splits and seed are the recipe's.

    To an address (``s3://…``) it is prepared on this disk, which needs the room, and copied. ``how``: encoding,
    quality, mixed, shard_bytes, engine, as in :func:`alexnet.data.prepare.prepare`.
    """
    recipe, options = recipe or Recipe(), options or DataOptions()
    folder = _staging(str(path), options) if is_address(path) else Path(path)
    store = prepare_store(
        data if isinstance(data, Source) else options.open(data),
        folder,
        size=recipe.stored_size,
        fit=recipe.fit,
        validation=recipe.validation,
        test=recipe.test,
        seed=recipe.seed,
        bad=options.bad,
        allow_truncated=options.allow_truncated,
        progress=options.progress,
        say=options.say,
        **how,
    )
    if store.skipped:
        options.tell(f"left out: {counted(store.skipped, 'unusable image')}, listed in {store.path / 'skipped.jsonl'}")
    if not is_address(path):
        return store
    Remote(str(path)).send(folder, options.tell)
    options.tell(f"the store is in {path}, and still in {folder}, which may be removed")
    return Store.open(path)


def _staging(address: str, options: DataOptions) -> Path:
    """Where a store is prepared that is then copied to ``address``."""
    digest = hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16]
    return (options.cache or Path.home() / ".cache" / "alexnet") / "sending" / digest


def _store_name(source: Source, recipe: Recipe, options: DataOptions) -> str:
    settings = (
        source.fingerprint,
        sorted(source.splits),
        recipe.stored_size,
        recipe.fit,
        recipe.validation,
        recipe.test,
        recipe.seed,
        options.bad,
        options.allow_truncated,
        *sorted(source.selection().items()),
    )
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    return f"{source.name}-{recipe.stored_size}-{digest}"
