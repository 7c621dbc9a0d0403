"""``create_model`` from Python: a network by name, with fresh or trained weights, or as a feature extractor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

import torch

from alexnet import models
from alexnet.errors import ModelError
from alexnet.models import Initialization, Network, registry
from alexnet.models.network import FeatureExtractor
from alexnet.models.torchvision_models import TorchvisionNetwork
from alexnet.training.finetune import PretrainedWeights, from_bundle, from_published
from alexnet.weights import torchvision_weights

Pretrained = bool | str | Path


@overload
def create_model(
    name: str,
    *,
    pretrained: Pretrained = ...,
    num_classes: int | None = ...,
    in_channels: int | None = ...,
    image_size: int | None = ...,
    features_only: Literal[False] = ...,
    generator: torch.Generator | None = ...,
    initialization: Initialization | None = ...,
) -> Network: ...
@overload
def create_model(
    name: str,
    *,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = ...,
    pretrained: Pretrained = ...,
    num_classes: int | None = ...,
    in_channels: int | None = ...,
    image_size: int | None = ...,
    generator: torch.Generator | None = ...,
    initialization: Initialization | None = ...,
) -> FeatureExtractor: ...
def create_model(
    name: str,
    *,
    pretrained: Pretrained = False,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    initialization: Initialization | None = None,
) -> Network | FeatureExtractor:
    """Build a network, as timm's ``create_model`` does.

    The input is gray levels minus a mean, not values from 0 to 1: the ``normalization`` of the bundle, or torchvision's
    mean and deviation times 255.

    Args:
        name: A name of :func:`alexnet.list_models`, or of one of torchvision's networks (``resnet18``, ...).
        pretrained: A run or bundle whose weights are loaded; ``starter`` for those that come with this package; or True
            for the weights that torchvision publishes, which it downloads: for ``alexnet_owt`` and torchvision's
            networks.
        num_classes: Classes. With ``pretrained``: another number gives the last layer new weights, and 0 removes it;
            None keeps the classifier.
        in_channels: 3 for color, 1 for gray; None is the network's default.
        image_size: Size of the square input, pixels; None is the network's default.
        features_only: Return a :class:`FeatureExtractor`, which returns the feature maps of each resolution.
        out_indices: Which resolutions, with ``features_only``; None: all.
        generator: Source of new weights; None is PyTorch's default generator.
        initialization: ``paper`` or ``2012``, see :func:`alexnet.models.create_model`.

    Raises:
        ModelError: The name is unknown, there are no such weights, or the network cannot be built with these arguments.
        BundleError: The run or bundle cannot be read, or the download fails.

    Example:
        >>> network = alexnet.create_model("alexnet", pretrained="my-run", num_classes=5)
        >>> network.forward_features(images).shape
        torch.Size([8, 256, 6, 6])
    """
    if out_indices is not None and not features_only:
        raise ModelError("out_indices without features_only", "", "pass features_only=True")
    if pretrained is False:
        network = models.create_model(
            name,
            num_classes=num_classes or None,
            in_channels=in_channels,
            image_size=image_size,
            generator=generator,
            initialization=initialization,
        )
    else:
        network = _pretrained(name, pretrained, in_channels, image_size)
    if num_classes is not None and num_classes != network.num_classes:
        network.reset_classifier(num_classes, generator)
    network.train()  # as timm
    return FeatureExtractor(network, out_indices) if features_only else network


def _pretrained(name: str, pretrained: Pretrained, in_channels: int | None, image_size: int | None) -> Network:
    """The network with trained weights. Raises :class:`ModelError` if the arguments differ from the weights'."""
    if not isinstance(pretrained, bool):
        weights = from_bundle(pretrained)
    elif name == "alexnet_owt":
        weights = from_published("torchvision")
    elif name in registry.TORCHVISION_MODELS:
        return _of_torchvision(name, image_size)
    else:
        registry.find(name)
        starter = "'starter', those of this package, or " * (name == "alexnet")
        raise ModelError(
            f"no weights of {name} are published", "", f"pass pretrained={starter}'RUN', a run or a bundle"
        )
    if weights.network.name != name:
        raise ModelError(f"the weights of {weights.name} are of {weights.network.name}", name, "create that network")
    if in_channels not in (None, weights.network.in_channels):
        raise ModelError(f"in_channels {in_channels}", f"{weights.network.in_channels}, as {weights.name} has it")
    return weights.network if image_size in (None, weights.network.image_size) else _resized(weights, image_size)


def _resized(weights: PretrainedWeights, image_size: int | None) -> Network:
    own = weights.network
    network = models.create_model(
        own.name, num_classes=own.num_classes, in_channels=own.in_channels, image_size=image_size
    )
    weights.load_into(network, weights.classes)
    return network


def _of_torchvision(name: str, image_size: int | None) -> Network:
    published = torchvision_weights.of_network(name)
    network = models.create_model(name, num_classes=len(published.classes), image_size=image_size)
    assert isinstance(network, TorchvisionNetwork)
    network.load_state_dict(network.from_torchvision(published.state))
    return network
