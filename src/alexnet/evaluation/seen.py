"""What a network sees of stored pictures, and what its last hidden layer says of them: as in training, center views."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.batches.transforms import Statistics, center_views, color
from alexnet.models.network import Network


def inputs_of(network: Network, images: NDArray[np.uint8], statistics: Statistics) -> Tensor:
    """Stored pictures uint8 [N, S, S, 3] -> float32 [N, C, s, s] on the device of ``statistics``, as a network's input.

    The center view, gray where the network is, minus the mean, divided as the classifier divides.
    """
    views = center_views(torch.from_numpy(images).to(statistics.mean.device), network.image_size)
    return color(views, None, None, statistics, network.in_channels)


@torch.inference_mode()
def features_of(network: Network, images: NDArray[np.uint8], statistics: Statistics) -> NDArray[np.float32]:
    """What the layer ``network.features`` says of each picture: float32 [N, D] (AlexNet: fc7 behind its ReLU, 4096)."""
    inputs = inputs_of(network, images, statistics)
    found: NDArray[np.float32] = network.until(inputs, network.features).flatten(1).float().cpu().numpy()
    return found
