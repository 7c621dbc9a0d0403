"""The images of a claim: a data set that a person named, cut to what a plan needs, and how large they are.

What would be run for a claim: networks, recipe, images, epochs, learning rates, seeds.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from alexnet import recipe as recipes
from alexnet.data import decode
from alexnet.data.sources import is_store
from alexnet.data.sources.listing import Sample, Source
from alexnet.data.sources.options import DataOptions
from alexnet.data.store import Store
from alexnet.errors import DataError, ModelError, RecipeError, RunError, printable
from alexnet.experiments.claims import Arm, Claim
from alexnet.models import create_model, list_models
from alexnet.models.summary import summarize
from alexnet.recipe import Recipe
from alexnet.schema import check, read_json
from alexnet.training.run_data import cached

SMALL, LARGE = 32, 256  # sides of stored images, pixels
PHOTOS = 128  # images with a shorter side of at least so many pixels are photographs, for 224-pixel crops


class Material(NamedTuple):
    """A data set before it is prepared (``source``), or a store."""

    name: str
    source: Source | None
    store: Store | None
    photos: bool  # large enough for 224-pixel crops?
    mirror: bool  # may its images be mirrored?


def find(data: str, options: DataOptions) -> Material:
    """What ``data`` names. Raises :class:`DataError`."""
    if is_store(data):
        store = Store.open(data)
        return Material(store.name, None, store, store.size >= 224, store.allow_hflip)
    source = options.open(data)
    first = next(images[0] for images in source.splits.values() if images)
    return Material(source.name, source, None, _side(first) >= PHOTOS, source.allow_hflip)


def _side(sample: Sample) -> int:
    loaded = sample.load()
    image = loaded if isinstance(loaded, np.ndarray) else decode.decode(loaded, sample.origin)
    return int(min(image.shape[:2]))


def prepare(material: Material, recipe: Recipe, images: int, options: DataOptions) -> Store:
    """The store that all members share. ``images``: most to train and choose, half as many to test; 0: all.

    The recipe's seed, size and shares are those of the plan's first member, so that every member has the same splits.
    """
    if material.store is not None:
        return _usable(material.store, recipe, images)
    assert material.source is not None
    source = few(material.source, images) if images else material.source
    return cached(source, recipe, options)


def _usable(store: Store, recipe: Recipe, images: int) -> Store:
    if (store.size, store.fit) != (recipe.stored_size, recipe.fit):
        raise DataError(
            f"store {store.address} holds images of {store.size} pixels ({store.fit})",
            f"{recipe.stored_size} ({recipe.fit})",
            "give the images themselves",
        )
    for name in ("validation", "test"):
        if not len(store.split(name)):
            raise DataError(f"store {store.address} has no {name} split", "one", "prepare another")
    if images and len(store.split("train")) > images:
        raise DataError(
            f"store {store.address} has {len(store.split('train'))} training images",
            f"at most {images} for this plan",
            "give the images themselves, of which some are taken, or --images 0",
        )
    return store


def few(source: Source, images: int) -> Source:
    """At most ``images`` of the training images and half as many of the test's, evenly from each class."""
    limits = {"train": images, "validation": images // 2, "test": images // 2, "all": images * 3 // 2}
    splits = {name: _few(result, limits[name]) for name, result in source.splits.items()}
    if splits == dict(source.splits):
        return source
    fingerprint = hashlib.sha256(f"{images} of {source.fingerprint}".encode()).hexdigest()
    return dataclasses.replace(source, splits=splits, fingerprint=fingerprint)


def _few(results: tuple[Sample, ...], limit: int) -> tuple[Sample, ...]:
    """The first of each class in turn, in the order of the source, until there are ``limit``."""
    if len(results) <= limit:
        return results
    seen: dict[int, int] = {}
    ranks = []
    for image in results:
        seen[image.label] = rank = seen.get(image.label, -1) + 1
        ranks.append(rank)
    chosen = sorted(range(len(results)), key=lambda i: (ranks[i], i))[:limit]
    return tuple(results[i] for i in sorted(chosen))


def shown(path: Path | str) -> str:
    """A name for folders: the last part of a path, or the word itself."""
    return Path(path).resolve().name if Path(path).exists() else str(path)


T = TypeVar("T")

QUICK = {"images": 4000, "epochs": 12, "batch_size": 32, "seeds": 3}  # minutes on two cores
LEVEL = 0.25  # training error of Figure 1


@dataclass(frozen=True)
class Config:
    """What a person asked for; None: the plan's own."""

    quick: bool = False
    seeds: int | None = None
    epochs: int | None = None
    rates: tuple[float, ...] = ()
    images: int | None = None
    level: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("epochs", 1), ("images", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecipeError(f"--{name} is {value}", f"at least {least}")
        if self.level is not None and not 0 < self.level < 1:
            raise RecipeError(f"--level is {self.level}", "a fraction between 0 and 1")


class Job(NamedTuple):
    """One training of a plan."""

    arm: Arm
    rate: float
    seed: int

    @property
    def folder(self) -> str:
        return f"{self.arm.key}-rate{self.rate:g}-seed{self.seed}"

    @property
    def words(self) -> str:
        return f"{self.arm.name}, rate {self.rate:g}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A claim, and how it is put to the test. ``base`` is the recipe that all members start from."""

    claim: Claim
    data: str
    photos: bool
    quick: bool
    images: int  # most training images; 0: all there are
    seeds: int
    rates: tuple[float, ...]  # tried for each arm with seed 0, if more than one
    level: float  # training error whose epochs are counted; 0: the lowest that all members reach
    base: Recipe
    arms: tuple[Arm, ...]
    mirror: bool

    def model(self, arm: Arm) -> str:
        """The network of an arm at this plan's scale."""
        return arm.paper if self.photos else arm.small

    def recipe(self, job: Job) -> Recipe:
        """Every number of one training."""
        changes = dict(job.arm.changes)
        if not self.mirror:
            changes["hflip"] = 0.0
        return self.base.replace(model=self.model(job.arm), lr=job.rate, seed=job.seed, **changes)

    def searches(self) -> list[Job]:
        """The trainings that choose each arm's learning rate; none if there is nothing to choose."""
        return [Job(arm, rate, 0) for arm in self.arms for rate in self.rates] if len(self.rates) > 1 else []

    def members(self, chosen: Mapping[str, float]) -> list[Job]:
        """The trainings that are compared, at the rates ``chosen`` (by an arm's name)."""
        return [Job(arm, chosen[arm.name], seed) for arm in self.arms for seed in range(self.seeds)]

    @property
    def trainings(self) -> int:
        """How many in all; those of seed 0 that chose the rate are not made again."""
        return len(self.searches()) + len(self.arms) * (self.seeds - bool(self.searches()))

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "claim": self.claim.name,
            "data": self.data,
            "scale": "224-pixel crops" if self.photos else "small images",
            "quick": self.quick,
            "images": self.images,
            "seeds": self.seeds,
            "rates": list(self.rates),
            "level": self.level,
            "networks": {arm.name: self.model(arm) for arm in self.arms},
            "changes": {arm.name: dict(arm.changes) for arm in self.arms},
            "trainings": self.trainings,
            "recipe": self.base.to_dict(),
        }

    def lines(self) -> list[str]:
        """The plan for people."""
        base, many = self.base, len(self.rates) > 1
        rows = [f"{self.claim.name} (section {self.claim.section}): {self.claim.words}", ""]
        for arm in self.arms:
            changed = ", ".join(f"{recipes.option(k)} {v}" for k, v in arm.changes.items()) if arm.changes else ""
            rows.append(f"  {arm.name:<24} {self._cost(arm)}{'; ' + changed if changed else ''}")
        some = f"at most {self.images} training images" if self.images else "all images"
        rows += [
            f"  data                     {self.data}, {some}, stored at {base.stored_size} pixels",
            f"  recipe                   {base.optimizer} rule, batch {base.batch_size}, {_schedule(base)}",
            f"  learning rate            {'one of ' if many else ''}{', '.join(f'{r:g}' for r in self.rates)}"
            + (f", for each network by {self._chooser()} of seed 0" if many else ""),
            f"  weights kept             {_kept(base)}; the test split is looked at once, and chooses nothing",
            f"  trainings                {self.trainings}: {self.seeds} seed{'s' * (self.seeds > 1)} of each network"
            + (", and the search" if many else ""),
        ]
        if self.seeds < 2 and self.claim.kind != "ensemble":
            rows.append("  one seed gives no interval: nothing can be concluded; --seeds 3 or more")
        return rows

    def _chooser(self) -> str:
        return f"the epochs to {100 * self.level:g} % training error" if self.level else "the validation error"

    def _cost(self, arm: Arm) -> str:
        with torch.device("meta"):
            summary = summarize(create_model(self.model(arm)))
        return (
            f"{self.model(arm)}: {summary.parameters:,} parameters, {summary.multiply_adds / 1e6:.1f} M multiply-adds"
        )


def make(claim: Claim, material: Material, data: str, config: Config) -> Plan:
    """The plan for ``claim`` on these images. Raises :class:`ModelError` where a network of it does not exist."""
    photos = material.photos and not config.quick
    arms = tuple(arm for arm in claim.arms if not photos or arm.paper)
    if not arms:
        raise ModelError(f"the claim {claim.name!r} is about small images only", "", "add --quick to use them small")
    _check_models([arm.paper if photos else arm.small for arm in arms])
    base, rates, level = _speed(photos, config.quick) if claim.kind == "speed" else _usual(photos, config.quick)
    level = level if config.level is None else config.level
    changes: dict[str, Any] = {} if config.epochs is None else {"epochs": config.epochs}
    if level and claim.kind == "speed":
        changes["stop_train_error"] = level
    seeds = config.seeds or (QUICK["seeds"] if config.quick else 5)
    if claim.kind == "ensemble" and seeds < 2:
        raise RecipeError("--seeds is 1, of which there is no ensemble", "at least 2")
    images = config.images if config.images is not None else QUICK["images"] if config.quick else 0
    rates = config.rates or (() if photos else claim.rates) or rates
    return Plan(
        claim,
        data,
        photos,
        config.quick,
        images,
        seeds,
        rates,
        level,
        base.replace(**changes),
        arms,
        material.mirror,
    )


def _check_models(names: list[str]) -> None:
    for name in names:
        if name not in list_models():
            raise ModelError(
                f"this claim on 224-pixel crops compares with the network {name!r}, which does not exist",
                "one that `alexnet models` lists",
                "add --quick to use small networks",
            )


def _usual(photos: bool, quick: bool) -> tuple[Recipe, tuple[float, ...], float]:
    """The paper's training: its rule, its rate divided by ten at each stall; in a quick plan a cosine to zero."""
    recipe = recipes.get_recipe("paper").replace(recipe="claims", select_weights="best", **_scale(photos))
    if quick:
        recipe = recipe.replace(batch_size=QUICK["batch_size"], epochs=QUICK["epochs"], schedule="cosine")
    return recipe, (0.005 if quick else 0.01,), 0.0


def _speed(photos: bool, quick: bool) -> tuple[Recipe, tuple[float, ...], float]:
    """Figure 1: one rate throughout, nothing that regularizes, until the training error is reached."""
    recipe = recipes.get_recipe("paper").replace(
        recipe="claims", select_weights="last", schedule="constant", epochs=90, **_scale(photos) | {"mean": "channel"}
    )
    if quick:  # each training ends when it has come to LEVEL
        recipe = recipe.replace(batch_size=QUICK["batch_size"], epochs=30)
    return recipe, (0.003, 0.01, 0.03, 0.1), LEVEL


def _scale(photos: bool) -> dict[str, Any]:
    if photos:  # with the paper's 0.01 in conv3 to conv5, learning would begin an order of magnitude later
        return {"stored_size": LARGE, "initialization": "2012"}
    return {"stored_size": SMALL, "initialization": "own"}


def _schedule(recipe: Recipe) -> str:
    how = {
        "cosine": "a cosine to 0",
        "plateau": "the rate divided by ten when validation stalls",
        "constant": "one rate",
    }
    until = f", or until {100 * recipe.stop_train_error:g} % training error" if recipe.stop_train_error else ""
    return f"at most {recipe.epochs} epochs{until}, {how[recipe.schedule]}"


def _kept(recipe: Recipe) -> str:
    return "of the best epoch by validation" if recipe.select_weights == "best" else "the last"


def folder_for(plan: Plan, name: str) -> Path:
    """Where a plan's runs go if nobody says: the same command finds them again."""
    return Path("runs") / "claims" / f"{plan.claim.name}-{name}{'-quick' if plan.quick else ''}"


def read_file(path: Path, schema: type[T]) -> T:
    """A JSON file in the folder of a plan or of one of its trainings, checked. Raises :class:`RunError`."""
    try:
        return check(read_json(path.parent, path.name), schema)
    except (OSError, ValueError) as error:
        what = f"{path} is damaged: {printable(str(error))}"
        raise RunError(what, "", "delete it and run the same command again, or choose another --output-dir") from error


def written(folder: Path, what: str, *, but: Collection[str] = ()) -> dict[str, Any]:
    """The plan that is in ``folder``, made if it is not there; empty where nothing has begun yet.

    Raises :class:`RunError` for a folder that can not be used, or that holds something (apart from files named in
    ``but``) and no plan of ``what``.
    """
    path = folder / "plan.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = any(file.name not in but for file in folder.iterdir())
    except OSError as error:
        raise RunError(f"{folder} can not be used: {error}", "", "choose another --output-dir") from error
    there: dict[str, Any] = read_file(path, dict[str, Any]) if path.exists() else {}
    if not isinstance(there.get("recipe", {}), dict):
        raise RunError(f"{path} is damaged: its recipe is no object", "", "choose another --output-dir")
    if used and not there:
        raise RunError(f"{folder} exists already and holds no {what}", "a new folder", "choose another --output-dir")
    return there


def compatible(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """The first thing in which two plans differ, apart from the number of seeds; empty if none."""
    mine, other = _flat(ours), _flat(theirs)
    return next((name for name in mine if name in other and mine[name] != other[name]), "")


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    rest = {k: v for k, v in plan.items() if k not in ("recipe", "seeds", "trainings")}
    return rest | dict(plan.get("recipe", {}))
