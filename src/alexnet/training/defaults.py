"""The recipe of a training before any option: by its data, its network, and the weights that it starts from."""

from alexnet import recipe as recipes
from alexnet.data.sources import is_store
from alexnet.data.store import Store
from alexnet.models import recipe_fields
from alexnet.recipe import Recipe
from alexnet.training.finetune import PretrainedWeights


def default_recipe(data: str, recipe: str = "", model: str = "", start: PretrainedWeights | None = None) -> Recipe:
    """The recipe called ``recipe`` (by default what fits the network or the data) as these leave it.

    A network that has one initialization is drawn by it; its inputs are scaled as it expects where no recipe is named.
    A store decides the size of its images and how they were fitted. Raises :class:`alexnet.errors.AlexNetError`.
    """
    model = model or (start.network.name if start else "")
    base = recipes.get_recipe(recipe) if recipe else recipes.recipe_for(data, model)
    if start is not None:
        base = start.recipe(base)
    elif model and model != base.model:
        fields = recipe_fields(model)
        if recipe:
            fields = {name: value for name, value in fields.items() if name == "initialization"}
        base = base.replace(model=model, **fields)
    if is_store(data):
        store = Store.open(data)
        base = base.replace(stored_size=store.size, fit=store.fit)
    return base
