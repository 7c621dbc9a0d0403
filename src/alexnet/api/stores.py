"""From what a person named to prepared pictures: opened, found in the cache, or prepared into it."""

import hashlib
from pathlib import Path

from alexnet.data.options import DataOptions
from alexnet.data.prepare import prepare as prepare_store
from alexnet.data.sources import Source, is_store
from alexnet.data.store import Store
from alexnet.recipe import Recipe


def open_store(data: str | Path, recipe: Recipe, options: DataOptions) -> Store:
    """The store of ``data``: opened where it is one, else prepared into the cache (or found there)."""
    if is_store(Path(data)):
        return Store.open(Path(data))
    return cached(options.open(data), recipe, options)


def cached(source: Source, recipe: Recipe, options: DataOptions) -> Store:
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
        data if isinstance(data, Source) else options.open(data), Path(path),
        size=recipe.stored_size, fit=recipe.fit, validation=recipe.validation, test=recipe.test, seed=recipe.seed,
        bad=options.bad, allow_truncated=options.allow_truncated, progress=options.progress, say=options.say,
    )  # fmt: skip
    if store.skipped:
        options.tell(f"{store.skipped} unusable pictures were left out; {store.path / 'skipped.jsonl'} lists them")
    return store


def _store_name(source: Source, recipe: Recipe, options: DataOptions) -> str:
    settings = (
        source.fingerprint, sorted(source.splits), recipe.stored_size, recipe.fit, recipe.validation, recipe.test,
        recipe.seed, options.bad, options.allow_truncated, *sorted(source.selection().items()),
    )  # fmt: skip
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    return f"{source.name}-{recipe.stored_size}-{digest}"
