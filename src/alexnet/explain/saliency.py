"""Saliency maps: how much each pixel of an image matters for the score of a class, by three methods.

All three take the network's ``inputs`` (float32 [N, C, H, W], see ``Classifier.inputs``) and a class for each image
(``classes`` int64 [N]), and return float32 [N, H, W]. None of them is a proof: docs/explaining.md lists their limits.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.cuda_convnet import GraphNetwork
from alexnet.data.decode import capture_warnings
from alexnet.errors import ModelError
from alexnet.models.network import Network

BATCH = 32  # images per forward pass
OCCLUSION_PARTS = 7  # the gray square has a seventh of the image's side: 32 of 224 pixels

Classes = Tensor | Sequence[int]


def _captum() -> Any:
    """captum's methods. Its progress bars warn in notebooks without ipywidgets when they are imported."""
    with capture_warnings():
        from captum import attr

    return attr


def data_gradient(network: Network, inputs: Tensor, classes: Classes) -> Tensor:
    """The largest absolute gradient of the class's score (its logit) over the channels of each pixel.

    Simonyan, Vedaldi, Zisserman 2013, *Deep inside convolutional networks*, section 3. Unit: score for each unit of the
    input (a gray level, unless the classifier divides). Raises :class:`ModelError`.
    """
    attr = _captum()

    def maps(part: Tensor, targets: Tensor) -> Tensor:
        result: Tensor = attr.Saliency(network).attribute(part.requires_grad_(), target=targets, abs=True)
        return result.amax(1)  # [n, C, H, W] -> [n, H, W]

    return _in_batches(network, inputs, classes, maps, BATCH)


def grad_cam(network: Network, inputs: Tensor, classes: Classes) -> Tensor:
    """ReLU of the sum of the last feature maps, each weighted by the mean gradient of the class's score, per pixel.

    Selvaraju et al. 2017, *Grad-CAM*, equations 1 and 2; the maps are those of :func:`last_maps`, their sum is
    resized bilinearly to the image. No unit; 0 where there is no evidence for the class. Raises :class:`ModelError`.
    """
    attr = _captum()
    layers = last_maps(network)

    def maps(part: Tensor, targets: Tensor) -> Tensor:
        sums = [
            attr.LayerGradCam(network, network.get_submodule(name)).attribute(part, target=targets).detach()
            for name in layers
        ]  # each [n, 1, h, w]; towers that lie apart in a graph are added, as if their maps were side by side
        return F.interpolate(torch.stack(sums).sum(0).relu(), part.shape[-2:], mode="bilinear")[:, 0]

    return _in_batches(network, inputs, classes, maps, BATCH)


def occlusion(network: Network, inputs: Tensor, classes: Classes) -> Tensor:
    """How much the probability of the class falls when a gray square hides a pixel, averaged over the squares.

    Zeiler, Fergus 2014, *Visualizing and understanding convolutional networks*, section 4.2. The square has a seventh
    of the image's side, moves by half of its own, and is filled with 0, the mean color. From -1
    (hiding it makes the class certain) to 1. Raises :class:`ModelError`.
    """
    attr = _captum()
    channels, least = inputs.shape[1], min(inputs.shape[-2:])
    step = max(1, round(least / OCCLUSION_PARTS / 2))
    side = min(2 * step, least)  # twice the step, so that every place but the border is hidden equally often

    def probability(batch: Tensor) -> Tensor:
        return network(batch).softmax(1)  # type: ignore[no-any-return]

    def maps(part: Tensor, targets: Tensor) -> Tensor:
        result: Tensor = attr.Occlusion(probability).attribute(
            part,
            (channels, side, side),
            (channels, step, step),
            baselines=0,
            target=targets,
            perturbations_per_eval=max(1, BATCH // len(part)),
        )
        return result.mean(1)  # all channels of a place are hidden together, so that they agree

    return _in_batches(network, inputs, classes, maps, 4)


def last_maps(network: Network) -> list[str]:
    """The layer that :func:`grad_cam` uses: the last one with weights whose output has more than one position.

    Layers without weights that follow it and keep the shape belong to it (AlexNet: conv5, so relu5; LeNet-5: s4, so
    squash4). It is found by one pass of a blank image. A graph may have several, one per tower.

    Raises:
        ModelError: If there is no such layer.
    """
    shapes = _shapes(network)
    results = [
        name
        for name, shape in shapes.items()
        if next(network.get_submodule(name).parameters(), None) is not None and len(shape) == 4 and max(shape[2:]) > 1
    ]
    if not results:
        raise ModelError(f"{network.name} has no layer with weights whose output is maps", "", "Grad-CAM needs one")
    if isinstance(network, GraphNetwork):
        results = [name for name in results if not any(_is_downstream(network, name, other) for other in results)]
    else:
        results = results[-1:]
    return [_with_followers(network, name, shapes) for name in results]


def _with_followers(network: Network, name: str, shapes: "OrderedDict[str, tuple[int, ...]]") -> str:
    """The last of the layers without weights that follow ``name`` and keep the shape of its output."""
    while True:
        behind = _readers(network, name)
        if len(behind) != 1 or behind[0] not in shapes or shapes[behind[0]] != shapes[name]:
            return name
        if next(network.get_submodule(behind[0]).parameters(), None) is not None:
            return name
        name = behind[0]


def _readers(network: Network, key: str) -> list[str]:
    """Modules that read the output of the module called ``key``."""
    if isinstance(network, GraphNetwork):
        layer = next(name for name, other in network.keys.items() if other == key)
        return [
            network.keys[reader.name] for reader in network.definition.readers(layer) if reader.name in network.keys
        ]
    names = [name for name, _ in network.named_children()]
    return names[names.index(key) + 1 :][:1]


def _is_downstream(network: Network, key: str, other: str) -> bool:
    """Is the module ``other`` downstream of ``key``?"""
    todo, seen = [key], set[str]()
    while todo:
        todo += (behind := [name for name in _readers(network, todo.pop()) if name not in seen])
        seen.update(behind)
    return other in seen


def _shapes(network: Network) -> "OrderedDict[str, tuple[int, ...]]":
    """The shape of every layer's output for one image, by the module's name, in the order of the forward pass."""
    result: OrderedDict[str, tuple[int, ...]] = OrderedDict()
    first = next(network.parameters())
    blank = first.new_zeros(1, network.in_channels, network.image_size, network.image_size)
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, out, name=name: result.update({name: tuple(out.shape)}))
        for name, module in network.named_children()
    ]
    try:
        with _eval_mode(network), torch.no_grad():
            network(blank)
    finally:
        for hook in hooks:
            hook.remove()
    return result


def _in_batches(
    network: Network, inputs: Tensor, classes: Classes, maps: Callable[[Tensor, Tensor], Tensor], size: int
) -> Tensor:
    """``maps`` of ``size`` images at a time, on the network's device, as float32 [N, H, W] on the CPU."""
    targets = _checked(network, inputs, torch.as_tensor(classes, dtype=torch.int64))
    first = next(network.parameters())
    rows = []
    with _eval_mode(network), torch.inference_mode(False), torch.enable_grad():
        for images, classes_ in zip(torch.split(inputs, size), torch.split(targets, size), strict=True):
            x = images.detach().to(first, copy=True).contiguous()
            rows.append(maps(x, classes_.to(first.device)).detach().float().cpu())
    return torch.cat(rows)


def _checked(network: Network, inputs: Tensor, classes: Tensor) -> Tensor:
    channels, side = network.in_channels, network.image_size
    if inputs.dim() != 4 or tuple(inputs.shape[1:]) != (channels, side, side) or not len(inputs):
        raise ModelError(f"inputs {list(inputs.shape)} of {network.name}", f"[N, {channels}, {side}, {side}]")
    if classes.shape != inputs.shape[:1]:
        raise ModelError(f"classes {list(classes.shape)} of {len(inputs)} images", "one for each image")
    if int(classes.min()) < 0 or int(classes.max()) >= network.num_classes:
        wrong = next(int(k) for k in classes if not 0 <= k < network.num_classes)
        raise ModelError(f"class {wrong} of {network.name}", f"from 0 to {network.num_classes - 1}")
    return classes


@contextmanager
def _eval_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; the former mode after it."""
    was = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was)
