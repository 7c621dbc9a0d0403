"""Network inputs and last-hidden-layer features of stored images, from center crops as in evaluation."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.loader.augmentation import Normalization, center_crops, normalize
from alexnet.models.network import Network


def inputs_of(network: Network, images: NDArray[np.uint8], normalization: Normalization) -> Tensor:
    """Network inputs float32 [N, C, s, s] of stored images uint8 [N, S, S, 3], on the device of ``normalization``.

    The center crop, gray where the network is, minus the mean, divided as the classifier divides.
    """
    crops = center_crops(torch.from_numpy(images).to(normalization.mean.device), network.image_size)
    return normalize(crops, None, None, normalization, network.in_channels)


@torch.inference_mode()
def features_of(network: Network, images: NDArray[np.uint8], normalization: Normalization) -> NDArray[np.float32]:
    """What the layer ``network.features`` says of each image: float32 [N, D] (AlexNet: fc7 behind its ReLU, 4096)."""
    inputs = inputs_of(network, images, normalization)
    result: NDArray[np.float32] = network.forward_to(inputs, network.features).flatten(1).float().cpu().numpy()
    return result
