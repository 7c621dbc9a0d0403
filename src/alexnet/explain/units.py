"""What a unit of a layer responds to: top patches, the deconvnet view of Zeiler and Fergus, activation maximization;
and the specialization of filters on color.

A unit is a channel of a convolutional layer, or one output of a fully connected layer.

Shapes: N images, C input channels, s input size, K units, H and W positions (1 and 1 in fully connected layers).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet.cuda_convnet import GraphNetwork
from alexnet.errors import ModelError
from alexnet.loader.augmentation import LUMA, Normalization
from alexnet.models.layers import LocalResponseNorm, SpatialNorm
from alexnet.models.network import Network
from alexnet.models.summary import ReceptiveField, receptive_fields

BATCH = 32  # images per forward pass
STEPS, RATE = 128, 0.05  # of activation maximization: steps, learning rate
SHIFT = 28  # random shifts are at most the image size divided by this: 8 of 224 pixels


class Activation(NamedTuple):
    """The strongest response of a unit to an image: which image, where, and how strong."""

    image: int
    position: tuple[int, int]
    value: float


def strongest(network: Network, inputs: Sequence[Tensor], layer: str, count: int) -> list[list[Activation]]:
    """For each unit of ``layer`` the ``count`` images with the strongest response, strongest first.

    Args:
        network: The network.
        inputs: Network inputs [n, C, s, s] in parts, on the network's device.
        layer: The layer.
        count: Images for each unit; each image counts once, by its strongest position.

    Raises:
        ModelError: If there is no such layer.
    """
    values, positions = [], []
    with torch.inference_mode():
        for part in inputs:
            outputs = _as_maps(network.forward_to(part, layer))  # [n, K, H, W]
            best, at = outputs.flatten(2).max(2)  # [n, K]
            values.append(best.float().cpu())
            positions.append(at.cpu())
    width = outputs.shape[3]
    all_values, all_positions = torch.cat(values), torch.cat(positions)  # [N, K]
    order = all_values.argsort(dim=0, descending=True, stable=True)[:count]  # [count, K]
    return [
        [
            Activation(int(i), divmod(int(all_positions[i, k]), width), float(all_values[i, k]))
            for i in order[:, k].tolist()
        ]
        for k in range(all_values.shape[1])
    ]


def patch_box(field: ReceptiveField, position: tuple[int, int], size: int) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what a unit at ``position`` sees of an image of ``size`` pixels, clipped to it."""
    edges = []
    for index in position:
        first = round(field.start + index * field.stride - field.size / 2)
        edges.append((min(max(0, first), size - 1), max(1, min(size, first + field.size))))
    (top, bottom), (left, right) = edges
    return top, left, bottom, right


def field_of(network: Network, layer: str) -> ReceptiveField:
    """The receptive field of a unit of ``layer``. Raises :class:`ModelError` where it is not known."""
    fields = {} if isinstance(network, GraphNetwork) else receptive_fields(network)
    field = fields.get(layer)
    if field is None:
        known = ", ".join(name for name, value in fields.items() if value) or "none: it is no sequence of layers"
        raise ModelError(f"the receptive field of {layer!r} in {network.name} is not known", f"one of {known}")
    return field


def deconvnet(network: Network, input: Tensor, layer: str, unit: int, position: tuple[int, int]) -> Tensor:
    """What part of an image a unit responds to, by the deconvolutional network of Zeiler and Fergus 2014, section 2.

    The unit's response goes back through the layers, all other responses are 0: convolutions are transposed, pools put
    a value where the maximum was, and ReLUs keep what is positive on the way back. Response normalization is passed
    through unchanged, as in the paper.

    Args:
        network: A sequence of layers.
        input: Network input [C, s, s].
        layer: The unit's layer.
        unit: Its channel.
        position: Its row and column.

    Returns:
        The view [C, s, s], float32 on the CPU.
    """
    names = [name for name, _ in network.named_children()]
    layers = [network.get_submodule(name) for name in names[: names.index(layer) + 1]]
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            inputs, value = [], input[None].detach().clone()
            for module in layers:
                inputs.append(value)
                with torch.no_grad():
                    value = module(value.clone())  # a ReLU may overwrite its input
            back = torch.zeros_like(value)
            _as_maps(back)[0, unit, position[0], position[1]] = _as_maps(value)[0, unit, position[0], position[1]]
            for module, input in zip(reversed(layers), reversed(inputs), strict=True):
                back = _back(module, input, back)
    finally:
        network.train(was_training)
    return back[0].detach().float().cpu()


def _back(module: nn.Module, input: Tensor, back: Tensor) -> Tensor:
    """``back`` one layer nearer to the image; ``input`` is the layer's input in the forward pass."""
    if isinstance(module, nn.ReLU):
        return back.relu()
    if isinstance(module, LocalResponseNorm | SpatialNorm):
        return back
    input = input.detach().clone().requires_grad_()
    gradient: Tensor = torch.autograd.grad(module(input.clone()), input, back)[0]
    return gradient


def maximize(
    network: Network,
    normalization: Normalization,
    layer: str,
    units: Sequence[int],
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """For each unit an image for which its mean response is large, by gradient ascent (Erhan et al. 2009).

    The image is parametrized by its Fourier spectrum, divided by the frequency, and moved by a few pixels at random in
    each step (Olah, Mordvintsev, Schubert 2017): without that, gradient ascent finds noise.

    Args:
        network: The network, on its device.
        normalization: How images are normalized; mean images are replaced by their channel means.
        layer: The layer whose output is maximized. For a class choose the last layer, whose outputs are logits.
        units: Its channels.
        steps: Steps of gradient ascent.
        seed: Of the initial image and the shifts.

    Returns:
        Images uint8 [len(units), s, s, 3].
    """
    device, size = normalization.mean.device, network.image_size
    mean = normalization.mean if normalization.mean.dim() == 1 else normalization.mean.mean((0, 1))  # [3]
    draw, reach = torch.Generator().manual_seed(seed), size // SHIFT
    frequencies = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None])  # [s, s // 2 + 1]
    scale = (size / frequencies.clamp(min=1 / size)).to(device) / size
    shape = (len(units), 3, *frequencies.shape, 2)
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            spectrum = (0.01 * torch.randn(shape, generator=draw)).to(device).requires_grad_()
            optimizer = torch.optim.Adam([spectrum], lr=RATE)

            def image() -> Tensor:
                """[n, 3, s, s], gray levels."""
                planes = torch.fft.irfft2(torch.view_as_complex(spectrum) * scale, s=(size, size), norm="ortho")
                gray_levels: Tensor = 255 * planes.sigmoid()
                return gray_levels

            rows = torch.arange(len(units), device=device)
            columns = torch.tensor(list(units), device=device)
            for _ in range(steps):
                shifts = torch.randint(-reach, reach + 1, (2,), generator=draw).tolist()
                moved = image().roll(shifts, (2, 3))
                if network.in_channels == 1:
                    luma = torch.tensor(LUMA, device=device)
                    moved, subtract = (moved * luma[:, None, None]).sum(1, keepdim=True), (mean @ luma)[None]
                else:
                    subtract = mean
                inputs = (moved - subtract[:, None, None]) / normalization.divide.reshape(-1, 1, 1)
                outputs = _as_maps(network.forward_to(inputs, layer))
                response = outputs[rows, columns].mean((1, 2))
                optimizer.zero_grad()
                (-response.sum()).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            result = image().detach().round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    finally:
        network.train(was_training)
    return np.asarray(result.cpu().numpy())


def resized(patch: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A patch uint8 [h, w, 3] as [size, size, 3], bilinear."""
    planes = torch.from_numpy(np.ascontiguousarray(patch)).permute(2, 0, 1)[None].float()
    scaled = F.interpolate(planes, size=(size, size), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    return np.asarray(scaled.round().to(torch.uint8).numpy())


def _as_maps(outputs: Tensor) -> Tensor:
    """Outputs [N, K] or [N, K, H, W] as [N, K, H, W]; a view."""
    return outputs if outputs.dim() == 4 else outputs[:, :, None, None]


UNTRAINED = 2 / 3  # expected color share of three independent weights: two of three directions are color
SHUFFLES = 2000


@dataclass(frozen=True)
class Specialization:
    """The color shares of a first layer. 0: only gray; 1: only color; untrained weights: 2/3.

    Attributes:
        filters: The color share of each filter, [K].
        towers: That of each tower, weighted by energy, so that untrained filters weigh little.
        colored: Number of filters in each tower with a color share above 1/2.
        difference: The largest difference between two towers.
        by_chance: Fraction of random divisions of the filters into towers with at least this difference (p-value).
    """

    filters: tuple[float, ...]
    towers: tuple[float, ...]
    colored: tuple[int, ...]
    difference: float
    by_chance: float

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON values, with the expectation of untrained weights."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()} | {
            "untrained": UNTRAINED
        }


def specialization(weights: NDArray[np.floating[Any]], towers: int, seed: int = 0) -> Specialization | None:
    """The color shares of first-layer filters [K, C, H, W] in ``towers`` equal parts of dimension 0 (section 6.1).

    "The kernels on GPU 1 are largely color-agnostic, while the kernels on GPU 2 are largely color-specific". The color
    share of a filter is the part of its energy (the sum of its squared weights) that a gray image does not activate. At
    each position the three weights are split into their mean, which responds to gray, and the remainder, which responds
    to color alone.

    None unless there are 3 channels, and for filters that are 0 or not finite.
    """
    if weights.ndim != 4 or weights.shape[1] != 3 or towers < 1 or len(weights) % towers:
        return None
    w = weights.astype(np.float64)
    energy = np.square(w).sum((1, 2, 3))  # [K]
    color = np.square(w - w.mean(1, keepdims=True)).sum((1, 2, 3))  # [K]
    if not np.isfinite(energy).all() or not energy.all():
        return None
    shares, each = color / energy, _by_tower(np.arange(len(w))[None], energy, color, towers)[0]
    difference = float(np.ptp(each))
    generator = np.random.Generator(np.random.Philox(key=seed))
    shuffled = generator.permuted(np.tile(np.arange(len(w)), (SHUFFLES, 1)), axis=1)
    drawn = np.ptp(_by_tower(shuffled, energy, color, towers), axis=1)  # [SHUFFLES]
    chance = (1 + int((drawn >= difference - 1e-12).sum())) / (1 + SHUFFLES)
    colored = (shares > 0.5).reshape(towers, -1).sum(1)
    return Specialization(tuple(shares.tolist()), tuple(each.tolist()), tuple(colored.tolist()), difference, chance)


def _by_tower(
    order: NDArray[np.int64], energy: NDArray[np.float64], color: NDArray[np.float64], towers: int
) -> NDArray[np.float64]:
    """The color share of each tower for each order [b, K] of the filters: [b, towers]."""
    sums = [part[order].reshape(len(order), towers, -1).sum(2) for part in (color, energy)]
    return np.asarray(sums[0] / sums[1])
