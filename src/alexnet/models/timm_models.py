"""The networks of timm as :class:`Network` objects of two layers, for comparison with AlexNet: ``timm/NAME``.

The layers are ``backbone``, timm's network without its classifier, and ``fc``, a fully connected layer. Weights are
initialized by timm, from the generator that is passed in. Stochastic depth is off and dropout masks come from the run's
generator, so that a run is a function of its recipe and seed.

timm is imported when one of these networks is named.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from alexnet.errors import ModelError, did_you_mean
from alexnet.models.network import Network
from alexnet.models.torchvision_models import replace_dropout

PREFIX = "timm/"


class TimmNetwork(Network):
    """A network of timm."""

    _make: Callable[..., "TimmNetwork"]

    def initialize(self, generator: torch.Generator | None = None) -> "TimmNetwork":
        """Draw the weights as timm does, from a seed that ``generator`` gives; returns itself."""
        if torch.empty(0).is_meta:  # only shapes are needed
            return self
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            initial = self._make().state_dict()
        self.load_state_dict(initial)
        return self


def image_size(name: str) -> int:
    """The size in pixels of the images that the network ``timm/…`` was made for. Raises :class:`ModelError`."""
    config = _timm(name).get_pretrained_cfg(name.removeprefix(PREFIX))
    return int(config.input_size[-1]) if config else 224


def has_weights(name: str) -> bool:
    """Whether timm publishes weights of the network ``timm/…``. Raises :class:`ModelError` if there is no such one."""
    return bool(_timm(name).models.is_model_pretrained(name.removeprefix(PREFIX)))


def pretrained(name: str, image_size: int) -> tuple[TimmNetwork, tuple[float, ...], tuple[float, ...]]:
    """The network ``timm/…`` with the published weights of its backbone, which timm downloads once.

    Returns:
        The network with two classes; the mean and the standard deviation of its inputs, as fractions of 255.

    Raises:
        ModelError: As :func:`build`, or the weights cannot be downloaded.
    """
    network = build(name, 2, image_size=image_size, weights=True)
    backbone: Any = network.backbone
    config = backbone.pretrained_cfg
    return network.eval(), tuple(config["mean"]), tuple(config["std"])


def build(
    name: str, num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, *, weights: bool = False
) -> TimmNetwork:
    """Build the network ``timm/NAME``.

    Args:
        name: A name of ``timm.list_models()`` after ``timm/``.
        num_classes: Classes.
        in_channels: 3 for color, 1 for gray.
        image_size: Size of the square input, pixels.
        weights: Load the published weights of the backbone.

    Raises:
        ModelError: timm is not installed or has no such network, or the network does not take images of this size.
    """
    timm = _timm(name)
    config = timm.get_pretrained_cfg(name.removeprefix(PREFIX))
    kwargs: dict[str, Any] = {"pretrained": weights, "num_classes": 0, "in_chans": in_channels}
    if config is not None and config.fixed_input_size:
        kwargs["img_size"] = image_size
    try:
        with torch.device("cpu"):  # some buffers are computed, and are not in the state dict
            backbone: nn.Module = timm.create_model(name.removeprefix(PREFIX), **kwargs)
        draft = copy.deepcopy(backbone).to("meta").eval()
        with torch.no_grad():
            shape = tuple(draft(torch.empty(1, in_channels, image_size, image_size, device="meta")).shape)
    except Exception as error:  # timm's networks check their arguments in many ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        what = "with its published weights" if weights else f"for images of {image_size} pixels"
        hint = "leave --pretrained out" if weights else "choose another --image-size"
        raise ModelError(f"{name} cannot be built {what} ({reason})", "", hint) from error
    if len(shape) != 2:
        raise ModelError(f"{name} has features of shape {list(shape[1:])}", "a classifier of images")
    modules: list[Any] = list(backbone.modules())
    for module in modules:
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    replace_dropout(backbone)
    with torch.device("cpu"):
        layers: list[tuple[str, nn.Module]] = [("backbone", backbone), ("fc", nn.Linear(shape[1], num_classes))]
    network = TimmNetwork(
        name,
        layers,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        features="backbone",
        initial={},
    )
    network._make = partial(build, name, num_classes, in_channels, image_size)
    return network


def _timm(name: str) -> Any:
    """The library. Raises :class:`ModelError` if it is missing or has no network of this name."""
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"{name} needs timm, which is not installed", "", "pip install 'alexnet[timm]'") from error
    own = name.removeprefix(PREFIX)
    if not timm.is_model(own):
        raise ModelError(f"timm has no network {own!r}. {did_you_mean(own, timm.list_models())}")
    return timm
