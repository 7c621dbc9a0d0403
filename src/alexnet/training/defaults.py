"""The recipe of a training before any option: by its data, its network and the weights that it starts from."""

from pathlib import Path

from alexnet.data.sources import is_store
from alexnet.data.store import Store
from alexnet.models import recipe_fields
from alexnet.models.registry import find as find_model
from alexnet.recipe import Recipe, load_recipe, recipe_for
from alexnet.training.finetune import PretrainedWeights

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
