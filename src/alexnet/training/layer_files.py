"""Layer files as a person gives them -> what a run needs: their text, and a recipe that they leave room for."""

from pathlib import Path

from alexnet.cuda_convnet import Data, Files, decode, define, parameters
from alexnet.errors import ModelError, RecipeError
from alexnet.recipe import LAYER_FILE_FIELDS, Recipe, get_recipe, option
from alexnet.training.finetune import PretrainedWeights


def read(path: str | Path) -> str:
    """The text of a layer or parameter file; raises :class:`ModelError`."""
    try:
        return decode(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise ModelError(f"layer file {path} can not be read: {error.strerror}", "a file") from error


def of_training(layers: str | Path | None, parameters: str | Path | None) -> Files | None:
    """Both files, or None where none is given; one without the other raises :class:`RecipeError`."""
    if layers is None and parameters is None:
        return None
    if layers is None:
        raise RecipeError("--layer-params has no layers to set", "", "give --layers too")
    if parameters is None:
        raise RecipeError("--layers says what the network is, not how it learns", "", "give --layer-params too")
    texts = read(layers), read(parameters)
    return Files(Path(layers).stem, *texts, Path(layers).name, Path(parameters).name)


def data_of(recipe: Recipe, classes: int) -> Data:
    """What the files leave to the data: 224 pixels, or the whole stored image where that is smaller."""
    return Data(recipe.image_size or min(224, recipe.stored_size), recipe.in_channels or 3, classes)


def check(files: Files, recipe: Recipe, classes: int) -> tuple[str, ...]:
    """Raise :class:`ModelError` for files that are wrong or do not fit the data; returns what is to be noted."""
    definition = define(files.layers, data_of(recipe, classes), files.layers_file)
    return *definition.notes, *parameters.read(files.parameters, definition, files.parameters_file).notes


def fitting(recipe: Recipe, files: Files, start: PretrainedWeights | None = None) -> Recipe:
    """The recipe under the files' name; raises :class:`RecipeError` for a number that the files say themselves."""
    if start is not None:
        raise RecipeError("--init-from and --layers both say what the network is", "one of them", "leave the other out")
    own = get_recipe("layer_file")
    for name in LAYER_FILE_FIELDS:
        if getattr(recipe, name) not in (getattr(own, name), files.name if name == "model" else None):
            what = f"{option(name)} has no effect on a layer file"
            raise RecipeError(what, "left out", "its parameter file and --recipe layer_file say how it learns")
    return recipe.replace(model=files.name)
