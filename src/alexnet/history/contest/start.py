"""Published weights as a start: torchvision's networks as they were trained on ImageNet."""

import torch

from alexnet.batches.transforms import Statistics
from alexnet.data.store import Store
from alexnet.models import create_model
from alexnet.models.peers import Peer
from alexnet.recipe import Recipe
from alexnet.training.start import Start
from alexnet.weights import published

TORCHVISION = {"alexnet_owt": "alexnet"}  # where torchvision's name of a network is another


def weights_for(model: str, recipe: Recipe, store: Store) -> Start:
    """The published weights of ``model`` at the recipe's picture size. Raises :class:`alexnet.errors.BundleError`."""
    found = published.of_network(TORCHVISION.get(model, model))
    network = create_model(model, num_classes=len(found.classes), image_size=recipe.image_size or None)
    state = network.from_torchvision(found.state) if isinstance(network, Peer) else found.state
    network.load_state_dict(state)
    statistics = Statistics(
        torch.tensor(found.mean), torch.tensor(store.color_std).float(), torch.tensor(store.color_axes).float(),
        torch.tensor(found.divide),
    )  # fmt: skip
    return Start(
        f"torchvision's weights of {model}", found.sha256, network.eval(), found.classes, statistics, store.size,
        recipe.fit, "own",
    )  # fmt: skip
