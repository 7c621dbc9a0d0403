"""The initial weights and the recipe of a run: random weights, or pretrained weights of a bundle (fine-tuning).

Pretrained weights expect inputs with the mean and the divisor that they were trained with, so a fine-tuned run keeps
both, whatever the mean of its own images is. Its color noise follows its own images. Checkpoints contain all of this,
so a resumed run does not need the source.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from alexnet.bundle import STARTER, STARTER_FOLDER, Bundle, find_bundle
from alexnet.cuda_convnet import GraphNetwork
from alexnet.data.atomic_io import sha256_of
from alexnet.data.decode import Fit
from alexnet.data.sources import is_store
from alexnet.data.store import Store
from alexnet.errors import RecipeError, RunError
from alexnet.loader.augmentation import Normalization
from alexnet.models import meta_model, recipe_fields
from alexnet.models.network import AuxiliaryHead, Network
from alexnet.models.registry import find as find_model
from alexnet.recipe import Recipe, load_recipe, option, recipe_for
from alexnet.weights.import_weights import import_weights
from alexnet.weights.matching import last_layer

Published = Literal["torchvision"]
TORCHVISION: Published = "torchvision"
IMAGENET, SCRATCH = "imagenet", "scratch"  # names for --init-from, beside STARTER and a run or bundle
SMALL_IMAGES = ("cifar10", "digits", "fashion_mnist", "mnist")  # known data sets with recipes from random weights


@dataclass(frozen=True)
class PretrainedWeights:
    """Pretrained weights, their classes, and the preprocessing that they expect.

    Attributes:
        name: Where the weights come from.
        sha256: SHA-256 of the bundle's ``config.json``, which has those of all its other files; that of the weights
            themselves if they are published weights.
        network: The network with these weights.
        classes: Class names in the order of the outputs.
        normalization: Mean and divisor of the inputs.
        stored_size: Size of stored images, pixels.
        fit: How an image becomes square.
        initialization: How the weights were initialized before their training.
    """

    name: str
    sha256: str
    network: Network
    classes: tuple[str, ...]
    normalization: Normalization
    stored_size: int
    fit: Fit
    initialization: str

    def recipe(self, base: Recipe) -> Recipe:
        """``base`` with the network of these weights and their preprocessing."""
        own: Any = self.initialization if self.initialization in ("paper", "2012") else "own"
        return base.replace(
            **self._bound(),
            initialization=own,
            image_size=self.network.image_size,
            stored_size=self.stored_size,
            fit=self.fit,
        )

    def check(self, recipe: Recipe) -> None:
        """Raise :class:`RecipeError` if a run with this recipe cannot start from these weights."""
        for name, value in self._bound().items():
            own = getattr(recipe, name)
            if name == "in_channels" and own == 0:  # the network's own
                continue
            if own != value and not (isinstance(value, float) and math.isclose(own, value, rel_tol=1e-6)):
                raise RecipeError(f"{option(name)} is {own}", f"{value}, as {self.name} has it", "leave it out")
        if self.normalization.mean.dim() == 3:
            has, side = self.normalization.mean.shape[0], recipe.image_size or self.network.image_size
            if self.normalization.mean_follows_crop and recipe.stored_size != has:
                raise RecipeError(
                    f"--stored-size is {recipe.stored_size}", f"{has}, as the mean image of {self.name} has"
                )
            if side > has:
                raise RecipeError(f"--image-size is {side}", f"at most {has}, as the mean image of {self.name} has")
        if recipe.image_size not in (0, self.network.image_size) and not self._fits(recipe.image_size):
            raise RecipeError(
                f"--image-size is {recipe.image_size}",
                f"{self.network.image_size}, as {self.name} has it",
                "leave it out",
            )

    def _fits(self, image_size: int) -> bool:
        """Whether the layers have the same sizes for images of that size. For layer files it is not known: True."""
        if isinstance(self.network, GraphNetwork):
            return True
        other = meta_model(
            self.network.name,
            num_classes=self.network.num_classes,
            in_channels=self.network.in_channels,
            image_size=image_size,
        )
        own = self.network.state_dict()
        return all(own[name].shape == value.shape for name, value in other.state_dict().items())

    def _bound(self) -> dict[str, Any]:
        """The fields of a recipe that these weights decide."""
        divide, mean = self.normalization.divide, self.normalization.mean
        kind = "channel" if mean.dim() == 1 else "image" if self.normalization.mean_follows_crop else "center"
        return {
            "model": self.network.name,
            "in_channels": self.network.in_channels,
            "mean": kind,
            "divide": 1.0 if divide.dim() else float(divide),
            "divide_std": bool(divide.dim()),
        }

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The fields of a run's :class:`Normalization` that these weights set."""
        return {
            "mean": self.normalization.mean,
            "divide": self.normalization.divide,
            "mean_follows_crop": self.normalization.mean_follows_crop,
        }

    @torch.no_grad()
    def load_into(self, network: Network, classes: Sequence[str]) -> None:
        """Copy these weights into ``network``; its last layer keeps its random weights unless the classes are the same.

        Raises :class:`RecipeError` naming the first layer whose size differs, with both sizes.
        """
        fresh = self.fresh(classes)
        source = self.network.state_dict()
        beside = {name for name, layer in network.named_children() if isinstance(layer, AuxiliaryHead)}
        for name, into in network.state_dict().items():
            if name.rpartition(".")[0] == fresh:
                continue
            if name.partition(".")[0] in beside and source[name].shape != into.shape:
                continue  # an auxiliary classifier's own last layer
            if source[name].shape != into.shape:
                raise RecipeError(
                    f"layer {name} of {self.name} is {list(source[name].shape)}",
                    f"{list(into.shape)} for images of {network.image_size} pixels",
                    f"use the weights' own --image-size {self.network.image_size}",
                )
            into.copy_(source[name])

    def fresh(self, classes: Sequence[str]) -> str:
        """The layer that keeps its random weights because the classes differ; empty if there is none."""
        return "" if tuple(classes) == self.classes else last_layer(self.network)

    def about(self, classes: Sequence[str]) -> dict[str, Any]:
        """The source of the weights, and the layer with random weights, for ``run.json`` and the bundle."""
        return {"name": self.name, "sha256": self.sha256, "fresh": self.fresh(classes)}


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a run begins with: ``pretrained``, or random ones if that is None; and ``why``, in one line."""

    pretrained: PretrainedWeights | None
    why: str


def initial_weights(
    data: str, recipe: Recipe | str | Path, init_from: str | Path, changes: Mapping[str, Any], *, layer_file: bool
) -> InitialWeights:
    """The weights that a training begins with.

    By default these are the starter's for the user's own images, and random ones where a recipe, a layer file, a small
    known data set (:data:`SMALL_IMAGES`) or an option does not fit the starter, or where the package has none.

    Args:
        data: Name of a data set, a folder or a store.
        recipe: The recipe that was named, or empty.
        init_from: ``starter``, ``imagenet``, ``scratch``, a run or a bundle; empty: the default.
        changes: Fields of the recipe that were set.
        layer_file: Whether a layer file defines the network.

    Raises:
        BundleError: If the weights are missing or damaged.
    """
    if str(init_from) == SCRATCH:
        return InitialWeights(None, "random, by --init-from scratch")
    if init_from:
        pretrained = from_published(TORCHVISION) if str(init_from) == IMAGENET else from_bundle(init_from)
        return InitialWeights(pretrained, f"{pretrained.name}, by --init-from {init_from}")
    if reason := _reason_against_starter(data, recipe, changes, layer_file=layer_file):
        return InitialWeights(None, f"random, {reason}")
    pretrained = from_bundle(STARTER_FOLDER)
    try:
        pretrained.check(pretrained.recipe(Recipe()).replace(**{k: v for k, v in changes.items() if v != ""}))
        return InitialWeights(
            pretrained,
            f"the starter ({pretrained.network.name} trained on {len(pretrained.classes)} classes), which suits most "
            "images; --init-from scratch for random weights",
        )
    except RecipeError as error:
        return InitialWeights(None, f"random, since the starter does not fit: {error.what}; must be {error.must}")


def _reason_against_starter(
    data: str, recipe: Recipe | str | Path, changes: Mapping[str, Any], *, layer_file: bool
) -> str:
    """Why a training begins with random weights; empty if the starter may fit."""
    named = recipe if isinstance(recipe, Recipe) else load_recipe(recipe) if recipe else None
    if layer_file:
        return "since a layer file defines the network"
    if named is not None and named.recipe != "finetune":
        return f"as in the recipe {named.recipe}"
    name = Store.open(data).name if is_store(data) else data
    if named is None and name in SMALL_IMAGES:
        return f"as usual for {name}"
    model = changes.get("model") or (named.model if named else "alexnet")
    if model != "alexnet":
        return f"since there is a starter for alexnet, not for {model}"
    if not (STARTER_FOLDER / "config.json").exists():
        return "since this installation has no starter weights (docs/starter.md)"
    return ""


def from_bundle(path: str | Path) -> PretrainedWeights:
    """The weights of a bundle or a run folder. Raises :class:`BundleError`."""
    path = find_bundle(path)
    bundle = Bundle.load(path)
    name = STARTER if path == STARTER_FOLDER else str(path)
    return of_bundle(bundle, name, sha256_of(path / "config.json"))


def recorded(source: Mapping[str, Any]) -> PretrainedWeights:
    """The weights that a run began with, which its run.json names.

    Args:
        source: ``name`` and ``sha256``, as :meth:`PretrainedWeights.about` returns them.

    Raises:
        BundleError: They are missing or damaged.
        RunError: Other weights are in their place.
    """
    name = str(source["name"])
    if name == _published_name(TORCHVISION):
        weights = from_published(TORCHVISION)
    else:
        weights = from_bundle(STARTER_FOLDER if name == STARTER else name)
    if weights.sha256 != source["sha256"]:
        raise RunError(
            f"{name} holds other weights than the run began with", "", "start it again with a new --output-dir"
        )
    return weights


def from_published(which: Published) -> PretrainedWeights:
    """Published weights, downloaded by the library of their publisher. Raises :class:`BundleError`."""
    bundle = import_weights(which, "DEFAULT")
    return of_bundle(bundle, _published_name(which), bundle.data["imported"]["sha256"])


def _published_name(which: Published) -> str:
    return f"the weights of {which}"


def of_bundle(bundle: Bundle, name: str, sha256: str) -> PretrainedWeights:
    """The weights of an open bundle, which is at ``name``."""
    return PretrainedWeights(
        name,
        sha256,
        bundle.network,
        bundle.classes,
        bundle.normalization,
        bundle.stored_size,
        bundle.fit,
        bundle.initialization,
    )


MIN_INPUT = 128  # pixels: smaller inputs, such as those for CIFAR-10, need smaller stored images


def default_recipe(
    data: str, recipe: str | Path = "", model: str = "", start: PretrainedWeights | None = None
) -> Recipe:
    """The recipe that options and ``changes`` start from.

    A network that has one initialization gets it. Where no recipe is named, inputs are scaled as the network expects,
    and images are stored in a size that fits its input: a crop of 24 of 256 pixels would show a hundredth of an image.
    A store decides the size of its images and how they were fitted.

    Args:
        data: name of a data set, a folder or a store.
        recipe: a named recipe, or a recipe file (``.toml``); by default the one that fits the network or the data.
        model: name of the network; by default the recipe's, or that of ``start``.
        start: weights to start from; the network, its input and its normalization are theirs.

    Raises:
        AlexNetError: for an unknown name, a wrong recipe file or a store that cannot be read.
    """
    model = model or (start.network.name if start else "")
    base = load_recipe(recipe) if recipe else recipe_for(data, model, finetune=start is not None)
    if start is not None:
        base = start.recipe(base)
    elif model and model != base.model:
        fields = recipe_fields(model)
        if recipe:
            fields = {name: value for name, value in fields.items() if name == "initialization"}
        elif not MIN_INPUT <= (size := find_model(model).image_size) <= base.stored_size:
            fields["stored_size"] = round(size * 8 / 7)  # as 256 is to 224: crops show most of an image
        base = base.replace(model=model, **fields)
    if is_store(data):
        store = Store.open(data)
        base = base.replace(stored_size=store.size, fit=store.fit)
    return base


FEW_EPOCHS = 10  # with fewer, a fine-tuning learns more from weaker augmentation
_WEAKER: dict[str, tuple[float, str]] = {  # field -> its value, and the field that is in use if it is set
    "mixup_prob": (0.0, "mixup_alpha"),
    "cutmix_prob": (0.0, "cutmix_alpha"),
    "label_smoothing": (0.0, ""),
    "min_crop_scale": (0.4, "crop"),
    "progressive_size": (0, "progressive_fraction"),
}


def for_few_epochs(changes: Collection[str]) -> dict[str, float]:
    """Fields of a recipe of fine-tuning with fewer than :data:`FEW_EPOCHS` epochs, without those that are set."""
    return {name: value for name, (value, near) in _WEAKER.items() if not {name, near} & set(changes)}
