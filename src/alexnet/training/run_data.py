"""The store of a training: opened, found in the cache, or prepared; and the data options that a run recorded."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexnet.data.prepare import prepare as prepare_store
from alexnet.data.remote import RemoteBackend, is_address
from alexnet.data.sources import Source, is_store
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store
from alexnet.errors import RecipeError, counted
from alexnet.recipe import Recipe, is_overridden, option
from alexnet.system import cache_folder
from alexnet.training.run import check_store

SHUFFLE_WINDOW = 16  # default shards that are mixed at a time where the store lies behind an address


def open_store(data: str | Path, recipe: Recipe, options: DataOptions) -> Store:
    """The store of ``data``: ``data`` itself if it is a store, else images that are prepared into the cache once.

    Raises:
        AlexNetError: If a run with this recipe can not use the store, or an option has no effect on ``data``.
    """
    if is_store(data):
        store = Store.open(data)
        check_store(recipe, store)
        refuse_on_store(options)
        for name in ("validation", "test"):
            stored = store.metadata["settings"].get(name)
            if is_overridden(recipe, name) and getattr(recipe, name) != stored:
                _refuse(option(name), f"store {store.address}, which is split already", "prepare another store with it")
        return store
    source = options.open(data)
    for name in ("validation", "test"):
        if name in source.splits and is_overridden(recipe, name):
            _refuse(option(name), f"{data}, which has a {name} split of its own", "give images without splits")
    return cached(source, recipe, options)


def refuse_on_store(options: DataOptions) -> None:
    """Raise :class:`RecipeError` for an option about reading images, which a prepared store ignores."""
    ignored = options.to_args() + ["--download"] * options.download
    if ignored:
        _refuse(ignored[0], "a prepared store", "give the images themselves as DATA")


def _refuse(name: str, data: str, hint: str) -> None:
    raise RecipeError(f"{name} has no effect on {data}", "", f"leave it out, or {hint}")


def data_of_run(metadata: Mapping[str, Any]) -> str:
    """The data that run.json (``metadata``) names: a path that is valid in any working directory, or a name."""
    path = Path(metadata.get("directory", "")) / metadata["data"]
    return str(path) if path.exists() else str(metadata["data"])


def options_of_run(metadata: Mapping[str, Any], options: DataOptions, data: str | Path | None = None) -> DataOptions:
    """``options``, completed by those that run.json (``metadata``) recorded for reading the training data.

    For the run's own data every recorded option is used. For other data only the options about the layout are, since
    a list of images or a column with groups belongs to one data set.

    Args:
        metadata: The contents of run.json.
        options: The options of this call; they win over recorded ones.
        data: The images to read; by default the run's own.
    """
    is_own = (
        data is None or str(data) == metadata["data"] or Path(data).resolve() == Path(data_of_run(metadata)).resolve()
    )
    recorded = metadata.get("options", ())
    return options.with_recorded(recorded, Path(metadata.get("directory", "")), only_layout=not is_own)


def shuffle_window(data: str | Path, recipe: Recipe) -> int:
    """The recipe's shuffle window, with 0 resolved for this data; the run's recipe records the result."""
    return recipe.shuffle_window or (SHUFFLE_WINDOW if is_address(data) and recipe.sampling == "natural" else 0)


def cached(source: Source, recipe: Recipe, options: DataOptions) -> Store:
    """The store of ``source`` in the cache; prepared first if it is not there."""
    cache = options.cache or cache_folder()
    path = cache / _store_name(source, recipe, options)
    options.log_line(f"{'found prepared in' if is_store(path) else 'preparing into'} {path}")
    return prepare(source, path, recipe, options)


def prepare(
    data: Source | str | Path,
    path: str | Path,
    recipe: Recipe | None = None,
    options: DataOptions | None = None,
    **kwargs: Any,
) -> Store:
    """Decode and resize images once, and write them as a store that training reads.

    Args:
        data: A data set's name, a folder, an archive, a table, or an opened source.
        path: The new store: a folder, or an address (``s3://…``). For an address the store is prepared on the local
            disk, which needs the space, and then copied.
        recipe: Its stored size, fit, split sizes and seed are used.
        options: How ``data`` is read.
        **kwargs: ``encoding``, ``quality``, ``mixed``, ``shard_bytes`` and ``engine`` of
            :func:`alexnet.data.prepare.prepare`.

    Returns:
        The store.

    Raises:
        DataError: If the images can not be used or the store can not be written.

    Example:
        >>> store = alexnet.prepare("photos/", "photos-store")
        >>> alexnet.train(store.path, run="my-run")
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
        log=options.log,
        **kwargs,
    )
    if store.skipped:
        options.log_line(
            f"left out: {counted(store.skipped, 'unusable image')}, listed in {store.path / 'skipped.jsonl'}"
        )
    if not is_address(path):
        return store
    RemoteBackend(str(path)).send(folder, options.log_line)
    options.log_line(f"the store is in {path}, and still in {folder}, which may be removed")
    return Store.open(path)


def _staging(address: str, options: DataOptions) -> Path:
    """The local folder in which a store is prepared before it is copied to ``address``."""
    digest = hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16]
    return (options.cache or cache_folder()) / "sending" / digest


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
